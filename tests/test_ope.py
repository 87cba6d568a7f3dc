"""Off-policy estimates: numbers to redo on paper, exact counterparts, and what more data must do."""

from dataclasses import replace

import numpy as np
import pytest

from cql.analysis import ope
from cql.analysis.ope import ESTIMATORS, EpisodeLog, estimate
from cql.exact import TabularMDP, empirical_mdp, evaluate_policies
from tests.mdps import random_policies, random_table, roll

pytestmark = pytest.mark.slow


@pytest.fixture
def of_any_size(monkeypatch):
    """Estimates of a few episodes too, to redo on paper."""
    monkeypatch.setattr(ope, "FEWEST", 0)


def log_of(episodes, num_states=2, num_actions=2, **extra) -> EpisodeLog:
    """From lists of (state, action, reward, next state, terminated, propensity)."""
    columns = [np.array(column) for column in zip(*(step for episode in episodes for step in episode))]
    states, actions, rewards, next_states, ends, propensities = columns
    starts = np.cumsum([0, *(len(episode) for episode in episodes)])[:-1]
    return EpisodeLog(states, actions, rewards.astype(float), next_states, ends.astype(bool), starts, num_states,
                      num_actions, propensities.astype(float), **extra)


def log_of_rollout(data, num_states, num_actions, behavior=None, hazard=None) -> EpisodeLog:
    starts = np.concatenate([[0], np.flatnonzero(data.terminations | data.truncations)[:-1] + 1])
    return EpisodeLog(data.observations, data.actions, data.rewards, data.next_observations, data.terminations, starts,
                      num_states, num_actions, behavior, hazard)


def rolled(seed, episodes, horizon=5, hazard=None):
    """(table, behaviour [S, A], log) of a random MDP with data from state 0."""
    rng = np.random.default_rng(seed)
    P, beta = random_table(rng, 5, 3, 2), random_policies(rng, 5, 3)
    data = roll(P, beta, 0, horizon, episodes, rng)
    return P, beta, log_of_rollout(data, 5, 3, beta[data.observations, data.actions], hazard)


THREE = [[(0, 0, 1, 1, 0, 0.5), (1, 0, 2, 1, 1, 0.5)], [(0, 1, 4, 1, 1, 0.5)], [(0, 0, 3, 1, 1, 0.25)]]
TARGET = np.array([[[0.75, 0.25], [0.25, 0.75]]])


def test_three_episodes_by_hand(of_any_size):
    """Weights 1.5 then 0.75; 0.5; 3. Model: Q(1, 0) = 2, (1, 1) without data; Q(0, 0) = 2 + V(1) / 2, Q(0, 1) = 4."""
    found = estimate(log_of(THREE), TARGET, horizon=2, resamples=0)
    value = {name: found.values[name]["return"][0, 0] for name in ESTIMATORS}
    assert value["wis"] == pytest.approx((0.75 * 3 + 0.5 * 4 + 3 * 3) / 4.25)
    assert value["pdis"] == pytest.approx((1.5 * 1 + 0.5 * 4 + 3 * 3) / 5 + 0.75 * 2 / 4.25)
    assert value["fqe"] == pytest.approx(0.75 * 2.25 + 0.25 * 4)  # V(1) with one step left: 0.25 * 2
    # errors of the backups: 1 - 2.25 + 0.5 in the first episode, 3 - 2.25 in the third, none elsewhere
    assert value["dr"] == pytest.approx(value["fqe"] + (1.5 * -0.75 + 3 * 0.75) / 5)
    assert found.effective_sample_size[0] == pytest.approx(4.25 ** 2 / (0.75 ** 2 + 0.5 ** 2 + 3 ** 2))
    assert found.ood_probability[0] == pytest.approx(0.75 * 0.5 * 0.75)  # action 0, on to state 1, its action 1
    assert np.isnan(found.values["wis"]["return"][0, 1:]).all()


def test_an_ended_episode_keeps_its_weight_to_the_horizon(of_any_size):
    log = log_of(THREE)
    weights = ope.trajectory_weights(log, TARGET[0], 4)
    assert weights * [3, 3, 3, 3] == pytest.approx(np.array([[1.5, 0.75, 0.75, 0.75], [0.5] * 4, [3.0] * 4]))
    short, long = (estimate(log, TARGET, horizon, resamples=0).values for horizon in (2, 9))
    for name in ESTIMATORS:  # state 1 ends with its only logged action: more steps change nothing
        assert short[name]["return"][0, 0] == pytest.approx(long[name]["return"][0, 0])


