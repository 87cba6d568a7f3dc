"""Minibatches: uniform, paired by seed, independent of company, cut at the data's end."""

import numpy as np
import scipy
import torch

from cql.dataset import OfflineDataset
from cql.sampling import Transitions, _splitmix64, uniform_bits

CPU = torch.device("cpu")


def dataset(length, seed=0, states=7, vectors=False):
    random = np.random.default_rng(seed)
    observations = random.integers(0, states, length)
    following = random.integers(0, states, length)
    if vectors:
        table = random.normal(size=(states, 2)).astype(np.float32)
        observations, following = table[observations], table[following]
    return OfflineDataset.from_arrays(observations, random.integers(0, 3, length), random.integers(-1, 2, length),
                                      following, random.random(length) < 0.2,
                                      metadata={"num_actions": 3} if vectors
                                      else {"num_actions": 3, "num_states": states})


def test_mixing_function_gives_the_published_sequence():
    # splitmix64 from state 1234567 (Vigna's reference implementation): state += golden gamma, then the finaliser
    golden, state, found = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        state = (state + golden) % 2**64
        z = torch.tensor(state - 2**64 if state >= 2**63 else state)
        found.append(int(_splitmix64(z)) % 2**64)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_and_uncorrelated():
    bits = uniform_bits(torch.tensor([1, 2]), torch.arange(2000), 64)  # [T, M, B]
    assert bits.min() >= 0 and bits.max() < 2**32
    u = bits.double() / 2**32
    for m in range(2):
        assert scipy.stats.kstest(u[:, m].flatten().numpy(), "uniform").pvalue > 1e-3
    pairs = [(u[:, 0], u[:, 1]), (u[:-1, 0], u[1:, 0]), (u[:, 0, :-1], u[:, 0, 1:])]  # seeds, updates, positions
    for a, b in pairs:
        correlation = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(a.numel())


def test_a_draw_depends_on_seed_and_update_alone():
    together = uniform_bits(torch.tensor([3, 8, 8]), torch.arange(10, 20), 5)
    assert torch.equal(together[:, 1], together[:, 2])
    assert torch.equal(together[4:5, 0:1], uniform_bits(torch.tensor([3]), torch.tensor([14]), 5))


def test_indices_cover_each_members_own_draw():
    sets = [dataset(5), dataset(11, 1)]
    transitions = Transitions(sets, CPU, compress=False)
    bits = torch.tensor([[[0, 2**31, 2**32 - 1]] * 2])  # u = 0, 1/2 and just under 1
    index = transitions.minibatch_indices(torch.tensor([0, 1]), bits)
    assert index.tolist() == [[[0, 2, 4], [5, 10, 15]]]


def test_batches_are_the_data():
    for vectors in (False, True):
        data = dataset(40, vectors=vectors)
        transitions = Transitions([data], CPU, compress=False)
        batch = transitions.at(torch.arange(40)[None])
        np.testing.assert_array_equal(transitions.observations[batch.observations[0]].numpy(), data.observations)
        np.testing.assert_array_equal(transitions.observations[batch.next_observations[0]].numpy(),
                                      data.next_observations)
        np.testing.assert_array_equal(batch.actions[0].numpy(), data.actions)
        np.testing.assert_array_equal(batch.rewards[0].numpy(), data.rewards)
        np.testing.assert_array_equal(batch.terminations[0].numpy(), data.terminations)


def test_a_minibatch_is_the_drawn_transitions_with_their_observations():
    data = [dataset(40, vectors=True), dataset(30, 1, vectors=True)]
    transitions = Transitions(data, CPU, compress=False)
    draws, seeds = torch.tensor([0, 1, 1]), torch.tensor([5, 5, 6])
    batch = transitions.minibatch(draws, seeds, 7, 12)
    index = transitions.minibatch_indices(draws, uniform_bits(seeds, torch.tensor([7]), 12)[0])
    for m, draw in enumerate(draws.tolist()):
        at = (index[m] - 40 * draw).numpy()
        np.testing.assert_array_equal(batch.observations[m].numpy(), data[draw].observations[at])
        np.testing.assert_array_equal(batch.next_observations[m].numpy(), data[draw].next_observations[at])
        np.testing.assert_array_equal(batch.rewards[m].numpy(), data[draw].rewards[at])
    assert batch.weights is None and not torch.equal(batch.actions[1], batch.actions[2])


def test_full_batch_weights_sum_to_one_and_padding_counts_nothing():
    sets = [dataset(30), dataset(300, 1)]
    transitions = Transitions(sets, CPU, compress=True)
    batch = transitions.full_batch(torch.tensor([1, 0, 1]))
    torch.testing.assert_close(batch.weights.sum(-1), torch.ones(3))
    assert (batch.weights[1] > 0).sum() == len(sets[0].compress()) < batch.weights.shape[1]
    for m, draw in enumerate((1, 0, 1)):
        mean = (batch.weights[m] * batch.rewards[m]).sum().item()
        assert abs(mean - sets[draw].rewards.mean()) < 1e-5
