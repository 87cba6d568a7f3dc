"""Draws a finished run from its files. The only place that knows matplotlib; what is drawn comes from ``figure_data``."""

import io
import struct
from pathlib import Path

import numpy as np
from matplotlib import colormaps, style
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline

from cql.analysis import figure_data
from cql.analysis.figure_data import Board, Pictured
from cql.files import write_whole
from cql.metrics import MetricsLog
from cql.population import Member
from cql.runs import RunFolder

WIDTH, DPI = 11.0, 160  # inches; 1760 pixels, for pages that show about half of that
STYLE = {"font.size": 11, "axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": False, "grid.color": "#dddddd",
         "legend.frameon": False, "hatch.linewidth": 1.0, "figure.constrained_layout.h_pad": 0.07,
         "figure.constrained_layout.w_pad": 0.07, "axes.formatter.useoffset": False, "lines.linewidth": 1.8}
# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, VERMILION, GREY, BLACK = "#0072B2", "#E69F00", "#D55E00", "#8c8c8c", "#222222"
VALUES, ERRORS = colormaps["cividis"], colormaps["PuOr"]
NO_ARROWS, NO_NUMBERS = 5.0, 17.0  # points: in cells narrower than this they would not be read


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
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
            path = run.path / "figures" / f"{name}.png"
            write_whole(path, png.getvalue())
            log.image("figures", name, png.getvalue(), *struct.unpack(">II", png.getvalue()[16:24]))
            drawn.append(path)
    return drawn


# -------------------------------------------------------------------------------------------------------- on the map


def policy_map(pictured: Pictured) -> Figure | None:
    """Greedy actions of BC and CQL on the map; true values of both, and for CQL what it believes and by how much it errs."""
    board = pictured.board
    shown = [m for m in (figure_data.shown_member(pictured.members, name) for name in ("bc", "cql")) if m is not None]
    if board is None:
        return None
    policies = [pictured.policy(member) for member in shown]
    actions = np.stack([policy.act(pictured.inputs) for policy in policies])  # [N, S]
    true, _, words = figure_data.exact_values(pictured.mdp, actions, pictured.config.gamma,
                                              pictured.environment.spec.max_episode_steps)
    start = board.start / max(board.start.sum(), 1)
    panels = [(f"{_short_name(member)}: true value of its policy{_at_start(true[n] @ start)}", true[n], actions[n])
              for n, member in enumerate(shown)]
    error = None
    if shown[-1].algorithm == "cql":
        learned = policies[-1].q_values(pictured.inputs).max(-1).astype(np.float64)
        panels.append((f"{_short_name(shown[-1])}: learned value, max Q{_at_start(learned @ start)}", learned, actions[-1]))
        error = learned - true[-1]
    figure, axes = _map_grid(board, len(panels) + (error is not None))
    visited = pictured.counts.any(-1)
    norm = _norm_of(true[:, visited & ~board.terminal])
    for ax, (title, values, chosen) in zip(axes, panels):
        _draw_board(ax, board, values, VALUES, norm, visited)
        _draw_arrows(ax, board, chosen, VALUES(norm(values)), pictured.counts)
        ax.set_title(title)
    bar = figure.colorbar(ScalarMappable(norm, VALUES), ax=axes[: len(panels)], extend="both", shrink=0.7, aspect=40)
    bar.set_label(f"value of the state ({words})")
    if error is not None:
        ax, norm = axes[-1], _symmetric_norm(error[visited & ~board.terminal])
        _draw_board(ax, board, error, ERRORS, norm, visited)
        _draw_numbers(ax, board, error, ERRORS(norm(error)))
        ax.set_title(f"CQL: learned − true{_at_start((learned - true[-1]) @ start, '+.1f')}")
        figure.colorbar(ScalarMappable(norm, ERRORS), ax=ax, extend="both", shrink=0.7, aspect=40).set_label(
            "error of the value")
    _title(figure, "The greedy policies, and what their states are worth", _about(pictured, *shown))
    _map_legend(figure, board, arrows="greedy action")
    return figure


