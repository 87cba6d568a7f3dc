"""Worker processes: the same numbers as one thread, and a clear end when one of them fails or is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cql import slice as slice_module
from cql import training, workers
from cql.collect import datasets_for
from cql.config import Config
from cql.population import slices
from cql.runs import RunError
from cql.sampling import Transitions
from cql.slice import Slice

FORKS = pytest.mark.skipif(not workers.FORKS, reason="worker processes are forked on Linux only")
CONFIG = Config(episodes=20, hidden=(8,), batch_size=16, steps=60, bc_steps=60, num_seeds=5, target_interval=20)


@pytest.fixture(autouse=True)
def one_thread_as_in_training():
    with training._torch_settings(torch.device("cpu")):
        torch.set_num_threads(1)
        yield


def part_of(threads, monkeypatch):
    monkeypatch.setattr(slice_module, "TILE_BYTES", 1)  # a tile per member
    datasets = datasets_for(CONFIG, {})
    return Slice(slices(CONFIG)[-1], CONFIG, Transitions(datasets, torch.device("cpu"), compress=False), datasets, threads)


def trained(part):
    for start in range(0, 60, 20):
        part.block_of_updates(start, start + 20)
    return part.state, part.loss_means()


def test_workers_change_no_result(monkeypatch):
    alone, means = trained(part_of(1, monkeypatch))
    forked = part_of(3, monkeypatch)
    state, others = trained(forked)
    assert isinstance(forked._workers, workers.Processes if workers.FORKS else workers.Threads)
    monkeypatch.setattr(workers, "FORKS", False)
    threaded = part_of(2, monkeypatch)
    assert isinstance(trained(threaded)[0], type(state)) and isinstance(threaded._workers, workers.Threads)
    for one, two, three in zip(alone, state, threaded.state):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert means == others and alone.updates == 60


@FORKS
def test_workers_end_with_their_slice(monkeypatch):
    part = part_of(2, monkeypatch)
    before = set(multiprocessing.active_children())
    part.block_of_updates(0, 20)
    started = [child for child in multiprocessing.active_children() if child not in before]
    assert len(started) == 2
    del part
    for child in started:
        child.join(10)
        assert child.exitcode == 0


@FORKS
def test_a_killed_worker_is_reported(monkeypatch):
    part = part_of(2, monkeypatch)
    before = set(multiprocessing.active_children())
    part.block_of_updates(0, 20)
    victim = next(child for child in multiprocessing.active_children() if child not in before)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    with pytest.raises(RunError, match="ended from outside"):
        part.block_of_updates(20, 40)


@FORKS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_are_deaf_to_what_stops_the_group(number, monkeypatch):
    part = part_of(2, monkeypatch)
    before = set(multiprocessing.active_children())
    part.block_of_updates(0, 20)
    for child in set(multiprocessing.active_children()) - before:
        os.kill(child.pid, number)
    part.block_of_updates(20, 40)
    part.block_of_updates(40, 60)
    assert part.state.updates == 60


@FORKS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(number, tmp_path):
    """As torchrun and schedulers send it: parent and workers at once."""
    job = subprocess.Popen([sys.executable, "train.py", "--episodes", "30", "--num-seeds", "4", "--hidden", "8", "--bc-steps", "0",
                            "--steps", "1000000", "--out", str(tmp_path / "run")], start_new_session=True,
                           env=os.environ | {"OMP_NUM_THREADS": "2"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/metrics.csv"
    deadline = time.monotonic() + 60
    while not (log.exists() and "losses" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(job.pid, number)
    printed = job.communicate(timeout=60)[1]
    assert job.returncode == 130, printed
    assert (tmp_path / "run/checkpoint.pt").exists() and "want of memory" not in printed
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(job.pid, 0)


@FORKS
def test_a_failure_in_a_worker_is_reported(monkeypatch):
    part = part_of(2, monkeypatch)
    monkeypatch.setattr(type(part.tiles[0]), "block_of_updates", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="(?s)Traceback.*ZeroDivisionError: division by zero"):
        part.block_of_updates(0, 20)


def test_shared_memory_is_a_copy():
    original = torch.arange(6.0).view(2, 3)
    copy = workers.shared(original)
    assert torch.equal(copy, original)
    copy.zero_()
    assert original.sum() == 15 and workers.shared(torch.zeros(0)).shape == (0,) and workers.shared(torch.tensor(3.0)).item() == 3
