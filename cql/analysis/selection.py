"""Choosing alpha from data alone, and the referee who holds each rule against the truth.

A rule gives every CQL member a score from what a practitioner has: the data, the trained networks, the training log. In
each (data draw, training seed) it picks the alpha of the best score. This project alone can then say what that pick is
worth, since ``evaluation.json`` holds the exact return and hazard probability of every member.

What all rules have in common:

- A member whose outputs are not finite has no policy, hence no score. One that the log flags as run away (its values
  exceed what any solution of its loss can reach) is no candidate either, as that is known without the environment: it is
  neither picked nor ranked. Its policy still counts where estimators are judged by themselves: coverage, availability.
- Regret: the best exact value among all policies of that (draw, seed), flagged ones too, minus that of the pick, or for
  hazards the pick's minus the least. Equal scores share a pick equally, and its regret is their mean.
- Rank correlations (over the alphas of a draw and seed) and regrets are means over draws and seeds, with the intervals of
  `cql.analysis.statistics`, which resample draws first.
- Estimates are by `cql.analysis.ope`, with the distinct observations of a draw as states. Which states are hazards is
  taken to be known, as rewards are.

Axes: X draws, Y seeds, Z alphas.
"""

import math
from dataclasses import dataclass

import gymnasium
import numpy as np

from cql.analysis import ope
from cql.analysis.evaluation import load_policy
from cql.analysis.figure_data import cross_entropy_floor, states_of
from cql.analysis.results import Population
from cql.analysis.statistics import Bootstrap, aligned
from cql.collect import environment_of, exact_model
from cql.dataset import OfflineDataset
from cql.diagnostics import state_inputs
from cql.members import Member
from cql.metrics import read_metrics
from cql.runs import RunError, RunFolder

TARGETS = ope.TARGETS
DEFAULT_ALPHA = 6.0  # the baseline that looks at nothing
SHARE = 0.1  # of a curve's range: what a rise or a fall has to exceed
HIGH_TD = 2.0  # times the least TD loss among the members compared
WITHIN = 1.0  # return points: a pick this close to the best counts as good
DECIMALS = 10  # scores and exact values that agree so far are equal: the rest is rounding
MAX_WORK = 2_000_000  # observations, or episodes, times steps of an episode; beyond, estimates would take minutes a member


# ------------------------------------------------------------------------------------------------------ pure computations


def ranks(values) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank: ``[n] -> [n]``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x, y) -> float:
    """Rank correlation of two vectors, over the entries that are numbers in both.

    NaN if fewer than two are, or if either is constant over them.
    """
    known = np.isfinite(x) & np.isfinite(y)
    a, b = ranks(np.asarray(x)[known]), ranks(np.asarray(y)[known])
    if known.sum() < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def picks(scores) -> np.ndarray:
    """How a rule splits its choice: scores (high is better) ``[..., Z]`` -> shares ``[..., Z]``.

    1 for the best, equal parts if several are; all 0 where no score is a number.
    """
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    best = (scores == scores.max(-1, keepdims=True)) & np.isfinite(scores)
    return best / np.maximum(best.sum(-1, keepdims=True), 1)


def regret(shares, worth) -> np.ndarray:
    """What a choice loses: shares, worth (high is better, NaN without a policy) ``[..., Z] -> [...]``; NaN without a pick."""
    known = np.isfinite(worth)
    best = np.where(known, worth, -np.inf).max(-1)
    picked = (shares * np.where(known, worth, 0.0)).sum(-1)
    sound = (shares.sum(-1) > 0) & (np.where(known, 0.0, shares).sum(-1) == 0)
    return np.where(sound, best - picked, np.nan) if shares.shape[-1] else np.full(shares.shape[:-1], np.nan)


