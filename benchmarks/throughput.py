"""Updates per second, the machine's own limits and the peers: python -m benchmarks.throughput [--quick]

Every case trains as ``train.py`` does, in a process of its own, for a few seconds in each of several rounds; the
machine's rate for just the matrix products of that update, and its copy bandwidth, are measured around it
(``benchmarks.floor``). "of bmm" is the share of ``torch.bmm``'s rate which the products of the training reach, "of
floor" the larger of the two lower bounds on an update's time (operations at that rate, bytes at the copy bandwidth)
over the time it takes. Operations are those of reading every transition of the batch: the engine reads equal
observations once, so that shares above 1 are possible. Shown are medians over the rounds with the smallest and largest;
ratios are taken round by round.

With --trainer fast plain the table holds both, measured in turns, and their ratio.

Peers are measured in the same rounds by interpreters that have them, given as --peer d3rlpy=PATH/bin/python and
--peer jax=PATH/bin/python.
"""

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.case import Case, child_of
from benchmarks.data import DataFiles
from benchmarks.session import MeasuringError
from benchmarks.turns import Child, Measured, Spread, in_turns, ratios
from cql.config import TRAINERS, batch_size
from cql.device import resolve_device
from cql.runs import RunError

WIDTH, TRANSITIONS = 256, 10**4
FULL, QUICK = (5, 2.0), (2, 0.3)  # rounds, and seconds of each measurement
PEERS = {  # name -> module and its variants: key -> settings
    "d3rlpy": ("benchmarks.peer_d3rlpy", {"d3rlpy DiscreteCQL": {"algorithm": "cql", "threads": None},
                                          "d3rlpy DiscreteCQL, 1 thread": {"algorithm": "cql", "threads": 1},
                                          "d3rlpy DiscreteBC": {"algorithm": "bc", "threads": None},
                                          "d3rlpy DiscreteBC, 1 thread": {"algorithm": "bc", "threads": 1}}),
    "jax": ("benchmarks.peer_jax", {"JAX scan CQL": {"algorithm": "cql", "members": 1},
                                    "JAX scan BC": {"algorithm": "bc", "members": 1},
                                    "JAX vmap 32 CQL": {"algorithm": "cql", "members": 32}})}
COMPARED = {  # (algorithm, members, batch) -> the peers it stands against
    ("cql", 1, 64): ("d3rlpy DiscreteCQL", "d3rlpy DiscreteCQL, 1 thread", "JAX scan CQL"),
    ("bc", 1, 64): ("d3rlpy DiscreteBC", "d3rlpy DiscreteBC, 1 thread", "JAX scan BC"),
    ("cql", 32, 64): ("d3rlpy DiscreteCQL", "d3rlpy DiscreteCQL, 1 thread", "JAX vmap 32 CQL"), ("cql", 32, "full"): ()}
COLUMNS = (("", 46), ("member-updates/s", 24), ("GFLOP/s", 20), ("of bmm", 24), ("of floor", 24), ("peak MiB", 9))


def name_of(case: Case) -> str:
    return f"{case.algorithm.upper()} {case.observation} M={case.members} B={case.batch}"


def row(case: Case, measured: Measured) -> str:
    """The line of the table."""
    ready, rounds = measured.ready, measured.rounds
    floors = [max(ready["operations"] / answer["bmm"], ready["bytes"] / answer["copy"]) for answer in rounds]  # seconds
    achieved = [answer["rate"] * ready["product_operations"] for answer in rounds]
    cells = [name_of(case) + f" {case.trainer}" * (case.trainer != "fast"), Spread.of(measured.column("rate")),
             Spread.of([value / 1e9 for value in achieved]), ratios(achieved, measured.column("bmm")),
             Spread.of([answer["rate"] * floor for answer, floor in zip(rounds, floors)]),
             f"{ready['peak_memory'] / 2**20:,.0f}"]
    return "".join(f"{cell!s:<{width}}" for cell, (_, width) in zip(cells, COLUMNS)).rstrip()


class Cases:
    """The cases of a run of this command on one device."""

    def __init__(self, files: DataFiles, device: str):
        self.files, self.device = files, device

    def one(self, algorithm: str, observation: str, members: int, batch: int | str, trainer: str = "fast") -> Case:
        return Case(algorithm, observation, members, batch, WIDTH, TRANSITIONS,
                    self.files.path(observation, TRANSITIONS), self.device, trainer)

    def grid(self, observation: str, members: list[int], batches: list, trainers: list[str]) -> list[list[Case]]:
        """Against members, one group per algorithm and batch."""
        return [[self.one(algorithm, observation, m, b, trainer) for m in members for trainer in trainers]
                for algorithm in ("cql", "bc") for b in batches]

    def compared(self) -> list[Case]:
        """What the goals speak of, on coordinates as the peers have them, and on indices beside."""
        return [self.one(algorithm, observation, members, batch) for observation in ("coordinates", "index")
                for algorithm, members, batch in COMPARED]

    def peers(self, interpreters: dict[str, str]) -> dict[str, Child]:
        """``interpreters``: name of a peer -> its interpreter."""
        shared = {"data": self.files.path("coordinates", TRANSITIONS), "batch": 64, "width": WIDTH,
                  "device": self.device}
        return {key: Child(interpreter, PEERS[name][0], shared | settings) for name, interpreter in interpreters.items()
                for key, settings in PEERS[name][1].items()}


