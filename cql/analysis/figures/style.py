"""How all pictures look: size, colours, heading, and how they are saved."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cql.analysis.figures.data import RunData
from cql.files import atomic_write
from cql.members import Member

WIDTH, DPI = 11.0, 160  # inches; 1760 pixels, for pages that show about half of that
STYLE = {"font.size": 11, "axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": False, "grid.color": "#dddddd",
         "legend.frameon": False, "hatch.linewidth": 1.0, "figure.constrained_layout.h_pad": 0.07,
         "figure.constrained_layout.w_pad": 0.07, "axes.formatter.useoffset": False, "lines.linewidth": 1.8}
# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, VERMILION, GREEN, GREY, BLACK = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#8c8c8c", "#222222"
QUIET = "#444444"  # of words beside the data
WARNING = "#a34400"  # vermilion, dark enough for text on white (6 : 1)
REFERENCES: dict[str, dict] = {"optimal": {"color": BLACK, "linestyle": "--", "linewidth": 1.3},
                               "behavior": {"color": GREY, "linestyle": "--", "linewidth": 1.6},
                               "floor": {"color": BLACK, "linestyle": ":", "linewidth": 1.6}}


def house_style(**changes):
    """A context and a decorator, in which pictures look alike whatever a person's matplotlibrc says."""
    return matplotlib.style.context(["default", STYLE, changes])


@house_style()
def png(figure: Figure) -> bytes:
    """The bytes of a picture; equal figures give equal bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


@house_style()
def save_figures(run_data: RunData, drawings: dict[str, Callable[[], Figure | None]]) -> dict[str, Path]:
    """Writes pictures into the run's ``figures/``: name -> path. Old pictures that can no longer be drawn are removed.

    Equal runs give equal bytes. Every picture says which members diverged, so that no mean over them seems sound.
    """
    folder, saved = run_data.run.path / "figures", {}
    folder.mkdir(exist_ok=True)
    for name, draw in drawings.items():
        figure, path = draw(), folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        if names := [member.name for member in run_data.diverged]:
            listed = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
            words = f"diverged: {len(names)} of {len(run_data.evaluation['members'])} members ({listed})"
            figure.text(0.99, 1 - 0.1 / figure.get_size_inches()[1], words, va="top", ha="right", color=WARNING)
        atomic_write(path, png(figure))
        saved[name] = path
    return saved


def line(label: str, color, **look) -> Line2D:
    """An entry of a legend: a line."""
    return Line2D([], [], color=color, label=label, **look)


def sign(label: str, marker: str, color, size: float = 6, **look) -> Line2D:
    """An entry of a legend: a marker alone."""
    return Line2D([], [], linestyle="", marker=marker, color=color, markersize=size, label=label, **look)


def heading(figure: Figure, title: str, about: str) -> None:
    """A title and a line of what is shown, above everything else."""
    height = figure.get_size_inches()[1]
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.66 / height))
    figure.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=14, fontweight="bold")
    figure.text(0.01, 1 - 0.39 / height, about, va="top", color=QUIET)


def about(run_data: RunData, *members: Member) -> str:
    """Which members are shown, and how far they were trained."""
    parts = []
    for member in members:
        steps = run_data.config.steps if member.algorithm == "cql" else run_data.config.bc_steps
        name = run_data.config.bc_name if member.algorithm == "bc" else group_name(member.algorithm, member.alpha)
        parts.append(f"{name}, {steps:,} updates")
    return f"{'; '.join(parts)}; training seed {members[0].seed}; {data_words(run_data)}"


def group_name(algorithm: str, alpha: float | None) -> str:
    """What a picture calls the members of one algorithm and alpha."""
    names = {"bc": "BC", "behavior": "behaviour", "optimal": "optimal"}
    return names.get(algorithm) or f"CQL, α = {alpha:g}"


def data_words(run_data: RunData) -> str:
    """The first data set, the one on the maps."""
    return f"data set {run_data.config.data_seed}" if run_data.config.dataset is None else "given data"
