"""The exact fixed point of CQL(H) on a finite MDP: solver, certificate, and closed forms at its limits.

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning" (arXiv 2006.04779), Eq. 4, tabular, with
a hard max in the target:

    min_Q  sum_s d(s) { E_{a ~ beta} td(Q(s,a) - y(s,a)) + alpha [ logsumexp_a Q(s,a) - E_{a ~ beta} Q(s,a) ] },
    y(s,a) = r + gamma (1 - terminated) V(s'),   V(s') = max_a Q(s',a) held fixed.

With p = softmax Q(s,.) over the logged actions, every logged pair of a solution satisfies

    d(s) { beta(a|s) td'(Q - y) + alpha (p(a|s) - beta(a|s)) } = 0.

The weight d(s) of a state cancels: data enter through beta = counts / row sums and through the model alone. For the
squared error this reads Q = E[y] + alpha_half (1 - p / beta), alpha_half being alpha in front of a *half* square.

What has no finite answer is left out, not invented. An action never logged in s has no data term and would be pushed
down for ever, so Q = -inf there and p is over the logged actions. A state without data has V = 0; how many there
are is reported. Terminal rows are 0.

Axes: N alpha, S state, A action, K outcome, R = N x (states with data), one small convex problem each. float64.
"""

from dataclasses import dataclass

import numpy as np

from cql.exact.tabular import (
    TabularMDP,
    _check_gamma,
    _policies,
    _solve,
    bellman_backup,
    greedy_actions,
    greedy_policy,
    state_value,
    value_iteration,
)

TD_LOSSES = ("mse", "half_mse", "huber")
# Huber: quadratic terms added to the loss in turn, each solution starting the next; (ridge, tolerance on V, most steps)
HUBER_RIDGES = [(10.0 ** (k / 2), 1e-2, 20) for k in range(2, -13, -1)] + [(1e-6, 1e-5, 2000), (0.0, 1e-11, 2000)]
CERTIFICATE = 1e-9         # a residual must be below this times (1 + alpha)


class CertificateError(ArithmeticError):
    """The solver stopped at something that is no solution."""


@dataclass(frozen=True, eq=False)
class Solution:
    """CQL(H) fixed points, one per alpha, with their certificates.

    Args:
        alphas: [N], in the units of `td_loss`.
        q: [N, S, A]; -inf on pairs without data, 0 in terminal states.
        residual: [N], max over logged pairs of |beta td'(Q - y) + alpha (p - beta)|, y recomputed from `q`.
        level_residual: [N], max over states of |sum_a beta td'(Q - y)|, in which alpha cancels: at a large alpha rounding
            in alpha (p - beta) would hide a wrong level of Q from the residual.
        bellman_residual: [N], max over logged pairs of |Q - T Q| in the units of Q, T Q = E[y] + alpha_half (1 - p/beta).
            None for the Huber loss, which has no such form.
        beta: [S, A], the data's action frequencies; rows without data are 0.
        states_without_data: how many states have no data and are not terminal; there V = 0.
        iterations: outer steps taken.
        td_loss: "mse" | "half_mse" | "huber".
    """

    alphas: np.ndarray
    q: np.ndarray
    residual: np.ndarray
    level_residual: np.ndarray
    bellman_residual: np.ndarray | None
    beta: np.ndarray
    states_without_data: int
    iterations: int
    td_loss: str

    @property
    def value(self) -> np.ndarray:
        """V = max_a Q [N, S], 0 where a state has no data."""
        return state_value(self.q)

    @property
    def certified(self) -> np.ndarray:
        """[N] bool: residual below 1e-9 (1 + alpha), level_residual below 1e-9 (1 + max |Q|)."""
        size = np.abs(np.where(np.isfinite(self.q), self.q, 0.0)).max((1, 2))
        return (self.residual <= CERTIFICATE * (1 + self.alphas)) & (self.level_residual <= CERTIFICATE * (1 + size))


