"""Choosing alpha from data alone: rules, and what the choice of each rule is worth.

A rule gives every CQL member a score from what a practitioner has: the data, the trained networks, the training log.
For every data set and training seed it picks the alpha of the best score; the exact return and hazard probability in
``evaluation.json`` say what that pick is worth.

- A member whose outputs are not finite has no policy, hence no score. A runaway member, which the log flags without
  knowing the environment, is neither picked nor ranked; its policy still counts for coverage and availability.
- Regret: the best exact value among all policies of the data set and seed, flagged ones too, minus that of the pick;
  for hazards the pick's minus the least. Equal scores share a pick equally, and its regret is their mean.
- Rank correlations (over alphas) and regrets are means over data sets and seeds, with intervals of `statistics`.
- Estimates are by `ope`, with the distinct observations of a data set as states; hazard states are taken to be known.

Axes: X data sets, Y seeds, Z alphas. "draw" in a key of selection.json is a data set, "unlogged" an OOD action.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cql.analysis import judging, ope
from cql.analysis.evaluation import load_policy
from cql.analysis.results import Results
from cql.analysis.statistics import Bootstrap, too_few
from cql.errors import RunError
from cql.members import Member
from cql.metrics import read_metrics
from cql.run_folder import RunFolder
from cql.text import aligned, counted, interval, number
from cql.world import World

DEFAULT_ALPHA = 6.0  # the baseline that looks at nothing
SHARE = 0.1  # a rise or a fall must exceed this share of a curve's range
HIGH_TD = 2.0  # times the least TD loss among the members compared
ROLLED = {"return": "rollout_return", "hazard_probability": "rollout_hazard_rate"}  # target -> column of rollouts
WITHIN = 1.0  # return points: a pick this close to the best counts as good
DECIMALS = 10  # scores and exact values are equal up to rounding if they agree to so many


def ranks(values) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank: ``[n] -> [n]``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x, y) -> float:
    """Rank correlation of two vectors over entries finite in both; NaN for fewer than two or a constant vector."""
    finite = np.isfinite(x) & np.isfinite(y)
    a, b = ranks(np.asarray(x)[finite]), ranks(np.asarray(y)[finite])
    if finite.sum() < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def picks(scores) -> np.ndarray:
    """The shares of a choice, ``[..., Z]``: 1 for the best score, equal parts of several; 0 where none is finite."""
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    best = (scores == scores.max(-1, keepdims=True)) & np.isfinite(scores)
    return best / np.maximum(best.sum(-1, keepdims=True), 1)


def regret(shares, worth) -> np.ndarray:
    """The loss of a choice: shares, worth (NaN: no policy) ``[..., Z] -> [...]``; NaN without a pick or its worth."""
    finite = np.isfinite(worth)
    best = np.where(finite, worth, -np.inf).max(-1)
    picked = (shares * np.where(finite, worth, 0.0)).sum(-1)
    valid = (shares.sum(-1) > 0) & (np.where(finite, 0.0, shares).sum(-1) == 0)
    return np.where(valid, best - picked, np.nan)


def rises_then_falls(values) -> bool:
    """Whether a curve that starts at 0 climbs to a peak and comes down again, each by more than ``SHARE`` of its range.

    The sign of overfitting of Kumar et al. 2021 (arXiv 2109.10813), for the mean Q on the data; networks start near 0.
    """
    curve = np.concatenate([[0.0], np.asarray(values, dtype=np.float64)])
    curve = curve[np.isfinite(curve)]
    peak, least = int(curve.argmax()), SHARE * np.ptp(curve)
    return bool(curve[peak] - curve[:peak + 1].min() > least and curve[peak] - curve[-1] > least)


def underfits(td, penalty, least_td, floor, ceiling):
    """Whether TD loss and penalty are both high at the end: the sign of underfitting of Kumar et al. 2021. Broadcasts.

    High are a TD loss above ``HIGH_TD`` times the least of the members compared, and a penalty in the upper half
    between ``floor``, the entropy of the logged actions, and ``ceiling``, log A (a constant Q). NaN: no.
    """
    return (td > HIGH_TD * least_td) & (penalty > (floor + ceiling) / 2)


def workflow_scores(overfitting, underfitting) -> np.ndarray:
    """Scores of the rule of the training curve, ``[..., Z]`` by rising alpha: fewest signs, then smallest alpha."""
    signs = np.add(overfitting, underfitting, dtype=np.float64)
    return signs * signs.shape[-1] + np.arange(signs.shape[-1])


@dataclass(frozen=True)
class Evidence:
    """What the rules may use of a run; arrays ``[X, Y, Z]``.

    Args:
        estimates: (estimator, target) -> ``[X, Y, Z, 3]``; behavior: "logged" or "counts".
        ood_probability: of coming to an OOD action, in the data's model.
        overfitting, underfitting, flagged, has_policy: bool. withheld: why a data set has no estimates, if its episodes
            are broken. begun_at_breaks: how many episodes were begun where others were broken.
        by_networks: whether estimates are by networks, discounted; ``ood_probability`` is then the share of logged
            observations where BC finds the action unlikely.
    """

    results: Results
    horizon: int
    behavior: str
    estimates: dict[tuple[str, str], np.ndarray]
    effective_sample_size: np.ndarray
    ood_probability: np.ndarray
    overfitting: np.ndarray
    underfitting: np.ndarray
    flagged: np.ndarray
    has_policy: np.ndarray
    by_networks: bool = False
    withheld: str | None = None
    begun_at_breaks: int = 0


def column(results: Results, name: str) -> np.ndarray:
    """A column of ``results.csv``, ``[X, Y, Z]``."""
    return np.stack([results.values(name, ("cql", alpha)) for alpha in results.alphas], axis=-1)


def truths(results: Results) -> tuple[str | None, dict[str, np.ndarray]]:
    """What rules are held against: its source, "exact", "rollouts" or None, and target -> ``[X, Y, Z]``."""
    exact = {target: column(results, target) for target in ope.TARGETS}
    rolled = {target: column(results, ROLLED[target]) for target in ope.TARGETS}
    if np.isfinite(exact["return"]).any():
        return "exact", exact
    return ("rollouts" if np.isfinite(rolled["return"]).any() else None), rolled


def read(run: RunFolder, resamples: int) -> Evidence:
    """The evidence of a run, with estimates of every policy from its own data set. Raises as ``referee``."""
    results, series = Results.of(run), read_metrics(run.path / "metrics.csv")
    config, alphas = results.config, results.alphas
    if not alphas:
        raise RunError("the run has no CQL members: there is no alpha to choose.")
    datasets = run.datasets(config)
    world = World.of(datasets[0])
    horizon = world.horizon or max(int(np.diff(d.episode_starts, append=len(d)).max()) for d in datasets)
    members = [[[Member("cql", alpha, seed, data_seed) for alpha in alphas] for seed in config.seeds]
               for data_seed in config.data_seeds]

    def by_member(read: Callable[[Member], bool]) -> np.ndarray:
        return np.array([[[read(member) for member in row] for row in part] for part in members])

    flagged = np.stack([results.diverged(("cql", alpha)) for alpha in alphas], axis=-1)
    without_policy = {Member(row["algorithm"], row["alpha"], row["seed"], row["data_seed"]) for row in results.rows
                      if row["diverged"] == "not finite"}
    has_policy = by_member(lambda member: member not in without_policy)
    overfitting = by_member(lambda member: rises_then_falls(series.get((member.name, "q/data_mean"), ([], []))[1]))
    td = column(results, "td")
    least_td = np.where(np.isfinite(td) & ~flagged, td, np.inf).min(-1, keepdims=True)
    # the least value of a penalty other than CQL(H)'s is unknown: NaN, so that no member underfits
    floor = np.array([d.action_entropy() if config.objective.is_cql_h else math.nan for d in datasets])[:, None, None]
    underfitting = underfits(td, column(results, "penalty"), least_td, floor, math.log(datasets[0].num_actions))
    sizes, ood_probability = np.full((2, *td.shape), np.nan)
    estimates = {(name, target): np.full((*td.shape, 3), np.nan) for name in ope.ESTIMATORS for target in ope.TARGETS}
    broken = [dataset.breaks_in_words() for dataset in datasets]
    by_networks = not datasets[0].discrete and world.inputs is None
    if by_networks and not broken[0]:
        cql = [entry for entry in judging.estimates_of(run) if entry["algorithm"] == "cql"]
        for entry in cql:
            where = 0, config.seeds.index(entry["seed"]), alphas.index(entry["alpha"])
            ood_probability[where] = math.nan if entry["unsupported"] is None else entry["unsupported"]
            estimates["fqe", "return"][where] = entry["value"] or math.nan
        fqe = estimates["fqe", "return"]
        fqe[np.isnan(fqe[..., 0]).any(-1)] = math.nan  # no choice among some alphas where others have no estimate
    for x, dataset in enumerate(datasets):
        if broken[x] or by_networks:
            continue
        judged = np.argwhere(has_policy[x])  # rows of y, z
        log, observations = ope.episode_log(dataset, world)
        if not len(judged) or max(log.num_states, len(log.starts)) * horizon > ope.MAX_WORK:
            continue
        actions = np.stack([load_policy(run, members[x][y][z], dataset).act(observations) for y, z in judged])  # [N, S]
        estimated = ope.estimate(log, actions, horizon, resamples)
        where = (x, *judged.T)
        sizes[where], ood_probability[where] = estimated.effective_sample_size, estimated.ood_probability
        for name, targets in estimated.values.items():
            for target, values in targets.items():
                estimates[name, target][where] = values
    behavior = "logged" if all(dataset.behavior_probabilities is not None for dataset in datasets) else "counts"
    return Evidence(results, horizon, behavior, estimates, sizes, ood_probability, overfitting, underfitting, flagged,
                    has_policy, by_networks, next(filter(None, broken), None),
                    sum(dataset.metadata.get("begun_at_breaks", 0) for dataset in datasets))


@dataclass(frozen=True)
class Rule:
    """A rule with its scores ``[X, Y, Z]``, NaN without one.

    Args:
        name, label, what: short id, words, one sentence; uses: return, hazard, training, data or nothing.
        prefers: high or low. needs: which of ``NEEDS``, beside the networks and the log.
        target, interval, effective_sample_size: of an estimator; ``[X, Y, Z, 2]``, ``[X, Y, Z]``.
    """

    name: str
    label: str
    what: str
    uses: str
    prefers: str
    scores: np.ndarray
    needs: tuple[str, ...] = ()
    target: str | None = None
    interval: np.ndarray | None = None
    effective_sample_size: np.ndarray | None = None


NEEDS = {  # what a rule may need -> why it has no score without it
    "estimates": "no off-policy estimates are made of these data", "hazards": "the hazard states are not known",
    "weights": "too few logged episodes take the actions of the policies"}
ESTIMATORS = {
    "fqe": ("FQE", "fitted Q evaluation on the data set, an OOD action being worth 0"),
    "wis": ("WIS", "weighted importance sampling of whole trajectories"),
    "pdis": ("weighted PDIS", "weighted importance sampling of each step's reward"),
    "dr": ("weighted DR", "doubly robust: FQE corrected by the weighted errors of its backups"),
}


def rules(evidence: Evidence) -> list[Rule]:
    """All rules with their scores, baselines last."""
    listed = []
    for name, (label, what) in ESTIMATORS.items():
        sizes = None if name == "fqe" else evidence.effective_sample_size
        for target, word, prefers, words in (("return", "return", "high", "Highest return"),
                                             ("hazard_probability", "hazard", "low", "Lowest hazard probability")):
            values = evidence.estimates[name, target]
            needs = ("estimates", *["hazards"] * (word == "hazard"), *["weights"] * (name != "fqe"))
            if evidence.by_networks:  # discounted: not comparable with a return
                target, what = None, what.replace("data set, an OOD action being worth 0", "data set by networks")
            listed.append(Rule(f"{name}_{word}", f"{label} ({word})", f"{words} by {what}.", word, prefers,
                               values[..., 0], needs, target, values[..., 1:], sizes))
    results, has_policy = evidence.results, evidence.has_policy
    default = min(results.alphas, key=lambda alpha: (abs(alpha - DEFAULT_ALPHA), alpha))
    workflow = workflow_scores(evidence.overfitting, evidence.underfitting)
    hazard = evidence.estimates["fqe", "hazard_probability"][..., 0]
    return [
        *listed,
        Rule("fqe_cautious", "FQE (hazard or OOD)", "Least probability, in the data's model, of a hazard or of an OOD "
             "action, whichever comes first.", "hazard", "low", hazard + evidence.ood_probability,
             ("estimates", "hazards")),
        Rule("support", "support", "Least share of logged observations where BC finds the greedy action unlikely."
             if evidence.by_networks else "Least probability, in the data's model, that an episode comes to an OOD "
             "action.", "data", "low", evidence.ood_probability, ("estimates",)),
        Rule("agreement", "agreement with data", "Smallest share of logged transitions whose action is not greedy.",
             "data", "low", column(results, "action_mismatch_rate")),
        Rule("penalty", "conservative penalty", "Lowest conservative penalty at the last log entry.", "training", "low",
             column(results, "penalty")),
        Rule("td", "TD loss", "Lowest TD loss at the last log entry.", "training", "low", column(results, "td")),
        Rule("value", "value estimate", "Highest value estimate of the network at the start.", "training", "high",
             column(results, "value_estimate")),
        Rule("workflow", "training curve", "Smallest alpha with the fewest signs of overfitting (the mean Q on the "
             "data rises and then falls) and underfitting (TD loss and penalty both stay high), Kumar et al. 2021, "
             "arXiv 2109.10813.", "training", "low", np.where(has_policy, workflow, np.nan)),
        Rule("default", f"always alpha = {default:g}", f"The alpha nearest to {DEFAULT_ALPHA:g}, whatever the data.",
             "nothing", "low", np.where(has_policy, (np.array(results.alphas) != default) * 1.0, np.nan)),
        Rule("random", "a random alpha", "Every alpha with equal probability: its regret is the mean over alphas.",
             "nothing", "high", np.where(has_policy, 0.0, np.nan))]


def referee(run: RunFolder, resamples: int = 200) -> dict:
    """What every rule's choice among the CQL members of a run is worth: the content of ``selection.json``.

    Unknown fields (no model, a single alpha, no estimate) are None.

    Raises:
        RunError: there are no CQL members, or a file is missing or damaged.
        ConfigError: the data name an environment that cannot be made.
    """
    return judge(read(run, resamples), resamples)


def judge(evidence: Evidence, resamples: int) -> dict:
    """The result of ``referee``, from the evidence."""
    candidates = evidence.has_policy & ~evidence.flagged
    source, truth = truths(evidence.results)
    config, bootstrap = evidence.results.config, Bootstrap.of(evidence.results)
    entries = [_entry(rule, evidence.results.alphas, candidates, truth, bootstrap) for rule in rules(evidence)]
    signs = {"overfitting": evidence.overfitting, "underfitting": evidence.underfitting, "diverged": evidence.flagged}
    return {"horizon": evidence.horizon, "resamples": resamples, "members": int(candidates.size),
            "candidates": int(candidates.sum()), "draws": len(config.data_seeds), "seeds": len(config.seeds),
            "choices": int((candidates.sum(-1) > 1).sum()), "behavior": evidence.behavior,
            "truth": source, "withheld": evidence.withheld, "begun_at_breaks": evidence.begun_at_breaks,
            "rules": entries,
            "signs": [{"alpha": alpha, **{name: int(sign[..., z].sum()) for name, sign in signs.items()},
                       "of": int(candidates[..., z].size)} for z, alpha in enumerate(evidence.results.alphas)],
            "estimates": _estimates(evidence),
            "verdict": {target: _verdict(entries, target) if (candidates.sum(-1) > 1).any() else None
                        for target in ope.TARGETS}}


def nothing_to_choose(result: dict) -> str | None:
    """Why no rule has a choice, in a sentence; None where one has. ``result``: of ``referee``."""
    if result["choices"]:
        return None
    if len(result["signs"]) == 1:
        return "There is nothing to choose: the run has a single alpha."
    return "There is nothing to choose: no data set and seed has two members that did not diverge."


def unscored(result: dict) -> list[tuple[str, list[str]]]:
    """The labels of the rules that score no member, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for entry in result["rules"]:
        if not entry["available"]:
            by_reason.setdefault(_why_unscored(entry, result), []).append(entry["label"])
    return list(by_reason.items())


