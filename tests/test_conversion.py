"""The meaning of alpha under other TD losses and reward scales (docs/math.md, section 7), against losses and solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mdps import random_table, roll

from cql.exact import TabularMDP, bellman_backup, cql_fixed_point, empirical_mdp, greedy_actions, softmax, state_value
from cql.losses import td_losses

pytestmark = pytest.mark.slow

SLOPE = {"mse": 2.0, "half_mse": 1.0, "huber": 1.0}  # k of a TD loss: what counts is alpha / k


def problem(seed, scale=5.0):
    """(model, beta [S, A]) of a random data set."""
    rng = np.random.default_rng(seed)
    P = random_table(rng, 6, 3, scale=scale)
    mdp, counts = empirical_mdp(roll(P, rng.dirichlet(np.ones(3), size=6), 0, 30, 30, rng), 6, 3)
    return mdp, counts / np.maximum(counts.sum(-1, keepdims=True), 1)


def huber_is_blind(beta, alpha):
    """Whether no reward can make any but the most logged action greedy, beta [..., A]: beta_1 low > beta_2 high."""
    second, first = np.moveaxis(np.sort(beta, axis=-1)[..., -2:], -1, 0)
    return (second == 0) | (first * max(0, 1 - 1 / alpha) > second * (1 + 1 / alpha) * (1 + 1e-12))


@pytest.mark.parametrize("td_loss", SLOPE)
def test_slopes_are_those_of_the_losses_that_train(td_loss):
    error = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    td_losses(error, td_loss).backward()
    assert SLOPE[td_loss] == error.grad.item() / 0.25


@pytest.mark.parametrize("quantiles", [1, 5, 200])
def test_the_quantile_slope_is_half_the_number_of_quantiles(quantiles):
    """A common shift x of all quantiles against a single target: derivative N/2 x inside the knee, N/2 beyond it."""
    tau, step = (np.arange(quantiles) + 0.5) / quantiles, 1e-6

    def loss(x):  # of QR-DQN: a sum over the predicted quantiles, a mean over the targets, all of them 0
        u = np.full((quantiles, quantiles), -x)
        huber = np.where(np.abs(u) <= 1, u**2 / 2, np.abs(u) - 0.5)
        return (np.abs(tau[:, None] - (u < 0)) * huber).mean(1).sum()

    for x, expected in [(0.3, 0.3), (-0.3, -0.3), (7.0, 1.0), (-7.0, -1.0)]:
        slope = (loss(x + step) - loss(x - step)) / (2 * step)
        assert slope == pytest.approx(quantiles / 2 * expected, rel=1e-6)


def test_converted_alpha_has_the_same_fixed_point():
    """Exactly between the squares; for Huber with rewards so small that every residual is below 1."""
    square, half = (cql_fixed_point(*problem(0), SLOPE[loss] * np.array([0.25, 3.0, 20.0]), 0.9, loss).q
                    for loss in ("mse", "half_mse"))
    np.testing.assert_array_equal(square, half)
    rng = np.random.default_rng(3)
    P = [[[(1.0, int(rng.integers(5)), float(rng.normal(scale=0.1)), bool(rng.random() < 0.3))] for _ in range(2)]
         for _ in range(5)]
    mdp, counts = TabularMDP.from_P(P), rng.integers(1, 20, size=(5, 2))
    square, huber = (cql_fixed_point(mdp, counts, SLOPE[loss] * np.array([0.05, 0.3]), 0.9, loss).q
                     for loss in ("mse", "huber"))
    np.testing.assert_allclose(huber, square, atol=1e-7)
    assert 0 < np.abs(huber - bellman_backup(mdp, state_value(huber), 0.9)).max() < 1


@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0])
def test_scaled_rewards_are_another_alpha_at_another_temperature(scale):
    """Q' / c solves Q = y + alpha_half / c (1 - p / beta) with p = softmax(c Q), and no other temperature does."""
    mdp, beta = problem(1)
    q, logged = cql_fixed_point(replace(mdp, reward=mdp.reward * scale), beta, [6.0], 0.9).q[0] / scale, beta > 0
    right = bellman_backup(mdp, state_value(q), 0.9) + 3.0 / scale * (1 - softmax(scale * q) / np.maximum(beta, 1e-9))
    np.testing.assert_allclose(q[logged], right[logged], rtol=1e-9, atol=1e-9)
    assert np.abs(cql_fixed_point(mdp, beta, [6.0 / scale], 0.9).q[0] - q)[logged].max() > 1e-3


@pytest.mark.parametrize("scale", [0.1, 5.0, 500.0])
def test_huber_keeps_the_softmax_in_its_band_whatever_the_rewards(scale):
    """p / beta in [1 - 1 / alpha, 1 + 1 / alpha]; where that decides, the greedy action is the most logged one."""
    blind, alphas = 0, [0.5, 1.5, 3.0, 20.0]
    for seed in range(3):
        mdp, beta = problem(seed, scale)
        for alpha, q in zip(alphas, cql_fixed_point(mdp, beta, alphas, 0.9, "huber").q):
            ratio = (softmax(q) / np.maximum(beta, 1e-300))[beta > 0]
            assert 1 - 1 / alpha - 1e-6 <= ratio.min() and ratio.max() <= 1 + 1 / alpha + 1e-6
            decided = huber_is_blind(beta, alpha) & beta.any(-1)
            assert (greedy_actions(q)[decided] == beta.argmax(-1)[decided]).all()
            blind += decided.sum()
    assert blind > 8


def test_huber_can_be_blind_to_reward_where_the_square_is_not():
    """Safe +50 or hazard -100, 60 % of hazards in the log: Huber at alpha = 6 chooses the hazard, the square never."""
    mdp, beta = TabularMDP.from_P([[[(1.0, 0, 50.0, True)], [(1.0, 0, -100.0, True)]]]), np.array([[0.4, 0.6]])
    assert huber_is_blind(beta, 6.0) and not huber_is_blind(beta, 3.0)
    for td_loss, alpha, greedy in [("huber", 6.0, 1), ("mse", 12.0, 0), ("huber", 3.0, 0)]:
        assert greedy_actions(cql_fixed_point(mdp, beta, [alpha], 0.9, td_loss).q[0, 0]) == greedy