def test_no_matching_trajectory_is_no_estimate_but_for_the_model(of_any_size):
    found = estimate(log_of(THREE), np.array([[0, 1], [1, 0]]), horizon=2, resamples=50)
    for name in ("wis", "pdis"):
        assert found.values[name]["return"][1, 0] == 4  # the second episode is the only one of policy 1
    assert found.effective_sample_size.tolist() == [1.0, 1.0]  # of policy 0 only the third episode is left
    log = log_of(THREE[:2])
    found = estimate(log, np.array([[0, 1]]), horizon=2, resamples=50)
    assert np.isnan(found.values["wis"]["return"]).all() and np.isnan(found.values["pdis"]["return"]).all()
    assert found.effective_sample_size[0] == 0 and found.ood_probability[0] == 1
    assert found.values["fqe"]["return"][0, 0] == 1  # then a pair without data, worth 0
    assert found.values["dr"]["return"][0, 0] == 1


def test_fqe_is_exact_evaluation_on_the_model_of_the_data():
    P, beta, log = rolled(1, 200, hazard=np.arange(5) == 3)
    rows = type("Rows", (), dict(observations=log.states, next_observations=log.next_states, actions=log.actions,
                                 rewards=log.rewards, terminations=log.terminations))
    model, counts = empirical_mdp(rows, 5, 3, hazard=log.hazard)
    assert (counts > 0).all()
    policies = random_policies(np.random.default_rng(1), 4, 5, 3)
    policies[0] = np.eye(3)[[0, 2, 1, 1, 0]]
    found, exact = estimate(log, policies, 7, resamples=0), evaluate_policies(model, policies, 0, 7)
    assert found.values["fqe"]["return"][:, 0] == pytest.approx(exact.returns, abs=1e-12)
    assert found.values["fqe"]["hazard_probability"][:, 0] == pytest.approx(exact.hazard_probability, abs=1e-12)
    assert found.ood_probability.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_all_estimates_come_to_the_truth_as_data_grow(seed, of_any_size):
    hazard = np.arange(5) == 2
    P, beta, log = rolled(seed, 3000, hazard=hazard)
    policies = 0.6 * beta + 0.4 * random_policies(np.random.default_rng(seed + 10), 3, 5, 3)
    exact = evaluate_policies(TabularMDP.from_P(P, hazard=hazard), policies, 0, 5)
    few = replace(log, **{name: getattr(log, name)[: log.starts[100]] for name in (
        "states", "actions", "rewards", "next_states", "terminations", "behavior")}, starts=log.starts[:100])
    found, early = (estimate(x, policies, 5, resamples=100).values for x in (log, few))
    for target, truth in (("return", exact.returns), ("hazard_probability", exact.hazard_probability)):
        for name in ESTIMATORS:
            value, low, high = found[name][target].T
            assert (np.abs(value - truth) < high - low).all(), (name, target)  # about four standard errors
            width = (early[name][target][:, 2] - early[name][target][:, 1]).mean()
            assert (high - low).mean() < width / 3, (name, target)  # 30 times the data: 5.5 times narrower


def test_doubly_robust_survives_wrong_propensities_where_importance_sampling_does_not():
    P, beta, log = rolled(3, 3000)
    policy = (beta ** 2 / (beta ** 2).sum(-1, keepdims=True))[None]
    truth = evaluate_policies(TabularMDP.from_P(P), policy, 0, 5).returns[0]
    found = estimate(replace(log, behavior=np.full(len(log.states), 1 / 3)), policy, 5, resamples=0).values
    right = estimate(log, policy, 5, resamples=0).values
    assert abs(found["dr"]["return"][0, 0] - truth) < 0.3 and abs(right["wis"]["return"][0, 0] - truth) < 0.3
    assert abs(found["wis"]["return"][0, 0] - truth) > 1


def test_the_behaviour_itself_is_worth_the_mean_logged_return(of_any_size):
    _, beta, log = rolled(4, 50)
    mean = log.rewards.sum() / len(log.starts)
    found = estimate(log, beta[None], 5, resamples=0)
    assert found.values["wis"]["return"][0, 0] == pytest.approx(mean)
    assert found.values["pdis"]["return"][0, 0] == pytest.approx(mean)
    assert found.effective_sample_size[0] == pytest.approx(50)
    # for a deterministic one the control variate adds V - Q(s, a) = 0 as well
    P = random_table(np.random.default_rng(5), 5, 3, 2)
    data = roll(P, np.eye(3)[[0, 1, 2, 0, 1]], 0, 5, 40, np.random.default_rng(6))
    found = estimate(log_of_rollout(data, 5, 3), np.array([[0, 1, 2, 0, 1]]), 5, resamples=0)
    for name in ("wis", "pdis", "dr"):
        assert found.values[name]["return"][0, 0] == pytest.approx(data.rewards.sum() / 40)