def _why_unscored(entry: dict, result: dict) -> str:
    scored = {other["name"] for other in result["rules"] if other["available"]}
    if entry["uses"] == "nothing" or not result["candidates"]:
        return "no member has a policy"
    given = {"estimates": "fqe_return" in scored, "hazards": "fqe_hazard" in scored, "weights": False}
    return next((NEEDS[name] for name in entry["needs"] if not given[name]), "no member has a number that it needs")


def split(result: dict) -> str:
    """What to say where episodes were begun at breaks, in a sentence. ``result``: of ``referee``."""
    return (f"Episodes split at breaks: {counted(result['begun_at_breaks'], 'episode')} of the data "
            f"{'starts' if result['begun_at_breaks'] == 1 else 'start'} in the middle of a logged one, and off-policy "
            "estimates take each for a start.")


def listed(labels: list[str]) -> str:
    """The labels in words; of more than three their number and the first two."""
    if len(labels) > 3:
        return f"{len(labels)} rules that tie ({labels[0]}, {labels[1]}, …)"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _entry(rule: Rule, alphas, candidates, truth, bootstrap: Bootstrap) -> dict:
    scores = -rule.scores if rule.prefers == "low" else rule.scores
    scores = np.round(np.where(candidates, scores, np.nan), DECIMALS)
    shares = picks(scores)
    entry: dict = {
        **{name: getattr(rule, name) for name in ("name", "label", "what", "uses", "prefers", "needs")},
        "available": int(np.isfinite(rule.scores).sum()), "of": int(rule.scores.size),
        "rank_correlation": {}, "regret": {}, "within_one_point": None,
        "picks": [[alpha, round(float(total), 4)] for alpha, total in zip(alphas, shares.sum((0, 1))) if total],
        "picked": int((shares.sum(-1) > 0).sum()), "pickable": int(candidates.any(-1).sum()),
        "coverage": dict.fromkeys(ope.TARGETS), "effective_sample_size": None}
    for target, sign in (("return", 1.0), ("hazard_probability", -1.0)):
        worth = np.round(sign * truth[target], DECIMALS)
        entry["rank_correlation"][target] = bootstrap.estimate(
            [[spearman(*pair) for pair in zip(*rows)] for rows in zip(scores, worth)])
        lost = regret(shares, worth)  # [X, Y]
        entry["regret"][target] = bootstrap.estimate(lost)
        if target == "return" and np.isfinite(lost).any():
            means = [np.nanmean(row) for row in lost if np.isfinite(row).any()]  # of each data set, over seeds
            entry["within_one_point"] = float(np.mean(np.array(means) <= WITHIN))
    if rule.interval is not None and rule.target is not None:
        true, (low, high) = truth[rule.target], np.moveaxis(rule.interval, -1, 0)
        known = np.isfinite(low) & np.isfinite(high) & np.isfinite(true)
        entry["coverage"][rule.target] = float(((low <= true) & (true <= high))[known].mean()) if known.any() else None
    if rule.effective_sample_size is not None:
        sizes = rule.effective_sample_size[np.isfinite(rule.effective_sample_size)]
        entry["effective_sample_size"] = float(np.median(sizes)) if sizes.size else None
    return entry


