"""The network, its hand-written backward, and one update of a population against autograd and torch.optim.Adam."""

import math

import pytest
import torch

from cql import learner, losses
from cql.networks import PopulationMLP
from cql.products import Matrices
from cql.sampling import Batch

NETWORKS = [PopulationMLP(9, 4, hidden, discrete) for hidden in ((), (8,), (8, 6), (5, 5, 5)) for discrete in (True, False)]


def inputs_for(network, members, rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    if network.discrete:
        return torch.randint(0, network.inputs, (members, rows), generator=g)
    return torch.randn(members, rows, network.inputs, generator=g)


def memory_for(network, state, rows):
    """Workspace and room for Q."""
    work = learner.Workspaces(network, state, rows + 3).of(rows)  # made for more rows than are used
    return work, torch.empty(len(state.alpha), network.outputs, rows).mT


def batch_for(members, rows, actions=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(None, torch.randint(0, actions, (members, rows), generator=g), None, None, None)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_backward_is_autograds(network):
    flat = network.initial([1, 2, 3]).double()
    x = inputs_for(network, 3, 7)
    x = x if network.discrete else x.double()
    direction = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = flat.clone().requires_grad_()
    (network.q_values(network.layers(leaf), x) * direction).sum().backward()
    gradient = torch.full_like(flat, torch.nan)  # every entry must be written
    layers = network.layers(flat)
    room = [Matrices(torch.empty(3, 7, width, dtype=torch.float64)) for width in network.hidden]
    network.backward(layers, x, network.forward(layers, x), direction, network.layers(gradient), room)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_forward_equals_a_plain_module(network):
    flat = network.initial([5, 6])
    x = inputs_for(network, 2, 6)
    outputs = network.q_values(network.layers(flat), x)
    room = [Matrices(torch.empty(2, 6, width)) for width in network.hidden] + [Matrices(torch.empty(2, 4, 6).mT)]
    buffered = network.forward(network.layers(flat), x, room)[-1].whole
    assert torch.equal(outputs, buffered)
    for m in range(2):
        h = torch.nn.functional.one_hot(x[m], network.inputs).float() if network.discrete else x[m]
        for n, layer in enumerate(network.layers(flat)):
            h = h @ layer.weight[m] if layer.bias is None else torch.nn.functional.linear(h, layer.weight[m], layer.bias[m, 0])
            h = h.relu() if n < len(network.hidden) and not (network.discrete and n == 0) else h
        torch.testing.assert_close(outputs[m], h)


def test_hidden_nothing_is_the_table():
    network = PopulationMLP(9, 4, (), discrete=True)
    flat = network.initial([0])
    assert network.parameters_per_member == 36
    assert torch.equal(network.q_values(network.layers(flat), torch.arange(9)[None])[0], flat.view(9, 4))


def test_equal_seeds_start_equal_whatever_stands_beside_them():
    network = PopulationMLP(9, 4, (8, 8), discrete=True)
    alone, among = network.layers(network.initial([7])), network.layers(network.initial([1, 7, 7, 2]))
    for one, many in zip(alone, among):
        for a, b in zip(one, many):
            if a is not None:
                assert torch.equal(a[0], b[1]) and torch.equal(b[1], b[2]) and not torch.equal(b[1], b[3])


@pytest.mark.parametrize("td_loss", losses.TD_LOSSES)
@pytest.mark.parametrize("network", NETWORKS[2:6], ids=str)
def test_cql_update_equals_autograd_with_torch_adam(network, td_loss):
    members, rows, seeds = 3, 16, [1, 2, 3]
    alpha = [0.0, 1.0, 6.0]
    state = learner.initial_state(network, seeds, alpha, torch.device("cpu"))
    memory = memory_for(network, state, rows)
    leaf = state.parameters.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=1e-2)
    for update in range(5):
        x, batch = inputs_for(network, members, rows, update), batch_for(members, rows, seed=update)
        targets = torch.randn(members, rows, generator=torch.Generator().manual_seed(update)) * 5
        learner.cql_update(network, state, x, batch, targets, td_loss, torch.tensor(1e-2), *memory)
        adam.zero_grad()
        q = network.q_values(network.layers(leaf), x)
        losses.cql_loss(q, batch.actions, targets, torch.tensor(alpha), td_loss).total.sum().backward()
        adam.step()
        torch.testing.assert_close(state.parameters, leaf.detach(), rtol=1e-4, atol=1e-5)
    assert state.updates.item() == 5


def test_bc_update_equals_autograd_with_torch_adam():
    network, x, batch = NETWORKS[4], inputs_for(NETWORKS[4], 2, 12), batch_for(2, 12)
    state = learner.initial_state(network, [1, 2], [0.0, 0.0], torch.device("cpu"))
    leaf = state.parameters.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=1e-2)
    memory = memory_for(network, state, 12)
    for _ in range(5):
        learner.bc_update(network, state, x, batch, torch.tensor(1e-2), *memory)
        adam.zero_grad()
        losses.bc_loss(network.q_values(network.layers(leaf), x), batch.actions).sum().backward()
        adam.step()
    torch.testing.assert_close(state.parameters, leaf.detach(), rtol=1e-4, atol=1e-5)


