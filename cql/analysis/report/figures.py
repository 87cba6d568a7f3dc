"""The report's pictures; their numbers are made in ``data`` and ``statistics``."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cql.analysis.figures.maps import VALUES, colour_bar, draw_arrows, draw_cells, map_legend, value_norm
from cql.analysis.figures.plots import seeds_words
from cql.analysis.figures.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    QUIET,
    REFERENCES,
    WIDTH,
    about,
    group_name,
    heading,
    house_style,
    line,
    save_figures,
    sign,
)
from cql.analysis.report.data import ReportData

PANELS = {"return": "Return over the episode", "hazard_probability": "Hazard probability per episode",
          "action_mismatch_rate": "Share of logged actions not taken",
          "unsupported_action_rate": "Share of steps with an OOD action",
          "penalty": "Conservative penalty (nats)", "value_error": "V̂ − V$^π$ at the start"}
LINES = {"optimal": "optimal policy", "behavior": "behaviour policy", "floor": "floor: entropy of the logged actions"}
ACROSS = 6  # maps beside each other
LEAST = 1e-9  # what is less is drawn there on a log axis
MANY = {"marker": "o", "color": BLUE, "linestyle": "", "markeredgewidth": 0}  # one of many points


def draw_report(data: ReportData) -> dict[str, Path]:
    """Writes what can be drawn of the report's pictures into ``figures/``: name -> path."""
    return save_figures(data.run_data, {name: partial(draw, data) for name, draw in FIGURES.items()})


# ------------------------------------------------------------------------------------------------------- over alpha


