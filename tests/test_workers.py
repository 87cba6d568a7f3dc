"""Worker processes: the same numbers as one thread, and a clear end when one of them fails or is killed."""

import multiprocessing
import os
import signal
import sys
import time
from functools import partial

import pytest
import torch

import train
from cql import engine
from cql.algorithm import Settings, initial_state
from cql.collect import datasets_for
from cql.config import Config
from cql.device import torch_settings
from cql.engine import cohort, trainer, workers
from cql.errors import RunError
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions
from tests.faults import Child

pytestmark = pytest.mark.slow
FORKS = pytest.mark.skipif(not workers.FORKS, reason="worker processes are forked on Linux only")


@pytest.fixture(autouse=True)
def one_thread_and_a_cohort_per_member(monkeypatch):
    monkeypatch.setattr(trainer, "cohort_size", lambda *arguments: 1)
    with torch_settings(torch.device("cpu")):
        yield


@pytest.fixture(scope="module")
def transitions():
    return Transitions(datasets_for(Config(episodes=20), {}), torch.device("cpu"), compress=False)


def updates_of(transitions, threads):
    """Sixty updates of five members, a state every twenty."""
    network, seeds = PopulationMLP(225, 4, (8,), True), [1, 2, 3, 4, 5]
    return engine.updates(network, transitions, initial_state(network, seeds, [6.0] * 5, torch.device("cpu")),
                          torch.zeros(5, dtype=torch.int64), torch.tensor(seeds), "cql", Objective(),
                          Settings(16, 2e-3, 60, 20, threads=threads), 0, 60)


def children_of(work):
    """What ``work()`` returns, and the processes that it started."""
    before = set(multiprocessing.active_children())
    found = work()
    return found, [child for child in multiprocessing.active_children() if child not in before]


def trained(updates):
    found = [(step, [tensor.clone() for tensor in (*state.parameters, state.alpha, *terms)])
             for step, state, terms in updates]
    assert [step for step, _ in found] == [20, 40, 60]
    return found


def test_workers_change_no_result(transitions, monkeypatch):
    alone = trained(updates_of(transitions, 1))
    forked, started = children_of(lambda: trained(updates_of(transitions, 3)))
    monkeypatch.setattr(workers, "FORKS", False)
    threaded, none = children_of(lambda: trained(updates_of(transitions, 2)))
    assert (len(started), len(none)) == (3 if sys.platform == "linux" else 0, 0)
    for other in (forked, threaded):
        for (_, mine), (_, theirs) in zip(alone, other):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs))


@FORKS
def test_workers_end_with_the_generator(transitions):
    updates = updates_of(transitions, 2)
    _, started = children_of(partial(next, updates))
    assert len(started) == 2
    del updates, _
    for child in started:
        child.join(10)
        assert child.exitcode == 0


@FORKS
def test_a_killed_worker_is_reported(transitions):
    updates = updates_of(transitions, 2)
    _, (victim, _) = children_of(partial(next, updates))
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    with pytest.raises(RunError, match="ended from outside"):
        next(updates)


@FORKS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_are_deaf_to_what_stops_the_group(number, transitions):
    updates = updates_of(transitions, 2)
    _, started = children_of(partial(next, updates))
    for child in started:
        os.kill(child.pid, number)
    assert [step for step, _, _ in updates] == [40, 60]


def train_in_a_group(argv: list[str]) -> int:
    os.setsid()
    torch.set_num_threads(2)
    return train.main(argv)


@FORKS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(number, tmp_path):
    """As torchrun and schedulers send it: parent and workers at once."""
    job = Child(train_in_a_group, ["--episodes", "30", "--num-seeds", "4", "--hidden", "8", "--bc-steps", "0",
                                   "--steps", "1000000", "--out", str(tmp_path / "run")], tmp_path)
    log = tmp_path / "run/metrics.csv"
    deadline = time.monotonic() + 60
    while not (log.exists() and "losses" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(job.process.pid, number)
    status, printed = job.wait(60)
    assert status == 130, printed
    assert (tmp_path / "run/checkpoint.pt").exists() and "want of memory" not in printed
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(job.process.pid, 0)


@FORKS
def test_a_failure_in_a_worker_is_reported(transitions, monkeypatch):
    monkeypatch.setattr(cohort.Cohort, "block_of_updates", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="(?s)Traceback.*ZeroDivisionError: division by zero"):
        next(updates_of(transitions, 2))


def test_shared_memory_is_a_copy():
    original = torch.arange(6.0).view(2, 3)
    copy = workers.shared(original)
    assert torch.equal(copy, original)
    copy.zero_()
    assert original.sum() == 15
    assert workers.shared(torch.zeros(0)).shape == (0,) and workers.shared(torch.tensor(3.0)).item() == 3