def half_square_alpha(alphas, td_loss):
    """alpha in front of a half square (alpha_half, the paper's) from alpha in the units of `td_loss`.

    For "huber" the same number: inside its knee that loss is the half square.

    Raises:
        ValueError: an unknown td_loss, or an alpha that is negative or not finite.
    """
    if td_loss not in TD_LOSSES:
        raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, got {td_loss!r}.")
    alphas = np.asarray(alphas, dtype=np.float64)
    if not (np.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"alpha must be finite and not negative, got {alphas}.")
    return alphas / 2 if td_loss == "mse" else alphas


def empirical_policy(counts):
    """beta [S, A]: counts (or any weights) divided by their row sums; rows without data stay 0.

    Raises:
        ValueError: counts are negative, not finite, or no [S, A] array.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"counts must be [S, A], finite and not negative; got shape {counts.shape}.")
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def cql_fixed_point(mdp: TabularMDP, counts, alphas, gamma, td_loss="mse", strict=True, initial_value=None) -> Solution:
    """Solve CQL(H), Eq. 4, for all alphas at once.

    The squared losses have exactly one solution: for fixed y each state is strictly convex on its logged actions, and
    max_a of its minimiser is a gamma-contraction of V. Newton steps on V = max_a Q[V] use that the derivative of a
    minimiser's maximum is a distribution over the logged actions, so that a step is one policy evaluation; where
    they do not come closer, a step of the contraction does.

    The Huber loss (knee at 1) is averaged over the outcomes' own targets, not taken of their mean. It is convex, not
    strictly: a solution is certified the same way, but it need not be the only one. A small quadratic term, made
    smaller step by step and then dropped, chooses; without it this loss has no contraction to fall back on.

    Args:
        mdp: the model in the target, as a rule `empirical_mdp`'s; the true one gives CQL without sampling error.
        counts: [S, A], or any weights: they matter through beta alone.
        alphas: [N] (or one number), in the units of `td_loss`. 0 means the limit alpha -> 0+.
        gamma: in [0, 1).
        strict: raise if a certificate fails; else read `Solution.certified`.
        initial_value: [N, S] or [S], where to start from; default 0. Without effect on the squared losses' result.

    Raises:
        ValueError: arguments out of range, gamma = 1, a logged pair without a model.
        CertificateError: a certificate fails (see `Solution.certified`), and `strict`: above alpha of about 1e6
            float64 does not hold the solution.
    """
    alphas = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if alphas.ndim != 1 or alphas.size == 0:
        raise ValueError(f"alphas must be a number or a list [N] of numbers, got shape {alphas.shape}.")
    beta = _checked_beta(mdp, counts, gamma)
    problem = _Problem(mdp, beta, half_square_alpha(alphas, td_loss), gamma, td_loss == "huber")
    value = np.zeros((alphas.size, mdp.num_states)) if initial_value is None else initial_value
    value = np.broadcast_to(value, (alphas.size, mdp.num_states))
    q_logged, iterations = None, 0
    for ridge, tolerance, max_steps in HUBER_RIDGES if problem.huber else [(None, 0.0, 2000)]:
        problem.ridge = ridge
        q_logged, steps = _solve_fixed_point(problem, value, q_logged, tolerance, max_steps)
        value, iterations = problem.maxima(q_logged, mdp.num_states), iterations + steps

    q = np.full((alphas.size, *beta.shape), -np.inf)
    q[:, mdp.terminal] = 0
    q[:, problem.states] = np.where(problem.logged, q_logged, -np.inf)
    residual, bellman = certificate(mdp, beta, q, alphas, gamma, td_loss)
    solution = Solution(alphas, q, residual, level_residual(mdp, beta, q, gamma, td_loss), bellman, beta,
                        int((~beta.any(-1) & ~mdp.terminal).sum()), iterations, td_loss)
    if strict and not solution.certified.all():
        worst = int(np.argmax(np.where(solution.certified, -1, residual)))
        raise CertificateError(f"No certified CQL fixed point at alpha = {alphas[worst]:g} ({td_loss}): the stationarity "
                               f"residual is {residual[worst]:.3g}, that of the level {solution.level_residual[worst]:.3g}.")
    return solution


def certificate(mdp: TabularMDP, counts, q, alphas, gamma, td_loss="mse"):
    """(residual [N], bellman_residual [N] or None) of any q [N, S, A], as defined at `Solution`.

    Written from the equations and not from the solver: what it finds small is a solution, however it was come by.
    """
    beta, logged, slope, error = _td_slopes(mdp, counts, q, gamma, td_loss)
    alphas, q = np.asarray(alphas, dtype=np.float64), np.asarray(q, dtype=np.float64)
    shifted = np.where(logged, q, -np.inf)
    shifted = shifted - np.where(logged.any(-1), shifted.max(-1), 0.0)[..., None]
    p = np.exp(shifted)
    p /= np.maximum(p.sum(-1, keepdims=True), 1)                                                     # [N, S, A]
    bellman = None
    if error is not None:
        ratio = np.divide(p, beta, out=np.zeros_like(p), where=beta > 0)
        shift = half_square_alpha(alphas, td_loss)[:, None, None] * (1 - ratio)
        bellman = np.where(logged, np.abs(error - shift), 0.0).max((1, 2))
    stationarity = beta * slope + alphas[:, None, None] * (p - beta)
    return np.where(logged, np.abs(stationarity), 0.0).max((1, 2)), bellman


def level_residual(mdp: TabularMDP, counts, q, gamma, td_loss="mse"):
    """[N]: max over states of |sum_a beta td'(Q - y)| of any q [N, S, A], as defined at `Solution`."""
    beta, logged, slope, _ = _td_slopes(mdp, counts, q, gamma, td_loss)
    return np.abs(np.where(logged, beta * slope, 0.0).sum(-1)).max(-1)


