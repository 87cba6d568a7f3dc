"""Snapshots: what is kept is what the network said, and what the report shows of them."""

import json
import re

import numpy as np
import pytest

import cql
import evaluate
import train
from cql import snapshots
from cql.analysis.report import snapshots as shown
from cql.analysis.report.data import ReportData
from cql.config import Config
from cql.errors import RunError
from cql.members import members
from cql.run_folder import RunFolder
from cql.world import World, exact_solution
from tests import browser

pytestmark = pytest.mark.slow
TINY = ["--map", "random:6:1", "--episodes", "30", "--hidden", "0", "--lr", "0.1", "--bc-steps", "20", "--steps", "400",
        "--log-every", "50", "--target-interval", "20", "--device", "cpu", "--snapshots"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots") / "run"
    assert train.main([*TINY, "--alpha", "1", "6", "--out", str(folder)]) == 0
    assert evaluate.main([str(folder), "--report"]) == 0
    return RunFolder.open(folder)


def test_the_last_one_is_the_policy_and_the_others_are_those_of_fit(run):
    config = run.config()
    for member in members(config, "cql") + members(config, "bc"):
        updates, q = snapshots.load(run, config, member)
        assert updates.tolist() == (list(range(50, 401, 50)) if member.algorithm == "cql" else [20])
        np.testing.assert_allclose(q[-1], cql.Policy.load(run.policy_path(member.name)).outputs(np.arange(36)),
                                   rtol=1e-5, atol=1e-6)
    dataset = run.datasets(config)[0]
    fit = cql.fit(dataset, alpha=[1, 6], steps=400, hidden=0, lr=0.1, log_every=50, target_interval=20,
                  snapshots=True)
    for m, member in enumerate(members(config, "cql")):
        np.testing.assert_array_equal(snapshots.load(run, config, member)[1], fit.snapshots[:, m])


def test_an_interrupted_run_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    """It fails at its entry at 150, goes on from its checkpoint at 100, and writes that entry again."""
    flags = [*TINY, "--alpha", "1", "6", "--checkpoint-every", "100", "--out", str(tmp_path / "run")]
    original = snapshots.atomic_write

    def stopped(path, contents):
        original(path, contents)
        if path.name.startswith("0000000150"):
            raise OSError("the disk is full")

    monkeypatch.setattr(snapshots, "atomic_write", stopped)
    assert train.main(flags) == 2
    monkeypatch.setattr(snapshots, "atomic_write", original)
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    files = {path.name: path.read_bytes() for path in (run.path / "snapshots").iterdir()}
    assert len(files) == 9 and files == {path.name: path.read_bytes()
                                         for path in (tmp_path / "run/snapshots").iterdir()}


def test_they_are_off_above_a_number_of_members(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_MEMBERS", 2)
    assert train.main([*TINY, "--alpha", "1", "6", "--out", str(tmp_path / "run")]) == 0
    assert "note: --snapshots is off: 3 members are more than 2.\n" in capsys.readouterr().err
    assert not (tmp_path / "run/snapshots").exists()
    assert not Config().snapshots


def test_a_damaged_one_is_named(run, tmp_path):
    (tmp_path / "snapshots").mkdir()
    config = run.config()
    member = members(config, "cql")[0]
    (tmp_path / "snapshots" / f"0000000050-{member.name}.npy").write_bytes(b"no array")
    with pytest.raises(RunError, match="the snapshots of .* cannot be read"):
        snapshots.load(RunFolder(tmp_path), config, member)


def test_the_distance_is_that_from_the_exact_solution(run):
    """Computed anew from the run's files, in the last entry of the member at α = 6."""
    config = run.config()
    found = ReportData.of(run, {"level": 0.95, "groups": []}, None).way
    assert found.member.alpha == 6
    dataset = run.datasets(config)[0]
    world = World.of(dataset)
    mdp, counts = world.empirical(dataset)
    exact = exact_solution(config.objective, mdp, counts, [6.0]).q[0]
    logged = (counts > 0) & ~mdp.terminal[:, None]
    q = snapshots.load(run, config, found.member)[1][-1]
    error = np.abs(q - np.where(logged, exact, 0))
    assert found.mean[-1] == pytest.approx((error * counts)[logged].sum() / counts[logged].sum(), rel=1e-9)
    for state in np.flatnonzero(logged.any(-1)):
        assert found.distance[-1, state] == pytest.approx(error[state][logged[state]].max(), rel=1e-9)
    assert np.isnan(found.distance[:, ~logged.any(-1)]).all() and found.mean[-1] < found.mean[0]


@pytest.mark.parametrize("returns, passed", [
    ([0, 20, 10], 1), ([0, 10, 20], None), ([0, 20, 19.5], None), ([5, 5, 5], None), ([0, np.nan, 1], None)])
def test_a_better_return_on_the_way_is_named(returns, passed):
    """By more than 5 % of their range: 20 against 10 is, 20 against 19.5 is not."""
    found = shown.Way(None, np.arange(3), np.zeros((3, 1, 1)), np.ones((1, 1)), None, None, np.array(returns))
    assert found.passed == passed


@browser.needed
def test_the_slider_over_updates(run, tmp_path):
    """The page shows the last entry first, its Q in the numbers of the start, and moves with the slider."""
    page = (run.path / "report.html").read_text()
    numbers = json.loads(re.search(r'id="maps-data">(.*?)</script>', page, re.DOTALL)[1])["snapshots"]
    assert numbers["updates"] == list(range(50, 401, 50)) and len(numbers["q"][0]) == 36 * 4
    dumped = browser.dumped((run.path / "report.html").as_uri())
    assert "cql-a6-s42-d42 after 400 updates: exact return" in dumped
    moved = page.replace("</body>", "<script>const u = document.getElementById('update'); u.value = 0; "
                         "u.dispatchEvent(new Event('input'));</script></body>")
    (tmp_path / "moved.html").write_text(moved)
    assert "cql-a6-s42-d42 after 50 updates: exact return" in browser.dumped(
        (tmp_path / "moved.html").as_uri())
