"""Exact solutions of the paper's other objectives, beside that of CQL(H) in `fixed_point`.

For the squared error, and on the logged actions alone, each of them is

    Q = E[y] + alpha_half (pull - p / beta),    y = r + gamma (1 - terminated) V(s'),    V(s') = max_a Q(s', a),

where p is what the penalty's gradient pushes down and pull is 1 where the penalty holds - Q(s, a), else 0:

    CQL(H) at temperature tau    p = softmax(Q / tau)                        pull 1
    CQL(rho), rho = beta         p = beta exp Q / sum_a beta exp Q           pull 1
    CQL(rho), rho = softmax Q    p = softmax 2 Q, that is CQL(H) at 1/2      pull 1
    Eq. 1, mu = softmax Q        p = softmax Q                               pull 0

(Eq. 1 and Eq. 2 for a given policy are linear: `fixed_point.eq1_fixed_point`, `fixed_point.eq2_fixed_point`.)

**One dimension** (docs/math.md, section 10). With p = w exp(Q / tau) / sum w exp(Q / tau), z = log sum w exp(Q / tau)
and v = Q / tau - z, every action solves

    v + c exp v = (E[y] + pull alpha_half) / tau - z,    c = alpha_half w / (tau beta),

which has one root v(z), decreasing in z, and z is the one root of sum_a w exp v_a(z) = 1.

Axes: N alpha, S state, S' state with data, A action. float64.
"""

import numpy as np

from cql.exact.dynamic_programming import bellman_backup, greedy_actions, solve_linear
from cql.exact.fixed_point import (
    CertificateError,
    Solution,
    certificate,
    checked_data,
    half_square_alpha,
    with_data_only,
)
from cql.exact.mdp import TabularMDP

PENALTIES = ("logsumexp", "rho", "previous", "softmax-push-down")


def soft_fixed_point(mdp: TabularMDP, counts, alphas, gamma, td_loss="mse", penalty="logsumexp", temperature=1.0,
                     strict=True) -> Solution:
    """The exact solution of a penalty log sum w exp(Q / tau) for all alphas, by the one-dimensional form.

    Args:
        mdp, counts, alphas, gamma, strict: as for `cql_fixed_point`. td_loss: mse or half_mse.
        penalty: one of PENALTIES. temperature: tau, of logsumexp.

    Raises ValueError for arguments out of range, and, if `strict`, CertificateError for a residual that is too large.
    """
    if td_loss not in ("mse", "half_mse") or penalty not in PENALTIES:
        raise ValueError(f"td_loss must be mse or half_mse and penalty one of {', '.join(PENALTIES)}, "
                         f"got {td_loss!r} and {penalty!r}.")
    temperature = 0.5 if penalty == "previous" else temperature
    alphas = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    beta, logged = checked_data(mdp, counts, gamma)
    states = np.flatnonzero(logged.any(-1))
    weight = np.where(logged, beta, 0.0) if penalty == "rho" else logged * 1.0                        # [S, A]
    alpha_half = half_square_alpha(alphas, td_loss)[:, None, None]
    ratio = np.divide(weight, beta, out=np.zeros_like(beta), where=logged)[states]                    # [S', A]
    pull = 0.0 if penalty == "softmax-push-down" else alpha_half
    problem = _State(weight[states], alpha_half * ratio / temperature, pull, temperature)

    values, best_gap, idle = np.zeros((alphas.size, mdp.num_states)), np.full(alphas.size, np.inf), 0
    while True:  # Newton steps on V = max_a Q[V]; where they come no closer, steps of the contraction
        target = bellman_backup(mdp, values, gamma)[:, states]                                        # [N, S', A]
        q, p, slope = problem.solve(target)
        image = np.zeros_like(values)
        image[:, states] = np.where(weight[states] > 0, q, -np.inf).max(-1)
        gap = image - values
        size = np.abs(gap).max(-1)
        idle = 0 if (size < 0.9 * best_gap).any() else idle + 1
        best_gap = np.minimum(best_gap, size)
        scale = 1 + np.abs(image).max(-1)
        if (best_gap <= 1e-13 * scale).all() or (idle > 3 and (best_gap <= 1e-10 * scale).all()) or idle > 1000:
            break  # solved, or as near as rounding lets it come; the certificate tells
        if idle > 8:
            values = image
            continue
        chain = np.zeros((alphas.size, *beta.shape))
        chain[:, states] = problem.derivative_of_maximum(q, p, slope)
        step = solve_linear(mdp.edges, gamma * mdp.edges.under(chain), gap.T).T
        values = values + np.where(np.isin(np.arange(mdp.num_states), states), step, 0.0)

    full = np.full((alphas.size, *beta.shape), -np.inf)
    full[:, states] = q
    q = with_data_only(mdp, logged, full)
    solution = Solution(alphas, q, *certificate(mdp, counts, q, alphas, gamma, td_loss, penalty, temperature))
    if strict and not solution.certified.all():
        raise CertificateError(f"No certified solution of the penalty {penalty}: the residuals are "
                               f"{solution.residual}, those of the level {solution.level_residual}.")
    return solution