def rises_then_falls(values, share: float = SHARE) -> bool:
    """Whether a curve that starts at 0 climbs to a peak and comes down again, each by more than a share of its range.

    The sign of overfitting of Kumar et al. 2021 (arXiv 2109.10813), for the mean Q on the data; networks start near 0.
    """
    curve = np.concatenate([[0.0], np.asarray(values, dtype=np.float64)])
    curve = curve[np.isfinite(curve)]
    peak = int(curve.argmax())
    least = share * np.ptp(curve)
    return bool(curve[peak] - curve[:peak + 1].min() > least and curve[peak] - curve[-1] > least)


def underfits(td, penalty, least_td, floor, ceiling):
    """Whether TD loss and penalty are both high at the end: the sign of underfitting of Kumar et al. 2021.

    TD loss: above ``HIGH_TD`` times the least among the members compared. Penalty: less than half of the way
    down from ``ceiling``, log A (a constant Q), to ``floor``, the entropy of the logged actions. Broadcasts; NaN: no.
    """
    return (td > HIGH_TD * least_td) & (penalty > (floor + ceiling) / 2)


def workflow_scores(overfitting, underfitting) -> np.ndarray:
    """Scores (low is better) of the rule of the training curve: bool ``[..., Z]`` by rising alpha -> ``[..., Z]``.

    Fewest signs first, then the smallest alpha. Where no alpha is free of signs, one with a single sign is taken.
    """
    signs = np.add(overfitting, underfitting, dtype=np.float64)
    return signs * signs.shape[-1] + np.arange(signs.shape[-1])


# ------------------------------------------------------------------------------------------------------------- the rules


@dataclass(frozen=True)
class Rule:
    """A rule with its scores.

    Args:
        name, label, what: short id, words, one sentence; uses: return, hazard, training, data or nothing.
        prefers: high or low; scores: ``[X, Y, Z]``, NaN without one.
        target, interval, effective_sample_size: of an estimator: what it estimates, ``[X, Y, Z, 2]``, ``[X, Y, Z]``.
    """

    name: str
    label: str
    what: str
    uses: str
    prefers: str | None
    scores: np.ndarray
    target: str | None = None
    interval: np.ndarray | None = None
    effective_sample_size: np.ndarray | None = None

    @property
    def goodness(self) -> np.ndarray:
        """Scores turned so that high is better."""
        return -self.scores if self.prefers == "low" else self.scores


ESTIMATORS = {
    "fqe": ("FQE", "fitted Q evaluation on the draw's own data, a pair without data being worth 0"),
    "wis": ("WIS", "weighted importance sampling of whole trajectories"),
    "pdis": ("weighted PDIS", "weighted importance sampling of each step's reward"),
    "dr": ("weighted DR", "doubly robust: FQE corrected by the weighted errors of its backups"),
}


def rules(found: "Found") -> list[Rule]:
    """All rules with their scores, baselines last."""
    made = []
    for estimator, (label, what) in ESTIMATORS.items():
        for target, word, prefers in (("return", "return", "high"), ("hazard_probability", "hazard", "low")):
            values = found.estimates[estimator, target]
            made.append(Rule(f"{estimator}_{word}", f"{label} ({word})", f"{'Highest' if prefers == 'high' else 'Lowest'} "
                             f"{word}{' probability' if word == 'hazard' else ''} by {what}.", word, prefers, values[..., 0],
                             target, values[..., 1:], None if estimator == "fqe" else found.effective_sample_size))
    made += [
        Rule("fqe_cautious", "FQE (hazard or unlogged)", "Least probability, in the data's model, of a hazard or of a pair "
             "without data, whichever comes first.", "hazard", "low", found.estimates["fqe", "hazard_probability"][..., 0]
             + found.unlogged),
        Rule("support", "support", "Least probability, in the data's model, that an episode comes to a pair without data.",
             "data", "low", found.unlogged),
        Rule("agreement", "agreement with data", "Smallest share of logged transitions whose action is not the greedy one.",
             "data", "low", found.metric("action_mismatch_rate")),
        Rule("penalty", "conservative penalty", "Lowest conservative penalty at the last log entry.", "training", "low",
             found.metric("penalty")),
        Rule("td", "TD loss", "Lowest TD loss at the last log entry.", "training", "low", found.metric("td")),
        Rule("value", "value estimate", "Highest value that the network itself promises at the start.", "training", "high",
             found.metric("value_estimate")),
        Rule("workflow", "training curve", "Smallest alpha with the fewest signs of overfitting (the mean Q on the data rises "
             "and then falls) and underfitting (TD loss and penalty both stay high), Kumar et al. 2021, arXiv 2109.10813.",
             "training", "low",
             np.where(found.has_policy, workflow_scores(found.overfitting, found.underfitting), np.nan)),
        Rule("default", f"always alpha = {found.default:g}", f"The alpha nearest to {DEFAULT_ALPHA:g}, whatever the data.",
             "nothing", "low", np.where(found.has_policy, (np.array(found.alphas) != found.default) * 1.0, np.nan)),
        Rule("random", "a random alpha", "Every alpha with equal probability: its regret is the mean over alphas.", "nothing",
             "high", np.where(found.has_policy, 0.0, np.nan))]
    return made


