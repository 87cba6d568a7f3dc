"""This checkout's training against that of others, in turns: python -m benchmarks.versions CHECKOUT [CHECKOUT ...]

Each CHECKOUT is a folder with another version of this project. Printed are medians of member-updates per second over the
rounds with the smallest and largest, and the ratio of this checkout to each other one, taken round by round.
"""

import argparse
import itertools
import sys
import tempfile

from benchmarks.data import DataFiles
from benchmarks.session import ROOT, MeasuringError
from benchmarks.turns import Child, Spread, in_turns, ratios

WIDTHS, BATCHES, MEMBERS = (64, 256), (64, "full"), (1, 32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.partition(":")[0])
    parser.add_argument("checkouts", nargs="+", metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each measurement")
    parser.add_argument("--observation", choices=("coordinates", "index"), default="coordinates")
    arguments = parser.parse_args(argv)
    cases = [*itertools.product(MEMBERS, BATCHES, WIDTHS), (8, 64, 64)]
    print("members batch width   this checkout" + "".join(f"   {path}, ratio" for path in arguments.checkouts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = DataFiles(folder).path(arguments.observation, 10_000)
        for members, batch, width in cases:
            case = dict(algorithm="cql", observation=arguments.observation, members=members, batch=batch, width=width,
                        transitions=10_000, data=data)
            children = {path: Child(sys.executable, "benchmarks.case", case, path) for path in (str(ROOT), *arguments.checkouts)}
            try:
                found = {path: measured.column("rate") for path, measured in
                         in_turns(children, arguments.rounds, arguments.seconds).items()}
            except MeasuringError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            ours = found.pop(str(ROOT))
            print(f"{members:7} {batch:>5} {width:5}   {Spread.of(ours)}" + "".join(
                f"   {Spread.of(theirs)}, {ratios(ours, theirs)}" for theirs in found.values()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