def _td_slopes(mdp, counts, q, gamma, td_loss):
    """beta [S, A], logged [S, A], td' averaged over outcomes [N, S, A], and Q - E[y] (None for Huber), y made from q."""
    beta = _checked_beta(mdp, counts, gamma)
    logged = (beta > 0) & ~mdp.terminal[:, None]                                                     # [S, A]
    values = np.where(logged.any(-1), state_value(np.asarray(q, dtype=np.float64)), 0.0)             # [N, S]
    q = np.where(logged, q, 0.0)
    if td_loss == "huber":
        targets = mdp.reward + gamma * np.where(mdp.terminated, 0.0, values[:, mdp.next_state])      # [N, S, A, K]
        return beta, logged, (mdp.probability * np.clip(q[..., None] - targets, -1, 1)).sum(-1), None
    error = q - bellman_backup(mdp, values, gamma)
    return beta, logged, (2 if td_loss == "mse" else 1) * error, error


def _checked_beta(mdp, counts, gamma):
    _check_gamma(gamma)
    if gamma == 1:
        raise ValueError("The CQL fixed point needs gamma < 1: that it exists and is unique rests on the contraction.")
    beta = empirical_policy(counts)
    if beta.shape != mdp.modelled.shape:
        raise ValueError(f"counts must be [S, A] = {mdp.modelled.shape}, got {beta.shape}.")
    unknown = (beta > 0) & ~mdp.modelled
    if unknown.any():
        s, a = np.argwhere(unknown)[0]
        raise ValueError(f"State {s}, action {a} has data but no model: counts and MDP are of different data sets.")
    return beta


# -------------------------------------------------------------------------------------------- closed forms and limits


def alpha_zero_limit(mdp: TabularMDP, counts, gamma):
    """alpha -> 0+: Q-learning restricted to the logged actions, Q [S, A] (-inf outside, 0 in terminal states).

    Value iteration, then one exact evaluation of its greedy policy. Independent of `cql_fixed_point`.
    """
    beta = _checked_beta(mdp, counts, gamma)
    logged = (beta > 0) & ~mdp.terminal[:, None]
    q = value_iteration(mdp, gamma, support=logged)
    greedy = np.where(logged.any(-1, keepdims=True), greedy_policy(q), 0.0)
    values = _logged_values(mdp, beta, greedy, (greedy * mdp.expected_reward).sum(-1), gamma)
    return _outside(mdp, logged, bellman_backup(mdp, values, gamma))


