"""What alpha means elsewhere: slopes by finite differences, conversions by solving, the blind band on random problems."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mdps import random_table, roll

from cql.exact.conversion import (
    convert_alpha,
    greedy_is_blind,
    scale_rewards,
    softmax_band,
    td_slope,
)
from cql.exact.oracle import cql_fixed_point, empirical_policy
from cql.exact.tabular import (
    TabularMDP,
    bellman_backup,
    empirical_mdp,
    greedy_actions,
    state_value,
)
from cql.exact.theorems import softmax
from cql.losses import td_losses


def problem(seed=0, scale=5.0):
    rng = np.random.default_rng(seed)
    P = random_table(rng, 6, 3, scale=scale)
    return empirical_mdp(roll(P, rng.dirichlet(np.ones(3), size=6), 0, 30, 30, rng), 6, 3)


def quantile_huber(theta, targets):
    """QR-DQN's loss, written out: sum over the predicted quantiles [N], mean over the targets [N']."""
    tau = (np.arange(len(theta)) + 0.5) / len(theta)
    u = targets[None] - theta[:, None]
    huber = np.where(np.abs(u) <= 1, u**2 / 2, np.abs(u) - 0.5)
    return (np.abs(tau[:, None] - (u < 0)) * huber).mean(1).sum()


def test_conversions_by_hand():
    assert convert_alpha(3.0, "half_mse", "mse") == 6.0                  # the paper's 3 is this project's 6
    assert convert_alpha(6.0, "mse", "half_mse") == 3.0
    assert convert_alpha(6.0, "mse", "huber") == 3.0
    assert convert_alpha(4.0, "quantile_huber", "half_mse", 200) == pytest.approx(0.04)
    assert convert_alpha(4.0, "quantile_huber", "mse", 200) == pytest.approx(0.08)
    assert convert_alpha(0.04, "half_mse", "quantile_huber", target_quantiles=200) == pytest.approx(4.0)
    np.testing.assert_allclose(convert_alpha([1.0, 2.0], "mse", "half_mse"), [0.5, 1.0])


@pytest.mark.parametrize("convention", ["mse", "half_mse", "huber"])
def test_slopes_are_those_of_the_losses_that_train(convention):
    error = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    td_losses(error, convention).backward()
    assert td_slope(convention) == error.grad.item() / 0.25


@pytest.mark.parametrize("quantiles", [1, 5, 200])
def test_the_quantile_slope_is_half_the_number_of_quantiles(quantiles):
    """A common shift x of all quantiles against a single target: derivative N/2 x inside the knee, N/2 beyond it."""
    target, step = np.full(quantiles, 2.0), 1e-6
    for residual, expected in [(0.3, 0.3), (-0.3, -0.3), (7.0, 1.0), (-7.0, -1.0)]:
        theta = target + residual
        slope = (quantile_huber(theta + step, target) - quantile_huber(theta - step, target)) / (2 * step)
        assert slope == pytest.approx(td_slope("quantile_huber", quantiles) * expected, rel=1e-6)


def test_converted_alpha_has_the_same_fixed_point():
    mdp, counts = problem()
    alphas = np.array([0.5, 6.0, 40.0])
    whole = cql_fixed_point(mdp, counts, alphas, 0.9, "mse").q
    half = cql_fixed_point(mdp, counts, convert_alpha(alphas, "mse", "half_mse"), 0.9, "half_mse").q
    np.testing.assert_array_equal(whole, half)


def test_huber_is_the_half_square_while_residuals_stay_within_the_knee():
    """Tiny rewards and a single outcome a pair: every residual is below 1, and the two fixed points are one."""
    rng = np.random.default_rng(3)
    P = [[[(1.0, int(rng.integers(5)), float(rng.normal(scale=0.1)), bool(rng.random() < 0.3))] for _ in range(2)]
         for _ in range(5)]
    mdp, counts = TabularMDP.from_P(P), rng.integers(1, 20, size=(5, 2))
    alphas = np.array([0.05, 0.3])
    huber = cql_fixed_point(mdp, counts, convert_alpha(2 * alphas, "mse", "huber"), 0.9, "huber").q
    square = cql_fixed_point(mdp, counts, 2 * alphas, 0.9, "mse").q
    np.testing.assert_allclose(huber, square, atol=1e-7)
    residual = huber - bellman_backup(mdp, state_value(huber), 0.9)
    assert 0 < np.abs(residual).max() < 1


@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0])
def test_scaled_rewards_are_another_alpha_at_another_temperature(scale):
    """Q' / c solves Q = y + alpha_half / c (1 - p / beta) with p = softmax(c Q), and no other temperature does."""
    mdp, counts = problem(1)
    scaled = replace(mdp, reward=mdp.reward * scale)
    alpha, temperature = scale_rewards(6.0, scale)
    q = cql_fixed_point(scaled, counts, [6.0], 0.9).q[0] / scale
    logged, beta = counts > 0, empirical_policy(counts)
    y = bellman_backup(mdp, state_value(q), 0.9)
    right = y + alpha / 2 * (1 - softmax(q / temperature) / np.where(logged, beta, 1))
    np.testing.assert_allclose(q[logged], right[logged], rtol=1e-9, atol=1e-9)
    assert (alpha, temperature) == (6.0 / scale, 1 / scale)
    unscaled = cql_fixed_point(mdp, counts, [alpha], 0.9).q[0]
    assert np.abs(unscaled - q)[logged].max() > 1e-3