def visitation(pictured: Pictured) -> Figure | None:
    """Where the data are: visits of every state, the action most often taken, how many different ones were."""
    if pictured.inputs is None:
        return None
    board, counts = pictured.board, pictured.counts
    visits, tried = counts.sum(-1), (counts > 0).sum(-1)
    about = (f"data draw {pictured.config.data_seed}: {len(pictured.dataset):,} transitions, "
             f"{len(np.unique(pictured.dataset.episode_ids)):,} episodes")
    if board is None:
        return _visitation_without_map(visits, tried[visits > 0], counts.shape[1], about)
    figure, (left, right) = _map_grid(board, 2)
    visited = visits > 0
    norm = LogNorm(1, max(10, visits.max()))
    shown = np.maximum(visits, 1)
    _draw_board(left, board, shown, VALUES, norm, visited)
    _draw_arrows(left, board, counts.argmax(-1), VALUES(norm(shown)), counts)
    left.set_title("Visits, and the action most often taken")
    figure.colorbar(ScalarMappable(norm, VALUES), ax=left, shrink=0.8, aspect=40).set_label("visits (log scale)")
    levels = counts.shape[1]
    steps = ListedColormap(VALUES(np.linspace(0, 1, levels)))
    norm = BoundaryNorm(np.arange(levels + 1) + 0.5, levels)
    _draw_board(right, board, tried, steps, norm, visited)
    right.set_title("Different actions logged in the state")
    figure.colorbar(ScalarMappable(norm, steps), ax=right, shrink=0.8, aspect=40, ticks=range(1, levels + 1)).set_label(
        f"of {levels} actions")
    _title(figure, "Where the data are", about + f"; {visited.sum():,} of {pictured.decided.sum():,} states visited")
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
    for ax, mask, words in zip(axes[-2:], (logged, unlogged), ("logged", "never logged, in visited states")):
        _draw_q_histogram(ax, q, true, mask, np.linspace(*_reach(q, true, logged | unlogged), 41), words)
    axes[-1].set_xlabel("Q(s, a)")
    if board is not None:
        ax = axes[0]
        partly = np.isfinite(gap)
        norm = _symmetric_norm(gap[partly])
        _draw_board(ax, board, np.where(partly, gap, 0), ERRORS, norm, visited, blank=visited & ~partly)
        _draw_numbers(ax, board, np.where(visited, gap, np.nan), ERRORS(norm(gap)))
        ax.set_title("Largest logged Q − largest unlogged Q")
        figure.colorbar(ScalarMappable(norm, ERRORS), ax=ax, extend="both", shrink=0.8, aspect=40,
                        location="bottom" if len(axes) == 3 and board.shape[0] >= board.shape[1] else "right").set_label(
            "gap (negative: prefers an action it never saw)")
        _map_legend(figure, board, arrows=None, blank="every action logged")
    _title(figure, "Where the data are silent", f"{_about(pictured, member)}; an unlogged action is preferred in "
           f"{(gap < 0).sum():,} of the {np.isfinite(gap).sum():,} states that have both kinds")
    return figure


def _draw_q_histogram(ax, q, true, mask, bins, words) -> None:
    clip = (bins[0], bins[-1])
    ax.hist(np.clip(q[mask], *clip), bins, color=BLUE, alpha=0.55, label="learned")
    if true is not None:
        ax.hist(np.clip(true[mask], *clip), bins, histtype="step", color=BLACK, linewidth=1.6, label="true, of its policy")
    ax.set_title(f"{mask.sum():,} pairs {words}")
    ax.set_ylabel("(state, action) pairs")
    ax.legend(loc="upper left")


def _reach(q, true, mask) -> tuple[float, float]:
    """Limits that hold all learned values of the mask and nearly all true ones; a little wider, so never empty."""
    values = [q[mask]] + ([] if true is None else [np.quantile(true[mask], [0.02, 1])])
    values = np.concatenate(values)
    low, high = values.min(), values.max()
    pad = 0.02 * (high - low) + 1e-3
    return low - pad, high + pad


def _visitation_without_map(visits, tried, num_actions, about) -> Figure:
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
    _title(figure, "Where the data are", about)
    return figure


