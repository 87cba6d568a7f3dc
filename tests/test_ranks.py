"""A sweep over several processes: what it leaves is what one process leaves, also after a rank was killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from cql import ranks as ranks_module
from cql.commands import verify
from cql.device import resolve_device
from cql.errors import RunError
from cql.ranks import Ranks, Stopped, joined
from cql.run_folder import RunFolder
from cql.training import Interrupted
from cql.training import train as train_run
from cql.world import World
from tests.faults import outcome
from tests.test_training import after_each_yield

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SWEEP = ["--episodes", "20", "--hidden", "8", "--bc-steps", "20", "--steps", "3000", "--batch-size", "8", "--alpha",
         "1", "6", "--num-seeds", "3", "--slice-size", "2", "--log-every", "500", "--checkpoint-every", "200",
         "--device", "cpu"]


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    """train.py without its pictures."""
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\nimport train\n"
                    "train.plots.draw_all = lambda run: []\nsys.exit(train.main())\n")
    return str(path)


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("whole") / "run"
    one_process(script, *SWEEP, "--out", str(run))
    return everything(run)


def torchrun(processes: int, *argv) -> subprocess.Popen:
    """A job of so many processes of one thread on this machine; ``argv`` are the script and its arguments."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                             str(processes), *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def one_process(script: str, *argv) -> None:
    """With one thread, as torchrun gives each rank."""
    subprocess.run([sys.executable, script, *argv], check=True, capture_output=True,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})


def process_of(job: subprocess.Popen, rank: int) -> int | None:
    """The process id of a rank of this job, if it is there."""
    try:
        for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    except OSError:
        pass
    return None


def finished(job: subprocess.Popen) -> tuple[int, str, str]:
    printed, errors = job.communicate(timeout=120)
    return job.returncode, printed, errors


def wait_for_progress(job: subprocess.Popen, run: Path) -> None:
    """Until a checkpoint is written that was not there."""
    def seen():
        return {path: path.stat().st_mtime_ns for path in run.glob("shards/*/checkpoint.pt")}
    before = seen()
    while seen() == before and job.poll() is None:
        time.sleep(0.01)


def everything(run: Path) -> dict:
    return outcome(run) | {name: (run / name).read_bytes() for name in ("results.csv", "checkpoint.pt")}


def test_three_processes_leave_what_one_leaves(tmp_path, whole):
    status, printed, errors = finished(torchrun(3, "train.py", *SWEEP, "--out", str(tmp_path / "three")))
    assert status == 0, errors
    assert printed.count("run folder:") == 1 and printed.count("hazard rate") == 1
    assert everything(tmp_path / "three") == whole
    assert not (tmp_path / "three/shards").exists() and verify.main([str(tmp_path / "three")]) == 0


def test_interrupted_then_killed_it_goes_on_with_any_number_of_processes(tmp_path, script, whole):
    run = tmp_path / "cut"
    job = torchrun(2, script, *SWEEP, "--out", str(run))
    wait_for_progress(job, run)
    job.send_signal(signal.SIGINT)  # as Ctrl-C does
    status, _, errors = finished(job)
    assert status != 0 and " died." not in errors
    assert errors.count(f"Go on with: torchrun --nproc-per-node 2 train.py --resume {run}") == 1

    job = torchrun(3, script, "--resume", str(run))
    wait_for_progress(job, run)
    killed = process_of(job, 1)
    os.kill(killed, signal.SIGKILL)
    status, _, errors = finished(job)
    assert status != 0 and errors.count(f"rank 1 (process {killed}) died.") == 1 and errors.count("Go on with:") == 1
    assert not (run / "metrics.csv").exists() and not (run / "evaluation.json").exists()

    shutil.copytree(run, tmp_path / "one")
    status, _, errors = finished(torchrun(2, script, "--resume", str(run)))
    assert status == 0, errors
    assert everything(run) == whole
    one_process(script, "--resume", str(tmp_path / "one"))
    assert everything(tmp_path / "one") == whole