def alpha_infinity_limit(mdp: TabularMDP, counts, gamma):
    """alpha -> infinity: p -> beta and Q -> E_beta[y] + H(beta) + log beta. Q [S, A] (-inf outside, 0 in terminal states).

    With V = max_a Q the level solves V = V^beta + (I - gamma P^beta)^-1 (H - H_min), H_min = -log max_a beta: above the
    value of the behaviour policy wherever beta is not uniform over its support.
    """
    beta = _checked_beta(mdp, counts, gamma)
    logged = (beta > 0) & ~mdp.terminal[:, None]
    log_beta = np.log(np.where(logged, beta, 1.0))
    entropy = -(beta * log_beta).sum(-1)
    top = np.where(logged.any(-1), np.where(logged, log_beta, -np.inf).max(-1), 0.0)                 # -H_min
    values = _logged_values(mdp, beta, beta, (beta * mdp.expected_reward).sum(-1) + entropy + top, gamma)
    level = (beta * bellman_backup(mdp, values, gamma)).sum(-1) + entropy
    return _outside(mdp, logged, level[:, None] + log_beta)


def eq1_fixed_point(mdp: TabularMDP, counts, mu, policy, alphas_half, gamma):
    """Fixed point of the paper's Eq. 1 with the actions pushed down, mu [S, A], given:

        min_Q alpha_half E_mu[Q] + E_beta[(Q - y)^2] / 2   =>   Q = r + gamma P V^ - alpha_half mu / beta,   V^ = E_policy[Q].

    Args:
        counts: [S, A] or any weights of the data; only their beta matters.
        mu, policy: [S, A]; in states with data only logged actions may have weight.
        alphas_half: one number or [N], in front of a *half* square (the paper's; half of this project's default alpha).

    Returns:
        Q [S, A] or [N, S, A]; -inf on pairs without data, 0 in terminal states. States without data have V = 0.

    Raises:
        ValueError: arguments out of range; mu or policy with weight on an unlogged action, where Q has no finite value.
    """
    return _penalised(mdp, counts, mu, policy, alphas_half, gamma, shift=0.0)


def eq2_fixed_point(mdp: TabularMDP, counts, mu, policy, alphas_half, gamma):
    """As `eq1_fixed_point` for the paper's Eq. 2, which adds back E_beta[Q]: mu / beta - 1 in place of mu / beta."""
    return _penalised(mdp, counts, mu, policy, alphas_half, gamma, shift=1.0)


def _penalised(mdp, counts, mu, policy, alphas_half, gamma, shift):
    beta = _checked_beta(mdp, counts, gamma)
    logged = (beta > 0) & ~mdp.terminal[:, None]
    mu, policy = (_on_support(mdp, logged, x, name) for x, name in [(mu, "mu"), (policy, "policy")])
    alphas = half_square_alpha(alphas_half, "half_mse")
    ratio = np.divide(mu, beta, out=np.zeros_like(beta), where=logged) - shift * logged              # [S, A]
    reward = np.where(logged, mdp.expected_reward, 0.0) - alphas[..., None, None] * ratio            # [(N,) S, A]
    values = _logged_values(mdp, beta, policy, (policy * reward).sum(-1), gamma)
    q = reward + bellman_backup(mdp, values, gamma) - mdp.expected_reward
    return _outside(mdp, logged, q)


def _on_support(mdp, logged, policy, name):
    """policy [S, A] with the rows of states without data set to 0."""
    policies, single = _policies(mdp, policy)
    if not single:
        raise ValueError(f"{name} must be [S, A], got shape {np.shape(policy)}.")
    seen = logged.any(-1, keepdims=True)
    outside = (policies[0] > 0) & ~logged & seen
    if outside.any():
        s, a = np.argwhere(outside)[0]
        raise ValueError(f"{name} has weight on action {a} of state {s}, which the data lack: Q has no finite value there.")
    return np.where(seen, policies[0], 0.0)


