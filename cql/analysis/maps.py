"""Pictures on the map of a grid: policies and values, visits, and where the data are silent."""

import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline

from cql.analysis import figure_data
from cql.analysis.figure_data import Board, Pictured
from cql.analysis.look import BLACK, BLUE, GREY, VERMILION, WIDTH, about, draw_words, heading, short_name

VALUES = ListedColormap(0.65 * colormaps["cividis"](np.linspace(0, 1, 256)) + 0.35)  # pale: arrows show on it
ERRORS = colormaps["PuOr"]
NOTHING = "#dcdcdc"
NO_ARROWS, NO_NUMBERS = 5.0, 17.0  # points: in cells narrower than this they would not be read


def policy_map(pictured: Pictured) -> Figure | None:
    """Greedy actions of BC and CQL on the map; true values of both, and for CQL what it believes and how far it errs."""
    board = pictured.board
    if board is None:
        return None
    shown = [m for m in (figure_data.shown_member(pictured.members, name) for name in ("bc", "cql")) if m is not None]
    if not shown:  # every member diverged
        return None
    policies = [pictured.policy(member) for member in shown]
    actions = np.stack([policy.act(pictured.inputs) for policy in policies])  # [N, S]
    true, _, words = figure_data.exact_values(pictured.mdp, actions, pictured.config.gamma,
                                              pictured.environment.spec.max_episode_steps)
    start = board.start / max(board.start.sum(), 1)
    visited = pictured.counts.any(-1)
    panels = [(f"{short_name(member)}: true value of its policy{_at_start(true[n] @ start)}", true[n], actions[n])
              for n, member in enumerate(shown)]
    error = learned = None
    if shown[-1].algorithm == "cql":
        learned = policies[-1].q_values(pictured.inputs).max(-1).astype(np.float64)
        title = f"{short_name(shown[-1])}: learned value, max Q{_at_start(learned @ start)}"
        panels.append((title, learned, actions[-1]))
        error = learned - true[-1]
    figure, axes, side = _map_grid(board, len(panels) + (error is not None))
    relevant = visited & ~board.terminal
    norm = _value_norm(true[:, relevant], None if learned is None else learned[relevant])
    for ax, (title, values, chosen) in zip(axes, panels):
        _draw_board(ax, board, values, VALUES, norm, visited)
        _draw_arrows(ax, board, chosen, pictured.counts)
        _wrapped_title(ax, board, title)
    two_by_two = len(axes) == 4 and axes[2].get_subplotspec().rowspan.start == 1 and side == "bottom"
    _colour_bar(figure, axes[2] if two_by_two else axes[: len(panels)], norm, VALUES, side,
                f"value ({words}; one scale)", extend="both")
    if error is not None:
        ax, norm = axes[-1], _symmetric_norm(error[relevant])
        _draw_board(ax, board, error, ERRORS, norm, visited)
        _draw_numbers(ax, board, np.where(visited, error, np.nan), norm)
        _wrapped_title(ax, board, f"CQL: learned − true{_at_start(error @ start, '+.3g')}")
        _colour_bar(figure, ax, norm, ERRORS, side, "error (positive: too optimistic)", extend="both")
    heading(figure, "The greedy policies, and what their states are worth", about(pictured, *shown))
    _map_legend(figure, board, arrows="greedy action")
    return figure


def visitation(pictured: Pictured) -> Figure | None:
    """Where the data are: visits of every state, the action most often taken, how many different ones were."""
    if pictured.inputs is None:
        return None
    board, counts = pictured.board, pictured.counts
    visits, tried = counts.sum(-1), (counts > 0).sum(-1)
    facts = (f"{draw_words(pictured)}: {len(pictured.dataset):,} transitions, "
             f"{len(np.unique(pictured.dataset.episode_ids)):,} episodes")
    if board is None:
        return _visitation_without_map(visits, tried[visits > 0], counts.shape[1], facts)
    figure, (left, right), side = _map_grid(board, 2)
    visited = visits > 0
    norm = LogNorm(1, max(10, visits.max()))
    _draw_board(left, board, np.where(visited, visits, np.nan), VALUES, norm, visited)
    _draw_arrows(left, board, counts.argmax(-1), counts, everywhere=False)
    _wrapped_title(left, board, "Visits, and the action most often taken")
    _colour_bar(figure, left, norm, VALUES, side, "visits (log scale)")
    levels = counts.shape[1]
    steps, norm = ListedColormap(VALUES(np.linspace(0, 1, levels))), BoundaryNorm(np.arange(levels + 1) + 0.5, levels)
    _draw_board(right, board, np.where(visited, tried, np.nan), steps, norm, visited)
    _wrapped_title(right, board, "How many different actions were taken")
    _colour_bar(figure, right, norm, steps, side, f"actions logged in the state, of {levels}",
                ticks=range(1, levels + 1))
    heading(figure, "Where the data are", facts + f"; {visited.sum():,} of {pictured.decided.sum():,} states visited")
    _map_legend(figure, board, arrows="most frequent action", unsupported=False)
    return figure


