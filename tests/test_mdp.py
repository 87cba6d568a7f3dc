"""Dynamic programming against values known from elsewhere, dense recomputation, enumeration and rollouts."""

import itertools
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import scipy
from mdps import Transitions, dense, random_policies, random_table, roll

import envs
from cql.exact import (
    TabularMDP,
    backward_induction,
    bellman_backup,
    deterministic_policies,
    empirical_mdp,
    evaluate_first_actions,
    evaluate_policies,
    greedy_actions,
    greedy_policy,
    hitting_probability,
    policy_evaluation,
    start_distribution,
    state_value,
    value_iteration,
)
from cql.exact.dynamic_programming import evaluate_time_dependent, solve_bellman

CORRIDOR = [  # 0 and 1 free, 2 goal; action 0 stays, action 1 moves on and slips back to 0 with probability 1/4
    [[(1.0, 0, -1.0, False)], [(0.75, 1, -1.0, False), (0.25, 0, -1.0, False)]],
    [[(1.0, 1, -1.0, False)], [(0.75, 2, 10.0, True), (0.25, 0, -1.0, False)]],
    [[(1.0, 2, 0.0, True)], [(1.0, 2, 0.0, True)]],
]


def make(name, **kwargs):
    return TabularMDP.from_env(gymnasium.make(name, **kwargs))


def mask(size, *states):
    return np.isin(np.arange(size), states)


# ---------------------------------------------------------------------------------------- values known from elsewhere


@pytest.mark.parametrize("name, kwargs, expected", [
    ("FrozenLake-v1", {"map_name": "4x4"}, 14 / 17),
    ("FrozenLake-v1", {"map_name": "8x8"}, 1.0),          # a path that no slip can turn into a hole exists
    ("FrozenLake-v1", {"is_slippery": False}, 1.0),
    ("CliffWalking-v1", {}, -13.0),
])
def test_known_optimal_values_without_discount(name, kwargs, expected):
    mdp = make(name, **kwargs)
    q = value_iteration(mdp, 1.0)
    assert start_distribution(mdp) @ state_value(q) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_taxi_against_a_linear_program(gamma):
    """The optimal V is the least one with V >= r + gamma P V for every action."""
    mdp, P = make("Taxi-v4"), gymnasium.make("Taxi-v4").unwrapped.P
    reward, on = dense(P)
    num_states = len(reward)
    constraints = (gamma * on - np.eye(num_states)[:, None, :]).reshape(-1, num_states)
    program = scipy.optimize.linprog(np.ones(num_states), A_ub=constraints, b_ub=-reward.ravel(), bounds=(None, None),
                                     method="highs")
    np.testing.assert_allclose(state_value(value_iteration(mdp, gamma)), program.x, atol=1e-7)
    if gamma == 1:
        assert start_distribution(mdp) @ program.x == pytest.approx(7.93)


def test_taxi_ends_by_outcome_not_by_state():
    """After the last drop-off Taxi rests in a state that an episode can also pass through."""
    mdp = make("Taxi-v4")
    ends_in = np.unique(mdp.next_state[mdp.terminated & (mdp.probability > 0)])
    assert len(ends_in) == 4 and not mdp.terminal.any()
    assert (state_value(value_iteration(mdp, 0.99))[ends_in] > 0).all()
    s, a, k = np.argwhere(mdp.terminated & (mdp.probability > 0))[0]
    assert value_iteration(mdp, 0.99)[s, a] == mdp.reward[s, a, k] == 20


def test_masks_start_and_terminals_of_known_environments():
    ours = gymnasium.make("envs:SafetyCriticalGridWorld-v0")
    mdp = TabularMDP.from_env(ours)
    assert (mdp.num_states, mdp.num_actions, mdp.start) == (225, 4, 0)
    assert mdp.hazard.sum() == 22 and np.flatnonzero(mdp.goal).tolist() == [224]
    np.testing.assert_array_equal(mdp.terminal, mdp.hazard | mdp.goal)
    coordinates = TabularMDP.from_env(gymnasium.make("envs:SafetyCriticalGridWorld-v0", observation="coordinates"))
    np.testing.assert_array_equal(coordinates.probability, mdp.probability)

    lake = make("FrozenLake-v1")
    assert lake.hazard.sum() == 4 and np.flatnonzero(lake.goal).tolist() == [15] and lake.start == 0
    assert lake.probability.shape == (16, 4, 3)
    assert np.count_nonzero(lake.probability[0, 0]) == 2          # two of three slips stay in the corner: one outcome
    assert make("CliffWalking-v1").hazard is None and make("Taxi-v4").start.shape == (500,)


