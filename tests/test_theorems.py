"""The paper's theorems as equalities: on the grid's data, on random MDPs, by hand, and by iterating the updates."""

import gymnasium
import numpy as np
import pytest
import scipy
from mdps import Transitions, random_policies, random_table, roll

import envs
from cql.commands import theorems as theorems_command
from cql.exact import (
    TabularMDP,
    bellman_backup,
    cql_fixed_point,
    empirical_mdp,
    empirical_policy,
    greedy_policy,
    policy_evaluation,
    state_value,
)
from cql.exact.theorems import (
    backup_error,
    chi_square,
    covered,
    hoeffding_c,
    invariants,
    paper_constant,
    sampling_error,
    smallest_c,
    softmax,
    theorem_3_1,
    theorem_3_2,
    theorem_3_3,
    theorem_3_4,
)

pytestmark = pytest.mark.slow
GAMMA = 0.95


@pytest.fixture(scope="module")
def grid():
    """(true model, model of the data, counts) of a small data set on islands."""
    env = gymnasium.make("envs:SafetyCriticalGridWorld-v0")
    true, rng = TabularMDP.from_env(env), np.random.default_rng(42)
    data = roll(env.unwrapped.P, envs.safe_behavior_policy(env, 0.22), true.start, 80, 120, rng)
    return true, *empirical_mdp(data, true.num_states, 4, true.hazard, true.goal, true.start, true.terminal)


def random_problem(seed):
    """(true model, model of the data, counts), some pairs and at times states without data."""
    rng = np.random.default_rng(seed)
    P = random_table(rng, 7, 3)
    data = roll(P, rng.dirichlet(np.full(3, 0.5), size=7), 0, 20, 12, rng)
    return TabularMDP.from_P(P, start=0), *empirical_mdp(data, 7, 3, start=0)


def problems(grid):
    return [(*grid, 0.99), *((*random_problem(seed), GAMMA) for seed in range(12))]


def policies_on(counts, rng):
    """A random policy on the logged actions, the greedy-like one of a random Q, and the data's own."""
    logged, beta = counts > 0, empirical_policy(counts)
    blank = ~logged.any(-1, keepdims=True)
    mixed = np.where(logged | blank, random_policies(rng, *counts.shape), 0)
    mixed /= mixed.sum(-1, keepdims=True)
    greedy = greedy_policy(np.where(logged, rng.normal(size=counts.shape), -np.inf))
    return mixed, greedy, np.where(blank, 1 / counts.shape[1], beta)


def close(equality, scale=1.0, tolerance=1e-9):
    assert np.isfinite(equality.left).any()
    np.testing.assert_array_equal(np.isnan(equality.left), np.isnan(equality.right))
    assert equality.largest <= tolerance * (1 + scale + np.nanmax(np.abs(equality.left)))


def iterate(mdp, counts, mu, policy, half, gamma, shift, updates):
    """Eq. 1 (shift 0) or Eq. 2 (shift 1) from Q = 0: each update the argmin of a quadratic, solved pair by pair."""
    beta, logged = empirical_policy(counts), counts > 0
    reward, on = mdp.expected_reward, np.zeros((*counts.shape, len(counts)))
    for s, a, k in zip(*np.nonzero(mdp.continuing)):
        on[s, a, mdp.next_state[s, a, k]] += mdp.continuing[s, a, k]
    q = np.zeros(counts.shape)
    for _ in range(updates):
        v = (policy * np.where(logged, q, 0)).sum(-1)                 # 0 where a state has no data
        y = reward + gamma * on @ v
        # d/dq [ half (mu - shift beta) q + beta (q - y)^2 / 2 ] = 0
        q = np.where(logged, (beta * y - half * (mu - shift * beta)) / np.where(logged, beta, 1), 0)
    return q


# ----------------------------------------------------------------------------------------------- Theorems 3.1 and 3.2