def silent(pictured: Pictured) -> Figure | None:
    """Where the data are silent: what CQL's network says of actions that were never logged."""
    member = figure_data.shown_member(pictured.members, "cql")
    if member is None or pictured.inputs is None:
        return None
    board, counts = pictured.board, pictured.counts
    q = pictured.policy(member).q_values(pictured.inputs).astype(np.float64)
    gap = figure_data.silent_gap(q, counts)
    visited = counts.any(-1)
    logged = (counts > 0) & pictured.decided[:, None]
    unlogged = (counts == 0) & (visited & pictured.decided)[:, None]
    true = None
    if pictured.mdp is not None:
        _, true, _ = figure_data.exact_values(pictured.mdp, q.argmax(-1)[None], pictured.config.gamma,
                                              pictured.environment.spec.max_episode_steps)
        true = true[0]
    figure, axes = _beside_map(board)
    preferred = f"{(gap < 0).sum():,} of {np.isfinite(gap).sum():,} states"
    bins = np.linspace(*_reach(q, true, logged | unlogged), 41)
    for ax, mask, words in zip(axes[-2:], (logged, unlogged), ("Logged", "Never logged, in visited states")):
        _draw_q_histogram(ax, q, true, mask, bins, words)
    if board is not None:
        ax, partly = axes[0], np.isfinite(gap)
        norm = _symmetric_norm(gap[partly])
        _draw_board(ax, board, gap, ERRORS, norm, visited)
        _draw_numbers(ax, board, gap, norm)
        _wrapped_title(ax, board, "Largest Q among logged − among unlogged actions")
        _colour_bar(figure, ax, norm, ERRORS, "bottom", f"gap (negative in {preferred}: prefers one it never saw)",
                    extend="both")
        _map_legend(figure, board, arrows=None, blank="every action logged")
    heading(figure, "Where the data are silent", about(pictured, member) + (
        "" if board is not None else f"; prefers an unlogged action in {preferred}"))
    return figure


def _draw_q_histogram(ax, q, true, mask, bins, words) -> None:
    if not mask.any():
        ax.set(title=words, xticks=[], yticks=[])
        ax.text(0.5, 0.5, "none: every action was logged\nin every visited state" if "Never" in words else "none",
                ha="center", va="center", transform=ax.transAxes, color="#444444")
        return
    low, high = bins[0], bins[-1]
    ax.hist(q[mask], bins, color=BLUE, alpha=0.55, label="learned")
    if true is not None:
        ax.hist(np.clip(true[mask], low, high), bins, histtype="step", color=BLACK, linewidth=1.6,
                label="exact, of its policy")
    margin = 0.02 * (high - low)
    ax.set(title=f"{words}: {mask.sum():,} pairs", ylabel="pairs", xlabel="Q(s, a)", xlim=(low - margin, high + margin))
    ax.margins(y=0.3)  # room for the legend
    ax.legend(loc="best")


def _reach(q, true, mask) -> tuple[float, float]:
    """Limits that hold all learned values of the mask and nearly all true ones; a little wider, so never empty."""
    values = [q[mask]] + ([] if true is None else [np.quantile(true[mask], [0.02, 1])])
    values = np.concatenate(values)
    low, high = values.min(), values.max()
    pad = 0.02 * (high - low) + 1e-3
    return low - pad, high + pad


