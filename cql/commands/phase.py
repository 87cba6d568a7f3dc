"""``python -m cql phase``: the exact curve over alpha of a data set, printed, written and drawn."""

import argparse
from pathlib import Path

from cql import config as settings
from cql.analysis.exact_curve import exact_curve, table
from cql.analysis.figures.curve import phase_figure
from cql.analysis.figures.style import png
from cql.analysis.results import member_rows
from cql.collect import datasets_for, with_module
from cql.commands.theorems import print_misfit
from cql.errors import ConfigError, reports_errors
from cql.exact import curve
from cql.files import atomic_write, new_folder, write_json
from cql.run_folder import RunFolder
from cql.world import World

MOST_POINTS = 10_000


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m cql phase", description=(
        "The exact curve of CQL over alpha, without training: a table, phase.json and phase.png."))
    parser.add_argument("--out", metavar="DIR", help="folder to make (default: a timestamped one under runs/)")
    parser.add_argument("--run", metavar="RUN", help="lay the trained members of this run over the curve; environment, "
                        "data, gamma and loss are then the run's (--data-seed chooses among its data sets)")
    parser.add_argument("--points", type=int, metavar="N",
                        help=f"points from {curve.LOWEST:g} to {curve.HIGHEST:g} (default {curve.POINTS})")
    parser.add_argument("--alpha", type=float, nargs="+", default=argparse.SUPPRESS, metavar="A",
                        help="these values instead of evenly spaced ones")
    settings.add_arguments(parser, groups=(settings.DATA,), also=("gamma", "td_loss"))
    return with_module(parser.parse_args(argv))


def _setting(arguments):
    """(config, data set, entries of the members that the run trained on it)."""
    given = settings.given(arguments)
    config = settings.from_arguments(arguments)
    if arguments.points is not None and "alpha" in given:
        raise ConfigError("--points and --alpha both say where the curve is computed: give one of them.")
    if arguments.points is not None and not 2 <= arguments.points <= MOST_POINTS:
        raise ConfigError(f"--points must be at least 2 and at most {MOST_POINTS:,}, not {arguments.points}.")
    if config.num_datasets > 1:
        raise ConfigError("a curve belongs to one data set: choose it with --data-seed, without --num-datasets.")
    if arguments.run is None:
        return config, datasets_for(config, given)[0], []
    foreign = sorted(given.keys() - {"alpha", "data_seed"})
    if foreign:
        option = foreign[0].replace("_", "-")
        raise ConfigError(f"--run brings its own environment, data, gamma and loss: leave out --{option}.")
    run = RunFolder.open(arguments.run)
    run.check_manifest()
    theirs = run.config()
    data_seed = given.get("data_seed", theirs.data_seed)
    if data_seed not in theirs.data_seeds:
        raise ConfigError(f"the run {arguments.run} has no data set with seed {data_seed}.")
    member_rows(run)  # refuses an evaluation of another form
    dataset = run.datasets(theirs)[theirs.data_seeds.index(data_seed)]
    members = run.read_json("evaluation.json")["members"]
    return theirs, dataset, [entry for entry in members if entry["data_seed"] == data_seed]


@reports_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.out is not None and Path(arguments.out).exists():
        raise ConfigError(f"the folder {arguments.out} exists already: give another --out.")
    config, dataset, trained = _setting(arguments)
    world = World.of(dataset)
    alphas = arguments.alpha if "alpha" in arguments else curve.default_alphas(arguments.points or curve.POINTS)
    result = exact_curve(world, dataset, alphas, config, world.behavior_policy(config))
    result["trained"] = trained
    picture = png(phase_figure(result))
    folder = new_folder(arguments.out, "phase-")
    write_json(folder / "phase.json", result)
    atomic_write(folder / "phase.png", picture)
    print(table(result, world.state_names, world.action_names))
    print_misfit(world, dataset, config)
    print(f"folder: {folder}")
    return 0