class AlphaAxis:
    """A log axis of alpha on which 0 has a position of its own, left of a break."""

    def __init__(self, alphas):
        positive = [alpha for alpha in alphas if alpha > 0] or [1.0]
        self.low, self.high, self.zero = min(positive), max(positive), min(alphas) == 0
        self.few = sorted(set(positive)) if len(set(positive)) <= 5 else None  # each of them has a tick
        self.wide = max((self.high / self.low) ** 0.06, 1.3)

    def positions(self, alphas) -> np.ndarray:
        """Where they are drawn."""
        alphas = np.asarray(alphas, dtype=np.float64)
        return np.where(alphas > 0, alphas, self.low / self.wide**2)

    def apply(self, ax) -> None:
        """Sets limits and ticks; with 0, two strokes across the axis between 0 and the rest."""
        left = self.low / self.wide ** (3 if self.zero else 1)
        ax.set(xscale="log", xlim=(left, self.high * self.wide), xlabel="α, weight of the penalty")
        decades = np.arange(np.ceil(np.log10(self.low) - 1e-9), np.floor(np.log10(self.high) + 1e-9) + 1)
        ticks = self.few or list(10.0 ** decades[:: max(1, len(decades) // 6 + (len(decades) > 6))]) or [self.low]
        labels = [f"{tick:g}" for tick in ticks]
        if self.zero:
            ticks, labels = [float(self.positions([0])[0]), *ticks], ["0", *labels]
            ax.plot(self.low / self.wide * np.array([0.93, 1.07]), [0, 0], "|", color=BLACK, markersize=9,
                    transform=ax.get_xaxis_transform(), clip_on=False, zorder=6)
        ax.set_xticks(ticks, labels)
        ax.set_xticks([], minor=True)


@house_style()
def alpha_curves(data: ReportData) -> Figure | None:
    """Six numbers over alpha: trained members with intervals over the exact curve, references as lines."""
    alphas = data.results.alphas
    panels = [name for name in PANELS if data.exact_mean(name) or any(data.mean(("cql", a), name) for a in alphas)]
    if not alphas or not panels:
        return None
    down = -(-len(panels) // 3)
    figure = Figure((WIDTH, 1.75 + 2.75 * down), layout="constrained")
    axes = figure.subplots(down, 3, squeeze=False).ravel()
    axis = AlphaAxis([*alphas, *(alpha for exact in data.exact.values() for alpha in exact.alphas.tolist())])
    lines, beyond, banded = set(), False, False
    for ax, name in zip(axes, panels):
        exact, levels, bc = data.exact_mean(name), data.levels(name), data.mean(("bc", None), name)
        trained = {alpha: mean for alpha in alphas if (mean := data.mean(("cql", alpha), name))}
        around = [*levels.values(), *(bc or ())[:1]]
        if exact:
            x, y = exact
            ax.plot(x[x > 0], y[x > 0], color=BLACK, linewidth=1.6, zorder=3)
            if axis.zero:
                ax.plot(axis.positions([0]), y[x == 0], "_", color=BLACK, markersize=13, markeredgewidth=1.8, zorder=3)
            around += [*y]
        for level, value in levels.items():
            ax.axhline(value, zorder=1, **REFERENCES[level])
        if bc:
            ax.axhline(bc[0], color=ORANGE, linestyle="-.", linewidth=1.6, zorder=2)
            if bc[1] is not None:
                ax.axhspan(bc[1], bc[2], color=ORANGE, alpha=0.15, linewidth=0)
                banded = True
        if name == "value_error":
            ax.axhline(0, color=BLACK, linewidth=0.8)
        lines |= {*levels, *["bc"] * bool(bc)}
        beyond |= _draw_means(ax, axis, trained, around, name not in ("return", "penalty", "value_error"))
        axis.apply(ax)
        ax.set_title(PANELS[name])
        ax.grid(True, axis="y")
    for ax in axes[len(panels):]:
        ax.remove()
    handles = [sign(f"trained CQL: {_mean_words(data)}", "o", BLUE)]
    if data.exact:
        handles.append(line("exact CQL solution: mean over the data sets", BLACK))
    if "bc" in lines:
        handles.append(line("trained BC" + " (band: its interval)" * banded, ORANGE, linestyle="-."))
    handles += [line(words, **REFERENCES[name]) for name, words in LINES.items() if name in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.6)
    notes = "; triangles: beyond the frame, with their mean" * beyond
    heading(figure, "What α does", seeds_words(data.run_data) + notes)
    return figure


def _draw_means(ax, axis: AlphaAxis, trained: dict, around, share: bool) -> bool:
    """Means with intervals; means far from what they are compared with at the frame, with their number.

    The frame holds `around` and the trained means at most as far beyond it as it is high; that of a share starts at 0.

    Returns:
        Whether there is a mean beyond the frame.
    """
    means = np.array([mean[0] for mean in trained.values()])
    around = np.array(around or np.median(means, keepdims=True), dtype=np.float64)
    low, high = around.min(), around.max()
    reach = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-3)
    near = np.array([*around, *means[(means > low - reach) & (means < high + reach)]])
    low, high = near.min(), near.max()
    pad = 0.08 * max(high - low, reach)
    ends = [end for mean in trained.values() for end in mean[1:] if end is not None]
    ends = [end for end in ends if low - reach < end < high + reach]
    low, high = min([low, *ends]) - pad, max([high, *ends]) + pad
    far = False
    for alpha, (mean, *interval) in trained.items():
        x = float(axis.positions([alpha])[0])
        if low <= mean <= high:
            if interval[0] is not None:
                ax.plot([x, x], interval, color=BLUE, linewidth=2, alpha=0.75, solid_capstyle="butt", zorder=4)
            ax.plot(x, mean, "o", color=BLUE, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, zorder=5)
            continue
        far, below = True, mean < low
        y = low + 0.5 * pad if below else high - 0.5 * pad
        ax.plot(x, y, "v" if below else "^", color=BLUE, markersize=8, zorder=5)
        words = f"{mean:,.0f}" if 1e3 <= abs(mean) < 1e6 else f"{mean:.3g}"
        ax.annotate(words.replace("-", "−"), (x, y), xytext=(0, 8 if below else -8), textcoords="offset points",
                    ha="center", va="bottom" if below else "top", rotation=90, fontsize=9.5, zorder=6,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    ax.set_ylim(max(low, -0.04 * high) if share else low, high)
    return far


def _mean_words(data: ReportData) -> str:
    """What a mean is drawn with."""
    drawn = any((mean := data.mean(group, "return")) and mean[1] is not None for group in data.results.groups)
    level = f"{100 * data.statistics['level']:g} %"
    return f"mean and {level} interval" if drawn else "mean (too few data sets for an interval)"


@house_style()
def departure(data: ReportData) -> Figure | None:
    """Where the network leaves the exact solution: softmax mass on OOD actions, and |Q - exact Q|, member by member."""
    alphas = data.results.alphas
    panels = {"Mass of softmax Q on OOD actions":
              {alpha: data.results.values("ood_mass", ("cql", alpha)) for alpha in alphas},
              "Mean |Q − exact Q| over the data": data.distances}
    for title, by_alpha in panels.items():
        known = {alpha: values[np.isfinite(values)] for alpha, values in by_alpha.items()}
        panels[title] = {alpha: values for alpha, values in known.items() if values.size}
    panels = {title: by_alpha for title, by_alpha in panels.items() if by_alpha}
    if not panels:
        return None
    figure = Figure((WIDTH, 4.3), layout="constrained")
    axis, random = AlphaAxis(alphas), np.random.default_rng(0)
    for ax, (title, by_alpha) in zip(figure.subplots(1, len(panels), squeeze=False).ravel(), panels.items()):
        for alpha, values in by_alpha.items():
            shift = axis.wide ** random.uniform(-0.25, 0.25, values.size)
            ax.plot(axis.positions([alpha])[0] * shift, np.maximum(values, LEAST), markersize=3.5, alpha=0.45, **MANY)
        ax.plot(axis.positions(list(by_alpha)), [max(np.median(values), LEAST) for values in by_alpha.values()], "_",
                color=BLACK, markersize=15, markeredgewidth=2)
        ax.set(yscale="log", title=title)
        axis.apply(ax)
        ax.grid(True, axis="y")
    handles = [sign("a member", "o", BLUE, 5, alpha=0.6), sign("median", "_", BLACK, 14, markeredgewidth=2)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    heading(figure, "Network and exact solution", seeds_words(data.run_data))
    return figure


# ------------------------------------------------------------------------------------------------------------- maps


@house_style()
def policies(data: ReportData) -> Figure | None:
    """The greedy policies of the first data set and seed over alpha: trained above, exact below."""
    run_data, config, grid = data.run_data, data.run_data.config, data.run_data.world.grid
    if grid is None or not data.results.groups:
        return None
    shown = data.shown_policies()
    with_exact = any(exact for _, _, exact in shown)
    blocks, per = -(-len(shown) // ACROSS), 1 + with_exact
    across = -(-len(shown) // blocks)
    size = (WIDTH - 0.5) / max(across, 3)
    figure = Figure((WIDTH, 1.7 + blocks * per * (size * grid.shape[0] / grid.shape[1] + 0.28)), layout="compressed")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.01)
    axes = figure.subplots(blocks * per, across, squeeze=False)
    visited = run_data.counts.any(-1)
    # the exact sides make the scale: a diverged policy, worth -100 everywhere, would leave the others one colour
    sides = [exact or trained for _, trained, exact in shown]
    values = [true[visited & ~grid.terminal] for _, true in filter(None, sides)]
    norm = value_norm(np.concatenate([*values, np.zeros(0)]))
    for n in range(blocks * across):
        row, column = divmod(n, across)
        for below in range(per):
            ax = axes[row * per + below, column]
            side = shown[n][1 + below] if n < len(shown) else None
            if side is None:
                ax.set_axis_off()
                if n < len(shown):
                    ax.text(0.5, 0.5, "no policy", ha="center", va="center", transform=ax.transAxes, color=QUIET)
                continue
            draw_cells(ax, grid, np.where(visited, side[1], np.nan), VALUES, norm, visited)
            draw_arrows(ax, grid, side[0], run_data.counts, everywhere=False)
            if below == 0:
                ax.set_title(group_name(*shown[n][0]), fontsize=11)
            if column == 0:
                ax.set_ylabel(("trained", "exact")[below])
    colour_bar(figure, axes, norm, VALUES, "bottom", "true value of the policy, discounted (one scale)", extend="both")
    map_legend(figure, grid, "greedy action")
    heading(figure, "The greedy policies over α", f"data set {config.data_seed}, training seed {config.seed}"
            + "; exact: the exact solution, BC by counts" * with_exact)
    return figure


@house_style()
def distance(data: ReportData) -> Figure | None:
    """The distance of one member's Q from the exact solution over the updates, and the return of its policy."""
    found = data.way
    if found is None or found.distance is None:
        return None
    figure = Figure((WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(found.updates, np.maximum(np.nanmax(found.distance, -1), LEAST), color=ORANGE, label="largest")
    left.plot(found.updates, np.maximum(found.mean, LEAST), color=BLUE, label="mean over the data")
    left.set(yscale="log", xlabel="updates", title="|Q − exact Q| over the logged actions")
    left.legend()
    if found.returns is not None:
        right.plot(found.updates, found.returns, color=BLUE)
        best = int(found.returns.argmax())
        right.plot(found.updates[best], found.returns[best], "D", color=BLACK, markersize=6)
        right.set(xlabel="updates", title="Exact return of the greedy policy (diamond: the best)")
    else:
        right.set_axis_off()
    for ax in (left, right):
        ax.grid(True, axis="y")
    heading(figure, "The way to the exact solution", about(data.run_data, found.member))
    return figure


# ------------------------------------------------------------------------------------------------ what runs are worth


@house_style()
def paired(data: ReportData) -> Figure | None:
    """Each alpha less BC on the same data set and seed: a point per data set, mean with interval, P(better)."""
    results, alphas, bc = data.results, data.results.alphas, ("bc", None)
    if bc not in results.groups or not alphas:
        return None
    panels = {"return": "Return: CQL − BC (right: better)",
              "hazard_probability": "Hazard probability: CQL − BC (left: safer)"}
    panels = {name: title for name, title in panels.items() if np.isfinite(results.values(name, bc)).any()}
    if not panels:
        return None
    figure = Figure((WIDTH, 1.9 + max(0.42 * len(alphas), 1.0)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for ax, (name, title) in zip(axes, panels.items()):
        ax.axvline(0, color=ORANGE, linestyle="-.", linewidth=1.6, zorder=1)
        for y, alpha in enumerate(alphas):
            difference = results.values(name, ("cql", alpha)) - results.values(name, bc)             # [D, seeds]
            means = np.array([row[np.isfinite(row)].mean() for row in difference if np.isfinite(row).any()])
            ax.plot(means, y + np.linspace(-0.24, 0.24, len(means)), markersize=4, alpha=0.5, zorder=2, **MANY)
            against = data.entry(("cql", alpha))["against_bc"]
            if not (against and against[name]):
                continue
            mean, low, high = against[name]
            if low is not None:
                ax.plot([low, high], [y, y], color=BLACK, linewidth=2.6, solid_capstyle="butt", zorder=3)
            ax.plot(mean, y, "D", color=BLACK, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=4)
            if better := against["probability_of_improvement"][name]:
                ax.annotate(f"{better[0]:.2f}", (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                            textcoords="offset points", va="center", annotation_clip=False)
        ax.annotate("P(better)", (1, 1), xycoords="axes fraction", xytext=(-6, 6), textcoords="offset points",
                    color="#555555", fontsize=9.5)
        ax.set_title(title)
        ax.grid(True, axis="x")
    axes[0].set_yticks(range(len(alphas)), [f"α = {alpha:g}" for alpha in alphas])
    axes[0].set_ylim(len(alphas) - 0.5, -0.5)
    handles = [sign("a data set, mean of its seeds", "o", BLUE, 5, alpha=0.6),
               line(_mean_words(data), BLACK, marker="D", markersize=6), line("BC", ORANGE, linestyle="-.")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    heading(figure, "CQL less BC, pair by pair", seeds_words(data.run_data))
    return figure


@house_style()
def judged(data: ReportData) -> Figure | None:
    """What policies of a run on given data are worth over alpha, with what was logged and BC as bands."""
    rows = [row for row in data.judged["rows"] if row["value"]] if data.judged else []
    trained = [row for row in rows if row["policy"] == "cql"]
    if not trained:
        return None
    figure = Figure((WIDTH, 4.2), layout="constrained")
    ax, axis, handles = figure.subplots(), AlphaAxis(data.results.alphas), []
    for row in rows:
        mean, *ends = row["value"]
        ends = [mean, mean] if ends[0] is None else ends
        if row["policy"] == "cql":
            ax.errorbar(axis.positions([row["alpha"]]), [mean], np.abs(np.array(ends)[:, None] - mean), fmt="o",
                        color=BLUE, capsize=3, zorder=3)
            continue
        colour, style, name = (GREY, "--", "what was logged") if row["policy"] == "logged" else (ORANGE, "-.", "BC")
        ax.axhline(mean, color=colour, linestyle=style)
        ax.axhspan(*ends, color=colour, alpha=0.15, linewidth=0)
        handles.append(line(name, colour, linestyle=style))
    axis.apply(ax)
    ax.set_ylabel("discounted return" if data.judged["source"] == "networks" else "return of an episode")
    ax.grid(True, axis="y")
    figure.legend(handles=[sign("CQL", "o", BLUE), *handles], loc="outside lower center", ncols=3)
    heading(figure, "Is it better than what was logged?", "95 % intervals; an α without a point has "
            "no estimate")
    return figure


FIGURES = {"report_judged": judged, "report_alpha": alpha_curves, "report_departure": departure,
           "report_policies": policies, "report_distance": distance, "report_paired": paired}