def _visitation_without_map(visits, tried, num_actions, facts) -> Figure:
    figure = Figure((WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    ordered = np.sort(visits[visits > 0])[::-1]
    left.stairs(ordered, np.arange(len(ordered) + 1), fill=True, color=BLUE)
    left.set(yscale="log", ylim=(0.7, None), xlim=(0, len(visits)), xlabel="states, most visited first",
             ylabel="visits (log scale)")
    if len(ordered) < len(visits):
        left.axvspan(len(ordered), len(visits), facecolor="#eeeeee", edgecolor=GREY, hatch="//", linewidth=0)
        left.set_title(f"Visits; {len(visits) - len(ordered):,} of {len(visits):,} states never visited (hatched)")
    else:
        left.set_title(f"Visits of the {len(visits):,} states")
    right.bar(range(1, num_actions + 1), np.bincount(tried, minlength=num_actions + 1)[1:], color=BLUE)
    right.set(xticks=range(1, num_actions + 1) if num_actions <= 12 else [1, num_actions],
              xlabel=f"different actions logged, of {num_actions}", ylabel="visited states")
    right.set_title("Actions tried in a state")
    heading(figure, "Where the data are", facts)
    return figure


def _map_grid(board: Board, panels: int):
    """A figure of so many maps, about as wide as high if the map allows: ``(figure, [axes], colour bars' side)``."""
    rows, columns = board.shape
    across = 1 if columns > 2.2 * rows else (panels if rows > 1.5 * columns or panels == 3 else min(2, panels))
    down = -(-panels // across)
    side = "right" if across == 1 and panels > 1 else "bottom"
    height = min(WIDTH / across - (1.3 if side == "right" else 0.3), 9) * rows / columns + 0.4
    figure = Figure((WIDTH, min(1.2 + 0.8 * (side == "bottom") + down * height, 20)), layout="compressed")
    figure.get_layout_engine().set(hspace=0.04)
    return figure, list(figure.subplots(down, across, squeeze=False).ravel()[:panels]), side


def _colour_bar(figure: Figure, axes, norm, cmap, side: str, label: str, **more) -> None:
    """A bar under or beside some maps; beside them there is room for the first word of its label only."""
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=axes, location=side, shrink=0.9, aspect=35, pad=0.03, **more)
    bar.set_label(label.split(" ")[0] if side == "right" else label)


def _wrapped_title(ax, board: Board, text: str) -> None:
    """In as many lines as the map's width asks for."""
    ax.set_title(textwrap.fill(text, max(16, int(_cell(ax, board) * board.shape[1] / 5.7))))


def _beside_map(board: Board | None):
    """A figure with a map, if there is one, and two charts: ``(figure, [axes])``, the charts last."""
    if board is None:
        figure = Figure((WIDTH, 4.2), layout="constrained")
        return figure, list(figure.subplots(1, 2))
    rows, columns = board.shape
    if columns > 2.2 * rows:
        figure = Figure((WIDTH, 5.5 + (WIDTH - 2) * rows / columns), layout="constrained")
        names = figure.subplot_mosaic([["map", "map"], ["logged", "unlogged"]])
    else:
        figure = Figure((WIDTH, np.clip(5.85 * rows / columns + 1.95, 5, 9)), layout="constrained")
        names = figure.subplot_mosaic([["map", "logged"], ["map", "unlogged"]], width_ratios=(1.5, 1))
    return figure, [names["map"], names["logged"], names["unlogged"]]


def _draw_board(ax, board: Board, values, cmap, norm, visited) -> None:
    """Cells coloured by value, grey where it is NaN, hatched where the data never were; hazards, goals, start above."""
    ax.imshow(board.cells(values), cmap=cmap, norm=norm, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.set_facecolor(NOTHING)
    cell = _cell(ax, board)
    for colour, hatch in (("white", "////"), (GREY, "\\\\\\\\")) if cell > 14 else (("white", "///"),):
        _fill(ax, board, ~visited & ~board.terminal, facecolor="none", edgecolor=colour, hatch=hatch, linewidth=0)
    _fill(ax, board, board.terminal & ~board.goal, facecolor=BLACK, edgecolor="none")
    _fill(ax, board, board.goal, facecolor="white", edgecolor="none")
    if cell >= NO_ARROWS:
        _draw_lines_and_marks(ax, board, cell)
    _fill(ax, board, board.start, facecolor="none", edgecolor="white", linewidth=min(4.5, cell / 4), zorder=3)
    _fill(ax, board, board.start, facecolor="none", edgecolor=BLACK, linewidth=min(2.2, cell / 8), zorder=3)


def _draw_lines_and_marks(ax, board: Board, cell: float) -> None:
    rows, columns = board.shape
    ax.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=min(0.6, cell / 20))
    ax.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=min(0.6, cell / 20))
    for mask, marker, colour, share in ((board.hazard, "x", "white", 0.16), (board.goal, "*", BLACK, 0.45)):
        row, column = np.divmod(np.flatnonzero(mask), columns)
        ax.scatter(column, row, (cell * share * 1.6) ** 2, colour, marker=marker, zorder=3,
                   linewidths=min(1.6, cell / 12))


def _fill(ax, board: Board, mask, zorder=2, **look) -> None:
    """One patch over the cells of a mask, so that a hatch runs through neighbours."""
    row, column = np.divmod(np.flatnonzero(mask), board.shape[1])
    if not len(row):
        return
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) - 0.5
    vertices = (np.stack([column, row], -1)[:, None] + corners).reshape(-1, 2)
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(row)
    ax.add_artist(PathPatch(Outline(vertices, codes), zorder=zorder, **look))  # add_patch would measure every curve


