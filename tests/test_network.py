"""The network against plain modules, the engine's passes against autograd, and the algorithm's parts by hand."""

import math

import pytest
import torch

from cql.algorithm import State, cosine_decay, dual_ascent, next_values
from cql.engine import cohort
from cql.engine.passes import Passes
from cql.engine.steps import PYTORCH
from cql.losses import Objective
from cql.network import PopulationMLP

NETWORKS = [PopulationMLP(9, 4, hidden, discrete) for hidden in ((), (8,), (8, 6), (5, 5, 5))
            for discrete in (True, False)]


def inputs_for(network, members, rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    if network.discrete:
        return torch.randint(0, network.inputs, (members, rows), generator=g)
    return torch.randn(members, rows, network.inputs, generator=g)


def passes_for(network, parameters, rows):
    """Made for more rows than are used."""
    first, second = ([torch.zeros_like(tensor) for tensor in parameters] for _ in range(2))
    return Passes(network, parameters, first, second, rows + 3, PYTORCH)


def in_all_tables(network, x):
    """What the passes read: of a discrete network the rows of the members' tables as one."""
    return x + network.inputs * torch.arange(len(x))[:, None] if network.discrete else x


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_q_values_are_those_of_plain_modules(network):
    parameters, x = network.initial([5, 6]), inputs_for(network, 2, 6)
    outputs = network.q_values(parameters, x)
    by_action = torch.full((2, 4, 6), torch.nan)
    passes_for(network, parameters, 6).forward(in_all_tables(network, x), by_action)
    torch.testing.assert_close(by_action.mT, outputs)
    for m in range(2):
        layers, h = [tensor[m] for tensor in parameters], x[m]
        if network.discrete:
            h, layers = torch.nn.functional.one_hot(h, network.inputs).float() @ layers[0], layers[1:]
        for n, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
            h = torch.nn.functional.linear(h.relu() if n else h, weight, bias[0])
        torch.testing.assert_close(outputs[m], h)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_passes_have_autograds_gradient_and_pytorchs_adam(network):
    parameters, x = network.initial([1, 2, 3]), inputs_for(network, 3, 7)
    directions = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(1))
    leaves = [tensor.clone().requires_grad_() for tensor in parameters]
    adam, passes = torch.optim.Adam(leaves, lr=0.01), passes_for(network, parameters, 7)
    for number, direction in enumerate(directions, 1):
        adam.zero_grad()
        (network.q_values(leaves, x) * direction).sum().backward()
        adam.step()
        for tensor in passes.gradients:
            tensor.fill_(torch.nan)  # every entry must be written
        passes.forward(in_all_tables(network, x), torch.empty(3, 4, 7))
        passes.step(direction.mT, None, torch.tensor(0.01), torch.tensor(float(number)))
        torch.testing.assert_close(passes.gradients, [leaf.grad for leaf in leaves])
        torch.testing.assert_close(parameters, [leaf.detach() for leaf in leaves])


def test_hidden_nothing_is_the_table():
    network = PopulationMLP(9, 4, (), discrete=True)
    [table] = network.initial([0])
    assert network.parameters_per_member == 36 and network.shapes == {"table": (9, 4)}
    assert torch.equal(network.q_values([table], torch.arange(9)[None]), table)


def test_equal_seeds_start_equal_whatever_stands_beside_them():
    network = PopulationMLP(9, 4, (8, 8), discrete=True)
    for a, b in zip(network.initial([7]), network.initial([1, 7, 7, 2])):
        assert torch.equal(a[0], b[1]) and torch.equal(b[1], b[2]) and not torch.equal(b[1], b[3])
    # 9 states, 8 inputs
    assert network.initial([7])[0].abs().max() <= 1 / 3 and network.initial([7])[1].abs().max() > 1 / 3


def test_values_of_the_target_network_by_hand():
    network = PopulationMLP(2, 2, (), discrete=True)  # the table Q[s, a]
    state = State([torch.tensor([[[1.0, 2.0], [4.0, 3.0]]])], [torch.tensor([[[10.0, 20.0], [30.0, 40.0]]])], [], [],
                  torch.zeros(1))
    states = torch.tensor([[0, 1]])
    assert next_values(network, state, states, Objective()).tolist() == [[20.0, 40.0]]
    # double Q: the online network chooses action 1 in state 0 and action 0 in state 1, the target values them
    assert next_values(network, state, states, Objective(double_q=True)).tolist() == [[20.0, 30.0]]


def test_dual_ascent_by_hand():
    """Two penalties: one below the threshold, one whose excess of 99.3 counts as 1."""
    alpha = torch.tensor([2.0, 6.0])
    dual_ascent(alpha, torch.tensor([0.5, 100.0]), 0.7, 0.05)
    assert alpha.tolist() == pytest.approx([2 * math.exp(0.05 * -0.2), 6 * math.exp(0.05)], rel=1e-6)


def test_dual_ascent_stays_within_what_can_be_trained():
    alpha = torch.tensor([1e-18, 1e18])
    dual_ascent(alpha, torch.tensor([0.0, 9.0]), 1.0, 0.05)
    assert alpha.tolist() == pytest.approx([1e-18, 1e18])


def test_cosine_by_hand():
    assert [cosine_decay(step, 4) for step in range(4)] == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])


def test_blocks_are_bounded():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert cohort.block_length(64 * 8 * 4, 10**9, cpu) == 100 and cohort.block_length(2**20, 0, cpu) == 1
    assert cohort.block_length(2**20, 0, cuda) == 32 and cohort.block_length(2**20, 2**24, cuda) == 2
