"""Pictures of the exact curve over alpha and of an audit; their numbers are made in ``cql.exact.phase`` and ``audit``."""

import io

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cql.analysis.audit import TERMS
from cql.analysis.figure_data import Pictured, shown_member
from cql.analysis.logged import behavior_policy, exact_curve, known_model
from cql.analysis.look import (
    BLACK,
    BLUE,
    DPI,
    GREY,
    ORANGE,
    STYLE,
    VERMILION,
    WIDTH,
    about,
    heading,
    warn_of_divergence,
)
from cql.analysis.maps import (
    ERRORS,
    _colour_bar,
    _draw_board,
    _draw_numbers,
    _map_legend,
    _symmetric_norm,
    _wrapped_title,
)
from cql.exact import phase
from cql.files import write_whole
from cql.members import Member
from cql.runs import RunFolder

GREEN = "#009E73"  # Okabe and Ito's
LEVELS = {"optimal": {"color": BLACK, "linestyle": "--", "linewidth": 1.3},
          "behavior": {"color": GREY, "linestyle": "--", "linewidth": 1.6},
          "bc": {"color": ORANGE, "linestyle": "-.", "linewidth": 1.6}}
NAMES = {"optimal": "optimal", "behavior": "behaviour", "bc": "BC by counts"}


def png(figure: Figure) -> bytes:
    """The bytes of a picture; equal figures give equal ones."""
    out = io.BytesIO()
    with style.context(["default", STYLE]):
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def draw_audit(run: RunFolder, audit: dict) -> list:
    """Writes audit_values, audit_decomposition and audit_phase into ``figures/``, as far as the run has CQL members."""
    pictured = Pictured.of(run)
    drawn = []
    (run.path / "figures").mkdir(exist_ok=True)
    with style.context(["default", STYLE]):
        for name, figure in (("audit_values", audit_values(pictured, audit)),
                             ("audit_decomposition", audit_decomposition(pictured, audit)),
                             ("audit_phase", audit_phase(pictured))):
            if figure is not None:
                warn_of_divergence(figure, pictured)
                drawn.append(run.path / "figures" / f"{name}.png")
                write_whole(drawn[-1], png(figure))
    return drawn


# --------------------------------------------------------------------------------------------------- the curve over alpha


def phase_figure(result: dict, title: str = "CQL over α, solved exactly", source: str = "") -> Figure:
    """The content of ``phase.json``: value, return and hazard over alpha, the flips below, trained members over it.

    Args:
        result: may lack "flips"; "trained": entries of ``evaluation.json``.
    """
    with style.context(["default", STYLE]):
        return _phase_figure(result, title, source)