def test_theorem_3_1_with_and_without_sampling_error(grid):
    for n, (true, mdp, counts, gamma) in enumerate(problems(grid)):
        rng = np.random.default_rng(n)
        mixed, greedy, beta = policies_on(counts, rng)
        for model in (true, mdp):
            for mu, policy in [(mixed, mixed), (mixed, greedy), (greedy, beta)]:
                for half in (0.0, 0.3, 40.0):
                    found = theorem_3_1(model, counts, mu, policy, half, gamma)
                    close(found)
                    np.testing.assert_array_equal(np.isnan(found.left), counts == 0)


def test_theorem_3_1_is_where_the_update_of_equation_1_ends():
    for seed in range(4):
        true, _, counts = random_problem(seed)
        mixed, greedy, _ = policies_on(counts, np.random.default_rng(seed))
        model = covered(true, counts)
        q = iterate(model, counts, mixed, greedy, 2.5, 0.8, 0, 150)
        found, logged = theorem_3_1(true, counts, mixed, greedy, 2.5, 0.8), counts > 0
        np.testing.assert_allclose(found.left[logged], q[logged], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.right[logged], q[logged], rtol=1e-9, atol=1e-9)
        # pointwise, and for any alpha > 0: below the true value of the policy on the covered model
        assert (found.left <= policy_evaluation(model, greedy, 0.8)[1] + 1e-9)[logged].all()


def test_theorem_3_2_with_and_without_sampling_error(grid):
    for n, (true, mdp, counts, gamma) in enumerate(problems(grid)):
        for policy in policies_on(counts, np.random.default_rng(n)):
            for model in (true, mdp):
                found = theorem_3_2(model, counts, policy, 7.0, gamma)
                close(found)
                assert (found.left[counts.any(-1)] <= 1e-9).all()


def test_theorem_3_2_is_where_the_update_of_equation_2_ends_and_single_q_values_may_lie_above():
    above = 0
    for seed in range(4):
        true, _, counts = random_problem(seed)
        policy, _, _ = policies_on(counts, np.random.default_rng(seed))
        model, logged = covered(true, counts), counts > 0
        q = iterate(model, counts, policy, policy, 2.5, 0.8, 1, 150)
        v, exact = policy_evaluation(model, policy, 0.8)
        found = theorem_3_2(true, counts, policy, 2.5, 0.8)
        seen = logged.any(-1)
        np.testing.assert_allclose(found.right[seen], ((policy * q).sum(-1) - v)[seen], rtol=1e-9, atol=1e-9)
        above += (q > exact + 1e-6)[logged].sum()
    assert above > 0


def test_one_state_by_hand():
    """Rewards 10 and -2, beta = (1/4, 3/4), policy = (1/2, 1/2), gamma = 1/2, alpha_half = 3, a loop without end.

    D = 1/4 / (1/4) + 1/4 / (3/4) - 1 = 1/3; V = 4 / (1 - 1/2) = 8; U = 2/3; V^ = 8 - 3 * 2/3 = 6.
    """
    mdp = TabularMDP.from_P([[[(1.0, 0, 10.0, False)], [(1.0, 0, -2.0, False)]]], start=0)
    counts, policy = np.array([[1, 3]]), np.array([[0.5, 0.5]])
    assert chi_square(counts, policy) == pytest.approx(1 / 3)
    found = theorem_3_2(mdp, counts, policy, 3.0, 0.5)
    assert found.left == pytest.approx(-2) and found.right == pytest.approx(-2) and found.largest < 1e-12
    # Eq. 1 takes alpha_half mu / beta = (6, 2), 4 on average, so V^ = 8 - 8 = 0 and Q^ = (10, -2) - (6, 2)
    np.testing.assert_allclose(theorem_3_1(mdp, counts, policy, policy, 3.0, 0.5).right, [[4.0, -4.0]])


# --------------------------------------------------------------------------------------------- with sampling error


def test_value_falls_linearly_in_alpha_and_the_smallest_alpha_is_sharp(grid):
    touched = 0
    for n, (true, mdp, counts, gamma) in enumerate(problems(grid)):
        for policy in policies_on(counts, np.random.default_rng(n))[:2]:
            found = sampling_error(true, mdp, counts, policy, 4.0, gamma)
            close(found.equality)
            need, truth = found.smallest_alpha_of_the_rest, policy_evaluation(true, policy, gamma)[0]
            repairable = np.isfinite(found.needed)
            scale = 1e-7 * (1 + np.abs(truth).max())
            at = sampling_error(true, mdp, counts, policy, need, gamma).equality.left - truth
            assert (at[repairable] <= scale).all()
            if need > 1e-3:
                touched += 1
                below = sampling_error(true, mdp, counts, policy, 0.99 * need, gamma).equality.left - truth
                assert (below[repairable] > 0).any()
    assert touched > 5


