"""Pictures of the exact curve over alpha and of an audit; their numbers are made in ``exact_curve`` and ``audit``."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cql.analysis.audit import TERMS
from cql.analysis.figures.data import RunData, member_of, shown_member
from cql.analysis.figures.maps import error_map, map_legend
from cql.analysis.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    QUIET,
    REFERENCES,
    VERMILION,
    WIDTH,
    about,
    heading,
    house_style,
    line,
    save_figures,
    sign,
)
from cql.members import Member
from cql.run_folder import RunFolder

LEVELS = {"optimal": ("optimal", REFERENCES["optimal"]), "behavior": ("behaviour", REFERENCES["behavior"]),
          "bc": ("{} by counts", {"color": ORANGE, "linestyle": "-.", "linewidth": 1.6})}
PANELS = {"discounted_value": "Value at the start, discounted", "return": "Return of the greedy policy over {} steps",
          "hazard_probability": "Hazard probability per episode",
          "action_mismatch_rate": "Share of logged actions it would not take"}


def draw_audit(run: RunFolder, audit: dict) -> dict[str, Path]:
    """Writes audit_values and audit_decomposition into ``figures/``, as far as the run has CQL members.

    Returns:
        name -> path of those drawn.
    """
    run_data = RunData.of(run)
    return save_figures(run_data, {"audit_values": partial(audit_values, run_data, audit),
                                   "audit_decomposition": partial(audit_decomposition, audit)})


@house_style()
def phase_figure(result: dict) -> Figure:
    """The content of ``phase.json``: value, return and hazard over alpha, the flips below, trained members over it.

    Args:
        result: its "trained" are entries of ``evaluation.json``.
    """
    rows, references, members = result["curve"], result["references"], result.get("trained") or ()
    alphas = np.array([row["alpha"] for row in rows])
    wide = (alphas[-1] / alphas[0]) ** 0.035 if len(alphas) > 1 else 2.0  # between the curve and its limits
    flips = [flip["alpha"] for flip in result["flips"]]
    figure = Figure((WIDTH, 7.6), layout="constrained")
    axes = dict(zip(PANELS, figure.subplots(2, 2, sharex=True).ravel()))
    value_axes, flip_axes = axes["discounted_value"], axes["action_mismatch_rate"]
    for key, ax in axes.items():
        ax.set_title(PANELS[key].format(result["horizon"]))
        ax.grid(True)
        if rows[0][key] is None:
            ax.text(0.5, 0.5, "not known in this environment", ha="center", transform=ax.transAxes, color=QUIET)
            continue
        for name, (_, look) in LEVELS.items():
            if references[name] is not None and references[name][key] is not None:
                ax.axhline(references[name][key], zorder=1, **look)
                ax.update_datalim([(1, references[name][key])], updatex=False)
        shown = [(key, BLUE)] + [("value_estimate", VERMILION)] * (ax is value_axes)
        for name, colour in shown:
            ax.plot(alphas, [row[name] for row in rows], color=colour, zorder=3)
            for x, limit, marker in ((alphas[0] / wide, "alpha_zero", "<"), (alphas[-1] * wide, "alpha_infinity", ">")):
                ax.plot(x, references[limit][name], marker, color=colour, markersize=6, zorder=4)
    if rows[0]["hazard_probability"] is not None:
        axes["hazard_probability"].set_ylim(bottom=0)
    trained = _draw_trained(axes, members, alphas, wide)
    value_axes.set_xscale("log")
    with_zero = any(entry["final_alpha"] == 0 for entry in members)
    value_axes.set_xlim(alphas[0] / wide ** (2.8 if with_zero else 1.8), alphas[-1] * wide**1.8)
    for key in ("hazard_probability", "action_mismatch_rate"):
        axes[key].set_xlabel(f"α, weight of the penalty (TD loss: {result['td_loss']})")
    if flips:
        flip_axes.plot(flips, np.full(len(flips), 0.02), "|", color=GREY, markersize=9, markeredgewidth=0.8, zorder=2,
                       transform=flip_axes.get_xaxis_transform())
    handles = [line("greedy policy of the CQL solution: true worth", BLUE),
               line("value estimate of CQL, max Q", VERMILION),
               *(line(words.format(result["bc"]), **look) for name, (words, look) in LEVELS.items()
                 if references[name]),
               sign("limits α → 0⁺ and α → ∞", ">", GREY)]
    if flips:
        handles.append(sign(f"greedy action flips ({len(flips)})", "|", GREY))
    if trained is not None:
        handles.append(sign("trained members", "o", "white", markeredgecolor=BLACK))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.4)
    if trained:
        value_axes.text(0.98, 0.9, trained, transform=value_axes.transAxes, color=QUIET, fontsize=9, ha="right")
    environment = result.get("environment") or {}
    name = environment.get("arguments", {}).get("map_name") or environment.get("id", "")
    seed = "" if result.get("data_seed") is None else f"data set {result['data_seed']}, "
    heading(figure, "CQL over α, solved exactly", f"{name}; {seed}{result['transitions']:,} transitions; "
            f"γ = {result['gamma']:g}; exact solutions on the data's model, judged on the true one")
    return figure


def _draw_trained(axes: dict, entries, alphas, wide: float) -> str | None:
    """The members as points; points far off the exact curve at the frame, so that the curve stays readable.

    Returns:
        What the picture must add in words (maybe nothing), or None if there are no members.
    """
    entries = [e for e in entries if e["algorithm"] == "cql" and e["exact"] is not None]
    if not entries:
        return None
    beyond = False
    for key, ax in axes.items():
        points = [(e["final_alpha"], e[key] if key in e else e["exact"][key], BLUE) for e in entries]
        if key == "discounted_value":
            points += [(e["final_alpha"], e["value_estimate"], VERMILION) for e in entries]
        points = [point for point in points if point[1] is not None]
        low, high = ax.get_ylim()
        reach, pad = 0.6 * (high - low), 0.05 * (high - low)
        near = [y for _, y, _ in points if low - reach <= y <= high + reach]
        low, high = min([low, *(y - pad for y in near)]), max([high, *(y + pad for y in near)])
        ax.set_ylim(low, high)
        for alpha, y, colour in points:
            inside = low <= y <= high
            beyond |= not inside
            x = np.clip(alpha, alphas[0] / wide, alphas[-1] * wide) if alpha > 0 else alphas[0] / wide**2
            marker = "o" if inside else "v" if y < low else "^"
            ax.plot(x, y if inside else np.clip(y, low + pad, high - pad), marker, markersize=6 if inside else 8,
                    markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.5, zorder=5)
    notes = ["far left: α = 0"] * any(e["final_alpha"] == 0 for e in entries) + ["triangles: off the frame"] * beyond
    diverged = sum(e.get("diverged") is not None for e in entries)
    notes += [f"{diverged} of {len(entries)} diverged"] * bool(diverged)
    return "; ".join(notes)


@house_style()
def audit_values(run_data: RunData, audit: dict) -> Figure | None:
    """Learned and exact value of every state against the true one of the learned policy; the map of the difference."""
    member, states = _shown(run_data, audit)
    if member is None:
        return None
    seen = run_data.counts.any(-1) & run_data.decided
    value, true, exact = (np.array(states[name], dtype=np.float64) for name in ("value", "true_value", "oracle_value"))
    grid = run_data.world.grid
    height = 5.2 if grid is None else float(np.clip(5.6 * grid.shape[0] / grid.shape[1] + 1.4, 5, 9))
    figure = Figure((WIDTH, height), layout="constrained")
    scatter, ax = figure.subplots(1, 2, width_ratios=(1, 1 if grid is None else 1.1))
    _draw_scatter(scatter, true[seen], value[seen], exact[seen])
    over = int((value[seen] > true[seen]).sum())
    scatter.set_title(f"States with data: {over} of {seen.sum()} are valued too high")
    if grid is None:
        ax.remove()
    else:
        error_map(figure, ax, grid, np.where(seen, value - true, np.nan), run_data.counts.any(-1), "bottom",
                  "Value estimate − true value", "positive: too high")
        map_legend(figure, grid, None)
    heading(figure, "Value estimates of the network, and the true values of its policy", about(run_data, member))
    return figure


def _shown(run_data: RunData, audit: dict) -> tuple[Member | None, dict]:
    """The member of the maps, if it has per-state arrays, and these."""
    member = shown_member(run_data.members, "cql")
    for entry in audit["members"]:
        if entry["algorithm"] == "cql" and entry["states"] is not None and member_of(entry) == member:
            return member, entry["states"]
    return None, {}


def _draw_scatter(ax, true, value, exact) -> None:
    low, high = min(true.min(), exact.min()), max(true.max(), exact.max())
    spare = 0.5 * (high - low) + 1e-3
    low, high = min(low, max(value.min(), low - spare)), max(high, min(value.max(), high + spare))
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    ax.plot([low, high], [low, high], color=BLACK, linewidth=1)
    ax.fill_between([low, high], [low, high], [high, high], color=GREY, alpha=0.12, linewidth=0)
    ax.text(0.03, 0.97, "too high", transform=ax.transAxes, va="top", color=QUIET)
    ax.text(0.97, 0.03, "too low", transform=ax.transAxes, ha="right", color=QUIET)
    ax.scatter(true, exact, 42, "none", edgecolors=ORANGE, linewidths=1.1, label="exact CQL value", zorder=2)
    inside = (value >= low) & (value <= high)
    ax.scatter(true, np.clip(value, low + pad / 3, high - pad / 3), np.where(inside, 12, 30), BLUE, zorder=3,
               label="network" + (f" ({(~inside).sum()} beyond the frame)" if not inside.all() else ""))
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="true value of the learned policy (discounted)",
           ylabel="value estimate, max Q", aspect="equal")
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.94))


@house_style()
def audit_decomposition(audit: dict) -> Figure | None:
    """The four parts of the error and their sum over alpha: at the start, and as a mean over the data."""
    entries = [entry for entry in audit["members"] if entry["algorithm"] == "cql"]
    if not entries:
        return None
    alphas = sorted({entry["alpha"] for entry in entries})
    figure = Figure((WIDTH, 6.4), layout="constrained")
    axes = figure.subplots(2, len(TERMS) + 1, sharex=True, sharey="row")
    looks = dict(zip((*TERMS, "sum"), (BLUE, VERMILION, GREEN, ORANGE, BLACK)))
    at_start = [entry["start"]["decomposition"] for entry in entries]
    over_data = [{name: entry["decomposition"][name]["mean"] for name in TERMS} for entry in entries]
    for row, parts in zip(axes, (at_start, over_data)):
        parts = [part and {**part, "sum": sum(part.values())} for part in parts]
        sizes = [abs(x) for part in parts for x in (part or {}).values()]
        usual = [abs(x) for part, e in zip(parts, entries) if e["alpha"] > 0 for x in (part or {}).values()]
        reach = 1.15 * max(usual or sizes or [1.0]) + 1e-6
        for ax, (name, colour) in zip(row, looks.items()):
            ax.axhline(0, color=BLACK, linewidth=0.8)
            known = [(alphas.index(e["alpha"]), p[name]) for e, p in zip(entries, parts) if p]
            x, y = np.array(known, dtype=float).reshape(-1, 2).T
            _draw_parts(ax, x, y, colour, reach)
            ax.set_ylim(-reach, reach)
            ax.grid(True, axis="y")
    for ax, name in zip(axes[0], looks):
        ax.set_title("= error" if name == "sum" else name)
    axes[0, 0].set_ylabel("at the start: V − true V")
    axes[1, 0].set_ylabel("over the data: Q − true Q")
    shown = np.unique(np.linspace(0, len(alphas) - 1, len(alphas) if len(alphas) <= 6 else 5).round().astype(int))
    for ax in axes[1]:
        ax.set(xticks=shown, xticklabels=[f"{alphas[n]:g}" for n in shown], xlabel="α",
               xlim=(-0.6, len(alphas) - 0.4))
    heading(figure, "Why the learned values are off: four causes that add up",
            f"logged pairs; {len(entries)} member{'s' * (len(entries) > 1)}, a point each, line through the means; "
            "beyond the frame: a triangle with its value")
    return figure


def _draw_parts(ax, x, y, colour, reach: float) -> None:
    """Points, a line through the means by x, and triangles with a number for what is beyond the frame."""
    positions = np.unique(x)
    means = np.array([y[x == position].mean() for position in positions])
    ax.plot(positions, np.where(np.abs(means) <= reach, means, np.nan), color=colour, linewidth=1.2, alpha=0.6)
    inside = np.abs(y) <= reach
    ax.scatter(x[inside], y[inside], 26, colour, zorder=3)
    for position in positions:
        for side, marker in ((1, "^"), (-1, "v")):
            far = y[(x == position) & ~inside & (y * side > 0)]
            if far.size:
                ax.scatter(position, 0.93 * side * reach, 40, colour, marker=marker, zorder=3)
                ax.annotate(f"{far.mean():+.0f}".replace("-", "−"), (position, 0.93 * side * reach), xytext=(7, 0),
                            textcoords="offset points", va="center", fontsize=10)
