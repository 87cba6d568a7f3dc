"""The exact curve over alpha of one data set: the content of ``phase.json``, and its table for the terminal."""

import math
from functools import partial

import numpy as np

from cql.cloned import cloned_episodes
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError
from cql.exact import DENSE_STATES, curve
from cql.text import number
from cql.world import World, exact_curve_solution, pair_counts

MOST_FLIPS = 200  # printed


def exact_curve(world: World, dataset: OfflineDataset, alphas, config: Config, behavior=None) -> dict:
    """The exact curve of one data set, its references and flips: the content of ``phase.json``.

    Args:
        config: says what is minimised and what BC clones.
        behavior: ``[S, A]``, the policy that generated the data, where it is known.

    Raises:
        RunError: there is no true model, or no exact solution of this objective.
        DatasetError: the data set is of another environment. ConfigError: an alpha that is not positive.
    """
    mdp, horizon, gamma, objective = world.known().mdp, world.horizon, config.gamma, config.objective
    empirical, counts = world.empirical(dataset)
    solve = partial(exact_curve_solution, objective, empirical, counts)
    try:
        points = curve.alpha_curve(mdp, counts, solve, alphas, gamma, horizon)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    cloned = pair_counts(cloned_episodes(config, dataset, world), world.inputs)
    references = curve.references(mdp, empirical, counts, solve, gamma, horizon, behavior, cloned)
    # on a large map every solution takes seconds and thousands of actions flip: there the interval of points is enough
    tolerance = curve.FLIP_TOLERANCE if mdp.num_states <= DENSE_STATES else math.inf
    changes = curve.flip_points(points, solve, tolerance)
    return {"environment": dataset.environment, "data_seed": dataset.metadata.get("seed"),
            "gamma": gamma, "td_loss": objective.td_loss, "horizon": horizon, "transitions": int(counts.sum()),
            "states_with_data": int(counts.any(-1).sum()), "largest_residual": float(points.residual.max()),
            "bc": config.bc_name, "references": references, "curve": points.rows(),
            "flip_tolerance": tolerance if tolerance < math.inf else None,
            "flips": [vars(flip) for flip in changes], "flip_states": len({flip.state for flip in changes})}


def table(result: dict, cells=None, action_names=None) -> str:
    """The content of ``phase.json`` for the terminal.

    Args:
        cells, action_names: the name of each state and action; default their numbers.
    """
    rows, flips = result["curve"], result["flips"]
    alphas = np.array([flip["alpha"] for flip in flips])
    lines = ["Exact CQL(H) over alpha, no training: value estimate at the start, and the worth of its greedy policy.",
             f"gamma {result['gamma']:g}, loss {result['td_loss']}, {result['horizon']} steps an episode, "
             f"{result['transitions']:,} transitions, {result['states_with_data']} states with data", "",
             f"{'alpha':>12}  {'V estimate':>10}  {'true V':>8}  {'return':>8}  {'hazard':>7}  {'goal':>7}  "
             f"{'mismatch':>8}  flips"]
    previous = 0.0
    for row in rows:
        passed = int(((alphas > previous) & (alphas <= row["alpha"])).sum())
        lines.append(_line(f"{row['alpha']:.4g}", row) + f"  {passed or '':>5}")
        previous = row["alpha"]
    names = {"alpha_zero": "alpha -> 0+", "alpha_infinity": "alpha -> inf", "bc": "BC by counts",
             "behavior": "behaviour", "optimal": "optimal"}
    references = [(name, result["references"][key]) for key, name in names.items()]
    lines += ["", *(_line(name, row) for name, row in references if row is not None),
              *[f"BC clones {result['bc'].removeprefix('BC of ')}."] * (result["bc"] != "BC"), "", *_facts(rows), ""]
    lines.append(f"{len(flips)} changes of a greedy action in {result['flip_states']} states "
                 "(alpha: state, action before > after):" if flips else "No greedy action changes along this curve.")
    shown = [f"{flip['alpha']:.5g}: {cells[flip['state']] if cells else flip['state']} "
             + ">".join(str(action_names[a] if action_names else a) for a in (flip["before"], flip["after"]))
             for flip in flips[:MOST_FLIPS]]
    lines += ["  " + "".join(f"{text:<27} " for text in shown[n:n + 4]).rstrip() for n in range(0, len(shown), 4)]
    if flips and result["flip_tolerance"] is None:
        lines.append("  (a large map: each alpha is the middle of two points of the curve, not bisected further)")
    if len(flips) > MOST_FLIPS:
        lines.append(f"  and {len(flips) - MOST_FLIPS:,} more, in phase.json")
    return "\n".join(lines)


def _line(name: str, row: dict) -> str:
    forms = (("value_estimate", 10, ".3f"), ("discounted_value", 8, ".3f"), ("return", 8, ".3f"),
             ("hazard_probability", 7, ".4f"), ("goal_probability", 7, ".4f"), ("action_mismatch_rate", 8, ".3f"))
    return f"{name:>12}" + "".join(f"  {number(row[key], form):>{width}}" for key, width, form in forms)


def _facts(rows: list[dict]) -> list[str]:
    """The best alpha by return and by hazard, and where the value estimate is above the true value."""
    best = max(rows, key=lambda row: row["return"])
    lines = [f"Highest return {best['return']:.3f} at alpha = {best['alpha']:.4g}."]
    if rows[0]["hazard_probability"] is not None:
        safest = min(rows, key=lambda row: row["hazard_probability"])
        lines[0] += f" Lowest hazard {safest['hazard_probability']:.4f} at alpha = {safest['alpha']:.4g}."
    over = [row["value_estimate"] > row["discounted_value"] for row in rows]
    if not any(over):
        return [*lines, "Nowhere on this curve is the value estimate at the start above the true value."]
    ends = np.flatnonzero(np.diff([False, *over, False])).reshape(-1, 2)  # [stretches, 2]
    spans = [f"{rows[i]['alpha']:.4g}" + (f" to {rows[j - 1]['alpha']:.4g}" if j - i > 1 else "") for i, j in ends]
    return [*lines, f"The value estimate at the start is above the true value at alpha = {', '.join(spans)}."]
