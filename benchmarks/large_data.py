"""Prints what large data sets take: python -m benchmarks.large_data [--transitions 10000000] [--rounds 5] [--seconds 2]

For each kind of observation these are the time and peak memory of loading and compressing so many transitions, and
the rate of full-batch updates of 8 members at so many transitions against that at 10^4 with the same distinct ones,
measured in turns.
"""

import argparse
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.case import command, data_file
from benchmarks.measuring import in_turns, rates, ratios
from cql.dataset import OfflineDataset


def load_and_compress(path: str) -> str:
    start = time.perf_counter()
    dataset = OfflineDataset.load(path)
    loaded = time.perf_counter()
    compressed = dataset.compress()
    done = time.perf_counter()
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10
    return (f"{len(dataset):,} transitions, {len(compressed):,} distinct; load {loaded - start:.2f} s, "
            f"compress {done - loaded:.2f} s; peak memory {peak:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_data", description=__doc__.splitlines()[0])
    parser.add_argument("--transitions", type=int, default=10**7, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="X", help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for observation in ("index", "coordinates"):
            paths = {size: data_file(folder, observation, size) for size in (10**4, arguments.transitions)}
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                print(f"{observation}: {pool.submit(load_and_compress, paths[arguments.transitions]).result()}")
            found = in_turns({size: command(path) for size, path in paths.items()}, arguments.rounds, arguments.seconds)
            for size, answers in found.items():
                print(f"  {size:>12,} transitions: {rates(answers)} member-updates/s, "
                      f"{ratios(answers, found[10**4])} of the first line's")


if __name__ == "__main__":
    main()
