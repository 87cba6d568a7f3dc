"""Whether members have converged: logs by hand, and runs held against the exact solution."""

import math

import numpy as np
import pytest

import train
from cql.analysis import convergence, evaluation, report, selection, statistics
from cql.analysis.report.data import ReportData
from cql.analysis.results import Results
from cql.analysis.statistics import summary
from cql.run_folder import RunFolder

pytestmark = pytest.mark.slow


def cql_log(data_mean, start, every=25):
    steps = [every * (n + 1) for n in range(len(data_mean))]
    return {"q/data_mean": (steps, data_mean), "q/start": (steps, start)}


@pytest.mark.parametrize("data_mean, start, moved", [
    ([5.0, 9.0, 10.0, 10.0], [1.0, 1.0, 4.0, 4.0], 0.0), ([5.0, 9.0, 10.0, 10.4], [0.0] * 4, 0.4 / 10.4),
    ([5.0, 9.0, 10.0, 10.0], [1.0, 1.0, 4.0, 6.0], 0.2),  # the value at the start comes last
    ([-5.0, -9.0, -8.0, -10.0], [0.0] * 4, 0.2), ([0.0] * 4, [0.0] * 4, 0.0)])
def test_movement_since_three_quarters_by_hand(data_mean, start, moved):
    found = convergence.judged(cql_log(data_mean, start), None, "full")
    assert found == {"measure": "moved", "value": pytest.approx(moved), "converged": moved < 0.01}


def test_the_entry_at_three_quarters_is_the_last_before_it():
    """Of 4 entries the third; of 2 the first; of 1 none, so that nothing can be said."""
    assert convergence.judged(cql_log([1.0, 2.0], [0.0, 0.0]), None, "full")["value"] == 0.5
    assert convergence.judged(cql_log([1.0, 2.0, 3.0], [0.0] * 3), None, "full")["value"] == pytest.approx(1 / 3)
    noisy = convergence.judged(cql_log([5.0, 9.0, 10.0, 10.4], [0.0] * 4), None, 64)
    assert noisy["converged"] and noisy["value"] == pytest.approx(0.4 / 10.4)  # the noise of minibatches
    assert convergence.judged(cql_log([2.0], [1.0]), None, "full") is None
    assert convergence.judged(cql_log([2.0, math.nan], [1.0, 1.0]), None, "full") is None


def test_bc_is_judged_by_the_floor_of_its_loss():
    log = {"losses/cross_entropy": ([50, 100], [1.2, 0.93])}
    near = convergence.judged(log, 0.9, "full")
    assert near == {"measure": "excess", "value": pytest.approx(0.03), "converged": True}
    assert not convergence.judged(log, 0.8, "full")["converged"]
    assert convergence.judged(log, None, "full") is None  # a floor that is not known
    assert convergence.judged({"losses/cross_entropy": ([100], [0.93])}, 0.8, "full") is None  # a mean over all updates


def test_the_words_beside_a_member():
    assert convergence.words(None) == convergence.words({"measure": "moved", "value": 0.01, "converged": True}) == ""
    assert convergence.words({"measure": "moved", "value": 0.317, "converged": False}) == (
        "not converged (values moved 31.7% in the last quarter)")
    assert convergence.words({"measure": "excess", "value": 0.317, "converged": False}) == (
        "not converged (cross-entropy 0.32 above its floor)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of 150 and of 2,500 updates on a small map."""
    folder, found = tmp_path_factory.mktemp("convergence"), {}
    (folder / "map.txt").write_text("S...\n.H..\n...G\n")
    for steps in (150, 2500):
        path = folder / str(steps)
        assert train.main(f"--map {folder}/map.txt --episodes 60 --alpha 5 20 --hidden 64 --target-interval 50 "
                          f"--steps {steps} --bc-steps {steps // 10 + 20} --log-every {steps // 50} --device cpu "
                          f"--out {path}".split()) == 0
        found[steps] = RunFolder.open(path)
    return found


def test_a_run_stopped_early_is_told_from_one_that_went_on(runs):
    """The judgement from the log agrees with the distance from the exact solution, which it does not know."""
    for steps, run in runs.items():
        results = Results.of(run)
        data = ReportData.of(run, summary(results), None)
        table = evaluation.table(run.read_json("evaluation.json"))
        for alpha in (5.0, 20.0):
            converged, exact = results.converged(("cql", alpha)), data.exact[42]
            near = data.distances[alpha] < 0.01 * np.ptp(exact.q[exact.at(alpha)][exact.counts > 0])
            assert converged.tolist() == near.tolist() == [[steps == 2500]]
        assert data.causes["converging"] == (2 if steps == 150 else 0) and data.causes["ood"] == 0
        assert table.count("not converged (values moved") == data.causes["converging"]
        assert ("not converged (cross-entropy" in table) == (steps == 150)


def test_the_causes_are_counted_apart(runs):
    data = ReportData.of(runs[150], summary(Results.of(runs[150])), None)
    group, far = data.results, {"diverged": 0, "converging": 0, "unjudged": 0, "ood": 0, "other": 0}
    for row in group.rows:
        row["converged"], row["ood_mass"] = True, {5.0: 0.5, 20.0: 1e-5}.get(row["alpha"])
    assert data.causes == far | {"ood": 1, "other": 1}
    for row in group.rows:
        row["converged"], row["diverged"] = None, {5.0: None, 20.0: "runaway"}.get(row["alpha"])
    del data.__dict__["causes"]
    assert data.causes == far | {"unjudged": 1, "diverged": 1}


def test_a_runaway_member_is_diverged_and_nothing_else(runs):
    run = runs[150]
    lines = (run.path / "metrics.csv").read_text()
    last = "150,cql-a5-s42-d42,health/diverged,"
    assert f"{last}0.0" in lines
    (run.path / "metrics.csv").write_text(lines.replace(f"{last}0.0", f"{last}1.0"))
    try:
        entry = evaluation.evaluate(run, 1)["members"]
    finally:
        (run.path / "metrics.csv").write_text(lines)
    first = next(e for e in entry if e["alpha"] == 5.0)
    assert first["diverged"]["reason"] == "runaway" and first["convergence"] is None


def test_the_page_and_the_summary_say_who_has_not_converged(runs):
    for steps, run in runs.items():
        found = summary(Results.of(run))
        page = report.render(ReportData.of(run, found, selection.referee(run, 5)), {})
        assert ("3 of 3 members have not converged" in page) == (steps == 150)
        assert statistics.table(found).count("1 not converged") == (3 if steps == 150 else 0)
        assert ("2 <strong>not converged</strong>" in page) == (steps == 150)
        assert ("Every CQL member ends near the exact solution" in page) == (steps == 2500)
        assert "OOD actions part the two" not in page  # not the cause in either