def test_no_alpha_repairs_the_behaviour_policy(grid):
    true, mdp, counts = grid
    _, _, beta = policies_on(counts, np.random.default_rng(0))
    found = sampling_error(true, mdp, counts, beta, 100.0, 0.99)
    assert np.nanmax(np.abs(found.conservatism)) < 1e-9
    assert found.smallest_alpha == np.inf and found.beyond_repair > 0
    assert paper_constant(mdp, counts, beta, 0.99, 1.0).alpha_half == np.inf


def test_constants_of_the_papers_form_are_sufficient_and_larger():
    finite = 0
    for seed in range(40):
        true, mdp, counts = random_problem(seed)
        policy, _, _ = policies_on(counts, np.random.default_rng(seed))
        tight = smallest_c(true, mdp, counts, policy, GAMMA)
        constant = paper_constant(mdp, counts, policy, GAMMA, tight)
        found = sampling_error(true, mdp, counts, policy, 1.0, GAMMA)
        assert found.smallest_alpha <= constant.alpha_half * (1 + 1e-9) + 1e-9
        finite += np.isfinite(constant.alpha_half) and found.smallest_alpha > 0
        # the assumption itself: the error of each backup is within C R_max / ((1 - gamma) sqrt n)
        error = backup_error(true, mdp, counts, policy, GAMMA)
        limit = tight * np.abs(mdp.reward).max() / ((1 - GAMMA) * np.sqrt(np.maximum(counts, 1)))
        assert (error <= limit * (1 + 1e-9) + 1e-12)[counts > 0].all()
    assert finite > 2


def test_a_constant_by_hand():
    """One state, n = (1, 3), policy (1/2, 1/2), R_max = 10, gamma = 1/2, C = 1: 20 (1/2 + 1/(2 sqrt 3)) / (1/3)."""
    mdp = TabularMDP.from_P([[[(1.0, 0, 10.0, False)], [(1.0, 0, -2.0, False)]]], start=0)
    found = paper_constant(mdp, np.array([[1, 3]]), np.array([[0.5, 0.5]]), 0.5, 1.0)
    assert found.alpha_half == found.alpha_half_of_the_rest == pytest.approx(60 * (0.5 + 0.5 / np.sqrt(3)))
    assert found.without_penalty == 0


def test_hoeffdings_constant_covers_the_errors_that_occur(grid):
    true, mdp, counts = grid
    outcomes = int((true.probability > 0).sum(-1).max())
    for policy in policies_on(counts, np.random.default_rng(1)):
        assert smallest_c(true, mdp, counts, policy, 0.99) < hoeffding_c(counts, 0.99, outcomes) < 20


# ----------------------------------------------------------------------------------------------- Theorems 3.3 and 3.4


def test_theorem_3_3_flags_exactly_where_the_penalty_raises_the_policy(grid):
    flagged = agreed = 0
    for n, (_, mdp, counts, gamma) in enumerate(problems(grid)):
        q = cql_fixed_point(mdp, counts, [6.0], gamma).q[0]
        mixed, _, beta = policies_on(counts, np.random.default_rng(n))
        for policy in (mixed, greedy_policy(q), softmax(q), beta):
            found = theorem_3_3(mdp, counts, q, policy, 3.0, gamma)
            close(found.equality, 6.0)
            clear = np.abs(found.ratio - 1) > 1e-6
            np.testing.assert_array_equal(found.overestimates[clear], (found.equality.left > 0)[clear])
            assert not (found.paper_condition & found.overestimates).any()      # sufficient, as the paper says
            agreed += found.paper_condition.sum()
            flagged += found.overestimates.sum()
        greedy = theorem_3_3(mdp, counts, q, greedy_policy(q), 3.0, gamma)
        best, p = q.argmax(-1)[:, None], softmax(q)
        lower = np.take_along_axis(p - empirical_policy(counts), best, -1)[:, 0] < -1e-9
        np.testing.assert_array_equal(greedy.overestimates, lower & counts.any(-1))
        # the softmax policy itself is never raised: its ratio is 1 + chi^2
        assert not theorem_3_3(mdp, counts, q, softmax(q), 3.0, gamma).overestimates.any()
    assert flagged > 20 and agreed > 20


