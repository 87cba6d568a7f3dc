"""How all pictures look: size, colours, the heading. What each shows is in ``maps`` and ``plots``."""

from matplotlib.figure import Figure

from cql.analysis.figure_data import Pictured
from cql.members import Member

WIDTH, DPI = 11.0, 160  # inches; 1760 pixels, for pages that show about half of that
STYLE = {"font.size": 11, "axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.spines.top": False,
         "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": False, "grid.color": "#dddddd",
         "legend.frameon": False, "hatch.linewidth": 1.0, "figure.constrained_layout.h_pad": 0.07,
         "figure.constrained_layout.w_pad": 0.07, "axes.formatter.useoffset": False, "lines.linewidth": 1.8}
# Okabe and Ito's colours, told apart with any colour vision
BLUE, ORANGE, VERMILION, GREY, BLACK = "#0072B2", "#E69F00", "#D55E00", "#8c8c8c", "#222222"
WARNING = "#a34400"  # vermilion, dark enough for text on white (6 : 1)


def heading(figure: Figure, title: str, about: str) -> None:
    """A title and a line of what is shown, above everything else."""
    height = figure.get_size_inches()[1]
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.66 / height))
    figure.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=14, fontweight="bold")
    figure.text(0.01, 1 - 0.39 / height, about, va="top", color="#444444")


def warn_of_divergence(figure: Figure, pictured: Pictured) -> None:
    """Says in the upper right corner which members diverged, so that no mean over them passes for a sound one."""
    names = [member.name for member in pictured.diverged]
    if names:
        listed = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
        figure.text(0.99, 1 - 0.1 / figure.get_size_inches()[1], f"diverged: {len(names)} of "
                    f"{len(pictured.evaluation['members'])} members ({listed})", va="top", ha="right", color=WARNING)


def about(pictured: Pictured, *members: Member) -> str:
    """Which members are shown, and how far they were trained."""
    parts = []
    for member in members:
        steps = pictured.config.steps if member.algorithm == "cql" else pictured.config.bc_steps
        parts.append(f"{short_name(member)}, {steps:,} updates")
    return f"{'; '.join(parts)}; training seed {members[0].seed}; {draw_words(pictured)}"


def short_name(member: Member) -> str:
    return "BC" if member.algorithm == "bc" else f"CQL, α = {member.alpha:g}"


def draw_words(pictured: Pictured) -> str:
    """The first data draw, the one on the maps."""
    return f"data draw {pictured.config.data_seed}" if pictured.config.dataset is None else "given data"