# ------------------------------------------------------------------------------------------------- by hand, and dense


def test_corridor_by_hand():
    mdp = TabularMDP.from_P(CORRIDOR, goal=mask(3, 2), start=0)
    # v1 = 3/4 * 10 + 1/4 (v0 - 1), v0 = -1 + 3/4 v1 + 1/4 v0  =>  v0 = v1 - 4/3, v1 = 83/9
    v = state_value(value_iteration(mdp, 1.0))
    np.testing.assert_allclose(v, [71 / 9, 83 / 9, 0], atol=1e-10)
    go = np.tile([0.0, 1.0], (3, 1))
    record = evaluate_policies(mdp, go, 0, 2)       # two steps: 0 1 G with 9/16
    assert record.goal_probability == pytest.approx(9 / 16)
    assert record.returns == pytest.approx(-1 + 9 / 16 * 10 - 7 / 16)
    assert record.length == 2 and record.hazard_probability is None
    np.testing.assert_allclose(hitting_probability(mdp, go, mdp.goal), [1, 1, 0])
    np.testing.assert_allclose(hitting_probability(mdp, go, mdp.goal, horizon=2), [9 / 16, 3 / 4, 0])
    stay = np.tile([1.0, 0.0], (3, 1))
    np.testing.assert_allclose(hitting_probability(mdp, np.stack([stay, go]), mdp.goal)[0], 0)
    with pytest.raises(ValueError, match="policy 1 never does from state 0 .2 states in all"):
        policy_evaluation(mdp, np.stack([go, stay]), 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_against_dense_recomputation(seed):
    rng = np.random.default_rng(seed)
    P = random_table(rng)
    mdp, (reward, on) = TabularMDP.from_P(P, hazard=mask(8, 3, 5), start=1), dense(P)
    gamma = rng.choice([0.0, 0.5, 0.99])
    policies = random_policies(rng, 4, 8, 3)
    v, q = policy_evaluation(mdp, policies, gamma)
    for n, policy in enumerate(policies):
        chain = np.einsum("sa,sat->st", policy, on)
        expected = np.linalg.inv(np.eye(8) - gamma * chain) @ (policy * reward).sum(1)
        np.testing.assert_allclose(v[n], expected, atol=1e-10)
        np.testing.assert_allclose(q[n], reward + gamma * on @ v[n], atol=1e-10)
        single, _ = policy_evaluation(mdp, policy, gamma)
        np.testing.assert_allclose(single, v[n], atol=1e-12)
    optimal = value_iteration(mdp, gamma)
    np.testing.assert_allclose(optimal, reward + gamma * on @ optimal.max(1), atol=1e-10)
    best = max(policy_evaluation(mdp, np.eye(3)[list(choice)], gamma)[0].sum()
               for choice in itertools.islice(itertools.product(range(3), repeat=8), 0, None, 37))
    assert state_value(optimal).sum() >= best - 1e-9


def test_iteration_beyond_the_dense_size_agrees_with_the_factorisation(monkeypatch):
    rng = np.random.default_rng(3)
    mdp = TabularMDP.from_P(random_table(rng, 40, end=0.02), start=0)
    policies = random_policies(rng, 5, 40, 3)

    def solve():
        return policy_evaluation(mdp, policies, 0.98)[0], hitting_probability(mdp, policies, mask(40, 7))

    expected = solve()
    monkeypatch.setattr("cql.exact.dynamic_programming.DENSE_STATES", 0)
    for iterated, exact in zip(solve(), expected, strict=True):
        np.testing.assert_allclose(iterated, exact, rtol=1e-9, atol=1e-9)


def test_support_restricts_the_actions():
    mdp = TabularMDP.from_P(CORRIDOR)
    support = np.array([[True, True], [True, False], [False, False]])
    q = value_iteration(mdp, 0.9, support=support)
    np.testing.assert_array_equal(np.isneginf(q), ~support)
    np.testing.assert_allclose(state_value(q), [-10, -10, 0])            # -1 for ever; no action at all: 0
    np.testing.assert_allclose(greedy_policy(q)[2], 0.5)


# -------------------------------------------------------------------------------------- one episode, without discount


def enumerate_episode(P, choose, state, horizon, hazard, step=0, entered=False):
    """(E[return], P(ever in hazard)) by walking every path; `choose(step, state)` gives action probabilities."""
    if step == horizon:
        return 0.0, float(entered)
    total = np.zeros(2)
    for a, pa in enumerate(choose(step, state)):
        for p, s2, r, end in P[state][a]:
            here = entered or hazard[s2]
            rest = (0.0, float(here)) if end else enumerate_episode(P, choose, s2, horizon, hazard, step + 1, here)
            total += pa * p * np.array([r + rest[0], rest[1]])
    return total


@pytest.mark.parametrize("seed", range(5))
def test_finite_horizon_against_enumerating_all_paths(seed):
    """Hazards that do not end the episode included: the first entry counts, once."""
    rng = np.random.default_rng(seed)
    P, hazard = random_table(rng, 4, 2, 2), mask(4, 2)
    mdp = TabularMDP.from_P(P, hazard=hazard, start=0)
    policies = random_policies(rng, 3, 4, 2)
    record = evaluate_policies(mdp, policies, 0, 5)
    for n in range(3):
        expected = enumerate_episode(P, lambda t, s, n=n: policies[n, s], 0, 5, hazard)
        assert (record.returns[n], record.hazard_probability[n]) == pytest.approx(tuple(expected), abs=1e-12)
    np.testing.assert_allclose(hitting_probability(mdp, policies, hazard, 5)[:, 0], record.hazard_probability)
    assert record.goal_probability is None

    changing = random_policies(rng, 5, 4, 2)
    record = evaluate_time_dependent(mdp, changing)
    expected = enumerate_episode(P, lambda t, s: changing[t, s], 0, 5, hazard)
    assert (record.returns, record.hazard_probability) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_first_actions_against_enumerating_all_paths(seed):
    """Hazards that do not end the episode included; the mean under the policy is its evaluation from that state."""
    rng = np.random.default_rng(seed)
    P, hazard = random_table(rng, 4, 2, 2), mask(4, 2)
    mdp, policy = TabularMDP.from_P(P, hazard=hazard), random_policies(rng, 4, 2)
    found = evaluate_first_actions(mdp, policy, 5)
    for s, a in np.ndindex(4, 2):
        expected = enumerate_episode(P, lambda t, state, a=a: policy[state] if t else np.eye(2)[a], s, 5, hazard)
        assert (found.returns[s, a], found.hazard_probability[s, a]) == pytest.approx(tuple(expected), abs=1e-12)
    for s in range(4):
        record = evaluate_policies(mdp, policy, s, 5)
        for name in ("returns", "hazard_probability", "length"):
            assert policy[s] @ getattr(found, name)[s] == pytest.approx(getattr(record, name), abs=1e-12)
    assert found.goal_probability is None
    next_step = evaluate_first_actions(mdp, policy, 1)
    np.testing.assert_allclose(next_step.returns, mdp.expected_reward)
    np.testing.assert_allclose(next_step.hazard_probability, (mdp.probability * hazard[mdp.next_state]).sum(-1))
    np.testing.assert_array_equal(next_step.length, 1)


def test_first_actions_in_a_corridor_by_hand():
    """Staying at 1, then moving on for the one step that is left: -1, then 3/4 of 10 and 1/4 of -1."""
    mdp = TabularMDP.from_P(CORRIDOR, goal=mask(3, 2))
    found = evaluate_first_actions(mdp, np.eye(2)[[1, 1, 1]], 2)
    assert found.returns[1].tolist() == pytest.approx([-1 + 7.25, 7.25 + 0.25 * -1])
    assert found.goal_probability[1].tolist() == pytest.approx([0.75, 0.75])
    assert found.length[1].tolist() == pytest.approx([2, 1.25])
    assert found.returns[2].tolist() == found.length[2].tolist() == [0, 0] and found.hazard_probability is None


def test_backward_induction_is_the_best_of_all_time_dependent_policies():
    rng = np.random.default_rng(0)
    P = random_table(rng, 3, 2, 2)
    mdp = TabularMDP.from_P(P, hazard=mask(3, 1), start=0)
    optimal = backward_induction(mdp, 3)
    best = max(evaluate_time_dependent(mdp, deterministic_policies(np.reshape(choice, (3, 3)), 2)).returns
               for choice in itertools.product(range(2), repeat=9))
    assert optimal.values[0, 0] == pytest.approx(best) == pytest.approx(optimal.evaluation.returns)
    again = enumerate_episode(P, lambda t, s: np.eye(2)[optimal.actions[t, s]], 0, 3, mdp.hazard)
    assert optimal.evaluation.hazard_probability == pytest.approx(again[1])


def test_backward_induction_settles_ties_at_the_lowest_index():
    same = [(0.1, 1, 1.0, True), (0.9, 1, 0.3, True)]
    mdp = TabularMDP.from_P([[same[::-1], same, same], [[(1.0, 1, 0.0, True)]] * 3], start=0)
    assert (backward_induction(mdp, 2).actions == 0).all()
    assert greedy_actions(np.array([0.1 + 0.2 - 1e-14, 0.3, 0.2]), 1e-12) == 0
    assert greedy_actions(np.array([-np.inf, 1.0, 1.0])) == 1


def test_rollouts_agree_within_their_standard_error():
    env = gymnasium.make("envs:SafetyCriticalGridWorld-v0", desc=("S...", ".HH.", "....", "H..G"), slip_probability=0.3)
    mdp, policy = TabularMDP.from_env(env), envs.safe_behavior_policy(env, 0.5)
    rng, episodes, horizon = np.random.default_rng(1), 3000, 12
    data = roll(env.unwrapped.P, policy, mdp.start, horizon, episodes, rng)
    episode = np.cumsum(np.r_[0, (data.terminations | data.truncations)[:-1]])
    record = evaluate_policies(mdp, policy, horizon=horizon)
    for sampled, exact in [(data.rewards, record.returns), (np.ones(len(episode)), record.length),
                           (mdp.hazard[data.next_observations], record.hazard_probability),
                           (mdp.goal[data.next_observations], record.goal_probability)]:
        totals = np.bincount(episode, weights=sampled)
        assert abs(totals.mean() - exact) < 4 * totals.std(ddof=1) / np.sqrt(episodes)


def test_a_population_of_352_policies_in_one_call():
    rng = np.random.default_rng(0)
    mdp = make("envs:SafetyCriticalGridWorld-v0")
    policies = np.concatenate([random_policies(rng, 350, 225, 4), np.full((1, 225, 4), 0.25),
                               greedy_policy(value_iteration(mdp, 0.99))[None]])
    record = evaluate_policies(mdp, policies, mdp.start, 80)
    alone = evaluate_policies(mdp, policies[-1], mdp.start, 80)
    assert record.returns.shape == record.hazard_probability.shape == (352,)
    assert (record.returns[-1], record.hazard_probability[-1]) == pytest.approx(
        (alone.returns, alone.hazard_probability))
    optimal = backward_induction(mdp, 80)
    assert record.returns.max() < optimal.evaluation.returns == pytest.approx(optimal.values[0, mdp.start])
    assert optimal.evaluation.hazard_probability + optimal.evaluation.goal_probability <= 1


def test_a_large_grid_fits():
    desc = envs.generate_random_map(100, 0.1, seed=0)
    mdp = TabularMDP.from_env(gymnasium.make("envs:SafetyCriticalGridWorld-v0", desc=desc))
    assert mdp.probability.shape == (10_000, 4, 4)
    assert evaluate_policies(mdp, np.full((2, 10_000, 4), 0.25), horizon=50).hazard_probability[0] > 0.1


# -------------------------------------------------------------------------------------------- the model of a data set


def test_empirical_model_by_hand():
    """A truncated step bootstraps; outcomes differ by next state, reward and end; pairs without data are empty."""
    data = Transitions(*map(np.array, ([0, 0, 0, 0, 1], [1, 1, 1, 1, 0], [1.0, 1.0, 2.0, 1.0, 5.0], [1, 1, 1, 2, 2],
                                       [False, False, False, True, True], [False, True, False, False, False])))
    mdp, counts = empirical_mdp(data, 4, 2)
    np.testing.assert_array_equal(counts, [[0, 4], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(np.sort(mdp.probability[0, 1]), [0.25, 0.25, 0.5])
    assert mdp.expected_reward[0, 1] == 1.25 and mdp.continuing[0, 1].sum() == 0.75
    np.testing.assert_array_equal(mdp.modelled, counts > 0)
    np.testing.assert_array_equal(mdp.terminal, [False, False, True, False])
    np.testing.assert_allclose(state_value(value_iteration(mdp, 0.5)), [1.25 + 0.5 * 0.75 * 5, 5, 0, 0])
    with pytest.raises(ValueError, match="Policy 0 takes action 0 in state 0, of which this .empirical. model"):
        policy_evaluation(mdp, np.full((4, 2), 0.5), 0.5)

    distinct = SimpleNamespace(observations=np.array([0, 0]), actions=np.array([1, 1]), rewards=[1.0, 2.0],
                               next_observations=np.array([1, 1]), terminations=[False, False], counts=[3, 1])
    weighted, counts = empirical_mdp(distinct, 2, 2)
    assert counts[0, 1] == 4 and weighted.expected_reward[0, 1] == 1.25


def test_empirical_model_approaches_the_true_one():
    rng = np.random.default_rng(5)
    P = random_table(rng, 3, 2, 2)
    data = roll(P, np.full((3, 2), 0.5), 0, 20, 2000, rng)
    mdp, counts = empirical_mdp(data, 3, 2)
    assert counts.sum() == len(data.actions)
    np.testing.assert_allclose(value_iteration(mdp, 0.8), value_iteration(TabularMDP.from_P(P), 0.8), atol=0.5)


# ---------------------------------------------------------------------------------------------------------- wrong use


def test_environments_without_a_model():
    with pytest.raises(ValueError, match="CartPoleEnv has no transition table P .its observation space is Box"):
        make("CartPole-v1")


@pytest.mark.parametrize("P, message", [
    ([[[(0.5, 0, 0.0, True)]]], "must sum to 1: those of state 0, action 0 sum to 0.5"),
    ([[[]]], "must sum to 1"),
    ([[[(1.5, 0, 0.0, True), (-0.5, 0, 1.0, True)]]], r"action 0 in state 0 has a negative or non-finite probability"),
    ([[[(1.0, 1, 0.0, True)]]], "leads to a state outside 0..0"),
    ([[[(1.0, 0, np.inf, True)]]], "a reward that is not finite"),
    ([[[(1.0, 0, 0.0)]]], "must be a list of .probability, next_state, reward, terminated."),
    ([[[(1.0, 0, 0.0, True)]], [[(1.0, 0, 0.0, True)]] * 2], "Every state needs the same actions"),
    ({0: {0: [(1.0, 0, 0.0, True)]}, 2: {}}, "must number its states 0..1: 1 is missing"),
    ([], "non-empty"),
])
def test_invalid_tables(P, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP.from_P(P)


def test_data_of_another_environment():
    good = {"observations": [0], "actions": [0], "rewards": [0.0], "next_observations": [1], "terminations": [True]}
    def read(**changed):
        return empirical_mdp(SimpleNamespace(**{k: np.array(v) for k, v in {**good, **changed}.items()}), 2, 2)
    read()
    for changed, message in [
        ({"observations": [7]}, "reach from 7 to 7, outside 0..1: this is a data set of another environment"),
        ({"actions": [2]}, "actions reach from 2 to 2"),
        ({"observations": [[0.1, 0.2]]}, "must be one integer a step, got float64"),
        ({"observations": [0.5]}, "not continuous ones"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(**changed)


def test_gamma_one_without_a_proper_policy():
    loop = TabularMDP.from_P([[[(1.0, 0, -1.0, False)]], [[(1.0, 1, 0.0, True)]]])
    with pytest.raises(ValueError, match="from 1 states .first: 0. none does; take gamma < 1"):
        value_iteration(loop, 1.0)
    with pytest.raises(ValueError, match="never does from state 0"):
        policy_evaluation(loop, np.ones((2, 1)), 1.0)
    earns = TabularMDP.from_P([[[(1.0, 0, 1.0, False)], [(1.0, 0, 0.0, True)]]])
    with pytest.raises(ValueError, match="a cycle that earns for ever has no finite value"):
        value_iteration(earns, 1.0, max_iterations=500)
    with pytest.raises(ValueError, match="gamma must lie in 0..1"):
        value_iteration(earns, 1.01)


@pytest.mark.parametrize("call, message", [
    (lambda m: policy_evaluation(m, np.full((3, 2), 0.4), 0.9), "Policy 0 is no distribution over actions in state 0"),
    (lambda m: policy_evaluation(m, np.full((2, 2), 0.5), 0.9), "A policy must be"),
    (lambda m: evaluate_policies(m, np.full((3, 2), 0.5), 0), "horizon must be a whole number"),
    (lambda m: evaluate_policies(m, np.full((3, 2), 0.5), 3, 5), "start must be a state in 0..2"),
    (lambda m: evaluate_policies(m, np.full((3, 2), 0.5), None, 5), "The start is unknown"),
    (lambda m: evaluate_policies(m, np.full((3, 2), 0.5), np.ones(3), 5), "a distribution over 3 states"),
    (lambda m: hitting_probability(m, np.full((3, 2), 0.5), [0, 1, 0]), "mask must be a bool mask over 3 states"),
])
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(TabularMDP.from_P(CORRIDOR))


def test_arrays_cannot_be_changed_by_accident():
    mdp = TabularMDP.from_P(CORRIDOR)
    with pytest.raises(ValueError, match="read-only"):
        mdp.reward[0] = 1
    assert bellman_backup(mdp, np.zeros((2, 3)), 0.9).shape == (2, 3, 2)
    np.testing.assert_allclose(solve_bellman(mdp, np.tile([1.0, 0.0], (3, 1)), [1.0, 0.0, 0.0], 0.5), [2, 0, 0])
