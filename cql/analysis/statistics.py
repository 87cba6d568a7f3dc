"""Honest statistics of a population: estimates with bootstrap intervals, paired differences, profiles, claims.

Values are arrays ``[D, S]``, data draws by training seeds; exact returns and hazards, so that all spread is between runs.

**Resampling** is hierarchical (Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8): draws with
replacement, then seeds with replacement within each drawn one. The same indices serve all groups and metrics, so differences
are paired. With one draw only seeds are resampled: such an interval says nothing about other data (``intervals_over``). The
second stage counts the spread between seeds somewhat more than once, on the careful side.

**Intervals** are percentiles of the resampled statistic, moved outwards so that for n normal values they are Student's
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279: the expanded percentile).
Chosen by measurement against the plain percentile, BCa and the studentised bootstrap (Efron & Tibshirani 1993, "An
Introduction to the Bootstrap", chapters 12 to 14): ``python -m benchmarks.interval_coverage``. Of its 95 % intervals from 16
draws, 94 to 95 % contain the mean of CQL, 96 to 97 % its interquartile mean, 92 to 93 % a difference between two alphas.
Shares (profiles, probability of improvement) have Wilson's score interval (Wilson 1927) with n draws, which stays honest
at 0 and 1 (95 to 98 %).

**No interval** (low and high None) where none would hold: no resampled statistic leaves the range of the n independent units
(draws; seeds where there is one draw), and that range lies on one side of a q-quantile with probability q**n or (1 - q)**n.
If the larger exceeds (1 - level) / 2, nothing is given: a mean (taken as q = 1/2) needs 6 draws at 95 %, the 90 % quantile
36, and the worst (q = 1) has none at any number. Nor is there one where nothing varies. What the rule cannot see: a value
rare enough to be missing in all n draws. BC fails badly on one draw in twelve: of the intervals for its means, and for
mean differences to it, 73 to 76 % contain the truth at 16 draws and 92 % at 32, by any of the four; nearly all others make BC
too good, so that a claim to beat it errs on the careful side. Its interquartile mean is covered (96 %).

**Missing values** are NaN: members without a policy, or a metric they do not have. They are left out of a statistic and
counted beside it; a draw without any is no unit, a pair needs both. Nothing left: None.

The interquartile mean, and profiles and probability of improvement in the one-level case, are those of Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264; rliable).
"""

import math
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from cql.analysis.results import Group, Population

BC: Group = ("bc", None)
METRICS = ("return", "hazard_probability", "goal_probability", "action_mismatch_rate", "unsupported_action_rate",
           "penalty", "td", "value_estimate", "value_error", "ood_mass")
PAIRED = ("return", "hazard_probability")
HIGHER_IS_BETTER = {"return": True, "hazard_probability": False}
MISMATCH_WITHIN = 0.005  # CQL is taken for BC if it departs from the logged action on so much more of the data at most
THRESHOLDS = 101  # of a profile: quantiles of all members' values
ROUNDING = 1e-12  # relative width below which an interval is none

Estimate = list  # [estimate, low, high]; low and high None where there is no interval


# --------------------------------------------------------------------------------------------------- statistics


def mean(values, counts):
    """Mean of values [N] that occur counts [R, N] times: [R]."""
    return counts @ values / counts.sum(-1)


def interquartile_mean(values, counts):
    """Mean of what is left when floor(n / 4) of the n = sum of counts values are cut at each end; [N], [R, N] -> [R]."""
    values, counts, until = _sorted(values, counts)
    total = until[:, -1:]
    cut = total // 4
    kept = np.clip(np.minimum(until, total - cut) - np.maximum(until - counts, cut), 0, None)
    return kept @ values / kept.sum(-1)


def quantile(values, counts, q):
    """The q-quantile, linear between order statistics (NumPy's default); [N], [R, N] -> [R]."""
    values, counts, until = _sorted(values, counts)
    last = until[:, -1] - 1
    position = q * last
    below = np.floor(position)
    low, high = (values[(until > order[:, None]).argmax(-1)] for order in (below, np.minimum(below + 1, last)))
    return low + (position - below) * (high - low)


def largest(values, counts):
    """The largest value that occurs; [N], [R, N] -> [R]."""
    return np.where(counts > 0, values, -np.inf).max(-1)


