"""Large data sets: python -m benchmarks.large_data [--transitions 10000000] [--observation index coordinates]

How long loading and compressing so many transitions takes and how much memory (in a process of its own); and what full-batch
updates cost at 10^4 … so many transitions with the same distinct ones, measured in turns: the same.
"""

import argparse
import sys
import tempfile

from benchmarks.data import DataFiles
from benchmarks.case import Case, child_of
from benchmarks.session import MeasuringError
from benchmarks.turns import Child, Spread, in_turns, ratios

MEMBERS, WIDTH = 8, 256


def sizes_up_to(transitions: int) -> list[int]:
    """10^4, 10^5 … and the number itself."""
    found = [10**4]
    while found[-1] * 10 < transitions:
        found.append(found[-1] * 10)
    return found + [transitions] * (transitions > found[-1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_data", description=__doc__.partition(":")[0])
    parser.add_argument("--transitions", type=int, default=10**7, metavar="N")
    parser.add_argument("--observation", choices=("index", "coordinates"), nargs="+", default=["index", "coordinates"])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="X", help="of each measurement")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = DataFiles(folder)
        for observation in arguments.observation:
            try:
                report(files, observation, arguments.transitions, arguments.rounds, arguments.seconds)
            except MeasuringError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    return 0


def report(files: DataFiles, observation: str, transitions: int, rounds: int, seconds: float) -> None:
    paths = {size: files.path(observation, size) for size in sizes_up_to(transitions)}
    found = in_turns({0: Child(sys.executable, "benchmarks.loading", {"data": paths[max(paths)]})}, 0, 0)[0].ready
    print(f"{observation}: {found['transitions']:,} transitions, {found['distinct']:,} distinct; load "
          f"{found['load_seconds']:.2f} s, compress {found['compress_seconds']:.2f} s; peak memory {found['memory'] / 2**20:,.0f} "
          f"MiB, of which {found['memory_before'] / 2**20:,.0f} before loading")
    measured = in_turns({size: child_of(Case("cql", observation, MEMBERS, "full", WIDTH, size, path))
                         for size, path in paths.items()}, rounds, seconds)
    smallest = measured[min(measured)].column("rate")
    for size, one in measured.items():
        print(f"  full batch, {MEMBERS} members, {size:>12,} transitions: {Spread.of(one.column('rate'))} member-updates/s, "
              f"{ratios(one.column('rate'), smallest)} of the first line's")


if __name__ == "__main__":
    sys.exit(main())
