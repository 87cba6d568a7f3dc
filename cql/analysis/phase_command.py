"""The command ``python -m cql.exact.phase``: the exact curve over alpha of a data set, printed, written and drawn."""

import argparse
import datetime
import json
import sys
from pathlib import Path

from cql import config as settings
from cql.analysis import phase_plot
from cql.analysis.logged import behavior_policy, exact_curve, grid_words, known_model
from cql.collect import datasets_for, environment_of
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.exact import phase
from cql.files import write_whole
from cql.runs import RunError, RunFolder


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m cql.exact.phase", description=(
        "The exact curve of CQL over alpha, without training: a table, phase.json and phase.png."))
    parser.add_argument("--out", metavar="DIR", help="folder to make (default: a timestamped one under runs/)")
    parser.add_argument("--run", metavar="RUN", help="lay the trained members of this run over the curve; environment, data, "
                        "gamma and loss are then the run's (--data-seed chooses among its draws)")
    parser.add_argument("--points", type=int, metavar="N",
                        help=f"points from {phase.LOWEST:g} to {phase.HIGHEST:g} (default {phase.POINTS})")
    parser.add_argument("--alpha", type=float, nargs="+", default=argparse.SUPPRESS, metavar="A",
                        help="these values instead of evenly spaced ones")
    parser.add_argument("--gamma", type=float, default=argparse.SUPPRESS, metavar="X",
                        help="discount factor (default 0.99)")
    parser.add_argument("--td-loss", choices=("mse", "half_mse"), default=argparse.SUPPRESS,
                        help="the loss whose units alpha has (default mse)")
    settings.add_arguments(parser, groups=("environment and data",))
    return parser.parse_args(argv)


def _setting(arguments):
    """(config, dataset, entries of the run's members trained on it)."""
    given = settings.given(arguments)
    config = settings.from_arguments(arguments)
    if arguments.points is not None and "alpha" in given:
        raise ConfigError("--points and --alpha both say where the curve is computed: give one of them.")
    if arguments.points is not None and arguments.points < 2:
        raise ConfigError(f"--points must be at least 2, not {arguments.points}.")
    if config.num_datasets > 1:
        raise ConfigError("a curve belongs to one data draw: choose it with --data-seed, without --num-datasets.")
    if arguments.run is None:
        return config, datasets_for(config, given)[0], []
    foreign = sorted(given.keys() - {"alpha", "data_seed"})
    if foreign:
        raise ConfigError(f"--run brings its own environment, data, gamma and loss: leave out "
                                   f"--{foreign[0].replace('_', '-')}.")
    run = RunFolder.open(arguments.run)
    run.refuse_changes()
    theirs = run.config()
    data_seed = given.get("data_seed", theirs.data_seed)
    if data_seed not in theirs.data_seeds:
        raise ConfigError(f"the run {arguments.run} has no data draw {data_seed}.")
    evaluation = run.read_json("evaluation.json")
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("members"), list):
        raise RunError(f"{run.path / 'evaluation.json'} lists no members.")
    dataset = run.datasets(theirs)[theirs.data_seeds.index(data_seed)]
    return theirs, dataset, [entry for entry in evaluation["members"] if entry.get("data_seed") == data_seed]


def _folder(out):
    """A new folder for the results; the caller has made sure that everything else is in order."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        path = Path(out) if out is not None else Path("runs") / (f"phase-{stamp}" + (f"-{number}" if number else ""))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if out is not None:
                raise ConfigError(f"the folder {out} exists already: give another --out.") from None
        except OSError as error:
            raise ConfigError(f"the folder {path} cannot be made ({error.strerror}).") from None
    raise ConfigError("no free name for a folder under runs/: give --out.")


def main(argv: list[str] | None = None) -> int:

    arguments = parse(argv)
    try:
        if arguments.out is not None and Path(arguments.out).exists():
            raise ConfigError(f"the folder {arguments.out} exists already: give another --out.")
        config, dataset, trained = _setting(arguments)
        environment = environment_of(dataset)
        mdp = known_model(environment)
        alphas = arguments.alpha if "alpha" in arguments else phase.default_alphas(arguments.points or phase.POINTS)
        result = exact_curve(environment, mdp, dataset, alphas, config.objective, behavior_policy(environment, config))
        result["trained"] = trained
        try:
            picture = phase_plot.png(phase_plot.phase_figure(result))
        except (KeyError, TypeError) as error:
            raise RunError(f"the run's evaluation.json is not of the known form ({type(error).__name__}: {error}).") from None
        folder = _folder(arguments.out)
        write_whole(folder / "phase.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
        write_whole(folder / "phase.png", picture)
    except (ConfigError, DatasetError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(phase.table(result, *grid_words(environment, mdp)))
    print(f"folder: {folder}")
    return 0
