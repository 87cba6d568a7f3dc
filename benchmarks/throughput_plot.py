"""The picture of ``benchmarks.throughput``: what a member-update costs against members, batch, width and transitions."""

from matplotlib import style
from matplotlib.figure import Figure

from cql.analysis.look import BLUE, DPI, GREY, ORANGE, STYLE, VERMILION, WIDTH, heading

COLOURS = (BLUE, ORANGE, VERMILION, GREY)
PANELS = (("members", "members trained at once"), ("batch", "batch"), ("width", "width of the two hidden layers"),
          ("transitions", "transitions in the data set"))


def lines(found: dict, axis: str) -> dict[str, list[dict]]:
    """Label -> entries of one line of a panel, in the order of its axis."""
    if axis == "members":
        chosen = [entry for entry in found["table"] if entry["algorithm"] == "cql"]
    else:
        others = {"batch", "width", "transitions"} - {axis}
        usual = {"batch": (64, "full") if axis == "transitions" else (64,), "width": (256,), "transitions": (10**4,)}
        chosen = [entry for entry in found["sweeps"] if all(entry[name] in usual[name] for name in others)]
        chosen = [entry for entry in chosen if axis != "batch" or entry["batch"] != "full"]
    found_lines = {}
    for entry in sorted(chosen, key=lambda entry: entry[axis]):
        label = f"batch {entry['batch']}" if axis in ("members", "transitions") else f"{entry['members']} members"
        found_lines.setdefault(label, []).append(entry)
    return found_lines


def draw(found: dict, path: str) -> None:
    with style.context(["default", STYLE]):
        panels = [(axis, label) for axis, label in PANELS if lines(found, axis)]
        rows = -(-len(panels) // 2)
        figure = Figure((WIDTH, 0.8 + 3.7 * rows), layout="constrained")
        for ax, (axis, label) in zip(figure.subplots(rows, 2, squeeze=False).flat, panels):
            for colour, (name, entries) in zip(COLOURS, sorted(lines(found, axis).items())):
                at = [entry[axis] for entry in entries]
                cost, low, high = ([1e6 / entry["member_updates_per_second"][which] for entry in entries]
                                   for which in ("median", "high", "low"))
                ax.plot(at, cost, marker="o", markersize=4, color=colour, label=name)
                ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
                floor = [entry["of_floor"]["median"] * spent for entry, spent in zip(entries, cost)]
                ax.plot(at, floor, linestyle="--", linewidth=1, color=colour)
            ax.plot([], [], linestyle="--", linewidth=1, color=GREY, label="this machine's floor")
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="µs per member-update")
            ax.grid(True, which="both")
            ax.legend(fontsize=9)
        for ax in figure.axes[len(panels) :]:
            ax.remove()
        first, machine = found["table"][0], found["machine"]
        heading(figure, "What one update of one member costs",
                f"CQL, {first['observation']} observation, MLP of two layers of 256 (below left: varied); medians and the range of "
                f"the rounds; {machine['gpu'] or machine['cpu']}, PyTorch {machine['torch']}")
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
