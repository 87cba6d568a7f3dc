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
from tests.faults import Child, launched, outcome
from tests.test_training import after_each_yield

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SWEEP = ["--episodes", "20", "--hidden", "8", "--bc-steps", "20", "--steps", "600", "--batch-size", "8", "--alpha",
         "1", "6", "--num-seeds", "3", "--slice-size", "2", "--log-every", "200", "--checkpoint-every", "50",
         "--max-episode-steps", "30", "--device", "cpu"]


@pytest.fixture
def slow(tmp_path):
    """Ranks train slowly until the file is removed, so that they are in the middle when something happens to them."""
    (tmp_path / "slow").touch()
    return tmp_path / "slow"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("whole") / "run"
    one_process(run, *SWEEP, "--out", str(run))
    return everything(run)


def one_process(run: Path, *argv) -> None:
    status, errors = Child(command.main, argv, run.parent).wait()
    assert status == 0, errors


def job_of(run: Path, *options, name: str = "job") -> Child:
    """torchrun's launcher and its ranks, which train ``run``."""
    folder = run.parent / name
    folder.mkdir(exist_ok=True)
    return Child(launched, [*map(str, options), "train.py", *SWEEP, "--out", str(run)], folder)


def here(processes: int, run: Path, *options) -> Child:
    return job_of(run, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", processes,
                  *options)  # what --standalone is


def ranks_of(job: Child) -> list[int]:
    """The process ids of the ranks of this job that are there, in turn."""
    try:
        return list(map(int, Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split()))
    except OSError:
        return []


def wait_for_progress(job: Child, run: Path) -> None:
    """Until a checkpoint is written that was not there."""
    def seen():
        return {path: path.stat().st_mtime_ns for path in run.glob("shards/*/checkpoint.pt")}
    before = seen()
    while seen() == before and job.process.is_alive():
        time.sleep(0.01)


def everything(run: Path) -> dict:
    return outcome(run) | {name: (run / name).read_bytes() for name in ("results.csv", "checkpoint.pt")}


def test_several_processes_leave_what_one_leaves(tmp_path, whole):
    """By torchrun itself; the jobs of the other tests are forked. The script is train.py without matplotlib."""
    script = tmp_path / "train.py"
    script.write_text(f"""import sys, types
sys.path[0] = {str(ROOT)!r}
sys.modules["cql.analysis.figures.plots"] = types.SimpleNamespace(draw_all=lambda run: [])
import train
sys.exit(train.main())
""")
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script,
                          *SWEEP, "--out", tmp_path / "run"], cwd=ROOT, text=True, capture_output=True, timeout=600,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("run folder:") == 1 and ran.stdout.count("hazard rate") == 1
    assert everything(tmp_path / "run") == whole
    assert not (tmp_path / "run/shards").exists() and verify.main([str(tmp_path / "run")]) == 0


def test_interrupted_then_killed_it_goes_on_with_any_number_of_processes(tmp_path, whole, slow):
    run = tmp_path / "cut"
    job = here(2, run)
    wait_for_progress(job, run)
    job.send_signal(signal.SIGINT)  # as Ctrl-C does
    status, errors = job.wait()
    assert status != 0 and errors.count("stopped after update ") == errors.count("Go on with: the same command\n") == 1

    job = here(3, run)
    wait_for_progress(job, run)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    slow.unlink()
    status, errors = job.wait()
    assert status != 0 and "Signal 9 (SIGKILL)" in errors and errors.count("Go on with:") == 1
    assert not (run / "metrics.csv").exists() and not (run / "evaluation.json").exists()

    one_process(run, "--resume", str(run))
    assert everything(run) == whole


def test_a_rank_killed_is_started_again(tmp_path, whole, times, slow):
    """Once, after a checkpoint; with ``--times 10`` at ten random moments from the launch to the end."""
    run, chosen, kills, started = tmp_path / "run", random.Random(0), 0, time.monotonic()
    if times:
        slow.unlink()
        assert here(3, run).wait()[0] == 0
        shutil.rmtree(run)
    length = time.monotonic() - started
    while kills < (times or 1):
        processes, moment = chosen.choice((2, 3) if times else (2,)), chosen.uniform(0, length)
        job = here(processes, run, "--max-restarts", 3)
        if times:
            time.sleep(moment)
        else:
            wait_for_progress(job, run)
        if (rank := chosen.randrange(processes)) < len(ranks := ranks_of(job)):
            os.kill(ranks[rank], signal.SIGKILL)
            kills += 1
            stood = f"{len(list(run.glob('policies/*')))} of 9 policies done" if run.exists() else "no run folder yet"
            slow.unlink(missing_ok=True)
            print(f"rank {rank} of {processes} killed after {moment:.1f} of {length:.1f} s: {stood}")
        status, errors = job.wait()
        assert status == 0, errors
        assert everything(run) == whole and not (run / "shards").exists()
        shutil.rmtree(run)


def test_a_machine_joins_and_is_lost(tmp_path, whole, slow):
    """Two launchers stand for two machines; the one that does not host the rendezvous begins late and is killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    run = tmp_path / "run"

    def machine(host: bool) -> Child:
        return job_of(run, "--nnodes", "1:2", "--max-restarts", 3, "--rdzv-backend", "c10d", "--rdzv-endpoint",
                      endpoint, "--rdzv-conf", f"is_host={int(host)},last_call_timeout=2,keep_alive_interval=1",
                      name="host" if host else "guest")

    first = machine(host=True)
    wait_for_progress(first, run)
    second = machine(host=False)
    while not (orphans := ranks_of(second)):
        time.sleep(0.1)
    wait_for_progress(second, run)
    before, lost = ranks_of(first), time.monotonic()
    second.process.kill()  # the rank that it started stops by itself
    slow.unlink()
    while any(Path(f"/proc/{orphan}/exe").exists() for orphan in orphans):
        time.sleep(0.05)
    stopped = time.monotonic() - lost
    while ranks_of(first) in (before, []) and first.process.is_alive():
        time.sleep(0.05)
    alone = time.monotonic() - lost
    status, errors = first.wait()
    print(f"launcher killed; its rank stopped {stopped:.1f} s later, the other was started alone after {alone:.1f} s "
          f"and done after {time.monotonic() - lost:.1f} s")
    assert status == 0, errors
    assert everything(run) == whole


def test_an_error_on_setting_up_ends_all_ranks_with_one_sentence(tmp_path):
    (tmp_path / "mine.txt").touch()
    job = here(2, tmp_path)
    status, errors = job.wait()
    assert status != 0 and job.printed.read_text() == "" and errors.count("error: ") == 1
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
