"""A batch as distinct pairs: the losses and gradients of its transitions, every observation read once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cql import losses
from cql.dataset import OfflineDataset
from cql.engine import batches
from cql.engine.batches import Distinct, Minibatches
from cql.engine.pairs import pairs_of, sum_by_pair
from cql.sampling import Transitions


def test_distinct_by_hand():
    found = Distinct.of(torch.tensor([[[7, 3, 7, 7, 5, 9]], [[2, 2, 2, 2, 2, 2]]]))
    assert found.rows.tolist() == [[[3, 5, 7, 9, 0, 0]], [[2, 0, 0, 0, 0, 0]]]
    assert found.places.tolist() == [[[2, 0, 2, 2, 1, 3]], [[0, 0, 0, 0, 0, 0]]]
    assert found.filled() == [4, 4]  # 4 and 1, rounded up
    assert found.gradient_lines(10).tolist() == [[0, 0, 0, 1, 0, 2, 0, 3, 0, 4], [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]]
    members = Distinct.of(torch.tensor([[[1, 1, 0], [2, 0, 2]]]))  # of one update: 3 inputs of each
    assert members.gradient_lines(3).tolist() == [[1, 2, 0, 4, 0, 5]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), kinds=st.integers(1, 60))
def test_distinct_observations_are_found_again(seed, size, kinds):
    drawn = torch.randint(0, kinds, (3, 2, size), generator=torch.Generator().manual_seed(seed))
    found = Distinct.of(drawn)
    rows, filled, gradient_lines = found.rows, found.filled(), found.gradient_lines(70).view(3, 2, 70)
    assert torch.equal(rows.gather(-1, found.places), drawn)
    for t in range(3):
        most = max(len(drawn[t, m].unique()) for m in range(2))
        assert most <= filled[t] <= min(size, most + batches.MULTIPLE - 1)
        for m in range(2):
            assert rows[t, m, : len(drawn[t, m].unique())].tolist() == drawn[t, m].unique().tolist()
            read = gradient_lines[t, m].nonzero().flatten()  # of every state that is read, the input that reads it
            assert read.tolist() == drawn[t, m].unique().tolist()
            assert torch.equal(rows[t].flatten()[gradient_lines[t, m, read] - 1], read)


def test_pairs_by_hand():
    rows, actions = torch.tensor([[0, 1, 0, 0]]), torch.tensor([[1, 0, 1, 0]])
    pairs = pairs_of(rows, actions, torch.full((1, 4), 0.25), 2, 2, sum_by_pair)
    assert pairs.weights.tolist() == [[[0.25, 0.25], [0.5, 0.0]]]  # action by action
    mean, variance = pairs.targets(torch.tensor([[1.0, 4.0, 3.0, 7.0]]), "mse", sum_by_pair)
    assert mean.tolist() == [[[7.0, 4.0], [2.0, 0.0]]]
    assert variance.tolist() == [0.5]  # two of four transitions, 1 from their mean each


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), td_loss=st.sampled_from(("mse", "half_mse")))
def test_the_identity(seed, td_loss):
    """Gradients and terms of 30 transitions with unequal shares over 3 observations, and of their 12 pairs."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    rows, actions = torch.randint(0, 3, (2, 30), generator=g), torch.randint(0, 4, (2, 30), generator=g)
    targets, alpha = torch.randn(2, 30, generator=g, dtype=torch.float64), torch.tensor([0.5, 6.0], dtype=torch.float64)
    shares = torch.rand(2, 30, generator=g, dtype=torch.float64).softmax(-1)
    leaf = q.clone().requires_grad_()
    written_out = leaf.gather(1, rows[..., None].expand(2, 30, 4))
    terms = losses.cql_loss(written_out, actions, targets, alpha, td_loss, weights=shares)
    gradient, = torch.autograd.grad(terms.total.sum(), leaf, retain_graph=True)
    of_bc, = torch.autograd.grad(losses.bc_loss(written_out, actions, shares).sum(), leaf)
    pairs, by_action = pairs_of(rows, actions, shares, 3, 4, sum_by_pair), q.mT
    mean, variance = pairs.targets(targets, td_loss, sum_by_pair)
    torch.testing.assert_close(pairs.td(by_action, mean, td_loss) + variance, terms.td.detach())
    torch.testing.assert_close(pairs.penalty(by_action), terms.penalty.detach())
    torch.testing.assert_close(pairs.cql_gradient(by_action, mean, alpha, td_loss).mT, gradient)
    torch.testing.assert_close(pairs.bc_gradient(by_action).mT, of_bc)


def test_a_minibatch_of_pairs_is_that_of_its_transitions():
    g = torch.Generator().manual_seed(1)
    states = torch.randint(0, 12, (50,), generator=g).numpy()
    data = OfflineDataset.from_arrays(states, torch.randint(0, 4, (50,), generator=g).numpy(), [-1.0] * 50,
                                      [*states[1:], 0], [False] * 49 + [True])
    transitions = Transitions([data], torch.device("cpu"), compress=False)
    draws, seeds, q_history = torch.zeros(3, dtype=torch.int64), torch.tensor([1, 2, 3]), torch.zeros(5, 3, 4, 16)
    block = Minibatches(transitions, draws, seeds, 16, sum_by_pair).block(torch.arange(7, 12))
    for t, (inputs, _, pairs, _, q) in enumerate(block.updates(q_history, q_history)):
        assert inputs.shape[1] == q.shape[2] == block.filled[t] <= 12
        batch = transitions.minibatch(draws, seeds, 7 + t, 16)
        states = inputs.gather(1, block.pairs.pair_index[t] % 16) - 12 * torch.arange(3)[:, None]  # of one table
        assert torch.equal(states, batch.observations)
        assert torch.equal(block.pairs.pair_index[t] // 16, batch.actions)
        torch.testing.assert_close(pairs.weights.sum((1, 2)), torch.ones(3))
