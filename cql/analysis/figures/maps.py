"""Pictures on the map of a grid: policies and values, visits, and Q of OOD actions (never logged in that state)."""

import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline

from cql.analysis.figures.data import RunData, ood_gap, shown_member
from cql.analysis.figures.style import (
    BLACK,
    BLUE,
    GREY,
    QUIET,
    VERMILION,
    WIDTH,
    about,
    data_words,
    group_name,
    heading,
    house_style,
    sign,
)
from cql.dataset import OfflineDataset
from cql.world import GridMap, World

VALUES = ListedColormap(0.65 * colormaps["cividis"](np.linspace(0, 1, 256)) + 0.35)  # pale: arrows show on it
ERRORS = colormaps["PuOr"]
PLAIN = ListedColormap(["#f3efe2"])
NOTHING = "#dcdcdc"
NO_ARROWS, NO_NUMBERS = 5.0, 17.0  # points: in cells narrower than this they would not be read


@house_style()
def draw_policy(world: World, actions: np.ndarray, values: np.ndarray | None = None,
                dataset: OfflineDataset | None = None, title: str = "") -> Figure:
    """A greedy policy on the map of its world: an arrow in every state, over colours for the values.

    Args:
        actions: ``[S]`` integers; values: ``[S]``, NaN for none.
        dataset: states without data are hatched, OOD actions orange; without it every action counts as logged.

    Raises:
        ValueError: the states of the world are not the cells of one known grid, or arrays or data do not fit it.
    """
    grid = world.grid
    if grid is None:
        raise ValueError("the states of this world are not the cells of one known grid: there is no map to draw on.")
    actions, states = np.asarray(actions), len(world.inputs)
    if actions.shape != (states,) or not np.issubdtype(actions.dtype, np.integer) or not (
            (actions >= 0) & (actions < len(grid.moves))).all():
        raise ValueError(f"actions must be one integer from 0 to {len(grid.moves) - 1} for each of {states} states.")
    if values is not None and np.shape(values) != (states,):
        raise ValueError(f"values must be one number for each of {states} states, not {np.shape(values)}.")
    counts = np.ones((states, len(grid.moves)), dtype=int) if dataset is None else world.empirical(dataset)[1]
    figure, (ax,), side = map_grid(grid, 1)
    if values is None:
        draw_cells(ax, grid, np.zeros(len(actions)), PLAIN, Normalize(0, 1), counts.any(-1))
    else:
        values = np.asarray(values, dtype=np.float64)
        norm = value_norm(values[np.isfinite(values) & ~grid.terminal])
        draw_cells(ax, grid, values, VALUES, norm, counts.any(-1))
        colour_bar(figure, ax, norm, VALUES, side, "value", extend="both")
    draw_arrows(ax, grid, actions, counts)
    map_legend(figure, grid, "greedy action", ood=dataset is not None, unvisited=dataset is not None)
    heading(figure, title or "A greedy policy", "values as colours" if values is not None else "")
    return figure