def _phase_figure(result, title, source):
    rows, held = result["curve"], result["references"]
    alphas = np.array([row["alpha"] for row in rows])
    has_hazard, flips = rows[0]["hazard_probability"] is not None, [flip["alpha"] for flip in result.get("flips") or ()]
    figure = Figure((WIDTH, 7.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    panels = [(axes[0, 0], "Value at the start, discounted", "discounted_value"),
              (axes[0, 1], f"Return of the greedy policy over {result['horizon']} steps", "return"),
              (axes[1, 0], "Hazard probability per episode", "hazard_probability"),
              (axes[1, 1], "Share of logged actions it would not take", "action_mismatch_rate")]
    for ax, name, key in panels:
        ax.set_title(name)
        ax.grid(True)
        if rows[0][key] is None:
            ax.text(0.5, 0.5, "not known in this environment", ha="center", transform=ax.transAxes, color="#444444")
            continue
        _levels(ax, held, key)
        ax.plot(alphas, [row[key] for row in rows], color=BLUE, zorder=3)
        _limits(ax, alphas, held, key, BLUE)
    axes[0, 0].plot(alphas, [row["value_estimate"] for row in rows], color=VERMILION, zorder=3)
    _limits(axes[0, 0], alphas, held, "value_estimate", VERMILION)
    if has_hazard:
        axes[1, 0].set_ylim(bottom=0)
    trained = _trained(axes, panels, result.get("trained") or (), alphas)
    axes[0, 0].set_xscale("log")
    wide = (alphas[-1] / alphas[0]) ** 0.035 if len(alphas) > 1 else 2.0
    without = any(e["final_alpha"] == 0 for e in result.get("trained") or ())
    axes[0, 0].set_xlim(alphas[0] / wide ** (2.8 if without else 1.8), alphas[-1] * wide**1.8)
    for ax in axes[1]:
        ax.set_xlabel(f"α, weight of the penalty (TD loss: {result['td_loss']})")
    if flips:
        axes[1, 1].plot(flips, np.full(len(flips), 0.02), "|", color=GREY, markersize=9, markeredgewidth=0.8, zorder=2,
                        transform=axes[1, 1].get_xaxis_transform())
    handles = [Line2D([], [], color=BLUE, label="greedy policy of the CQL solution: true worth"),
               Line2D([], [], color=VERMILION, label="the value CQL believes in, max Q"),
               *(Line2D([], [], label=NAMES[name], **look) for name, look in LEVELS.items() if held[name] is not None),
               Line2D([], [], marker=">", color=GREY, linestyle="", label="limits α → 0⁺ and α → ∞")]
    if flips:
        handles.append(Line2D([], [], marker="|", color=GREY, linestyle="", label=f"greedy action flips ({len(flips)})"))
    if trained is not None:
        handles.append(Line2D([], [], marker="o", color="white", markeredgecolor=BLACK, markersize=6, linestyle="",
                              label="trained members"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.4)
    if trained:
        axes[0, 0].text(0.98, 0.9, trained, transform=axes[0, 0].transAxes, color="#444444", fontsize=9, ha="right")
    heading(figure, title, source or _source(result))
    return figure


def _source(result) -> str:
    environment = result.get("environment") or {}
    arguments = environment.get("arguments", {})
    name = arguments.get("map_name") or environment.get("id", "")
    seed = "" if result.get("data_seed") is None else f"data draw {result['data_seed']}, "
    return (f"{name}; {seed}{result['transitions']:,} transitions; γ = {result['gamma']:g}; fixed points on the data's model, "
            "judged on the true one")


def _levels(ax, held, key) -> None:
    for name, look in LEVELS.items():
        if held[name] is not None and held[name][key] is not None:
            ax.axhline(held[name][key], zorder=1, **look)
            ax.update_datalim([(1, held[name][key])], updatex=False)


def _limits(ax, alphas, held, key, colour) -> None:
    """Triangles at both ends, pointing outwards."""
    wide = (alphas[-1] / alphas[0]) ** 0.035 if len(alphas) > 1 else 2.0
    for x, name, marker in ((alphas[0] / wide, "alpha_zero", "<"), (alphas[-1] * wide, "alpha_infinity", ">")):
        ax.plot(x, held[name][key], marker, color=colour, markersize=6, zorder=4)


def _trained(axes, panels, entries, alphas) -> str | None:
    """The members as points; those far off the exact curve at the frame, so that the curve stays readable.

    Returns:
        What the picture must add in words (maybe nothing), or None if there are no members.
    """
    entries = [e for e in entries if e["algorithm"] == "cql" and e["exact"] is not None]
    if not entries:
        return None
    wide, beyond = (alphas[-1] / alphas[0]) ** 0.035 if len(alphas) > 1 else 2.0, False
    for ax, _, key in panels:
        points = [(e["final_alpha"], e[key] if key in e else e["exact"][key], BLUE) for e in entries]
        if ax is axes[0, 0]:
            points += [(e["final_alpha"], e["value_estimate"], VERMILION) for e in entries]
        points = [point for point in points if point[1] is not None]
        low, high = ax.get_ylim()
        reach = 0.6 * (high - low)
        near = [y for _, y, _ in points if low - reach <= y <= high + reach]
        pad = 0.05 * (high - low)
        low, high = min([low, *(y - pad for y in near)]), max([high, *(y + pad for y in near)])
        ax.set_ylim(low, high)
        for alpha, y, colour in points:
            inside = low <= y <= high
            beyond |= not inside
            x = np.clip(alpha, alphas[0] / wide, alphas[-1] * wide) if alpha > 0 else alphas[0] / wide**2
            ax.plot(x, y if inside else np.clip(y, low + pad, high - pad), "o" if inside else "v" if y < low else "^",
                    markersize=6 if inside else 8, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.5, zorder=5)
    notes = ["far left: α = 0"] * any(e["final_alpha"] == 0 for e in entries) + ["triangles: off the frame"] * beyond
    diverged = sum(e.get("diverged") is not None for e in entries)
    notes += [f"{diverged} of {len(entries)} diverged"] * bool(diverged)
    return "; ".join(notes)


# ------------------------------------------------------------------------------------------------------------- the audit


def audit_phase(pictured: Pictured) -> Figure | None:
    """The exact curve of the first draw with the trained members of that draw over it."""
    config = pictured.config
    members = [e for e in pictured.evaluation["members"] if e["data_seed"] == config.data_seed]
    if config.td_loss == "huber" or not any(e["algorithm"] == "cql" for e in members):
        return None
    result = exact_curve(pictured.environment, known_model(pictured.environment), pictured.dataset, phase.default_alphas(),
                         config.objective, behavior_policy(pictured.environment, config), flips=False)
    result["trained"] = members
    return phase_figure(result, "The trained members beside the exact curve over α")


def audit_values(pictured: Pictured, audit: dict) -> Figure | None:
    """Learned and oracle value of every state against the true one of the learned policy; the map of the difference."""
    member, states = _shown(pictured, audit)
    if member is None:
        return None
    seen = pictured.counts.any(-1) & pictured.decided
    value, true, oracle = (np.array(states[name], dtype=np.float64) for name in ("value", "true_value", "oracle_value"))
    board = pictured.board
    if board is None:
        figure = Figure((WIDTH, 5.2), layout="constrained")
        scatter, ax = figure.subplots(1, 2)[0], None
        figure.axes[1].remove()
    else:
        figure = Figure((WIDTH, float(np.clip(5.6 * board.shape[0] / board.shape[1] + 1.4, 5, 9))), layout="constrained")
        scatter, ax = figure.subplots(1, 2, width_ratios=(1, 1.1))
    _scatter(scatter, true[seen], value[seen], oracle[seen])
    over = int((value[seen] > true[seen]).sum())
    scatter.set_title(f"States with data: {over} of {seen.sum()} are valued too high")
    if ax is not None:
        error = np.where(seen, value - true, np.nan)
        norm = _symmetric_norm(error[seen])
        _draw_board(ax, board, error, ERRORS, norm, pictured.counts.any(-1))
        _draw_numbers(ax, board, error, norm)
        _wrapped_title(ax, board, "Learned − true value")
        _colour_bar(figure, ax, norm, ERRORS, "bottom", "positive: too high", extend="both")
        _map_legend(figure, board, arrows=None)
    heading(figure, "What the network believes of its policy, and what that is worth", about(pictured, member))
    return figure


def _scatter(ax, true, value, oracle) -> None:
    low, high = min(true.min(), oracle.min()), max(true.max(), oracle.max())
    spare = 0.5 * (high - low) + 1e-3
    low, high = min(low, max(value.min(), low - spare)), max(high, min(value.max(), high + spare))
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    ax.plot([low, high], [low, high], color=BLACK, linewidth=1)
    ax.fill_between([low, high], [low, high], [high, high], color=GREY, alpha=0.12, linewidth=0)
    ax.text(0.03, 0.97, "too high", transform=ax.transAxes, va="top", color="#444444")
    ax.text(0.97, 0.03, "too low", transform=ax.transAxes, ha="right", color="#444444")
    ax.scatter(true, oracle, 42, "none", edgecolors=ORANGE, linewidths=1.1, label="oracle: the exact CQL value", zorder=2)
    inside = (value >= low) & (value <= high)
    ax.scatter(true, np.clip(value, low + pad / 3, high - pad / 3), np.where(inside, 12, 30), BLUE, zorder=3,
               label="network" + (f" ({(~inside).sum()} beyond the frame)" if not inside.all() else ""))
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="true value of the learned policy (discounted)",
           ylabel="value believed, max Q", aspect="equal")
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.94))


