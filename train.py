"""Generates the data, trains BC and CQL on it, judges them and draws the result."""

import argparse
import sys
import time

from cql import config as settings
from cql.analysis import evaluation, plots
from cql.analysis.results import write_results
from cql.collect import datasets_for, environment_of, summary
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.runs import RunError, RunFolder
from cql.training import Interrupted, refuse_too_large, resolve_device, train


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("--out", metavar="RUN", help="run folder to make (default: a timestamped one under runs/)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was interrupted, with its own settings")
    settings.add_arguments(parser)
    return parser.parse_args(argv)


def open_run(arguments: argparse.Namespace):
    """The run folder, its config and its data: of a run to go on with, or of a new one."""
    given = settings.given(arguments)
    if arguments.resume:
        if given or arguments.out:
            raise ConfigError("--resume goes on with the settings of the run: give no others.")
        run = RunFolder.open(arguments.resume)
        run.refuse_changes()
        config = run.config()
        return run, config, run.datasets(config)
    config = settings.from_arguments(arguments)
    resolve_device(config.device)  # refused before anything is written
    datasets = datasets_for(config, given)
    environment_of(datasets[0])
    config.refuse_larger_batch(min(map(len, datasets)))
    refuse_too_large(config, datasets[0])
    return RunFolder.create(arguments.out, config, datasets), config, datasets


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    started = time.perf_counter()
    run = None
    try:
        run, config, datasets = open_run(arguments)
        print(f"data {config.data_seed}: {summary(datasets[0])}" + (
            f"\nand {len(datasets) - 1} further draws of the same kind" if len(datasets) > 1 else ""))
        with run.lock():
            train(run, config, datasets, environment_of(datasets[0]), resume=bool(arguments.resume))
            trained = time.perf_counter()
            result = evaluation.evaluate(run)
            run.write_json("evaluation.json", result)
            write_results(run)
            plots.draw_all(run)
            run.write_manifest(device=str(resolve_device(config.device)), training_seconds=round(trained - started, 1),
                               seconds=round(time.perf_counter() - started, 1))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{stop}\nGo on with: python train.py --resume {run.path}" if run else "interrupted", file=sys.stderr)
        return 130
    except (ConfigError, DatasetError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(evaluation.table(result))
    print(f"run folder: {run.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