@house_style()
def policy_map(run_data: RunData) -> Figure | None:
    """Greedy actions of BC and CQL on the map; true values of both; value estimate and error of CQL."""
    grid = run_data.world.grid
    if grid is None:
        return None
    shown = [m for m in (shown_member(run_data.members, name) for name in ("bc", "cql")) if m is not None]
    if not shown:  # every member diverged
        return None
    actions = np.stack([run_data.policy(member).act(run_data.inputs) for member in shown])  # [N, S]
    true, _, words = run_data.true_values(actions)
    start = grid.start / max(grid.start.sum(), 1)
    visited = run_data.counts.any(-1)
    panels = [(f"{group_name(member.algorithm, member.alpha)}: true value of its policy{_at_start(true[n] @ start)}",
               true[n], actions[n]) for n, member in enumerate(shown)]
    estimate, with_cql = np.zeros(0), shown[-1].algorithm == "cql"
    relevant = visited & ~grid.terminal
    norm = value_norm(true[:, relevant])
    if with_cql:
        estimate = run_data.q_values(shown[-1]).max(-1)
        norm = value_norm(true[:, relevant], estimate[relevant])
        title = f"{group_name('cql', shown[-1].alpha)}: value estimate, max Q{_at_start(estimate @ start)}"
        panels.append((title, estimate, actions[-1]))
    figure, axes, side = map_grid(grid, len(panels) + with_cql)
    for ax, (title, values, chosen) in zip(axes, panels):
        draw_cells(ax, grid, values, VALUES, norm, visited)
        draw_arrows(ax, grid, chosen, run_data.counts)
        wrapped_title(ax, grid, title)
    two_by_two = len(axes) == 4 and axes[2].get_subplotspec().rowspan.start == 1 and side == "bottom"
    colour_bar(figure, axes[2] if two_by_two else axes[: len(panels)], norm, VALUES, side,
               f"value ({words}; one scale)", extend="both")
    if with_cql:
        error = estimate - true[-1]
        title = f"CQL: value estimate − true value{_at_start(error @ start, '+.3g')}"
        error_map(figure, axes[-1], grid, error, visited, side, title, "error (positive: too optimistic)")
    heading(figure, "The greedy policies, and what their states are worth", about(run_data, *shown))
    map_legend(figure, grid, "greedy action")
    return figure


@house_style()
def visitation(run_data: RunData) -> Figure | None:
    """Where the data are: visits of every state, the action most often taken, how many different ones were."""
    if run_data.inputs is None:
        return None
    grid, counts = run_data.world.grid, run_data.counts
    visits, tried, num_actions = counts.sum(-1), (counts > 0).sum(-1), counts.shape[1]
    facts = f"{data_words(run_data)}: {len(run_data.dataset):,} transitions" + (
        "" if run_data.dataset.breaks.size else f", {len(run_data.dataset.episode_starts):,} episodes")
    if grid is None:
        figure = _visitation_without_map(visits, tried[visits > 0], num_actions)
        heading(figure, "Where the data are", facts)
        return figure
    figure, (left, right), side = map_grid(grid, 2)
    visited = visits > 0
    norm = LogNorm(1, max(10, visits.max()))
    draw_cells(left, grid, np.where(visited, visits, np.nan), VALUES, norm, visited)
    draw_arrows(left, grid, counts.argmax(-1), counts, everywhere=False)
    wrapped_title(left, grid, "Visits, and the action most often taken")
    colour_bar(figure, left, norm, VALUES, side, "visits (log scale)")
    colours = ListedColormap(VALUES(np.linspace(0, 1, num_actions)))
    levels = BoundaryNorm(np.arange(num_actions + 1) + 0.5, num_actions)
    draw_cells(right, grid, np.where(visited, tried, np.nan), colours, levels, visited)
    wrapped_title(right, grid, "How many different actions were taken")
    colour_bar(figure, right, levels, colours, side, f"actions logged in the state, of {num_actions}",
               ticks=range(1, num_actions + 1))
    heading(figure, "Where the data are", facts + f"; {visited.sum():,} of {run_data.decided.sum():,} states visited")
    map_legend(figure, grid, "most frequent action", ood=False)
    return figure