def audit_decomposition(pictured: Pictured, audit: dict) -> Figure | None:
    """The four parts of the error and their sum over alpha: at the start, and as a mean over the data."""
    entries = [entry for entry in audit["members"] if entry["algorithm"] == "cql"]
    if not entries:
        return None
    alphas = sorted({entry["alpha"] for entry in entries})
    figure = Figure((WIDTH, 6.4), layout="constrained")
    axes = figure.subplots(2, len(TERMS) + 1, sharex=True, sharey="row")
    looks = dict(zip((*TERMS, "sum"), (BLUE, VERMILION, GREEN, ORANGE, BLACK)))
    for row, where in zip(axes, (_start_parts, _data_parts)):
        parts = [where(entry) for entry in entries]
        usual = [abs(x) for part, e in zip(parts, entries) for x in (part or {}).values() if e["alpha"] > 0]
        reach = 1.15 * max(usual or [abs(x) for part in parts for x in (part or {}).values()] or [1.0]) + 1e-6
        for ax, (name, colour) in zip(row, looks.items()):
            ax.axhline(0, color=BLACK, linewidth=0.8)
            _parts(ax, [(alphas.index(e["alpha"]), p[name]) for e, p in zip(entries, parts) if p], colour, reach)
            ax.set_ylim(-reach, reach)
            ax.grid(True, axis="y")
    for ax, name in zip(axes[0], looks):
        ax.set_title("= " * (name == "sum") + {"sum": "error"}.get(name, name))
    axes[0, 0].set_ylabel("at the start: V − true V")
    axes[1, 0].set_ylabel("over the data: Q − true Q")
    for ax in axes[1]:
        shown = range(len(alphas)) if len(alphas) <= 6 else np.unique(np.linspace(0, len(alphas) - 1, 5).round().astype(int))
        ax.set(xticks=list(shown), xticklabels=[f"{alphas[n]:g}" for n in shown], xlabel="α", xlim=(-0.6, len(alphas) - 0.4))
    heading(figure, "Why the learned values are off: four causes that add up",
            f"logged pairs; {len(entries)} member{'s' * (len(entries) > 1)}, a point each, line through the means; "
            "beyond the frame: a triangle with its value")
    return figure


