"""Draws a finished run from its files. Only ``look``, ``maps`` and this file know matplotlib; the numbers are made in
``figure_data``."""

import io
import struct
from pathlib import Path

import numpy as np
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cql.analysis import figure_data
from cql.analysis.figure_data import Pictured
from cql.analysis.look import BLACK, BLUE, DPI, GREY, ORANGE, STYLE, WIDTH, draw_words, heading, warn_of_divergence
from cql.analysis.maps import policy_map, silent, visitation
from cql.files import write_whole
from cql.metrics import MetricsLog
from cql.runs import RunFolder

MOST_NAMED = 9  # groups in a legend


def draw_all(run: RunFolder) -> list[Path]:
    """Draws what the files of a finished run allow into ``figures/`` and under TensorBoard's images.

    Equal runs give equal bytes; drawing again replaces pictures, it does not add any.

    Raises:
        RunError, DatasetError, ConfigError: a file of the run is missing, damaged or contradictory.
    """
    pictured = Pictured.of(run)
    log = MetricsLog(run.path)
    log.event_path("figures").unlink(missing_ok=True)
    (run.path / "figures").mkdir(exist_ok=True)
    drawn = []
    with style.context(["default", STYLE]):  # whatever a person's own matplotlibrc says
        for name, draw in FIGURES.items():
            figure = draw(pictured)
            if figure is None:
                continue
            warn_of_divergence(figure, pictured)
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
            path = run.path / "figures" / f"{name}.png"
            write_whole(path, png.getvalue())
            log.image("figures", name, png.getvalue(), *struct.unpack(">II", png.getvalue()[16:24]))
            drawn.append(path)
    return drawn


# --------------------------------------------------------------------------------------------------- over the updates


