"""Updates per second, the machine's own limits and the peers: python -m benchmarks.throughput [--quick] [--out FOLDER]

Every case trains as ``train.py`` does (``cql.slice.Slice``), in a process of its own, for a few seconds in each of several
rounds; the machine's rate for just the matrix products of that update, and its copy bandwidth, are measured around it. "of
bmm" is the share of ``torch.bmm``'s rate which the products of the training reach, "of products" that of the fastest known
here (``benchmarks.floor``), "of floor" the larger of the two lower bounds on an update's time (operations at that rate, bytes
at the copy bandwidth) over the time it takes. Operations are those of reading every transition of the batch: the training
reads equal observations once, so that shares above 1 are possible. Shown are medians over the rounds with the smallest and
largest; ratios are taken round by round.

With --precision float32 bfloat16 the table holds both, measured in turns, and their ratio.

Peers are measured in the same rounds by interpreters that have them: --peer d3rlpy=PATH/bin/python --peer jax=PATH/bin/python
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import throughput_plot
from benchmarks.case import Case, child_of
from benchmarks.data import DataFiles
from benchmarks.session import MeasuringError
from benchmarks.turns import Child, Measured, Spread, in_turns, ratios
from cql.config import batch_size
from cql.files import write_whole
from cql.products import PRECISIONS
from cql.runs import RunError
from cql.training import refuse_precision, resolve_device

TRANSITIONS = [10**4, 10**5, 10**6, 10**7]  # the first: of all that is not about their number
FULL, QUICK = (5, 2.0), (2, 0.3)  # rounds, and seconds of each measurement
SWEEP_MEMBERS, SWEEP_BATCH = 8, 64  # of the plots against batch, width and number of transitions
BATCHES, WIDTHS = (16, 64, 256, 1024), (32, 64, 128, 256, 512)
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
COLUMNS = (("", 46), ("member-updates/s", 24), ("GFLOP/s", 20), ("of bmm", 20), ("of products", 20), ("of floor", 20), ("peak MiB", 9))


def row(case: Case, measured: Measured) -> dict:
    """What the table says of one case, JSON-able."""
    ready, rounds = measured.ready, measured.rounds
    floors = [max(ready["operations"] / answer["products"], ready["bytes"] / answer["copy"]) for answer in rounds]  # seconds
    achieved = [answer["rate"] * ready["product_operations"] for answer in rounds]
    return {**case._asdict(), **ready, "rounds": rounds,
            "member_updates_per_second": Spread.of(measured.column("rate"))._asdict(),
            "gflops": Spread.of([value / 1e9 for value in achieved])._asdict(),
            "of_bmm": ratios(achieved, measured.column("bmm"))._asdict(),
            "of_products": ratios(achieved, measured.column("products"))._asdict(),
            "of_floor": Spread.of([answer["rate"] * floor for answer, floor in zip(rounds, floors)])._asdict()}


def name_of(case: Case) -> str:
    return f"{case.algorithm.upper()} {case.observation} M={case.members} B={case.batch}"


def line(found: dict) -> str:
    case = Case(*(found[name] for name in Case._fields))
    about = (name_of(case) + f" {case.precision}" * (case.precision != "float32") + f" w={case.width}" * (case.width != 256)
             + f" D={case.transitions:,}" * (case.transitions != TRANSITIONS[0]))
    cells = [about, *(Spread(**found[name]) for name in ("member_updates_per_second", "gflops", "of_bmm", "of_products", "of_floor")),
             f"{found['peak_memory'] / 2**20:,.0f}"]
    return "".join(f"{cell!s:<{width}}" for cell, (_, width) in zip(cells, COLUMNS)).rstrip()


class Cases:
    """The cases of a run of this command on one device and kind of observation."""

    def __init__(self, files: DataFiles, device: str):
        self.files, self.device = files, device

    def one(self, algorithm: str, observation: str, members: int, batch: int | str, width: int = 256,
            transitions: int = TRANSITIONS[0], precision: str = "float32") -> Case:
        return Case(algorithm, observation, members, batch, width, transitions, self.files.path(observation, transitions),
                    self.device, precision)

    def grid(self, observation: str, members: list[int], batches: list[int | str], precisions: list[str]) -> list[list[Case]]:
        """Against members, one group per algorithm and batch."""
        return [[self.one(algorithm, observation, m, b, precision=p) for m in members for p in precisions]
                for algorithm in ("cql", "bc") for b in batches]

    def sweeps(self, observation: str, transitions: list[int]) -> list[list[Case]]:
        """Cost against batch, width and number of transitions, in groups."""
        m, b = SWEEP_MEMBERS, SWEEP_BATCH
        return [[self.one("cql", observation, m, batch) for batch in BATCHES],
                [self.one("cql", observation, m, b, width=width) for width in WIDTHS],
                *([self.one("cql", observation, m, batch, transitions=size) for size in transitions] for batch in (b, "full"))]

    def compared(self) -> list[Case]:
        """What the goals speak of, on coordinates as the peers have them, and on indices beside."""
        return [self.one(algorithm, observation, members, batch) for observation in ("coordinates", "index")
                for algorithm, members, batch in COMPARED]


def peer_children(peers: dict[str, str], cases: Cases) -> dict[str, Child]:
    """``peers``: name -> interpreter."""
    shared = {"data": cases.files.path("coordinates", TRANSITIONS[0]), "batch": 64, "width": 256, "device": cases.device}
    return {key: Child(interpreter, PEERS[name][0], shared | settings) for name, interpreter in peers.items()
            for key, settings in PEERS[name][1].items()}


def compare(cases: Cases, peers: dict[str, str], rounds: int, seconds: float) -> dict:
    """All that the goals speak of, measured in turns; prints it. JSON-able."""
    ours, theirs = {case: child_of(case) for case in cases.compared()}, peer_children(peers, cases)
    measured = in_turns(ours | theirs, rounds, seconds)
    found = {"cases": [row(case, measured[case]) for case in ours], "peers": [], "ratios": []}
    _heading()
    for entry in found["cases"]:
        print(line(entry))
    for key in theirs:
        rate = Spread.of(measured[key].column("rate"))
        found["peers"].append({"name": key, **measured[key].ready, "member_updates_per_second": rate._asdict()})
        print(f"{key:<{COLUMNS[0][1]}}{rate}")
    for case in ours:
        for key in COMPARED[case.algorithm, case.members, case.batch]:
            if key in theirs:
                ratio = ratios(measured[case].column("rate"), measured[key].column("rate"))
                found["ratios"].append({"ours": name_of(case), "peer": key, **ratio._asdict()})
                print(f"{name_of(case):<{COLUMNS[0][1]}}{ratio} times {key}")
    return found


def measure_groups(groups: list[list[Case]], rounds: int, seconds: float) -> list[list[dict]]:
    """Each group in turns; prints it as it is done. What cannot be measured (for want of memory) is left out, and said so."""
    found = []
    for group in groups:
        try:
            measured = in_turns({case: child_of(case) for case in group}, rounds, seconds)
        except MeasuringError as error:
            if len(group) > 1:  # the others can
                found.append([entry for one in measure_groups([[case] for case in group], rounds, seconds) for entry in one])
            else:
                print(f"{name_of(group[0]):<{COLUMNS[0][1]}}not measured: {error}", flush=True)
            continue
        found.append([row(case, measured[case]) for case in group])
        print(*map(line, found[-1]), sep="\n", flush=True)
        for case in group:
            first = case._replace(precision=group[0].precision)
            if case != first:
                ratio = ratios(measured[case].column("rate"), measured[first].column("rate"))
                print(f"{name_of(case) + ' ' + case.precision:<{COLUMNS[0][1]}}{ratio} times {first.precision}", flush=True)
    return found


def machine(device: torch.device) -> dict:
    info = Path("/proc/cpuinfo")
    names = [text.partition(":")[2].strip() for text in info.read_text().splitlines() if text.startswith("model name")] \
        if info.exists() else []
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(), "python": platform.python_version(), "device": str(device),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="short measurements of fewer cases, to see that it works")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--observation", choices=("coordinates", "index"), default="coordinates", help="of the table and plots")
    parser.add_argument("--members", type=int, nargs="+", metavar="M", help="default 1 8 64 512, on a GPU 4096 too")
    parser.add_argument("--batch", type=batch_size, nargs="+", default=[64, 256, "full"], metavar="B", help="default 64 256 full")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["float32"], help="of the table, in turns; default float32")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="d3rlpy= or jax= and an interpreter")
    parser.add_argument("--only", choices=("comparison", "table"), help="leave the other part out")
    parser.add_argument("--out", metavar="FOLDER", help="write throughput.json and throughput.png there")
    arguments = parser.parse_args(argv)
    rounds, seconds = QUICK if arguments.quick else FULL
    try:
        device = resolve_device(arguments.device)
        for precision in arguments.precision:
            refuse_precision(precision, device)
        peers = _peers(arguments.peer)
        members = arguments.members or ([1, 8] if arguments.quick else [1, 8, 64, 512] + [4096] * (device.type == "cuda"))
        if min(members) < 1 or any(batch != "full" and batch < 1 for batch in arguments.batch):
            raise ValueError("--members and --batch must be at least 1.")
        if arguments.out is not None:
            Path(arguments.out).mkdir(exist_ok=True)
    except (RunError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {"machine": machine(device), "comparison": None, "table": [], "sweeps": []}
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items() if value is not None))
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(DataFiles(folder), device.type)
        try:
            if arguments.only != "table":
                found["comparison"] = compare(cases, peers, rounds, seconds)
        except MeasuringError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if arguments.only != "comparison":
            _heading()
            table = measure_groups(cases.grid(arguments.observation, members, arguments.batch, arguments.precision), rounds, seconds)
            found["table"] = [entry for group in table for entry in group]
            if not arguments.quick:
                found["sweeps"] = measure_groups(cases.sweeps(arguments.observation, TRANSITIONS), rounds, seconds)
    if arguments.out is not None:
        write_whole(Path(arguments.out) / "throughput.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
        if found["table"]:
            throughput_plot.draw(found, str(Path(arguments.out) / "throughput.png"))
    return 0


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