def test_band_by_hand():
    assert softmax_band(4.0) == (0.75, 1.25)
    assert softmax_band(0.5) == (0.0, 3.0)
    assert softmax_band(0.0) == (0.0, np.inf)
    assert softmax_band(4.0, "mse") == (0.0, np.inf)
    assert softmax_band(4.0, knee=0.5) == (0.875, 1.125)
    assert softmax_band(4.0, "quantile_huber", 200) == (0.0, 26.0)       # no constraint worth the name at alpha = 4
    assert softmax_band(1000.0, "quantile_huber", 200) == pytest.approx((0.9, 1.1))
    np.testing.assert_allclose(softmax_band([2.0, 10.0]), ([0.5, 0.9], [1.5, 1.1]))


@pytest.mark.parametrize("scale", [0.1, 5.0, 500.0])
def test_huber_keeps_the_softmax_in_its_band_whatever_the_rewards(scale):
    for seed in range(3):
        mdp, counts = problem(seed, scale)
        alphas, logged = np.array([0.5, 1.5, 6.0]), counts > 0
        q = cql_fixed_point(mdp, counts, alphas, 0.9, "huber").q
        for alpha, found in zip(alphas, q):
            low, high = softmax_band(alpha)
            ratio = softmax(found)[logged] / empirical_policy(counts)[logged]
            assert low - 1e-6 <= ratio.min() and ratio.max() <= high + 1e-6


def test_huber_can_be_blind_to_reward_where_the_square_is_not():
    """Safe +50 or hazard -100: at 60 % of hazards in the log, alpha = 6 and Huber choose the hazard, the square never."""
    P = [[[(1.0, 0, 50.0, True)], [(1.0, 0, -100.0, True)]]]
    mdp, counts = TabularMDP.from_P(P), np.array([[40, 60]])
    assert greedy_is_blind(counts[0] / 100, 6.0) and not greedy_is_blind(counts[0] / 100, 3.0)
    assert 60 / 40 > (6 + 1) / (6 - 1) and 60 / 40 < (3 + 1) / (3 - 1)
    huber, square = (cql_fixed_point(mdp, counts, [alpha], 0.9, loss).q[0, 0]
                     for alpha, loss in [(6.0, "huber"), (12.0, "mse")])
    assert greedy_actions(huber) == 1 and greedy_actions(square) == 0
    assert greedy_actions(cql_fixed_point(mdp, counts, [3.0], 0.9, "huber").q[0, 0]) == 0


def test_blind_states_choose_the_mode_of_the_data():
    blind = 0
    for seed in range(4):
        mdp, counts = problem(seed, 500.0)
        seen, beta = counts.any(-1), empirical_policy(counts)
        for alpha in (3.0, 20.0):
            verdict = greedy_is_blind(beta, alpha) & seen
            q = cql_fixed_point(mdp, counts, [alpha], 0.9, "huber").q[0]
            assert (greedy_actions(q)[verdict] == beta.argmax(-1)[verdict]).all()
            blind += verdict.sum()
    assert blind > 8
    np.testing.assert_array_equal(greedy_is_blind([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]], 0.5), [False, False, True])
    assert not greedy_is_blind([0.99, 0.01], 1e6, "mse")


@pytest.mark.parametrize("call, message", [
    (lambda: convert_alpha(-1.0, "mse", "half_mse"), "alpha must be finite and not negative"),
    (lambda: convert_alpha(1.0, "l1", "mse"), "TD loss must be one of mse, half_mse, huber, quantile_huber, got 'l1'"),
    (lambda: convert_alpha(1.0, "quantile_huber", "mse"), "needs num_quantiles"),
    (lambda: td_slope("quantile_huber", 1.5), "a whole number of at least 1"),
    (lambda: td_slope("mse", 200), "no meaning for 'mse'"),
    (lambda: scale_rewards(1.0, 0.0), "reward scale must be positive"),
    (lambda: softmax_band(1.0, knee=-1.0), "knee must be positive"),
])
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
