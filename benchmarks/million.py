"""Prints how long a table takes from file to judged policy: python -m benchmarks.million [--rows 1000000]

A CSV of 20 features in 64-bit random numbers, episodes of 20 rows: ``data import``, ``data check``, and ``train.py``
with 20,000 updates of 256; of each the seconds by the clock and of processor time, and the largest memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import ROOT

FEATURES = [f"x{n}" for n in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**6, metavar="N")
    rows, random = parser.parse_args().rows, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        table, data = Path(folder, "table.csv"), Path(folder, "table.npz")
        with table.open("w") as file:
            file.write(",".join(["episode", "t", "action", "reward", *FEATURES]) + "\n")
            for n in range(rows):
                numbers = (f"{x!r}" for x in random.normal(size=21).tolist())
                file.write(f"{n // 20},{n % 20},{random.integers(4)},{','.join(numbers)}\n")
        print(f"{rows:,} rows, {table.stat().st_size / 1e6:.0f} MB")
        columns = ["--episode", "episode", "--step", "t", "--action", "action", "--reward", "reward"]
        steps = {"import": ["-m", "cql", "data", "import", table, "--to", data, *columns, "--features", *FEATURES],
                 "check": ["-m", "cql", "data", "check", data],
                 "train": ["train.py", "--dataset", data, "--out", Path(folder, "run"), "--alpha", "1",
                           "--steps", "20000", "--bc-steps", "0", "--lr", "3e-4", "--batch-size", "256"]}
        for name, command in steps.items():
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            print(f"{name:7} {time.perf_counter() - start:5.0f} s, {used.ru_utime + used.ru_stime:5.0f} s of processor "
                  f"time, {used.ru_maxrss / 2**20:.2f} GiB, exit status {process.returncode}", flush=True)


if __name__ == "__main__":
    main()