def _visitation_without_map(visits, tried, num_actions: int) -> Figure:
    figure = Figure((WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    ordered = np.sort(visits[visits > 0])[::-1]
    left.stairs(ordered, np.arange(len(ordered) + 1), fill=True, color=BLUE)
    left.set(yscale="log", ylim=(0.7, None), xlim=(0, len(visits)), xlabel="states, most visited first",
             ylabel="visits (log scale)", title=f"Visits of the {len(visits):,} states")
    if len(ordered) < len(visits):
        left.axvspan(len(ordered), len(visits), facecolor="#eeeeee", edgecolor=GREY, hatch="//", linewidth=0)
        left.set_title(f"Visits; {len(visits) - len(ordered):,} of {len(visits):,} states never visited (hatched)")
    right.bar(range(1, num_actions + 1), np.bincount(tried, minlength=num_actions + 1)[1:], color=BLUE)
    right.set(xticks=range(1, num_actions + 1) if num_actions <= 12 else [1, num_actions], ylabel="visited states",
              xlabel=f"different actions logged, of {num_actions}", title="Actions tried in a state")
    return figure


@house_style()
def ood_values(run_data: RunData) -> Figure | None:
    """What CQL's network says of logged and of OOD actions, and where it prefers an OOD action; None if supported."""
    member = shown_member(run_data.members, "cql")
    if member is None or run_data.inputs is None or run_data.config.supported:
        return None
    grid, counts = run_data.world.grid, run_data.counts
    q = run_data.q_values(member)
    gap = ood_gap(q, counts)
    visited = counts.any(-1)
    logged = (counts > 0) & run_data.decided[:, None]
    ood = (counts == 0) & (visited & run_data.decided)[:, None] & np.isfinite(q)  # those that exist
    true = None if run_data.world.mdp is None else run_data.true_values(q.argmax(-1)[None])[1][0]
    figure, axes = _beside_map(grid)
    shown = [q[logged | ood]] + ([] if true is None else [np.quantile(true[logged | ood], [0.02, 1])])
    low, high = np.concatenate(shown).min(), np.concatenate(shown).max()
    pad = 0.02 * (high - low) + 1e-3
    for ax, mask, words in zip(axes[-2:], (logged, ood), ("Logged", "OOD, in visited states")):
        _draw_q_histogram(ax, q, true, mask, np.linspace(low - pad, high + pad, 41), words)
    preferred = f"{(gap < 0).sum():,} of {np.isfinite(gap).sum():,} states"
    if grid is not None:
        error_map(figure, axes[0], grid, gap, visited, "bottom", "Largest Q among logged − among OOD actions",
                  f"gap (negative in {preferred}: prefers an OOD action)")
        map_legend(figure, grid, None, blank="every action logged")
    heading(figure, "Q of logged and of OOD actions (never logged in that state)", about(run_data, member) + (
        "" if grid is not None else f"; prefers an OOD action in {preferred}"))
    return figure


def _draw_q_histogram(ax, q, true, mask, bins, words: str) -> None:
    if not mask.any():
        ax.set(title=words, xticks=[], yticks=[])
        ax.text(0.5, 0.5, "none: every action was logged\nin every visited state" if "OOD" in words else "none",
                ha="center", va="center", transform=ax.transAxes, color=QUIET)
        return
    low, high = bins[0], bins[-1]
    ax.hist(q[mask], bins, color=BLUE, alpha=0.55, label="learned")
    if true is not None:
        ax.hist(np.clip(true[mask], low, high), bins, histtype="step", color=BLACK, linewidth=1.6,
                label="exact, of its policy")
    margin = 0.02 * (high - low)
    ax.set(title=f"{words}: {mask.sum():,} pairs", ylabel="pairs", xlabel="Q(s, a)", xlim=(low - margin, high + margin))
    ax.margins(y=0.3)  # space for the legend
    ax.legend(loc="best")


def _beside_map(grid: GridMap | None):
    """A figure with a map, if there is one, and two charts: ``(figure, [axes])``, the charts last."""
    if grid is None:
        figure = Figure((WIDTH, 4.2), layout="constrained")
        return figure, list(figure.subplots(1, 2))
    rows, columns = grid.shape
    if columns > 2.2 * rows:
        figure = Figure((WIDTH, 5.5 + (WIDTH - 2) * rows / columns), layout="constrained")
        axes = figure.subplot_mosaic([["map", "map"], ["logged", "ood"]])
    else:
        figure = Figure((WIDTH, np.clip(5.85 * rows / columns + 1.95, 5, 9)), layout="constrained")
        axes = figure.subplot_mosaic([["map", "logged"], ["map", "ood"]], width_ratios=(1.5, 1))
    return figure, [axes["map"], axes["logged"], axes["ood"]]


# ------------------------------------------------------------------------------------------------- parts of a map


def map_grid(grid: GridMap, panels: int):
    """A figure of `panels` maps, roughly square where they allow: ``(figure, [axes], colour bars' side)``."""
    rows, columns = grid.shape
    across = 1 if columns > 2.2 * rows else (panels if rows > 1.5 * columns or panels == 3 else min(2, panels))
    down = -(-panels // across)
    side = "right" if across == 1 and panels > 1 else "bottom"
    height = min(WIDTH / across - (1.3 if side == "right" else 0.3), 9) * rows / columns + 0.4
    figure = Figure((WIDTH, min(1.2 + 0.8 * (side == "bottom") + down * height, 20)), layout="compressed")
    figure.get_layout_engine().set(hspace=0.04)
    return figure, list(figure.subplots(down, across, squeeze=False).ravel()[:panels]), side


def error_map(figure: Figure, ax, grid: GridMap, values, visited, side: str, title: str, label: str) -> None:
    """A map of signed numbers ``[S]``, with the number in every visited cell; colours around 0.

    The scale ends at the 95th percentile of the magnitudes: a few extreme states must not pale the rest.
    """
    relevant = values[visited & ~grid.terminal & np.isfinite(values)]
    reach = max(float(np.quantile(np.abs(relevant), 0.95)), 1e-6) if relevant.size else 1.0
    norm = TwoSlopeNorm(0, -reach, reach)
    draw_cells(ax, grid, values, ERRORS, norm, visited)
    wrapped_title(ax, grid, title)
    colour_bar(figure, ax, norm, ERRORS, side, label, extend="both")
    cell = cell_points(ax, grid)
    if cell < NO_NUMBERS:
        return
    digits = 0 if reach >= 2.5 else 1 if reach >= 0.25 else 2
    for state in np.flatnonzero(visited & ~grid.terminal & np.isfinite(values)):
        dark = ERRORS(norm(values[state]))[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
        number = f"{round(float(values[state]), digits) + 0.0:.{digits}f}".replace("-", "−")  # no minus before 0
        ax.text(state % grid.shape[1], state // grid.shape[1], number, ha="center", va="center",
                fontsize=min(11, 0.37 * cell), color="white" if dark else BLACK, zorder=4, in_layout=False)


def draw_cells(ax, grid: GridMap, values, cmap, norm, visited) -> None:
    """Cells coloured by value, grey where it is NaN, hatched where the data never were; hazards, goals, start above."""
    ax.imshow(grid.cells(values), cmap=cmap, norm=norm, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.set_facecolor(NOTHING)
    (rows, columns), cell = grid.shape, cell_points(ax, grid)
    for colour, hatch in (("white", "////"), (GREY, "\\\\\\\\")) if cell > 14 else (("white", "///"),):
        _fill(ax, grid, ~visited & ~grid.terminal, facecolor="none", edgecolor=colour, hatch=hatch, linewidth=0)
    _fill(ax, grid, grid.terminal & ~grid.goal, facecolor=BLACK, edgecolor="none")
    _fill(ax, grid, grid.goal, facecolor="white", edgecolor="none")
    if cell >= NO_ARROWS:
        ax.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=min(0.6, cell / 20))
        ax.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=min(0.6, cell / 20))
        for mask, marker, colour, share in ((grid.hazard, "x", "white", 0.16), (grid.goal, "*", BLACK, 0.45)):
            row, column = np.divmod(np.flatnonzero(mask), columns)
            ax.scatter(column, row, (cell * share * 1.6) ** 2, colour, marker=marker, zorder=3,
                       linewidths=min(1.6, cell / 12))
    _fill(ax, grid, grid.start, facecolor="none", edgecolor="white", linewidth=min(4.5, cell / 4), zorder=3)
    _fill(ax, grid, grid.start, facecolor="none", edgecolor=BLACK, linewidth=min(2.2, cell / 8), zorder=3)


def _fill(ax, grid: GridMap, mask, zorder=2, **look) -> None:
    """One patch over the cells of a mask, so that a hatch runs through neighbours."""
    row, column = np.divmod(np.flatnonzero(mask), grid.shape[1])
    if not len(row):
        return
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) - 0.5
    vertices = (np.stack([column, row], -1)[:, None] + corners).reshape(-1, 2)
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(row)
    ax.add_artist(PathPatch(Outline(vertices, codes), zorder=zorder, **look))  # add_patch would measure every curve


def draw_arrows(ax, grid: GridMap, actions, counts, everywhere: bool = True) -> None:
    """An arrow a cell: orange for an OOD action, white or none in states without data."""
    visited, logged = counts.any(-1), np.take_along_axis(counts, actions[:, None], 1)[:, 0] > 0
    row, column = np.divmod(np.arange(len(actions)), grid.shape[1])
    step, cell = grid.moves[actions], cell_points(ax, grid)
    if cell < NO_ARROWS:
        ood = visited & ~logged & ~grid.terminal
        ax.scatter(column[ood], row[ood], 4, VERMILION, zorder=4)
        return
    kinds = [(visited & logged, BLACK, "none", 0.0), (visited & ~logged, VERMILION, "white", 1.0)]
    for mask, face, edge, line in kinds + [(~visited, "white", BLACK, 0.7)] * everywhere:
        mask = mask & ~grid.terminal
        moving, resting = mask & step.any(-1), mask & ~step.any(-1)
        ax.quiver(column[moving], row[moving], 0.62 * step[moving, 1], 0.62 * step[moving, 0], pivot="mid", angles="xy",
                  scale_units="xy", scale=1, units="xy", width=0.14 if face == VERMILION else 0.11, headwidth=3.6,
                  headlength=3.2, headaxislength=3.0, facecolor=face, edgecolor=edge, zorder=4,
                  linewidth=min(line, cell / 12))
        ax.scatter(column[resting], row[resting], (cell * 0.25) ** 2, face, edgecolors=edge, zorder=4)


def cell_points(ax, grid: GridMap) -> float:
    """About how wide a cell will be, in points: the layout is not known before drawing."""
    box = ax.get_subplotspec().get_position(ax.figure)
    width, height = ax.figure.get_size_inches()
    return 72 * 1.05 * min(box.width * width / grid.shape[1], box.height * height / grid.shape[0])


def wrapped_title(ax, grid: GridMap, text: str) -> None:
    """In as many lines as the map's width asks for."""
    ax.set_title(textwrap.fill(text, max(16, int(cell_points(ax, grid) * grid.shape[1] / 5.7))))


def colour_bar(figure: Figure, axes, norm, cmap, side: str, label: str, **more) -> None:
    """A bar under or beside some maps; beside them only the first word of its label fits."""
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=axes, location=side, shrink=0.9, aspect=35, pad=0.03, **more)
    bar.set_label(label.split(" ")[0] if side == "right" else label)


def map_legend(figure: Figure, grid: GridMap, arrows: str | None, ood: bool = True, unvisited: bool = True,
               blank: str | None = None) -> None:
    """What the signs on the maps mean; arrows, blank: words for arrows and for grey cells, None if there are none."""
    pointed = cell_points(figure.axes[0], grid) >= NO_ARROWS
    handles: list[Artist] = []
    if arrows and pointed:
        handles.append(sign(arrows, r"$\rightarrow$", BLACK, 14))
    if arrows and ood:
        marker, size = (r"$\rightarrow$", 14) if pointed else ("o", 5)
        handles.append(sign("OOD: never logged in this state", marker, VERMILION, size))
    if unvisited:
        handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, hatch="xxx", linewidth=0, label="state never visited"))
    if blank:
        handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, linewidth=0.5, label=blank))
    if grid.hazard.any():
        handles.append(sign("hazard", "X" if pointed else "s", BLACK, 10))
    if grid.goal.any():
        handles.append(sign("goal", "*", BLACK, 12))
    handles.append(Patch(facecolor="white", edgecolor=BLACK, linewidth=2, label="start"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.4, handletextpad=0.5)


def value_norm(true, estimate=None) -> Normalize:
    """One scale: the range of the true values, widened to the estimates, but by no more than half their size."""
    low, high = (true.min(), true.max()) if true.size else (0.0, 1.0)
    spare = max(high - low, abs(low), abs(high), 1e-3) / 2
    if estimate is not None and estimate.size:
        low, high = min(low, max(estimate.min(), low - spare)), max(high, min(estimate.max(), high + spare))
    return Normalize(low, max(high, low + 1e-3))


def _at_start(value: float, form: str = ".3g") -> str:
    return f" (start\u00a0{format(value, form)})".replace("-", "−")