@dataclass(frozen=True)
class Found:
    """What the files of a run say of its CQL members; arrays ``[X, Y, Z]``.

    Args:
        estimates: (estimator, target) -> ``[X, Y, Z, 3]``; behavior: "logged" or "counts".
        overfitting, underfitting, flagged, has_policy: bool.
    """

    population: Population
    horizon: int
    behavior: str
    estimates: dict[tuple[str, str], np.ndarray]
    effective_sample_size: np.ndarray
    unlogged: np.ndarray
    overfitting: np.ndarray
    underfitting: np.ndarray
    flagged: np.ndarray
    has_policy: np.ndarray

    @property
    def alphas(self) -> list[float]:
        return self.population.alphas

    @property
    def default(self) -> float:
        return min(self.alphas, key=lambda alpha: (abs(alpha - DEFAULT_ALPHA), alpha))

    def metric(self, name: str) -> np.ndarray:
        """A column of ``results.csv``."""
        return np.stack([self.population.values(name, ("cql", alpha)) for alpha in self.alphas], axis=-1)


def read(run: RunFolder, resamples: int) -> Found:
    """Reads a run and estimates every policy of it from its own draw.

    Raises:
        RunError: there are no CQL members, or a file is missing or damaged.
        ConfigError: the data name an environment that cannot be made.
    """
    population, series = Population.of(run), read_metrics(run.path / "metrics.csv")
    config, alphas = population.config, population.alphas
    if not alphas:
        raise RunError("the run has no CQL members: there is no alpha to choose.")
    datasets = run.datasets(config)
    environment = environment_of(datasets[0])
    horizon = (environment.spec.max_episode_steps if environment is not None
               else max(int(np.diff(d.episode_starts, append=len(d)).max()) for d in datasets))
    members = [[[Member("cql", alpha, seed, draw) for alpha in alphas] for seed in config.seeds] for draw in config.data_seeds]

    def last(metric):
        return _each(members, lambda m: series.get((m.name, metric), ([], [math.nan]))[1][-1])

    reason = {(row["data_seed"], row["seed"], row["alpha"]): row["diverged"] for row in population.rows
              if row["algorithm"] == "cql"}
    flagged = _each(members, lambda m: reason[m.data_seed, m.seed, m.alpha] is not None) > 0
    has_policy = _each(members, lambda m: reason[m.data_seed, m.seed, m.alpha] != "not finite") > 0
    td, penalty = last("losses/td"), last("losses/penalty")
    sound = np.where(np.isfinite(td) & ~flagged, td, np.inf).min(-1, keepdims=True)  # the least TD loss of each draw and seed
    known = config.objective.is_cql_h  # of another penalty the least value is not known: NaN, so that no member underfits
    floor = np.array([cross_entropy_floor(dataset) if known else math.nan for dataset in datasets])[:, None, None]
    sizes, unlogged = np.full((2, *td.shape), np.nan)
    estimates = {(estimator, target): np.full((*td.shape, 3), np.nan) for estimator in ope.ESTIMATORS for target in TARGETS}
    for x, dataset in enumerate(datasets):
        judged = np.argwhere(has_policy[x])  # rows of y, z
        if not len(judged):
            continue
        log, observations = episode_log(dataset, environment)
        if log.num_states * horizon > MAX_WORK or len(log.starts) * horizon > MAX_WORK:
            continue
        actions = np.stack([load_policy(run, members[x][y][z], dataset).act(observations) for y, z in judged])  # [N, S]
        said = ope.estimate(log, actions, horizon, resamples)
        where = (x, *judged.T)
        sizes[where], unlogged[where] = said.effective_sample_size, said.unlogged
        for estimator, targets in said.values.items():
            for target, values in targets.items():
                estimates[estimator, target][where] = values
    behavior = "logged" if all(dataset.behavior_probabilities is not None for dataset in datasets) else "counts"
    return Found(population, horizon, behavior, estimates, sizes, unlogged,
                 _each(members, lambda m: rises_then_falls(series.get((m.name, "q/data_mean"), ([], []))[1])) > 0,
                 underfits(td, penalty, sound, floor, math.log(datasets[0].num_actions)), flagged, has_policy)


