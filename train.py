"""Generates the data, trains BC and CQL on it, judges them and draws the result."""

import argparse
import sys
import time

from cql import algorithm, snapshots
from cql import config as settings
from cql.action_weights import action_weights
from cql.analysis import evaluation
from cql.analysis.figures import plots
from cql.analysis.results import write_results
from cql.cloned import cloned_in_words
from cql.collect import datasets_for, summary
from cql.device import config_for, resolve_device
from cql.errors import ConfigError, GlassboxError
from cql.ranks import Ranks, Stopped, joined
from cql.run_folder import RunFolder
from cql.training import Interrupted, train, trainer_for
from cql.world import World

ENDINGS = (Interrupted, KeyboardInterrupt, Stopped, GlassboxError, OSError)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("--out", metavar="RUN", help="run folder to make (default: a timestamped one under runs/)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was interrupted, with its own settings")
    settings.add_arguments(parser)
    return parser.parse_args(argv)


def open_run(arguments: argparse.Namespace, ranks: Ranks):
    """The run folder, its config and its data: of a run to go on with, or of a new one."""
    given = settings.given(arguments)
    if arguments.resume:
        if given or arguments.out:
            raise ConfigError("--resume goes on with the settings of the run: give no others.")
        run = RunFolder.open(arguments.resume)
        run.check_manifest(derived=False)
        config = run.config()
        return run, config, run.datasets(config)
    config = settings.from_arguments(arguments)
    device = resolve_device(config.device, ranks.local_rank)  # refused before anything is written
    datasets = datasets_for(config, given)
    world = World.of(datasets[0])  # an environment that cannot be made is refused before anything is written
    action_weights(config, datasets)  # so is a given policy of other states or actions
    config.refuse_larger_batch(min(map(len, datasets)))
    config.refuse_infeasible_penalty((dataset.action_entropy() for dataset in datasets), datasets[0].num_actions)
    config, smaller = config_for(device, config, datasets[0])
    for note in filter(None, (smaller, world.misfit_of_given(datasets[0], config), settings.long_bc(config, given),
                              cloned_in_words(config, datasets, world))):
        print(f"note: {note}")
    return RunFolder.create(arguments.out, config, datasets), config, datasets


def lead(argv: list[str] | None, ranks: Ranks) -> int:
    """What the first rank does: all but the slices that others train."""
    started, run = time.perf_counter(), None
    try:
        arguments = parse(argv)
        run, config, datasets = open_run(arguments, ranks)
        print(f"data {config.data_seed}: {summary(datasets[0])}" + (
            f"\nand {len(datasets) - 1} further data sets of the same kind" if len(datasets) > 1 else ""))
        if config.steps and config.trainer == "fast" and trainer_for(config, "cql") is algorithm.updates:
            print(f"the fast trainer does not know {config.objective}: cql/algorithm.py trains CQL (--trainer plain)")
        with run.lock() as held:
            run.remove_partial_files()
            if ranks.world > 1:
                run.share_lock(held)
            ranks.tell({"run": str(run.path.absolute()), "resume": bool(arguments.resume)})
            train(run, config, datasets, World.of(datasets[0]), bool(arguments.resume), ranks,
                  snapshots.recorder(run, config))
            trained = round(time.perf_counter() - started, 1)
            run.write_json("evaluation.json", result := evaluation.evaluate(run))
            write_results(run)
            plots.draw_all(run)
            run.write_manifest(device=str(resolve_device(config.device)), ranks=ranks.world, training_seconds=trained,
                               seconds=round(time.perf_counter() - started, 1))
    except ENDINGS as end:
        return ended(end, ranks, run)
    print(f"{evaluation.table(result)}\nrun folder: {run.path}")
    return 0


def follow(ranks: Ranks) -> int:
    """What the other ranks do: read the run that the first has made and train slices of it."""
    run = None
    try:
        word = ranks.hear()
        run = RunFolder.open(word["run"])
        with run.lock(shared=True):
            config = run.config()
            datasets = run.datasets(config)
            train(run, config, datasets, World.of(datasets[0]), word["resume"], ranks, snapshots.recorder(run, config))
    except ENDINGS as end:
        return ended(end, ranks, run)
    return 0


def ended(end: BaseException, ranks: Ranks, run: RunFolder | None) -> int:
    """Ends the job, with one message and not one a rank; returns the exit status."""
    if isinstance(end, Stopped):
        if str(end):
            ranks.say(f"error: {end}")
        return end.status
    if isinstance(end, (Interrupted, KeyboardInterrupt)):
        ranks.stop()
        if run:
            how = f"Go on with: {ranks.launcher} train.py --resume {run.path}"
            ranks.say("\n".join(filter(None, (ranks.reason, str(end) or "interrupted.", how))))
        elif ranks.first:
            ranks.say("interrupted")
        return 130
    ranks.say(f"error: {end}" if ranks.first else f"error: rank {ranks.rank}: {end}")
    ranks.stop(f"rank {ranks.rank}: {end}", 2)
    return 2


def main(argv: list[str] | None = None) -> int:
    try:
        with joined() as ranks:
            return lead(argv, ranks) if ranks.first else follow(ranks)
    except Stopped as end:
        print(f"error: {end}", file=sys.stderr)
        return end.status


if __name__ == "__main__":
    sys.exit(main())
