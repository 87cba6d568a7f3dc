"""The exact solution of CQL(H): certificates, independent solvers, and consequences of the mathematics."""

import time

import gymnasium
import numpy as np
import pytest
import scipy
from mdps import Transitions, dense, random_policies, random_table, roll

import envs
from cql.exact import (
    CertificateError,
    TabularMDP,
    alpha_infinity_limit,
    alpha_zero_limit,
    certificate,
    cql_fixed_point,
    empirical_mdp,
    empirical_policy,
    fixed_point,
    half_square_alpha,
    policy_evaluation,
    state_value,
    value_iteration,
)
from cql.exact.fixed_point import SquaredLoss, eq1_fixed_point, eq2_fixed_point

ALPHAS = np.array([0.0, 0.01, 0.1, 1.0, 6.0, 20.0, 100.0, 1000.0])


def grid_data(episodes=500, horizon=80, seed=42, **kwargs):
    env = gymnasium.make("envs:SafetyCriticalGridWorld-v0", **kwargs)
    mdp, rng = TabularMDP.from_env(env), np.random.default_rng(seed)
    data = roll(env.unwrapped.P, envs.safe_behavior_policy(env, 0.22), mdp.start, horizon, episodes, rng)
    return empirical_mdp(data, mdp.num_states, 4, terminal=mdp.terminal)


@pytest.fixture(scope="module")
def islands():
    return grid_data()


def random_problem(rng, num_states=6, num_actions=3, steps=150):
    """A random MDP, seen through a data set that misses pairs and, at times, whole states."""
    P = random_table(rng, num_states, num_actions, scale=rng.choice([0.1, 5.0, 50.0]))
    policy = rng.dirichlet(np.full(num_actions, 0.3), size=num_states)
    data = roll(P, policy, 0, 30, max(1, steps // 8), rng)
    return *empirical_mdp(data, num_states, num_actions), rng.choice([0.0, 0.5, 0.9, 0.99])


def softmax(q):
    """Over the logged actions; 0 where there are none. Written out once more."""
    e = np.exp(q - np.where(np.isneginf(q).all(-1), 0.0, q.max(-1))[..., None])
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-300)


def backup(mdp, q, gamma):
    """Targets by outcome [S, A, K] and their mean [S, A]; written out once more."""
    v = np.where(np.isneginf(q).all(-1), 0.0, q.max(-1))
    y = mdp.reward + gamma * ~mdp.terminated * v[mdp.next_state]
    return y, (mdp.probability * y).sum(-1)


# ------------------------------------------------------------------------------------------------------- certificates


def test_thirty_alphas_on_islands_are_certified_in_seconds(islands):
    mdp, counts = islands
    alphas = np.logspace(-2, 3, 30)
    seconds = []
    for td_loss in ("mse", "half_mse"):
        started = time.process_time()
        solution = cql_fixed_point(mdp, counts, alphas, 0.99, td_loss)
        seconds.append(time.process_time() - started)
        assert (solution.residual <= 1e-9 * (1 + alphas)).all() and solution.certified.all()
        assert (solution.bellman_residual <= 1e-9 * (1 + alphas)).all()
    assert min(seconds) < 5
    assert solution.q.shape == (30, 225, 4)
    np.testing.assert_array_equal(np.isneginf(solution.q), np.broadcast_to((counts == 0) & ~mdp.terminal[:, None],
                                                                           solution.q.shape))
    assert (solution.q[:, mdp.terminal] == 0).all()
    assert ((counts.sum(1) == 0) & ~mdp.terminal).any() and (solution.value[:, counts.sum(1) == 0] == 0).all()


@pytest.mark.slow
def test_blocks_and_frozen_lake_are_certified():
    lake = gymnasium.make("FrozenLake-v1", map_name="8x8").unwrapped
    data = roll(lake.P, np.full((64, 4), 0.25), 0, 100, 500, np.random.default_rng(0))
    for mdp, counts in [grid_data(map_name="blocks"), empirical_mdp(data, 64, 4)]:
        assert cql_fixed_point(mdp, counts, ALPHAS, 0.99).certified.all()
        assert cql_fixed_point(mdp, counts, ALPHAS[1::2], 0.99, "huber").certified.all()


@pytest.mark.parametrize("block", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 5))])
def test_a_hundred_random_mdps_with_their_invariants(block):
    """Residuals recomputed here; E_beta[Q - y] = 0, E_p[Q - y] = -alpha_half chi^2(p || beta), V below its bound."""
    for seed in range(20 * block, 20 * block + 20):
        mdp, counts, gamma = random_problem(np.random.default_rng(seed))
        beta, logged = empirical_policy(counts), counts > 0
        solution = cql_fixed_point(mdp, counts, ALPHAS, gamma)
        optimum = state_value(alpha_zero_limit(mdp, counts, gamma))
        for n, alpha in enumerate(ALPHAS):
            q, p, half = solution.q[n], np.where(logged, softmax(solution.q[n]), 0), alpha / 2
            error = np.where(logged, np.where(logged, q, 0) - backup(mdp, q, gamma)[1], 0)
            tolerance = 1e-9 * (1 + alpha)
            assert np.abs(2 * beta * error + alpha * (p - beta)).max() == pytest.approx(solution.residual[n], abs=1e-11)
            assert solution.residual[n] < tolerance and solution.bellman_residual[n] < 10 * tolerance
            assert np.abs((beta * error).sum(-1)).max() < tolerance
            chi2 = np.where(logged, p ** 2 / np.where(logged, beta, 1), 0).sum(-1) - logged.any(-1)
            assert np.abs((p * error).sum(-1) + half * chi2).max() < 10 * tolerance
            assert (solution.value[n] <= optimum + half / (1 - gamma) + tolerance).all()
        np.testing.assert_array_equal(cql_fixed_point(mdp, counts, ALPHAS / 2, gamma, "half_mse").q, solution.q)