def episode_log(dataset: OfflineDataset, environment: gymnasium.Env | None) -> tuple[ope.EpisodeLog, np.ndarray]:
    """A draw over numbered states, and the observation of each: its distinct ones, ``[S]`` or ``[S, n]``.

    Hazards are those of the environment's model, if it has one that shows these observations.
    """
    both = np.concatenate([dataset.observations, dataset.next_observations])
    observations, rows = np.unique(both, axis=0, return_inverse=True)
    rows, model, hazard = rows.reshape(-1), exact_model(environment), None
    if model is not None and model.hazard is not None:
        states = states_of(observations, state_inputs(environment).numpy())
        if (states >= 0).all():
            hazard = model.hazard[states]
    return ope.EpisodeLog(rows[:len(dataset)], dataset.actions.astype(np.intp), dataset.rewards.astype(np.float64),
                          rows[len(dataset):], dataset.terminations, dataset.episode_starts, len(observations),
                          dataset.num_actions, dataset.behavior_probabilities, hazard), observations


def _each(members, read) -> np.ndarray:
    """``read(member)`` of every member, ``[X, Y, Z]``."""
    return np.array([[[read(m) for m in seed] for seed in draw] for draw in members], dtype=np.float64)


# ----------------------------------------------------------------------------------------------------------- the referee


def referee(run: RunFolder, resamples: int = 200) -> dict:
    """Every rule held against the exact return and hazard of the run's CQL members; JSON-able.

    Fields that nothing can be said of (no known model, a single alpha, no estimate) are None.

    Raises:
        RunError: there are no CQL members, or a file is missing or damaged.
        ConfigError: the data name an environment that cannot be made.
    """
    return judge(read(run, resamples), resamples)


def judge(found: Found, resamples: int) -> dict:
    """The result of ``referee``, from what was read."""
    candidates = found.has_policy & ~found.flagged
    truth = {target: found.metric(target) for target in TARGETS}  # [X, Y, Z]
    config, bootstrap = found.population.config, Bootstrap.of(found.population)
    entries = [_entry(rule, found, candidates, truth, bootstrap) for rule in rules(found)]
    return {"horizon": found.horizon, "resamples": resamples, "members": int(found.flagged.size),
            "candidates": int(candidates.sum()), "draws": len(config.data_seeds), "seeds": len(config.seeds),
            "behavior": found.behavior, "rules": entries,
            "signs": [{"alpha": alpha, "overfitting": int(found.overfitting[..., z].sum()),
                       "underfitting": int(found.underfitting[..., z].sum()), "diverged": int(found.flagged[..., z].sum()),
                       "of": int(found.flagged[..., z].size)} for z, alpha in enumerate(found.alphas)],
            "estimates": _estimates(found), "verdict": _verdict(entries)}


