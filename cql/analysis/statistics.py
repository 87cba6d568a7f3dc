"""Statistics of the members of a run: estimates with bootstrap intervals, paired differences, claims.

Values are arrays ``[D, S]``, data sets by training seeds; exact returns and hazards, so that runs alone vary.

**Resampling** is hierarchical (Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8): data
sets with replacement, then seeds with replacement within each. All groups and metrics share the indices, so differences
are paired. With one data set only seeds are resampled: such an interval says nothing about other data. The variance
between seeds is counted somewhat more than once, on the careful side.

**Intervals** are percentiles of the resampled statistic, moved outwards so that for n normal values they are Student's
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279: the expanded percentile). By
``python -m benchmarks.interval_coverage``, of the 95 % intervals from 16 data sets, 94 to 95 % contain the mean of CQL,
96 to 97 % its interquartile mean, 92 to 93 % a difference between two alphas. Shares have Wilson's score interval
(Wilson 1927), honest at 0 and 1 too.

**No interval** (low and high None) is given where none would be valid: a resampled statistic stays in the range of the
n independent units (data sets; seeds of a single one), which misses a q-quantile on one side with probability
q**n or (1 - q)**n. If the larger exceeds (1 - level) / 2, none is given: a mean (taken as q = 1/2) needs 6 data sets
at 95 %, the 90 % quantile 36, and the worst (q = 1) never has one. Nor is one given where nothing varies. The rule
cannot see a value rare enough to be missing in all n data sets: BC fails badly on one in twelve, and its means and mean
differences are covered by 73 to 76 % of the intervals from 16 data sets, 92 % from 32; nearly all others make BC too
good.

**Missing values** are NaN: members without a policy or a metric. They are left out of a statistic and counted beside
it; a data set without values is no unit, a pair needs both. Without values a statistic is None.

The interquartile mean, and the probability of improvement with one seed per data set, are those of Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264; rliable).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from cql.analysis.results import Group, Results
from cql.text import aligned, counted, interval, number

BC: Group = ("bc", None)
METRICS = ("return", "hazard_probability", "goal_probability", "action_mismatch_rate", "unsupported_action_rate",
           "penalty", "td", "value_estimate", "value_error", "ood_mass")
PAIRED = ("return", "hazard_probability")
HIGHER_IS_BETTER = {"return": True, "hazard_probability": False}
MISMATCH_WITHIN = 0.005  # CQL counts as BC if their mismatch rates differ by at most so much
FLAWS = ("diverged", "not_converged", "missing")  # what members of a group are counted by
TIE = {True: ", a tie", False: "", None: " (no interval: it may be chance)"}  # what to say of a lead
ROUNDING = 1e-12  # relative width below which nothing varies

Interval = tuple[float, float] | tuple[None, None]
Estimate = list  # [estimate, low, high]; low and high None where there is no interval


def interquartile_mean(values, counts):
    """The mean without the floor(n / 4) least and largest of n values [N] that occur counts [R, N] times, ``[R]``."""
    values, counts, until = _sorted(values, counts)
    total = until[:, -1:]
    cut = total // 4
    weights = np.clip(np.minimum(until, total - cut) - np.maximum(until - counts, cut), 0, None)
    return weights @ values / weights.sum(-1)


def quantile(values, counts, q):
    """The q-quantile, linear between order statistics (NumPy's default)."""
    values, counts, until = _sorted(values, counts)
    last = until[:, -1] - 1
    position = q * last
    below = np.floor(position)
    low, high = (values[(until > order[:, None]).argmax(-1)] for order in (below, np.minimum(below + 1, last)))
    return low + (position - below) * (high - low)


def _sorted(values, counts):
    order = np.argsort(values, kind="stable")
    return values[order], counts[:, order], counts[:, order].cumsum(-1)


STATISTICS: dict[str, tuple[Callable, float]] = {  # name -> (function, the quantile that its interval is bounded as)
    "mean": (lambda values, counts: counts @ values / counts.sum(-1), 0.5), "iqm": (interquartile_mean, 0.5),
    "q90": (partial(quantile, q=0.9), 0.9),
    "worst": (lambda values, counts: np.where(counts > 0, values, -np.inf).max(-1), 1.0)}
SHOWN = {"return": ("mean", "iqm"), "hazard_probability": ("mean", "q90", "worst")}  # an IQM would hide a hazard's tail


def resample_counts(datasets: int, seeds: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each member occurs in each resample, ``[R, D, S]`` int64; ``seeds`` does not change the data sets."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, datasets, (resamples, datasets))
    within = random.integers(0, seeds, (resamples, datasets, seeds))
    counts = np.zeros((resamples, datasets, seeds), dtype=np.int64)
    np.add.at(counts, (np.arange(resamples)[:, None, None], drawn[..., None], within), 1)
    return counts


def replicates(values, counts, statistic: str) -> np.ndarray:
    """The statistic of every resample with a value: values ``[D, S]``, counts ``[R, D, S]`` -> ``[at most R]``."""
    present = ~np.isnan(values)
    counts = counts[:, present]
    return STATISTICS[statistic][0](values[present], counts[counts.any(-1)])


def expanded_percentile(replicates, units: int, level: float, scale: float) -> Interval:
    """Percentile interval of a statistic's resamples ``[R]`` for n = ``units`` independent values (Hesterberg 2015).

    The level is expanded to Phi(-sqrt(n / (n - 1)) t), t Student's quantile. None if narrower than ROUNDING * scale.
    """
    tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * student_quantile((1 + level) / 2, units - 1))
    low, high = map(float, np.quantile(replicates, (tail, 1 - tail)))
    return (low, high) if high - low > ROUNDING * scale else (None, None)


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t quantile to within 0.3 % from 5 degrees of freedom on (Abramowitz & Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
             (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160)
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def units_needed(q: float, level: float) -> float:
    """The fewest independent units whose range misses a q-quantile on one side with probability <= (1 - level) / 2."""
    outside = max(q, 1 - q)
    return math.inf if outside == 1 else max(2, math.ceil(math.log((1 - level) / 2) / math.log(outside)))


def units(present) -> int:
    """Independent units among present ``[D, S]``: data sets with a value; seeds where there is one data set."""
    return int(present.any(1).sum()) if len(present) > 1 else int(present.sum())


def wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a share in n independent units (the share of a unit may be any number in [0, 1])."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(met: int, n: int, level: float) -> tuple[float, float]:
    """Limits for the probability behind ``met`` of n independent episodes, which hold with at least ``level``.

    Clopper & Pearson, Biometrika 26, 1934.
    """
    tail = (1 - level) / 2
    low = 0.0 if met == 0 else _root(lambda p: 1 - binomial_cdf(met - 1, n, p) - tail)
    high = 1.0 if met == n else _root(lambda p: tail - binomial_cdf(met, n, p))
    return low, high


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k), X binomial(n, p), 0 < p < 1: a sum of the terms, each by its logarithm."""
    terms = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
             + i * math.log(p) + (n - i) * math.log1p(-p) for i in range(k + 1))
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def hoeffding(mean: float, n: int, level: float) -> tuple[float, float]:
    """Limits for the expectation m behind the mean of n independent values in [0, 1]: all with
    n KL(mean || m) <= ln(2 / (1 - level)) (Hoeffding, JASA 58, 1963, theorem 1)."""
    most = math.log(2 / (1 - level)) / n

    def excess(m: float) -> float:
        return _divergence(mean, m) - most

    low = 0.0 if mean == 0 else _root(lambda x: -excess(mean * x)) * mean
    high = 1.0 if mean == 1 else mean + (1 - mean) * _root(lambda x: excess(mean + (1 - mean) * x))
    return low, high


def cluster_rate(part, whole, most: int, level: float) -> tuple[float, float]:
    """Limits for E[part] / E[whole] of independent episodes, ``[episodes]`` each, 0 <= part <= whole <= most.

    They are quotients of Hoeffding's for the two means, so that they hold for any distribution, and are wide.
    """
    n, each = len(part), (1 + level) / 2  # either mean at half the error
    part_low, part_high = hoeffding(float(np.mean(part)) / most, n, each)
    whole_low, whole_high = hoeffding(float(np.mean(whole)) / most, n, each)
    return part_low / whole_high, min(1.0, part_high / whole_low)


def _divergence(a: float, b: float) -> float:
    """KL between coins of probabilities a and b."""
    return sum(0.0 if x == 0 else math.inf if y <= 0 else x * math.log(x / y) for x, y in ((a, b), (1 - a, 1 - b)))


def _root(rising: Callable[[float], float]) -> float:
    """Where a function on (0, 1) that goes from below 0 to above it crosses, by halving."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """One set of resamples for all groups and metrics of a run.

    Args:
        counts: ``[R, D, S]``, of ``resample_counts``; level: of the intervals.
    """

    counts: np.ndarray
    level: float = 0.95

    @classmethod
    def of(cls, results: Results, resamples: int = 2000, level: float = 0.95) -> "Bootstrap":
        """Raises ValueError for a level outside (0, 1) or fewer than 2 resamples."""
        if not (0 < level < 1 and resamples >= 2):
            raise ValueError(f"a level in (0, 1) and at least 2 resamples are needed, not {level} and {resamples}.")
        return cls(resample_counts(results.config.num_datasets, results.config.num_seeds, resamples), level)

    def estimate(self, values, statistic: str = "mean") -> Estimate | None:
        """[estimate, low, high] of a statistic of values ``[D, S]``; None if all are NaN."""
        values, (function, q) = np.asarray(values, dtype=np.float64), STATISTICS[statistic]
        present = ~np.isnan(values)
        if not present.any():
            return None
        used, n = values[present], units(present)
        estimate = float(function(used, np.ones((1, used.size), dtype=np.int64))[0])
        if n < units_needed(q, self.level):
            return [estimate, None, None]
        resampled = replicates(values, self.counts, statistic)
        return [estimate, *expanded_percentile(resampled, n, self.level, np.abs(used).max())]

    def sign(self, differences) -> int | None:
        """Where a mean difference ``[D, S]`` lies: -1 below 0, 1 above, 0 neither; None if no interval can say so.

        Differences that are all 0 have no interval, but from enough data sets they say 0.
        """
        differences = np.asarray(differences, dtype=np.float64)
        estimate, present = self.estimate(differences), ~np.isnan(differences)
        if estimate is None or estimate[1] is None:
            enough = units(present) >= units_needed(0.5, self.level)
            return 0 if enough and not differences[present].any() else None
        return int(estimate[1] > 0) - int(estimate[2] < 0)

    def share(self, hits) -> Estimate | None:
        """[share, low, high] of hits ``[D, S]`` in [0, 1]; None if all are NaN."""
        present = ~np.isnan(hits)
        if not present.any():
            return None
        share = float(np.nanmean(hits))
        return [share, *wilson(share, units(present), self.level)]


def improvement(values, other, higher_is_better: bool = True) -> np.ndarray:
    """1 where ``values`` are better than ``other`` of the same member, 1/2 for a tie, 0 where worse, ``[D, S]``.

    NaN without a pair. Its mean is the probability of improvement over pairs, not over all combinations of runs.
    """
    return (np.sign(values - other) * (1 if higher_is_better else -1) + 1) / 2


def summary(results: Results, resamples: int = 2000, level: float = 0.95) -> dict:
    """All statistics of a run, the content of ``statistics.json``; deterministic.

    ``metrics`` of a group: name -> {"missing", statistic: [estimate, low, high]}, None where no member has it.
    Differences are paired: this minus BC, ``alpha`` minus ``other``, same data set and seed.

    Raises:
        ValueError: a level outside (0, 1) or fewer than 2 resamples.
    """
    bootstrap = Bootstrap.of(results, resamples, level)
    config, alphas = results.config, results.alphas
    needed = {name: units_needed(q, level) for name, (_, q) in STATISTICS.items()}
    return {
        "level": level, "resamples": resamples, "draws": config.num_datasets, "seeds": config.num_seeds,
        "method": "hierarchical bootstrap, expanded percentile; Wilson's score interval for shares",
        "intervals_over": "data sets and seeds" if config.num_datasets > 1 else "seeds only",
        "units_needed": {name: None if math.isinf(n) else n for name, n in needed.items()},
        "groups": [_group(results, bootstrap, group) for group in results.groups],
        "pairs": [{"alpha": alpha, "other": other, **_against(results, bootstrap, ("cql", alpha), ("cql", other))}
                  for other, alpha in zip(alphas, alphas[1:])],
        "claims": claims(results, bootstrap),
    }


def _group(results, bootstrap, group):
    metrics = {}
    for metric in METRICS:
        values = results.values(metric, group)
        missing = int(np.isnan(values).sum())
        metrics[metric] = None if missing == values.size else {
            "missing": missing, **{name: bootstrap.estimate(values, name) for name in SHOWN.get(metric, ("mean",))}}
    has_bc = group != BC and BC in results.groups
    return {"algorithm": group[0], "alpha": group[1], "members": values.size,
            "diverged": int(results.diverged(group).sum()),
            "not_converged": int((results.converged(group) == 0).sum()),
            "missing": int(np.isnan(results.values("return", group)).sum()),
            "metrics": metrics, "against_bc": _against(results, bootstrap, group, BC) if has_bc else None}


def _against(results, bootstrap, *groups):
    return paired(bootstrap, *({metric: results.values(metric, group) for metric in PAIRED} for group in groups))


def paired(bootstrap: Bootstrap, values: dict, other: dict) -> dict:
    """Paired mean differences ``values - other`` and probability of improvement, by metric; None without a pair.

    Args:
        values, other: the metrics of ``PAIRED`` -> ``[D, S]`` of the same data sets and seeds.
    """
    return {**{metric: bootstrap.estimate(values[metric] - other[metric]) for metric in PAIRED},
            "probability_of_improvement": {metric: bootstrap.share(
                improvement(values[metric], other[metric], HIGHER_IS_BETTER[metric])) for metric in PAIRED}}


def claims(results: Results, bootstrap: Bootstrap) -> dict:
    """The claims that the alphas of a run allow; an ``alpha`` is None where no alpha satisfies the claim.

    - ``hazard_below_bc``: the smallest alpha whose paired hazard difference to BC has its whole interval below 0, and
      ``alphas``, all such (each by itself: no correction for looking at several).
    - ``best_return``, ``best_hazard``: the alpha with the highest mean return and the lowest mean hazard, and the
      paired mean ``lead`` over the runner-up; an interval that contains 0 is a ``tie``. The lead of a best one is
      biased upwards.
    - ``becomes_bc``: the smallest alpha that, like every larger one, has a paired return difference to BC that is 0 or
      has 0 in its interval, *and* a paired mismatch difference of at most ``mismatch_within``. The interval alone would
      take few or noisy data sets for equality.

    ``unknown`` are the alphas that a claim about BC cannot judge, since their difference has no interval; ``tie`` is
    None likewise, and a ``best_`` claim is None where no alpha has a value.
    """
    alphas, signs = results.alphas, {}
    for metric in PAIRED:
        signs[metric] = dict.fromkeys(alphas) if BC not in results.groups else {
            alpha: bootstrap.sign(results.values(metric, ("cql", alpha)) - results.values(metric, BC))
            for alpha in alphas}
    below = [alpha for alpha in alphas if signs["hazard_probability"][alpha] == -1]
    same: list[float] = []
    for alpha in alphas:
        alike = signs["return"][alpha] == 0 and abs((bootstrap.estimate(
            results.values("action_mismatch_rate", ("cql", alpha)) - results.values("action_mismatch_rate", BC))
            or [math.nan])[0]) <= MISMATCH_WITHIN
        same = [*same, alpha] if alike else []  # a failure restarts the list
    unknown = {metric: [alpha for alpha in alphas if signs[metric][alpha] is None] for metric in PAIRED}
    return {"hazard_below_bc": {"alpha": min(below, default=None), "alphas": below,
                                "unknown": unknown["hazard_probability"]},
            "best_return": _best(results, bootstrap, "return"),
            "best_hazard": _best(results, bootstrap, "hazard_probability"),
            "becomes_bc": {"alpha": min(same, default=None), "alphas": same, "unknown": unknown["return"],
                           "mismatch_within": MISMATCH_WITHIN}}


def _best(results, bootstrap, metric):
    values = {alpha: results.values(metric, ("cql", alpha)) for alpha in results.alphas}
    means = {alpha: estimate for alpha in values if (estimate := bootstrap.estimate(values[alpha])) is not None}
    if not means:
        return None
    ordered = sorted(means, key=lambda alpha: means[alpha][0], reverse=HIGHER_IS_BETTER[metric])
    first, second = ordered[0], ordered[1] if len(ordered) > 1 else None
    best = {"alpha": first, "mean": means[first], "runner_up": second, "lead": None, "tie": None}
    if second is None:
        return best
    lead = values[first] - values[second]
    sign = bootstrap.sign(lead)
    return best | {"lead": bootstrap.estimate(lead), "tie": None if sign is None else sign == 0}


def too_few(draws: int, seeds: int, level: float = 0.95) -> str | None:
    """Why a run of so many data sets and seeds has no interval of a mean, in words; None if it may have one."""
    needed = units_needed(0.5, level)
    if (draws if draws > 1 else seeds) >= needed:
        return None
    if draws > 1:
        return f"an interval takes {needed} data sets, and the run has {draws}"
    return (f"an interval takes {needed} data sets, or {needed} seeds on one, and the run has "
            f"{counted(draws, 'data set')} and {counted(seeds, 'seed')}")


def not_found(summary: dict, claim: str, metric: str) -> tuple[bool, str]:
    """Whether a claim about BC that no alpha satisfies is known to hold at none, and that, or why not, in words."""
    if not any(group["algorithm"] == "bc" for group in summary["groups"]):
        return False, "the run has no BC"
    unknown = summary["claims"][claim]["unknown"]
    if not unknown:
        return True, "at no alpha of this run"
    if len(unknown) < sum(group["alpha"] is not None for group in summary["groups"]):
        listed = ", ".join(f"{alpha:g}" for alpha in unknown)
        return True, f"at no alpha that has an interval; there is none at {listed}"
    if not any(group["against_bc"][metric] for group in summary["groups"] if group["against_bc"]):
        return False, "no member has a value"
    few = too_few(summary["draws"], summary["seeds"], summary["level"])
    return False, few or "the differences have no interval"


def table(summary: dict) -> str:
    """A ``summary`` for the terminal."""
    needed, pairs, draws, seeds = (summary[name] for name in ("units_needed", "pairs", "draws", "seeds"))
    exact = any(group["metrics"]["return"] for group in summary["groups"])
    to_bc = [(number(group["alpha"], "g"), group["against_bc"]) for group in summary["groups"] if group["against_bc"]]
    few, units = too_few(draws, seeds, summary["level"]), "data sets" if draws > 1 else "seeds"
    lines = [f"{counted(draws, 'data set')} × {counted(seeds, 'training seed')}, "
             + ("all values exact" if exact else "no exact values")
             + (f"; means have no interval: {few}." if few else
                f"; [{summary['level']:.0%} intervals] over {summary['intervals_over']}. {needed['mean']} {units} are "
                f"the fewest that give a mean an interval,\n{needed['q90']} a 90 % quantile; the worst has none."),
             "", *group_lines(summary["groups"])]
    if to_bc and exact:
        lines += ["", "CQL minus BC, paired by data set and seed", *difference_lines(to_bc)]
    if pairs and exact:
        lines += ["", "alpha minus the next lower, paired",
                  *difference_lines([(f"{pair['alpha']:g} - {pair['other']:g}", pair) for pair in pairs])]
    if summary["claims"]["best_return"] is None:
        return "\n".join([*lines, "", "No exact return of a CQL policy is known, so nothing is said of alpha."])
    return "\n".join([*lines, "", *(f"{statement}: {alpha}; {why}." for statement, alpha, why in statements(summary))])


def group_lines(groups: list[dict]) -> list[str]:
    """A heading and a line for every group of a summary."""
    rows = [("policy", "alpha", "members", "return: mean", "interquartile mean", "hazard: mean", "90 % quantile",
             "worst", "mismatch", "")]
    for group in groups:
        returns, hazards, mismatch = (group["metrics"][name] or {} for name in (*PAIRED, "action_mismatch_rate"))
        rows.append((group["algorithm"].upper(), number(group["alpha"], "g"), str(group["members"]),
                     *(interval(returns.get(name)) for name in SHOWN["return"]),
                     *(interval(hazards.get(name), ".3f") for name in SHOWN["hazard_probability"]),
                     interval(mismatch.get("mean"), ".3f"),
                     ", ".join(f"{group[name]} {name.replace('_', ' ')}" for name in FLAWS if group[name])))
    return aligned(rows, left=(0, *range(3, 10)))


def difference_lines(rows: list[tuple[str, dict]]) -> list[str]:
    """A heading and a line for every (name, ``paired``)."""
    lines: list[tuple[str, ...]] = [("alpha", "return", "hazard", "P(higher return)", "P(lower hazard)")]
    lines += [(name, interval(row["return"], "+.2f"), interval(row["hazard_probability"], "+.3f"),
               *(interval(row["probability_of_improvement"][metric]) for metric in PAIRED)) for name, row in rows]
    return aligned(lines, left=range(1, 5))


def statements(summary: dict, words: Callable = interval) -> list[tuple[str, str, str]]:
    """What the claims of a summary say: statement, alpha ("none", "not known") and evidence of each.

    ``words(estimate, form)`` writes [estimate, low, high].
    """
    claims, said = summary["claims"], []

    def about_bc(statement: str, claim: str, metric: str, criterion: str) -> None:
        found = claims[claim]
        if found["alpha"] is not None:
            alphas = ", ".join(f"{alpha:g}" for alpha in found["alphas"])
            said.append((statement, f"{found['alpha']:g}", f"{criterion}: at alpha = {alphas}"))
            return
        known, why = not_found(summary, claim, metric)
        said.append((statement, "none", f"{criterion}: {why}") if known else (statement, "not known", why))

    about_bc(f"Smallest alpha with a hazard probability below BC’s with {100 * summary['level']:g} % confidence",
             "hazard_below_bc", "hazard_probability", "the interval of the paired difference to BC lies below 0")
    for statement, best, what, form in (
            ("Highest mean return", claims["best_return"], "return", ".2f"),
            ("Lowest mean hazard probability", claims["best_hazard"], "hazard probability", ".4f")):
        if best is not None and best["lead"]:
            said.append((statement, f"{best['alpha']:g}", (
                f"mean {what} {words(best['mean'], form)}; paired difference to the next best, "
                f"alpha = {best['runner_up']:g}: {words(best['lead'], '+' + form)}{TIE[best['tie']]}")))
    about_bc("Smallest alpha from which on CQL acts as BC", "becomes_bc", "return",
             "from there on the paired difference in return to BC has 0 in its interval, and at most "
             f"{100 * claims['becomes_bc']['mismatch_within']:g} % more or fewer of the logged actions are not taken "
             "than by BC")
    return said
