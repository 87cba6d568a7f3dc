"""The numbers of the page's slider, as JSON: the maps of exact and of trained policies over alpha.

Axes: N policy, S state, A action.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from cql.analysis.figures.data import member_of, shown_member
from cql.analysis.report import alpha_maps
from cql.analysis.report.data import ReportData
from cql.analysis.report.snapshots import thinned
from cql.exact import deterministic_policies
from cql.world import pair_counts

DIGITS = 4  # significant ones of a number
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"  # an action as one character
VALUE_WORDS = "Value, discounted: one scale for both maps and for V̂ and V^π."
COLOURS = {  # of the maps: quantity -> colour map, what its legend says
    "true": ("cividis", VALUE_WORDS), "estimate": ("cividis", VALUE_WORDS),
    "difference": ("PuOr", "V̂ − V^π: positive where the value estimate is too high."),
    "distance": ("cividis_r", "|Q − exact Q|, the largest of the state’s logged actions (log scale)."),
    "passing": ("cividis_r", "Probability that an episode from the start is ever in the cell (log scale; white: below "
                             "0.00005).")}


def slider_numbers(data: ReportData) -> dict | None:
    """All that the page's maps are drawn from: as many data sets as fit into ``alpha_maps.BUDGET``, one at least.

    None where states are no cells of a grid, or nothing can be drawn over alpha.
    """
    run_data, world, alphas = data.run_data, data.run_data.world, data.results.alphas
    if world.grid is None or not (data.q or data.exact and alphas):
        return None
    exact_alphas = len(next(iter(data.exact.values())).alphas) if data.exact else 0
    policies = exact_alphas + len(alphas) * run_data.config.num_seeds
    number = max(1, alpha_maps.BUDGET // (alpha_maps.CELL_BYTES * world.mdp.num_states * policies))
    return {"rows": world.grid.shape[0], "columns": world.grid.shape[1], "horizon": world.horizon,
            "gamma": run_data.config.gamma,
            **{name: np.flatnonzero(getattr(world.grid, name)).tolist()
               for name in ("hazard", "goal", "terminal", "start")},
            "moves": world.grid.moves.astype(int).tolist(), "names": world.named_actions, "alphas": alphas,
            "first": shown_member(run_data.members, "cql").alpha if data.q else alphas[0],
            "step": alpha_maps.SHOWN_PASSING, "scales": scales(data),
            "snapshots": snapshot_numbers(data),
            "draws": [_dataset_numbers(data, seed) for seed in run_data.config.data_seeds[:number]]}


def snapshot_numbers(data: ReportData) -> dict | None:
    """What the slider over updates shows of one member, each entry a list over the log entries; None without any."""
    found = data.way
    if found is None:
        return None
    shown = thinned(found)
    distances = None if found.distance is None else found.distance[shown]
    return {"member": found.member.name, "updates": found.updates[shown].tolist(),
            "q": [rounded(q) for q in found.q[shown]],
            "distance": None if distances is None else [rounded(row) for row in distances],
            "returns": None if found.returns is None else rounded(found.returns[shown]),
            "logged": logged_letters(found.counts)}


def logged_letters(counts) -> list[str]:
    """The actions that the data hold in every state, a letter each."""
    return ["".join(LETTERS[a] for a in np.flatnonzero(row)) for row in counts]


def scales(data: ReportData) -> dict[str, dict]:
    """By quantity where its colours begin and end, the colours, and words for the legend.

    The exact solutions make the scales where there are any: a diverged network, worth as little everywhere, would leave
    all else one colour.
    """
    decided = ~data.run_data.world.mdp.terminal
    if data.exact:
        true, estimate = (np.concatenate([getattr(exact, name)[:, exact.counts.any(-1) & decided].ravel()
                                          for exact in data.exact.values()]) for name in ("true", "estimate"))
    else:
        q = np.stack(list(data.q.values()))
        true, estimate = (v[:, decided].ravel() for v in (data.run_data.true_values(q.argmax(-1))[0], q.max(-1)))
    low, high = np.quantile(true, (0.05, 1.0))
    reach = float(f"{max(float(np.quantile(np.abs(estimate - true), 0.98)), 1e-6):.2g}")
    value = float(f"{low:.3g}"), float(f"{max(high, low + 1e-3):.3g}")
    ends = {"true": value, "estimate": value, "difference": (-reach, reach), "passing": (1e-3, 1.0),
            "distance": (1e-3, 10.0)}
    return {name: {"low": ends[name][0], "high": ends[name][1], "log": name in ("passing", "distance"),
                   "colours": palette(colours), "words": words} for name, (colours, words) in COLOURS.items()}


def palette(name: str, steps: int = 65) -> list[str]:
    """A colour map as hex colours, half way to white: black arrows on any of them have a contrast above 5 : 1."""
    colours = colormaps[name](np.linspace(0, 1, steps))
    return [to_hex(tuple(0.5 + 0.5 * part for part in colour[:3])) for colour in colours]


def _dataset_numbers(data: ReportData, data_seed: int) -> dict:
    """The two sides of the maps for one data set, and the actions that it has in every state."""
    run_data, solutions, exact, trained = data.run_data, data.exact.get(data_seed), None, None
    mdp, horizon, start = run_data.world.mdp, run_data.world.horizon, run_data.world.grid.start
    if solutions is not None:
        metrics = solutions.metrics
        exact = {"alphas": [alpha if alpha in data.results.alphas else rounded(alpha)[0]
                            for alpha in solutions.alphas.tolist()],
                 **_side(mdp, solutions.policies, solutions.estimate, solutions.true, horizon),
                 **_rounded_columns(metrics["return"], metrics["hazard_probability"], metrics["value_estimate"],
                                    metrics["discounted_value"])}
    members = [member for member in data.q if member.data_seed == data_seed]
    if members:
        q = np.stack([data.q[member] for member in members])
        true, _, _ = run_data.true_values(q.argmax(-1))
        by_member = {member_of(entry): entry for entry in run_data.evaluation["members"]}
        entries = [by_member[member] for member in members]
        returns, hazard, estimates = ([number(entry) for entry in entries] for number in (
            lambda entry: entry["exact"]["return"], lambda entry: entry["exact"]["hazard_probability"],
            lambda entry: entry["value_estimate"]))
        trained = {"alphas": [member.alpha for member in members], "seeds": [member.seed for member in members],
                   "diverged": [entry["diverged"] and entry["diverged"]["reason"] for entry in entries],
                   **_side(mdp, deterministic_policies(q.argmax(-1), mdp.num_actions), q.max(-1), true, horizon),
                   **_rounded_columns(returns, None if None in hazard else hazard, estimates,
                                      true @ (start / max(start.sum(), 1)))}
    counts = pair_counts(run_data.datasets[data_seed], run_data.inputs)
    return {"seed": data_seed, "exact": exact, "trained": trained,
            "logged": logged_letters(counts)}


def _side(mdp, policies, estimate, true, horizon: int) -> dict:
    """What the page draws of policies [N, S, A], each entry a list over them.

    An action that is not chosen alone is "."; passing probabilities are in steps of `SHOWN_PASSING`.
    """
    certain, passing = policies.max(-1) == 1, alpha_maps.passing_probability(mdp, policies, horizon)
    return {"actions": ["".join(LETTERS[a] if sure else "." for a, sure in zip(actions, row))
                        for actions, row in zip(policies.argmax(-1), certain)],
            "estimate": [rounded(row) for row in estimate], "true": [rounded(row) for row in true],
            "passing": np.rint(passing / alpha_maps.SHOWN_PASSING).astype(int).tolist()}


def _rounded_columns(*columns) -> dict:
    names = ("return", "hazard", "estimateAtStart", "trueAtStart")
    return {name: None if values is None else rounded(values) for name, values in zip(names, columns)}


def rounded(values) -> list:
    """To `DIGITS` significant digits; NaN and infinite numbers become None, whole numbers ints (they are shorter)."""
    def plain(x):
        if not np.isfinite(x):
            return None
        x = float(f"{x:.{DIGITS}g}")
        return int(x) if x == int(x) else x
    return [plain(x) for x in np.ravel(values)]