def test_theorem_3_4_widens_the_gap_by_chi_square(grid):
    for n, (_, mdp, counts, gamma) in enumerate(problems(grid)):
        rng = np.random.default_rng(n)
        for mu in policies_on(counts, rng):
            found = theorem_3_4(mdp, counts, mu, rng.normal(scale=30, size=len(counts)), 5.0, gamma)
            close(found)
            assert (found.right[counts.any(-1)] >= -1e-12).all()


def test_theorem_3_4_by_a_minimiser_that_knows_no_formula():
    true, mdp, counts = random_problem(5)
    rng = np.random.default_rng(5)
    mu, _, _ = policies_on(counts, rng)
    values, half, beta = rng.normal(size=7), 2.0, empirical_policy(counts)
    y = bellman_backup(mdp, values, GAMMA)
    found = theorem_3_4(mdp, counts, mu, values, half, GAMMA)
    for s in np.flatnonzero(counts.any(-1)):
        b, m, t = (x[s, counts[s] > 0] for x in (beta, mu, y))
        q = scipy.optimize.minimize(lambda q, b=b, m=m, t=t: half * (m - b) @ q + b @ (q - t) ** 2 / 2,
                                    np.zeros(len(b)), tol=1e-12).x
        assert (b - m) @ (q - t) == pytest.approx(found.left[s], abs=1e-5)


# ---------------------------------------------------------------------------------------------------- invariants


def test_the_inner_maximum_is_a_logsumexp():
    """max_mu alpha E_mu[Q] + w H(mu) = w logsumexp(alpha Q / w), at softmax(alpha Q / w): Eq. 4 needs w = alpha."""
    rng = np.random.default_rng(0)
    q, mus = rng.normal(scale=3, size=4), rng.dirichlet(np.ones(4), size=2000)
    for alpha, weight in [(3.0, 3.0), (3.0, 1.0), (0.5, 2.0)]:
        top = weight * np.log(np.exp(alpha * q / weight).sum())

        def value(mu, alpha=alpha, weight=weight):
            return alpha * mu @ q - weight * (mu * np.log(np.maximum(mu, 1e-300))).sum(-1)

        assert value(softmax(alpha * q / weight)) == pytest.approx(top)
        assert (value(mus) <= top).all()
        assert (top == pytest.approx(alpha * np.log(np.exp(q).sum()))) == (weight == alpha)


def test_invariants_of_the_fixed_point(grid):
    for _, mdp, counts, gamma in problems(grid):
        for alpha in (0.05, 6.0, 200.0):
            q = cql_fixed_point(mdp, counts, [alpha], gamma).q[0]
            under_beta, under_softmax = invariants(mdp, counts, q, alpha / 2, gamma)
            close(under_beta, alpha)
            close(under_softmax, alpha)
            seen, p = counts.any(-1), softmax(q)
            assert np.abs(under_beta.right[seen]).max() == 0
            # the right side once more: minus alpha_half chi^2
            np.testing.assert_allclose(under_softmax.right[seen], -alpha / 2 * chi_square(counts, p)[seen],
                                       atol=1e-10 * (1 + alpha))


