"""What a run survives, counted: python -m benchmarks.faults kill 100 | sweep 3 | ranks 20 | corrupt 1000

kill: SIGKILL at a random moment of a sweep, again and again until it gets through by --resume; then policies, metrics and
evaluation must equal the uninterrupted run's byte for byte, and TensorBoard must hold the same scalars.

sweep: the same for 352 members, 11 alphas by 2 seeds by 16 data draws, each trained for a few hundred updates.

ranks: the same for a sweep over two or three processes, of which one is killed each time; it goes on in two or three.

corrupt: one file of a finished or interrupted run is damaged (cut short, bits flipped, bytes replaced, swapped for the same file of
another run); loading must refuse it in one sentence, or the outcome must equal the sound one's: nothing in between.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from cql.analysis import plots
from cql.config import TRAINERS

SWEEP = ["--episodes", "60", "--hidden", "16", "--bc-steps", "300", "--steps", "600", "--alpha", "1", "6", "--num-seeds", "2",
         "--slice-size", "2", "--log-every", "50", "--checkpoint-every", "70", "--batch-size", "32", "--target-interval", "20",
         "--device", "cpu"]
ABLATION = ["--alpha", "0", "0.01", "0.1", "0.3", "1", "3", "6", "10", "20", "50", "200", "--num-seeds", "2", "--num-datasets", "16",
            "--batch-size", "full", "--steps", "300", "--bc-steps", "100", "--log-every", "100", "--checkpoint-every", "100",
            "--device", "cpu"]


def in_child(main, argv: list[str], kill_after: float | None = None, kill_at: Path | None = None) -> tuple[int | None, str]:
    """Runs a command in a forked process, killed after so many seconds or once a file is there; returns its exit status
    (None: killed) and what it wrote to stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 70
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
                status = main(argv)
            os.write(writer, errors.getvalue()[-2000:].encode())
        except BaseException as error:  # a traceback from the depths: what must never happen
            os.write(writer, f"TRACEBACK {type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(status)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
    while kill_at is not None and not kill_at.exists():
        time.sleep(0.005)
    if kill_after is not None or kill_at is not None:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return (None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), text


def outcome(run: Path) -> dict[str, object]:
    """What must not differ: policies, data, config, metrics and evaluation by their bytes, TensorBoard by its scalars."""
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted([
        *run.glob("policies/*"), *run.glob("datasets/*"), run / "metrics.csv", run / "evaluation.json", run / "config.json"])}
    for folder in sorted(run.glob("tensorboard/*-s*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        found[folder.name] = {tag: [(s.step, s.value) for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found


def kill(times: int, folder: Path, random: random.Random, settings: list[str] = SWEEP) -> int:
    """Returns how many of the resumed runs differ from the uninterrupted one."""
    started = time.perf_counter()
    assert in_child(train.main, [*settings, "--out", str(folder / "whole")])[0] == 0
    length, whole, kills, different = time.perf_counter() - started, outcome(folder / "whole"), 0, 0
    runs = 0
    while kills < times:
        run, argv = folder / "cut", [*settings, "--out", str(folder / "cut")]
        shutil.rmtree(run, ignore_errors=True)
        status = None
        while status is None:
            after = random.uniform(0, length) if kills < times else None
            status, text = in_child(train.main, argv, after)
            kills += status is None
            if (run / "config.json").exists():
                argv = ["--resume", str(run)]
            else:
                shutil.rmtree(run, ignore_errors=True)  # killed before the run was one
        runs += 1
        if status != 0 or outcome(run) != whole:
            different += 1
            print(f"run {runs}: status {status}, {text[-300:]}")
    print(f"{kills} SIGKILLs over {runs} runs of {length:.1f} s: {runs - different} of {runs} bit-identical to the uninterrupted run")
    return different


def torchrun(processes: int, *argv) -> subprocess.Popen:
    """A job of so many processes of one thread on this machine, ``argv`` the script and its arguments."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                             *argv], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def one_process(script: str, *argv) -> None:
    """Runs the script in one process, with one thread, as torchrun gives each rank. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, script, *argv], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def process_of(job: subprocess.Popen, rank: int) -> int | None:
    """The process id of a rank of this job, if it is there."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    return None


def ranks(times: int, folder: Path, random: random.Random) -> int:
    """Returns how many of the sweeps that went on after a rank was killed differ from the one that a single process made."""
    script = without_pictures(folder)
    one_process(script, *SWEEP, "--out", str(folder / "whole"))
    whole, run, kills, runs, different, length = outcome(folder / "whole"), folder / "cut", 0, 0, 0, 0.0
    while kills < times:
        shutil.rmtree(run, ignore_errors=True)
        argv, status = [*SWEEP, "--out", str(run)], None
        while status != 0:
            processes = random.choice((2, 3))
            job, started = torchrun(processes, script, *argv), time.perf_counter()
            if runs and kills < times:  # the first is let through: it says how long they take
                time.sleep(random.uniform(0, length))
                victim = process_of(job, random.randrange(processes))
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
            text = job.communicate()[1]
            status = job.returncode
            length = length or time.perf_counter() - started
            kills += "SIGKILL" in text
            if status and "SIGKILL" not in text:
                break
            if (run / "config.json").exists():
                argv = ["--resume", str(run)]
            else:
                shutil.rmtree(run, ignore_errors=True)
        runs += 1
        if status or outcome(run) != whole:
            different += 1
            print(f"run {runs}: status {status}, {text[-3000:]}")
    print(f"{kills} SIGKILLs of a rank over {runs} runs of {length:.1f} s: {runs - different} of {runs} bit-identical to the run of "
          "one process")
    return different


def without_pictures(folder: Path) -> str:
    """A script that is train.py without its pictures."""
    path = folder / "train.py"
    path.write_text(f"import sys\nsys.path[0] = {str(Path(__file__).parent.parent)!r}\nimport train\n"
                    "train.plots.draw_all = lambda run: []\nsys.exit(train.main())\n")
    return str(path)


def damage(raw: bytes, other: bytes, random: random.Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return raw[: random.randrange(len(raw))]
    if kind == 1:
        at = random.randrange(len(raw))
        return raw[:at] + bytes([raw[at] ^ (1 << random.randrange(8))]) + raw[at + 1 :]
    if kind == 2:
        at, length = random.randrange(len(raw)), random.randrange(1, 64)
        return raw[:at] + random.randbytes(length) + raw[at + length :]
    if kind == 3:
        return random.randbytes(random.randrange(2000))
    return other


def corrupt(times: int, folder: Path, random: random.Random) -> int:
    """Returns how many damaged files were neither refused in one sentence nor harmless."""
    for name, seed in (("sound", "42"), ("other", "77")):
        assert in_child(train.main, [*SWEEP, "--seed", seed, "--data-seed", seed, "--out", str(folder / name)])[0] == 0
    cut = folder / "cut"  # killed in the middle: no manifest to help
    assert in_child(train.main, [*SWEEP, "--out", str(cut)], kill_at=cut / "policies/cql-a1-s42-d42.pt")[0] is None
    shutil.copytree(folder / "cut", folder / "finished")
    assert in_child(train.main, ["--resume", str(folder / "finished")])[0] == 0
    whole, sound = outcome(folder / "finished"), outcome(folder / "sound")
    refused = harmless = 0
    wrong = []
    for number in range(times):
        resume = random.random() < 0.5
        source = folder / ("cut" if resume else "sound")
        names = [p for p in source.rglob("*") if p.suffix in (".pt", ".npz", ".json") and p.name not in
                 (("evaluation.json", "manifest.json") if not resume else ())]
        target = random.choice(sorted(names)).relative_to(source)
        swapped = sorted((folder / "other").glob(f"{target.parent}/*{target.suffix}"))[0]
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        (work / target).write_bytes(damage((source / target).read_bytes(), swapped.read_bytes(), random))
        status, text = (in_child(train.main, ["--resume", str(work)]) if resume else in_child(evaluate.main, [str(work)]))
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        if status == 2 and len(lines) == 1:
            refused += 1
        elif status == 0 and outcome(work) == (whole if resume else sound):
            harmless += 1
        else:
            wrong.append(f"{target} ({'resume' if resume else 'evaluate'}): status {status}, {text[-300:]!r}")
            print(wrong[-1])
    print(f"{times} corruptions: {refused} refused in one sentence, {harmless} without effect, {len(wrong)} neither")
    return len(wrong)


def main(argv: list[str]) -> int:
    works = {"kill": kill, "sweep": partial(kill, settings=ABLATION), "ranks": ranks, "corrupt": corrupt}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.partition(":")[0])
    parser.add_argument("work", choices=works)
    parser.add_argument("times", type=int, help="kills, or files damaged")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and damages (default %(default)s)")
    parser.add_argument("--trainer", choices=TRAINERS, default="fast", help="of the runs (default %(default)s)")
    arguments = parser.parse_args(argv)
    for settings in (SWEEP, ABLATION):
        settings += ["--trainer", arguments.trainer]
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    plots.draw_all = lambda run: []  # pictures take most of the time and hold no state
    with tempfile.TemporaryDirectory() as folder:
        return 1 if works[arguments.work](arguments.times, Path(folder), random.Random(arguments.seed)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