def _estimates(evidence: Evidence) -> list[dict]:
    config, rows = evidence.results.config, []
    for x, y, z in np.ndindex(evidence.flagged.shape):
        row: dict = {"alpha": evidence.results.alphas[z], "seed": config.seeds[y], "data_seed": config.data_seeds[x]}
        for (name, target), values in evidence.estimates.items():
            row[f"{name}_{'return' if target == 'return' else 'hazard'}"] = (
                [_finite(value) for value in values[x, y, z]] if math.isfinite(values[x, y, z, 0]) else None)
        rows.append(row | {"effective_sample_size": _finite(evidence.effective_sample_size[x, y, z]),
                           "unlogged": _finite(evidence.ood_probability[x, y, z])})
    return rows


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(entries: list[dict], target: str) -> dict | None:
    """The rules of least regret among the rules that pick wherever there is a candidate, and the baselines."""
    judged = [e for e in entries if e["regret"][target] is not None and e["picked"] == e["pickable"]]
    lost = {entry["name"]: entry["regret"][target][0] for entry in judged}
    informed = [entry for entry in judged if entry["uses"] != "nothing"]
    if not informed:
        return None
    least = min(lost[entry["name"]] for entry in informed)
    best = [entry for entry in informed if lost[entry["name"]] <= least + 1e-12]
    return {"rules": [entry["name"] for entry in best], "regret": least,
            "within_one_point": best[0]["within_one_point"],
            "baselines": {entry["name"]: lost[entry["name"]] for entry in judged if entry["uses"] == "nothing"}}


