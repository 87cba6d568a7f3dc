"""What logging, exact curves and checkpoints take beside the updates: python -m benchmarks.cadence [--rounds N] [train.py's flags]

Trains as ``train.py`` does, with its default cadences unless flags say otherwise, into folders that are thrown away, and
compares the time inside the blocks of updates with that of the whole training (slices set up, log entries with their exact
curves, TensorBoard, checkpoints, policies).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.turns import Spread
from cql import config as settings
from cql.collect import datasets_for, environment_of
from cql.config import Config, ConfigError
from cql.dataset import DatasetError
from cql.runs import RunError, RunFolder
from cql.slice import Slice
from cql.training import train


def shares(config: Config, datasets: list) -> tuple[float, float]:
    """Seconds of training, and the share of them outside the blocks of updates."""
    inside, original = 0.0, Slice.block_of_updates

    def timed(self, start: int, end: int) -> None:
        nonlocal inside
        began = time.perf_counter()
        original(self, start, end)
        inside += time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(str(Path(folder) / "run"), config, datasets)
        Slice.block_of_updates = timed
        try:
            began = time.perf_counter()
            train(run, config, datasets, environment_of(datasets[0]))
            whole = time.perf_counter() - began
        finally:
            Slice.block_of_updates = original
    return whole, 1 - inside / whole


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cadence", description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    settings.add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        config = settings.from_arguments(arguments)
        datasets = datasets_for(config, settings.given(arguments))
        measured = [shares(config, datasets) for _ in range(arguments.rounds)]
    except (ConfigError, DatasetError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"training: {Spread.of([whole for whole, _ in measured])} s, outside the updates: "
          f"{Spread.of([100 * share for _, share in measured])} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
