"""A sweep over several processes: what it leaves is what one process leaves, also after ranks or machines were lost."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import train as command
from cql.collect import datasets_for
from cql.commands import verify
from cql.config import Config
from cql.device import resolve_device
from cql.errors import RunError
from cql.ranks import Ranks, joined
from cql.run_folder import RunFolder
from cql.training import Interrupted
from cql.training import train as train_run
from cql.world import World
from tests.faults import Child, outcome
from tests.test_training import after_each_yield

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SWEEP = ["--episodes", "20", "--hidden", "8", "--bc-steps", "20", "--steps", "1500", "--batch-size", "8", "--alpha",
         "1", "6", "--num-seeds", "3", "--slice-size", "2", "--log-every", "500", "--checkpoint-every", "50",
         "--max-episode-steps", "30", "--device", "cpu"]
THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun gives each rank


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    """train.py without pictures; it waits a second after each checkpoint while there is a file ``slow`` beside it."""
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(f"""import os, sys, time, types
sys.path[0] = {str(ROOT)!r}
sys.modules["cql.analysis.figures.plots"] = types.SimpleNamespace(draw_all=lambda run: [])  # without matplotlib
import train
from cql import checkpoint
def saved(*arguments, save=checkpoint.save):
    save(*arguments)
    time.sleep(os.path.exists({str(path.with_name("slow"))!r}))
checkpoint.save = saved
sys.exit(train.main())
""")
    return str(path)


@pytest.fixture
def slow(script):
    """Ranks train slowly until the file is removed, so that they are in the middle when something happens to them."""
    path = Path(script).with_name("slow")
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("whole") / "run"
    one_process(run, *SWEEP, "--out", str(run))
    return everything(run)


def one_process(run: Path, *argv) -> None:
    status, errors = Child(command.main, argv, run.parent).wait()
    assert status == 0, errors


def torchrun(*argv, **environment) -> subprocess.Popen:
    """A job; ``argv``: torchrun's options, the script and its arguments."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *map(str, argv)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=THREAD | environment)


def here(processes: int, *argv) -> subprocess.Popen:
    return torchrun("--standalone", "--nproc-per-node", processes, *argv)


def process_of(job: subprocess.Popen, local_rank: int) -> int | None:
    """The process id of a rank of this job, if it is there."""
    try:
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    except OSError:
        return None
    return next((int(child) for child in children if f"LOCAL_RANK={local_rank}" in environment_of(int(child))), None)


def environment_of(process: int) -> list[str]:
    """Empty if the process has ended."""
    try:
        return Path(f"/proc/{process}/environ").read_text().split("\0")
    except OSError:
        return []


def finished(job: subprocess.Popen) -> tuple[int, str, str]:
    printed, errors = job.communicate(timeout=600)
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


def test_several_processes_leave_what_one_leaves(tmp_path, script, whole):
    status, printed, errors = finished(here(2, script, *SWEEP, "--out", tmp_path / "run"))
    assert status == 0, errors
    assert printed.count("run folder:") == 1 and printed.count("hazard rate") == 1
    assert everything(tmp_path / "run") == whole
    assert not (tmp_path / "run/shards").exists() and verify.main([str(tmp_path / "run")]) == 0


def test_interrupted_then_killed_it_goes_on_with_any_number_of_processes(tmp_path, script, whole, slow):
    run = tmp_path / "cut"
    job = here(2, script, *SWEEP, "--out", run)
    wait_for_progress(job, run)
    job.send_signal(signal.SIGINT)  # as Ctrl-C does
    status, _, errors = finished(job)
    assert status != 0 and errors.count("stopped after update ") == errors.count("Go on with: the same command\n") == 1

    job = here(3, script, *SWEEP, "--out", run)
    wait_for_progress(job, run)
    os.kill(process_of(job, 1), signal.SIGKILL)
    slow.unlink()
    status, _, errors = finished(job)
    assert status != 0 and "Signal 9 (SIGKILL)" in errors and errors.count("Go on with:") == 1
    assert not (run / "metrics.csv").exists() and not (run / "evaluation.json").exists()

    one_process(run, "--resume", str(run))
    assert everything(run) == whole


