"""The notebooks run: every code cell in order, in one namespace, as Jupyter would run them."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cql.exercises import marking

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "docs/notebooks"


def run(name: str, space: dict) -> int:
    """Runs the code cells; returns how many end in a picture."""
    pictures = 0
    for n, cell in enumerate(json.loads((FOLDER / name).read_text())["cells"]):
        if cell["cell_type"] == "code":
            lines = cell["source"].splitlines()
            if lines[-1].startswith("cql.draw_policy"):
                lines[-1] = f"picture = {lines[-1]}"
            exec(compile("\n".join(lines), f"{name}, cell {n}", "exec"), space)
            pictures += isinstance(space.pop("picture", None), Figure)
    return pictures


def test_the_tour(capsys):
    """At α = 6 the network is near the exact solution, at α = 0 its policy meets hazards."""
    space: dict = {}
    assert run("tour.ipynb", space) == 4
    printed = capsys.readouterr().out
    assert "certified: [ True  True  True  True]" in printed
    distance = {line[:6]: float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if "mean |Q" in line}
    assert distance["cql-a6"] < 0.5 < distance["cql-a0"]


def test_the_exercises(capsys, monkeypatch):
    """With nothing written, every cell says what is missing; the last names the planted bug. A mistake is known by the
    first 25 updates."""
    monkeypatch.setattr(marking, "UPDATES", 50)
    run("exercises.ipynb", {})
    printed = capsys.readouterr().out
    assert printed.count("returns nothing: its lines are still to be written.") == 5
    assert "Your updates never copy Q" in printed and "Your α never moves" in printed
    assert "Your penalty is a plain mean over the 82 distinct transitions" in printed