@pytest.mark.slow
def test_huber_on_random_mdps():
    """Certified by outcome; p / beta in [1 - 1/alpha, 1 + 1/alpha] whatever the rewards."""
    for seed in (0, 1, 2, 4, 6, 8):  # of every gamma one or two
        mdp, counts, gamma = random_problem(np.random.default_rng(seed))
        beta, logged = empirical_policy(counts), counts > 0
        alphas = np.array([6.0, 1000.0]) if gamma == 0.99 else ALPHAS[::2]
        solution = cql_fixed_point(mdp, counts, alphas, gamma, "huber")
        assert solution.bellman_residual is None
        for n, alpha in enumerate(alphas):
            q, p = solution.q[n], softmax(solution.q[n])
            y, _ = backup(mdp, q, gamma)
            psi = (mdp.probability * np.clip(np.where(logged, q, 0)[..., None] - y, -1, 1)).sum(-1)
            assert np.abs(np.where(logged, beta * psi + alpha * (p - beta), 0)).max() < 1e-9 * (1 + alpha)
            if alpha > 0:
                assert np.abs(p[logged] / beta[logged] - 1).max() <= 1 / alpha + 1e-6


def test_a_tampered_solution_loses_its_certificate(islands, monkeypatch):
    mdp, counts = islands
    solution = cql_fixed_point(mdp, counts, [6.0], 0.99)
    q = solution.q.copy()
    q[0, 0, np.argmax(counts[0])] += 1e-3
    assert min(certificate(mdp, counts, q, [6.0], 0.99)) > 1e-4
    solve = fixed_point._solve_fixed_point
    monkeypatch.setattr(fixed_point, "_solve_fixed_point", lambda *args: solve(*args[:4], 2))
    with pytest.raises(CertificateError, match="No certified CQL fixed point at alpha = 6 .mse.: the stationarity"):
        cql_fixed_point(mdp, counts, [6.0], 0.99)
    assert not cql_fixed_point(mdp, counts, [6.0], 0.99, strict=False).certified.any()


# ------------------------------------------------------------------------------------------------ other ways to solve


@pytest.mark.parametrize("td_loss", ["mse", pytest.param("huber", marks=pytest.mark.slow)])
def test_each_state_against_scipy(td_loss):
    """With y fixed at the solution, no minimiser of a state's loss does better, and for the square all agree."""
    rng = np.random.default_rng(7)
    for _ in range(3):
        mdp, counts, _ = random_problem(rng)
        beta, gamma, alphas = empirical_policy(counts), 0.9, np.array([0.05, 1.0, 12.0, 200.0])
        solution = cql_fixed_point(mdp, counts, alphas, gamma, td_loss)
        for n, alpha in enumerate(alphas):
            y, _ = backup(mdp, solution.q[n], gamma)
            for s in np.flatnonzero(counts.any(-1)):
                logged = counts[s] > 0
                b, targets, weights = beta[s, logged], y[s, logged], mdp.probability[s, logged]

                def loss(q, b=b, targets=targets, weights=weights, alpha=alpha):
                    x = np.abs(q[:, None] - targets)
                    td = x ** 2 if td_loss == "mse" else np.where(x <= 1, x ** 2 / 2, x - 0.5)
                    return b @ (weights * td).sum(-1) + alpha * (q.max() + np.log(np.exp(q - q.max()).sum()) - b @ q)

                theirs = scipy.optimize.minimize(loss, (weights * targets).sum(-1), tol=1e-12)
                ours = solution.q[n, s, logged]
                assert loss(ours) <= theirs.fun + 1e-9 * (1 + abs(theirs.fun))
                if td_loss == "mse" and theirs.fun <= loss(ours) + 1e-10:
                    np.testing.assert_allclose(ours, theirs.x, atol=1e-3 * (1 + alpha))


