"""Prints this checkout's training speed against that of others: python -m benchmarks.versions CHECKOUT [CHECKOUT ...]

Each CHECKOUT is a folder with another version of this project. Printed are medians of member-updates per second over
the rounds, measured in turns, with the smallest and largest, and the ratio of this checkout to each other one, round
by round.
"""

import argparse
import itertools
import tempfile

from benchmarks.case import command, data_file
from benchmarks.measuring import ROOT, in_turns, rates, ratios

WIDTHS, BATCHES, MEMBERS = (64, 256), (64, "full"), (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each measurement")
    arguments = parser.parse_args()
    print("members batch width   this checkout" + "".join(f"   {path}, ratio" for path in arguments.checkouts))
    with tempfile.TemporaryDirectory() as folder:
        data = data_file(folder, "coordinates")
        for members, batch, width in [*itertools.product(MEMBERS, BATCHES, WIDTHS), (8, 64, 64)]:
            # older versions ask for the kind of observation and the number of transitions too
            case = command(data, "cql", members, batch, width, observation="coordinates", transitions=10**4)
            found = in_turns({path: case._replace(checkout=path) for path in (ROOT, *arguments.checkouts)},
                             arguments.rounds, arguments.seconds)
            ours = found.pop(ROOT)
            print(f"{members:7} {batch:>5} {width:5}   {rates(ours)}" + "".join(
                f"   {rates(theirs)}, {ratios(ours, theirs)}" for theirs in found.values()), flush=True)


if __name__ == "__main__":
    main()
