"""What logging, exact curves and checkpoints take beside the updates: python -m benchmarks.cadence [train.py's flags]

Trains as ``train.py`` does, with its default cadences unless flags say otherwise, into folders that are thrown away,
and compares the time inside the trainer, which sets itself up and updates, with that of the whole training (log entries
with their exact curves, TensorBoard, checkpoints, policies).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from benchmarks.turns import Spread
from cql import config as settings
from cql import training
from cql.collect import datasets_for, environment_of
from cql.config import Config, ConfigError
from cql.dataset import DatasetError
from cql.runs import RunError, RunFolder


def shares(config: Config, datasets: list) -> tuple[float, float]:
    """Seconds of training, and the share of them outside the trainer."""
    inside, trainer_for = 0.0, training.trainer_for

    def timed_trainer_for(config: Config, name: str):
        def updates(*arguments):
            nonlocal inside
            began = time.perf_counter()
            for block in trainer_for(config, name)(*arguments):
                inside += time.perf_counter() - began
                yield block
                began = time.perf_counter()
            inside += time.perf_counter() - began
        return updates

    with tempfile.TemporaryDirectory() as folder, patch.object(training, "trainer_for", timed_trainer_for):
        run = RunFolder.create(str(Path(folder) / "run"), config, datasets)
        began = time.perf_counter()
        training.train(run, config, datasets, environment_of(datasets[0]))
        whole = time.perf_counter() - began
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
    print(f"training: {Spread.of([whole for whole, _ in measured])} s, outside the trainer: "
          f"{Spread.of([100 * share for _, share in measured])} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
