"""The pictures of a finished run, drawn from its files: training, outcomes, and the maps of ``maps``."""

import struct
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cql.analysis.figures import data as figure_data
from cql.analysis.figures.data import Group, RunData
from cql.analysis.figures.maps import ood_values, policy_map, visitation
from cql.analysis.figures.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    REFERENCES,
    WIDTH,
    data_words,
    group_name,
    heading,
    house_style,
    line,
    save_figures,
    sign,
)
from cql.metrics import MetricsLog
from cql.run_folder import RunFolder

MOST_NAMED = 9  # groups in a legend


def draw_all(run: RunFolder) -> list[Path]:
    """Draws what the files of a finished run allow into ``figures/`` and under TensorBoard's images and scalars.

    The scalars are means over the members of each alpha, and of BC. Equal runs give equal pictures; drawing again
    replaces pictures and means, it does not add any.

    Raises:
        RunError, DatasetError, ConfigError: a file of the run is missing, damaged or contradictory.
    """
    run_data, log = RunData.of(run), MetricsLog(run.path)
    log.write_means(figure_data.means(run_data))
    log.event_path("figures").unlink(missing_ok=True)
    paths = save_figures(run_data, {name: partial(draw, run_data) for name, draw in FIGURES.items()})
    for name, path in paths.items():
        content = path.read_bytes()
        log.image("figures", name, content, *struct.unpack(">II", content[16:24]))
    return list(paths.values())


LEVELS = {"optimal policy (exact)": REFERENCES["optimal"], "behaviour (exact)": REFERENCES["behavior"],
          "floor: entropy of the logged actions": REFERENCES["floor"]}


