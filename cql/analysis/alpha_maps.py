"""The numbers behind the report's maps over alpha: NumPy arrays of exact and of trained policies, and their JSON.

Axes: N policy, S state, A action, T target cell. float64. Everything is judged on the true model.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from cql.exact import phase
from cql.exact.tabular import TabularMDP, expected_visits, policy_evaluation, start_distribution
from cql.losses import Objective
from cql.world import exact_curve_solution

BUDGET = 4_000_000  # bytes of JSON that the page's maps may take
CELL_BYTES = 17  # of one state of one policy, about: an action and three numbers
SHOWN_PASSING = 1e-4  # probabilities are given in these steps; what is less than half of one is shown as 0
DIGITS = 4  # significant ones of a value


@dataclass(frozen=True, eq=False)
class Oracle:
    """Exact fixed points of one data draw over alpha, and what they are worth.

    Args:
        alphas: [N], rising; 0 stands for the limit from above.
        counts: [S, A] of the draw; q: [N, S, A], -inf on pairs without data.
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
    """Alphas at which the exact side is solved, rising: those trained, and up to 61 between 1e-2 and 1e3.

    Fewer on maps so large that one draw would not fit into `BUDGET`.
    """
    trained = np.unique(np.asarray(trained, dtype=np.float64))
    room = BUDGET // (CELL_BYTES * num_states) - 2 * len(trained)
    points = phase.default_alphas(int(np.clip(room, 0, phase.POINTS)))
    far = np.abs(np.log(points[:, None] / trained[trained > 0])).min(-1, initial=np.inf) > 1e-6  # 0.1 is both
    return np.union1d(trained, points[far])


def solve(objective: Objective, mdp: TabularMDP, empirical: TabularMDP, counts, alphas, horizon) -> Oracle:
    """The exact side of one draw at `alphas` [N] >= 0.

    At 0 the solution at `phase.VANISHING` stands for the limit: there ties of the limit's Q are settled as on the curve.

    Raises:
        ValueError, CertificateError: as `phase.curve` and `cql.world.exact_curve_solution`.
    """
    alphas = np.sort(np.asarray(alphas, dtype=np.float64))
    found = phase.curve(mdp, counts, partial(exact_curve_solution, objective, empirical, counts),
                        np.where(alphas == 0, phase.VANISHING, alphas), objective.gamma, horizon)
    policies = phase.settled_policy(found.q)
    true, _ = policy_evaluation(mdp, policies, objective.gamma)
    seen = counts.any(-1) & ~mdp.terminal
    metrics = {**found.worth, "value_estimate": found.value_estimate,
               "value_error": found.value_estimate - found.worth["discounted_value"],
               "penalty": mean_penalty(found.q, counts, seen),
               "unsupported_action_rate": unsupported_share(mdp, policies, counts, horizon)}
    return Oracle(alphas, counts, found.q, policies, np.where(seen, found.value, np.nan), true, metrics)


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


def unsupported_share(mdp: TabularMDP, policies, counts, horizon):
    """Share of the steps of an episode whose action the data do not hold in that state, policies [N, S, A] -> [N]."""
    visits = expected_visits(mdp, policies, horizon=horizon)                                          # [N, S]
    unsupported = np.where(counts > 0, 0.0, policies).sum(-1)                                         # [N, S]
    return (visits * unsupported).sum(-1) / visits.sum(-1)


def distance(q, oracle, counts, terminal) -> float:
    """Mean over the data of |Q - Q_oracle|, both [S, A]; as the audit has it."""
    logged = (counts > 0) & ~terminal[:, None]
    return float(np.abs(q - oracle)[logged] @ counts[logged] / counts[logged].sum())


def passing_probability(mdp: TabularMDP, policies, horizon, floor=SHOWN_PASSING / 2):
    """The probability that an episode from the start is ever in a state, within `horizon` steps: [N, S, A] -> [N, S].

    Every state is made absorbing once, as column t of a matrix [S, T] that is pushed `horizon` steps, so that only the first
    arrival counts. States that are entered less than `floor` times on average are left at that number, which bounds
    their probability from above; so are terminal ones, which are entered once at most.
    """
    start, edges = start_distribution(mdp), mdp.edges
    visits = expected_visits(mdp, policies, horizon=horizon)                                          # [N, S]
    found = np.empty_like(visits)
    for n, policy in enumerate(policies):
        weight = edges.under(policy[None])                                                            # [E, 1]
        arrive = _arrivals(mdp, policy)                                                               # [S, S]
        found[n] = start + visits[n] @ arrive
        targets = np.flatnonzero((found[n] > floor) & ~mdp.terminal)
        column = np.arange(len(targets))
        mass = np.repeat(start[:, None], len(targets), axis=1)                                        # [S, T]
        before = np.zeros_like(mass)  # expected visits of s before the first arrival in t
        for _ in range(horizon):
            mass[targets, column] = 0
            before += mass
            mass = edges.forward(weight, mass)
        found[n, targets] = start[targets] + (before * arrive[:, targets]).sum(0)
    return found


def _arrivals(mdp: TabularMDP, policy):
    """[S, S]: probability that a step from s ends in t, ended episodes included; nothing leaves a terminal state."""
    flow = np.where(mdp.terminal[:, None, None], 0.0, mdp.probability * policy[..., None])            # [S, A, K]
    source = np.broadcast_to(np.arange(mdp.num_states)[:, None, None], flow.shape)
    size = mdp.num_states
    return np.bincount((source * size + mdp.next_state).ravel(), flow.ravel(), size * size).reshape(size, size)


# ------------------------------------------------------------------------------------------------------ as JSON


def rounded(values, digits=DIGITS) -> list:
    """To so many significant digits; NaN and infinite numbers become None, whole numbers ints (they are shorter)."""
    def plain(x):
        if not np.isfinite(x):
            return None
        x = float(f"{x:.{digits}g}")
        return int(x) if x == int(x) else x
    return [plain(x) for x in np.ravel(values)]


def letters(policies) -> list[str]:
    """The action of each state as one character, 0-9a-z, of policies [N, S, A]; "." where it is not one action alone."""
    names = "0123456789abcdefghijklmnopqrstuvwxyz"
    certain = policies.max(-1) == 1
    return ["".join(names[a] if sure else "." for a, sure in zip(actions, row))
            for actions, row in zip(policies.argmax(-1), certain)]


def side(policies, estimate, true, passing) -> dict:
    """What the page draws of N policies, each entry a list over them; passing probabilities in steps of `SHOWN_PASSING`."""
    return {"actions": letters(policies), "estimate": [rounded(row) for row in estimate],
            "true": [rounded(row) for row in true],
            "passing": np.rint(passing / SHOWN_PASSING).astype(int).tolist()}


def support(counts) -> list[str]:
    """By state the logged actions, as in `letters`."""
    names = "0123456789abcdefghijklmnopqrstuvwxyz"
    return ["".join(names[a] for a in np.flatnonzero(row)) for row in counts]
