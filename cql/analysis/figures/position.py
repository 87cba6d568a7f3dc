"""One position on the map of a grid, for a small screen: where one is, what to do there, and where that leads."""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cql.analysis.figures.maps import NOTHING, PLAIN, cell_points, draw_cells
from cql.analysis.figures.style import BLACK, BLUE, DPI, GREY, VERMILION, house_style, sign
from cql.world import GridMap

SCREEN = 1080 / DPI  # inches; that many pixels, which a phone shows about a third as large
SMALLEST = 16.0  # points: of the sign for the position, in however small a cell
LABEL = 23.0  # points that the number of a row or column takes


def way(grid: GridMap, greedy: np.ndarray, state: int) -> list[int]:
    """The states from here on if every move of the greedy actions ``[S]`` succeeds.

    Up to the end of the episode, or until a state repeats.
    """
    states, size = [state], np.array(grid.shape)
    while not grid.terminal[states[-1]]:
        cell = np.array(divmod(states[-1], size[1])) + grid.moves[greedy[states[-1]]]
        row, column = np.clip(cell, 0, size - 1).astype(int)
        following = int(row * size[1] + column)
        if following in states:
            break
        states.append(following)
    return states


@house_style(**{"font.size": 15})
def draw_position(grid: GridMap, actions: list[str], greedy: np.ndarray, counts: np.ndarray, state: int,
                  asked: int | None = None) -> Figure:
    """What the greedy policy does at a state.

    Args:
        actions: their names. greedy: ``[S]``. counts: ``[S, A]``, how often the data took each action.
        asked: an action that is shown beside the greedy one.
    """
    rows, columns = grid.shape
    figure = Figure((SCREEN, SCREEN * min(max(rows / columns, 0.3), 1.6) + 1.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    ax, visited = figure.subplots(), counts.any(-1)
    draw_cells(ax, grid, np.where(visited, 0.0, np.nan), PLAIN, Normalize(0, 1), visited)
    cell = cell_points(ax, grid)
    step = int(-(-LABEL // cell))
    ax.set(xticks=range(0, columns, step), yticks=range(0, rows, step), xlabel="column", ylabel="row")
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.xaxis.set_label_position("top")
    handles: list = []
    size = max(cell, SMALLEST)
    for colour, line in (("white", size / 3), (BLUE, size / 6)):
        ax.scatter(state % columns, state // columns, (0.86 * size) ** 2, "none", edgecolors=colour, linewidths=line,
                   zorder=5)
    if not grid.terminal[state]:
        chosen = int(greedy[state])
        known = counts[state, chosen] > 0
        arrows = [(chosen, BLACK if known else VERMILION, "what to do" if known else "never in the data")]
        arrows += [] if asked in (None, chosen) else [(asked, GREY, "asked about")]
        handles = [_arrow(ax, grid, state, action, colour, size / cell, f"{actions[action]}: {words}", zorder=8 - n)
                   for n, (action, colour, words) in enumerate(arrows)]
        states = np.array(way(grid, greedy, state))
        if len(states) > 1:
            handles += ax.plot(states % columns, states // columns, color=BLUE, linewidth=min(3.5, size / 5),
                               linestyle=(0, (0.1, 2)), dash_capstyle="round", zorder=2.5,
                               label="the way, if no move fails")
    if grid.hazard.any():
        handles.append(sign("hazard", "X", BLACK, 13))
    if grid.goal.any():
        handles.append(sign("goal", "*", BLACK, 17))
    if grid.start.any():
        handles.append(Patch(facecolor="white", edgecolor=BLACK, linewidth=2.5, label="start"))
    if (~visited & ~grid.terminal).any():
        handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, hatch="xxx", linewidth=0, label="not in the data"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=14, columnspacing=1.2,
                  handletextpad=0.6)
    return figure


def _arrow(ax, grid: GridMap, state: int, action: int, colour: str, size: float, label: str, zorder: int) -> Line2D:
    """From the state ``size`` cells towards where the action leads, to the border at most; a dot if that is nowhere."""
    here, move, cell = np.array(divmod(state, grid.shape[1])), grid.moves[action], size * cell_points(ax, grid)
    if move.any():
        end = np.clip(here + 1.2 * size * move, -0.5, np.array(grid.shape) - 0.5)
        ax.annotate("", end[::-1], (here - 0.3 * size * move)[::-1], zorder=zorder, annotation_clip=False, arrowprops={
            "arrowstyle": "simple,head_length=0.9,head_width=1,tail_width=0.4", "mutation_scale": 0.75 * cell,
            "facecolor": colour, "edgecolor": "white", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})
    else:
        ax.scatter(*here[::-1], (0.3 * cell) ** 2, colour, zorder=zorder)
    signs = {(-1, 0): r"$\uparrow$", (1, 0): r"$\downarrow$", (0, -1): r"$\leftarrow$", (0, 1): r"$\rightarrow$"}
    marker = signs.get(tuple(move.astype(int).tolist()), "o")
    return sign(label, marker, colour, 17)