def test_a_rank_killed_is_started_again(tmp_path, script, whole, times, slow):
    """Once, after a checkpoint; with ``--times 10`` at ten random moments from the launch to the end."""
    run, chosen, kills, started = tmp_path / "run", random.Random(0), 0, time.monotonic()
    if times:
        slow.unlink()
        assert finished(here(3, script, *SWEEP, "--out", run))[0] == 0
        shutil.rmtree(run)
    length = time.monotonic() - started
    while kills < (times or 1):
        processes, moment = chosen.choice((2, 3) if times else (2,)), chosen.uniform(0, length)
        job = here(processes, "--max-restarts", 3, script, *SWEEP, "--out", run)
        if times:
            time.sleep(moment)
        else:
            wait_for_progress(job, run)
        if victim := process_of(job, rank := chosen.randrange(processes)):
            os.kill(victim, signal.SIGKILL)
            kills += 1
            stood = f"{len(list(run.glob('policies/*')))} of 9 policies done" if run.exists() else "no run folder yet"
            slow.unlink(missing_ok=True)
            print(f"rank {rank} of {processes} killed after {moment:.1f} of {length:.1f} s: {stood}")
        status, _, errors = finished(job)
        assert status == 0, errors
        assert everything(run) == whole and not (run / "shards").exists()
        shutil.rmtree(run)