def test_undamped_newton_would_fail_where_the_solver_does_not():
    """One state, one rare good action: full Newton steps from y overshoot into saturation and diverge."""
    beta, y, alpha_half = np.array([0.02, 0.98]), np.array([50.0, -100.0]), 6.0
    q = y.copy()
    for _ in range(50):
        p = np.exp(q - q.max()) / np.exp(q - q.max()).sum()
        hessian = np.diag(beta + alpha_half * p) - alpha_half * np.outer(p, p)
        q = q - np.linalg.solve(hessian, beta * (q - y) + alpha_half * (p - beta))
    p = np.exp(q - q.max()) / np.exp(q - q.max()).sum()
    assert np.abs(beta * (q - y) + alpha_half * (p - beta)).max() > 0.01
    P = [[[(1.0, 0, 50.0, True)], [(1.0, 0, -100.0, True)]]]
    assert cql_fixed_point(TabularMDP.from_P(P), beta[None], [2 * alpha_half], 0.9).certified.all()


def test_the_fixed_point_does_not_depend_on_where_the_search_starts(islands):
    mdp, counts = islands
    alphas, rng = [0.1, 6.0, 300.0], np.random.default_rng(0)
    solutions = [cql_fixed_point(mdp, counts, alphas, 0.99, initial_value=start).q
                 for start in (0.0, rng.normal(scale=1e3, size=(3, 225)), np.full(225, -5000.0))]
    logged = counts > 0
    for other in solutions[1:]:
        np.testing.assert_allclose(other[:, logged], solutions[0][:, logged], rtol=1e-8, atol=1e-7)


def test_the_map_contracts_and_its_derivative_is_a_distribution():
    """V -> max_a F(r + gamma P V): monotone, shifts with constants, gamma-Lipschitz; J by finite differences."""
    rng = np.random.default_rng(11)
    mdp, counts, _ = random_problem(rng, 8, 4, 400)
    gamma, alphas = 0.95, np.array([0.1, 5.0, 200.0])
    loss = SquaredLoss(mdp, gamma)
    problem = fixed_point._Problem(loss, empirical_policy(counts), alphas)

    def image(values):
        return problem.maxima(problem.minimisers(values, None, np.arange(3))[0])[:, problem.states]

    for _ in range(20):
        v, w = rng.normal(scale=20, size=(2, 3, 8))
        assert (np.abs(image(v) - image(w)).max(-1) <= gamma * np.abs(v - w).max(-1) + 1e-9).all()
        assert (image(np.maximum(v, w)) >= np.maximum(image(v), image(w)) - 1e-9).all()
    y = rng.normal(scale=3, size=(1, 4, 1))
    beta = rng.dirichlet(np.ones(4))[None]

    def row(shift):
        return fixed_point._Rows(y + shift, np.ones((1, 4, 1)), beta, np.array([5.0]))

    q = fixed_point._minimise(y[..., 0], row(0.0), loss)
    np.testing.assert_allclose(fixed_point._minimise(q, row(3.0), loss), q + 3, atol=1e-9)
    _, _, p, curvature = fixed_point._objective(q, row(0.0), loss)
    jacobian = np.stack([fixed_point._solve_hessian(curvature.sum(-1), p, row(0.0), np.eye(4)[[a]])[0] * beta[0]
                         for a in range(4)])
    assert (jacobian >= 0).all()
    np.testing.assert_allclose(jacobian.sum(-1), 1, atol=1e-12)
    for b in range(4):
        up, down = (fixed_point._minimise(q, row(sign * 1e-5 * np.eye(4)[b][:, None]), loss)[0] for sign in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, jacobian[:, b], atol=1e-7)


