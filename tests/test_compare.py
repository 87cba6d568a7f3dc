"""Runs side by side, as a command, on tiny runs made for it."""

import json
import shutil

import pytest

import train
from cql.analysis.results import Results
from cql.commands import compare
from cql.run_folder import RunFolder

pytestmark = pytest.mark.slow
TINY = "--map random:6:1 --episodes 8 --steps 20 --bc-steps 10 --log-every 10 --hidden 4 --num-seeds 2 --device cpu"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for name, options in (("plain", "--alpha 1 6 --num-datasets 2"),
                          ("huber", "--alpha 6 20 --num-datasets 2 --td-loss huber"),
                          ("later", "--alpha 6 --data-seed 43 --num-datasets 2 --epsilon 0.6"),
                          ("far", "--alpha 6 --data-seed 70"), ("apart", "--alpha 3 --bc-steps 0 --data-seed 90")):
        assert train.main(f"{TINY} {options} --out {folder / name}".split()) == 0
    return folder


def values_of(path, metric="return"):
    return Results.of(RunFolder.open(path)).values(metric, ("cql", 6.0))


def test_settings_that_differ_and_pairs_of_the_same_members(runs, tmp_path, capsys):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert compare.main([str(runs / "plain"), str(runs / "huber"), "--out", str(tmp_path / "c.json")]) == 0
    result, printed = json.loads((tmp_path / "c.json").read_text()), capsys.readouterr().out
    assert result["settings"] == {"alpha": [[1, 6], [6, 20]], "td_loss": ["mse", "huber"]}
    assert [run["path"] for run in result["runs"]] == [str(runs / "plain"), str(runs / "huber")]
    bc, six = result["against_first"]
    assert (bc["algorithm"], six["alpha"], six["pairs"], six["same_data"]) == ("bc", 6.0, 4, True)
    assert bc["return"][0] == 0 and bc["probability_of_improvement"]["return"][0] == 0.5  # BC knows no td_loss
    assert six["return"][0] == pytest.approx((values_of(runs / "huber") - values_of(runs / "plain")).mean())
    assert "td_loss  mse    huber" in printed and "4 pairs of the same seeds a group, their data equal" in printed
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}


def test_data_seeds_of_both_are_paired_also_when_their_data_differ(runs):
    result = compare.comparison([RunFolder.open(runs / name) for name in ("plain", "later")])
    six = result["against_first"][-1]
    assert (six["alpha"], six["pairs"], six["same_data"]) == (6.0, 2, False)
    difference = values_of(runs / "later")[0] - values_of(runs / "plain")[1]  # data seed 43
    assert six["return"][0] == pytest.approx(difference.mean())
    assert "2 pairs of the same seeds a group, their data different" in compare.text(result)
    assert "run 1: exact values, means have no interval: an interval takes 6 data sets" in compare.text(result)


@pytest.mark.parametrize("other", ["far", "apart"])  # another data seed; another alpha
def test_runs_without_common_members_have_no_difference(runs, other, capsys):
    assert compare.main([str(runs / "plain"), str(runs / other)]) == 0
    assert capsys.readouterr().out.endswith(
        "run 2 and run 1 have no members in common: a difference needs the same alpha, training seed and data seed in "
        "both.\n")


def test_a_run_beside_itself_differs_in_nothing(runs, capsys):
    assert compare.main([str(runs / "plain"), str(runs / "plain")]) == 0
    assert "All settings are the same." in capsys.readouterr().out


def test_one_sentence_for_what_cannot_be_compared(runs, tmp_path, capsys):
    def refused(*arguments):
        assert compare.main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
        return captured.err

    plain = runs / "plain"
    assert "at least two" in refused(plain)
    assert "no run folder" in refused(plain, tmp_path)
    assert "--level" in refused(plain, plain, "--level", 95)
    assert "no folder that exists" in refused(plain, plain, "--out", tmp_path / "none/x.json")
    assert "read only" in refused(plain, plain, "--out", plain / "x.json")
    changed = tmp_path / "changed"
    shutil.copytree(plain, changed)
    (changed / "metrics.csv").write_text("")
    assert "manifest" in refused(plain, changed)
    (changed / "manifest.json").unlink()
    (changed / "evaluation.json").unlink()
    (changed / "metrics.csv").write_bytes((plain / "metrics.csv").read_bytes())
    assert "evaluation.json cannot be read" in refused(plain, changed)
    (changed / "evaluation.json").write_text('{"members": []}')
    assert "not what this version writes" in refused(plain, changed)
