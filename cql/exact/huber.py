"""The Huber loss in CQL(H), for the solver and the certificate in `fixed_point`.

td(x) = x^2 / 2 up to |x| = 1, then |x| - 1/2, averaged over the targets y [S, A, K] of the outcomes, not taken of their
mean. It is convex, not strictly: a solution is certified as for the squared error, but it need not be the only one, and
there is no contraction to fall back on. So a quadratic term (the ridge) is added, made smaller in stages, each of which
starts from the solution of the one before, and then dropped.
"""

import numpy as np

from cql.exact.mdp import TabularMDP


def stages(mdp: TabularMDP, gamma):
    """[(loss, tolerance on V, most steps)], to be solved in this order."""
    ridges = [(10.0 ** (k / 2), 1e-2, 20) for k in range(2, -13, -1)] + [(1e-6, 1e-5, 2000), (0.0, 1e-11, 2000)]
    return [(HuberLoss(mdp, gamma, ridge), tolerance, max_steps) for ridge, tolerance, max_steps in ridges]


def mean_slope(mdp: TabularMDP, q, values, gamma):
    """E[td'(Q - y)] [N, S, A] of q [N, S, A], with targets from values [N, S]."""
    return (mdp.probability * np.clip(q[..., None] - outcome_targets(mdp, values, gamma), -1, 1)).sum(-1)


def outcome_targets(mdp: TabularMDP, values, gamma):
    """y by outcome: values [N, S] -> [N, S, A, K]."""
    return mdp.reward + gamma * np.where(mdp.terminated, 0.0, values[:, mdp.next_state])


class HuberLoss:
    """Huber's loss plus ridge x^2 / 2. Attributes and methods as those of `fixed_point.SquaredLoss`."""

    least_curvature = 1e-14  # a solution on a straight stretch does not move with its targets

    def __init__(self, mdp: TabularMDP, gamma, ridge):
        self.mdp, self.gamma, self.ridge = mdp, gamma, ridge
        self.probability, self.next_weight = mdp.probability, ~mdp.terminated
        self.largest_curvature = 1 + ridge

    def targets(self, values):
        return outcome_targets(self.mdp, values, self.gamma)

    def terms(self, error):
        clipped = np.clip(error, -1, 1)
        return (clipped * (error - clipped / 2) + self.ridge * error ** 2 / 2, clipped + self.ridge * error,
                (np.abs(error) < 1) + self.ridge)

    def damped(self, curvature, gradient):
        if self.ridge > 0:
            return curvature
        # where the loss is straight: a little curvature, vanishing with the gradient
        return curvature + np.minimum(1e-4, np.abs(gradient).max(-1))[:, None] + 1e-14
