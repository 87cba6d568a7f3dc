"""The exact curve of CQL(H) over alpha: what it would learn, and what that is worth, without training.

At every alpha the fixed point is solved on the empirical MDP (`cql.exact.oracle`) and its greedy policy is judged on the
true one (`cql.exact.tabular`). Beside the curve stand what it can be held against: Behaviour Cloning by counts, the
behaviour policy, the optimum, and both limits of alpha. A flip is an alpha at which the greedy action of a state changes.

    python -m cql.exact.phase --map blocks --out runs/phase-blocks

Axes: N alpha, S state, A action. float64. Values are discounted over an infinite horizon; returns and probabilities are
those of one undiscounted episode with its step limit. alpha is in the units of the TD loss, as in `train.py`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cql.exact.oracle import Solution, alpha_infinity_limit, alpha_zero_limit
from cql.exact.tabular import (
    TabularMDP,
    backward_induction,
    bellman_backup,
    evaluate_policies,
    greedy_actions,
    greedy_policy,
    policy_evaluation,
    start_distribution,
    state_value,
    value_iteration,
)

LOWEST, HIGHEST, POINTS = 1e-2, 1e3, 61
VANISHING = 1e-6  # an alpha so small that only exact ties feel it
ROUNDING = 1e-10  # differences of Q below this times 1 + max |Q| are none: equal counts and targets shall tie
FLIP_TOLERANCE = 1e-5  # relative width to which a flip is pinned down
Solver = Callable[..., Solution]  # alphas [N], initial_value [N, S] -> fixed points, as `cql_fixed_point` gives them
WORTH = ("discounted_value", "return", "hazard_probability", "goal_probability", "action_mismatch_rate")


@dataclass(frozen=True, eq=False)
class Curve:
    """Fixed points over alpha, and what their greedy policies are worth.

    Args:
        alphas: [N], rising.
        q: [N, S, A], as `cql.exact.oracle.Solution.q`; value: [N, S], its maximum.
        residual: [N], the solver's certificate.
        value_estimate: [N], max_a Q at the start.
        worth: by the names of `WORTH`, [N] each (None where the MDP has no such mask).
    """

    alphas: np.ndarray
    q: np.ndarray
    value: np.ndarray
    residual: np.ndarray
    value_estimate: np.ndarray
    worth: dict

    def rows(self) -> list[dict]:
        """One JSON object per alpha."""
        return [{"alpha": float(alpha), "value_estimate": float(self.value_estimate[n]), **row_of(self.worth, n)}
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


def curve(mdp: TabularMDP, counts, solve: Solver, alphas, gamma, horizon) -> Curve:
    """The curve at `alphas` [N] > 0.

    Args:
        mdp: the true model, with a start; counts: [S, A], of the data.
        solve: the fixed points at given alphas on the data's own model, with the same terminal states.
        horizon: steps of an episode.

    Raises:
        ValueError: arguments out of range (gamma = 1, alpha <= 0).
        CertificateError: a fixed point could not be certified.
    """
    alphas = np.sort(np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if not (alphas > 0).all():
        raise ValueError("The curve needs alpha > 0: 0 is drawn as the limit it has there anyway.")
    solution = solve(alphas)
    return Curve(alphas, solution.q, solution.value, solution.residual, solution.value @ start_distribution(mdp),
                 worth(mdp, counts, settled_policy(solution.q), gamma, horizon))


def worth(mdp: TabularMDP, counts, policies, gamma, horizon) -> dict:
    """What policies [N, S, A] are worth on the true model from its start: `WORTH` -> [N], or None.

    `action_mismatch_rate` is the probability that the policy's action differs from the logged one, over the data.
    """
    counts = np.asarray(counts, dtype=np.float64)
    values, _ = policy_evaluation(mdp, policies, gamma)
    episode = evaluate_policies(mdp, policies, horizon=horizon)
    return {"discounted_value": values @ start_distribution(mdp), "return": episode.returns,
            "hazard_probability": episode.hazard_probability, "goal_probability": episode.goal_probability,
            "action_mismatch_rate": 1 - (policies * counts).sum((1, 2)) / counts.sum()}


def settled_policy(q):
    """The greedy policy, [..., S, A]: values as close as rounding count as a tie, which goes to the lowest index."""
    return greedy_policy(np.where(_best(q), 1.0, -np.inf))


def settled_actions(q):
    """The actions of `settled_policy` (0 in states without any), [..., S, A] -> [..., S]."""
    return greedy_actions(np.where(_best(q), 1.0, -np.inf))


def _best(q):
    """[..., S, A] bool: the actions that reach the maximum of their state up to rounding; none where all are -inf."""
    finite = np.isfinite(q)
    scale = 1 + np.abs(np.where(finite, q, 0.0)).max((-1, -2), keepdims=True)
    return finite & (q >= np.max(q, axis=-1, keepdims=True) - ROUNDING * scale)


def row_of(found: dict, n: int) -> dict:
    """Entry n of a `worth`, as plain floats."""
    return {name: None if values is None else float(values[n]) for name, values in found.items()}


def cloned_policy(counts):
    """Behaviour Cloning by counts: each state's most frequent action, ties to the lowest; uniform without data. [S, A]"""
    counts = np.asarray(counts, dtype=np.float64)
    return greedy_policy(np.where(counts > 0, counts, -np.inf))


