"""results.csv and its numbers as arrays, from one small run."""

import csv
import json
import shutil

import numpy as np
import pytest

import evaluate
import train
from cql.analysis.results import COLUMNS, Results, member_rows
from cql.commands import compare
from cql.errors import RunError
from cql.exact import TabularMDP, evaluate_policies, expected_visits
from cql.run_folder import RunFolder
from tests.mdps import random_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "run"
    assert train.main("--map random:6:1 --alpha 1 20 --num-seeds 2 --num-datasets 3 --episodes 20 --steps 60 "
                      f"--bc-steps 40 --log-every 20 --hidden 8 --out {path}".split()) == 0
    return RunFolder.open(path)


def test_one_line_per_member_with_the_numbers_of_the_evaluation(run):
    with open(run.path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    entries = run.read_json("evaluation.json")["members"]
    assert len(rows) == len(entries) == 3 * 2 * 3 and list(rows[0]) == list(COLUMNS)
    for row, entry in zip(rows, entries):
        assert row["algorithm"] == entry["algorithm"] and int(row["data_seed"]) == entry["data_seed"]
        assert float(row["return"]) == entry["exact"]["return"]
        if entry["algorithm"] == "bc":
            assert row["alpha"] == row["final_alpha"] == row["value_estimate"] == row["value_error"] == row["td"] == ""
        else:
            assert float(row["value_error"]) == entry["value_estimate"] - entry["exact"]["discounted_value"]
            assert float(row["penalty"]) > 0 and row["final_alpha"] == row["alpha"] and row["penalty_threshold"] == ""


def test_arrays_are_data_sets_by_seeds(run):
    results = Results.of(run)
    assert results.groups == [("bc", None), ("cql", 1.0), ("cql", 20.0)] and results.alphas == [1.0, 20.0]
    returns = results.values("return", ("cql", 20.0))
    assert returns.shape == (3, 2)
    wanted = {(e["data_seed"], e["seed"]): e["exact"]["return"] for e in run.read_json("evaluation.json")["members"]
              if e["alpha"] == 20.0}
    assert returns[2, 1] == wanted[44, 43] and returns[0, 1] == wanted[42, 43]
    assert np.isnan(results.values("value_estimate", ("bc", None))).all()
    assert not results.diverged(("cql", 1.0)).any()


def test_evaluating_again_writes_the_same_file(run):
    before = (run.path / "results.csv").read_bytes()
    assert evaluate.main([str(run.path)]) == 0
    assert (run.path / "results.csv").read_bytes() == before


def test_a_run_without_a_model_has_empty_columns(tmp_path):
    states = np.arange(6) % 3
    np.savez(tmp_path / "data.npz", observations=states, actions=np.arange(6) % 2, rewards=np.ones(6),
             next_observations=states, terminations=states == 2)
    out = tmp_path / "run"
    assert train.main(f"--dataset {tmp_path}/data.npz --steps 4 --bc-steps 0 --out {out}".split()) == 0
    with open(out / "results.csv", newline="") as file:
        row, = csv.DictReader(file)
    assert row["return"] == row["rollout_return"] == row["value_error"] == ""
    assert np.isfinite(float(row["value_estimate"]))


def test_expected_visits_count_the_steps_of_an_episode():
    mdp = TabularMDP.from_P(random_table(np.random.default_rng(5)))
    policies = np.random.default_rng(6).dirichlet(np.ones(mdp.num_actions), (2, mdp.num_states))
    visits = expected_visits(mdp, policies, start=0, horizon=7)
    length = evaluate_policies(mdp, policies, start=0, horizon=7).length
    assert np.allclose(visits.sum(-1), length)
    first = np.eye(mdp.num_states)[0] * ~mdp.terminal[0]
    assert np.allclose(expected_visits(mdp, policies[0], start=0, horizon=1), first)


def test_without_slips_the_exact_unsupported_rate_is_that_of_every_rollout(tmp_path):
    out = tmp_path / "run"
    assert train.main("--slip 0 --alpha 0 6 --num-seeds 3 --episodes 5 --steps 40 --bc-steps 40 --hidden 8 "
                      f"--out {out}".split()) == 0
    rates = [(e["exact_unsupported_action_rate"], e["rollout"]["unsupported_action_rate"])
             for e in RunFolder.open(out).read_json("evaluation.json")["members"]]
    assert max(rate for rate, _ in rates) > 0
    assert all(exact == pytest.approx(rollout, abs=1e-12) for exact, rollout in rates)


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    return RunFolder.open(tmp_path / "copy")


@pytest.mark.parametrize("edit, words", [
    (lambda e: e.pop("final_alpha"), "KeyError"), (lambda e: e.update(exact=[1]), "AttributeError")])
def test_an_evaluation_of_another_kind_is_refused_in_one_sentence(copy, edit, words):
    evaluation = copy.read_json("evaluation.json")
    edit(evaluation["members"][0])
    (copy.path / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(RunError, match="evaluate the run again") as error:
        member_rows(copy)
    assert words in str(error.value)


def test_infinity_is_no_number_in_json(copy):
    (copy.path / "evaluation.json").write_text('{"members": [Infinity]}')
    with pytest.raises(RunError, match="Infinity is no number"):
        member_rows(copy)


def test_an_interrupted_evaluation_leaves_a_run_that_can_be_evaluated_again(copy, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        def interrupted(run):
            raise KeyboardInterrupt
        patch.setattr("evaluate.plots.draw_all", interrupted)
        assert evaluate.main([str(copy.path), "--episodes", "3"]) == 130
    assert "evaluate the run again" in capsys.readouterr().err
    assert copy.verify()  # the manifest is that of before
    assert compare.main([str(copy.path), str(copy.path)]) == 2  # who reads results refuses them
    assert evaluate.main([str(copy.path), "--episodes", "3"]) == 0 and not copy.verify()


def test_a_log_without_its_end_is_refused(copy, capsys):
    (copy.path / "manifest.json").unlink()
    lines = (copy.path / "metrics.csv").read_text().splitlines(keepends=True)
    (copy.path / "metrics.csv").write_text("".join(lines[:-20]))
    for flags in ([], ["--audit"], ["--report"]):
        assert evaluate.main([str(copy.path), *flags]) == 2
        assert "training is not finished" in capsys.readouterr().err