@house_style()
def losses(run_data: RunData) -> Figure | None:
    """Loss terms and exact worth of the greedy policy over training, by alpha, with levels to hold them against."""
    panels = [(figure_data.curves(run_data, metric), *panel) for metric, *panel in _loss_panels(run_data)]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return None
    banded = has_crowds(run_data) and len(run_data.config.alpha) <= 6  # more of them would only cover each other
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((WIDTH, 1.6 + 2.9 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    colours = group_colours(run_data)
    for ax, (curves, title, unit, log, levels) in zip(axes, panels):
        _draw_curves(ax, curves, colours, log, banded)
        for level, words in levels:
            ax.axhline(level, zorder=1, **LEVELS[words])
            ax.update_datalim([(0, level)], updatex=False)  # so that it never falls on the frame
        ax.autoscale_view(scalex=False)
        ax.set(title=title, ylabel=unit)
    for ax in axes[len(panels):]:
        ax.remove()
    handles = [line(group_name(*group), colours[group]) for group in legend_groups(run_data)]
    used = {words for *_, levels in panels for _, words in levels}
    handles += [line(name, **look) for name, look in LEVELS.items() if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 5 else 4,
                  columnspacing=1.6)
    notes = ["lines: means" + ", bands: smallest to largest" * banded] * has_crowds(run_data)
    notes += ["colours: rising α, some named"] * (len(figure_data.groups(run_data.members)) > MOST_NAMED)
    heading(figure, "Training", "; ".join([seeds_words(run_data), *notes]))
    return figure


def _draw_curves(ax, curves: dict, colours: dict, log: bool, banded: bool) -> None:
    """The mean of each group's members, perhaps with a band over all; a log axis only where values differ much."""
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


def _loss_panels(run_data: RunData) -> list[tuple]:
    """Of each panel: metric, title, unit, whether a log axis may serve, and (level, its name) to draw across.

    The conservative penalty is the cross-entropy of softmax Q: logsumexp Q(s, .) - Q(s, a) = -log softmax Q(s, .)[a].
    So it has BC's floor.
    """
    best, behavior, entropy = LEVELS
    def floor(algorithm):  # observations that never repeat have no entropy to speak of
        return [] if run_data.inputs is None else [(run_data.action_entropy(algorithm), entropy)]

    def against(name):
        levels = [(figure_data.reference(run_data.evaluation, who, name), words)
                  for who, words in (("optimal", best), ("behavior", behavior))]
        return [(level, words) for level, words in levels if level is not None]

    td_loss = run_data.config.td_loss
    error = {"mse": "mean squared error", "half_mse": "half mean squared error", "huber": "Huber"}.get(td_loss, td_loss)
    return [("losses/td", "CQL: TD loss", error, True, []),
            ("losses/penalty", "CQL: conservative penalty", "nats", True,
             floor("cql") if run_data.config.objective.is_cql_h else []),
            ("losses/total", "CQL: TD loss + α · penalty", "loss", True, []),
            ("losses/cross_entropy", "BC: cross-entropy", "nats", False, floor("bc")),
            ("exact/return", "Exact return of the greedy policy", f"over {run_data.world.horizon} steps, undiscounted",
             False, against("return")),
            ("exact/hazard_probability", "Exact hazard probability", "per episode", False,
             against("hazard_probability"))]


@house_style()
def outcomes(run_data: RunData) -> Figure | None:
    """Return, hazard and goal of behaviour, BC, CQL and the optimal policy: exact as bars, rollouts as points."""
    titles = {"return": "Return (undiscounted)", "hazard_probability": "Hazard probability",
              "goal_probability": "Goal probability"}
    panels = {name: by_group for name in titles if (by_group := figure_data.outcomes(run_data, name))}
    if not panels:
        return None
    rows, crowds = list(next(iter(panels.values()))), has_crowds(run_data)
    colours = group_colours(run_data)
    figure = Figure((WIDTH, 1.9 + np.clip(0.42 * len(rows), 1.2, 14)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for ax, (name, by_group) in zip(axes, panels.items()):
        for y, group in enumerate(rows):
            if group in by_group:
                _draw_outcome(ax, y, by_group[group], colours[group], ".1f" if name == "return" else ".3f")
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_title(titles[name])
        ax.annotate("exact", (1, 1), xycoords="axes fraction", xytext=(3, 6), textcoords="offset points", color=GREY)
        ax.grid(True, axis="x")
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [group_name(*group) for group in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    handles: list = [Patch(color=GREY, label="exact (mean of members)" if crowds else "exact")]
    if crowds:
        handles.append(sign("exact, each member", "o", "white", 5, markeredgecolor=BLACK))
    if any(outcome.rollout is not None for by_group in panels.values() for outcome in by_group.values()):
        label = f"rollouts: mean ± standard error of {run_data.evaluation['rollout_episodes']} episodes"
        label += " (behaviour: of the logged ones)" * (("behavior", None) in rows)
        handles.append(line(label, BLACK, marker="D", markersize=6))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.get_layout_engine().set(wspace=0.08)
    heading(figure, "What the greedy policies are worth", seeds_words(run_data))
    return figure


def _draw_outcome(ax, y: int, outcome: figure_data.Outcome, colour, form: str) -> None:
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


FIGURES = {"policy_map": policy_map, "visitation": visitation, "silent": ood_values, "losses": losses,
           "outcomes": outcomes}


def group_colours(run_data: RunData) -> dict[Group, str | tuple]:
    """By group: BC orange, a single CQL blue, several from dark to light as alpha rises; references grey and black."""
    cql = [group for group in figure_data.groups(run_data.members) if group[0] == "cql"]
    scale = [BLUE] if len(cql) == 1 else [tuple(c) for c in colormaps["viridis"](np.linspace(0, 0.88, len(cql)))]
    return {("bc", None): ORANGE, ("behavior", None): GREY, ("optimal", None): BLACK, **dict(zip(cql, scale))}


def legend_groups(run_data: RunData) -> list[Group]:
    """All groups, or of many alphas evenly spaced ones."""
    groups = list(figure_data.groups(run_data.members))
    if len(groups) > MOST_NAMED:
        groups = [groups[n] for n in np.unique(np.linspace(0, len(groups) - 1, MOST_NAMED).round().astype(int))]
    return groups


def has_crowds(run_data: RunData) -> bool:
    """Whether a group has several members."""
    return run_data.config.num_seeds * run_data.config.num_datasets > 1


def seeds_words(run_data: RunData) -> str:
    """How long the members were trained, and their seeds."""
    config = run_data.config
    updates = {config.bc_name: config.bc_steps, "CQL": config.steps}
    trained = [f"{name} {steps:,} updates" for name, steps in updates.items() if steps]

    def span(words, first, number):
        return f"{words} {first}" if number == 1 else f"{words}s {first}–{first + number - 1}"

    datasets = (data_words(run_data) if config.num_datasets == 1
                else span("data set", config.data_seed, config.num_datasets))
    return "; ".join([", ".join(trained), span("training seed", config.seed, config.num_seeds), datasets])
