"""``python -m cql bounds``: predicted minus true value of CQL(H), Eq. 1, Eq. 2 and Q-learning, a row each."""

import argparse

import numpy as np

from cql import config as settings
from cql.analysis.evaluation import load_policy
from cql.collect import datasets_for, with_module
from cql.commands.theorems import add_arguments, config_of, print_misfit
from cql.errors import ConfigError, DatasetError, RunError, reports_errors
from cql.exact.bounds import ALPHAS, Estimate, estimates, trained_estimates
from cql.members import members
from cql.run_folder import RunFolder
from cql.text import aligned
from cql.world import World, refuse_unknown


def table(rows: dict[str, list[Estimate]]) -> str:
    """A row a method: mean ± standard deviation of its estimates, one or more a data set."""
    columns = {"at start": ("at_start", ".2f"), "mean over states": ("mean", ".2f"),
               "states above": ("share_above", ".3f"), "true V at start": ("true_at_start", ".2f"),
               "hazard, ever": ("hazard", ".3f")}
    lines = [["predicted - true", *columns]]
    for method, row in rows.items():
        lines.append([method, *(_mean([getattr(e, name) for e in row], form) for name, form in columns.values())])
    return "\n".join(aligned(lines))


def _mean(values, form):
    if None in values:
        return "–"
    mean = format(float(np.mean(values)) + 0.0, form)
    return mean if len(values) == 1 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def read_run(path):
    """The config of a run, its data sets, and for each the policies of its CQL members at alpha 0.
    Raises RunError for no run, a damaged file, no CQL member at alpha 0, or an objective of which nothing exact is
    known."""
    run = RunFolder.open(path)
    config = run.config()
    refuse_unknown(config.objective)
    if config.td_loss == "huber":
        raise RunError(f"{path} minimised the Huber loss: the other rows of the table are solutions of a squared error."
                       )
    chosen = [member for member in members(config, "cql") if member.alpha == 0]
    if not chosen:
        raise RunError(f"{path} has no CQL member at alpha 0: train one with --alpha 0 --num-seeds N.")
    datasets = run.datasets(config)
    return config, datasets, [[load_policy(run, member, dataset) for member in chosen if member.data_seed == seed]
                              for seed, dataset in zip(config.data_seeds, datasets)]


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql bounds", description=(
        "Predicted minus true value of CQL(H), Eq. 1, Eq. 2 and Q-learning, exactly, over data sets."))
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run of train.py with --alpha 0 and several seeds: its "
                        "data, and rows for its networks and the minimum over its seeds")
    add_arguments(parser, ALPHAS)
    arguments = with_module(parser.parse_args(argv))
    given, config, policies = settings.given(arguments), config_of(arguments, ALPHAS), None
    if arguments.run is None:
        source, datasets = config, datasets_for(config, given)
    else:
        if given.keys() - {"alpha"}:
            raise ConfigError("RUN brings its own data and gamma: beside it, give --alpha only.")
        source, datasets, policies = read_run(arguments.run)
        if source.gamma == 1:
            raise ConfigError("the run has gamma 1: the exact solutions need gamma below 1.")
    gamma = source.gamma
    world = World.of(datasets[0]).known()
    rows: dict[str, list[Estimate]] = {}
    for n, dataset in enumerate(datasets):
        if broken := dataset.breaks_in_words():
            raise DatasetError(broken)  # the minimum is over resampled episodes
        transitions = world.transitions(dataset)
        for name, estimate in estimates(world.mdp, transitions, config.alpha, gamma).items():
            rows.setdefault(name, []).append(estimate)
        if policies is not None:
            q = np.stack([policy.q_values(world.inputs) for policy in policies[n]]).astype(np.float64)  # [N, S, A]
            for name, row in trained_estimates(world.mdp, transitions, q, gamma).items():
                rows.setdefault(name, []).extend(row)
    print(f"{len(datasets)} data set(s), gamma {gamma:g}; mean ± standard deviation over the data sets; alpha of the "
          "default loss, twice the paper's")
    print(table(rows))
    print_misfit(world, datasets[0], source)
    return 0