class _State:
    """The problem of every state with data, for given targets.

    Args:
        weight: [S', A], w; 0 on OOD actions. scale: [N, S', A], c. pull: alpha_half or 0. temperature: tau.
    """

    def __init__(self, weight, scale, pull, temperature):
        self.weight, self.scale, self.pull, self.temperature = weight, scale, pull, temperature
        self.log_scale = np.log(np.where(scale > 0, scale, 1.0))

    def solve(self, target):
        """(Q, p, d v / d E[y] tau), each [N, S', A], of E[y] [N, S', A]."""
        right, known = (target + self.pull) / self.temperature, self.weight > 0
        weight, num_actions = np.where(known, self.weight, 1.0), self.weight.shape[-1]

        def level(largest):  # the z at which the largest w exp v is this much
            z = right + np.log(weight / largest) - self.scale * largest / weight
            return np.where(known, z, -np.inf).max(-1, keepdims=True)

        low, high = level(1.0), level(1 / num_actions)  # sum w exp v is at least 1, and at most 1
        z = high
        for _ in range(100):
            v, slope = self._roots(right - z)
            terms = weight * np.exp(np.where(known, v, -np.inf))
            total = terms.sum(-1, keepdims=True)
            low, high = np.where(total >= 1, z, low), np.where(total >= 1, high, z)
            newton = z + np.log(total) * total / (terms * slope).sum(-1, keepdims=True)
            rounding = 4e-15 * (1 + np.abs(z))
            inside = (newton > low - rounding) & (newton < high + rounding)
            following = np.where(inside, newton, (low + high) / 2)
            if (np.abs(following - z) <= rounding).all():
                break
            z = following
        return self.temperature * (v + z), terms / total, slope

    def _roots(self, right):
        """(v, d v / d right) of v + c exp v = right. With t = v + log c this is t + exp t = right + log c."""
        free = self.scale == 0  # alpha 0
        k = np.where(free, 0.0, right + self.log_scale)
        t = np.where(k > 1, np.log(np.maximum(k, 1)), k)  # at or above the root, so that Newton's steps fall towards it
        for _ in range(60):
            e = np.exp(t)
            step = (t + e - k) / (1 + e)
            t = t - step
            if (np.abs(step) <= 1e-15 * (1 + np.abs(t))).all():
                break
        return np.where(free, right, t - self.log_scale), np.where(free, 1.0, 1 / (1 + np.exp(t)))

    def derivative_of_maximum(self, q, p, slope):
        """d max_a Q / d E[y], [N, S', A]: a distribution over the logged actions."""
        best = greedy_actions(np.where(self.weight > 0, q, -np.inf))[..., None]
        own, shared = np.take_along_axis(slope, best, -1), p * slope
        return own * (np.arange(q.shape[-1]) == best) + (1 - own) * shared / shared.sum(-1, keepdims=True)