@pytest.mark.slow
def test_plain_iteration_ends_at_the_same_point():
    """No Newton outside, no Newton inside: bisection for the normaliser of each state, and the contraction."""
    mdp, counts, _ = random_problem(np.random.default_rng(3))
    beta, gamma, half = empirical_policy(counts), 0.3, 4.0
    logged, values = counts > 0, np.zeros(6)
    for _ in range(20):
        y = (mdp.probability * (mdp.reward + gamma * ~mdp.terminated * values[mdp.next_state])).sum(-1)
        for s in np.flatnonzero(logged.any(-1)):
            b, t = beta[s, logged[s]], y[s, logged[s]]

            def row(level, b=b, t=t):  # q + (half / b) exp(q - level) = t + half, increasing in q
                low, high = np.full(len(b), -1e4), t + half
                for _ in range(45):
                    mid = (low + high) / 2
                    over = mid + half / b * np.exp(np.minimum(mid - level, 600)) > t + half
                    low, high = np.where(over, low, mid), np.where(over, mid, high)
                return low

            low, high = t.min() - 100, t.max() + 100
            for _ in range(40):
                mid = (low + high) / 2
                low, high = (mid, high) if np.exp(row(mid) - mid).sum() > 1 else (low, mid)
            values[s] = row(low).max()
    np.testing.assert_allclose(cql_fixed_point(mdp, counts, [2 * half], gamma).value[0], values, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- limits


def test_small_alpha_approaches_support_restricted_q_learning_linearly(islands):
    mdp, counts = islands
    limit, logged = alpha_zero_limit(mdp, counts, 0.99), counts > 0
    np.testing.assert_array_equal(np.isneginf(limit), np.isneginf(cql_fixed_point(mdp, counts, 0.0, 0.99).q[0]))
    solution = cql_fixed_point(mdp, counts, [0.0, 1e-6, 1e-5, 1e-4], 0.99)
    distance = np.abs(solution.q[:, logged] - limit[logged]).max(-1)
    assert distance[0] < 1e-9
    np.testing.assert_allclose(distance[2:] / distance[1:-1], 10, rtol=0.02)
    np.testing.assert_allclose(limit[logged], value_iteration(mdp, 0.99)[logged], atol=1e-7)


def test_large_alpha_approaches_behaviour_cloning_like_one_over_alpha(islands):
    """The limit is p = beta; its value lies above the behaviour policy's, it is not the most pessimistic choice."""
    mdp, counts = islands
    limit, logged, beta = alpha_infinity_limit(mdp, counts, 0.99), counts > 0, empirical_policy(counts)
    solution = cql_fixed_point(mdp, counts, [1e4, 1e5, 1e6], 0.99)
    distance = np.abs(solution.q[:, logged] - limit[logged]).max(-1)
    np.testing.assert_allclose(distance[:-1] / distance[1:], 10, rtol=0.02)
    np.testing.assert_allclose(softmax(limit)[logged], beta[logged], atol=1e-10)
    seen = logged.any(-1)
    cloned = np.where(seen[:, None], beta, 0.25)
    v_beta, _ = policy_evaluation(mdp, cloned, 0.99)
    gain = state_value(limit)[seen] - v_beta[seen]
    assert gain.min() > -1e-9 and gain.max() > 1
    # V - V^beta = (I - gamma P^beta)^-1 (H - H_min), by a dense solve
    on = np.zeros((225, 225))
    np.add.at(on, (np.arange(225)[:, None, None], mdp.next_state), mdp.continuing * beta[:, :, None])
    log_beta = np.log(np.where(logged, beta, 1))
    surplus = -(beta * log_beta).sum(-1) + np.log(np.where(seen, beta.max(-1), 1))
    np.testing.assert_allclose(gain, np.linalg.solve(np.eye(225) - 0.99 * on, surplus)[seen], atol=1e-9)


def test_two_actions_flip_where_the_formula_says():
    """Action 1 is preferred iff its gain exceeds (alpha_half / 2)(1 / beta_1 - 1 / beta_2)."""
    for alpha_half, gain in [(0.5, 1.0), (6.0, 100.0), (3.0, 100.0), (40.0, 7.0)]:
        mdp = TabularMDP.from_P([[[(1.0, 0, gain, True)], [(1.0, 0, 0.0, True)]]])
        x = 2 * gain / alpha_half                                   # 1 / b - 1 / (1 - b) = x
        flip = (2 + x - np.sqrt(4 + x ** 2)) / (2 * x)
        below, at, above = (cql_fixed_point(mdp, [[share, 1 - share]], 2 * alpha_half, 0.99).q[0, 0]
                            for share in (flip * 0.999, flip, flip * 1.001))
        assert (np.argmax(below), np.argmax(above)) == (1, 0) and at[0] == pytest.approx(at[1], abs=1e-7)
        if gain == 100:                                             # the shares of the safe action against a hazard
            assert flip == pytest.approx({6.0: 0.029, 3.0: 0.015}[alpha_half], abs=5e-4)


def test_a_state_by_hand():
    """beta = (1/2, 1/2), alpha_half = 2, p = (e/(1+e), 1/(1+e)): Q = y + 2 - 4 p is 1 apart."""
    p = np.e / (1 + np.e)
    apart = 1 + 4 * (2 * p - 1)
    mdp = TabularMDP.from_P([[[(1.0, 0, apart, True)], [(1.0, 0, 0.0, True)]]])
    solution = cql_fixed_point(mdp, [[5, 5]], [2.0, 4.0], 0.9, "half_mse")
    np.testing.assert_allclose(solution.q[0, 0], [apart + 2 - 4 * p, 2 - 4 * (1 - p)], atol=1e-12)


def test_scaled_rewards_are_a_smaller_alpha_at_another_temperature():
    """Rewards times c at alpha: Q / c solves the problem at alpha / c with p = softmax(c Q)."""
    rng, c, half = np.random.default_rng(2), 10.0, 3.0
    P = random_table(rng)
    big = TabularMDP.from_P([[[(p, t, c * r, end) for p, t, r, end in o] for o in row] for row in P])
    weights = random_policies(rng, 8, 3)
    q = cql_fixed_point(big, weights, 2 * half, 0.9).q[0] / c
    reward, on = dense(P)
    y, p = reward + 0.9 * on @ q.max(-1), softmax(c * q)
    np.testing.assert_allclose(q, y + half / c * (1 - p / weights), atol=1e-9)


# ------------------------------------------------------------------------------------------ Eq. 1 and Eq. 2, given mu


@pytest.mark.parametrize("seed", range(5))
def test_equations_1_and_2_against_a_dense_solve_and_theorem_3_2(seed):
    rng = np.random.default_rng(seed)
    P = random_table(rng)
    mdp, (reward, on), gamma = TabularMDP.from_P(P), dense(P), 0.95
    beta, mu, policy = random_policies(rng, 3, 8, 3)
    chain = np.einsum("sat,tb->satb", on, policy).reshape(24, 24)
    for solve, shift in [(eq1_fixed_point, 0.0), (eq2_fixed_point, 1.0)]:
        for alpha in (0.0, 0.3, 5.0):
            expected = np.linalg.solve(np.eye(24) - gamma * chain, (reward - alpha * (mu / beta - shift)).ravel())
            np.testing.assert_allclose(solve(mdp, beta, mu, policy, alpha, gamma).ravel(), expected, atol=1e-9)
    true, _ = policy_evaluation(mdp, policy, gamma)
    estimate = (policy * eq2_fixed_point(mdp, beta, policy, policy, 5.0, gamma)).sum(-1)
    divergence = (policy ** 2 / beta).sum(-1) - 1
    uncertainty = np.linalg.solve(np.eye(8) - gamma * np.einsum("sa,sat->st", policy, on), divergence)
    np.testing.assert_allclose(estimate - true, -5.0 * uncertainty, rtol=1e-9)


def test_equation_2_outside_the_data():
    data = Transitions(*map(np.array, ([0, 0, 1], [0, 1, 0], [1.0, 0.0, 2.0], [1, 2, 3], [False, False, True],
                                       [False] * 3)))
    mdp, counts = empirical_mdp(data, 4, 2)
    first = np.tile([1.0, 0.0], (4, 1))
    q = eq2_fixed_point(mdp, counts, first, first, 1.0, 0.5)
    # state 1: beta = mu, so Q = 2; state 0: mu / beta - 1 = (1, -1); state 2 has no data: V = 0; state 3 is terminal
    np.testing.assert_array_equal(q, [[1 + 0.5 * 2 - 1, 1.0], [2.0, -np.inf], [-np.inf, -np.inf], [0, 0]])
    beyond = np.tile([0.0, 1.0], (4, 1))
    with pytest.raises(ValueError, match="Policy 0 takes action 1 in state 1, of which this .empirical. model"):
        eq1_fixed_point(mdp, counts, beyond, first, 1.0, 0.5)
    full = TabularMDP.from_P(random_table(np.random.default_rng(0), 4, 2))
    with pytest.raises(ValueError, match="mu has weight on action 1 of state 1, which the data lack"):
        eq1_fixed_point(full, counts, beyond, first, 1.0, 0.5)


# --------------------------------------------------------------------------------------------- termination, wrong use


def test_termination_is_masked_by_outcome():
    """Taxi's last drop-off leads to an ordinary state with a value of its own, which must not be bootstrapped."""
    taxi = gymnasium.make("Taxi-v4").unwrapped
    true, rng = TabularMDP.from_env(taxi), np.random.default_rng(0)
    greedy = np.eye(6)[np.argmax(value_iteration(true, 0.99), -1)]
    starts = np.flatnonzero(true.start)[::6]
    parts = [roll(taxi.P, 0.7 * greedy + 0.3 / 6, s, 60, 1, rng) for s in starts]
    data = Transitions(*map(np.concatenate, zip(*(vars(part).values() for part in parts))))
    mdp, counts = empirical_mdp(data, 500, 6)
    q = cql_fixed_point(mdp, counts, ALPHAS, 0.99).q
    for s, a in np.argwhere((mdp.terminated & (mdp.probability > 0)).any(-1)):
        assert q[0, s, a] == pytest.approx(20)
    _, mean = backup(mdp, q[4], 0.99)
    beta, p = empirical_policy(counts), softmax(q[4])
    logged = counts > 0
    np.testing.assert_allclose(q[4][logged], (mean + 3 * (1 - p / np.where(logged, beta, 1)))[logged], atol=1e-8)


@pytest.mark.slow
def test_fifty_by_fifty_in_under_a_minute():
    mdp, counts = grid_data(300, 200, desc=envs.generate_random_map(50, 0.1, seed=1))
    started = time.perf_counter()
    assert cql_fixed_point(mdp, counts, np.logspace(-2, 3, 4), 0.99).certified.all()
    assert time.perf_counter() - started < 60


def test_no_data_at_all():
    mdp = TabularMDP.from_P([[[(1.0, 0, 1.0, False)]], [[(1.0, 1, 0.0, True)]]])
    solution = cql_fixed_point(mdp, np.zeros((2, 1)), 1.0, 0.9)
    np.testing.assert_array_equal(solution.q[0], [[-np.inf], [0.0]])
    assert (solution.value == 0).all()


@pytest.mark.parametrize("change, message", [
    ({"gamma": 1.0}, "needs gamma < 1"),
    ({"gamma": -0.1}, "gamma must lie in 0..1"),
    ({"alphas": [-1.0]}, "alpha must be finite and not negative"),
    ({"alphas": [[1.0]]}, "alphas must be a number or a list"),
    ({"td_loss": "l1"}, "td_loss must be one of mse, half_mse, huber, got 'l1'"),
    ({"counts": np.ones((3, 2))}, "counts must be .S, A. = .2, 2."),
    ({"counts": -np.ones((2, 2))}, "not negative"),
    ({"counts": np.ones((2, 2))}, "State 0, action 1 has data but no model"),
])
def test_wrong_arguments(change, message):
    data = Transitions(*map(np.array, ([0, 1], [0, 1], [1.0, 0.0], [1, 0], [False, True], [False, False])))
    mdp, counts = empirical_mdp(data, 2, 2)
    arguments = {"counts": counts, "alphas": [1.0], "gamma": 0.9, "td_loss": "mse", **change}
    with pytest.raises(ValueError, match=message):
        cql_fixed_point(mdp, **arguments)


def test_alpha_in_half_square_units():
    np.testing.assert_array_equal(half_square_alpha([2.0, 6.0], "mse"), [1.0, 3.0])
    assert half_square_alpha(2.0, "half_mse") == half_square_alpha(2.0, "huber") == 2.0


def test_a_level_that_rounding_hides_is_not_certified(islands):
    """At alpha 1e12 the residual's tolerance is 1e3: only the level, in which alpha cancels, tells a wrong Q."""
    mdp, counts = islands
    solution = cql_fixed_point(mdp, counts, [1e3, 1e12], 0.99, strict=False)
    assert solution.certified.tolist() == [True, False]
    shifted = solution.q[:1] + 0.01
    assert certificate(mdp, counts, shifted, [1e3], 0.99)[1] > 1e-5 > 1e-9 > solution.level_residual[0]
    with pytest.raises(CertificateError, match="level"):
        cql_fixed_point(mdp, counts, [1e12], 0.99)