def references(mdp: TabularMDP, empirical: TabularMDP, counts, solve: Solver, gamma, horizon, behavior=None) -> dict:
    """What the curve is held against: name -> {"value_estimate", *WORTH}, None where a number has no meaning.

    `optimal` is backward induction over the episode (a policy that depends on the step) with the optimal discounted value
    beside it. `solve` is that of the curve. `behavior` [S, A] acts with its own probabilities; None where it is not known.
    """
    limits = {"alpha_zero": alpha_zero_limit(empirical, counts, gamma),
              "alpha_infinity": alpha_infinity_limit(empirical, counts, gamma)}
    # where the Q of a limit ties, the curve near it does not: terms that vanish in Q still choose the action
    near = solve([VANISHING]).q[0]
    targets = bellman_backup(empirical, state_value(limits["alpha_infinity"]), gamma)
    policies = {"alpha_zero": settled_policy(near), "alpha_infinity": _far_policy(limits["alpha_infinity"], targets),
                "bc": cloned_policy(counts)}
    if behavior is not None:
        policies["behavior"] = behavior
    found = worth(mdp, counts, np.stack(list(policies.values())), gamma, horizon)
    start = start_distribution(mdp)
    rows = {name: {"value_estimate": float(state_value(limits[name]) @ start) if name in limits else None,
                   **row_of(found, n)} for n, name in enumerate(policies)}
    best = backward_induction(mdp, horizon).evaluation
    rows["optimal"] = {"value_estimate": None, "discounted_value": float(state_value(value_iteration(mdp, gamma)) @ start),
                       "return": best.returns, "hazard_probability": best.hazard_probability,
                       "goal_probability": best.goal_probability, "action_mismatch_rate": None}
    return {"behavior": None, **rows}


def _far_policy(q, targets):
    """The greedy policy as alpha -> infinity: where Q = c + log beta [S, A] ties, the higher target y [S, A] decides, since
    the next term of Q is (y - Q) / alpha_half."""
    return greedy_policy(np.where(_best(q), targets, -np.inf))


def flip_points(found: Curve, solve: Solver, tolerance=FLIP_TOLERANCE) -> list[Flip]:
    """Every change of a greedy action that the points of a curve show, pinned down by bisection of log alpha.

    All intervals are halved at once until each one with a change is narrower than `tolerance` (infinite: none is halved).
    `solve` is that of the curve. A state that changes several times between two points is followed through all of them if its ends differ; a change that is undone between
    two points is not seen.

    Returns:
        Flips by rising alpha, then state.
    """
    alphas, values, actions = found.alphas, found.value, settled_actions(found.q)
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


# ------------------------------------------------------------------------------------------------------ the page


