"""The gate before a promotion: what a policy is worth on a fixed test set, held against stated limits.

The environment is the one that the entry's data name. With a transition table every measure is the exact expectation
over one episode. Without one it comes from episodes of a fixed test set, number i from environment seed
``TEST_SEED + i``, and the worse end of its interval (`cql.analysis.statistics`, each at ``Limits.confidence``,
two-sided, not jointly) must meet the stated limit:

- hazard probability: Clopper-Pearson over episodes that met a hazard, by ``info["hazard"]`` of every step.
- return: Student's t. It takes the mean of so many episodes for normal, and knows nothing of a catastrophe that no
  episode of the test set met: limit its probability as a hazard.
- unsupported-action rate, unsupported steps over all steps: ``cluster_rate``, since steps of an episode depend on each
  other.

A measure that cannot be known lies between 0 and 1, so that only the limit 1 lets it pass: the hazard probability of an
environment that reports none, and the rate of an entry whose observations are vectors without state numbers, because
no BC of its data stands beside it.
"""

import math
from dataclasses import asdict, dataclass

from cql.analysis.evaluation import Rollouts, exact_evaluation
from cql.analysis.statistics import clopper_pearson, cluster_rate, student_quantile
from cql.deploy.model import Model
from cql.errors import RunError
from cql.text import aligned, number
from cql.world import World

TEST_SEED = 20_000  # environment seed of the first episode of the fixed test set
FEWEST, MOST = 30, 100_000  # episodes
NAMES = {"hazard_probability": "hazard probability", "return": "return",
         "unsupported_action_rate": "unsupported-action rate"}

Limited = tuple[float | None, float, float]  # a measure (None: unknown) and its limits


@dataclass(frozen=True)
class Limits:
    """What a policy must meet to be promoted.

    Attributes:
        max_hazard: largest probability of meeting a hazard in an episode. min_return: least mean undiscounted return.
        max_unsupported: largest share of steps whose action the data never took there.
        confidence, episodes: of the limits where only episodes are to be had.

    Raises:
        RunError: one of them is out of its range.
    """

    max_hazard: float = 0.05
    min_return: float = 0.0
    max_unsupported: float = 0.01
    confidence: float = 0.95
    episodes: int = 1000

    def __post_init__(self):
        for name, value in asdict(self).items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise RunError(f"{name} must be a finite number, not {value!r}.")
        for name in ("max_hazard", "max_unsupported"):
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"{name} must lie between 0 and 1, not {getattr(self, name):g}.")
        if not 0.5 <= self.confidence <= 0.9999:
            raise RunError(f"confidence must lie between 0.5 and 0.9999, not {self.confidence:g}.")
        if type(self.episodes) is not int or not FEWEST <= self.episodes <= MOST:
            raise RunError(f"episodes must be a number from {FEWEST} to {MOST:,}, not {self.episodes:g}.")


def judge(model: Model, limits: Limits) -> dict:
    """What a model measures against limits, as JSON: ``{"exact", "episodes", "seed", "confidence", "limits",
    "measures": [{"name", "value", "low", "high", "limit", "passed", "missed_by"}], "passed", "reasons"}``.

    ``low`` and ``high`` are ``value`` where it is exact; ``missed_by`` is 0 where it passed; ``reasons`` has a sentence
    for every limit missed. Without an environment there are no measures, one reason, and no pass. Raises RunError for
    rewards that are no finite numbers, or too large to be added up.
    """
    exact = model.world.mdp is not None
    found = {"exact": exact, "episodes": None if exact else limits.episodes, "seed": None if exact else TEST_SEED,
             "confidence": None if exact else limits.confidence, "limits": asdict(limits)}
    if model.world.environment is None:
        return {**found, "measures": [], "passed": False,
                "reasons": ["the data name no environment, so nothing can be said of how the policy would act in one."]}
    hazard, returns, unsupported = _exact(model) if exact else _sampled(model, limits)
    measures = [_measure("hazard_probability", *hazard, limits.max_hazard, False),
                _measure("return", *returns, limits.min_return, True),
                _measure("unsupported_action_rate", *unsupported, limits.max_unsupported, False)]
    missed = [measure for measure in measures if not measure["passed"]]
    return {**found, "measures": measures, "passed": not missed,
            "reasons": [_reason(measure, found) for measure in missed]}


