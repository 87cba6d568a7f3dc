"""Prints how often intervals contain the truth: python -m benchmarks.interval_coverage

The population is known: CQL is solved exactly on 1,024 data sets (cql.exact.fixed_point), BC is the most frequent
logged action. A statistic of it over all data sets is the truth. 1,000 samples each of 8, 16 and 32 data sets, taken
with replacement, give intervals by ``cql.analysis.statistics``; printed is the share of them that contains the truth,
that lies wholly above it, and wholly below. Nothing is trained.
"""

from multiprocessing import get_context

import numpy as np

from cql.analysis.statistics import PAIRED, STATISTICS, Bootstrap, resample_counts
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import evaluate_policies, settled_policy
from cql.exact.curve import cloned_policy
from cql.text import aligned
from cql.world import World, exact_solution

SIZES, ALPHAS, TRIALS = (8, 16, 32), (1.0, 6.0, 20.0), 1000
CHUNKS, CHUNK = 64, 16  # 64 times 16 data sets are solved at once


def outcomes(chunk: int) -> np.ndarray:
    """Exact values of some data sets, ``[PAIRED, data sets, alphas of CQL and BC]``."""
    config = Config(alpha=ALPHAS, data_seed=42 + CHUNK * chunk, num_datasets=CHUNK)
    datasets, policies = datasets_for(config, {}), []
    world = World.of(datasets[0])
    for dataset in datasets:
        empirical, counts = world.empirical(dataset)
        q = exact_solution(config.objective, empirical, counts, config.alpha).q
        policies += [*settled_policy(q), cloned_policy(counts)]
    result = evaluate_policies(world.mdp, np.stack(policies), horizon=world.horizon)
    return np.reshape([result.returns, result.hazard_probability], (len(PAIRED), CHUNK, -1))


def coverage(job) -> list[str]:
    """The row of one population ``[data sets]``, statistic and size of the samples."""
    size, name, metric, statistic, population = job
    random, bootstrap = np.random.default_rng([0, size]), Bootstrap(resample_counts(size, 1, 1000))
    truth = STATISTICS[statistic][0](population, np.ones((1, population.size), dtype=np.int64))[0]
    samples = population[random.integers(0, population.size, (TRIALS, size, 1))]
    ends = np.array([bootstrap.estimate(sample, statistic)[1:] for sample in samples], dtype=np.float64)
    ends = ends[~np.isnan(ends[:, 0])]
    above, below = (ends[:, 0] > truth).mean(), (ends[:, 1] < truth).mean()
    return [str(size), name, metric, statistic, f"{truth:.4g}", *(f"{100 * x:.1f}" for x in (
        1 - above - below, above, below)), str(TRIALS - len(ends))]


def main() -> None:
    with get_context("spawn").Pool(2) as pool:
        values = np.concatenate(pool.map(outcomes, range(CHUNKS)), axis=1)
        jobs = []
        for metric, columns in zip(PAIRED, values):
            groups = dict(zip((*(f"alpha {alpha:g}" for alpha in ALPHAS), "BC"), columns.T))
            *cql, bc = groups
            pairs = [*((alpha, bc) for alpha in cql), *zip(cql[1:], cql)]
            differences = {f"{a} - {b}": groups[a] - groups[b] for a, b in pairs}
            jobs += [(name, metric, "mean", group) for name, group in (groups | differences).items()]
            jobs += [(name, metric, "iqm", group) for name, group in groups.items() if metric == "return"]
        rows = pool.map(coverage, [(size, *job) for size in SIZES for job in jobs])
    print("\n".join(aligned([["data sets", "group", "metric", "statistic", "truth", "% contain it", "above", "below",
                              "none"], *rows], left=(1, 2, 3))))


if __name__ == "__main__":
    main()
