"""The report's pictures; their numbers are made in ``report_data`` and ``statistics``."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps, style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cql.analysis.look import BLACK, BLUE, GREY, ORANGE, STYLE, WIDTH, heading, warn_of_divergence
from cql.analysis.maps import VALUES, _colour_bar, _draw_arrows, _draw_board, _map_legend, _value_norm
from cql.analysis.phase_plot import png
from cql.analysis.plots import _colours, _group_name, _legend_groups, _spread_words
from cql.analysis.report_data import Study, shown_policies
from cql.analysis.results import Group
from cql.files import write_whole

PANELS = {"return": "Return over the episode", "hazard_probability": "Hazard probability per episode",
          "action_mismatch_rate": "Share of logged actions not taken", "unsupported_action_rate": "Share of unsupported steps",
          "penalty": "Conservative penalty (nats)", "value_error": "V̂ − V$^π$ at the start"}
LINES = {"optimal": ("optimal policy", {"color": BLACK, "linestyle": "--", "linewidth": 1.3}),
         "behavior": ("behaviour policy", {"color": GREY, "linestyle": "--", "linewidth": 1.6}),
         "floor": ("floor: entropy of the logged actions", {"color": BLACK, "linestyle": ":", "linewidth": 1.6})}
ACROSS = 6  # maps beside each other
LEAST = 1e-9  # what is less is drawn there on a log axis


def draw_report(study: Study) -> dict[str, Path]:
    """Writes what can be drawn of the report's pictures into ``figures/``: name -> path. Equal runs give equal bytes."""
    folder, drawn = study.pictured.run.path / "figures", {}
    folder.mkdir(exist_ok=True)
    with style.context(["default", STYLE]):
        for name, draw in FIGURES.items():
            figure = draw(study)
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            warn_of_divergence(figure, study.pictured)
            write_whole(path, png(figure))
            drawn[name] = path
    return drawn


def palette(name: str, steps: int = 33) -> list[str]:
    """A colour map as hex colours, half way to white: black arrows on any of them have a contrast above 5 : 1."""
    return [to_hex(0.5 + 0.5 * np.array(colour[:3])) for colour in colormaps[name](np.linspace(0, 1, steps))]


# ------------------------------------------------------------------------------------------------------- over alpha


