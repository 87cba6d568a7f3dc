"""The other objectives: exact solutions against each other, and trained tables against their exact solutions."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

import cql
import evaluate
import train
from cql.action_weights import given_policy
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, RunError
from cql.exact import (
    alpha_infinity_limit,
    alpha_zero_limit,
    bellman_backup,
    cql_fixed_point,
    empirical_mdp,
    empirical_policy,
    eq1_fixed_point,
    eq2_fixed_point,
    greedy_policy,
    policy_evaluation,
    soft_fixed_point,
)
from cql.exact.fixed_point import certificate
from cql.policy import Policy
from cql.world import World, exact_solution
from tests.mdps import random_policies, random_table, roll

pytestmark = pytest.mark.slow

ALPHAS, GAMMA, SOONER = [0.1, 1.0, 6.0, 50.0], 0.9, 0.7  # with SOONER tables are trained


def case(seed: int):
    """(empirical model, counts) of 60 episodes in a random MDP; some actions are OOD in their state."""
    rng = np.random.default_rng(seed)
    P, policy = random_table(rng, 6, 3, 3), random_policies(rng, 6, 3)
    policy[:, 1] *= rng.random(6) > 0.4
    policy /= policy.sum(-1, keepdims=True)
    return empirical_mdp(roll(P, policy, 0, 12, 60, rng), 6, 3)


def logged_q(q, counts):
    return np.where(counts > 0, q, -np.inf)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("td_loss", ["mse", "half_mse"])
def test_the_one_dimensional_form_is_the_solution_of_cql_h(seed, td_loss):
    """Two solvers that share no step: damped Newton in the actions of a state, and one root of one equation."""
    mdp, counts = case(seed)
    alphas = [0.0, 1e-3, *ALPHAS, 1e4]
    one, other = (solve(mdp, counts, alphas, GAMMA, td_loss) for solve in (soft_fixed_point, cql_fixed_point))
    assert one.certified.all()
    known = np.isfinite(other.q)
    assert np.array_equal(known, np.isfinite(one.q))
    np.testing.assert_allclose(one.q[known], other.q[known], rtol=1e-9, atol=1e-9)


def test_temperature_scales_rewards_and_alpha():
    """Q / tau solves CQL(H) for rewards / tau and alpha / tau, and CQL(rho) with rho = softmax Q is tau = 1/2."""
    mdp, counts = case(5)
    scaled = cql_fixed_point(replace(mdp, reward=mdp.reward / 3), counts, np.array(ALPHAS) / 3, GAMMA)
    found = soft_fixed_point(mdp, counts, ALPHAS, GAMMA, temperature=3.0)
    np.testing.assert_allclose(found.q[found.q > -np.inf], 3 * scaled.q[scaled.q > -np.inf], rtol=1e-9)
    previous = soft_fixed_point(mdp, counts, ALPHAS, GAMMA, penalty="previous")
    np.testing.assert_array_equal(previous.q, soft_fixed_point(mdp, counts, ALPHAS, GAMMA, temperature=0.5).q)


@pytest.mark.parametrize("seed", range(4))
def test_rho_never_flips_is_a_lower_bound_and_ends_at_the_value_of_the_data(seed):
    """Within a state Q is increasing in E[y]; V <= V^pi of its greedy policy; alpha -> infinity is Q = E_beta[y]."""
    mdp, counts = case(seed)
    solution = soft_fixed_point(mdp, counts, [1e-6, *ALPHAS, 1e5], GAMMA, penalty="rho")
    logged, beta = (counts > 0) & ~mdp.terminal[:, None], empirical_policy(counts)
    seen = logged.any(-1)
    targets = bellman_backup(mdp, np.where(seen, solution.value, 0.0), GAMMA)
    for q, value, y in zip(solution.q, solution.value, targets):
        for s in np.flatnonzero(seen):
            order = np.argsort(y[s, logged[s]])
            assert (np.diff(q[s, logged[s]][order]) >= -1e-9).all()
        greedy = greedy_policy(logged_q(y, counts))
        assert (value <= policy_evaluation(mdp, greedy, GAMMA)[0] + 1e-9)[seen].all()
    q, y = solution.q[-1], targets[-1]
    mean = (beta * np.where(logged, y, 0.0)).sum(-1, keepdims=True) * np.ones_like(y)
    np.testing.assert_allclose(q[logged], mean[logged], atol=1e-2)
    start = np.where(seen[:, None], beta, 1 / beta.shape[1])
    np.testing.assert_allclose(solution.value[-1][seen], policy_evaluation(mdp, start, GAMMA)[0][seen], atol=1e-2)
    np.testing.assert_allclose(solution.q[0][logged], alpha_zero_limit(mdp, counts, GAMMA)[logged], atol=1e-2)
    assert np.abs(solution.q[-1][logged] - alpha_infinity_limit(mdp, counts, GAMMA)[logged]).max() > 0.1  # not BC


def test_cql_h_is_no_lower_bound_where_rho_is_one():
    violated = 0
    for seed in range(4):
        mdp, counts = case(seed)
        solution, seen = cql_fixed_point(mdp, counts, ALPHAS, GAMMA), (counts > 0).any(-1) & ~mdp.terminal
        for q, value in zip(solution.q, solution.value):
            true, _ = policy_evaluation(mdp, greedy_policy(logged_q(q, counts)), GAMMA)
            violated += (value > true + 1e-6)[seen].sum()
    assert violated > 0


@pytest.mark.parametrize("seed", range(3))
def test_equation_1_with_softmax_mu_pushes_down_alone(seed):
    """Q = E[y] - alpha_half p / beta, so that Q lies below E[y] on every pair; its level falls by alpha_half."""
    mdp, counts = case(seed)
    solution = soft_fixed_point(mdp, counts, ALPHAS, GAMMA, penalty="softmax-push-down")
    assert solution.certified.all()
    logged, beta = (counts > 0) & ~mdp.terminal[:, None], empirical_policy(counts)
    seen = logged.any(-1)
    for alpha, q, value in zip(ALPHAS, solution.q, solution.value):
        y = bellman_backup(mdp, np.where(seen, value, 0.0), GAMMA)
        assert (q <= y + 1e-9)[logged].all() and (q < y - 1e-9)[logged].any()
        fall = (beta * np.where(logged, y - q, 0.0)).sum(-1)
        np.testing.assert_allclose(fall[seen], alpha / 2, rtol=1e-9)


def test_a_certificate_tells_what_is_no_solution():
    mdp, counts = case(0)
    q = soft_fixed_point(mdp, counts, ALPHAS, GAMMA, penalty="rho").q.copy()
    logged = np.argwhere(counts > 0)[3]
    q[:, logged[0], logged[1]] += 1e-3
    residual, *_ = certificate(mdp, counts, q, ALPHAS, GAMMA, penalty="rho")
    assert (residual > 1e-5).all()
    for wrong in (dict(td_loss="huber"), dict(penalty="mean")):
        with pytest.raises(ValueError, match="got"):
            soft_fixed_point(mdp, counts, ALPHAS, GAMMA, **wrong)


# ------------------------------------------------------------------------------------------------------------- trained


@pytest.fixture(scope="module")
def data() -> OfflineDataset:
    env = gymnasium.make("envs:SafetyCriticalGridWorld-v0", desc=["S..H", "....", "H..G"], max_episode_steps=30)
    return cql.generate_offline_episodes(env, 60, epsilon=0.5)


FAMILY = [dict(penalty="logsumexp", supported=True), dict(penalty="logsumexp", temperature=2.0, supported=True),
          dict(penalty="rho", supported=True), dict(penalty="previous", supported=True)]


@pytest.mark.parametrize("settings", FAMILY, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_trained_table_ends_at_the_exact_solution(data, settings):
    # rho = softmax Q_target follows the target network, slowly at large alpha
    alphas = ALPHAS[:3] if settings["penalty"] == "previous" else ALPHAS
    fit = cql.fit(data, alpha=alphas, steps=400, hidden=(0,), lr=1.0, log_every=400, gamma=SOONER,
                  target_interval=3, **settings)
    mdp, counts = fit.world.empirical(data)
    exact = exact_solution(fit.config.objective, mdp, counts, alphas)
    logged = (counts > 0) & ~mdp.terminal[:, None]
    for trained, q in zip(fit.q, exact.q):
        assert np.abs(trained[logged] - q[logged]).max() < 1e-3 * np.ptp(q[logged])
        assert np.isneginf(trained[~logged & logged.any(-1, keepdims=True)]).all()  # the policy leaves OOD actions out


def on_logged(table, counts):
    """A distribution in every state, as `policy_evaluation` asks for one where there are no data too."""
    return np.where((counts > 0).any(-1, keepdims=True), table, 1 / counts.shape[1])


@pytest.mark.parametrize("penalty, fixed_point", [("push-down", eq1_fixed_point), ("mu", eq2_fixed_point)])
def test_theorems_3_1_and_3_2_hold_for_trained_tables(data, tmp_path, penalty, fixed_point):
    """Eq. 1 lies below the true Q of its policy pair by pair, Eq. 2 below its true value state by state."""
    greedy = cql.fit(data, alpha=6.0, steps=200, hidden=(0,), lr=0.5, gamma=SOONER)
    greedy.policies[0].save(tmp_path / "greedy.pt")
    for policy in ("behavior", str(tmp_path / "greedy.pt")):
        fit = cql.fit(data, alpha=[1.0, 6.0], steps=400, hidden=(0,), lr=1.0, log_every=400, gamma=SOONER,
                      target_interval=10, penalty=penalty, target_policy=policy)
        mdp, counts = fit.world.empirical(data)
        logged = (counts > 0) & ~mdp.terminal[:, None]
        seen = logged.any(-1)
        beta = empirical_policy(np.where(logged, counts, 0)).astype(np.float32)
        pi = on_logged(given_policy(fit.config, "target_policy", beta), counts)
        true_value, true_q = policy_evaluation(mdp, pi, SOONER)
        for alpha, trained in zip((1.0, 6.0), fit.q):
            q = fixed_point(mdp, counts, pi, pi, alpha / 2, SOONER)
            assert np.abs(trained[logged] - q[logged]).max() < 1e-3 * np.ptp(q[logged]), (policy, alpha)
            if penalty == "push-down":
                assert (trained <= true_q + 1e-3)[logged].all()
            value = (pi * np.where(logged, trained, 0.0)).sum(-1)
            assert (value <= true_value + 1e-3)[seen].all()


def test_rho_without_the_supported_max_leaves_ood_actions_where_they_start():
    """They get no gradient. Here every logged step costs 1 and action 1 is OOD in state 0, where it starts near 0."""
    data = OfflineDataset.from_arrays([0, 1] * 20, [0, 1] * 20, [-1.0] * 40, [1, 0] * 20, [False, True] * 20)
    for supported in (False, True):
        fit = cql.fit(data, alpha=6.0, steps=300, hidden=(0,), lr=0.1, gamma=0.5, target_interval=10, penalty="rho",
                      supported=supported, trainer="plain")
        start = fit.policies[0].network.initial([42])[0][0].numpy()
        if supported:  # Q(0, 0) = -1 + 0.5 Q(1, 1) = -1.5
            assert fit.q[0][0] == pytest.approx([-1.5, -np.inf], abs=1e-3) and fit.log["policy/ood_mass"][0, -1] == 0
        else:  # the max at state 1 is that of its OOD action 0
            assert fit.q[0][[0, 1], [1, 0]].astype(np.float32).tolist() == start[[0, 1], [1, 0]].tolist()
            assert fit.q[0][0, 0] == pytest.approx(-1 + 0.5 * start[1, 0], abs=1e-3)
            assert fit.q[0].argmax(-1).tolist() == [1, 0] and fit.log["policy/ood_mass"][0, -1] > 0.5


# ------------------------------------------------------------------------------------------------------- as a user does

TINY = ["--map", "random:6:1", "--episodes", "30", "--hidden", "8", "--bc-steps", "20", "--steps", "40", "--log-every",
        "10", "--device", "cpu"]


def test_a_supported_run_is_judged_and_audited_and_a_given_policy_is_kept(tmp_path, capsys):
    assert train.main([*TINY, "--supported", "--alpha", "0.01", "6", "--out", str(tmp_path / "s")]) == 0
    assert evaluate.main([str(tmp_path / "s"), "--audit", "--report"]) == 0
    path = tmp_path / "s/policies/cql-a6-s42-d42.pt"
    policy = Policy.load(path)
    assert policy.allowed.any(-1).all() and not policy.allowed.all()
    assert policy.allowed[np.arange(36), policy.act(np.arange(36))].all()
    flags = ["--penalty", "mu", "--target-policy", str(path), "--mu", "behavior"]
    assert train.main([*TINY, *flags, "--checkpoint-every", "20", "--out", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m/target_policy.pt").read_bytes() == path.read_bytes()
    assert train.main(["--resume", str(tmp_path / "m")]) == 0
    assert "mean" not in capsys.readouterr().err


@pytest.mark.parametrize("flags, sentence", [
    ("--penalty mu", "--penalty mu needs --target-policy"),
    ("--target-policy behavior", "--target-policy does not go with --penalty logsumexp"),
    ("--mu behavior", "--mu does not go with"),
    ("--penalty rho --temperature 2", "--temperature does not go with --penalty rho"),
    ("--temperature 0", "--temperature must lie in"),
    ("--penalty mu --target-policy behavior --supported", "--supported does not go with --penalty mu"),
    ("--penalty mu --target-policy behavior --double-q", "--double-q does not go with --penalty mu"),
    ("--penalty mu --target-policy nothing.pt", "nothing.pt"),
    ("--supported --observation coordinates", "needs observations that are state numbers"),
    ("--penalty rho --observation coordinates", "needs observations that are state numbers")])
def test_what_does_not_go_together_is_refused_before_anything_is_written(tmp_path, capsys, flags, sentence):
    assert train.main([*TINY, *flags.split(), "--out", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_given_policy_of_other_states_is_refused(data, tmp_path):
    fit = cql.fit(data, steps=5, hidden=(0,))
    fit.policies[0].save(tmp_path / "p.pt")
    config = Config(penalty="mu", target_policy=str(tmp_path / "p.pt"))
    with pytest.raises(ConfigError, match="other states or actions"):
        given_policy(config, "target_policy", np.ones((5, 4), dtype=np.float32))
    with pytest.raises(RunError, match="no exact solution to compare with a max"):
        exact_solution(config.objective, *World.of(data).empirical(data), [1.0])
