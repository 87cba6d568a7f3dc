"""The exact curve over alpha: a flip known in closed form, flips seen from both sides, both limits, the command."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest

import train
from cql.analysis import exact_curve
from cql.analysis.figures import curve as phase_plot
from cql.analysis.figures.style import png
from cql.collect import environment_spec, generate_offline_episodes, make_environment
from cql.commands import phase as phase_command
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.exact import (
    TabularMDP,
    alpha_infinity_limit,
    alpha_zero_limit,
    cql_fixed_point,
    curve,
    greedy_policy,
    settled_actions,
    settled_policy,
    state_value,
)
from cql.losses import Objective
from cql.world import World, exact_curve_solution

pytestmark = pytest.mark.slow
GAMMA = 0.9


def two_ways(share):
    """State 0: action 0 earns 2 and ends, action 1 leads to state 1 for -1, from where 10 is earned for certain.

    The second is logged with `share`. State 1 has one logged action, so its value is 10 at every alpha: fixed targets.
    """
    table = {0: {0: [(1.0, 2, 2.0, True)], 1: [(1.0, 1, -1.0, False)]},
             1: {0: [(1.0, 2, 10.0, True)], 1: [(1.0, 2, 0.0, True)]}, 2: {a: [(1.0, 2, 0.0, True)] for a in (0, 1)}}
    return TabularMDP.from_P(table, start=0), np.array([[1 - share, share], [1.0, 0.0], [0.0, 0.0]])


@pytest.fixture(scope="module")
def islands():
    environment = make_environment(environment_spec(Config()))
    world = World.around(environment)
    mdp, (empirical, counts) = world.mdp, world.empirical(generate_offline_episodes(environment, 40))
    return mdp, empirical, counts


@pytest.mark.parametrize("td_loss, factor", [("mse", 2), ("half_mse", 1)])
def test_a_flip_known_in_closed_form(td_loss, factor):
    """Action 1 leads by (-1 + 0.9 * 10) - 2 = 6; greedy while 6 > (alpha_half / 2) (1 / share - 1 / (1 - share))."""
    mdp, counts = two_ways(0.1)
    solve = partial(cql_fixed_point, mdp, counts, gamma=GAMMA, td_loss=td_loss)
    found = curve.alpha_curve(mdp, counts, solve, curve.default_alphas(11), GAMMA, 5)
    flips = curve.flip_points(found, solve)
    assert [(flip.state, flip.before, flip.after) for flip in flips] == [(0, 1, 0)]
    expected = factor * 2 * 6 / (1 / 0.1 - 1 / 0.9)
    assert flips[0].alpha == pytest.approx(expected, rel=curve.FLIP_TOLERANCE)
    coarse = curve.flip_points(found, solve, math.inf)  # the middle of two points
    assert len(coarse) == 1 and coarse[0].alpha == pytest.approx(expected, rel=1)
    for row in found.rows():  # -1 + 10 in two steps, or 2 in one
        early = row["alpha"] < expected
        assert row["return"] == pytest.approx(9 if early else 2)
        assert row["discounted_value"] == pytest.approx(8 if early else 2)
        assert row["action_mismatch_rate"] == pytest.approx((0.9 if early else 0.1) / 2)


def test_every_flip_is_seen_from_both_sides(islands):
    mdp, empirical, counts = islands
    solve = partial(cql_fixed_point, empirical, counts, gamma=0.99)
    found = curve.alpha_curve(mdp, counts, solve, np.logspace(-1, 2, 5), 0.99, 80)
    flips = curve.flip_points(found, solve)
    alphas = np.array([flip.alpha for flip in flips])
    assert len(flips) > 20 and (np.diff(alphas) >= 0).all()
    below, above = (settled_actions(solve(alphas * (1 + side * curve.FLIP_TOLERANCE)).q) for side in (-1, 1))
    for n, flip in enumerate(flips):
        assert (below[n, flip.state], above[n, flip.state]) == (flip.before, flip.after)
    ends = settled_actions(found.q)[[0, -1]]
    for s in {flip.state for flip in flips}:  # a state's flips form a chain from the first point to the last
        chain = [(flip.before, flip.after) for flip in flips if flip.state == s]
        assert chain[0][0] == ends[0, s] and chain[-1][1] == ends[1, s]
        assert all(a[1] == b[0] for a, b in zip(chain, chain[1:]))
    assert set(np.flatnonzero(ends[0] != ends[1])) <= {flip.state for flip in flips}


def test_the_ends_of_the_curve_are_the_limits(islands):
    mdp, empirical, counts = islands
    solve = partial(cql_fixed_point, empirical, counts, gamma=0.99)
    found = curve.alpha_curve(mdp, counts, solve, [1e-6, 1e6], 0.99, 80)
    references = curve.references(mdp, empirical, counts, solve, 0.99, 80)
    for n, (name, limit) in enumerate((("alpha_zero", alpha_zero_limit), ("alpha_infinity", alpha_infinity_limit))):
        q, logged = limit(empirical, counts, 0.99), counts > 0
        np.testing.assert_allclose(found.q[n][logged], q[logged], atol=1e-3)
        assert references[name]["value_estimate"] == pytest.approx(state_value(q)[mdp.start])
        assert references[name]["value_estimate"] == pytest.approx(found.value_estimate[n], abs=1e-3)
        # the policy too, ties included
        assert references[name]["return"] == pytest.approx(found.metrics["return"][n], rel=1e-9)
    assert references["behavior"] is None and references["optimal"]["return"] >= max(found.metrics["return"])


def test_cloning_by_counts():
    policy = curve.cloned_policy([[1, 3, 0], [2, 0, 2], [0, 0, 0]])
    np.testing.assert_allclose(policy, [[0, 1, 0], [1, 0, 0], [1 / 3] * 3])


def test_mismatch_is_that_of_the_data():
    mdp, counts = two_ways(0.25)
    policies = np.stack([greedy_policy(np.eye(3, 2)), np.full((3, 2), 0.5)])
    rates = curve.policy_metrics(mdp, 4 * counts, policies, GAMMA, 5)["action_mismatch_rate"]
    np.testing.assert_allclose(rates, [(1 + 4) / 8, 0.5])  # state 0: 1 of 4; state 1: all 4


def test_ties_up_to_rounding_go_to_the_lowest_index():
    q = np.array([[1.0, 1.0 + 1e-12], [1.0, 1.001], [-np.inf, -5.0], [-np.inf, -np.inf]])
    assert settled_actions(q).tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(settled_policy(q), [[1, 0], [0, 1], [0, 1], [0.5, 0.5]])


@pytest.mark.parametrize("alphas, td_loss, sentence", [
    ([0.0, 1.0], "mse", "alpha > 0"), ([1.0], "huber", "squared error")])
def test_no_curve_where_there_is_none(alphas, td_loss, sentence):
    mdp, counts = two_ways(0.1)
    solve = partial(exact_curve_solution, Objective(td_loss=td_loss, gamma=GAMMA), mdp, counts)
    with pytest.raises(ValueError, match=sentence):
        curve.alpha_curve(mdp, counts, solve, alphas, GAMMA, 5)


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase")
    (folder / "map.txt").write_text("S.H.\n....\n...G\n")
    assert train.main(f"--map {folder}/map.txt --episodes 20 --hidden 8 --steps 20 --bc-steps 5 --log-every 20 "
                      f"--device cpu --alpha 0 5 --out {folder}/run".split()) == 0
    return folder


def test_the_command_writes_prints_and_draws(run, capsys):
    capsys.readouterr()
    assert phase_command.main(f"--map {run}/map.txt --episodes 20 --points 7 --out {run}/phase".split()) == 0
    printed = capsys.readouterr().out
    for words in ("V estimate", "BC by counts", "behaviour", "alpha -> 0+", "Highest return", f"folder: {run}/phase"):
        assert words in printed
    found = json.loads((run / "phase/phase.json").read_text())
    assert [row["alpha"] for row in found["curve"]] == pytest.approx(np.logspace(-2, 3, 7))
    assert found["flip_states"] == len({flip["state"] for flip in found["flips"]}) and found["trained"] == []
    assert set(found["curve"][0]) == {"alpha", "value_estimate", *curve.METRICS}
    assert (run / "phase/phase.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_is_laid_over_its_own_curve(run):
    assert phase_command.main(f"--run {run}/run --alpha 1 5 50 --out {run}/over".split()) == 0
    found = json.loads((run / "over/phase.json").read_text())
    assert [entry["algorithm"] for entry in found["trained"]] == ["bc", "cql", "cql"]
    evaluation = json.loads((run / "run/evaluation.json").read_text())
    optimal, behavior = (evaluation["references"][name]["exact"]["return"] for name in ("optimal", "behavior"))
    assert found["references"]["optimal"]["return"] == pytest.approx(optimal)
    assert found["references"]["behavior"]["return"] == pytest.approx(behavior)


def test_without_out_a_fresh_folder_is_made(run, monkeypatch):
    monkeypatch.chdir(run)
    for _ in range(2):
        assert phase_command.main(["--map", "map.txt", "--episodes", "5", "--alpha", "1"]) == 0
    assert [path.name.startswith("phase-") for path in (run / "runs").iterdir()] == [True, True]


def test_equal_results_give_equal_pictures(run):
    result = json.loads((run / "run/evaluation.json").read_text())  # any entries: two of them are enough
    mdp, counts = two_ways(0.1)
    solve = partial(cql_fixed_point, mdp, counts, gamma=GAMMA)
    found = curve.alpha_curve(mdp, counts, solve, [1.0, 10.0], GAMMA, 5)
    page = {"curve": found.rows(), "references": curve.references(mdp, mdp, counts, solve, GAMMA, 5), "flips": [],
            "flip_tolerance": None, "horizon": 5, "gamma": GAMMA, "td_loss": "mse", "transitions": 10, "bc": "BC",
            "states_with_data": 2, "flip_states": 0,
            "trained": [entry for entry in result["members"] if entry["alpha"] == 0]}
    first, second = (png(phase_plot.phase_figure(page)) for _ in range(2))
    assert first == second and "–" in exact_curve.table(page) and "No greedy action changes" in exact_curve.table(page)
    assert page["curve"][0]["hazard_probability"] is None and math.isfinite(page["curve"][0]["return"])


def plain_dataset(folder):
    OfflineDataset.from_arrays([0, 1], [0, 1], [0.0, 1.0], [1, 0], [False, True]).save(folder / "plain.npz")
    return str(folder / "plain.npz")


@pytest.mark.parametrize("argv, sentence", [
    ("--points 1", "--points must be at least 2"), ("--points 5 --alpha 1", "give one of them"),
    ("--alpha 0", "alpha > 0"), ("--alpha -1", "--alpha must lie in [0, 1e+18]"),
    ("--gamma 1", "gamma below 1"), ("--num-datasets 2", "one data set"), ("--out .", "exists already"),
    ("--run nothing", "no run folder"), ("--run run --map blocks", "leave out --map"),
    ("--run run --data-seed 7", "no data set with seed 7"), ("--dataset plain.npz", "name no environment"),
    ("--dataset plain.npz --map map.txt", "environment"), ("--dataset plain.npz --env CartPole-v1", "does not fit"),
    ("--map nowhere", "--map nowhere")])
def test_bad_input_gets_one_sentence_and_writes_nothing(run, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(run)
    plain_dataset(run)
    before = sorted(run.iterdir())
    few = "" if "--dataset" in argv or "--run" in argv else " --episodes 5"
    assert phase_command.main((argv + few).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("members", ["[1]", "[null]", "3"])
def test_an_evaluation_of_another_form_is_refused(run, tmp_path, capsys, members):
    shutil.copytree(run / "run", tmp_path / "copy")
    (tmp_path / "copy/manifest.json").unlink()
    (tmp_path / "copy/evaluation.json").write_text(f'{{"members": {members}}}')
    assert phase_command.main(["--run", str(tmp_path / "copy"), "--out", str(tmp_path / "phase")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "is not what this version writes" in error
    assert not (tmp_path / "phase").exists()
