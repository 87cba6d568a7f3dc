"""How often intervals contain the truth: python -m benchmarks.interval_coverage [--num-datasets 1024] [--cache FILE.npz]

The population is known: CQL is solved exactly on every data draw (cql.exact.oracle), BC is the most frequent logged action. Its
mean, interquartile mean and 90 % quantile over all draws are the truth. Samples of 8, 16 and 32 draws, taken from it with
replacement, give intervals; printed is the share of them that contains the truth. No training, one seed a draw.
"""

import argparse
import json
import math
import sys
import zipfile
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist

import numpy as np

from benchmarks.exact_draws import outcomes
from cql import config as settings
from cql.analysis.statistics import (
    HIGHER_IS_BETTER, PAIRED, SHOWN, STATISTICS, Bootstrap, expanded_percentile, improvement, replicates, resample_counts,
)
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.exact.oracle import CertificateError
from cql.files import write_whole
from cql.runs import RunError

CHUNK = 16  # draws solved at once
THRESHOLD = {"return": 15.0, "hazard_probability": 0.05}  # of a point of the performance profile
NORMAL = NormalDist()


# ------------------------------------------------------------------------------------------ the population, exactly


def solved(config, given: dict, gamma: float, processes: int, cache: str | None) -> dict[str, np.ndarray]:
    """metric -> ``[draws, alphas + 1]``, BC last; from the cache where it holds this very setting.

    Raises:
        ConfigError: the cache cannot be read or written, or is of another setting.
    """
    about = json.dumps({name: getattr(config, name) for name in ("map", "slip", "max_episode_steps", "episodes", "epsilon",
                                                                 "data_seed", "num_datasets", "alpha", "gamma")})
    if cache is not None and Path(cache).exists():
        try:
            with np.load(cache) as file:
                if str(file["about"]) != about:
                    raise ConfigError(f"--cache {cache} is of another setting: {file['about']}.")
                return {metric: file[metric] for metric in PAIRED}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"--cache {cache} cannot be read ({error}).") from None
    fields = [vars(config) | {"data_seed": seed, "num_datasets": min(CHUNK, config.data_seeds[-1] + 1 - seed)}
              for seed in config.data_seeds[::CHUNK]]
    parts = mapped(partial(_solve, given=given, alphas=list(config.alpha), gamma=gamma), fields, processes)
    found = {metric: np.concatenate(columns) for metric, columns in zip(PAIRED, zip(*parts))}
    if cache is not None:
        buffer = BytesIO()
        np.savez(buffer, about=about, **found)
        try:
            write_whole(cache, buffer.getvalue())
        except OSError as error:
            raise ConfigError(f"--cache {cache} cannot be written ({error.strerror}).") from None
    return found