def _sorted(values, counts):
    order = np.argsort(values, kind="stable")
    counts = counts[:, order]
    return values[order], counts, counts.cumsum(-1)


STATISTICS = {"mean": (mean, 0.5), "iqm": (interquartile_mean, 0.5),  # name -> (function, the quantile it is bounded as)
              "q90": (partial(quantile, q=0.9), 0.9), "worst": (largest, 1.0)}
SHOWN = {"return": ("mean", "iqm"), "hazard_probability": ("mean", "q90", "worst")}  # a hazard's tail is the point: no IQM


# ---------------------------------------------------------------------------------------------------- intervals


def resample_counts(draws: int, seeds: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each member occurs in each resample, ``[R, D, S]`` int64; the draws do not depend on the number of seeds."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, draws, (resamples, draws))
    within = random.integers(0, seeds, (resamples, draws, seeds))
    counts = np.zeros((resamples, draws, seeds), dtype=np.int64)
    np.add.at(counts, (np.arange(resamples)[:, None, None], drawn[..., None], within), 1)
    return counts


def replicates(values, counts, statistic: str) -> np.ndarray:
    """The statistic of each resample: values [D, S], counts [R, D, S] -> [at most R]; one without any value is left out."""
    present = ~np.isnan(values)
    counts = counts[:, present]
    return STATISTICS[statistic][0](values[present], counts[counts.any(-1)])


def expanded_percentile(replicates, units: int, level: float) -> tuple[float, float]:
    """Percentile interval of resampled statistics [R] of n = ``units`` independent values, at the expanded level
    Phi(-sqrt(n / (n - 1)) t) with t Student's quantile (Hesterberg 2015)."""
    tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * student_quantile((1 + level) / 2, units - 1))
    low, high = np.quantile(replicates, (tail, 1 - tail))
    return float(low), float(high)


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t quantile to within 0.3 % from 5 degrees of freedom on (Abramowitz & Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
             (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160)
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def units_needed(q: float, level: float) -> float:
    """The fewest independent units whose range misses a q-quantile to one side with probability at most (1 - level) / 2."""
    outside = max(q, 1 - q)
    return math.inf if outside == 1 else max(2, math.ceil(math.log((1 - level) / 2) / math.log(outside)))


def units(present) -> int:
    """Independent values among present [D, S]: draws with any; seeds where there is one draw."""
    return int(present.any(1).sum()) if len(present) > 1 else int(present.sum())


def wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen in n independent units (a unit may hold any value in [0, 1])."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """One set of resamples for all groups and metrics of a population.

    Args:
        counts: [R, D, S], ``resample_counts``; level: of the intervals.
    """

    counts: np.ndarray
    level: float = 0.95

    @classmethod
    def of(cls, population: Population, resamples: int = 2000, level: float = 0.95) -> "Bootstrap":
        """Raises ValueError for a level outside (0, 1) or fewer than 2 resamples."""
        if not (0 < level < 1 and resamples >= 2):
            raise ValueError(f"a level in (0, 1) and at least 2 resamples are needed, not {level} and {resamples}.")
        config = population.config
        return cls(resample_counts(config.num_datasets, config.num_seeds, resamples), level)

    def estimate(self, values, statistic: str = "mean") -> Estimate | None:
        """[estimate, low, high] of a statistic of values [D, S]; None if all are NaN. See the module for the rules."""
        values, (function, q) = np.asarray(values, dtype=np.float64), STATISTICS[statistic]
        present = ~np.isnan(values)
        if not present.any():
            return None
        used, n = values[present], units(present)
        found = float(function(used, np.ones((1, used.size), dtype=np.int64))[0])
        if n < units_needed(q, self.level):
            return [found, None, None]
        return [found, *_spread(replicates(values, self.counts, statistic), n, self.level, np.abs(used).max())]

    def share(self, hits) -> Estimate | None:
        """[share, low, high] of hits [D, S] in [0, 1], NaN where missing; None if all are."""
        present = ~np.isnan(hits)
        if not present.any():
            return None
        share = float(np.nanmean(hits))
        return [share, *wilson(share, units(present), self.level)]


def _spread(replicates, n, level, scale):
    low, high = expanded_percentile(replicates, n, level)
    return (low, high) if high - low > ROUNDING * scale else (None, None)


def improvement(values, other, higher_is_better: bool = True) -> np.ndarray:
    """Per pair of the same draw and seed: 1 where the first is better, 1/2 for a tie, 0 where worse; NaN where one is
    missing. ``[D, S]``. Its mean is the probability of improvement over pairs, not over all combinations of runs."""
    return (np.sign(values - other) * (1 if higher_is_better else -1) + 1) / 2


def unpaired_difference(values, other, resamples: int = 2000, level: float = 0.95) -> Estimate | None:
    """[mean(values) - mean(other), low, high] of two independent samples [D, S] and [D', S'], each resampled by itself."""
    sides = [np.asarray(side, dtype=np.float64) for side in (values, other)]
    if any(np.isnan(side).all() for side in sides):
        return None
    found = float(np.nanmean(sides[0]) - np.nanmean(sides[1]))
    n = min(units(~np.isnan(side)) for side in sides)
    if n < units_needed(0.5, level):
        return [found, None, None]
    resampled = [replicates(side, resample_counts(*side.shape, resamples, seed), "mean") for seed, side in enumerate(sides)]
    common = min(map(len, resampled))
    scale = max(np.nanmax(np.abs(side)) for side in sides)
    return [found, *_spread(resampled[0][:common] - resampled[1][:common], n, level, scale)]


# ------------------------------------------------------------------------------------------------------ summary


def summary(population: Population, resamples: int = 2000, level: float = 0.95) -> dict:
    """Everything about a population as JSON without NaN; deterministic.

    ``metrics`` of a group: name -> {"missing", statistic: [estimate, low, high]}, None where no member has it.
    Differences are paired: this minus BC, ``alpha`` minus ``other``, same draw and seed. Hazard improves downwards.

    Raises:
        ValueError: a level outside (0, 1) or fewer than 2 resamples.
    """
    bootstrap = Bootstrap.of(population, resamples, level)
    config, alphas = population.config, population.alphas
    return {
        "level": level, "resamples": resamples, "draws": config.num_datasets, "seeds": config.num_seeds,
        "method": "hierarchical bootstrap, expanded percentile; Wilson's score interval for shares",
        "intervals_over": "draws and seeds" if config.num_datasets > 1 else "seeds only",
        "units_needed": {name: _finite(units_needed(q, level)) for name, (_, q) in STATISTICS.items()},
        "groups": [_group(population, bootstrap, group) for group in population.groups],
        "pairs": [{"alpha": alpha, "other": other, **against(population, bootstrap, ("cql", alpha), ("cql", other))}
                  for other, alpha in zip(alphas, alphas[1:])],
        "profiles": {metric: _profile(population, bootstrap, metric) for metric in PAIRED},
        "claims": claims(population, bootstrap),
    }


def _group(population, bootstrap, group):
    metrics = {}
    for metric in METRICS:
        values = population.values(metric, group)
        found = {name: bootstrap.estimate(values, name) for name in SHOWN.get(metric, ("mean",))}
        missing = int(np.isnan(values).sum())
        metrics[metric] = None if missing == values.size else {"missing": missing, **found}
    known = group != BC and BC in population.groups
    return {"algorithm": group[0], "alpha": group[1], "members": values.size,
            "diverged": int(population.diverged(group).sum()),
            "missing": int(np.isnan(population.values("return", group)).sum()),
            "metrics": metrics, "against_bc": against(population, bootstrap, group, BC) if known else None}


def against(population: Population, bootstrap: Bootstrap, group: Group, other: Group) -> dict:
    """``paired`` of two groups of one population."""
    return paired(bootstrap, *({metric: population.values(metric, side) for metric in PAIRED} for side in (group, other)))


def paired(bootstrap: Bootstrap, mine: dict, theirs: dict) -> dict:
    """Paired mean differences ``mine`` minus ``theirs`` and probability of improvement, by metric; None where no pair has it.

    Args:
        mine, theirs: the metrics of ``PAIRED`` -> [D, S], the same draw and seed at the same place.
    """
    return {**{metric: bootstrap.estimate(mine[metric] - theirs[metric]) for metric in PAIRED},
            "probability_of_improvement": {metric: bootstrap.share(improvement(mine[metric], theirs[metric],
                                                                               HIGHER_IS_BETTER[metric])) for metric in PAIRED}}


def _profile(population, bootstrap, metric):
    """Share of members at least as good as each threshold, by group; thresholds are values that occur."""
    values = {group: population.values(metric, group) for group in population.groups}
    pooled = np.concatenate([found[~np.isnan(found)] for found in values.values()])
    if not pooled.size:
        return None
    thresholds = np.unique(np.quantile(pooled, np.linspace(0, 1, THRESHOLDS), method="nearest"))
    groups = []
    for (algorithm, alpha), found in values.items():
        shares = profile(found, thresholds, bootstrap, HIGHER_IS_BETTER[metric])
        if shares is not None:
            groups.append({"algorithm": algorithm, "alpha": alpha, **dict(zip(("share", "low", "high"), shares))})
    return {"thresholds": thresholds.tolist(), "groups": groups}


def profile(values, thresholds, bootstrap: Bootstrap, higher_is_better: bool = True) -> tuple[list, list, list] | None:
    """(share, low, high) of members [D, S] at or above (below, if lower is better) each threshold [T], pointwise intervals."""
    if np.isnan(values).all():
        return None
    good = (values >= thresholds[:, None, None]) if higher_is_better else (values <= thresholds[:, None, None])  # [T, D, S]
    return tuple(map(list, zip(*(bootstrap.share(np.where(np.isnan(values), np.nan, hits)) for hits in good))))


# ------------------------------------------------------------------------------------------------------- claims


def claims(population: Population, bootstrap: Bootstrap) -> dict:
    """What a sweep over alpha allows to be said; each value None where nothing satisfies it or nothing can be known.

    - ``hazard_below_bc``: the smallest alpha whose paired hazard difference to BC has its whole interval below 0, and
      ``alphas``, all for which that holds (each by itself: no correction for looking at several).
    - ``best_return``, ``best_hazard``: the alpha with the highest mean return and the lowest mean hazard, and the paired mean
      ``lead`` over the runner-up; an interval that contains 0 is a tie. Having been picked, a leader leads a little too far.
    - ``becomes_bc``: the smallest alpha that, like every larger one in the run, has a paired return difference to BC that is 0
      or has 0 in its interval, *and* differs by at most ``mismatch_within`` from BC in the share of the data whose
      logged action it departs from (paired mean). The interval alone would take few or noisy draws for equality.
    """
    below, same = [], []
    for alpha in population.alphas if BC in population.groups else []:
        group = ("cql", alpha)
        hazard, returns, mismatch = (bootstrap.estimate(population.values(metric, group) - population.values(metric, BC))
                                     for metric in ("hazard_probability", "return", "action_mismatch_rate"))
        if hazard is not None and hazard[2] is not None and hazard[2] < 0:
            below.append(alpha)
        alike = returns is not None and (returns[0] == 0 or (returns[1] is not None and returns[1] <= 0 <= returns[2]))
        # an alpha that fails breaks the chain
        same = [*same, alpha] if alike and mismatch is not None and abs(mismatch[0]) <= MISMATCH_WITHIN else []
    return {"hazard_below_bc": {"alpha": min(below, default=None), "alphas": below},
            "best_return": _best(population, bootstrap, "return"),
            "best_hazard": _best(population, bootstrap, "hazard_probability"),
            "becomes_bc": {"alpha": min(same, default=None), "alphas": same, "mismatch_within": MISMATCH_WITHIN}}


def _best(population, bootstrap, metric):
    found = {alpha: population.values(metric, ("cql", alpha)) for alpha in population.alphas}
    means = {alpha: bootstrap.estimate(values) for alpha, values in found.items()}
    ranked = sorted((alpha for alpha in means if means[alpha] is not None),
                    key=lambda alpha: means[alpha][0], reverse=HIGHER_IS_BETTER[metric])
    if not ranked:
        return None
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    return {"alpha": first, "mean": means[first], "runner_up": second,
            "lead": None if second is None else bootstrap.estimate(found[first] - found[second])}


def _finite(number):
    return None if math.isinf(number) else number


# --------------------------------------------------------------------------------------------------------- text


def table(summary: dict) -> str:
    """A ``summary`` as text for a terminal."""
    needed, pairs = summary["units_needed"], summary["pairs"]
    held = [(_alpha(group), group["against_bc"]) for group in summary["groups"] if group["against_bc"]]
    lines = [f"{summary['draws']} data draws × {summary['seeds']} training seeds, all values exact; [{summary['level']:.0%} "
             f"intervals] over {summary['intervals_over']}.",
             f"{needed['mean']} {'draws' if summary['draws'] > 1 else 'seeds'} are the fewest that give a mean an interval, "
             f"{needed['q90']} a 90 % quantile; the worst has none.", "", *group_lines(summary["groups"])]
    if held:
        lines += ["", "CQL minus BC, paired by data draw and seed", *difference_lines(held)]
    if pairs:
        lines += ["", "alpha minus the next lower, paired",
                  *difference_lines([(f"{pair['alpha']:g} - {pair['other']:g}", pair) for pair in pairs])]
    return "\n".join([*lines, "", *_sentences(summary)])


def group_lines(groups: list[dict]) -> list[str]:
    """A heading and a line for each of a summary's groups."""
    rows = [("policy", "alpha", "members", "return: mean", "interquartile mean", "hazard: mean", "90 % quantile", "worst",
             "mismatch", "")]
    for group in groups:
        returns, hazards, mismatch = (group["metrics"][name] or {} for name in
                                      ("return", "hazard_probability", "action_mismatch_rate"))
        rows.append((group["algorithm"].upper(), _alpha(group), str(group["members"]),
                     *(interval_text(returns.get(name)) for name in ("mean", "iqm")),
                     *(interval_text(hazards.get(name), 3) for name in ("mean", "q90", "worst")),
                     interval_text(mismatch.get("mean"), 3),
                     ", ".join(f"{group[name]} {name}" for name in ("diverged", "missing") if group[name])))
    return aligned(rows, right=(1, 2))


def difference_lines(rows: list[tuple[str, dict]]) -> list[str]:
    """A heading and a line for each (name, ``paired``)."""
    lines = [("alpha", "return", "hazard", "P(higher return)", "P(lower hazard)")]
    for name, row in rows:
        better = row["probability_of_improvement"]
        lines.append((name, interval_text(row["return"], 2, "+"), interval_text(row["hazard_probability"], 3, "+"),
                      *(interval_text(better[metric]) for metric in PAIRED)))
    return aligned(lines, right=(0,))


def interval_text(estimate: Estimate | None, places: int = 2, sign: str = "") -> str:
    """``18.43 [15.20, 20.90]``, without brackets where there is no interval, – where there is no estimate."""
    if estimate is None:
        return "–"
    value, low, high = (None if x is None else format(x, f"{sign}.{places}f") for x in estimate)
    return value if low is None else f"{value} [{low}, {high}]"


def aligned(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Lines with columns of equal width; those numbered in ``right`` are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) if n in right else cell.ljust(width)
                      for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def _alpha(group) -> str:
    return "–" if group["alpha"] is None else f"{group['alpha']:g}"


def _sentences(summary) -> list[str]:
    claims, enough = summary["claims"], max(summary["draws"], summary["seeds"] if summary["draws"] == 1 else 0)
    unknown = "at no alpha of this run." if enough >= summary["units_needed"]["mean"] else "too few to say."
    below, same = claims["hazard_below_bc"], claims["becomes_bc"]
    lines = [f"Hazard below BC's with {summary['level']:.0%} confidence: " + (
        f"from alpha = {below['alpha']:g}; it holds at {', '.join(f'{alpha:g}' for alpha in below['alphas'])}."
        if below["alphas"] else unknown)]
    for name, words, places in (("best_return", "Highest mean return", 2), ("best_hazard", "Lowest mean hazard", 3)):
        best = claims[name]
        if best is not None:
            lead = "" if best["lead"] is None else (f"; paired lead over alpha = {best['runner_up']:g}: "
                                                    f"{interval_text(best['lead'], places, '+')}")
            lines.append(f"{words}: alpha = {best['alpha']:g}, {interval_text(best['mean'], places)}{lead}.")
    return [*lines, f"CQL acts as BC (equal return, mismatch within {same['mismatch_within']:g}): " + (
        unknown if same["alpha"] is None else f"from alpha = {same['alpha']:g} on.")]