def test_full_batch_rows_equal_the_written_out_batch():
    """Each observation computed once, its gradient summed over its transitions: the same as computing it every time."""
    network = PopulationMLP(5, 3, (6,), discrete=True)
    observations = torch.tensor([[0, 1, 1, 4], [2, 2, 2, 0]])
    actions = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.5, 0.0]])
    targets, rate = torch.randn(2, 4), torch.tensor(1e-2)
    batch, table = Batch(None, actions, None, None, None, weights), torch.arange(5).expand(2, 5)
    once, written_out = (learner.initial_state(network, [1, 2], [1.0, 6.0], torch.device("cpu")) for _ in range(2))
    for _ in range(3):
        learner.cql_update(network, once, table, batch._replace(rows=observations), targets, "huber", rate,
                           *memory_for(network, once, 5))
        learner.cql_update(network, written_out, observations, batch, targets, "huber", rate,
                           *memory_for(network, written_out, 4))
    torch.testing.assert_close(once.parameters, written_out.parameters)


@pytest.mark.parametrize("weights, rows", [(None, None), ([[0.75, 0.25], [0.25, 0.75]], [[1, 0], [1, 0]])])
def test_dual_ascent_by_hand(weights, rows):
    """Two members, gaps of two transitions each: log 2 where Q is constant, log(1 + e) and log(1 + 1/e) where it differs by 1."""
    state = learner.State(*[None] * 4, torch.tensor([2.0, 6.0]), None)
    q = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [300.0, 0.0]]])
    batch = Batch(None, torch.tensor([[0, 1], [1, 1]]), None, None, None)
    share = (0.5, 0.5)
    if rows:
        batch, share = batch._replace(actions=batch.actions.flip(1), weights=torch.tensor(weights), rows=torch.tensor(rows)), (0.25, 0.75)
    learner.dual_ascent(state, q, batch, 0.7, torch.tensor(0.05))
    gap = share[0] * math.log(2) + share[1] * math.log1p(math.exp(-1))
    second = 1.0  # its gap is of the order of 100: the excess counts as 1
    assert state.alpha.tolist() == pytest.approx([2 * math.exp(0.05 * (gap - 0.7)), 6 * math.exp(0.05 * second)], rel=1e-5)
    assert state.alpha[0] < 2 and state.alpha[1] > 6


def test_dual_ascent_stays_within_what_can_be_trained():
    state = learner.State(*[None] * 4, torch.tensor([1e-18, 1e18]), None)
    batch = Batch(None, torch.tensor([[0], [1]]), None, None, None)
    learner.dual_ascent(state, torch.tensor([[[9.0, 0.0]], [[9.0, 0.0]]]), batch, 1.0, torch.tensor(0.05))
    assert state.alpha.tolist() == pytest.approx([1e-18, 1e18])


def test_joined_buffers_are_those_of_all_members():
    for network in NETWORKS:
        whole = network.initial([4, 5, 6])
        parts = network.split(whole, [1, 2])
        assert torch.equal(parts[0], network.initial([4])) and torch.equal(parts[1], network.initial([5, 6]))
        assert torch.equal(network.joined(parts), whole)


def test_values_of_the_target_network_by_hand():
    network = PopulationMLP(2, 2, (), discrete=True)  # the table Q[s, a]
    online, target = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    state = learner.State(online, target, None, None, None, None)
    states = torch.tensor([[0, 1]])
    assert learner.greedy_values(network, target, states).tolist() == [[20.0, 40.0]]
    # double Q: the online network chooses action 1 in state 0 and action 0 in state 1, the target values them
    assert learner.double_q_values(network, state, states).tolist() == [[20.0, 30.0]]


def test_values_in_chunks_are_the_values_at_once(monkeypatch):
    network = NETWORKS[4]
    flat, states = network.initial([1, 2]), inputs_for(network, 2, 50)
    whole = learner.greedy_values(network, flat, states)
    monkeypatch.setattr(learner, "CHUNK", 16)
    torch.testing.assert_close(learner.greedy_values(network, flat, states), whole)
