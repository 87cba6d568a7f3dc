"""Batches as distinct pairs: the same transitions, every observation read once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cql import batches, losses
from cql.batches import Minibatches, distinct, pairs
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.sampling import Transitions


def test_distinct_by_hand():
    found, rows, filled = distinct(torch.tensor([[[7, 3, 7, 7, 5, 9]], [[2, 2, 2, 2, 2, 2]]]))
    assert found.tolist() == [[[3, 5, 7, 9, 0, 0]], [[2, 0, 0, 0, 0, 0]]]
    assert rows.tolist() == [[[2, 0, 2, 2, 1, 3]], [[0, 0, 0, 0, 0, 0]]]
    assert filled == [4, 4]  # 4 and 1, rounded up


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), kinds=st.integers(1, 60))
def test_distinct_observations_are_found_again(seed, size, kinds):
    drawn = torch.randint(0, kinds, (3, 2, size), generator=torch.Generator().manual_seed(seed))
    found, rows, filled = distinct(drawn)
    assert torch.equal(found.gather(-1, rows), drawn)
    for t in range(3):
        most = max(len(drawn[t, m].unique()) for m in range(2))
        assert most <= filled[t] <= min(size, most + batches.MULTIPLE - 1)
        for m in range(2):
            assert found[t, m, : len(drawn[t, m].unique())].tolist() == drawn[t, m].unique().tolist()


def test_pairs_by_hand():
    rows, actions = torch.tensor([[0, 1, 0, 0]]), torch.tensor([[1, 0, 1, 0]])
    held = pairs(rows, actions, torch.full((1, 4), 0.25), num_rows=2, num_actions=2)
    assert held.weights.tolist() == [[[0.25, 0.25], [0.5, 0.0]]]  # action by action
    mean, left_out = held.mean(torch.tensor([[1.0, 4.0, 3.0, 7.0]]), "mse")
    assert mean.tolist() == [[[7.0, 4.0], [2.0, 0.0]]]
    assert left_out.tolist() == [0.5]  # two of four transitions, 1 from their mean each


def minibatches(config, algorithm="cql"):
    count = 50
    g = torch.Generator().manual_seed(1)
    states = torch.randint(0, 12, (count,), generator=g).numpy()
    data = OfflineDataset.from_arrays(states, torch.randint(0, 4, (count,), generator=g).numpy(), [-1.0] * count,
                                      [*states[1:], 0], [False] * (count - 1) + [True])
    transitions = Transitions([data], torch.device("cpu"), compress=False)
    zero = torch.zeros(3, dtype=torch.int64)
    return Minibatches(transitions, zero, torch.tensor([1, 2, 3]), config, algorithm), transitions


@pytest.mark.parametrize("td_loss", ["mse", "half_mse"])
def test_a_minibatch_of_pairs_has_the_gradient_of_its_transitions(td_loss):
    source, transitions = minibatches(Config(batch_size=16, td_loss=td_loss))
    block = source.block(torch.arange(5))
    table = torch.randn(3, len(transitions.observations), 4, dtype=torch.float64)
    targets = torch.randn(5, 3, 16, dtype=torch.float64)
    alpha = torch.tensor([0.0, 1.0, 6.0], dtype=torch.float64)
    mean, left_out = block.pairs._replace(shares=block.pairs.shares.double(), weights=block.pairs.weights.double()).mean(targets, td_loss)
    q_values = torch.zeros(5, 3, 4, 16, dtype=torch.float64).mT
    for t, (inputs, batch, target, room) in enumerate(block.updates(q_values, mean)):
        assert inputs.shape[1] == block.filled[t] <= 12
        room.copy_(table.gather(1, inputs[..., None].expand(*inputs.shape, 4)))
        gradient = losses.cql_gradient(room, None, target, alpha, td_loss, batch.weights.double())
        made = torch.zeros_like(table).scatter_add_(1, inputs[..., None].expand(gradient.shape), gradient)
        leaf = table.clone().requires_grad_()
        observations = block.drawn.observations[t][..., None].expand(3, 16, 4)
        terms = losses.cql_loss(leaf.gather(1, observations), block.drawn.actions[t], targets[t], alpha, td_loss)
        terms.total.sum().backward()
        torch.testing.assert_close(made, leaf.grad)
        pair_terms = losses.cql_loss(q_values[t], None, mean[t], alpha, td_loss, block.batch.weights[t].double())
        torch.testing.assert_close(pair_terms.td + left_out[t], terms.td.detach())
        torch.testing.assert_close(pair_terms.gap, terms.gap.detach())


def test_the_huber_loss_keeps_the_transitions():
    block = minibatches(Config(batch_size=16, td_loss="huber"))[0].block(torch.arange(2))
    assert block.pairs is None and block.filled is None and torch.equal(block.inputs, block.drawn.observations)
    assert minibatches(Config(batch_size=16, td_loss="huber"), "bc")[0].block(torch.arange(2)).pairs is not None
