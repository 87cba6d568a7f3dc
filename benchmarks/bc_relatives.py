"""Prints CQL against BC and its relatives over many data sets: python -m benchmarks.bc_relatives [RUN ...]

BC of all episodes, of the best 10, 20 and 50 % by return, of those without a hazard, and of the best 10 % of these.
Without RUN nothing is trained: CQL (alpha 6) is its exact solution on each data set, BC the most frequent action that
the episodes it clones have in each state, and uniform in states that they never visit (unseen: the share of its steps
there). With runs of train.py on the same data and training seeds, one of them with CQL, it reads their trained members.
Returns and hazard probabilities are exact, intervals are over data sets.
"""

import argparse
from dataclasses import replace

import numpy as np

from cql.analysis.results import Results
from cql.analysis.statistics import BC, PAIRED, Bootstrap, paired, resample_counts
from cql.cloned import cloned_episodes
from cql.collect import datasets_for
from cql.config import Config
from cql.errors import RunError, reports_errors
from cql.exact import evaluate_policies, expected_visits, settled_policy
from cql.exact.curve import cloned_policy
from cql.run_folder import RunFolder
from cql.text import aligned, interval
from cql.world import World, exact_solution, pair_counts

RELATIVES = ({}, {"bc_top": 0.1}, {"bc_top": 0.2}, {"bc_top": 0.5}, {"bc_safe": True}, {"bc_top": 0.1, "bc_safe": True})
FORMS = {"return": ".2f", "hazard_probability": ".4f", "unseen": ".4f"}
Outcomes = dict[str, dict[str, np.ndarray]]  # policy -> metric of PAIRED, or unseen -> [D, seeds]


def solved(config: Config) -> Outcomes:
    """The exact policies on the data sets of a config, CQL last."""
    datasets = datasets_for(config, {})
    world = World.of(datasets[0]).known()
    relatives = [replace(config, **settings) for settings in RELATIVES]
    policies, known = [], []
    for dataset in datasets:
        counts = [pair_counts(cloned_episodes(relative, dataset, world), world.inputs) for relative in relatives]
        empirical, logged = world.empirical(dataset)
        q = exact_solution(config.objective, empirical, logged, config.alpha).q
        policies += [*map(cloned_policy, counts), *settled_policy(q)]
        known += [table.any(-1) for table in (*counts, logged)]
    policies, known = np.stack(policies), np.stack(known)
    found = evaluate_policies(world.mdp, policies, horizon=world.horizon)
    steps = expected_visits(world.mdp, policies, horizon=world.horizon)
    metrics = dict(zip(PAIRED, (found.returns, found.hazard_probability)))
    metrics["unseen"] = np.where(known, 0.0, steps).sum(-1) / steps.sum(-1)
    names = [*(relative.bc_name for relative in relatives), cql_name(config.alpha[0])]
    return {name: {metric: values.reshape(len(datasets), -1)[:, n, None] for metric, values in metrics.items()}
            for n, name in enumerate(names)}


def trained(paths: list[str]) -> Outcomes:
    """The trained members of runs, CQL last."""
    runs, cql = [Results.of(RunFolder.open(path)) for path in paths], {}
    seeds = [(run.config.data_seeds, run.config.seeds) for run in runs]
    if any(other != seeds[0] for other in seeds):
        raise RunError("the runs have different data or training seeds: nothing is paired.")
    outcomes = {}
    for run in runs:
        for group in run.groups:
            values = {metric: run.values(metric, group) for metric in PAIRED}
            if group == BC:
                outcomes[run.config.bc_name] = values
            else:
                cql[cql_name(group[1])] = values
    if len(cql) != 1:
        raise RunError("give runs with one alpha of CQL among them.")
    return outcomes | cql


def cql_name(alpha: float) -> str:
    return f"CQL, alpha {alpha:g}"


def table(outcomes: Outcomes) -> str:
    """A row a policy: means, and CQL less BC with how often CQL is the better one."""
    *relatives, last = outcomes
    datasets, seeds = outcomes[last]["return"].shape
    bootstrap = Bootstrap(resample_counts(datasets, seeds, 2000), 0.95)
    rows = [["", *FORMS, *(f"CQL less it: {metric}" for metric in PAIRED), "CQL higher, lower return",
             "CQL lower, higher hazard"]]
    for name in (*relatives, last):
        row = [name, *(interval(bootstrap.estimate(outcomes[name][metric]), form) if metric in outcomes[name] else "–"
                       for metric, form in FORMS.items())]
        if name != last:
            difference = paired(bootstrap, outcomes[last], outcomes[name])
            row += [interval(difference[metric], "+" + FORMS[metric]) for metric in PAIRED]
            less = {metric: outcomes[last][metric] - outcomes[name][metric] for metric in PAIRED}
            for metric, sign in (("return", 1), ("hazard_probability", -1)):
                row.append(", ".join(str(int((side * less[metric] > 1e-9).sum())) for side in (sign, -sign)))
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return f"{datasets} data sets, {seeds} training seed(s)\n" + "\n".join(aligned(rows))


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bc_relatives", description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="*", help="evaluated runs of train.py: BC's relatives, CQL")
    parser.add_argument("--num-datasets", type=int, default=64, metavar="N", help="solved exactly, without RUN")
    arguments = parser.parse_args(argv)
    print(table(trained(arguments.runs) if arguments.runs else solved(Config(num_datasets=arguments.num_datasets))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