def test_propensities_by_counts_are_relative_frequencies():
    counted = replace(log_of(THREE), behavior=None)
    assert counted.propensities().tolist() == pytest.approx([2 / 3, 1, 1 / 3, 2 / 3])


def test_a_hazard_counts_once_and_need_not_end_the_episode(of_any_size):
    """State 1 is a hazard: entered twice in the first episode, not at all in the second."""
    episodes = [[(0, 0, 0, 1, 0, 0.5), (1, 0, 0, 1, 0, 0.5), (1, 1, 0, 0, 1, 0.5)], [(0, 1, 0, 0, 1, 0.5)]]
    log = log_of(episodes, hazard=np.array([False, True]))
    found = estimate(log, np.full((1, 2, 2), 0.5), 3, resamples=0).values
    for name in ("wis", "pdis", "dr", "fqe"):
        assert found[name]["hazard_probability"][0, 0] == pytest.approx(0.5), name
    assert set(estimate(log_of(episodes), np.full((1, 2, 2), 0.5), 3, resamples=0).values["fqe"]) == {"return"}


def test_a_fragment_says_nothing_of_the_steps_after_it(of_any_size):
    """The first episode is cut after one step: in state 1, worth V(1) = 2 by the second one's data."""
    episodes = [[(0, 0, 1, 1, 0, 0.5)], [(0, 0, 5, 1, 0, 0.5), (1, 0, 2, 1, 1, 0.5)]]
    found = estimate(log_of(episodes), np.array([[0, 0]]), 3, resamples=0)
    value = {name: found.values[name]["return"][0, 0] for name in ESTIMATORS}
    assert value["wis"] == 7 and value["pdis"] == (1 + 5) / 2 + 2 and found.effective_sample_size[0] == 1
    assert value["fqe"] == 3 + 2 and value["dr"] == pytest.approx(3 + 2)
    alone = estimate(log_of(episodes[:1]), np.array([[0, 0]]), 3, resamples=5)
    assert np.isnan(alone.values["wis"]["return"]).all() and alone.values["fqe"]["return"][0, 0] == 1
    assert np.isnan(alone.values["fqe"]["return"][0, 1:]).all()  # one episode, drawn again and again: nothing varies


def test_steps_beyond_the_horizon_are_left_out_of_weights_and_returns(of_any_size):
    long = [[(0, 0, 1, 0, 0, 0.5)] * 4 + [(0, 1, 9, 0, 1, 0.5)]]
    found = estimate(log_of(long), np.array([[0, 0]]), 3, resamples=0)
    assert found.values["wis"]["return"][0, 0] == 3 and found.values["fqe"]["return"][0, 0] == 3


def test_products_of_many_ratios_stay_in_range(of_any_size):
    episode = [(0, 0, 1, 0, 0, 1e-3)] * 400
    log = log_of([episode, episode[:399] + [(0, 1, 0, 0, 0, 1e-3)]])
    found = estimate(log, np.array([[[0.9, 0.1], [1, 0]]]), 400, 0)
    assert found.values["wis"]["return"][0, 0] == pytest.approx((0.9 * 400 + 0.1 * 399) / 1)


