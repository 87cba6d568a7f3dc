"""The numbers of docs/tutorial.md that can be computed in a moment, and its size."""

import re
from pathlib import Path

import numpy as np
import pytest

from cql.exact import TabularMDP, alpha_infinity_limit, cql_fixed_point, curve

PAGE = (Path(__file__).parent.parent / "docs/tutorial.md").read_text()
GAMMA = 0.99
END = [(1.0, 2, 0.0, True)]
TWO_STATES = TabularMDP.from_P([[[(1.0, 1, -1.0, False)], END], [END, [(1.0, 2, 5.0, True)]], [END, END]], start=0)
TWO_STATES_COUNTS = np.array([[50, 50], [90, 10], [0, 0]])


def solve(alphas, initial_value=None):
    return cql_fixed_point(TWO_STATES, TWO_STATES_COUNTS, alphas, GAMMA, initial_value=initial_value)


@pytest.mark.parametrize("alpha, written", [
    (0, "0.00 and 5.00"), (1, "0.38 and 1.62"), (2, "0.485 and 0.633"), (2.25, "0.50 and 0.50"),
    (6, "0.60 and −0.36"), (1000, "0.72 and −1.46")])
def test_the_table_of_the_two_states(alpha, written):
    q = solve([alpha]).q[0, 1]
    numbers = written.replace("−", "-").split(" and ")
    for exact, number in zip(q, numbers):
        assert exact == pytest.approx(float(number), abs=0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {alpha if alpha else '0⁺'} |"))
    assert " and ".join(cell.strip() for cell in row.split("|")[2:4]) == written


def test_where_the_two_states_flip():
    """5 = (α/4) (1/0.1 − 1/0.9) at α = 2.25; s0 stops going to s1 at 1.48."""
    solved = curve.alpha_curve(TWO_STATES, TWO_STATES_COUNTS, solve, np.logspace(-2, 3, 61), GAMMA, 10)
    flips = {flip.state: flip for flip in curve.flip_points(solved, solve)}
    assert flips.keys() == {0, 1}
    assert flips[1].alpha == pytest.approx(2.25, rel=1e-4) and (flips[1].before, flips[1].after) == (1, 0)
    assert flips[0].alpha == pytest.approx(1.48, abs=0.005) and (flips[0].before, flips[0].after) == (0, 1)
    assert 5 == pytest.approx(2.25 / 4 * (1 / 0.1 - 1 / 0.9))
    assert GAMMA * solve([flips[0].alpha]).q[0, 1].max() == pytest.approx(1, abs=1e-4)  # the cost of the way
    assert "α = 2.25" in PAGE and "α = 1.48" in PAGE


def test_the_closed_form_of_the_two_states_at_alpha_one():
    """The line of the tutorial that checks Q = y + (α/2) (1 − p/β) by hand."""
    q = solve([1]).q[0, 1]
    p = np.exp(q) / np.exp(q).sum()
    assert p == pytest.approx([0.224, 0.776], abs=5e-4)
    assert q == pytest.approx([0 + 0.5 * (1 - p[0] / 0.9), 5 + 0.5 * (1 - p[1] / 0.1)], abs=1e-9)
    assert q - [0, 5] == pytest.approx([0.38, -3.38], abs=0.005) and 0.9 * q[0] + 0.1 * (q[1] - 5) == pytest.approx(0)
    assert "0.9 · 0.38 + 0.1 · (−3.38)" in PAGE


def test_the_entropy_of_the_picture_of_the_penalty():
    beta = np.array([0.1, 0.6, 0.3])
    assert f"{-(beta * np.log(beta)).sum():.3f} in the picture" in PAGE


def test_the_limit_of_the_two_states():
    q = alpha_infinity_limit(TWO_STATES, TWO_STATES_COUNTS, GAMMA)[1]
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert q == pytest.approx(0.5 + entropy + np.log([0.9, 0.1])) and q == pytest.approx([0.72, -1.48], abs=0.005)
    assert "0.72 and −1.48" in PAGE


def test_it_is_short_and_has_six_pictures():
    assert len(PAGE.split()) <= 2500
    assert len(set(re.findall(r"figures/tutorial_\w+\.png", PAGE))) == 6