def compare(ours: list[Case], theirs: dict[str, Child], rounds: int, seconds: float) -> None:
    """Measures all that the goals speak of in turns, and prints it."""
    measured = in_turns({case: child_of(case) for case in ours} | theirs, rounds, seconds)
    _heading()
    for case in ours:
        print(row(case, measured[case]))
    for key in theirs:
        _print(key, Spread.of(measured[key].column("rate")))
    for case in ours:
        for key in COMPARED[case.algorithm, case.members, case.batch]:
            if key in theirs:
                ratio = ratios(measured[case].column("rate"), measured[key].column("rate"))
                _print(name_of(case), f"{ratio} times {key}")


def measure_groups(groups: list[list[Case]], rounds: int, seconds: float) -> None:
    """Measures each group in turns, and prints it as it is done.

    What cannot be measured (for want of memory) is left out, and said so.
    """
    for group in groups:
        try:
            measured = in_turns({case: child_of(case) for case in group}, rounds, seconds)
        except MeasuringError as error:
            if len(group) > 1:  # the others can
                measure_groups([[case] for case in group], rounds, seconds)
            else:
                _print(name_of(group[0]), f"not measured: {error}")
            continue
        print(*(row(case, measured[case]) for case in group), sep="\n", flush=True)
        for case in group:
            first = case._replace(trainer=group[0].trainer)
            if case != first:
                ratio = ratios(measured[case].column("rate"), measured[first].column("rate"))
                _print(f"{name_of(case)} {case.trainer}", f"{ratio} times {first.trainer}")


def machine(device: torch.device) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return (f"cpu {names[0] if names else platform.processor()}, cores {os.cpu_count()}, torch {torch.__version__}, "
            f"torch_threads {torch.get_num_threads()}, python {platform.python_version()}, device {device}"
            + (f", gpu {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="short measurements of fewer cases, to see that it works")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--observation", choices=("coordinates", "index"), default="coordinates", help="of the table")
    parser.add_argument("--members", type=int, nargs="+", metavar="M", help="default 1 8 64 512, on a GPU 4096 too")
    parser.add_argument("--batch", type=batch_size, nargs="+", default=[64, 256, "full"], metavar="B",
                        help="default 64 256 full")
    parser.add_argument("--trainer", choices=TRAINERS, nargs="+", default=["fast"], help="of the table; default fast")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON",
                        help="d3rlpy= or jax= and an interpreter")
    parser.add_argument("--only", choices=("comparison", "table"), help="leave the other part out")
    arguments = parser.parse_args(argv)
    rounds, seconds = QUICK if arguments.quick else FULL
    try:
        device = resolve_device(arguments.device)
        peers = _peers(arguments.peer)
        members = arguments.members or (
            [1, 8] if arguments.quick else [1, 8, 64, 512] + [4096] * (device.type == "cuda"))
        if min(members) < 1 or any(batch != "full" and batch < 1 for batch in arguments.batch):
            raise ValueError("--members and --batch must be at least 1.")
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(machine(device))
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(DataFiles(folder), device.type)
        try:
            if arguments.only != "table":
                compare(cases.compared(), cases.peers(peers), rounds, seconds)
        except MeasuringError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if arguments.only != "comparison":
            _heading()
            groups = cases.grid(arguments.observation, members, arguments.batch, arguments.trainer)
            measure_groups(groups, rounds, seconds)
    return 0


def _print(name: str, value: Spread | str) -> None:
    print(f"{name:<{COLUMNS[0][1]}}{value}", flush=True)


def _heading() -> None:
    print("\n" + "".join(f"{name:<{width}}" for name, width in COLUMNS).rstrip(), flush=True)


def _peers(texts: list[str]) -> dict[str, str]:
    """Raises ValueError, one sentence, for a name or an interpreter that is not there."""
    peers = dict(text.partition("=")[::2] for text in texts)
    for name, interpreter in peers.items():
        if name not in PEERS:
            raise ValueError(f"--peer {name}: known peers are {', '.join(PEERS)}.")
        if not os.access(interpreter, os.X_OK):
            raise ValueError(f"--peer {name}={interpreter}: there is no interpreter.")
    return {name: os.path.abspath(interpreter) for name, interpreter in peers.items()}


if __name__ == "__main__":
    sys.exit(main())
