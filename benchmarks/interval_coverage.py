"""Prints how often intervals contain the truth: python -m benchmarks.interval_coverage

The population is known: CQL is solved exactly on every data set (cql.exact.fixed_point), BC is the most frequent logged
action. A statistic of it over all data sets is the truth. Samples of 8, 16 and 32 data sets, taken with replacement,
give intervals; printed is the share of them that contains the truth, for what cql.analysis.statistics gives its users
("given", and how often that lies wholly above or below) and for three other bootstraps. Nothing is trained.
"""

import argparse
from functools import partial
from multiprocessing import get_context
from statistics import NormalDist

import numpy as np

from benchmarks.exact_draws import outcomes
from cql.analysis.statistics import (
    HIGHER_IS_BETTER,
    PAIRED,
    SHOWN,
    STATISTICS,
    Bootstrap,
    improvement,
    replicates,
    resample_counts,
)
from cql.config import Config

SIZES, ALPHAS, LEVEL, RESAMPLES = (8, 16, 32), (1.0, 6.0, 20.0), 0.95, 1000
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
CHUNK = 16  # data sets solved at once
THRESHOLD = {"return": 15.0, "hazard_probability": 0.05}  # of a point of the performance profile
NORMAL = NormalDist()


def percentile(values, counts, statistic):
    """Efron & Tibshirani 1993, chapter 13."""
    return np.quantile(replicates(values, counts, statistic), TAILS)


def bca(values, counts, statistic):
    """Bias-corrected and accelerated, Efron & Tibshirani 1993, (14.9) to (14.15); (None, None) if there is none."""
    function, x = STATISTICS[statistic][0], values.ravel()
    resampled, estimate = replicates(values, counts, statistic), function(x, np.ones((1, x.size), dtype=np.int64))[0]
    lean = function(x, 1 - np.eye(x.size, dtype=np.int64))
    lean = lean.mean() - lean
    below = ((resampled < estimate).sum() + (resampled == estimate).sum() / 2) / resampled.size
    if not (0 < below < 1 and lean.any()):
        return None, None
    bias, acceleration = NORMAL.inv_cdf(below), (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
    shifted = (bias + NORMAL.inv_cdf(p) for p in TAILS)
    return np.quantile(resampled, [NORMAL.cdf(bias + z / (1 - acceleration * z)) for z in shifted])


def studentised(values, counts, statistic):
    """Bootstrap-t, Efron & Tibshirani 1993, section 12.5, each standard error by the jackknife (11.5).

    (None, None) where resamples without spread leave it unbounded.
    """
    function, x, counts = STATISTICS[statistic][0], values.ravel(), counts.reshape(len(counts), -1)
    n = x.size

    def errors(counts):  # [R, N] -> [R]
        without = np.clip(counts[:, None] - np.eye(n, dtype=np.int64), 0, None)  # [R, N, N]
        left = function(x, without.reshape(-1, n)).reshape(-1, n)
        centre = (counts * left).sum(-1, keepdims=True) / n
        return np.sqrt((n - 1) / n * (counts * (left - centre) ** 2).sum(-1))

    once = np.ones((1, n), dtype=np.int64)
    estimate, error = function(x, once)[0], errors(once)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (function(x, counts) - estimate) / errors(counts)
    low, high = np.quantile(np.nan_to_num(t), TAILS, method="nearest")
    return (estimate - high * error, estimate - low * error) if max(-low, high) < 1e6 else (None, None)


METHODS = {"percentile": percentile, "BCa": bca, "studentised": studentised}


def cases(found: dict[str, np.ndarray]) -> list[tuple[str, str, str, np.ndarray]]:
    """(group, metric, statistic, the population's values [D]); a statistic "share" is the mean of zeros and ones."""
    names, listed = [f"alpha {alpha:g}" for alpha in ALPHAS] + ["BC"], []
    for metric in PAIRED:
        columns, higher = dict(zip(names, found[metric].T)), HIGHER_IS_BETTER[metric]
        listed += [(name, metric, statistic, values) for name, values in columns.items() for statistic in SHOWN[metric]]
        for a, b in [(name, "BC") for name in names[:-1]] + list(zip(names[1:-1], names)):
            listed.append((f"{a} - {b}", metric, "mean", columns[a] - columns[b]))
        for name in names[:-1]:
            better = improvement(columns[name], columns["BC"], higher)
            listed.append((f"{name} better than BC", metric, "share", better))
        for name in names:
            good = columns[name] >= THRESHOLD[metric] if higher else columns[name] <= THRESHOLD[metric]
            listed.append((f"{name} as good as {THRESHOLD[metric]:g}", metric, "share", good.astype(float)))
    return listed


def coverage_line(job, trials: int) -> str:
    """The line of one case and one size of the samples."""
    (group, metric, statistic, population), size = job
    random, counts = np.random.default_rng([0, size]), resample_counts(size, 1, RESAMPLES)
    bootstrap = Bootstrap(counts, LEVEL)
    given = bootstrap.share if statistic == "share" else partial(bootstrap.estimate, statistic=statistic)
    plain = "mean" if statistic == "share" else statistic
    methods = {"given": lambda values: given(values)[1:]}
    # a quantile has no jackknife error; of shares only the percentile is compared
    for name in {"mean": METHODS, "iqm": METHODS, "share": ["percentile"]}.get(statistic, ["percentile", "BCa"]):
        methods[name] = partial(METHODS[name], counts=counts, statistic=plain)
    truth = STATISTICS[plain][0](population, np.ones((1, population.size), dtype=np.int64))[0]
    intervals = {name: [] for name in methods}
    for _ in range(trials):
        values = population[random.integers(0, population.size, size)][:, None]
        for name, method in methods.items():
            low, high = method(values)
            if low is not None:
                intervals[name].append((low, high))
    cells = []
    for name in ("given", *METHODS):
        ends = np.array(intervals.get(name, [])).reshape(-1, 2)
        if not len(ends):
            cells.append("–")
            continue
        above, below = (ends[:, 0] > truth).mean(), (ends[:, 1] < truth).mean()
        cells.append(f"{100 * (1 - above - below):.1f}" + "*" * (len(ends) < trials)
                     + f" ({100 * above:.1f} | {100 * below:.1f})" * (name == "given"))
    return f"{size:5}  {group:<27}{metric.partition('_')[0]:<8}{statistic:<7}{truth:9.4g}   {cells[0]:<22}" + "".join(
        f"{cell:<13}" for cell in cells[1:]).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interval_coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--num-datasets", type=int, default=1024, metavar="N")
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="samples of each size")
    arguments = parser.parse_args()
    seeds = Config(num_datasets=arguments.num_datasets).data_seeds
    chunks = [Config(alpha=ALPHAS, data_seed=part[0], num_datasets=len(part))
              for part in (seeds[n : n + CHUNK] for n in range(0, len(seeds), CHUNK))]
    with get_context("spawn").Pool(2) as pool:
        found = {metric: np.concatenate(parts) for metric, parts in zip(PAIRED, zip(*pool.map(outcomes, chunks)))}
        print(f"{len(seeds)} data sets solved exactly; share of {arguments.trials} intervals at {LEVEL:.0%} that "
              "contain the truth, in %\n(above | below): wholly so; *: of those samples that have an interval")
        print(f"{'size':>5}  {'group':<27}{'metric':<8}{'kind':<7}{'truth':>9}   {'given (above | below)':<22}"
              + "".join(f"{name:<13}" for name in METHODS))
        jobs = [(case, size) for size in SIZES for case in cases(found)]
        for line in pool.imap(partial(coverage_line, trials=arguments.trials), jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