def test_a_machine_joins_and_is_lost(tmp_path, script, whole, slow):
    """Two launchers stand for two machines; the one that does not host the rendezvous begins late and is killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    run = tmp_path / "run"

    def machine(host: bool) -> subprocess.Popen:
        return torchrun("--nnodes", "1:2", "--max-restarts", 3, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint,
                        "--rdzv-conf", f"is_host={int(host)},last_call_timeout=2,keep_alive_interval=1",
                        script, *SWEEP, "--out", run, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    first = machine(host=True)
    wait_for_progress(first, run)
    second = machine(host=False)
    while not (orphan := process_of(second, 0)):
        time.sleep(0.1)
    wait_for_progress(second, run)
    before, lost = process_of(first, 0), time.monotonic()
    second.kill()  # the rank that it started stops by itself
    slow.unlink()
    while any(environment_of(orphan)):
        time.sleep(0.05)
    stopped = time.monotonic() - lost
    while process_of(first, 0) in (before, None) and first.poll() is None:
        time.sleep(0.05)
    alone = time.monotonic() - lost
    status, _, errors = finished(first)
    print(f"launcher killed; its rank stopped {stopped:.1f} s later, the other was started alone after {alone:.1f} s "
          f"and done after {time.monotonic() - lost:.1f} s")
    assert status == 0, errors
    assert everything(run) == whole


def test_an_error_on_setting_up_ends_all_ranks_with_one_sentence(tmp_path, script):
    (tmp_path / "mine.txt").touch()
    status, printed, errors = finished(here(2, script, *SWEEP, "--out", tmp_path))
    assert status != 0 and printed == "" and errors.count("error: ") == 1
    assert f"error: the folder {tmp_path} exists already" in errors and "exitcode  : 2" in errors


# ------------------------------------------------------------------------------------------------------- in one process

def of_two(rank: int) -> Ranks:
    ranks = Ranks(rank)
    ranks.world = 2
    return ranks


def small(**changes) -> Config:
    return Config(**dict(episodes=20, hidden=(8,), bc_steps=10, steps=20, batch_size=8, log_every=10, device="cpu")
                  | changes)


def test_slices_are_dealt_in_turn_the_costliest_first():
    costs = [3, 9, 1, 9, 5]
    assert [of_two(rank).share(list(range(5)), costs.__getitem__) for rank in (0, 1)] == [[1, 4, 2], [3, 0]]


def test_a_run_made_again_is_the_run_of_the_same_settings_and_data(tmp_path):
    out, config, data = str(tmp_path / "run"), small(), datasets_for(small(), {})
    (tmp_path / "run/datasets").mkdir(parents=True)  # what a process that was killed may leave
    (tmp_path / "run/.config.json.7.partial").touch()
    assert RunFolder.create(out, config, data, again=True).config() == config
    (tmp_path / "run/policies/bc.pt").touch()
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    RunFolder.create(out, config, data, again=True)
    for changed in ((small(steps=21), data), (config, datasets_for(small(epsilon=0.5), {}))):
        with pytest.raises(RunError, match="made with other settings or data"):
            RunFolder.create(out, *changed, again=True)
    with pytest.raises(RunError, match="exists already"):
        RunFolder.create(out, config, data)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_without_torchrun_nothing_is_started(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ranks = joined()
    ranks.wait_for_all()
    assert (ranks.rank, ranks.world, ranks.launched, ranks.stopped) == (0, 1, False, False)
    assert not dist.is_initialized()


def test_a_rank_stops_when_its_torchrun_has_died(monkeypatch):
    ranks = Ranks(launched=True)
    assert not ranks.stopped
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert ranks.stopped


def test_a_rank_waits_for_a_lock_that_another_still_holds(tmp_path, capsys):
    run = RunFolder.create(str(tmp_path / "run"), small(), [])
    held = run.lock(shared=True)
    with pytest.raises(RunError, match="another process is writing"):
        run.lock()
    threading.Timer(0.2, held.close).start()
    run.lock(wait=True).close()
    assert held.closed and capsys.readouterr().err == f"note: waiting for another process that is writing {run.path}\n"


@pytest.fixture
def alone_under_torchrun(monkeypatch):
    for name, value in dict(TORCHELASTIC_RUN_ID="job", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", GROUP_WORLD_SIZE="1",
                            TORCHELASTIC_MAX_RESTARTS="3", TORCHELASTIC_USE_AGENT_STORE="True").items():
        monkeypatch.setenv(name, value)


def test_the_same_command_goes_on_under_torchrun(tmp_path, monkeypatch, capsys, alone_under_torchrun):
    argv = "--episodes 20 --hidden 8 --bc-steps 10 --steps 20 --log-every 10 --device cpu".split()
    assert command.main(argv) == 2
    assert capsys.readouterr().err == "error: under torchrun give --out RUN: a restarted job finds its run by it.\n"
    argv += ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(command.judging, "write", lambda run: signal.raise_signal(signal.SIGINT))
        assert command.main(argv) == 130
    assert capsys.readouterr().err.endswith("interrupted.\nGo on with: the same command\n")
    assert command.main(argv) == 0
    done = everything(tmp_path / "run")
    assert command.main(argv) == 0 and everything(tmp_path / "run") == done


def test_restarts_on_several_machines_need_a_fresh_store(monkeypatch, alone_under_torchrun):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(RunError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        joined()


def test_each_rank_takes_the_device_of_its_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("cql.device._why_unusable", lambda device: None)
    assert [str(resolve_device(name, 3))
            for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
    with pytest.raises(RunError, match="sees 4 CUDA"):
        resolve_device("auto", 4)


def test_a_run_begun_by_one_process_is_not_split(tmp_path, monkeypatch):
    config, data = small(), datasets_for(small(), {})
    run = RunFolder.create(str(tmp_path / "r"), config, data)
    with monkeypatch.context() as patch:
        def stop(name, step, state):
            if name == "cql":
                raise Interrupted
        after_each_yield(patch, stop)
        with pytest.raises(Interrupted):
            train_run(run, config, data, World.of(data[0]))
    with pytest.raises(RunError, match="begun by one process"):
        train_run(run, config, data, World.of(data[0]), resume=True, ranks=of_two(0))