def _start_parts(entry) -> dict | None:
    parts = entry["start"]["decomposition"]
    return None if parts is None else {**parts, "sum": sum(parts.values())}


def _data_parts(entry) -> dict:
    found = {name: entry["decomposition"][name]["mean"] for name in TERMS}
    return {**found, "sum": sum(found.values())}


def _parts(ax, points, colour, reach) -> None:
    x, y = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points])
    places = np.unique(x)
    means = np.array([y[x == place].mean() for place in places])
    ax.plot(places, np.where(np.abs(means) <= reach, means, np.nan), color=colour, linewidth=1.2, alpha=0.6)
    inside = np.abs(y) <= reach
    ax.scatter(x[inside], y[inside], 26, colour, zorder=3)
    for place in places:
        far = y[(x == place) & ~inside]
        for side in (1, -1):
            if (far * side > 0).any():
                ax.scatter(place, 0.93 * side * reach, 40, colour, marker="^" if side > 0 else "v", zorder=3)
                ax.annotate(f"{far[far * side > 0].mean():+.0f}".replace("-", "−"), (place, 0.93 * side * reach), xytext=(7, 0),
                            textcoords="offset points", va="center", fontsize=10)


def _shown(pictured: Pictured, audit: dict) -> tuple[Member | None, dict | None]:
    """The member of the maps, if it has per-state arrays, and these."""
    member = shown_member(pictured.members, "cql")
    for entry in audit["members"]:
        if member is not None and entry["algorithm"] == "cql" and entry["states"] is not None and (
                entry["alpha"], entry["seed"], entry["data_seed"]) == (member.alpha, member.seed, member.data_seed):
            return member, entry["states"]
    return None, None