def _entry(rule: Rule, found: Found, candidates, truth, bootstrap: Bootstrap) -> dict:
    scores = np.round(np.where(candidates, rule.goodness, np.nan), DECIMALS)
    shares = picks(scores)
    entry = {"name": rule.name, "label": rule.label, "what": rule.what, "uses": rule.uses, "prefers": rule.prefers,
             "available": int(np.isfinite(rule.scores).sum()), "of": int(rule.scores.size),
             "rank_correlation": {}, "regret": {}, "within_one_point": None,
             "picks": [[alpha, round(float(total), 4)] for alpha, total in zip(found.alphas, shares.sum((0, 1))) if total],
             "picked": int((shares.sum(-1) > 0).sum()), "pickable": int(candidates.any(-1).sum()),
             "coverage": dict.fromkeys(TARGETS), "effective_sample_size": None}
    for target, sign in (("return", 1.0), ("hazard_probability", -1.0)):
        worth = np.round(sign * truth[target], DECIMALS)
        entry["rank_correlation"][target] = bootstrap.estimate(
            [[spearman(scores[x, y], worth[x, y]) for y in range(worth.shape[1])] for x in range(worth.shape[0])])
        lost = regret(shares, worth)  # [X, Y]
        entry["regret"][target] = bootstrap.estimate(lost)
        if target == "return" and np.isfinite(lost).any():
            means = [np.nanmean(row) for row in lost if np.isfinite(row).any()]  # of each draw, over seeds
            entry["within_one_point"] = float(np.mean(np.array(means) <= WITHIN))
    if rule.target is not None:
        known = np.isfinite(rule.interval).all(-1) & np.isfinite(truth[rule.target])
        inside = (rule.interval[..., 0] <= truth[rule.target]) & (truth[rule.target] <= rule.interval[..., 1])
        entry["coverage"][rule.target] = float(inside[known].mean()) if known.any() else None
    if rule.effective_sample_size is not None:
        sizes = rule.effective_sample_size[np.isfinite(rule.effective_sample_size)]
        entry["effective_sample_size"] = float(np.median(sizes)) if sizes.size else None
    return entry


def _estimates(found: Found) -> list[dict]:
    config, rows = found.population.config, []
    for x, draw in enumerate(config.data_seeds):
        for y, seed in enumerate(config.seeds):
            for z, alpha in enumerate(found.alphas):
                row = {"alpha": alpha, "seed": seed, "data_seed": draw}
                for (estimator, target), values in found.estimates.items():
                    row[f"{estimator}_{'return' if target == 'return' else 'hazard'}"] = _plain(values[x, y, z])
                rows.append(row | {"effective_sample_size": _number(found.effective_sample_size[x, y, z]),
                                   "unlogged": _number(found.unlogged[x, y, z])})
    return rows


def _verdict(entries) -> dict:
    """Which rules lose least. Only those that find an alpha wherever there is one to pick are compared with each other;
    the baselines stand beside them."""
    verdict = {}
    for target in TARGETS:
        judged = [e for e in entries if e["regret"][target] is not None and e["picked"] == e["pickable"]]
        ruled = [e for e in judged if e["uses"] != "nothing"]
        least = min((e["regret"][target][0] for e in ruled), default=None)
        verdict[target] = None if least is None else {
            "rules": [e["name"] for e in ruled if e["regret"][target][0] <= least + 1e-12], "regret": least,
            "within_one_point": next(e["within_one_point"] for e in ruled if e["regret"][target][0] <= least + 1e-12),
            "baselines": {e["name"]: e["regret"][target][0] for e in judged if e["uses"] == "nothing"}}
    return verdict