def table(gate: dict) -> str:
    """The measures of a gate as text."""
    if not gate["measures"]:
        return "nothing was measured"
    rows = [("", "value", "" if gate["exact"] else "low", "" if gate["exact"] else "high", "limit", "")]
    for m in gate["measures"]:
        limits = ("", "") if gate["exact"] else (number(m["low"], ".4g"), number(m["high"], ".4g"))
        rows.append((NAMES[m["name"]], number(m["value"], ".4g"), *limits,
                     ("at least " if m["name"] == "return" else "at most ") + number(m["limit"], ".4g"),
                     "passed" if m["passed"] else f"MISSED by {number(m['missed_by'], '.4g')}"))
    how = ("exact expectations over an episode" if gate["exact"] else
           f"{gate['episodes']} episodes from seed {gate['seed']}, {100 * gate['confidence']:g} % limits")
    return "\n".join([how, *aligned(rows, left=(0, 5))])


# --------------------------------------------------------------------------------------------------------- the measures


def _exact(model: Model) -> tuple[Limited, ...]:
    """(value, low, high) of hazard probability, return and unsupported-action rate: equal, or an unknown one's."""
    [(known, unsupported)] = exact_evaluation(model.world, [model.policy], [model.support], model.config.gamma)
    return tuple((None, 0.0, 1.0) if value is None else (value,) * 3
                 for value in (known["hazard_probability"], known["return"], unsupported))


def _sampled(model: Model, limits: Limits) -> tuple[Limited, ...]:
    """(value, low, high) of the three from the episodes of the test set."""
    rolled = Rollouts(World(model.world.environment, None), limits.episodes, TEST_SEED).of(model.policy)
    n, level = len(rolled.returns), limits.confidence
    mean = float(rolled.returns.mean())
    half = student_quantile((1 + level) / 2, n - 1) * float(rolled.returns.std(ddof=1)) / math.sqrt(n)
    if not math.isfinite(mean + half):
        raise RunError("the environment gives rewards that are no finite numbers, or too large to be added up.")
    hazard: Limited = (None, 0.0, 1.0)
    if "hazard" in rolled.ends:
        met = int(rolled.ends["hazard"].sum())
        hazard = (met / n, *clopper_pearson(met, n, level))
    unsupported = rolled.unsupported(model.support)  # [episodes]
    if unsupported is None:
        return hazard, (mean, mean - half, mean + half), (None, 0.0, 1.0)
    longest = model.world.horizon
    rate = float(unsupported.sum() / rolled.lengths.sum())
    return (hazard, (mean, mean - half, mean + half),
            (rate, *cluster_rate(unsupported, rolled.lengths, longest, level)))


# ---------------------------------------------------------------------------------------------------------- the verdict


def _measure(name: str, value, low: float, high: float, limit: float, least: bool) -> dict:
    missed = limit - low if least else high - limit
    return {"name": name, "value": value, "low": low, "high": high, "limit": float(limit), "passed": bool(missed <= 0),
            "missed_by": max(0.0, float(missed))}


def _reason(measure: dict, gate: dict) -> str:
    name, least = NAMES[measure["name"]], measure["name"] == "return"
    bound, limit = measure["low" if least else "high"], number(measure["limit"], ".4g")
    if measure["value"] is None:
        said = f"the {name} is not known here and could be {number(bound, '.4g')}"
    elif gate["exact"]:
        said = f"the {name} is {number(bound, '.4g')}"
    else:
        said = (f"the {name} is {number(measure['value'], '.4g')} over {gate['episodes']} episodes, its "
                f"{'lower' if least else 'upper'} {100 * gate['confidence']:g} % limit {number(bound, '.4g')}")
    side = "below the least" if least else "above the most"
    return f"{said}: {side} allowed, {limit}, by {number(measure['missed_by'], '.4g')}."