def table(result: dict, cells=None, action_names=None) -> str:
    """The content of ``phase.json`` as text a person can read.

    Args:
        cells: state -> how it is called, action_names: likewise; default their numbers.
    """
    rows, held = result["curve"], result["references"]
    flips = np.array([flip["alpha"] for flip in result["flips"]])
    lines = ["Exact CQL(H) over alpha, no training: value it believes in at the start, and what its greedy policy is worth.",
             f"gamma {result['gamma']:g}, loss {result['td_loss']}, {result['horizon']} steps an episode, "
             f"{result['transitions']:,} transitions, {result['states_with_data']} states with data", "",
             f"{'alpha':>12}  {'V believed':>10}  {'true V':>8}  {'return':>8}  {'hazard':>7}  {'goal':>7}  "
             f"{'mismatch':>8}  flips"]
    previous = 0.0
    for row in rows:
        number = int(((flips > previous) & (flips <= row["alpha"])).sum())
        lines.append(_line(f"{row['alpha']:.4g}", row) + f"  {number or '':>5}")
        previous = row["alpha"]
    lines.append("")
    names = {"alpha_zero": "alpha -> 0+", "alpha_infinity": "alpha -> inf", "bc": "BC by counts", "behavior": "behaviour",
             "optimal": "optimal"}
    lines += [_line(name, held[key]) for key, name in names.items() if held[key] is not None]
    lines += ["", *_facts(rows)]
    lines += ["", f"{len(flips)} changes of a greedy action in {result['flip_states']} states "
                  "(alpha: state, action before > after):" if len(flips) else "No greedy action changes along this curve."]
    shown = [f"{flip['alpha']:.5g}: {cells[flip['state']] if cells else flip['state']} "
             + ">".join(str(action_names[a] if action_names else a) for a in (flip["before"], flip["after"]))
             for flip in result["flips"][:MOST_FLIPS]]
    lines += ["  " + "".join(f"{text:<28}" for text in shown[n:n + 4]).rstrip() for n in range(0, len(shown), 4)]
    if len(flips) and result["flip_tolerance"] is None:
        lines.append("  (a large map: each alpha is the middle of two points of the curve, not bisected further)")
    if len(flips) > MOST_FLIPS:
        lines.append(f"  and {len(flips) - MOST_FLIPS:,} more, in phase.json")
    return "\n".join(lines)


MOST_FLIPS = 200  # printed


def _line(name, row):
    forms = (("value_estimate", 10, ".3f"), ("discounted_value", 8, ".3f"), ("return", 8, ".3f"),
             ("hazard_probability", 7, ".4f"), ("goal_probability", 7, ".4f"), ("action_mismatch_rate", 8, ".3f"))
    return f"{name:>12}" + "".join(f"  {'–' if row[key] is None else format(row[key], form):>{width}}"
                                   for key, width, form in forms)


def _facts(rows):
    """The best alpha by return and by hazard, and where the believed value is above the true one."""
    best = max(rows, key=lambda row: row["return"])
    lines = [f"Highest return {best['return']:.3f} at alpha = {best['alpha']:.4g}."]
    if rows[0]["hazard_probability"] is not None:
        safest = min(rows, key=lambda row: row["hazard_probability"])
        lines[0] += f" Lowest hazard {safest['hazard_probability']:.4f} at alpha = {safest['alpha']:.4g}."
    over = [row["value_estimate"] > row["discounted_value"] for row in rows]
    if not any(over):
        lines.append("Nowhere on this curve is the believed value at the start above the true one.")
    else:
        ends = np.flatnonzero(np.diff([False, *over, False])).reshape(-1, 2)                          # [runs, 2]
        spans = [f"{rows[i]['alpha']:.4g} to {rows[j - 1]['alpha']:.4g}" if j - i > 1 else f"{rows[i]['alpha']:.4g}"
                 for i, j in ends]
        lines.append(f"The believed value at the start is above the true one at alpha = {', '.join(spans)}.")
    return lines


if __name__ == "__main__":
    from cql.analysis.phase_command import main  # files, environments and pictures: what is exact knows none of them

    sys.exit(main())
