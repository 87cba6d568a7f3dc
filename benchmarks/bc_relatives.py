"""Prints exact CQL against BC and its relatives over 64 data sets: python -m benchmarks.bc_relatives

BC of all episodes, of the best 10, 20 and 50 % by return, of those without a hazard, and of the best 10 % of these.
Nothing is trained: CQL (alpha 6) is its exact solution on each data set, BC the most frequent action that the episodes
it clones have in each state, and uniform in states that they never visit (unseen: the share of its steps there).
Returns and hazard probabilities are exact, intervals are over data sets.
"""

from dataclasses import replace

import numpy as np

from cql.analysis.statistics import PAIRED, Bootstrap, paired, resample_counts
from cql.cloned import cloned_episodes
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import evaluate_policies, expected_visits, settled_policy
from cql.exact.curve import cloned_policy
from cql.text import aligned, interval
from cql.world import World, exact_solution, pair_counts

CONFIG = Config(num_datasets=64)
RELATIVES = [replace(CONFIG, **settings) for settings in (
    {}, {"bc_top": 0.1}, {"bc_top": 0.2}, {"bc_top": 0.5}, {"bc_safe": True}, {"bc_top": 0.1, "bc_safe": True})]
FORMS = {"return": ".2f", "hazard_probability": ".4f", "unseen": ".4f"}


def outcomes() -> dict[str, dict[str, np.ndarray]]:
    """policy -> metric -> ``[data sets, 1]``, CQL last."""
    datasets = datasets_for(CONFIG, {})
    world = World.of(datasets[0])
    policies, known = [], []
    for dataset in datasets:
        counts = [pair_counts(cloned_episodes(relative, dataset, world), world.inputs) for relative in RELATIVES]
        empirical, logged = world.empirical(dataset)
        q = exact_solution(CONFIG.objective, empirical, logged, CONFIG.alpha).q
        policies += [*map(cloned_policy, counts), *settled_policy(q)]
        known += [table.any(-1) for table in (*counts, logged)]
    policies, known = np.stack(policies), np.stack(known)
    found = evaluate_policies(world.mdp, policies, horizon=world.horizon)
    steps = expected_visits(world.mdp, policies, horizon=world.horizon)
    unseen = np.where(known, 0.0, steps).sum(-1) / steps.sum(-1)
    metrics = dict(zip(FORMS, (found.returns, found.hazard_probability, unseen)))
    names = [*(relative.bc_name for relative in RELATIVES), "CQL, alpha 6"]
    return {name: {metric: values.reshape(len(datasets), -1)[:, n, None] for metric, values in metrics.items()}
            for n, name in enumerate(names)}


def main() -> None:
    found, bootstrap = outcomes(), Bootstrap(resample_counts(CONFIG.num_datasets, 1, 2000))
    *_, cql = found.values()
    rows = [["", *FORMS, *(f"CQL less it: {metric}" for metric in PAIRED), "CQL higher, lower return",
             "CQL lower, higher hazard"]]
    for name, policy in found.items():
        row = [name, *(interval(bootstrap.estimate(policy[metric]), form) for metric, form in FORMS.items())]
        if policy is not cql:
            difference = paired(bootstrap, cql, policy)
            row += [interval(difference[metric], "+" + FORMS[metric]) for metric in PAIRED]
            for metric, sign in (("return", 1), ("hazard_probability", -1)):
                less = sign * (cql[metric] - policy[metric])
                row.append(f"{(less > 1e-9).sum()}, {(less < -1e-9).sum()}")
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