def _logged_values(mdp, beta, policy, reward, gamma):
    """V = reward + gamma P^policy V where there are data, else 0. policy [S, A], reward [(N,) S] -> [(N,) S]."""
    known = beta.any(-1) & ~mdp.terminal
    weight = gamma * mdp.edges.under((policy * known[:, None])[None])                                # [E, 1]
    reward = np.where(known, reward, 0.0)
    right = np.atleast_2d(reward).T                                                                  # [S, N]
    values = _solve(mdp.edges, np.broadcast_to(weight, (len(weight), right.shape[1])), right).T
    return values.reshape(reward.shape)


def _outside(mdp, logged, q):
    return np.where(mdp.terminal[:, None], 0.0, np.where(logged, q, -np.inf))


# ------------------------------------------------------------------------------------------------------- the outer loop


class _Problem:
    """The per-state problems of `states` [S'] for all alphas, and the map V -> Q between them."""

    def __init__(self, mdp, beta, alpha, gamma, huber):
        self.mdp, self.alpha, self.gamma, self.huber = mdp, alpha, gamma, huber
        self.ridge = None
        self.states = np.flatnonzero(beta.any(-1) & ~mdp.terminal)
        self.beta = beta[self.states]                                                                # [S', A]
        self.logged = self.beta > 0
        # the squared error depends on the mean target alone: one "outcome" of probability 1
        self.probability = mdp.probability[self.states] if huber else self.logged[..., None].astype(float)

    def targets(self, values):
        """values [N, S] -> [N, S', A, K] (K = 1 for the squared error)."""
        if not self.huber:
            return bellman_backup(self.mdp, values, self.gamma)[:, self.states, :, None]
        next_values = np.where(self.mdp.terminated, 0.0, values[:, self.mdp.next_state])[:, self.states]
        return self.mdp.reward[self.states] + self.gamma * next_values

    def rows(self, members):
        """beta [R, A], probability [R, A, K], alpha [R] for the members [n], R = n * S'."""
        def repeat(x):
            return np.broadcast_to(x, (len(members), *x.shape)).reshape(-1, *x.shape[1:])
        return repeat(self.beta), repeat(self.probability), np.repeat(self.alpha[members], self.states.size)

    def minimisers(self, values, q, members):
        """Q given V: values [n, S], a first guess q [n, S', A] or None -> (Q [n, S', A], targets)."""
        targets = self.targets(values)
        beta, probability, alpha = self.rows(members)
        y = targets.reshape(-1, *targets.shape[2:])                                                  # [R, A, K]
        guess = _first_guess(y, probability, beta, alpha) if q is None else q.reshape(beta.shape)
        return _minimise(guess, y, probability, beta, alpha, self.ridge).reshape(targets.shape[:3]), targets

    def maxima(self, q, num_states):
        """V = max_a Q on the logged actions, 0 elsewhere: [n, S', A] -> [n, S]."""
        values = np.zeros((len(q), num_states))
        values[:, self.states] = np.where(self.logged, q, -np.inf).max(-1)
        return values

    def newton_step(self, q, targets, gap, members):
        """(I - gamma J)^-1 gap, J the derivative of max_a Q by the next values: [n, S'], gap [n, S] -> [n, S]."""
        beta, probability, alpha = self.rows(members)
        q, y = q.reshape(beta.shape), targets.reshape(-1, *targets.shape[2:])
        best = np.eye(beta.shape[1])[greedy_actions(np.where(beta > 0, q, -np.inf))]                 # [R, A]
        _, curvature, _, p, inside = _terms(q, y, probability, beta, alpha, self.ridge)
        if self.ridge is not None:             # a minimiser on a flat stretch does not move with its targets
            curvature = curvature + 1e-14
        sensitivity = _solve_hessian(curvature, p, beta, alpha, best) * beta                         # [R, A]
        chain = np.zeros((len(members), *self.mdp.continuing.shape))                                 # [n, S, A, K]
        weight = (sensitivity[..., None] * inside).reshape(targets.shape)
        # `inside` holds the probabilities of outcomes for Huber; for the square it is 1, K = 1
        chain[:, self.states] = weight * (~self.mdp.terminated if self.huber else self.mdp.continuing)[self.states]
        edges = self.mdp.edges
        scale = np.maximum(np.abs(gap).max(-1), 1e-300)                # so that the tolerance is relative to the gap
        # five digits are enough of a step, and come faster by iteration unless gamma is very near 1
        step = _solve(edges, self.gamma * edges.collect(chain), (gap / scale[:, None]).T, tolerance=1e-5,
                      dense_states=64 if self.gamma <= 0.999 else None)
        return step.T * scale[:, None]