def _map_grid(board: Board, panels: int):
    """A figure of so many maps, as near to square as the map's own shape allows: ``(figure, [axes])``."""
    rows, columns = board.shape
    across = 1 if columns > 2.2 * rows or panels == 1 else (panels if rows > 1.5 * columns else 2)
    down = -(-panels // across)
    height = (WIDTH / across - 1.1) * rows / columns
    figure = Figure((WIDTH, min(2.0 + down * (height + 0.45), 20)), layout="compressed")
    return figure, list(figure.subplots(down, across, squeeze=False).ravel()[:panels])


def _beside_map(board: Board | None):
    """A figure with a map, if there is one, and two charts: ``(figure, [axes])``, the charts last."""
    if board is None:
        figure = Figure((WIDTH, 4.2), layout="constrained")
        return figure, list(figure.subplots(1, 2, sharex=True))
    rows, columns = board.shape
    if columns > 2.2 * rows:
        figure = Figure((WIDTH, 5.5 + (WIDTH - 2) * rows / columns), layout="constrained")
        names = figure.subplot_mosaic([["map", "map"], ["logged", "unlogged"]])
    else:
        figure = Figure((WIDTH, np.clip(6.2 * rows / columns + 1.9, 5, 12)), layout="constrained")
        names = figure.subplot_mosaic([["map", "logged"], ["map", "unlogged"]], width_ratios=(1.5, 1))
    names["unlogged"].sharex(names["logged"])
    return figure, [names["map"], names["logged"], names["unlogged"]]


def _draw_board(ax, board: Board, values, cmap, norm, visited, blank=None) -> None:
    """Cells coloured by value; hatched where the data never were, white where ``blank``; hazards, goals, start on top."""
    rows, columns = board.shape
    ax.imshow(board.cells(values), cmap=cmap, norm=norm, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    if blank is not None:
        _fill(ax, board, blank, facecolor="#f2f2f2", edgecolor="none")
    _fill(ax, board, ~visited & ~board.terminal, facecolor="none", edgecolor="white", hatch="////", linewidth=0)
    _fill(ax, board, ~visited & ~board.terminal, facecolor="none", edgecolor=GREY, hatch="\\\\\\\\", linewidth=0)
    _fill(ax, board, board.terminal & ~board.goal, facecolor=BLACK, edgecolor="none")
    _fill(ax, board, board.goal, facecolor="white", edgecolor="none")
    ax.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    cell = _cell(ax, board)
    ax.grid(which="minor", color="white", linewidth=min(0.6, cell / 20))
    ax.tick_params(which="both", length=0)
    for mask, marker, colour, share in ((board.hazard, "x", "white", 0.16), (board.goal, "*", BLACK, 0.5)):
        row, column = np.divmod(np.flatnonzero(mask), columns)
        ax.scatter(column, row, (cell * share * 1.6) ** 2, colour, marker, linewidths=min(1.6, cell / 12), zorder=3)
    _fill(ax, board, board.start, facecolor="none", edgecolor="white", linewidth=min(4.5, cell / 4), zorder=3)
    _fill(ax, board, board.start, facecolor="none", edgecolor=BLACK, linewidth=min(2.2, cell / 8), zorder=3)


def _fill(ax, board: Board, mask, zorder=2, **look) -> None:
    """One patch over the cells of a mask, so that a hatch runs through neighbours."""
    row, column = np.divmod(np.flatnonzero(mask), board.shape[1])
    if not len(row):
        return
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) - 0.5
    vertices = (np.stack([column, row], -1)[:, None] + corners).reshape(-1, 2)
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(row)
    ax.add_patch(PathPatch(Outline(vertices, codes), zorder=zorder, **look))


def _draw_arrows(ax, board: Board, actions, colours, counts) -> None:
    """An arrow a cell; grey where the data never were, hollow and red where they never hold this action."""
    visited, supported = counts.any(-1), np.take_along_axis(counts, actions[:, None], 1)[:, 0] > 0
    row, column = np.divmod(np.arange(len(actions)), board.shape[1])
    step = board.moves[actions]
    dark = colours[:, :3] @ [0.299, 0.587, 0.114] < 0.5
    cell = _cell(ax, board)
    if cell < NO_ARROWS:
        bad = visited & ~supported & ~board.terminal
        ax.scatter(column[bad], row[bad], 4, VERMILION, zorder=3)
        return
    for mask, face, edge, line in ((visited & supported & dark, "white", "none", 0),
                                   (visited & supported & ~dark, BLACK, "none", 0),
                                   (~visited, "#bbbbbb", BLACK, 0.5), (visited & ~supported, "white", VERMILION, 1.6)):
        mask = mask & ~board.terminal
        moving, resting = mask & step.any(-1), mask & ~step.any(-1)
        ax.quiver(column[moving], row[moving], 0.62 * step[moving, 1], 0.62 * step[moving, 0], pivot="mid", angles="xy",
                  scale_units="xy", scale=1, units="xy", width=0.11, headwidth=3.6, headlength=3.2, headaxislength=3.0,
                  facecolor=face, edgecolor=edge, linewidth=min(line, cell / 8), zorder=4)
        ax.scatter(column[resting], row[resting], (cell * 0.25) ** 2, face, "o", edgecolors=edge, zorder=4)


def _draw_numbers(ax, board: Board, values, colours) -> None:
    """The value in each cell, where there is room."""
    cell = _cell(ax, board)
    if cell < NO_NUMBERS:
        return
    dark = colours[:, :3] @ [0.299, 0.587, 0.114] < 0.5
    for state in np.flatnonzero(~board.terminal & np.isfinite(values)):
        ax.text(state % board.shape[1], state // board.shape[1], f"{values[state]:.0f}".replace("-", "−"), ha="center",
                va="center", fontsize=min(11, 0.37 * cell), color="white" if dark[state] else BLACK, zorder=4)


def _cell(ax, board: Board) -> float:
    """About how wide a cell will be, in points: the layout is not known before drawing."""
    grid = ax.get_subplotspec().get_gridspec()
    width, height = ax.figure.get_size_inches()
    return 72 * min(0.82 * width / grid.ncols / board.shape[1], 0.82 * height / grid.nrows / board.shape[0])


def _map_legend(figure: Figure, board: Board, arrows: str | None, unsupported=True, blank=None) -> None:
    handles = []
    if arrows:
        handles.append(Line2D([], [], marker=r"$\rightarrow$", color=BLACK, linestyle="", markersize=14, label=arrows))
    if arrows and unsupported:
        handles.append(Line2D([], [], marker=r"$\Rightarrow$", color=VERMILION, linestyle="", markersize=14,
                              label="the data never hold it in this state"))
    handles.append(Patch(facecolor="#dddddd", edgecolor=GREY, hatch="XXX", linewidth=0, label="state never visited"))
    if blank:
        handles.append(Patch(facecolor="#f2f2f2", edgecolor=GREY, linewidth=0.5, label=blank))
    if board.hazard.any():
        handles.append(Line2D([], [], marker="X", color=BLACK, linestyle="", markersize=10, label="hazard"))
    if board.goal.any():
        handles.append(Line2D([], [], marker="*", color=BLACK, linestyle="", markersize=12, label="goal"))
    handles.append(Patch(facecolor="white", edgecolor=BLACK, linewidth=2, label="start"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.4, handletextpad=0.5)


def _norm_of(values) -> Normalize:
    """From the smallest to the largest, never empty."""
    low, high = (values.min(), values.max()) if values.size else (0, 1)
    return Normalize(low, high if high - low > 1e-9 else low + 1)


def _symmetric_norm(values) -> TwoSlopeNorm:
    """Around 0, to the 95th percentile of the magnitudes: a few extreme states shall not bleach the rest."""
    reach = float(np.quantile(np.abs(values), 0.95)) if values.size else 1.0
    return TwoSlopeNorm(0, -max(reach, 1e-6), max(reach, 1e-6))


# --------------------------------------------------------------------------------------------------- over the updates


def losses(pictured: Pictured) -> Figure | None:
    """Loss terms and exact worth of the greedy policy over training, by alpha, with the levels they can be held against."""
    panels = [(name, title, unit, scale, marks) for name, title, unit, scale, marks in _loss_panels(pictured)
              if figure_data.curves(pictured, name)]
    across = min(3, len(panels)) if len(panels) != 4 else 2
    down = -(-len(panels) // across)
    figure = Figure((WIDTH, 1.5 + 3.1 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    colours = _colours(list(figure_data.groups(pictured.members)))
    for ax, (name, title, unit, scale, marks) in zip(axes, panels):
        for group, (updates, values) in figure_data.curves(pictured, name).items():
            ax.plot(updates, values.mean(0), color=colours[group])
            if len(values) > 1:
                ax.fill_between(updates, values.min(0), values.max(0), color=colours[group], alpha=0.15, linewidth=0)
        for level, look in marks:
            if level is not None:
                ax.axhline(level, color=BLACK, linestyle=look, linewidth=1.3)
        ax.set(title=title, ylabel=unit, yscale=scale)
        ax.set_xlim(left=0)
        ax.grid(True)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
    for ax in axes[len(panels):]:
        ax.remove()
    for ax in axes[max(0, len(panels) - across): len(panels)]:
        ax.set_xlabel("updates")
    return figure


def _loss_panels(pictured: Pictured):
    """name, title, unit, axis, levels with line styles."""
    return []


def outcomes(pictured: Pictured) -> Figure | None:
    return None


def _colours(groups) -> dict:
    """By group: BC orange, CQL blue, or from dark to light as alpha rises; references grey and black."""
    return {}


# ------------------------------------------------------------------------------------------------------------- words


def _title(figure: Figure, title: str, about: str) -> None:
    figure.suptitle(f"{title}\n", x=0.012, ha="left", fontsize=14, fontweight="bold")
    figure.text(0.012, 1 - 0.47 / figure.get_size_inches()[1], about, ha="left", va="top", color="#555555")


def _about(pictured: Pictured, *members: Member) -> str:
    """Which members are shown, and how far they were trained."""
    parts = []
    for member in members:
        steps = pictured.config.steps if member.algorithm == "cql" else pictured.config.bc_steps
        parts.append(f"{_short_name(member)}, {steps:,} updates")
    return f"{'; '.join(parts)}; training seed {members[0].seed}, data draw {members[0].data_seed}"


def _short_name(member: Member) -> str:
    return "BC" if member.algorithm == "bc" else f"CQL, α = {member.alpha:g}"


def _at_start(value: float, form: str = ".1f") -> str:
    return f" (start {format(value, form)})".replace("-", "−")


FIGURES = {"policy_map": policy_map, "visitation": visitation, "silent": silent, "losses": losses, "outcomes": outcomes}