def test_a_resample_is_the_estimate_of_repeated_episodes(of_any_size):
    """Some of them fragments, which start and stop anywhere."""
    _, _, log = rolled(13, 9, hazard=np.arange(5) == 1)
    cut = log.starts[np.diff(log.starts, append=len(log.states)) > 2][:3] + 2
    log = replace(log, starts=np.sort(np.concatenate([log.starts, cut])))
    assert len(cut) == 3 and len(set(log.states[log.starts])) > 1
    policies = np.concatenate([random_policies(np.random.default_rng(8), 1, 5, 3), np.eye(3)[[[0, 1, 2, 0, 1]]]])
    drawn = np.random.default_rng(9).integers(12, size=(6, 12))
    counts = np.stack([np.bincount(row, minlength=12) for row in drawn], axis=1).astype(float)
    weights = [ope.trajectory_weights(log, policy, 5) for policy in policies]
    for target, signal in ope.signals(log).items():
        fqe, correction = ope.fitted_q(log, signal, policies, counts, 5, weights)
        wis, pdis = np.stack([ope.weighted_sampling(log, signal, w, counts) for w in weights], axis=1)
        for r, row in enumerate(drawn):
            lengths = np.diff(log.starts, append=len(log.states))
            index = np.concatenate([np.arange(log.starts[i], log.starts[i] + lengths[i]) for i in row])
            repeated = replace(log, **{name: getattr(log, name)[index] for name in (
                "states", "actions", "rewards", "next_states", "terminations", "behavior")},
                starts=np.cumsum([0, *lengths[row]])[:-1])
            wanted = estimate(repeated, policies, 5, resamples=0).values
            for name, values in zip(ESTIMATORS, (fqe, wis, pdis, fqe + correction)):
                assert values[:, r] == pytest.approx(wanted[name][target][:, 0], abs=1e-12, nan_ok=True), name


def test_intervals_hold_the_truth_about_as_often_as_they_say(of_any_size):
    """FQE of a stochastic policy with all pairs logged: 95 % intervals over 60 data sets."""
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        P = random_table(np.random.default_rng(100), 3, 2, 2)
        beta = np.full((3, 2), 0.5)
        data = roll(P, beta, 0, 4, 60, rng)
        log = log_of_rollout(data, 3, 2, np.full(len(data.actions), 0.5))
        policy = np.array([[[0.7, 0.3], [0.3, 0.7], [0.5, 0.5]]])
        truth = evaluate_policies(TabularMDP.from_P(P), policy, 0, 4).returns[0]
        found = estimate(log, policy, 4, resamples=100, seed=seed).values
        inside.append([found[name]["return"][0, 1] <= truth <= found[name]["return"][0, 2] for name in ESTIMATORS])
    assert (np.mean(inside, axis=0) > 0.85).all()  # 0.95, less 3.5 standard errors of 60 draws


def test_equal_policies_and_smaller_chunks_change_nothing(monkeypatch, of_any_size):
    _, _, log = rolled(11, 30, hazard=np.arange(5) == 1)
    policies = np.array([[0, 1, 2, 0, 1], [1, 1, 0, 0, 2], [0, 1, 2, 0, 1]])
    whole = estimate(log, policies, 5, resamples=30)
    monkeypatch.setattr(ope, "CHUNK", 1)
    chunked, alone = estimate(log, policies, 5, resamples=30), estimate(log, policies[1:2], 5, resamples=30)
    for name in ESTIMATORS:
        for target in ope.TARGETS:
            values = whole.values[name][target]
            assert np.array_equal(values[0], values[2], equal_nan=True)
            assert np.allclose(values, chunked.values[name][target], rtol=1e-12, equal_nan=True)
            assert np.allclose(values[1], alone.values[name][target][0], rtol=1e-12, equal_nan=True)


def test_a_single_outcome_has_no_interval_and_few_episodes_no_estimate(monkeypatch):
    """Two episodes of one state; the policy takes the first one's action, so that only this one has a weight."""
    log = log_of([[(0, 0, 5, 0, 1, 0.5)], [(0, 1, 9, 0, 1, 0.5)]], num_states=1)
    found = estimate(log, [[0]], 1)
    assert found.effective_sample_size[0] == 1 and np.isnan(found.values["wis"]["return"]).all()
    assert found.values["fqe"]["return"][0, 0] == 5
    monkeypatch.setattr(ope, "FEWEST", 1)
    for name in ("wis", "pdis"):
        low_high = estimate(log, [[0]], 1).values[name]["return"][0]
        assert low_high[0] == 5 and np.isnan(low_high[1:]).all(), name


@pytest.mark.parametrize("episodes,known", [(198, False), (200, True)])
def test_a_hundred_episodes_of_weight_are_the_fewest(episodes, known):
    """Of so many episodes half have the policy's action, hence equal weights."""
    log = log_of([[(0, n % 2, n, 0, 1, 0.5)] for n in range(episodes)], num_states=1)
    found = estimate(log, [[0]], 1)
    assert found.effective_sample_size[0] == pytest.approx(episodes / 2)
    for name in ("wis", "pdis", "dr"):
        assert np.isfinite(found.values[name]["return"]).all() == known
    assert np.isfinite(found.values["fqe"]["return"]).all()
