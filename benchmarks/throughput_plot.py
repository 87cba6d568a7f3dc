"""The picture of ``benchmarks.throughput``: what a member-update costs against members, batch, width and transitions."""

from itertools import cycle

from matplotlib import style
from matplotlib.figure import Figure

from cql.analysis.look import BLUE, DPI, GREY, ORANGE, STYLE, VERMILION, WIDTH, heading

COLOURS = (BLUE, ORANGE, VERMILION, GREY)
AXES = {"members": "members trained at once", "batch": "batch", "width": "width of the two hidden layers",
        "transitions": "transitions in the data set"}


def panels(found: dict) -> dict[str, dict[str, list[dict]]]:
    """Axis -> label -> the entries of one line."""
    made = {axis: {} for axis in AXES}
    groups = [[entry for entry in found["table"] if entry["algorithm"] == "cql" and (entry["batch"], entry["precision"]) == both]
              for both in dict.fromkeys((entry["batch"], entry["precision"]) for entry in found["table"])]
    for group in [*groups, *found["sweeps"]]:
        varied = [axis for axis in AXES if len({entry[axis] for entry in group}) > 1]
        if len(varied) == 1:
            label = f"{group[0]['members']} members" if varied[0] in ("batch", "width") else f"batch {group[0]['batch']}"
            label += f", {group[0]['precision']}" * (group[0]["precision"] != "float32")
            made[varied[0]][label] = group
    return {axis: lines for axis, lines in made.items() if lines}


def draw(found: dict, path: str) -> None:
    shown, machine = panels(found), found["machine"]
    rows = max(1, -(-len(shown) // 2))
    with style.context(["default", STYLE]):
        figure = Figure((WIDTH, 0.8 + 3.7 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for ax, (axis, lines) in zip(axes, shown.items()):
            for colour, (label, entries) in zip(cycle(COLOURS), lines.items()):
                at = [entry[axis] for entry in entries]
                cost, low, high = ([1e6 / entry["member_updates_per_second"][which] for entry in entries]
                                   for which in ("median", "high", "low"))
                ax.plot(at, cost, marker="o", markersize=4, color=colour, label=label)
                ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
                floor = [entry["of_floor"]["median"] * spent for entry, spent in zip(entries, cost)]
                ax.plot(at, floor, linestyle="--", linewidth=1, color=colour)
            ax.plot([], [], linestyle="--", linewidth=1, color=GREY, label="floor, if every transition is read")
            ax.set(xscale="log", yscale="log", xlabel=AXES[axis], ylabel="µs per member-update")
            ax.set_xticks(at, [f"{value:,}" for value in at], minor=False)
            ax.set_xticks([], minor=True)
            ax.yaxis.set_major_formatter(_plain)
            low, high = ax.get_ylim()
            if high < 20 * low:  # within a decade or so the powers of ten alone say too little
                ax.yaxis.set_minor_formatter(lambda value, place: _plain(value, place) if str(int(value))[0] in "25" else "")
            else:
                ax.yaxis.set_minor_formatter("")
            ax.grid(True)
            ax.legend(fontsize=9)
        for ax in list(axes):
            ax.remove()
        heading(figure, "What one update of one member costs",
                f"CQL, {found['table'][0]['observation']} observation, two hidden layers of 256, medians and range of the rounds; "
                f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores")
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _plain(value: float, _place: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