class _Axis:
    """A log axis of alpha on which 0 has a place of its own, left of a break."""

    def __init__(self, alphas):
        positive = [alpha for alpha in alphas if alpha > 0] or [1.0]
        self.low, self.high, self.zero = min(positive), max(positive), min(alphas) == 0
        self.wide = max((self.high / self.low) ** 0.06, 1.3)

    def place(self, alphas):
        """Where they are drawn."""
        alphas = np.asarray(alphas, dtype=np.float64)
        return np.where(alphas > 0, alphas, self.low / self.wide**2)

    def set(self, ax) -> None:
        left = self.low / self.wide ** (3 if self.zero else 1)
        ax.set(xscale="log", xlim=(left, self.high * self.wide), xlabel="α, weight of the penalty")
        decades = np.arange(np.ceil(np.log10(self.low) - 1e-9), np.floor(np.log10(self.high) + 1e-9) + 1)
        ticks = list(10.0 ** decades[:: max(1, len(decades) // 6 + (len(decades) > 6))]) or [self.low]
        labels = [f"{tick:g}" for tick in ticks]
        if self.zero:
            ticks, labels = [float(self.place([0])[0]), *ticks], ["0", *labels]
        ax.set_xticks(ticks, labels)
        ax.set_xticks([], minor=True)

    def broken(self, ax) -> None:
        """Two strokes across the axis between 0 and the rest."""
        if self.zero:
            ax.plot(self.low / self.wide * np.array([0.93, 1.07]), [0, 0], "|", color=BLACK, markersize=9,
                    transform=ax.get_xaxis_transform(), clip_on=False, zorder=6)


def alpha_curves(study: Study) -> Figure | None:
    """Six numbers over alpha: trained members with intervals over the exact curve, references as lines."""
    alphas = study.population.alphas
    panels = [name for name in PANELS if study.oracle_mean(name) or any(study.mean(("cql", a), name) for a in alphas)]
    if not alphas or not panels:
        return None
    down = -(-len(panels) // 3)
    figure = Figure((WIDTH, 1.75 + 2.75 * down), layout="constrained")
    axes = figure.subplots(down, 3, squeeze=False).ravel()
    axis, used, beyond, banded = _Axis(alphas), set(), False, False
    for ax, name in zip(axes, panels):
        oracle, levels, bc = study.oracle_mean(name), study.levels(name), study.mean(("bc", None), name)
        trained = {alpha: found for alpha in alphas if (found := study.mean(("cql", alpha), name))}
        if oracle:
            shown = (oracle[0] >= axis.low) & (oracle[0] <= axis.high)
            ax.plot(oracle[0][shown], oracle[1][shown], color=BLACK, linewidth=1.6, zorder=3)
            if axis.zero:
                ax.plot(axis.place([0]), oracle[1][oracle[0] == 0], "_", color=BLACK, markersize=13, markeredgewidth=1.8,
                        zorder=3)
        for level, value in levels.items():
            ax.axhline(value, zorder=1, **LINES[level][1])
        if bc:
            ax.axhline(bc[0], color=ORANGE, linestyle="-.", linewidth=1.6, zorder=2)
            if bc[1] is not None:
                ax.axhspan(bc[1], bc[2], color=ORANGE, alpha=0.15, linewidth=0)
                banded = True
        if name == "value_error":
            ax.axhline(0, color=BLACK, linewidth=0.8)
        used |= {*levels, *["bc"] * bool(bc)}
        beyond |= _points(ax, axis, trained, [*(oracle[1] if oracle else ()), *levels.values(), *(bc[:1] if bc else ())],
                          name not in ("return", "penalty", "value_error"))
        axis.set(ax)
        axis.broken(ax)
        ax.set_title(PANELS[name])
        ax.grid(True, axis="y")
    for ax in axes[len(panels):]:
        ax.remove()
    handles = [Line2D([], [], color=BLUE, marker="o", linestyle="", label=f"trained CQL: {_mean_words(study)}")]
    if study.oracles:
        handles.append(Line2D([], [], color=BLACK, label="exact CQL solution: mean over the draws"))
    if "bc" in used:
        handles.append(Line2D([], [], color=ORANGE, linestyle="-.", label="trained BC" + " (band: its interval)" * banded))
    handles += [Line2D([], [], label=words, **look) for name, (words, look) in LINES.items() if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.6)
    heading(figure, "What α does", _spread_words(study.pictured) + "; triangles: beyond the frame, with their mean" * beyond)
    return figure


def _points(ax, axis: _Axis, trained: dict, around, share: bool) -> bool:
    """Means with intervals; those far from what they are held against at the frame, with their number. Whether there are any.

    The frame holds `around` and the trained means at most as far beyond it as it is high; that of a share starts at 0.
    """
    means = np.array([found[0] for found in trained.values()])
    around = np.array([*around] or np.median(means, keepdims=True), dtype=np.float64)
    low, high = around.min(), around.max()
    reach = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-3)
    near = np.array([*around, *means[(means > low - reach) & (means < high + reach)]])
    low, high = near.min(), near.max()
    pad = 0.08 * max(high - low, reach)
    ends = [end for found in trained.values() for end in found[1:] if end is not None and low - reach < end < high + reach]
    low, high = min([low, *ends]) - pad, max([high, *ends]) + pad
    far = False
    for alpha, (mean, *interval) in trained.items():
        x = float(axis.place([alpha])[0])
        if low <= mean <= high:
            if interval[0] is not None:
                ax.plot([x, x], interval, color=BLUE, linewidth=2, alpha=0.75, solid_capstyle="butt", zorder=4)
            ax.plot(x, mean, "o", color=BLUE, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, zorder=5)
            continue
        far, below = True, mean < low
        y = low + 0.5 * pad if below else high - 0.5 * pad
        ax.plot(x, y, "v" if below else "^", color=BLUE, markersize=8, zorder=5)
        words = f"{mean:,.0f}" if 1e3 <= abs(mean) < 1e6 else f"{mean:.3g}"
        ax.annotate(words.replace("-", "−"), (x, y), xytext=(0, 8 if below else -8), textcoords="offset points", ha="center",
                    va="bottom" if below else "top", rotation=90, fontsize=9.5, zorder=6,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    ax.set_ylim(max(low, -0.04 * high) if share else low, high)
    return far


def _mean_words(study: Study) -> str:
    """What a mean is drawn with."""
    level = study.statistics["level"]
    drawn = any((found := study.mean(group, "return")) and found[1] is not None for group in study.population.groups)
    return f"mean and {100 * level:g} % interval" if drawn else "mean (too few draws for an interval)"


def departure(study: Study) -> Figure | None:
    """Where the network leaves the exact solution: softmax mass on unlogged actions, and |Q - oracle|, member by member."""
    alphas = study.population.alphas
    panels = [("Mass of softmax Q on unlogged actions",
               {alpha: study.population.values("ood_mass", ("cql", alpha)) for alpha in alphas}),
              ("Mean |Q − exact Q| over the data", study.distances)]
    panels = [(title, values) for title, values in panels if any(np.isfinite(found).any() for found in values.values())]
    if not panels:
        return None
    figure = Figure((WIDTH, 4.3), layout="constrained")
    axis, random = _Axis(alphas), np.random.default_rng(0)
    for ax, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False).ravel(), panels):
        values = {alpha: found[np.isfinite(found)] for alpha, found in values.items() if np.isfinite(found).any()}
        for alpha, found in values.items():
            spread = axis.wide ** random.uniform(-0.25, 0.25, found.size)
            ax.plot(axis.place([alpha])[0] * spread, np.maximum(found, LEAST), "o", color=BLUE, markersize=3.5, alpha=0.45,
                    markeredgewidth=0)
        ax.plot(axis.place(list(values)), [max(np.median(found), LEAST) for found in values.values()], "_", color=BLACK,
                markersize=15, markeredgewidth=2)
        ax.set(yscale="log", title=title)
        axis.set(ax)
        axis.broken(ax)
        ax.grid(True, axis="y")
    figure.legend(handles=[Line2D([], [], marker="o", color=BLUE, alpha=0.6, linestyle="", markersize=5, label="a member"),
                           Line2D([], [], marker="_", color=BLACK, linestyle="", markersize=14, markeredgewidth=2,
                                  label="median")],
                  loc="outside lower center", ncols=2)
    heading(figure, "Network and exact solution", _spread_words(study.pictured))
    return figure


# ------------------------------------------------------------------------------------------------------------- maps


def policies(study: Study) -> Figure | None:
    """The greedy policies of the first draw and seed over alpha: trained above, exact below."""
    board = study.pictured.board
    if board is None or not study.population.groups:
        return None
    shown = shown_policies(study)
    exact = any(column.exact for column in shown)
    blocks, per = -(-len(shown) // ACROSS), 1 + exact
    across = -(-len(shown) // blocks)
    size = (WIDTH - 0.5) / max(across, 3)
    figure = Figure((WIDTH, 1.7 + blocks * per * (size * board.shape[0] / board.shape[1] + 0.28)), layout="compressed")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.01)
    axes = figure.subplots(blocks * per, across, squeeze=False)
    counts = study.pictured.counts
    visited = counts.any(-1)
    relevant = visited & ~board.terminal
    # the exact sides make the scale: a diverged policy, worth -100 everywhere, would leave the others one colour
    sides = [column.exact or column.trained for column in shown]
    norm = _value_norm(np.concatenate([side[1][relevant] for side in sides if side is not None] or [np.zeros(0)]), None)
    for n in range(blocks * across):
        row, column = divmod(n, across)
        for below in range(per):
            ax = axes[row * per + below, column]
            side = None if n >= len(shown) else (shown[n].trained, shown[n].exact)[below]
            if side is None:
                ax.set_axis_off()
                if n < len(shown):
                    ax.text(0.5, 0.5, "no policy", ha="center", va="center", transform=ax.transAxes, color="#444444")
                continue
            _draw_board(ax, board, np.where(visited, side[1], np.nan), VALUES, norm, visited)
            _draw_arrows(ax, board, side[0], counts, everywhere=False)
            if below == 0:
                ax.set_title(_group_name(shown[n].group), fontsize=11)
            if column == 0:
                ax.set_ylabel(("trained", "exact")[below])
    _colour_bar(figure, axes, norm, VALUES, "bottom", "true value of the policy, discounted (one scale)", extend="both")
    _map_legend(figure, board, arrows="greedy action")
    config = study.pictured.config
    heading(figure, "The greedy policies over α",
            f"data draw {config.data_seed}, training seed {config.seed}" + "; exact: fixed point, BC by counts" * exact)
    return figure


# ------------------------------------------------------------------------------------------------ paired, and profiles


def paired(study: Study) -> Figure | None:
    """Each alpha less BC on the same draw and seed: a point per draw, mean with interval, probability of improvement."""
    population, bc = study.population, ("bc", None)
    if bc not in population.groups or not population.alphas:
        return None
    panels = {"return": "Return: CQL − BC (right: better)", "hazard_probability": "Hazard probability: CQL − BC (left: safer)"}
    panels = {name: title for name, title in panels.items() if np.isfinite(population.values(name, bc)).any()}
    if not panels:
        return None
    figure = Figure((WIDTH, 1.9 + max(0.42 * len(population.alphas), 1.0)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for ax, (name, title) in zip(axes, panels.items()):
        ax.axvline(0, color=ORANGE, linestyle="-.", linewidth=1.6, zorder=1)
        for y, alpha in enumerate(population.alphas):
            difference = population.values(name, ("cql", alpha)) - population.values(name, bc)       # [D, seeds]
            per_draw = np.array([row[np.isfinite(row)].mean() for row in difference if np.isfinite(row).any()])
            against = study.entry(("cql", alpha))["against_bc"]
            ax.plot(per_draw, y + np.linspace(-0.24, 0.24, len(per_draw)), "o", color=BLUE, markersize=4, alpha=0.5,
                    markeredgewidth=0, zorder=2)
            if against and against[name]:
                mean, low, high = against[name]
                if low is not None:
                    ax.plot([low, high], [y, y], color=BLACK, linewidth=2.6, solid_capstyle="butt", zorder=3)
                ax.plot(mean, y, "D", color=BLACK, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=4)
                better = against["probability_of_improvement"][name]
                if better:
                    ax.annotate(f"{better[0]:.2f}", (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                                textcoords="offset points", va="center", annotation_clip=False)
        ax.annotate("P(better)", (1, 1), xycoords="axes fraction", xytext=(-6, 6), textcoords="offset points", color="#555555",
                    fontsize=9.5)
        ax.set_title(title)
        ax.grid(True, axis="x")
    axes[0].set_yticks(range(len(population.alphas)), [f"α = {alpha:g}" for alpha in population.alphas])
    axes[0].set_ylim(len(population.alphas) - 0.5, -0.5)
    figure.legend(handles=[Line2D([], [], marker="o", color=BLUE, alpha=0.6, linestyle="", markersize=5,
                                  label="a data draw, mean of its seeds"),
                           Line2D([], [], marker="D", color=BLACK, markersize=6, label=_mean_words(study)),
                           Line2D([], [], color=ORANGE, linestyle="-.", label="BC")], loc="outside lower center", ncols=3)
    heading(figure, "CQL less BC, pair by pair", _spread_words(study.pictured))
    return figure


def profiles(study: Study) -> Figure | None:
    """Performance profiles: the share of members at least as good as a threshold, over all thresholds."""
    titles = {"return": ("Share of members with at least this return", "return"),
              "hazard_probability": ("Share of members with at most this hazard probability", "hazard probability")}
    panels = {name: found for name in titles if (found := study.statistics["profiles"].get(name)) and found["groups"]}
    if not panels:
        return None
    colours, named = _colours(study.pictured), _legend_groups(study.pictured)
    figure = Figure((WIDTH, 4.9), layout="constrained")
    for ax, (name, found) in zip(figure.subplots(1, len(panels), squeeze=False).ravel(), panels.items()):
        banded = len(found["groups"]) <= 6
        for entry in found["groups"]:
            group: Group = entry["algorithm"], entry["alpha"]
            ax.step(found["thresholds"], entry["share"], color=colours[group], where="pre" if name == "return" else "post",
                    zorder=4 if group[1] is None else 3)
            if banded:
                ax.fill_between(found["thresholds"], entry["low"], entry["high"], color=colours[group], alpha=0.13, linewidth=0,
                                step="pre" if name == "return" else "post")
        ax.set(title=titles[name][0], xlabel=titles[name][1], ylim=(-0.02, 1.02))
        ax.grid(True)
    handles = [Line2D([], [], color=colours[group], label=label) for group, label in named]
    if banded:
        handles.append(Patch(color=GREY, alpha=0.3, label="95 % interval, pointwise"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.6)
    heading(figure, "Performance profiles", _spread_words(study.pictured)
            + "; colours: rising α, some named" * (len(named) < len(study.population.groups)))
    return figure


FIGURES = {"report_alpha": alpha_curves, "report_departure": departure, "report_policies": policies,
           "report_paired": paired, "report_profiles": profiles}