def text(result: dict) -> str:
    """The tables of ``referee`` for the terminal; one sentence where there is nothing to choose."""
    heading = (
        f"CHOOSING ALPHA FROM DATA ALONE   {counted(result['members'], 'member')}, {result['candidates']} of them "
        f"candidates; {counted(result['draws'], 'data set')}, {counted(result['seeds'], 'seed')}; horizon "
        f"{result['horizon']}, {result['resamples']} resamples, propensities "
        f"{'logged' if result['behavior'] == 'logged' else 'by counts'}")
    if (nothing := nothing_to_choose(result)) is not None:
        return f"{heading}\n\n  {nothing}"
    rows = cells(result, lambda rule: rule["label"], interval,
                 lambda estimate, form: number((estimate or [None])[0], form), number)
    lines = [heading, "", *("  " + line for line in aligned(rows, left=(0, len(rows[0]) - 1))),
             *(f"  Without a score: {', '.join(labels)} ({why})." for why, labels in unscored(result)),
             *(f"  {sentence}" for sentence in notes(result)), ""]
    lines += [f"  {sentence}" for sentence in verdicts(result)]
    return "\n".join(lines)


def notes(result: dict) -> list[str]:
    """What the columns of the table are, in lines of text."""
    truth = "rolled-out" if result["truth"] == "rollouts" else "exact"
    return [*([f"No off-policy estimates: {result['withheld']}"] if result["withheld"] else []),
            *([split(result)] if result["begun_at_breaks"] else []),
            f"rank: correlation over alpha with the {truth} return and hazard, 1 = exactly in order. lost: {truth}",
            "return [95 %] and hazard against the best alpha of the data set and seed. within 1: share of data sets",
            "that lose at most 1 point of return. covered: 95 % intervals with the exact value. ESS: median effective",
            "sample size of members. Means are over data sets. Members that diverged are neither picked nor ranked."]