def test_moments_with_a_softmax_over_all_actions():
    """Unlogged actions frozen at finite values: gradient descent on the logged ones ends where the moments hold."""
    rng = np.random.default_rng(2)
    counts = np.array([[5, 3, 0], [1, 0, 9], [2, 2, 2]])
    beta, logged, half = empirical_policy(counts), counts > 0, 1.5
    y, q = rng.normal(scale=2, size=(3, 3)), rng.normal(size=(3, 3))
    for _ in range(20_000):
        q = q - 0.3 * np.where(logged, beta * (q - y) + half * (softmax(q) - beta), 0)
    p, error = softmax(q), np.where(logged, q - y, 0)
    p_ood, p_logged, squares = (x.sum(-1) for x in (np.where(logged, 0, p), np.where(logged, p, 0), p**2 / np.where(
        logged, beta, np.inf)))
    np.testing.assert_allclose((beta * error).sum(-1), half * p_ood, atol=1e-9)
    np.testing.assert_allclose((p * error).sum(-1), half * (p_logged - squares), atol=1e-9)
    assert p_ood[:2].min() > 0.01 and p_ood[2] == 0


def test_moments_fail_away_from_the_fixed_point(grid):
    _, mdp, counts = grid
    q = cql_fixed_point(mdp, counts, [6.0], 0.99).q[0]
    q[0, counts[0].argmax()] += 0.1
    assert invariants(mdp, counts, q, 3.0, 0.99)[0].largest > 1e-3


def test_the_penalised_softmax_gap_follows_from_both_invariants(grid):
    """At the solution E_beta - E_p of Q exceeds that of its target by alpha_half chi^2(p || beta): 3.4 with mu = p."""
    _, mdp, counts = grid
    q = cql_fixed_point(mdp, counts, [6.0], 0.99).q[0]
    found = theorem_3_4(mdp, counts, softmax(q), state_value(np.where(counts > 0, q, -np.inf)), 3.0, 0.99)
    seen = counts.any(-1)
    y = bellman_backup(mdp, np.where(seen, state_value(q), 0), 0.99)
    gap = ((empirical_policy(counts) - softmax(q)) * np.where(counts > 0, q - y, 0)).sum(-1)
    np.testing.assert_allclose(gap[seen], found.right[seen], atol=1e-9)


# ----------------------------------------------------------------------------------------------------- the command


def test_covered_keeps_what_was_logged(grid):
    true, mdp, counts = grid
    model = covered(true, counts)
    np.testing.assert_array_equal(model.modelled, (counts > 0) | true.terminal[:, None])
    np.testing.assert_array_equal(covered(mdp, counts).probability, mdp.probability)


def test_the_command_prints_small_differences(capsys):
    assert theorems_command.main(["--episodes", "60", "--alpha", "1", "6"]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if " model " in line or " dynamics " in line]
    rows = [row for row in rows if row[-1].startswith(tuple("0123456789"))]
    assert len(rows) == 26
    assert all(float(row[-1]) < 1e-9 * (1 + abs(float(row[-3]))) for row in rows)
    assert "alpha 6 (alpha_half 3)" in text and "paper, Hoeffding C" in text


@pytest.mark.parametrize("argv, sentence", [
    (["--gamma", "1"], "--gamma must be below 1"),
    (["--alpha", "-1"], "--alpha must lie in [0, 1e+18]"),
    (["--map", "nowhere"], "neither a known map"),
    (["--dataset", "/nowhere.npz"], "nowhere.npz"),
])
def test_bad_input_gets_one_sentence(argv, sentence, capsys):
    assert theorems_command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_plain_arrays_without_an_environment_are_told_apart(tmp_path, capsys):
    from cql.dataset import OfflineDataset

    OfflineDataset.from_arrays(np.array([0, 1]), np.array([0, 1]), np.array([1.0, 2.0]), np.array([1, 0]),
                               np.array([False, True]), np.array([False, False])).save(tmp_path / "plain.npz")
    assert theorems_command.main(["--dataset", str(tmp_path / "plain.npz")]) == 2
    assert "the data name no environment" in capsys.readouterr().err


def test_data_of_nothing_but_terminal_states_claims_nothing():
    table = [[[(1.0, 0, 0.0, True)]]]
    true = TabularMDP.from_P(table, start=0)
    data = Transitions(*(np.array([x]) for x in (0, 0, 0.0, 0, True, False)))
    mdp, counts = empirical_mdp(data, 1, 1, start=0, terminal=true.terminal)
    assert np.isnan(theorem_3_2(mdp, counts, np.ones((1, 1)), 1.0, 0.9).left).all()
