"""One position on the map of a grid, for a small screen: where one is, what to do there, and where that leads."""

import numpy as np
from matplotlib import style
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cql.analysis.figure_data import Board
from cql.analysis.look import BLACK, BLUE, DPI, GREY, STYLE, VERMILION
from cql.analysis.maps import NOTHING, _cell, _draw_board
from cql.analysis.phase_plot import png

SCREEN = 1080 / DPI  # inches; that many pixels, which a phone shows about a third as large
SMALLEST = 16.0  # points: of the sign for the position, in however small a cell
LABEL = 23.0  # points that the number of a row or column takes
GROUND = ListedColormap(["#f3efe2"])


def way(board: Board, greedy: np.ndarray, state: int) -> list[int]:
    """The states from here on if every move of the greedy actions ``[S]`` succeeds: up to the end of the episode, or until one
    repeats."""
    states, size = [state], np.array(board.shape)
    while not board.terminal[states[-1]]:
        cell = np.array(divmod(states[-1], size[1])) + board.moves[greedy[states[-1]]]
        row, column = np.clip(cell, 0, size - 1).astype(int)
        following = int(row * size[1] + column)
        if following in states:
            break
        states.append(following)
    return states


def position_png(board: Board, actions: list[str], greedy: np.ndarray, counts: np.ndarray, state: int,
                 asked: int | None = None) -> bytes:
    """A picture of what the greedy policy does at a state.

    Args:
        actions: their names. greedy: ``[S]``. counts: ``[S, A]``, how often the data took each action.
        asked: an action that is shown beside the greedy one.
    """
    with style.context(["default", STYLE, {"font.size": 15}]):
        return png(_position(board, actions, greedy, counts, state, asked))


def _position(board, actions, greedy, counts, state, asked) -> Figure:
    rows, columns = board.shape
    figure = Figure((SCREEN, SCREEN * min(max(rows / columns, 0.3), 1.6) + 1.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    ax, visited = figure.subplots(), counts.any(-1)
    _draw_board(ax, board, np.where(visited, 0.0, np.nan), GROUND, Normalize(0, 1), visited)
    cell = _cell(ax, board)
    step = int(-(-LABEL // cell))
    ax.set(xticks=range(0, columns, step), yticks=range(0, rows, step), xlabel="column", ylabel="row")
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.xaxis.set_label_position("top")
    handles, seen = [], max(cell, SMALLEST)
    for colour, line in (("white", seen / 3), (BLUE, seen / 6)):
        ax.scatter(state % columns, state // columns, (0.86 * seen) ** 2, "none", edgecolors=colour, linewidths=line, zorder=5)
    if not board.terminal[state]:
        chosen = int(greedy[state])
        known = counts[state, chosen] > 0
        arrows = [(chosen, BLACK if known else VERMILION, "what to do" if known else "never in the data")]
        arrows += [] if asked in (None, chosen) else [(asked, GREY, "asked about")]
        handles = [_arrow(ax, board, state, action, colour, seen / cell, f"{actions[action]}: {words}", zorder=8 - n)
                   for n, (action, colour, words) in enumerate(arrows)]
        states = np.array(way(board, greedy, state))
        if len(states) > 1:
            handles += ax.plot(states % columns, states // columns, color=BLUE, linewidth=min(3.5, seen / 5), zorder=2.5,
                               linestyle=(0, (0.1, 2)), dash_capstyle="round", label="the way, if no move fails")
    handles += _signs(board, visited)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=14, columnspacing=1.2, handletextpad=0.6)
    return figure


def _arrow(ax, board: Board, state: int, action: int, colour: str, size: float, label: str, zorder: int) -> Line2D:
    """From the state ``size`` cells towards where the action leads, no further than the border; a dot where it leads nowhere."""
    here, move, cell = np.array(divmod(state, board.shape[1])), board.moves[action], size * _cell(ax, board)
    if move.any():
        end = np.clip(here + 1.2 * size * move, -0.5, np.array(board.shape) - 0.5)
        ax.annotate("", end[::-1], (here - 0.3 * size * move)[::-1], zorder=zorder, annotation_clip=False, arrowprops={
            "arrowstyle": "simple,head_length=0.9,head_width=1,tail_width=0.4", "mutation_scale": 0.75 * cell,
            "facecolor": colour, "edgecolor": "white", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})
    else:
        ax.scatter(*here[::-1], (0.3 * cell) ** 2, colour, zorder=zorder)
    sign = {(-1, 0): r"$\uparrow$", (1, 0): r"$\downarrow$", (0, -1): r"$\leftarrow$", (0, 1): r"$\rightarrow$"}
    marker = sign.get(tuple(move.astype(int).tolist()), "o")
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=17, label=label)


def _signs(board: Board, visited: np.ndarray) -> list:
    handles = []
    if board.hazard.any():
        handles.append(Line2D([], [], marker="X", color=BLACK, linestyle="", markersize=13, label="hazard"))
    if board.goal.any():
        handles.append(Line2D([], [], marker="*", color=BLACK, linestyle="", markersize=17, label="goal"))
    if board.start.any():
        handles.append(Patch(facecolor="white", edgecolor=BLACK, linewidth=2.5, label="start"))
    if (~visited & ~board.terminal).any():
        handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, hatch="xxx", linewidth=0, label="not in the data"))
    return handles