def verdicts(result: dict) -> list[str]:
    """The rules that lose least and what the baselines lose, or why no rule can be judged, a sentence each."""
    label, said = {rule["name"]: rule["label"] for rule in result["rules"]}, []
    for target, words, form in (("return", "return", ".2f"), ("hazard_probability", "hazard probability", ".4f")):
        if (verdict := result["verdict"][target]) is not None:
            baselines = ", ".join(f"{label[name]} {lost:{form}}" for name, lost in verdict["baselines"].items())
            said.append(f"Least {words} lost: {listed([label[name] for name in verdict['rules']])}, "
                        f"{verdict['regret']:{form}} (the choice within 1 point of the best return in "
                        f"{number(verdict['within_one_point'], '.0%')} of the data sets); {baselines}.")
    if not said:
        return ["Without the exact values of the policies no rule can be judged; the table has their picks."]
    few = too_few(result["draws"], result["seeds"])
    return said + ([f"On other data another rule may lose less: {few}."] if few else [])


def cells(result: dict, label: Callable, estimate: Callable, brief: Callable, number: Callable) -> list[list]:
    """The heads and a row of every rule that scores a member.

    Args:
        label: of a rule. estimate, brief: of [mean, low, high] and a format, the return lost and what is said in
            passing. number: of a number and a format.
    """
    rows = [["rule", "scored", "rank: return", "rank: hazard", "lost: return", "within 1", "lost: hazard", "covered",
             "ESS", "picks: alpha (times)"]]
    for rule in (rule for rule in result["rules"] if rule["available"]):
        coverage = next((share for share in rule["coverage"].values() if share is not None), None)
        rank, lost = rule["rank_correlation"], rule["regret"]
        rows.append([label(rule), f"{rule['available']}/{rule['of']}", brief(rank["return"], "+.2f"),
                     brief(rank["hazard_probability"], "+.2f"), estimate(lost["return"], ".2f"),
                     number(rule["within_one_point"], ".0%"), brief(lost["hazard_probability"], ".4f"),
                     number(coverage, ".0%"), number(rule["effective_sample_size"], ".1f"), picked(rule["picks"])])
    return rows


def picked(picks: list) -> str:
    """[[alpha, times]] in words, the three most frequent first."""
    most = sorted(picks, key=lambda pick: (-pick[1], pick[0]))
    return ", ".join(f"{alpha:g} ({times:.3g})" for alpha, times in most[:3]) + ", …" * (len(most) > 3)