def losses(pictured: Pictured) -> Figure | None:
    """Loss terms and exact worth of the greedy policy over training, by alpha, with levels to hold them against."""
    panels = [panel for panel in _loss_panels(pictured) if figure_data.curves(pictured, panel[0])]
    if not panels:
        return None
    banded = _crowd(pictured) and len(pictured.config.alpha) <= 6  # more of them would only cover each other
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((WIDTH, 1.6 + 2.9 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    colours = _colours(pictured)
    for ax, (name, title, unit, log, levels) in zip(axes, panels):
        _draw_curves(ax, figure_data.curves(pictured, name), colours, log, banded)
        for level, words in levels:
            ax.axhline(level, zorder=1, **LEVELS[words])
            ax.update_datalim([(0, level)], updatex=False)  # so that it never falls on the frame
        ax.autoscale_view(scalex=False)
        ax.set(title=title, ylabel=unit)
    for ax in axes[len(panels):]:
        ax.remove()
    handles = [Line2D([], [], color=colours[group], label=label) for group, label in _legend_groups(pictured)]
    used = {words for *_, levels in panels for _, words in levels}
    handles += [Line2D([], [], label=name, **look) for name, look in LEVELS.items() if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 5 else 4,
                  columnspacing=1.6)
    notes = ["lines: means" + ", bands: smallest to largest" * banded] * _crowd(pictured)
    notes += ["colours: rising α, some named"] * (len(figure_data.groups(pictured.members)) > MOST_NAMED)
    heading(figure, "Training", "; ".join([_spread_words(pictured), *notes]))
    return figure


def _draw_curves(ax, curves: dict, colours: dict, log: bool, banded: bool) -> None:
    """The mean of each group's members, perhaps with a band over all; a log axis only where it has something to show."""
    for group, (updates, values) in curves.items():
        ax.plot(updates, values.mean(0), color=colours[group], marker="o" if len(updates) == 1 else None)
        if banded:
            ax.fill_between(updates, values.min(0), values.max(0), color=colours[group], alpha=0.18, linewidth=0)
    low, high = min(values.min() for _, values in curves.values()), max(values.max() for _, values in curves.values())
    if log and low > 0 and high / low > 5:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(left=0)
    ax.set_xlabel("updates")
    ax.grid(True)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 10_000 else f"{x:,.0f}")


LEVELS = {"optimal policy (exact)": {"color": BLACK, "linestyle": "--", "linewidth": 1.4},
          "behaviour (exact)": {"color": GREY, "linestyle": "--", "linewidth": 1.8},
          "floor: entropy of the logged actions": {"color": BLACK, "linestyle": ":", "linewidth": 1.8}}


def _loss_panels(pictured: Pictured) -> list[tuple]:
    """Of each panel: metric, title, unit, whether a log axis may serve, and (level, its name) to draw across.

    The conservative penalty is the cross-entropy of softmax Q: logsumexp Q(s, .) - Q(s, a) = -log softmax Q(s, .)[a]. So it
    has BC's floor.
    """
    best, behavior, entropy = LEVELS
    floor = []
    if pictured.inputs is not None:  # observations that never repeat have no entropy to speak of
        floor = [(float(np.mean([figure_data.cross_entropy_floor(d) for d in pictured.datasets.values()])), entropy)]

    def against(name):
        levels = [(figure_data.reference(pictured.evaluation, who, name), words)
                  for who, words in (("optimal", best), ("behavior", behavior))]
        return [(level, words) for level, words in levels if level is not None]

    steps = pictured.environment.spec.max_episode_steps if pictured.environment is not None else None
    error = {"mse": "mean squared error", "half_mse": "half mean squared error", "huber": "Huber"}
    return [("losses/td", "CQL: TD loss", error.get(pictured.config.td_loss, pictured.config.td_loss), True, []),
            ("losses/penalty", "CQL: conservative penalty", "nats", True, floor if pictured.config.objective.is_cql_h else []),
            ("losses/total", "CQL: TD loss + α · penalty", "loss", True, []),
            ("losses/cross_entropy", "BC: cross-entropy", "nats", False, floor),
            ("exact/return", "Exact return of the greedy policy", f"over {steps} steps, undiscounted", False,
             against("return")),
            ("exact/hazard_probability", "Exact hazard probability", "per episode", False,
             against("hazard_probability"))]


# ------------------------------------------------------------------------------------------------------- at the end


def outcomes(pictured: Pictured) -> Figure | None:
    """Return, hazard and goal of behaviour, BC, CQL and the optimal policy: exact as bars, rollouts as points."""
    titles = {"return": "Return (undiscounted)", "hazard_probability": "Hazard probability",
              "goal_probability": "Goal probability"}
    panels = {name: found for name in titles if (found := figure_data.outcomes(pictured, name))}
    if not panels:
        return None
    rows = list(next(iter(panels.values())))
    colours = _colours(pictured)
    figure = Figure((WIDTH, 1.9 + np.clip(0.42 * len(rows), 1.2, 14)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for ax, (name, found) in zip(axes, panels.items()):
        for y, group in enumerate(rows):
            _draw_outcome(ax, y, found.get(group), colours[group], ".1f" if name == "return" else ".3f")
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_title(titles[name])
        ax.annotate("exact", (1, 1), xycoords="axes fraction", xytext=(3, 6), textcoords="offset points", color=GREY)
        ax.grid(True, axis="x")
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [_group_name(group) for group in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    episodes = pictured.evaluation["rollout_episodes"]
    handles = [Patch(color=GREY, label="exact (mean of members)" if _crowd(pictured) else "exact")]
    if _crowd(pictured):
        handles.append(Line2D([], [], marker="o", color="white", markeredgecolor=BLACK, markersize=5, linestyle="",
                              label="exact, each member"))
    if any(outcome.rollout is not None for found in panels.values() for outcome in found.values()):
        label = f"rollouts: mean ± standard error of {episodes} episodes"
        label += " (behaviour: of the logged ones)" * (("behavior", None) in rows)
        handles.append(Line2D([], [], marker="D", color=BLACK, markersize=6, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.get_layout_engine().set(wspace=0.08)
    heading(figure, "What the greedy policies are worth", _spread_words(pictured))
    return figure


def _draw_outcome(ax, y: int, outcome, colour, form: str) -> None:
    if outcome is None:
        return
    if outcome.exact:
        mean = float(np.mean(outcome.exact))
        ax.barh(y, mean, 0.72, color=colour, alpha=0.75)
        ax.annotate(format(mean, form).replace("-", "−"), (1, y), xycoords=("axes fraction", "data"), xytext=(3, 0),
                    textcoords="offset points", va="center", annotation_clip=False)
        if len(outcome.exact) > 1:
            offsets = np.linspace(-0.22, 0.22, len(outcome.exact))
            ax.scatter(outcome.exact, y + offsets, 16, "white", edgecolors=BLACK, linewidths=0.7, zorder=3)
    if outcome.rollout is not None:
        ax.errorbar(outcome.rollout, y, xerr=outcome.error, fmt="D", color=BLACK, markersize=5, capsize=3,
                    linewidth=1.4, zorder=4)


# ------------------------------------------------------------------------------------------------- colours and words


def _colours(pictured: Pictured) -> dict:
    """By group: BC orange, a single CQL blue, several from dark to light as alpha rises; references grey and black."""
    groups = list(figure_data.groups(pictured.members))
    cql = [group for group in groups if group[0] == "cql"]
    scale = [BLUE] if len(cql) == 1 else [tuple(c) for c in colormaps["viridis"](np.linspace(0, 0.88, len(cql)))]
    return {("bc", None): ORANGE, ("behavior", None): GREY, ("optimal", None): BLACK, **dict(zip(cql, scale))}


def _legend_groups(pictured: Pictured) -> list:
    """(group, label): all, or of many alphas evenly spaced ones."""
    groups = list(figure_data.groups(pictured.members))
    if len(groups) > MOST_NAMED:
        groups = [groups[n] for n in np.unique(np.linspace(0, len(groups) - 1, MOST_NAMED).round().astype(int))]
    return [(group, _group_name(group)) for group in groups]


def _group_name(group: tuple[str, float | None]) -> str:
    names = {"bc": "BC", "behavior": "behaviour", "optimal": "optimal"}
    return names.get(group[0]) or f"CQL, α = {group[1]:g}"


def _crowd(pictured: Pictured) -> bool:
    """Whether a group has several members."""
    return pictured.config.num_seeds * pictured.config.num_datasets > 1


def _spread_words(pictured: Pictured) -> str:
    config = pictured.config
    trained = [f"{name} {steps:,} updates" for name, steps in (("BC", config.bc_steps), ("CQL", config.steps)) if steps]

    def span(words, first, number):
        return f"{words} {first}" if number == 1 else f"{words}s {first}–{first + number - 1}"

    parts = [", ".join(trained), span("training seed", config.seed, config.num_seeds)]
    parts.append(draw_words(pictured) if config.num_datasets == 1 else span("data draw", config.data_seed,
                                                                            config.num_datasets))
    return "; ".join(parts)


FIGURES = {"policy_map": policy_map, "visitation": visitation, "silent": silent, "losses": losses, "outcomes": outcomes}