def test_a_rank_killed_at_random_moments(tmp_path, script, whole, times):
    if not times:
        pytest.skip("each kill takes many seconds: --times 15 kills a rank fifteen times")
    run, chosen, kills, runs, started = tmp_path / "run", random.Random(0), 0, 0, time.monotonic()
    assert finished(torchrun(2, script, *SWEEP, "--out", str(run)))[0] == 0
    length = time.monotonic() - started
    while kills < times:
        shutil.rmtree(run)
        status = None
        while status != 0:
            if not (run / "config.json").exists():  # killed before the run was one
                shutil.rmtree(run, ignore_errors=True)
            processes = chosen.choice((2, 3))
            job = torchrun(processes, script,
                           *(["--resume", str(run)] if run.exists() else [*SWEEP, "--out", str(run)]))
            victim = None
            if kills < times:
                time.sleep(chosen.uniform(0, length))
                victim = process_of(job, chosen.randrange(processes))
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
            status, _, errors = finished(job)
            assert status == 0 or "SIGKILL" in errors, errors
            kills += status != 0
        runs += 1
        assert everything(run) == whole
    print(f"{kills} SIGKILLs of a rank; all {runs} runs that then got through are bit-identical to that of one process")


def test_an_error_on_setting_up_ends_all_ranks_with_one_sentence(tmp_path):
    status, printed, errors = finished(torchrun(2, "train.py", *SWEEP, "--out", str(tmp_path)))
    assert status != 0 and printed == "" and errors.count("error: ") == 1
    assert f"error: the folder {tmp_path} exists already" in errors and "exitcode  : 2" in errors


# ------------------------------------------------------------------------------------------------------- in one process

def pair() -> list[Ranks]:
    store = dist.HashStore()
    both = [Ranks(rank, 2, rank, node=rank, store=store) for rank in (0, 1)]
    meeting = [threading.Thread(target=ranks.meet) for ranks in both]
    for thread in meeting:
        thread.start()
    for thread in meeting:
        thread.join()
    return both


def watching(ranks: Ranks) -> threading.Event:
    ended = threading.Event()
    threading.Thread(target=ranks.watch, args=(ended,), daemon=True).start()
    return ended


def test_work_is_dealt_out_once_to_whoever_asks_next():
    first, second = pair()
    a, b = first.share(list("wxyz")), second.share(list("wxyz"))
    assert [next(a), next(b), next(b), next(a)] == list("wxyz")
    assert list(a) == list(b) == []
    assert list(Ranks().share([1, 2])) == [1, 2]


def test_the_first_reason_to_stop_stands_and_reaches_all(monkeypatch):
    monkeypatch.setattr(ranks_module, "BEAT", 0.01)
    first, second = pair()
    ended = watching(first)
    second.stop("rank 1: the disk is full", 2)
    while not first.stopped:
        time.sleep(0.01)
    ended.set()
    first.stop()
    assert first.reason == second.reason == "rank 1: the disk is full"
    with pytest.raises(Stopped, match="disk is full") as stop:
        second.hear()
    assert stop.value.status == 2 and list(first.share([1])) == []


def test_a_silent_rank_is_noticed_and_one_that_left_is_not(monkeypatch):
    monkeypatch.setattr(ranks_module, "BEAT", 0.01)
    monkeypatch.setattr(ranks_module, "SILENCE", 0.1)
    for leaves in (True, False):
        first, second = pair()
        if leaves:
            second.leave()
        ended = watching(first)
        time.sleep(0.3)
        ended.set()
        assert first.stopped is not leaves
        assert ("rank 1 (on node 1) has given no sign of life" in first.reason) is not leaves


def test_last_words_are_said_once(capsys):
    for ranks in pair():
        ranks.say(f"rank {ranks.rank}")
    assert capsys.readouterr().err == "rank 0\n"


def test_without_torchrun_nothing_is_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    threads = threading.active_count()
    with joined() as ranks:
        assert (ranks.rank, ranks.world, ranks.launcher) == (0, 1, "python") and threading.active_count() == threads
    assert not dist.is_initialized()


def test_each_rank_takes_the_device_of_its_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("cql.device._why_unusable", lambda device: None)
    assert [str(resolve_device(name, 3))
            for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
    with pytest.raises(RunError, match="sees 4 CUDA"):
        resolve_device("auto", 4)


def test_a_run_begun_by_one_process_is_not_split(tmp_path, monkeypatch):
    from cql.collect import datasets_for
    from cql.config import Config
    config = Config(episodes=20, hidden=(8,), bc_steps=10, steps=20, batch_size=8, log_every=10, device="cpu")
    data = datasets_for(config, {})
    run = RunFolder.create(str(tmp_path / "r"), config, data)
    with monkeypatch.context() as patch:
        def stop(name, step, state):
            if name == "cql":
                raise Interrupted
        after_each_yield(patch, stop)
        with pytest.raises(Interrupted):
            train_run(run, config, data, World.of(data[0]))
    with pytest.raises(RunError, match="begun by one process"):
        train_run(run, config, data, World.of(data[0]), resume=True, ranks=pair()[0])
