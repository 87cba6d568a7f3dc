"""Kills, damage, full disks and rivals; ``--times N`` makes tests of kills and damage longer, ``-s`` shows counts."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import evaluate
import train
from cql.collect import make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import RewardRange, value_bounds
from cql.errors import ConfigError, DatasetError
from cql.exact import cql_fixed_point, empirical_mdp
from cql.losses import Objective
from cql.metrics import read_metrics
from tests.faults import Child, damaged, outcome
from tests.test_dataset import arrays, collected
from tests.test_training import after_each_yield

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
TINY = ["--episodes", "20", "--hidden", "8", "--bc-steps", "20", "--steps", "400", "--log-every", "10", "--device",
        "cpu"]


SMALL = ["--episodes", "60", "--hidden", "16", "--bc-steps", "300", "--steps", "600", "--alpha", "1", "6",
         "--num-seeds", "2", "--slice-size", "2", "--log-every", "50", "--checkpoint-every", "70", "--batch-size",
         "32", "--target-interval", "20", "--device", "cpu"]
SWEEP = ["--alpha", "0", "0.01", "0.1", "0.3", "1", "3", "6", "10", "20", "50", "200", "--num-seeds", "2",
         "--num-datasets", "16", "--batch-size", "full", "--steps", "300", "--bc-steps", "100", "--log-every", "100",
         "--checkpoint-every", "100", "--device", "cpu"]


@pytest.mark.parametrize("name, settings", [("small", SMALL), ("sweep", SWEEP)], ids=["small", "sweep"])
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(name, settings, times, tmp_path):
    if name == "sweep" and not times:
        pytest.skip("352 members take minutes: --times 3 kills their run three times")
    started = time.perf_counter()
    assert Child(train.main, [*settings, "--out", str(tmp_path / "whole")], tmp_path).wait()[0] == 0
    length, whole, run = time.perf_counter() - started, outcome(tmp_path / "whole"), tmp_path / "run"
    moments, kills, runs, times = random.Random(0), 0, 0, times or 3
    while kills < times:
        shutil.rmtree(run, ignore_errors=True)
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            if not (run / "config.json").exists():  # killed before the run was one
                shutil.rmtree(run, ignore_errors=True)
            argv = ["--resume", str(run)] if run.exists() else [*settings, "--out", str(run)]
            child = Child(train.main, argv, tmp_path)
            if kills < times:
                child.process.join(moments.uniform(0, length))
                child.process.kill()
            status, errors = child.wait()
            kills += status == -signal.SIGKILL
        runs += 1
        assert status == 0 and outcome(run) == whole, errors
    print(f"{kills} SIGKILLs; all {runs} runs that then got through are bit-identical to the uninterrupted one")


def test_damaged_files_are_refused_in_one_sentence_or_change_nothing(times, tmp_path):
    sound, other, cut, whole, work = (tmp_path / name for name in ("sound", "other", "cut", "whole", "work"))
    for run, seed in ((sound, "42"), (other, "77")):
        assert Child(train.main, [*SMALL, "--seed", seed, "--data-seed", seed, "--out", str(run)],
                     tmp_path).wait()[0] == 0
    child = Child(train.main, [*SMALL, "--out", str(cut)], tmp_path)  # killed in the middle: no manifest to help
    while child.process.is_alive() and not (cut / "policies/cql-a1-s42-d42.pt").exists():
        time.sleep(0.005)
    child.process.kill()
    assert child.wait()[0] == -signal.SIGKILL
    shutil.copytree(cut, whole)
    assert Child(train.main, ["--resume", str(whole)], tmp_path).wait()[0] == 0
    commands = [(cut, lambda: Child(train.main, ["--resume", str(work)], tmp_path), outcome(whole), ()),
                (sound, lambda: Child(evaluate.main, [str(work)], tmp_path), outcome(sound),
                 ("evaluation.json", "manifest.json"))]
    chosen, refused = random.Random(0), 0
    for _ in range(times or 12):
        source, start, expected, made_anew = chosen.choice(commands)
        files = sorted(p for p in source.rglob("*") if p.suffix in (".pt", ".npz", ".json") and p.name not in made_anew)
        target = chosen.choice(files).relative_to(source)
        exchanged = sorted((other / target.parent).glob(f"*{target.suffix}"))[0]
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        (work / target).write_bytes(damaged((source / target).read_bytes(), exchanged.read_bytes(), chosen))
        status, errors = start().wait()
        one_sentence = status == 2 and sum(line.startswith("error: ") for line in errors.splitlines()) == 1
        assert one_sentence or status == 0 and outcome(work) == expected, f"{target}: status {status}, {errors}"
        refused += one_sentence
    print(f"{times or 12} files damaged: {refused} refused in one sentence, the others without effect")


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_elsewhere(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        assert train.main([*TINY, "--out", str(disk / "run")]) == 2
        assert "No space left on device" in capsys.readouterr().err and not list((disk / "run").rglob(".*.partial"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)  # room again: it goes on
        assert train.main(["--resume", str(disk / "run")]) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 0


def test_a_second_trainer_is_turned_away_and_a_signal_stops_the_first_cleanly(tmp_path, capsys):
    run = tmp_path / "run"
    first = Child(train.main, [*TINY, "--steps", "1000000", "--out", str(run)], tmp_path)
    while not (run / "checkpoint.pt").exists() and first.process.is_alive():
        time.sleep(0.05)
    assert train.main(["--resume", str(run)]) == 2 and "another process is writing" in capsys.readouterr().err
    first.send_signal(signal.SIGINT)
    status, errors = first.wait(60)
    assert status == 130 and f"python train.py --resume {run}" in errors and "Traceback" not in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_vanished_data_file_is_named(tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main([*TINY, "--out", str(run)]) == 0
    (run / "datasets/42.npz").unlink()
    (run / "manifest.json").unlink()
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "datasets/42.npz" in error and error.count("\n") == 1


def test_divergence_is_named_and_the_healthy_go_on(tmp_path, monkeypatch, capsys):
    """One member turns NaN; its neighbour must end where it ends alone, and nothing averages the two in silence."""
    from cql.policy import Policy
    assert train.main([*TINY, "--alpha", "6", "--out", str(tmp_path / "alone")]) == 0

    def poison(name, step, state):
        if name == "cql" and step >= 20:
            state.parameters[1][-1] = torch.nan

    after_each_yield(monkeypatch, poison)
    assert train.main([*TINY, "--alpha", "6", "20", "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr()
    assert "cql-a20-s42-d42 diverged by update 20: its outputs are not finite" in printed.err
    assert "DIVERGED (not finite, since update 20)" in printed.out
    members = json.loads((tmp_path / "both/evaluation.json").read_text())["members"]
    assert [m["diverged"] for m in members] == [None, None, {"since": 20, "reason": "not finite"}]
    logged = read_metrics(tmp_path / "both/metrics.csv")
    assert np.isnan(logged["cql-a20-s42-d42", "exact/return"][1][1:]).all()
    assert np.isfinite(logged["cql-a6-s42-d42", "exact/return"][1]).all()
    assert members[2]["exact"] is None and members[1]["exact"]["return"] is not None
    assert not (tmp_path / "both/policies/cql-a20-s42-d42.pt").exists()
    a, b = (Policy.load(tmp_path / name / "policies/cql-a6-s42-d42.pt").parameters for name in ("both", "alone"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_every_picture_is_drawn_and_says_who_diverged(tmp_path, monkeypatch, rendered, coarse):
    """A value above what any exact solution reaches: the run goes on, the member is flagged as run away."""
    after_each_yield(monkeypatch, lambda name, step, state: state.parameters[-1].add_(1000 * (name == "cql")))
    said = []
    monkeypatch.setattr("cql.analysis.figures.style.Figure.text", lambda self, *args, original=Figure.text, **kw: (
        said.append(args[2]), original(self, *args, **kw))[1])
    assert train.main([*TINY, "--steps", "20", "--out", str(tmp_path / "run")]) == 0
    entry = json.loads((tmp_path / "run/evaluation.json").read_text())["members"][1]
    assert entry["diverged"] == {"since": 10, "reason": "runaway"} and entry["exact"] is not None
    pictures = list((tmp_path / "run/figures").glob("*.png"))
    assert len(pictures) == 5 == sum("diverged: 1 of 2 members (cql-a6-s42-d42)" in text for text in said)


def test_the_bound_on_values_holds_for_exact_solutions_and_by_hand():
    def highest(data, alpha, **changes):
        return value_bounds(RewardRange.of(data, data.observations), alpha, Objective(**changes))[1]

    # rewards -1 on the way, 50 at the end; alpha 6 is 3 before a half square
    data = OfflineDataset.from_arrays(**arrays())
    assert highest(data, 6.0) == pytest.approx(max(53, 2 / 0.01) * 1.05 + 1)
    assert highest(data, 0.0) == pytest.approx(50 * 1.05 + 1)
    assert highest(data, 6.0, penalty="mu") == np.inf
    # to a state without data: its Q is the reward
    only_steps = OfflineDataset.from_arrays([0], [0], [-1.2], [1], [False])
    assert highest(only_steps, 0.0) == 1.0
    drawn = collected(100)
    model, counts = empirical_mdp(drawn, 225, 4)
    alphas = [0.0, 0.5, 6.0, 50.0, 500.0]
    best = cql_fixed_point(model, counts, alphas, 0.99).q.max((1, 2))
    for alpha, value in zip(alphas, best):
        assert value <= highest(drawn, alpha)


def test_a_run_whose_members_all_diverge_is_finished_and_says_so(tmp_path, capsys):
    assert train.main([*TINY, "--lr", "1e30", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("DIVERGED (not finite") == 2
    assert (tmp_path / "run/manifest.json").exists()


# ------------------------------------------------------------------------------------------ properties of hostile input

PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                     lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([f for f in Config.__dataclass_fields__]), value=PLAIN)
def test_no_config_file_gets_past_the_checks_with_a_traceback(name, value):
    contents = json.loads(Config().to_json()) | {name: value}
    try:
        config = Config.from_json(json.dumps(contents))
    except ConfigError as error:
        assert str(error).count("\n") == 0
    else:
        assert Config.from_json(config.to_json()) == config


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.text(alphabet="S.HGx ", max_size=6), max_size=6))
def test_no_map_gets_past_the_checks_with_a_traceback(rows):
    try:
        environment = make_environment({"id": "SafetyCriticalGridWorld-v0", "max_episode_steps": 20,
                                        "arguments": {"desc": rows}})
    except ConfigError as error:
        assert str(error).count("\n") == 0
    else:
        environment.reset(seed=0)
        assert environment.step(1)[1] in (-1.0, -100.0, 50.0)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["observations", "actions", "rewards", "next_observations", "terminations", "truncations"]),
       value=st.lists(st.integers(-5, 5) | st.floats() | st.booleans() | st.text(max_size=2), max_size=5),
       metadata=PLAIN)
def test_no_arrays_get_past_the_checks_with_a_traceback(name, value, metadata):
    changed = arrays() | {name: np.array(value)}
    try:
        data = OfflineDataset.from_arrays(**changed, metadata={"num_actions": metadata} if metadata else None)
    except DatasetError as error:
        assert str(error).count("\n") == 0
    else:
        assert len(data.compress().counts) <= len(data) == 4


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_damaged_data_sets_are_refused_or_unchanged(seed, tmp_path_factory):
    data = OfflineDataset.from_arrays(**arrays(), metadata={"num_states": 4})
    path = tmp_path_factory.mktemp("d") / "d.npz"
    path.write_bytes(damaged(data.to_bytes(), data.to_bytes(), random.Random(seed)))
    try:
        assert OfflineDataset.load(path).to_bytes() == data.to_bytes()
    except DatasetError as error:
        assert str(error).count("\n") == 0
