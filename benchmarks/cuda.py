"""Measures what a CUDA device does with this project: python -m benchmarks.cuda --minutes 8 --out FOLDER

Nothing is downloaded. Every part runs in a process of its own, since an error on the device spoils all that follows in
its process; what it finds is printed and appended to FOLDER/cuda.jsonl at once. In this order, as far as the minutes
go:

machine   the device, its copy rate, the smallest kernel in a graph
check     trained on the device against the CPU; again, without graphs and after an interruption: bit for bit
speed     member-updates per second and memory
switches  the same with one thing turned off
profile   the kernels of an update
jax       the same updates in JAX, where it is installed
jobs      train.py from end to end on device and CPU, the ablation of 352 members

At the end all of it is printed as tables.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.case import blocks, data_file
from benchmarks.measuring import ROOT, Command, in_turns, rate
from cql.collect import datasets_for
from cql.config import Config
from cql.device import torch_settings
from cql.engine import cohort, passes
from cql.engine.steps import PYTORCH
from cql.members import slices
from cql.sampling import Transitions
from cql.text import aligned
from cql.training import Slice

WIDE = dict(observation="coordinates", hidden=(256, 256), batch_size=64)
ALPHAS = [0, 0.01, 0.1, 0.3, 1, 3, 6, 10, 20, 50, 200]
ABLATION = dict(alpha=ALPHAS, num_seeds=2, num_datasets=16)
SPEED = {  # name -> settings; names that begin with BC train BC
    "one agent": {}, "ablation, 352 members": ABLATION, "1,024 members, 256-256, batch 64": WIDE | dict(num_seeds=1024),
    "1,024 members": dict(num_seeds=1024), "BC, one agent": {}, "one agent, batch 64": dict(batch_size=64),
    "one agent, 256-256, batch 64": WIDE, "64 members, 256-256, batch 64": WIDE | dict(num_seeds=64),
    "ablation, slices of 64": ABLATION | dict(slice_size=64),
    "1,024 members, 256-256, full batch": WIDE | dict(num_seeds=1024, batch_size="full"),
    "4,096 members, 256-256, batch 64": WIDE | dict(num_seeds=4096)}
SWITCHED = list(SPEED)[:3]
SWITCHES = ["without Triton", "without graphs", "short blocks", "PyTorch's sums", "float32 units"]
MINIBATCH, COORDINATES, LEARNED, DOUBLE = (dict(batch_size=64), dict(observation="coordinates"),
                                           dict(penalty_threshold=1.3), dict(double_q=True))
CHECKS = {"index": {}, "index, batch 64": MINIBATCH, "coordinates": COORDINATES,
          "coordinates, batch 64": COORDINATES | MINIBATCH, "half_mse": dict(td_loss="half_mse"), "double Q": DOUBLE,
          "double Q, batch 64": DOUBLE | MINIBATCH, "learned alpha": LEARNED, "learned, batch 64": LEARNED | MINIBATCH,
          "learned, double Q": LEARNED | DOUBLE, "linear": dict(hidden=(0,)),
          "linear, batch 64": dict(hidden=(0,)) | MINIBATCH, "256-256, batch 64": WIDE, "two data sets":
          dict(num_datasets=2), "BC, index": {}, "BC, coordinates, batch 64": COORDINATES | MINIBATCH}
UPDATES = 300  # of a check
# |Q - Q on the CPU| / |Q|, the members' median and largest: where a ReLU is about to change its side, the last
# bit of a product decides, and a member goes another way (on a CPU as well, from weights that differ by 1e-7)
LARGEST_MEDIAN, LARGEST_ERROR = 1e-3, 0.1


def say(part: str, name: str, **facts) -> None:
    print(json.dumps({"part": part, "name": name} | facts), flush=True)


def slice_on(device: torch.device, name: str, settings: dict) -> Slice:
    """A slice as ``cql.training`` makes it, of BC if the name begins with BC, else of CQL."""
    config = Config(**{"slice_size": 4096, "episodes": 500, "log_every": 10**5, "steps": 10**5, "bc_steps": 10**5}
                    | settings)
    datasets = datasets_for(config, {})
    group = next(group for group in slices(config) if (group[0].algorithm == "bc") == name.startswith("BC"))
    transitions = {group[0].algorithm: Transitions(datasets, device, config.full_batch)}
    return Slice(config, group, datasets, transitions, None)


def machine(device: torch.device) -> None:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    say("machine", properties.name, multiprocessors=properties.multi_processor_count, total_gib=total / 2**30,
        free_gib=free / 2**30, torch=torch.__version__, cuda=torch.version.cuda, cpus=os.cpu_count())
    source, target = (torch.rand(2**29, device=device) for _ in range(2))
    copies = {"copy": partial(target.copy_, source), "copy by a kernel": partial(torch.neg, source, out=target)}
    for name, work in copies.items():
        seconds = min(replayed(work, device, 0.2) for _ in range(3))
        say("machine", f"{name}, read and written", bytes_per_second=2 * source.numel() * 4 / seconds)
    small = torch.zeros(64, device=device)
    seconds = replayed(lambda: [small.add_(1) for _ in range(500)], device) / 500
    say("machine", "smallest kernel in a graph", microseconds=1e6 * seconds)


def replayed(work, device: torch.device, seconds: float = 0.3) -> float:
    """Seconds of ``work``, captured and replayed."""
    work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> int:
        graph.replay()
        return 1
    rate(replay, seconds / 3, partial(torch.cuda.synchronize, device))
    return 1 / rate(replay, seconds, partial(torch.cuda.synchronize, device))


@torch.no_grad()
def check(device: torch.device, name: str) -> None:
    """Trains a few members for some hundred updates in five ways and compares."""
    settings = {"alpha": (1.0, 6.0), "num_seeds": 8, "episodes": 100, "target_interval": 50, "log_every": 120,
                **CHECKS[name]}

    def trained(device: torch.device, interrupted: bool = False, graphs: bool = True):
        part, sums = slice_on(device, name, settings), 0
        with patch.object(cohort, "Graphs", cohort.Graphs if graphs else lambda record: None):
            for end in (UPDATES // 2, UPDATES) if interrupted else (UPDATES,):
                for step, state, terms in part.updates(1):
                    sums = sums + torch.stack(terms).double().cpu()
                    if step == end:
                        part.step, part.state = step, state
                        break
        table = part.transitions.observations
        q = part.network.q_values(part.state.parameters, table.expand(len(part.members), *table.shape))
        tensors = [tensor.cpu() for field in part.state for tensor in (field if isinstance(field, list) else [field])]
        return q.cpu(), tensors, sums

    def same(first, second) -> bool:
        return all(map(torch.equal, first[1], second[1])) and torch.equal(first[2], second[2])

    with torch_settings(device):
        ours, again = trained(device), trained(device)
        eager, resumed = trained(device, graphs=False), trained(device, interrupted=True)
    with torch_settings(torch.device("cpu")):
        reference = trained(torch.device("cpu"))
    errors = ((ours[0] - reference[0]).flatten(1).norm(dim=1) / reference[0].flatten(1).norm(dim=1)).tolist()
    median, largest = statistics.median(errors), max(errors)
    facts = {"again": same(ours, again), "without graphs": same(ours, eager), "resumed": same(ours, resumed)}
    say("check", name, ok=median < LARGEST_MEDIAN and largest < LARGEST_ERROR and all(facts.values()), median=median,
        largest=largest, **facts)


@contextlib.contextmanager
def switched(name: str):
    with contextlib.ExitStack() as stack:
        if name == "without Triton":
            stack.enter_context(patch.object(cohort, "steps_on", lambda device: PYTORCH))
        if name == "without graphs":
            stack.enter_context(patch.object(cohort, "Graphs", lambda record: None))
        if name == "short blocks":
            stack.enter_context(patch.object(cohort, "CUDA_BLOCK_VALUES", cohort.BLOCK_VALUES))
        if name == "PyTorch's sums":
            found = passes.steps_on(torch.device("cuda"))._replace(sum_by_pair=PYTORCH.sum_by_pair)
            stack.enter_context(patch.object(cohort, "steps_on", lambda device: found))
        if name == "float32 units":
            from cql.engine import kernels
            stack.enter_context(patch.object(kernels, "PRECISION", "ieee"))
        yield


def speed(device: torch.device, name: str, switch: str = "") -> None:
    with switched(switch), torch_settings(device):
        synchronise = partial(torch.cuda.synchronize, device)
        part = slice_on(device, name, SPEED[name])
        members, updates = len(part.members), blocks(part, 1)
        began = time.perf_counter()
        for _ in range(3):
            next(updates)
        synchronise()
        first = time.perf_counter() - began
        rates = [members * rate(partial(next, updates), 0.3, synchronise) for _ in range(4)][1:]
        say("switches" if switch else "speed", f"{name}, {switch}" if switch else name, members=members,
            member_updates_per_second=statistics.median(rates), lowest=min(rates), highest=max(rates),
            microseconds_per_update=1e6 * members / statistics.median(rates), first_blocks_seconds=first,
            peak_gib=torch.cuda.max_memory_allocated(device) / 2**30)


def profile(device: torch.device, name: str) -> None:
    with torch_settings(device), patch.object(cohort, "Graphs", lambda record: None):
        part = slice_on(device, name, SPEED[name])
        updates = blocks(part, 1)
        next(updates)
        torch.cuda.synchronize(device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            done = next(updates)
            torch.cuda.synchronize(device)
    kernels = sorted((event for event in found.key_averages() if event.self_device_time_total > 0),
                     key=lambda event: -event.self_device_time_total)
    say("profile", name, updates=done, kernels_per_update=sum(event.count for event in kernels) / done,
        microseconds_per_update=sum(event.self_device_time_total for event in kernels) / done,
        top=[[event.key[:100], event.count / done, event.self_device_time_total / done] for event in kernels[:25]])


def child(device: torch.device, jobs: list) -> None:
    """What a process of its own does: ``jobs`` are names of the functions above with their arguments."""
    for number, (function, *arguments) in enumerate(jobs):
        print(json.dumps({"starts": number}), flush=True)
        try:
            globals()[function](device, *arguments)
        except Exception as error:
            say(function, " ".join(arguments), ok=False, error=str(error)[:300], trace=traceback.format_exc()[-1000:])
            if "CUDA" in str(error):
                sys.exit(3)  # nothing on the device can be trusted any more


class Report:
    """What the parts found, in FOLDER/cuda.jsonl and on the screen."""

    def __init__(self, folder: Path, minutes: float, device: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device, self.lock = folder, device, threading.Lock()
        self.end = time.monotonic() + 60 * minutes
        self.facts: list[dict] = []

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def add(self, facts: dict) -> None:
        with self.lock:
            self.facts.append(facts)
            with open(self.folder / "cuda.jsonl", "a") as file:
                file.write(json.dumps(facts) + "\n")
            print({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in facts.items()
                   if key not in ("top", "trace")}, flush=True)

    def run(self, jobs: list, limit: float = 120) -> None:
        """The jobs in one process; where it dies, the rest of them in another."""
        while jobs:
            if self.left < 10:
                return self.add({"part": "left out", "name": f"{len(jobs)} of {jobs[0][0]}, for want of time"})
            words = [sys.executable, "-m", "benchmarks.cuda", "--device", self.device, "--child", json.dumps(jobs)]
            process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            timer = threading.Timer(min(limit, self.left), process.kill)
            timer.start()
            at = 0
            for line in process.stdout or ():
                facts = json.loads(line) if line.startswith("{") else {}
                if "starts" in facts:
                    at = facts["starts"]
                elif facts:
                    self.add(facts)
            if process.wait() not in (0, 3):
                self.add({"part": "died", "name": " ".join(jobs[at]), "status": process.returncode, "ok": False})
            timer.cancel()
            jobs = jobs[at + 1 :]

    def command(self, name: str, *words: str) -> None:
        if self.left < 20:
            return self.add({"part": "left out", "name": name})
        began = time.monotonic()
        try:
            done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=self.left)
            status, text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, text = -1, "out of time"
        facts = {"part": "jobs", "name": name, "seconds": time.monotonic() - began, "ok": status == 0}
        if "--out" in words and status == 0:
            manifest = json.loads((Path(words[words.index("--out") + 1]) / "manifest.json").read_text())
            facts["training_seconds"] = manifest["training_seconds"]
        self.add(facts if status == 0 else facts | {"trace": text[-1500:]})

    def tables(self) -> None:
        """Prints a table of each part."""
        for part in dict.fromkeys(facts["part"] for facts in self.facts):
            rows = [facts for facts in self.facts if facts["part"] == part]
            columns = [key for key in dict.fromkeys(key for row in rows for key in row)
                       if key not in ("part", "trace", "top")]
            cells = [[shown(row.get(column, "")) for column in columns] for row in rows]
            print("\n".join(["", part, *aligned([columns, *cells])]))


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", default="cuda", metavar="FOLDER")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="+", default=["machine", "check", "speed", "switches", "profile",
                                                             "jax", "jobs"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(torch.device(arguments.device), json.loads(arguments.child))
        return 0
    report = Report(Path(arguments.out), arguments.minutes, arguments.device)
    if "machine" in arguments.only:
        report.run([("machine",)])
    if "check" in arguments.only:
        names = list(CHECKS)
        with ThreadPoolExecutor(8) as pool:  # mostly Python on the host: they share the device
            list(pool.map(lambda first: report.run([("check", name) for name in names[first::8]]), range(8)))
    if "speed" in arguments.only:
        report.run([("speed", name) for name in SPEED])
    if "switches" in arguments.only:
        for switch in SWITCHES:
            report.run([("speed", name, switch) for name in SWITCHED])
    if "profile" in arguments.only:
        report.run([("profile", name) for name in SWITCHED])
    if "jax" in arguments.only:
        jax(report)
    if "jobs" in arguments.only:
        jobs(report)
    report.tables()
    return 0 if all(facts.get("ok", True) for facts in report.facts) else 1


def jax(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = data_file(folder, "coordinates")
        for members in (1, 1024):
            settings = {"algorithm": "cql", "members": members, "data": data, "batch": 64, "width": 256}
            with contextlib.suppress(SystemExit):  # JAX is not there
                found = in_turns({0: Command(sys.executable, "benchmarks.peer_jax", settings)}, 3, 1.0)[0]
                rates = [answer["rate"] for answer in found]
                precision = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "default")
                report.add({"part": "jax", "name": f"256-256, batch 64, {members} members, {precision}",
                            "member_updates_per_second": statistics.median(rates), "lowest": min(rates),
                            "highest": max(rates)})


def jobs(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report.command("train.py", "train.py", "--device", report.device, "--out", f"{folder}/default")
        report.command("evaluate.py --audit of it", "evaluate.py", f"{folder}/default", "--audit")
        report.command("ablation, 352 members of 20,000 updates", "train.py", "--device", report.device, "--alpha",
                       *map(str, ALPHAS), "--num-seeds", "2", "--num-datasets", "16", "--steps", "20000", "--bc-steps",
                       "0", "--out", f"{folder}/ablation")
        report.command("train.py on the CPU", "train.py", "--device", "cpu", "--out", f"{folder}/cpu")


if __name__ == "__main__":
    sys.exit(main())
