"""The exact curve of CQL(H) over alpha: exact solutions and the metrics of their greedy policies, without training.

At every alpha the solution on the empirical MDP is computed and its greedy policy evaluated on the true one. References
stand beside the curve: Behaviour Cloning by counts, the behaviour policy, the optimum, and both limits of alpha. A flip
is an alpha at which the greedy action of a state changes.

Axes: N alpha, S state, A action. float64. Values are discounted over an infinite horizon; returns and probabilities are
those of one undiscounted episode with its step limit. alpha is in the units of the TD loss, as in `train.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cql.exact.dynamic_programming import (
    backward_induction,
    bellman_backup,
    evaluate_policies,
    greedy_policy,
    maximal_actions,
    policy_evaluation,
    settled_actions,
    settled_policy,
    state_value,
    value_iteration,
)
from cql.exact.fixed_point import Solution, alpha_infinity_limit, alpha_zero_limit
from cql.exact.mdp import TabularMDP, start_distribution

LOWEST, HIGHEST, POINTS = 1e-2, 1e3, 61
VANISHING = 1e-6  # an alpha so small that only exact ties feel it
FLIP_TOLERANCE = 1e-5  # relative width of the interval around a flip
METRICS = ("discounted_value", "return", "hazard_probability", "goal_probability", "action_mismatch_rate")
Solver = Callable[..., Solution]  # alphas [N], initial_value [N, S] -> exact solutions, as of `cql_fixed_point`


@dataclass(frozen=True, eq=False)
class Curve:
    """Exact solutions over alpha, and the metrics of their greedy policies."""

    alphas: np.ndarray            # [N], rising
    q: np.ndarray                 # [N, S, A], as `cql.exact.fixed_point.Solution.q`
    value: np.ndarray             # [N, S], max_a Q
    residual: np.ndarray          # [N], the solver's certificate
    value_estimate: np.ndarray    # [N], max_a Q at the start
    metrics: dict                 # by the names of `METRICS`, [N] each (None where the MDP has no such mask)

    def rows(self) -> list[dict]:
        """One JSON object per alpha."""
        return [{"alpha": float(alpha), "value_estimate": float(self.value_estimate[n]), **_entry(self.metrics, n)}
                for n, alpha in enumerate(self.alphas)]


@dataclass(frozen=True)
class Flip:
    """At `alpha` (known to the tolerance of the search) the greedy action of `state` changes, as alpha rises."""

    alpha: float
    state: int
    before: int
    after: int


def default_alphas(points: int = POINTS) -> np.ndarray:
    """[points] from 1e-2 to 1e3, evenly on a log scale."""
    return np.logspace(np.log10(LOWEST), np.log10(HIGHEST), points)


def alpha_curve(mdp: TabularMDP, counts, solve: Solver, alphas, gamma, horizon) -> Curve:
    """The curve at `alphas` [N] > 0. `mdp` is the true model, with a start; counts [S, A] are those of the data.

    `solve` gives the exact solutions at given alphas on the data's own model, with the same terminal states.
    Raises ValueError for arguments out of range (gamma = 1, alpha <= 0), and CertificateError if a solution was not
    certified.
    """
    alphas = np.sort(np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if not (alphas > 0).all():
        raise ValueError("The curve needs alpha > 0: 0 is drawn as the limit it has there anyway.")
    solution = solve(alphas)
    return Curve(alphas, solution.q, solution.value, solution.residual, solution.value @ start_distribution(mdp),
                 policy_metrics(mdp, counts, settled_policy(solution.q), gamma, horizon))


def policy_metrics(mdp: TabularMDP, counts, policies, gamma, horizon) -> dict:
    """The `METRICS` [N] of policies [N, S, A] on the true model from its start; None where the MDP has no such mask.

    `action_mismatch_rate` is the probability that the policy's action differs from the logged one, over the data.
    """
    counts = np.asarray(counts, dtype=np.float64)
    values, _ = policy_evaluation(mdp, policies, gamma)
    episode = evaluate_policies(mdp, policies, horizon=horizon)
    return {"discounted_value": values @ start_distribution(mdp), "return": episode.returns,
            "hazard_probability": episode.hazard_probability, "goal_probability": episode.goal_probability,
            "action_mismatch_rate": 1 - (policies * counts).sum((1, 2)) / counts.sum()}


def _entry(metrics, n):
    """Entry n of `policy_metrics`, as plain floats."""
    return {name: None if values is None else float(values[n]) for name, values in metrics.items()}


def cloned_policy(counts) -> np.ndarray:
    """Behaviour Cloning by counts: the most frequent action of each state, ties to the lowest; uniform without data."""
    counts = np.asarray(counts, dtype=np.float64)
    return greedy_policy(np.where(counts > 0, counts, -np.inf))


def references(mdp: TabularMDP, empirical: TabularMDP, counts, solve: Solver, gamma, horizon, behavior=None,
               cloned=None) -> dict:
    """The references of the curve: name -> {"value_estimate", *METRICS}, None where a number has no meaning.

    `optimal` is backward induction over the episode (a policy that depends on the step), with the optimal discounted
    value beside it. `solve` is that of the curve. `behavior` [S, A] acts with its own probabilities; None if unknown.
    `cloned` [S, A] are the counts of what BC clones, if not `counts`.
    """
    limits = {"alpha_zero": alpha_zero_limit(empirical, counts, gamma),
              "alpha_infinity": alpha_infinity_limit(empirical, counts, gamma)}
    # where the Q of a limit ties, terms that vanish in it choose the action near it: as alpha -> infinity
    # Q = c + log beta + (y - Q) / alpha_half + ..., so that the higher target y decides
    near_zero = solve([VANISHING]).q[0]
    targets = bellman_backup(empirical, state_value(limits["alpha_infinity"]), gamma)
    policies = {"alpha_zero": settled_policy(near_zero),
                "alpha_infinity": greedy_policy(np.where(maximal_actions(limits["alpha_infinity"]), targets, -np.inf)),
                "bc": cloned_policy(counts if cloned is None else cloned)}
    if behavior is not None:
        policies["behavior"] = behavior
    metrics = policy_metrics(mdp, counts, np.stack(list(policies.values())), gamma, horizon)
    start = start_distribution(mdp)
    rows = {name: {"value_estimate": float(state_value(limits[name]) @ start) if name in limits else None,
                   **_entry(metrics, n)} for n, name in enumerate(policies)}
    best, optimal_value = backward_induction(mdp, horizon).evaluation, state_value(value_iteration(mdp, gamma))
    rows["optimal"] = {"value_estimate": None, "discounted_value": float(optimal_value @ start), "return": best.returns,
                       "hazard_probability": best.hazard_probability, "goal_probability": best.goal_probability,
                       "action_mismatch_rate": None}
    return {"behavior": None, **rows}


def flip_points(curve: Curve, solve: Solver, tolerance=FLIP_TOLERANCE) -> list[Flip]:
    """Every change of a greedy action between the points of a curve, located by bisection of log alpha.

    All intervals with a change are halved at once until they are narrower than `tolerance` (inf: no halving).
    `solve` is that of the curve. A state that changes several times between two points is followed through all of the
    changes if its ends differ; a change that is undone between two points is not seen. By rising alpha, then state.
    """
    alphas, values, actions = curve.alphas, curve.value, settled_actions(curve.q)
    while True:
        change = (actions[1:] != actions[:-1]).any(-1)                                                # [N - 1]
        wide = np.flatnonzero(change & (alphas[1:] > alphas[:-1] * (1 + tolerance)))
        if not wide.size:
            break
        middle = np.sqrt(alphas[wide] * alphas[wide + 1])
        solution = solve(middle, initial_value=(values[wide] + values[wide + 1]) / 2)
        alphas, values, actions = (np.insert(old, wide + 1, new, axis=0) for old, new in (
            (alphas, middle), (values, solution.value), (actions, settled_actions(solution.q))))
    return [Flip(float(np.sqrt(alphas[n] * alphas[n + 1])), int(s), int(actions[n, s]), int(actions[n + 1, s]))
            for n, s in np.argwhere(actions[1:] != actions[:-1])]
