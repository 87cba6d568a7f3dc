"""Prints how often intervals of off-policy estimates contain the truth: python -m benchmarks.estimate_coverage

On 40 data sets policies between the behaviour policy and two greedy ones (the optimal policy, which does not depend on
the data, and that of the exact solution of CQL at alpha 6, which does) are estimated from the episodes and evaluated
exactly. Printed is the share of 95 % intervals that contain the exact value, by the effective sample size, for each
estimator that weighs episodes. Nothing is trained.
"""

from multiprocessing import get_context

import numpy as np

from cql.analysis import ope
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import evaluate_policies, greedy_policy, settled_policy, value_iteration
from cql.text import aligned
from cql.world import World, exact_solution

DATASETS, RESAMPLES = 40, 100
SHARES = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # of the greedy policy in the mixture
EDGES = (0, 2, 5, 10, 20, 50, 100, 200, np.inf)  # of the effective sample size
ESTIMATES = [(name, target) for name in ("wis", "pdis", "dr") for target in ope.TARGETS]


def judged(data_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the policies of one data set: effective sample size ``[N]``, and ``[ESTIMATES, N]`` whether the interval of an
    estimate contains the exact value, NaN where there is no interval."""
    ope.FEWEST = 0  # estimates of every size are judged here
    config = Config(data_seed=data_seed)
    dataset, = datasets_for(config, {})
    world = World.of(dataset)
    empirical, counts = world.empirical(dataset)
    q = exact_solution(config.objective, empirical, counts, [6.0]).q[0]
    greedy = greedy_policy(value_iteration(world.mdp, config.gamma)), settled_policy(q)
    behavior = world.behavior_policy(config)
    policies = np.stack([(1 - share) * behavior + share * policy for policy in greedy for share in SHARES])
    exact = evaluate_policies(world.mdp, policies, horizon=world.horizon)
    truth = dict(zip(ope.TARGETS, (exact.returns, exact.hazard_probability)))
    log, states = ope.episode_log(dataset, world)
    found = ope.estimate(log, policies[:, states], world.horizon, RESAMPLES)
    hits = []
    for name, target in ESTIMATES:
        _, low, high = found.values[name][target].T
        hits.append(np.where(np.isnan(low), np.nan, (low <= truth[target]) & (truth[target] <= high)))
    return found.effective_sample_size, np.array(hits)


def main() -> None:
    with get_context("spawn").Pool(2) as pool:
        sizes, hits = (np.concatenate(parts, axis=-1) for parts in zip(*pool.map(judged, range(42, 42 + DATASETS))))
    rows = [["effective sample", "policies", *(f"{name} {target[:6]}" for name, target in ESTIMATES)]]
    for low, high in zip(EDGES, EDGES[1:]):
        inside = (low <= sizes) & (sizes < high)
        known = [row[~np.isnan(row)] for row in hits[:, inside]]
        rows.append([f"{low:g} to {high:g}", str(inside.sum()),
                     *(f"{row.mean():.0%}" if len(row) else "–" for row in known)])
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
