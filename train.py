"""Generates the data, trains BC and CQL on it, judges them and draws the result."""

import argparse
import sys
import time

from cql import algorithm, snapshots
from cql import config as settings
from cql.action_weights import action_weights, masks_in_words
from cql.analysis import judging
from cql.analysis.figures import plots
from cql.cloned import cloned_in_words
from cql.collect import datasets_for, findings, summary, with_module
from cql.device import config_for, resolve_device
from cql.errors import ConfigError, GlassboxError
from cql.ranks import Interrupted, Ranks, joined
from cql.run_folder import RunFolder
from cql.scales import resolved
from cql.training import train, trainer_for
from cql.world import World


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__)
    parser.add_argument("--out", metavar="RUN", help="run folder to make (default: a timestamped one under runs/)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was interrupted, with its own settings")
    settings.add_arguments(parser)
    return with_module(parser.parse_args(argv))


def open_run(arguments: argparse.Namespace, ranks: Ranks):
    """The run folder, its config and its data: of a run to go on with, or of one that the first rank makes."""
    given = settings.given(arguments)
    if not ranks.first:
        run = RunFolder(arguments.resume or arguments.out)
        return run, run.config(), run.datasets(run.config())
    if arguments.resume:
        if given.keys() - {"env"} or arguments.out:
            raise ConfigError("--resume goes on with the settings of the run: give no others.")
        run = RunFolder.open(arguments.resume)
        run.check_manifest(derived=False)
        return run, run.config(), run.datasets(run.config())
    if ranks.launched and not arguments.out:
        raise ConfigError("under torchrun give --out RUN: a restarted job finds its run by it.")
    config = settings.from_arguments(arguments)
    device = resolve_device(config.device, ranks.local_rank)  # refused before anything is written
    datasets = datasets_for(config, given)
    config = resolved(config, datasets[0], given)
    world = World.of(datasets[0])  # an environment that cannot be made is refused before anything is written
    action_weights(config, datasets)  # so is a given policy of other states or actions
    config.refuse_larger_batch(min(map(len, datasets)))
    config.refuse_infeasible_penalty((dataset.action_entropy() for dataset in datasets), datasets[0].num_actions)
    config, smaller = config_for(device, config, datasets[0])
    for note in filter(None, (smaller, world.misfit_of_given(datasets[0], config), settings.long_bc(config, given),
                              cloned_in_words(config, datasets, world), masks_in_words(datasets[0]),
                              *findings(datasets[0]), *config.chosen)):
        print(f"note: {note}")
    run = RunFolder.create(arguments.out, config, datasets, again=ranks.launched)
    run.check_manifest(derived=False)
    return run, config, datasets


def finish(run: RunFolder, ranks: Ranks, started: float) -> None:
    """Evaluates what was trained, draws it, prints it and closes the run with its manifest."""
    trained = round(time.perf_counter() - started, 1)
    table = judging.write(run)
    plots.draw_all(run)
    run.write_manifest(device=str(resolve_device(run.config().device)), ranks=ranks.world, training_seconds=trained,
                       seconds=round(time.perf_counter() - started, 1))
    print(f"{table}\nrun folder: {run.path}")


def main(argv: list[str] | None = None) -> int:
    started, run, ranks = time.perf_counter(), None, Ranks()
    try:
        ranks = joined()
        if not ranks.first:
            ranks.wait_for_all()  # until the first has made the run
        arguments = parse(argv)
        run, config, datasets = open_run(arguments, ranks)
        with run.lock(shared=not ranks.first, wait=ranks.launched) as held:
            if ranks.first:
                print(f"data {config.data_seed}: {summary(datasets[0])}" + (
                    f"\nand {len(datasets) - 1} further data sets of the same kind" if len(datasets) > 1 else ""))
                if config.steps and config.trainer == "fast" and trainer_for(config, "cql") is algorithm.updates:
                    print(f"the fast trainer does not know {config.objective}: cql/algorithm.py trains CQL "
                          "(--trainer plain)")
                run.remove_partial_files()
                if ranks.world > 1:
                    run.share_lock(held)
                ranks.wait_for_all()
            train(run, config, datasets, World.of(datasets[0]), bool(arguments.resume) or ranks.launched, ranks,
                  snapshots.recorder(run, config))
            if ranks.first:
                finish(run, ranks, started)
            ranks.wait_for_all()  # should the first die meanwhile, torchrun can start all of them again
    except (Interrupted, KeyboardInterrupt) as end:
        if ranks.local_rank == 0:  # one message, not one a rank
            print(str(end) or "interrupted.", file=sys.stderr)
            if run:
                again = "the same command" if ranks.launched else f"python train.py --resume {run.path}"
                print(f"Go on with: {again}", file=sys.stderr)
        return 130
    except (GlassboxError, OSError) as error:
        print(f"error: {error}" if ranks.first else f"error: rank {ranks.rank}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