def _number(value) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(values) -> list[float | None] | None:
    return [_number(value) for value in values] if math.isfinite(values[0]) else None


# ------------------------------------------------------------------------------------------------------------- the page


def text(result: dict) -> str:
    """The referee's tables for the terminal."""
    rows = [["rule", "scored", "rank: return", "hazard", "lost: return", "95 %", "within 1", "hazard", "covered", "ESS",
             "picks: alpha (times)"]]
    for e in result["rules"]:
        coverage = next((c for c in e["coverage"].values() if c is not None), None)
        most = sorted(e["picks"], key=lambda pick: (-pick[1], pick[0]))
        rows.append([
            e["label"], f"{e['available']}/{e['of']}", _first(e["rank_correlation"]["return"], "+.2f"),
            _first(e["rank_correlation"]["hazard_probability"], "+.2f"), _first(e["regret"]["return"], ".2f"),
            _ends(e["regret"]["return"], ".2f"), _form(e["within_one_point"], ".0%"),
            _first(e["regret"]["hazard_probability"], ".4f"), _form(coverage, ".0%"),
            _form(e["effective_sample_size"], ".1f"),
            ", ".join(f"{alpha:g} ({times:.3g})" for alpha, times in most[:3]) + (", …" if len(most) > 3 else "")])
    signs = [["alpha", "overfitting", "underfitting", "diverged", "of"], *(
        [f"{s['alpha']:g}", *(str(s[name]) for name in ("overfitting", "underfitting", "diverged", "of"))]
        for s in result["signs"])]
    label = {e["name"]: e["label"] for e in result["rules"]}
    lines = [f"CHOOSING ALPHA FROM DATA ALONE   {result['members']} members, {result['candidates']} of them candidates; "
             f"{result['draws']} draws, {result['seeds']} seeds; horizon {result['horizon']}, {result['resamples']} resamples, "
             f"propensities {'logged' if result['behavior'] == 'logged' else 'by counts'}", "", *_columns(rows),
             "  rank: correlation with the exact return and hazard over alpha, +1 = ordered exactly right; mean over draws.",
             "  lost: exact return and hazard against the best alpha of that draw and seed, mean over draws; within 1: share",
             "  of draws that lose at most 1 point of return. covered: share of 95 % intervals that hold the exact value.",
             "  ESS: effective sample size, median over members. Members that ran away are neither picked nor ranked.", "",
             "  Signs in the training log, members of each alpha:", *_columns(signs), ""]
    for target, words, form in (("return", "return", ".2f"), ("hazard_probability", "hazard probability", ".4f")):
        verdict = result["verdict"][target]
        if verdict is not None:
            lines.append(f"  Least {words} lost: {' and '.join(label[name] for name in verdict['rules'])}, "
                         f"{verdict['regret']:{form}} (its return within 1 point of the best in "
                         f"{_form(verdict['within_one_point'], '.0%')} of the draws); " + ", ".join(
                             f"{label[name]} {lost:{form}}" for name, lost in verdict["baselines"].items()) + ".")
    if all(verdict is None for verdict in result["verdict"].values()):
        lines.append("  Without the exact values of the policies no rule can be judged; what each would pick stands above.")
    return "\n".join(lines)


def _columns(rows) -> list[str]:
    """Rows of cells, set to the right but for the first and the last column."""
    return ["  " + line for line in aligned(rows, right=range(1, len(rows[0]) - 1))]


def _form(value, form) -> str:
    return "–" if value is None else format(value, form)


def _first(interval, form) -> str:
    return "–" if interval is None else format(interval[0], form)


def _ends(interval, form) -> str:
    return "–" if interval is None or interval[1] is None else f"{interval[1]:{form}} … {interval[2]:{form}}"
