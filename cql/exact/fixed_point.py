"""The exact solution of CQL(H) on a finite MDP: the equation, its solution, a certificate, closed forms at its limits.

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning" (arXiv 2006.04779), Eq. 4, tabular, with
a hard max in the target:

    min_Q  sum_s d(s) { E_{a ~ beta} td(Q(s,a) - y(s,a)) + alpha [ logsumexp_a Q(s,a) - E_{a ~ beta} Q(s,a) ] },
    y(s,a) = r + gamma (1 - terminated) V(s'),   V(s') = max_a Q(s',a), not differentiated.

With p = softmax Q(s,.) over the logged actions, every logged pair of a solution satisfies

    d(s) { beta(a|s) td'(Q - y) + alpha (p(a|s) - beta(a|s)) } = 0.

The weight d(s) of a state cancels: data enter through beta = counts / row sums and through the model alone. For the
squared error this reads Q = E[y] + alpha_half (1 - p / beta), alpha_half being alpha in front of a *half* square.

Pairs without a finite answer get none. An out-of-distribution (OOD) action, never logged in its state, has no data term
and would be pushed down for ever: Q = -inf there. A state without data has V = 0. Terminal rows are 0.

Axes: N alpha, S state, S' state with data, A action, K outcome, R = N S' (one small convex problem each). float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cql.exact import huber
from cql.exact.dynamic_programming import (
    bellman_backup,
    checked_policies,
    greedy_actions,
    greedy_policy,
    solve_linear,
    state_value,
    value_iteration,
)
from cql.exact.mdp import TabularMDP, check_gamma

TD_LOSSES = ("mse", "half_mse", "huber")
CERTIFICATE = 1e-9  # a residual must be below this times (1 + alpha)


class CertificateError(ArithmeticError):
    """The solver stopped at a Q that is no solution."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Solutions of CQL(H), one per alpha, with their certificates.

    In the level residual alpha cancels: at large alpha, rounding of alpha (p - beta) would hide an offset common to all
    Q(s,.). The Huber loss has no Bellman residual.
    """

    alphas: np.ndarray                      # [N], in the units of the TD loss
    q: np.ndarray                           # [N, S, A]; -inf on pairs without data, 0 in terminal states
    residual: np.ndarray                    # [N], max over logged pairs of |beta td'(Q - y) + alpha (p - beta)|
    level_residual: np.ndarray              # [N], max over states of |sum_a beta td'(Q - y)|
    bellman_residual: np.ndarray | None     # [N], max over logged pairs of |Q - E[y] - alpha_half (1 - p / beta)|

    @property
    def value(self) -> np.ndarray:
        """V = max_a Q [N, S], 0 where a state has no data."""
        return state_value(self.q)

    @property
    def certified(self) -> np.ndarray:
        """[N] bool: residual below 1e-9 (1 + alpha), level_residual below 1e-9 (1 + max |Q|)."""
        size = np.abs(np.where(np.isfinite(self.q), self.q, 0.0)).max((1, 2))
        return (self.residual <= CERTIFICATE * (1 + self.alphas)) & (self.level_residual <= CERTIFICATE * (1 + size))


def cql_fixed_point(mdp: TabularMDP, counts, alphas, gamma, td_loss="mse", strict=True, initial_value=None) -> Solution:
    """Solves CQL(H), Eq. 4, for all alphas at once.

    The squared losses have exactly one solution: for fixed y each state is strictly convex on its logged actions, and
    max_a of its minimiser is a gamma-contraction of V. Newton steps on V = max_a Q[V] use that the derivative of a
    minimiser's maximum is a distribution over the logged actions, so that a step is one policy evaluation; where it
    brings V no closer, a step of the contraction does. For the Huber loss see `huber`.

    Args:
        mdp: the model in the target, as a rule `empirical_mdp`'s; the true one gives CQL without sampling error.
        counts: [S, A], or any weights: they matter through beta alone.
        alphas: [N] (or one number), in the units of `td_loss`. 0 means the limit alpha -> 0+.
        strict: raise if a certificate fails; else read `Solution.certified`.
        initial_value: [N, S] or [S], where to start from; default 0. Without effect on the squared losses' result.

    Raises ValueError for arguments out of range, gamma = 1, a logged pair without a model, and, if `strict`,
    CertificateError for a certificate that fails: from alpha of about 1e6 float64 does not hold a solution.
    """
    alphas = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    if alphas.ndim != 1 or alphas.size == 0:
        raise ValueError(f"alphas must be a number or a list [N] of numbers, got shape {alphas.shape}.")
    beta, logged = checked_data(mdp, counts, gamma)
    alphas_half = half_square_alpha(alphas, td_loss)
    stages = huber.stages(mdp, gamma) if td_loss == "huber" else [(SquaredLoss(mdp, gamma), 0.0, 2000)]
    value = np.broadcast_to(0.0 if initial_value is None else initial_value, (alphas.size, mdp.num_states))
    q_logged = None
    for loss, tolerance, max_steps in stages:
        problem = _Problem(loss, beta, alphas_half)
        q_logged = _solve_fixed_point(problem, value, q_logged, tolerance, max_steps)
        value = problem.maxima(q_logged)

    q = np.full((alphas.size, *beta.shape), -np.inf)
    q[:, problem.states] = q_logged
    q = with_data_only(mdp, logged, q)
    solution = Solution(alphas, q, *certificate(mdp, beta, q, alphas, gamma, td_loss))
    if strict and not solution.certified.all():
        worst = int(np.argmax(np.where(solution.certified, -1, solution.residual)))
        raise CertificateError(
            f"No certified CQL fixed point at alpha = {alphas[worst]:g} ({td_loss}): the stationarity residual is "
            f"{solution.residual[worst]:.3g}, that of the level {solution.level_residual[worst]:.3g}.")
    return solution


def certificate(mdp: TabularMDP, counts, q, alphas, gamma, td_loss="mse", penalty="logsumexp", temperature=1.0):
    """(residual [N], level_residual [N], bellman_residual [N] or None) of any q [N, S, A], as defined at `Solution`.

    Written from the equations, here and in `family`, and not from a solver: a Q with small residuals is a solution,
    whatever computed it. In `family` p is that of its penalty, and `pull` stands in place of 1 in 1 - p / beta.
    """
    beta, logged = checked_data(mdp, counts, gamma)
    alphas, q = np.asarray(alphas, dtype=np.float64)[:, None, None], np.asarray(q, dtype=np.float64)
    seen, pull = logged.any(-1), float(penalty != "softmax-push-down")
    values = np.where(seen, state_value(q), 0.0)                                                     # [N, S]
    log_weight = np.log(np.where(logged, beta, 1.0)) if penalty == "rho" else 0.0                    # [S, A]
    p, q = softmax(np.where(logged, q / temperature + log_weight, -np.inf)), np.where(logged, q, 0.0)  # [N, S, A]
    bellman_residual = None
    if td_loss == "huber":
        slope = huber.mean_slope(mdp, q, values, gamma)
    else:
        error = q - bellman_backup(mdp, values, gamma)
        slope = (2 if td_loss == "mse" else 1) * error
        ratio = np.divide(p, beta, out=np.zeros_like(p), where=beta > 0)
        shift = half_square_alpha(alphas, td_loss) * (pull - ratio)
        bellman_residual = np.where(logged, np.abs(error - shift), 0.0).max((1, 2))
    stationarity = beta * slope + alphas * (p - pull * beta)
    level = np.where(logged, beta * slope, 0.0).sum(-1) + alphas[..., 0] * (1 - pull) * seen
    return np.where(logged, np.abs(stationarity), 0.0).max((1, 2)), np.abs(level).max(-1), bellman_residual


# ------------------------------------------------------------------------------------------------- data, alpha, softmax


def half_square_alpha(alphas, td_loss):
    """alpha in front of a half square (alpha_half, the paper's) from alpha in the units of `td_loss`.

    For "huber" the same number: within its knee that loss is the half square. ValueError if either is out of range.
    """
    if td_loss not in TD_LOSSES:
        raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, got {td_loss!r}.")
    alphas = np.asarray(alphas, dtype=np.float64)
    if not (np.isfinite(alphas) & (alphas >= 0)).all():
        raise ValueError(f"alpha must be finite and not negative, got {alphas}.")
    return alphas / 2 if td_loss == "mse" else alphas


def empirical_policy(counts):
    """beta [S, A]: counts (or any weights, not negative) divided by their row sums; rows without data stay 0."""
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"counts must be [S, A], finite and not negative; got shape {counts.shape}.")
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def logged_pairs(mdp: TabularMDP, counts):
    """[S, A] bool: the pairs with data, those of terminal states left out. counts [S, A], or any weights."""
    return (np.asarray(counts) > 0) & ~mdp.terminal[:, None]


def softmax(q) -> np.ndarray:
    """p = exp Q / sum exp Q over the last axis; actions at -inf get 0, a state with no others is uniform."""
    q = np.asarray(q, dtype=np.float64)
    q = np.where(np.isneginf(q).all(-1, keepdims=True), 0.0, q)
    e = np.exp(q - q.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def checked_data(mdp, counts, gamma):
    """(beta, logged_pairs), both [S, A], checked against the model; and gamma."""
    check_gamma(gamma)
    if gamma == 1:
        raise ValueError("The CQL fixed point needs gamma < 1: that it exists and is unique rests on the contraction.")
    beta = empirical_policy(counts)
    if beta.shape != mdp.modelled.shape:
        raise ValueError(f"counts must be [S, A] = {mdp.modelled.shape}, got {beta.shape}.")
    unknown = (beta > 0) & ~mdp.modelled
    if unknown.any():
        s, a = np.argwhere(unknown)[0]
        raise ValueError(f"State {s}, action {a} has data but no model: counts and MDP are of different data sets.")
    return beta, logged_pairs(mdp, beta)


# -------------------------------------------------------------------------------------------- closed forms and limits


def alpha_zero_limit(mdp: TabularMDP, counts, gamma):
    """alpha -> 0+: Q-learning restricted to the logged actions, Q [S, A] (-inf on OOD actions, 0 in terminal states).

    Value iteration, then one exact evaluation of its greedy policy. Independent of `cql_fixed_point`.
    """
    _, logged = checked_data(mdp, counts, gamma)
    greedy = greedy_policy(value_iteration(mdp, gamma, support=logged))
    values = _values_on_data(mdp, logged, greedy, (greedy * mdp.expected_reward).sum(-1), gamma)
    return with_data_only(mdp, logged, bellman_backup(mdp, values, gamma))


def alpha_infinity_limit(mdp: TabularMDP, counts, gamma):
    """alpha -> infinity: p -> beta and Q -> E_beta[y] + H(beta) + log beta, Q [S, A] as for `alpha_zero_limit`.

    With V = max_a Q the level solves V = V^beta + (I - gamma P^beta)^-1 (H - H_min), H_min = -log max_a beta: above the
    value of the behaviour policy wherever beta is not uniform over its support.
    """
    beta, logged = checked_data(mdp, counts, gamma)
    log_beta = np.log(np.where(logged, beta, 1.0))
    entropy = -(beta * log_beta).sum(-1)
    top = np.where(logged.any(-1), np.where(logged, log_beta, -np.inf).max(-1), 0.0)                 # -H_min
    values = _values_on_data(mdp, logged, beta, (beta * mdp.expected_reward).sum(-1) + entropy + top, gamma)
    level = (beta * bellman_backup(mdp, values, gamma)).sum(-1) + entropy
    return with_data_only(mdp, logged, level[:, None] + log_beta)


def eq1_fixed_point(mdp: TabularMDP, counts, mu, policy, alpha_half, gamma, added_back=0.0):
    """The exact solution of the paper's Eq. 1, Q [S, A], for a given distribution mu of the actions pushed down:

        min_Q alpha_half E_mu[Q] + E_beta[(Q - y)^2] / 2,   so   Q = r + gamma P E_policy[Q] - alpha_half mu / beta.

    -inf on pairs without data, 0 in terminal states. States without data have V = 0.

    Args:
        mu, policy: [S, A]; in states with data only logged actions may have weight (else ValueError).
        alpha_half: in front of a *half* square (the paper's; half of this project's default alpha).
        added_back: the weight of -alpha_half E_beta[Q], 1 in Eq. 2.
    """
    beta, logged = checked_data(mdp, counts, gamma)
    mu, policy = (_checked_support(mdp, logged, x, name) for x, name in [(mu, "mu"), (policy, "policy")])
    ratio = np.divide(mu, beta, out=np.zeros_like(beta), where=logged) - added_back * logged         # [S, A]
    reward = np.where(logged, mdp.expected_reward, 0.0) - half_square_alpha(alpha_half, "half_mse") * ratio
    values = _values_on_data(mdp, logged, policy, (policy * reward).sum(-1), gamma)
    return with_data_only(mdp, logged, reward + bellman_backup(mdp, values, gamma) - mdp.expected_reward)


def eq2_fixed_point(mdp: TabularMDP, counts, mu, policy, alpha_half, gamma):
    """As `eq1_fixed_point` for the paper's Eq. 2, which adds back E_beta[Q]: mu / beta - 1 in place of mu / beta."""
    return eq1_fixed_point(mdp, counts, mu, policy, alpha_half, gamma, added_back=1.0)


def _checked_support(mdp, logged, policy, name):
    """policy [S, A] with the rows of states without data set to 0."""
    (policy,), _ = checked_policies(mdp, policy)
    seen = logged.any(-1, keepdims=True)
    ood = (policy > 0) & ~logged & seen
    if ood.any():
        s, a = np.argwhere(ood)[0]
        raise ValueError(f"{name} has weight on action {a} of state {s}, which the data lack: Q is not finite there.")
    return np.where(seen, policy, 0.0)


def _values_on_data(mdp, logged, policy, reward, gamma):
    """V [S] = reward + gamma P^policy V in states with data, else 0. policy [S, A], reward [S]."""
    seen = logged.any(-1)
    weight = gamma * mdp.edges.under((policy * seen[:, None])[None])                                 # [E, 1]
    return solve_linear(mdp.edges, weight, np.where(seen, reward, 0.0)[:, None])[:, 0]


def with_data_only(mdp, logged, q):
    """q [..., S, A] with -inf on pairs without data and 0 in terminal states."""
    return np.where(mdp.terminal[:, None], 0.0, np.where(logged, q, -np.inf))


# ----------------------------------------------------------------------------------- inside the solver: from V to V


class SquaredLoss:
    """The half square x^2 / 2 for the solver: only the mean target matters, one outcome of probability 1."""

    least_curvature = 0.0  # added to td'' where the solution of a state is differentiated
    largest_curvature = 1.0  # of td

    def __init__(self, mdp: TabularMDP, gamma):
        self.mdp, self.gamma = mdp, gamma
        self.probability = np.ones((*mdp.modelled.shape, 1))                                         # [S, A, 1]
        self.next_weight = mdp.continuing             # [S, A, K of the MDP]: the weight of V(s') in the targets

    def targets(self, values):
        """values [n, S] -> y [n, S, A, 1]."""
        return bellman_backup(self.mdp, values, self.gamma)[..., None]

    @staticmethod
    def terms(error):
        """td, td' and td'' of Q - y."""
        return error ** 2 / 2, error, np.ones_like(error)

    def damped(self, curvature, gradient):
        """The curvature [R, A] that a Newton step of a state uses."""
        return curvature


class _Rows(NamedTuple):
    """The convex problems of R states."""

    y: np.ndarray              # [R, A, K], targets by outcome
    probability: np.ndarray    # [R, A, K], of the outcomes
    beta: np.ndarray           # [R, A], policy of the data
    alpha: np.ndarray          # [R], alpha_half

    def take(self, rows):
        return _Rows(*(x[rows] for x in self))


class _Problem:
    """The convex problems of the states with data, `states` [S'], for all alphas, and the map V -> max_a Q[V]."""

    def __init__(self, loss, beta, alpha):
        self.loss, self.mdp, self.gamma, self.alpha = loss, loss.mdp, loss.gamma, alpha
        self.states = np.flatnonzero(beta.any(-1) & ~self.mdp.terminal)
        self.beta = beta[self.states]                                                                # [S', A]

    def rows(self, targets, members):
        """The problems of targets [n, S', A, K] for the members [n] of alpha, R = n S'."""
        def repeat(x):
            return np.broadcast_to(x, (len(members), *x.shape)).reshape(-1, *x.shape[1:])
        return _Rows(targets.reshape(-1, *targets.shape[2:]), repeat(self.loss.probability[self.states]),
                     repeat(self.beta), np.repeat(self.alpha[members], self.states.size))

    def minimisers(self, values, q, members):
        """Q given V: values [n, S], a first guess q [n, S', A] or None -> (Q [n, S', A], targets [n, S', A, K])."""
        targets = self.loss.targets(values)[:, self.states]
        rows = self.rows(targets, members)
        guess = _first_guess(rows) if q is None else q.reshape(rows.beta.shape)
        return _minimise(guess, rows, self.loss).reshape(targets.shape[:3]), targets

    def maxima(self, q):
        """V = max_a Q on the logged actions, 0 in other states: [n, S', A] -> [n, S]."""
        values = np.zeros((len(q), self.mdp.num_states))
        values[:, self.states] = np.where(self.beta > 0, q, -np.inf).max(-1)
        return values

    def newton_step(self, q, targets, gap, members):
        """(I - gamma J)^-1 gap, J the derivative of max_a Q by the next values: q [n, S', A], gap [n, S] -> [n, S]."""
        rows = self.rows(targets, members)
        q = q.reshape(rows.beta.shape)
        best = np.eye(q.shape[1])[greedy_actions(np.where(rows.beta > 0, q, -np.inf))]               # [R, A]
        _, _, p, by_outcome = _objective(q, rows, self.loss)
        curvature = by_outcome.sum(-1) + self.loss.least_curvature
        sensitivity = _solve_hessian(curvature, p, rows, best) * rows.beta                           # [R, A]
        weight = (sensitivity[..., None] * by_outcome).reshape(targets.shape)
        chain = np.zeros((len(members), *self.mdp.continuing.shape))                                 # [n, S, A, K]
        chain[:, self.states] = weight * self.loss.next_weight[self.states]
        scale = np.maximum(np.abs(gap).max(-1), 1e-300)                # so that the tolerance is relative to the gap
        # five digits are enough of a step, and come faster by iteration unless gamma is very near 1
        step = solve_linear(self.mdp.edges, self.gamma * self.mdp.edges.collect(chain), (gap / scale[:, None]).T,
                            tolerance=1e-5, dense_states=64 if self.gamma <= 0.999 else None)
        return step.T * scale[:, None]


def _solve_fixed_point(problem, values, guess, tolerance, max_steps, patience=8):
    """Q [N, S', A] with V = max_a Q[V] to `tolerance`, or to rounding.

    Newton steps, like policy iteration, may pass through worse points on their way. So each member has `patience` steps
    to come closer than its best point so far; if it does not, it returns there and takes one step of the contraction,
    which always comes closer.
    """
    values = np.array(values, dtype=np.float64)
    values[:, np.setdiff1d(np.arange(problem.mdp.num_states), problem.states)] = 0.0
    members, step = np.arange(len(values)), 0
    q, y = problem.minimisers(values, guess, members)
    best_q, best_gap, best_step = q.copy(), np.full(len(values), np.inf), np.zeros(len(values), dtype=int)
    while True:
        image = problem.maxima(q)                                                                    # max_a Q[V]
        gap = image - values                                                                         # [n, S]
        size = np.abs(gap).max(-1)
        closer = size < 0.99 * best_gap[members]
        improved = members[closer]
        best_q[improved], best_gap[improved], best_step[improved] = q[closer], size[closer], step
        idle = step - best_step[members]
        scale = 1 + np.abs(image).max(-1) + problem.alpha[members]
        # four idle steps this close to a solution: rounding is coarser than 1e-14 here, and the certificate will tell
        done = (best_gap[members] <= np.maximum(tolerance, 1e-14 * scale)) | (
            (idle >= 4) & (best_gap[members] <= 1e-11 * scale))
        if done.all() or step == max_steps:
            return best_q
        step += 1
        members, q, y, values, gap, idle = (x[~done] for x in (members, q, y, values, gap, idle))
        values = values + problem.newton_step(q, y, gap, members)
        stuck = idle >= patience
        if stuck.any():
            q[stuck] = best_q[members[stuck]]
            values[stuck] = problem.maxima(q[stuck])
            best_gap[members[stuck]] = np.inf                          # from here on, the best of the steps to come
        q, y = problem.minimisers(values, q, members)


# --------------------------------------------------------------------- inside the solver: the convex problem of a state


def _objective(q, rows, loss):
    """Value [R], gradient [R, A], p [R, A] and td'' by outcome [R, A, K] of

        sum_a beta_a E_k td(q_a - y_ak) + alpha [logsumexp q - beta . q]    over the logged actions."""
    value, slope, curvature = (rows.probability * x for x in loss.terms(q[..., None] - rows.y))      # [R, A, K]
    masked = np.where(rows.beta > 0, q, -np.inf)
    top = masked.max(-1)
    p = np.exp(masked - top[:, None])
    total = p.sum(-1)
    p /= total[:, None]
    # relative to the maximum, so that the level of q cancels before it can round
    penalty = np.log(total) - (rows.beta * np.where(rows.beta > 0, q - top[:, None], 0.0)).sum(-1)
    value = (rows.beta * value.sum(-1)).sum(-1) + rows.alpha * penalty
    return value, rows.beta * slope.sum(-1) + rows.alpha[:, None] * (p - rows.beta), p, curvature


def _solve_hessian(curvature, p, rows, right):
    """[beta w + alpha (diag p - p p^T)]^-1 right, all [R, A], by Sherman-Morrison (diagonal minus rank one)."""
    diagonal = rows.beta * curvature + rows.alpha[:, None] * p
    diagonal = np.where(diagonal > 0, diagonal, 1.0)                         # on OOD actions: right is 0 there
    first = right / diagonal
    # 1 - alpha sum p^2 / diagonal, written without cancellation
    rest = (p * rows.beta * curvature / diagonal).sum(-1)
    rest = np.where(rows.alpha > 0, rest, 1.0)
    return first + p / diagonal * (rows.alpha * (p * first).sum(-1) / rest)[:, None]


def _minimise(q, rows, loss, max_steps=300):
    """Minimisers [R, A] by damped Newton from q: full steps overshoot a saturated softmax (alpha_half >= 6)."""
    q = np.where(rows.beta > 0, q, 0.0)
    index = np.arange(len(q))                                                # of the rows that are not solved yet
    for _ in range(max_steps):
        part, here = rows.take(index), q[index]
        value, gradient, p, curvature = _objective(here, part, loss)
        # what rounding leaves of a gradient: q is known to 1e-16 |q|, hence p to 1e-16 |q| p
        size = 1 + np.abs(here).max(-1, keepdims=True) + np.abs(part.y).max((-1, -2))[:, None]
        alpha = part.alpha[:, None]
        scale = (part.beta * loss.largest_curvature + alpha * p) * size + alpha * (p + part.beta)
        going = (np.abs(gradient) > 2e-15 * scale).any(-1)
        if not going.any():
            break
        index, here, value, gradient, p, curvature = (x[going] for x in (index, here, value, gradient, p, curvature))
        part = part.take(going)
        direction = -_solve_hessian(loss.damped(curvature.sum(-1), gradient), p, part, gradient)
        q[index] = _line_search(here, direction, value, (gradient * direction).sum(-1), part, loss)
        index = index[(q[index] != here).any(-1)]
        if not index.size:
            break
    return q


def _line_search(q, direction, value, slope, rows, loss, halvings=60):
    """The first of q + t direction, t = 1, 1/2, 1/4, ..., that does not go uphill; q itself if none does.

    The loss must fall as Armijo asks, up to its rounding. Where rounding hides that, its slope tells: beyond the
    minimum, the way up must be less steep than the way down was."""
    result, t = q.copy(), np.ones(len(q))
    index = np.arange(len(q))
    for _ in range(halvings):
        trial = q[index] + t[index, None] * direction[index]
        new, gradient, _, _ = _objective(trial, rows.take(index), loss)
        slack = 1e-14 * (np.abs(value[index]) + np.abs(new))
        good = ((new <= value[index] + 1e-4 * t[index] * slope[index] + slack)
                & ((gradient * direction[index]).sum(-1) <= -0.9 * slope[index]))
        result[index[good]] = trial[good]
        index = index[~good]
        if not index.size:
            break
        t[index] /= 2
    return result


def _first_guess(rows):
    """[R, A]: the better of the two ends of alpha, Q = E[y] and Q = E_beta[y] + H(beta) + log beta (half square)."""
    mean = (rows.probability * rows.y).sum(-1)                                                       # [R, A]
    log_beta = np.log(np.where(rows.beta > 0, rows.beta, 1.0))
    level = (rows.beta * mean).sum(-1) - (rows.beta * log_beta).sum(-1)
    far = level[:, None] + log_beta
    far_is_better = _objective(far, rows, SquaredLoss)[0] < _objective(mean, rows, SquaredLoss)[0]
    return np.where(far_is_better[:, None], far, mean)
