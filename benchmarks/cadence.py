"""Prints what logs, exact curves and checkpoints take beside the updates: python -m benchmarks.cadence

Trains as ``train.py`` does and takes its flags, into folders that are thrown away, and compares the time inside the
trainer, which sets itself up and updates, with that of the whole training (log entries with their exact curves,
TensorBoard, checkpoints, policies).
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from benchmarks.measuring import spread
from cql import config as settings
from cql import training
from cql.collect import datasets_for
from cql.config import Config
from cql.run_folder import RunFolder
from cql.world import World


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
        training.train(run, config, datasets, World.of(datasets[0]))
        whole = time.perf_counter() - began
    return whole, 1 - inside / whole


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cadence", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    settings.add_arguments(parser)
    arguments = parser.parse_args()
    config = settings.from_arguments(arguments)
    datasets = datasets_for(config, settings.given(arguments))
    seconds, outside = zip(*[shares(config, datasets) for _ in range(arguments.rounds)])
    print(f"training: {spread(seconds)} s, outside the trainer: {spread([100 * share for share in outside])} %")


if __name__ == "__main__":
    main()