def mapped(function, jobs, processes: int):
    """The results in the order of the jobs, as they come."""
    if processes == 1:
        yield from map(function, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(function, jobs)


def _solve(fields, given, alphas, gamma):
    return outcomes(settings.Config(**fields), given, alphas, gamma)


# --------------------------------------------------------------------------------------------------------- methods


def percentile(values, counts, statistic, level):
    """Efron & Tibshirani 1993, chapter 13."""
    return np.quantile(replicates(values, counts, statistic), ((1 - level) / 2, (1 + level) / 2))


def bca(values, counts, statistic, level):
    """Bias-corrected and accelerated, Efron & Tibshirani 1993, equations 14.9 to 14.15; (None, None) where it has no value."""
    function, x = STATISTICS[statistic][0], values.ravel()
    resampled, estimate = replicates(values, counts, statistic), function(x, np.ones((1, x.size), dtype=np.int64))[0]
    lean = function(x, 1 - np.eye(x.size, dtype=np.int64))
    lean = lean.mean() - lean
    below = ((resampled < estimate).sum() + (resampled == estimate).sum() / 2) / resampled.size
    if not (0 < below < 1 and lean.any()):
        return None, None
    bias, acceleration = NORMAL.inv_cdf(below), (lean**3).sum() / (6 * (lean**2).sum() ** 1.5)
    shifted = (bias + NORMAL.inv_cdf(p) for p in ((1 - level) / 2, (1 + level) / 2))
    return np.quantile(resampled, [NORMAL.cdf(bias + z / (1 - acceleration * z)) for z in shifted])


def studentised(values, counts, statistic, level):
    """Bootstrap-t, Efron & Tibshirani 1993, section 12.5, each standard error by the jackknife (11.5); (None, None) where
    resamples without spread leave it unbounded."""
    function, x, counts = STATISTICS[statistic][0], values.ravel(), counts.reshape(len(counts), -1)
    n = x.size

    def errors(counts):  # [R, N] -> [R]
        without = np.clip(counts[:, None] - np.eye(n, dtype=np.int64), 0, None)                          # [R, N, N]
        left = function(x, without.reshape(-1, n)).reshape(-1, n)
        centre = (counts * left).sum(-1, keepdims=True) / n
        return np.sqrt((n - 1) / n * (counts * (left - centre) ** 2).sum(-1))

    once = np.ones((1, n), dtype=np.int64)
    estimate, error = function(x, once)[0], errors(once)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (function(x, counts) - estimate) / errors(counts)
    low, high = np.quantile(np.nan_to_num(t), ((1 - level) / 2, (1 + level) / 2), method="nearest")
    return (estimate - high * error, estimate - low * error) if max(-low, high) < 1e6 else (None, None)


def expanded(values, counts, statistic, level):
    """The interval of cql.analysis.statistics, without its rule where to give none."""
    return expanded_percentile(replicates(values, counts, statistic), values.size, level)


METHODS = {"percentile": percentile, "BCa": bca, "studentised": studentised, "expanded": expanded}


# --------------------------------------------------------------------------------------------------------- coverage


def cases(found: dict[str, np.ndarray], alphas) -> list[tuple[str, str, str, np.ndarray]]:
    """(group, metric, statistic, the population's values [draws]); a statistic "share" is the mean of zeros and ones."""
    names, listed = [f"alpha {alpha:g}" for alpha in alphas] + ["BC"], []
    for metric in PAIRED:
        columns = dict(zip(names, found[metric].T))
        listed += [(name, metric, statistic, values) for name, values in columns.items() for statistic in SHOWN[metric]]
        differences = [(name, "BC") for name in names[:-1]] + list(zip(names[1:-1], names))
        listed += [(f"{a} - {b}", metric, "mean", columns[a] - columns[b]) for a, b in differences]
        listed += [(f"{a} better than BC", metric, "share", improvement(columns[a], columns["BC"], HIGHER_IS_BETTER[metric]))
                   for a in names[:-1]]
        good = (lambda x: x >= THRESHOLD[metric]) if HIGHER_IS_BETTER[metric] else (lambda x: x <= THRESHOLD[metric])
        listed += [(f"{name} as good as {THRESHOLD[metric]:g}", metric, "share", good(columns[name]).astype(float))
                   for name in names]
    return listed


def coverage(case, size: int, trials: int, resamples: int, level: float, seed: int = 0) -> dict[str, tuple]:
    """method -> (share that contains the truth, share wholly above it, wholly below it, share without an interval, mean width).

    Args:
        case: an entry of ``cases``; size: draws in a sample. The method "given" is what ``Bootstrap`` gives a user.
    """
    statistic, population = case[2:]
    random, counts = np.random.default_rng([seed, size]), resample_counts(size, 1, resamples, seed)
    bootstrap = Bootstrap(counts, level)
    if statistic == "share":
        truth = population.mean()
        methods = {name: partial(METHODS[name], counts=counts, statistic="mean", level=level)
                   for name in ("percentile", "expanded")}
        methods["given"] = lambda values: bootstrap.share(values)[1:]
    else:
        truth = STATISTICS[statistic][0](population, np.ones((1, population.size), dtype=np.int64))[0]
        smooth = statistic in ("mean", "iqm")  # the jackknife's error of a quantile is none: no studentised interval there
        methods = {name: partial(method, counts=counts, statistic=statistic, level=level) for name, method in METHODS.items()
                   if smooth or method is not studentised}
        methods["given"] = lambda values: bootstrap.estimate(values, statistic)[1:]
    hits = {name: [] for name in methods}
    for _ in range(trials):
        values = population[random.integers(0, population.size, size)][:, None]
        for name, method in methods.items():
            low, high = method(values)
            hits[name].append((False, False, False, True, np.nan) if low is None else
                              (low <= truth <= high, low > truth, high < truth, False, high - low))
    return {name: (*np.mean(rows, axis=0)[:4], _mean_width(rows)) for name, rows in hits.items()}


def _mean_width(rows) -> float:
    widths = [row[4] for row in rows if not row[3]]
    return float(np.mean(widths)) if widths else np.nan


def _row(job, trials, resamples, level):
    return coverage(*job, trials, resamples, level)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interval_coverage", description=__doc__.partition(":")[0])
    settings.add_arguments(parser, groups=("environment and data",))
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0, 6.0, 20.0], metavar="A")
    parser.add_argument("--gamma", type=float, default=0.99, metavar="X")
    parser.add_argument("--cache", metavar="FILE.npz", help="keep the solved draws here, and take them from here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32], metavar="N", help="draws in a sample")
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="samples of each size")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap")
    parser.add_argument("--level", type=float, default=0.95, metavar="X")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    arguments = parser.parse_args(argv)
    given = {name: value for name, value in settings.given(arguments).items() if name not in ("alpha", "gamma")}
    try:
        if "dataset" in given:
            raise ConfigError("many draws are generated, so --dataset has no part here.")
        if min(*arguments.sizes, arguments.trials, arguments.resamples) < 2 or arguments.processes < 1:
            raise ConfigError("--sizes, --trials and --resamples must be at least 2, --processes at least 1.")
        if not 0 < arguments.level < 1:
            raise ConfigError(f"--level must lie between 0 and 1, not {arguments.level}.")
        config = settings.Config(**{"num_datasets": 1024} | given, alpha=tuple(arguments.alpha), gamma=arguments.gamma)
        found = solved(config, given, arguments.gamma, arguments.processes, arguments.cache)
    except (ConfigError, DatasetError, RunError, CertificateError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    listed = cases(found, config.alpha)
    jobs = [(case, size) for size in arguments.sizes for case in listed]
    print(f"{config.num_datasets} draws solved exactly; share of {arguments.trials} intervals at {arguments.level:.0%} "
          f"that contain the truth of all draws, in % (standard error "
          f"{100 * math.sqrt(.05 * .95 / arguments.trials):.1f} at 95, {100 * math.sqrt(.25 / arguments.trials):.1f} at 50)")
    print("given: what cql.analysis.statistics reports, – where it gives no interval; then how often that lies wholly above | "
          "below the truth")
    print(f"{'draws':>5}  {'group':<25} {'metric':<7} {'statistic':<9} {'truth':>8}"
          + "".join(f"{name:>12}" for name in METHODS) + f"{'given':>8}   above | below")
    done = []
    rows = mapped(partial(_row, trials=arguments.trials, resamples=arguments.resamples, level=arguments.level), jobs,
                  arguments.processes)
    for ((group, metric, statistic, values), size), row in zip(jobs, rows):
        function = STATISTICS["mean" if statistic == "share" else statistic][0]
        truth = function(values, np.ones((1, values.size), dtype=np.int64))[0]
        print(f"{size:5}  {group:<25} {metric.partition('_')[0]:<7} {statistic:<9} {truth:8.4g}"
              + "".join(f"{_percent(row.get(name)):>12}" for name in METHODS) + f"{_percent(row['given']):>8}"
              + (f"   {100 * row['given'][1]:5.1f} | {100 * row['given'][2]:.1f}" if row["given"][3] < 1 else ""), flush=True)
        kind = "share" if statistic == "share" else f"{statistic} with BC" if "BC" in group else f"{statistic} of CQL"
        done.append((size, kind, row))
    print(f"\nmean over the rows above: coverage in %, and mean width over that of the percentile interval\n{'draws':>5}  "
          f"{'statistic':<16}" + "".join(f"{name:>20}" for name in (*METHODS, "given")))
    for size, kind in dict.fromkeys((size, kind) for size, kind, _ in done):
        rows = [row for *key, row in done if key == [size, kind]]
        print(f"{size:5}  {kind:<16}" + "".join(f"{_averages(rows, name):>20}" for name in (*METHODS, "given")))
    return 0


def _averages(rows, name) -> str:
    known = [row for row in rows if name in row and row[name][3] < 1]
    if not known:
        return "–"
    share = np.mean([row[name][0] / (1 - row[name][3]) for row in known])
    return f"{100 * share:.1f} × {np.mean([row[name][4] / row['percentile'][4] for row in known]):.2f}"


def _percent(row) -> str:
    """Coverage among those that are intervals; a star if some are none."""
    return "–" if row is None or row[3] == 1 else f"{100 * row[0] / (1 - row[3]):.1f}" + ("*" if row[3] else "")


if __name__ == "__main__":
    sys.exit(main())
