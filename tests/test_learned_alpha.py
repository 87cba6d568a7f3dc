"""Alpha learned by dual ascent: where it ends, beside the exact solution; which way it goes; who depends on whom."""

import csv

import numpy as np
import pytest
import torch

import train
from cql.analysis import audit
from cql.analysis.report.alpha_maps import mean_penalty
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import cql_fixed_point
from cql.metrics import read_metrics
from cql.run_folder import RunFolder
from cql.world import World
from tests.test_training import LEARNED, parameters, run_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A map of nine cells and its data, as settings; the penalty of its exact solution at alpha = 6."""
    path = tmp_path_factory.mktemp("learned") / "map.txt"
    path.write_text("S..\n.H.\n..G")
    settings = dict(map=str(path), episodes=60)
    dataset = datasets_for(Config(**settings), {})[0]
    model, counts = World.of(dataset).empirical(dataset)
    q = cql_fixed_point(model, counts, [6.0], 0.99).q
    return settings, float(mean_penalty(q, counts, counts.any(-1))[0])


@pytest.fixture(scope="module")
def learned(small, tmp_path_factory):
    """A table on the full batch from three starts."""
    (settings, penalty), out = small, tmp_path_factory.mktemp("learned") / "run"
    assert train.main(["--map", settings["map"], "--episodes", "60", "--hidden", "0", "--lr", "0.15",
                       "--target-interval", "25", "--steps", "3000", "--bc-steps", "10", "--log-every", "500",
                       "--device", "cpu", "--alpha", "0.5", "6", "50", "--penalty-threshold", repr(penalty), "--out",
                       str(out)]) == 0
    return RunFolder.open(out)


def test_it_ends_at_the_alpha_whose_exact_solution_has_this_penalty(learned, small):
    entries = [entry for entry in audit.audit(learned)["members"] if entry["algorithm"] == "cql"]
    series = read_metrics(learned.path / "metrics.csv")
    assert [entry["alpha"] for entry in entries] == [0.5, 6.0, 50.0]
    for entry in entries:
        assert entry["final_alpha"] == pytest.approx(6, rel=1e-3) and entry["oracle"]["certified"]
        assert entry["distance"]["max_share"] < 1e-3  # of the oracle's range: Q is the oracle at the learned alpha
        name = f"cql-a{entry['alpha']:g}-s42-d42"
        assert series[name, "losses/penalty"][1][-1] == pytest.approx(small[1], abs=1e-4)
        assert not np.any(series[name, "health/diverged"][1])


def test_the_learned_alpha_is_what_results_hold(learned):
    with open(learned.path / "results.csv", newline="") as file:
        bc, *rows = csv.DictReader(file)
    assert bc["final_alpha"] == "" and [row["alpha"] for row in rows] == ["0.5", "6.0", "50.0"]
    logged = read_metrics(learned.path / "metrics.csv")
    assert [float(row["final_alpha"]) for row in rows] == [
        logged[f"cql-a{a}-s42-d42", "optimiser/alpha"][1][-1] for a in ("0.5", "6", "50")]
    assert [entry["final_alpha"] for entry in learned.read_json("evaluation.json")["members"][1:]] == [
        float(row["final_alpha"]) for row in rows]


def test_a_slack_threshold_lets_alpha_fall_and_a_tight_one_makes_it_rise(tmp_path):
    """Constant Q, where networks start, has a penalty of log 4 = 1.386."""
    for threshold, falls in ((1.5, True), (1.2, False)):
        run = run_of(tmp_path / str(threshold), penalty_threshold=threshold, steps=5, bc_steps=0, log_every=1,
                     alpha=(0.5, 50.0))
        series = read_metrics(run.path / "metrics.csv")
        for start in (0.5, 50.0):
            path = [start, *series[f"cql-a{start:g}-s42-d42", "optimiser/alpha"][1]]
            assert path == sorted(path, reverse=falls) and len(set(path)) == 6


def test_logged_losses_are_at_the_alpha_of_each_update(tmp_path):
    run = run_of(tmp_path / "r", **LEARNED, steps=40, bc_steps=0, log_every=1)
    metrics = read_metrics(run.path / "metrics.csv")
    td, penalty, total, alpha = (np.array(metrics["cql-a6-s42-d42", name][1]) for name in (
        "losses/td", "losses/penalty", "losses/total", "optimiser/alpha"))
    before = np.array([6.0, *alpha[:-1]])
    np.testing.assert_allclose(total, td + before * penalty, rtol=1e-5)
    rate = 0.05 * (1 + np.cos(np.pi * np.arange(40) / 40)) / 2
    np.testing.assert_allclose(alpha, before * np.exp(rate * np.clip(penalty - 1.2, -1, 1)), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [16, "full"])
def test_a_member_learns_its_alpha_alone(tmp_path, batch_size):
    among = run_of(tmp_path / "among", alpha=(0.1, 6.0, 50.0), num_seeds=2, num_datasets=2, batch_size=batch_size,
                   **LEARNED)
    alone = run_of(tmp_path / "alone", alpha=(6.0,), seed=43, data_seed=43, batch_size=batch_size, **LEARNED)
    name = "cql-a6-s43-d43"
    first, second = (read_metrics(run.path / "metrics.csv")[name, "optimiser/alpha"][1] for run in (among, alone))
    assert first == pytest.approx(second, rel=1e-4) and first[-1] != pytest.approx(6, rel=1e-3)
    for a, b in zip(parameters(among, name), parameters(alone, name)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_runaway_bound_follows_alpha(tmp_path, monkeypatch):
    """At alpha = 6 the largest value is 1.05 (6 / 2 - 1) / 0.01 + 1 = 211, at the alpha of later less or more."""
    seen = []
    from cql.diagnostics import Diagnostics
    monkeypatch.setattr(Diagnostics, "read", lambda self, *arguments, original=Diagnostics.read: (
        seen.append(arguments[-1].tolist()), original(self, *arguments))[1])
    run = run_of(tmp_path / "r", penalty_threshold=1.2, bc_steps=0)
    alphas = read_metrics(run.path / "metrics.csv")["cql-a6-s42-d42", "optimiser/alpha"][1]
    step = run.datasets(run.config())[0].rewards.max(where=~run.datasets(run.config())[0].terminations, initial=-np.inf)
    assert [high for (low, high), in seen] == pytest.approx([1.05 * (alpha / 2 + step) / 0.01 + 1 for alpha in alphas],
                                                            rel=1e-5)
    assert len(set(alphas)) == len(alphas)