def _solve_fixed_point(problem, values, guess, tolerance, max_steps, patience=8):
    """Q [N, S', A] with V = max_a Q[V] to `tolerance`, or to rounding; and the steps taken.

    Newton steps, like policy iteration, may pass through worse points on their way. So each member has `patience` steps
    to come closer than its best point so far; if it does not, it goes back there and takes one step of the contraction,
    which cannot fail to come closer.
    """
    num_states = problem.mdp.num_states
    values = np.array(values, dtype=np.float64)
    values[:, np.setdiff1d(np.arange(num_states), problem.states)] = 0.0
    members, step = np.arange(len(values)), 0
    q, y = problem.minimisers(values, guess, members)
    best_q, best_gap, best_step = q.copy(), np.full(len(values), np.inf), np.zeros(len(values), dtype=int)
    while True:
        image = problem.maxima(q, num_states)                                                        # max_a Q[V]
        gap = image - values                                                                         # [n, S]
        size = np.abs(gap).max(-1)
        closer = size < 0.99 * best_gap[members]
        best_q[members[closer]], best_gap[members[closer]], best_step[members[closer]] = q[closer], size[closer], step
        idle = step - best_step[members]
        scale = 1 + np.abs(image).max(-1) + problem.alpha[members]
        # four idle steps this close to a solution: rounding is coarser than 1e-14 here, and the certificate will tell
        done = (best_gap[members] <= np.maximum(tolerance, 1e-14 * scale)) | (
            (idle >= 4) & (best_gap[members] <= 1e-11 * scale))
        if done.all() or step == max_steps:
            return best_q, step
        step += 1
        members, q, y, values, gap, idle = (x[~done] for x in (members, q, y, values, gap, idle))
        values = values + problem.newton_step(q, y, gap, members)
        stuck = idle >= patience
        if stuck.any():
            q[stuck] = best_q[members[stuck]]
            values[stuck] = problem.maxima(q[stuck], num_states)
            best_gap[members[stuck]] = np.inf                                # from here on, the best is what comes of it
        q, y = problem.minimisers(values, q, members)


# ---------------------------------------------------------------------------------------- the convex problem of a state


def _terms(q, y, probability, beta, alpha, ridge):
    """Value [R], curvature of the TD term [R, A] (over beta), gradient [R, A], p [R, A], curvature by outcome [R, A, K],
    of  sum_a beta_a E_k td(q_a - y_ak) + alpha [logsumexp q - beta . q]  over the logged actions.

    td(x) is x^2 / 2 if ridge is None, else Huber's loss plus ridge x^2 / 2."""
    error = q[..., None] - y                                                                         # [R, A, K]
    if ridge is None:
        inside, slope, loss = probability, error, error ** 2 / 2
    else:
        inside = probability * ((np.abs(error) < 1) + ridge)
        clipped = np.clip(error, -1, 1)
        slope, loss = clipped + ridge * error, clipped * (error - clipped / 2) + ridge * error ** 2 / 2
    slope, loss = (probability * slope).sum(-1), (probability * loss).sum(-1)                        # [R, A]
    masked = np.where(beta > 0, q, -np.inf)
    top = masked.max(-1)
    p = np.exp(masked - top[:, None])
    total = p.sum(-1)
    p /= total[:, None]
    # relative to the maximum, so that the level of q cancels before it can round
    gap = np.log(total) - (beta * np.where(beta > 0, q - top[:, None], 0.0)).sum(-1)
    value = (beta * loss).sum(-1) + alpha * gap
    return value, inside.sum(-1), beta * slope + alpha[:, None] * (p - beta), p, inside