def _draw_arrows(ax, board: Board, actions, counts, everywhere=True) -> None:
    """An arrow a cell; hollow where the data never were (or none), red where they never hold this action."""
    visited, supported = counts.any(-1), np.take_along_axis(counts, actions[:, None], 1)[:, 0] > 0
    row, column = np.divmod(np.arange(len(actions)), board.shape[1])
    step, cell = board.moves[actions], _cell(ax, board)
    if cell < NO_ARROWS:
        bad = visited & ~supported & ~board.terminal
        ax.scatter(column[bad], row[bad], 4, VERMILION, zorder=4)
        return
    kinds = [(visited & supported, BLACK, "none", 0.0), (visited & ~supported, VERMILION, "white", 1.0)]
    for mask, face, edge, line in kinds + [(~visited, "white", BLACK, 0.7)] * everywhere:
        mask = mask & ~board.terminal
        moving, resting = mask & step.any(-1), mask & ~step.any(-1)
        ax.quiver(column[moving], row[moving], 0.62 * step[moving, 1], 0.62 * step[moving, 0], pivot="mid", angles="xy",
                  scale_units="xy", scale=1, units="xy", width=0.14 if face == VERMILION else 0.11, headwidth=3.6,
                  headlength=3.2, headaxislength=3.0, facecolor=face, edgecolor=edge, zorder=4,
                  linewidth=min(line, cell / 12))
        ax.scatter(column[resting], row[resting], (cell * 0.25) ** 2, face, edgecolors=edge, zorder=4)


def _draw_numbers(ax, board: Board, values, norm) -> None:
    """The value in each cell, where there is room."""
    cell = _cell(ax, board)
    if cell < NO_NUMBERS:
        return
    digits = 0 if norm.vmax >= 2.5 else 1 if norm.vmax >= 0.25 else 2
    for state in np.flatnonzero(~board.terminal & np.isfinite(values)):
        dark = ERRORS(norm(values[state]))[:3] @ np.array([0.299, 0.587, 0.114]) < 0.5
        number = f"{round(float(values[state]), digits) + 0.0:.{digits}f}".replace("-", "−")  # no minus before 0
        ax.text(state % board.shape[1], state // board.shape[1], number, ha="center", va="center",
                fontsize=min(11, 0.37 * cell), color="white" if dark else BLACK, zorder=4, in_layout=False)


def _cell(ax, board: Board) -> float:
    """About how wide a cell will be, in points: the layout is not known before drawing."""
    box = ax.get_subplotspec().get_position(ax.figure)
    width, height = ax.figure.get_size_inches()
    return 72 * 1.05 * min(box.width * width / board.shape[1], box.height * height / board.shape[0])


def _map_legend(figure: Figure, board: Board, arrows: str | None, unsupported=True, blank=None) -> None:
    handles = []
    pointed = _cell(figure.axes[0], board) >= NO_ARROWS
    if arrows and pointed:
        handles.append(Line2D([], [], marker=r"$\rightarrow$", color=BLACK, linestyle="", markersize=14, label=arrows))
    if arrows and unsupported:
        handles.append(Line2D([], [], marker=r"$\rightarrow$" if pointed else "o", color=VERMILION, linestyle="",
                              markersize=14 if pointed else 5, label="greedy action never logged in this state"))
    handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, hatch="xxx", linewidth=0, label="state never visited"))
    if blank:
        handles.append(Patch(facecolor=NOTHING, edgecolor=GREY, linewidth=0.5, label=blank))
    if board.hazard.any():
        handles.append(Line2D([], [], marker="X" if pointed else "s", color=BLACK, linestyle="", markersize=10,
                              label="hazard"))
    if board.goal.any():
        handles.append(Line2D([], [], marker="*", color=BLACK, linestyle="", markersize=12, label="goal"))
    handles.append(Patch(facecolor="white", edgecolor=BLACK, linewidth=2, label="start"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.4, handletextpad=0.5)


def _value_norm(true, learned) -> Normalize:
    """One scale: the range of the true values, widened to the learned ones, but by no more than half their size."""
    low, high = (true.min(), true.max()) if true.size else (0.0, 1.0)
    spare = max(high - low, abs(low), abs(high), 1e-3) / 2
    if learned is not None and learned.size:
        low, high = min(low, max(learned.min(), low - spare)), max(high, min(learned.max(), high + spare))
    return Normalize(low, max(high, low + 1e-3))


def _symmetric_norm(values) -> TwoSlopeNorm:
    """Around 0, to the 95th percentile of the magnitudes: a few extreme states shall not bleach the rest."""
    reach = float(np.quantile(np.abs(values), 0.95)) if values.size else 1.0
    return TwoSlopeNorm(0, -max(reach, 1e-6), max(reach, 1e-6))


def _at_start(value: float, form: str = ".3g") -> str:
    return f" (start\u00a0{format(value, form)})".replace("-", "−")
