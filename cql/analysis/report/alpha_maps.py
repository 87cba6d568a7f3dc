"""The numbers behind the report's maps over alpha: NumPy arrays of the exact solutions and of policies.

Axes: N policy, S state, A action, T target cell. float64. Everything is judged on the true model.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from cql.exact import TabularMDP, curve, expected_visits, policy_evaluation, settled_policy, start_distribution
from cql.losses import Objective
from cql.world import exact_curve_solution

BUDGET = 4_000_000  # bytes of JSON that the page's maps may take
CELL_BYTES = 17  # of one state of one policy, about: an action and three numbers
SHOWN_PASSING = 1e-4  # probabilities are given in these steps; what is less than half of one is shown as 0


@dataclass(frozen=True, eq=False)
class ExactSolutions:
    """The exact solutions of one data set over alpha, and what they are worth.

    Args:
        alphas: [N], rising; 0 stands for the limit from above.
        counts: [S, A] of the data set; q: [N, S, A], -inf on pairs without data.
        policies: [N, S, A], greedy; uniform in states without data.
        estimate: [N, S], max_a Q, NaN in states without data; true: [N, S], the value of the policy, discounted.
        metrics: by the names of ``results.COLUMNS``, [N] each, or None where the model has no hazard or goal.
    """

    alphas: np.ndarray
    counts: np.ndarray
    q: np.ndarray
    policies: np.ndarray
    estimate: np.ndarray
    true: np.ndarray
    metrics: dict[str, np.ndarray | None]

    def at(self, alpha: float) -> int:
        """The index of an alpha that was asked for."""
        return int(np.flatnonzero(self.alphas == alpha)[0])


def grid(trained, num_states: int) -> np.ndarray:
    """The alphas to solve exactly, rising: those trained, and up to 61 between 1e-2 and 1e3.

    Fewer on maps so large that one data set would not fit into `BUDGET`.
    """
    trained = np.unique(np.asarray(trained, dtype=np.float64))
    number = BUDGET // (CELL_BYTES * num_states) - 2 * len(trained)
    points = curve.default_alphas(int(np.clip(number, 0, curve.POINTS)))
    far = np.abs(np.log(points[:, None] / trained[trained > 0])).min(-1, initial=np.inf) > 1e-6  # 0.1 is both
    return np.union1d(trained, points[far])


def solve(objective: Objective, mdp: TabularMDP, empirical: TabularMDP, counts, alphas, horizon) -> ExactSolutions:
    """The exact solutions of one data set at rising `alphas` [N] >= 0.

    At 0 the solution at `curve.VANISHING` stands for the limit: ties of its Q are settled there as on the curve.

    Raises:
        ValueError, RunError: as `curve.alpha_curve` and `cql.world.exact_curve_solution`.
    """
    solved = curve.alpha_curve(mdp, counts, partial(exact_curve_solution, objective, empirical, counts),
                               np.where(alphas == 0, curve.VANISHING, alphas), objective.gamma, horizon)
    policies = settled_policy(solved.q)
    true, _ = policy_evaluation(mdp, policies, objective.gamma)
    seen = counts.any(-1) & ~mdp.terminal
    metrics = {**solved.metrics, "value_estimate": solved.value_estimate,
               "value_error": solved.value_estimate - solved.metrics["discounted_value"],
               "penalty": mean_penalty(solved.q / objective.reward_scale, counts, seen),
               "unsupported_action_rate": ood_share(mdp, policies, counts, horizon)}
    return ExactSolutions(alphas, counts, solved.q, policies, np.where(seen, solved.value, np.nan), true, metrics)


def mean_penalty(q, counts, seen):
    """Mean over the data of logsumexp Q - Q(s, a) over logged actions, Q [N, S, A], seen [S] bool -> [N].

    It is the cross-entropy of softmax Q, so never below the entropy of the logged actions.
    """
    logged = (counts > 0) & seen[:, None]
    weights = np.where(logged, counts, 0) / counts[logged].sum()                                      # [S, A]
    rows = np.where(logged, q, -np.inf)[:, seen]                                                      # [N, S', A]
    top = rows.max(-1, keepdims=True)
    level = (top + np.log(np.exp(rows - top).sum(-1, keepdims=True)))                                 # [N, S', 1]
    return (weights[seen] * np.where(logged[seen], level - rows, 0.0)).sum((1, 2))


def ood_share(mdp: TabularMDP, policies, counts, horizon: int):
    """Share of the steps of an episode with an OOD action (never logged in that state), policies [N, S, A] -> [N]."""
    visits = expected_visits(mdp, policies, horizon=horizon)                                          # [N, S]
    ood = np.where(counts > 0, 0.0, policies).sum(-1)                                                 # [N, S]
    return (visits * ood).sum(-1) / visits.sum(-1)


def passing_probability(mdp: TabularMDP, policies, horizon: int, floor: float = SHOWN_PASSING / 2):
    """The probability that an episode from the start is ever in a state, within `horizon` steps: [N, S, A] -> [N, S].

    Every state is made absorbing once, as column t of a matrix [S, T] that is pushed `horizon` steps, so that only the
    first arrival counts. States that are entered less than `floor` times on average are left at that number, which
    bounds their probability from above; so are terminal ones, which are entered once at most.
    """
    start, edges, states = start_distribution(mdp), mdp.edges, np.arange(mdp.num_states)[:, None, None]
    visits = expected_visits(mdp, policies, horizon=horizon)                                          # [N, S]
    passing = np.empty_like(visits)
    for n, policy in enumerate(policies):
        weight = edges.under(policy[None])                                                            # [E, 1]
        flow = np.where(mdp.terminal[:, None, None], 0.0, mdp.probability * policy[..., None])        # [S, A, K]
        index = np.broadcast_to(states, flow.shape) * mdp.num_states + mdp.next_state
        arrive = np.bincount(index.ravel(), flow.ravel(), mdp.num_states**2).reshape(2 * [mdp.num_states])  # [S, S]
        passing[n] = start + visits[n] @ arrive
        targets = np.flatnonzero((passing[n] > floor) & ~mdp.terminal)
        column = np.arange(len(targets))
        mass = np.repeat(start[:, None], len(targets), axis=1)                                        # [S, T]
        before = np.zeros_like(mass)  # expected visits of s before the first arrival in t
        for _ in range(horizon):
            mass[targets, column] = 0
            before += mass
            mass = edges.forward(weight, mass)
        passing[n, targets] = start[targets] + (before * arrive[:, targets]).sum(0)
    return passing