def _solve_hessian(curvature, p, beta, alpha, right):
    """[beta w + alpha (diag p - p p^T)]^-1 right, all [R, A], by Sherman-Morrison (diagonal minus rank one)."""
    diagonal = beta * curvature + alpha[:, None] * p
    diagonal = np.where(diagonal > 0, diagonal, 1.0)                         # off the support: right is 0 there
    first = right / diagonal
    # 1 - alpha sum p^2 / diagonal, written without cancellation
    rest = (p * beta * curvature / diagonal).sum(-1)
    rest = np.where(alpha > 0, rest, 1.0)
    return first + p / diagonal * (alpha * (p * first).sum(-1) / rest)[:, None]


def _minimise(q, y, probability, beta, alpha, ridge, max_steps=300):
    """Minimisers [R, A] by damped Newton from q: full steps overshoot where the softmax is saturated (alpha_half >= 6)."""
    q = np.where(beta > 0, q, 0.0)
    rows = np.arange(len(q))
    for _ in range(max_steps):
        at = (y[rows], probability[rows], beta[rows], alpha[rows])
        here = q[rows]
        value, curvature, gradient, p, _ = _terms(here, *at, ridge)
        # what rounding leaves of a gradient: q is known to 1e-16 |q|, hence p to 1e-16 |q| p
        size = 1 + np.abs(here).max(-1, keepdims=True) + np.abs(at[0]).max((-1, -2))[:, None]
        scale = (at[2] * (1 + (ridge or 0)) + at[3][:, None] * p) * size + at[3][:, None] * (p + at[2])
        going = (np.abs(gradient) > 2e-15 * scale).any(-1)
        if not going.any():
            break
        rows, here, value, curvature, gradient, p = (
            x[going] for x in (rows, here, value, curvature, gradient, p))
        at = tuple(x[going] for x in at)
        if ridge == 0:      # where Huber's loss is straight: a little curvature, vanishing with the gradient
            curvature = curvature + np.minimum(1e-4, np.abs(gradient).max(-1))[:, None] + 1e-14
        direction = -_solve_hessian(curvature, p, at[2], at[3], gradient)
        slope = (gradient * direction).sum(-1)
        step, moved = _line_search(here, direction, value, slope, at, ridge)
        q[rows] = step
        rows = rows[moved]
        if not rows.size:
            break
    return q


def _line_search(q, direction, value, slope, at, ridge, halvings=60):
    """The first of q + t direction, t = 1, 1/2, 1/4, ... that does not go uphill; and whether that moved at all.

    The loss must fall as Armijo asks, up to its rounding; and where rounding hides that, its slope tells: having passed
    the valley's floor, the way up must be less steep than the way down was."""
    result, t = q.copy(), np.ones(len(q))
    open_rows = np.arange(len(q))
    for _ in range(halvings):
        part = tuple(x[open_rows] for x in at)
        trial = q[open_rows] + t[open_rows, None] * direction[open_rows]
        new, _, gradient, _, _ = _terms(trial, *part, ridge)
        slack = 1e-14 * (np.abs(value[open_rows]) + np.abs(new))
        good = ((new <= value[open_rows] + 1e-4 * t[open_rows] * slope[open_rows] + slack)
                & ((gradient * direction[open_rows]).sum(-1) <= -0.9 * slope[open_rows]))
        result[open_rows[good]] = trial[good]
        open_rows = open_rows[~good]
        if not open_rows.size:
            break
        t[open_rows] /= 2
    moved = (result != q).any(-1)
    return result, moved


def _first_guess(y, probability, beta, alpha):
    """Both ends of alpha are known in closed form: Q = E[y], and Q = E_beta[y] + H(beta) + log beta. The lower wins."""
    mean = (probability * y).sum(-1)                                                                 # [R, A]
    log_beta = np.log(np.where(beta > 0, beta, 1.0))
    level = (beta * mean).sum(-1) - (beta * log_beta).sum(-1)
    far = level[:, None] + log_beta
    lower = (_terms(far, y, probability, beta, alpha, None)[0] < _terms(mean, y, probability, beta, alpha, None)[0])
    return np.where(lower[:, None], far, mean)
