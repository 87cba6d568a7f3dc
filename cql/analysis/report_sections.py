"""What the report says, section by section: ``Study`` -> HTML."""

from html import escape
from pathlib import Path

import numpy as np

from cql.analysis.report_data import Study
from cql.analysis.report_html import estimate, inline, number, paragraph, picture, shipped, table
from cql.analysis.results import Group
from cql.config import ENVIRONMENT

TARGETS = (("return", "return", ".2f"), ("hazard_probability", "hazard probability", ".4f"))  # metric, words, form
WORTH = [  # metric, statistic, words, form
    ("return", "mean", "return: mean", ".2f"), ("return", "iqm", "interquartile mean", ".2f"),
    ("hazard_probability", "mean", "hazard probability: mean", ".4f"),
    ("hazard_probability", "q90", "90 % quantile", ".4f"), ("hazard_probability", "worst", "worst", ".4f"),
    ("goal_probability", "mean", "goal probability: mean", ".4f")]
MEANS = [
    ("action_mismatch_rate", "mean", "logged actions not taken", ".3f"),
    ("unsupported_action_rate", "mean", "unsupported steps", ".5f"), ("penalty", "mean", "penalty", ".3f"),
    ("td", "mean", "TD loss", ".3g"), ("value_estimate", "mean", "V̂ at the start", ".2f"),
    ("value_error", "mean", "V̂ − V<sup>π</sup> at the start", ".2f")]


# ---------------------------------------------------------------------------------------------- words for what is shown


def title(study: Study) -> str:
    """Plain text."""
    config, alphas = study.population.config, study.population.alphas
    if not alphas:
        what = "Behaviour Cloning"
    elif config.penalty_threshold is not None:
        what = "CQL with a learned α"
    else:
        what = f"CQL at α = {alphas[0]:g}" if len(alphas) == 1 else f"CQL over α from {alphas[0]:g} to {alphas[-1]:g}"
    if study.pictured.environment is None:
        return f"{what} on given data"
    return f"{what} on " + (f"the GridWorld “{config.map}”" if config.env == ENVIRONMENT else config.env)


def group_name(group: Group) -> str:
    return "BC" if group[1] is None else f"α = {group[1]:g}"


def counted(many: int, what: str) -> str:
    return f"{many:,} {what}{'s' * (many != 1)}"


def span(first: int, many: int) -> str:
    return f"{first}" if many == 1 else f"{first} to {first + many - 1}"


def behind(study: Study) -> str:
    """Who is behind a mean, for captions."""
    config = study.population.config
    return f"{counted(config.num_datasets, 'data draw')} × {counted(config.num_seeds, 'training seed')} for each α"


def percent(study: Study) -> str:
    return f"{100 * study.statistics['level']:g} %"


def bars(study: Study) -> str:
    """What the bars in the pictures are; how they are made stands below the first table."""
    return f"bars: {percent(study)} intervals over {study.statistics['intervals_over']}, where there are any"


def named(labels) -> str:
    return " and ".join(f"“{escape(label)}”" for label in labels)


def picked(picks: list) -> str:
    """[[alpha, times]], the most frequent first."""
    most = sorted(picks, key=lambda pick: (-pick[1], pick[0]))
    return ", ".join(f"{alpha:g} ({times:.3g})" for alpha, times in most[:3]) + (", …" if len(most) > 3 else "")


# -------------------------------------------------------------------------------------------------------- introduction


def introduction(study: Study) -> str:
    """What was trained on what, and what diverged."""
    config, population = study.population.config, study.population
    bc = sum(row["algorithm"] == "bc" for row in population.rows)
    parts = []
    if population.alphas:
        parts.append(f"{counted(len(population.rows) - bc, 'agent')} trained by Conservative Q-Learning (CQL), {config.steps:,} "
                     f"updates each, at {counted(len(population.alphas), 'value')} of its penalty’s weight α "
                     f"({', '.join(f'{alpha:g}' for alpha in population.alphas)})")
    if bc:
        parts.append(f"{counted(bc, 'agent')} trained by Behaviour Cloning (BC), {config.bc_steps:,} updates each")
    sizes = [len(dataset) for dataset in study.pictured.datasets.values()]
    drawn = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    source = "The data were given" if config.dataset is not None else (
        f"A data draw is {counted(config.episodes, 'episode')} of a cautious ε-greedy policy (ε = {config.epsilon:g})")
    text = (f"{', and '.join(parts)}; one for every training seed ({span(config.seed, config.num_seeds)}) and every data draw "
            f"({span(config.data_seed, config.num_datasets)}). {source}: {drawn} transitions. ")
    return paragraph(text + _environment(study)) + _learned(study) + _divergence(study)


def _learned(study: Study) -> str:
    """Where α started and ended, if it was learned."""
    population, threshold = study.population, study.population.config.penalty_threshold
    if threshold is None or not population.alphas:
        return ""
    ended = {alpha: population.values("final_alpha", ("cql", alpha)) for alpha in population.alphas}
    spans = [f"from {alpha:g} to {number(np.nanmin(found), '.4g')} … {number(np.nanmax(found), '.4g')}"
             for alpha, found in ended.items() if not np.isnan(found).all()]
    return paragraph(f"<strong>α was learned</strong> (--penalty-threshold {threshold:g}): everywhere on this page an α names where members "
                     f"<em>started</em>. They ended elsewhere: {'; '.join(spans)}.")


def _environment(study: Study) -> str:
    config, pictured = study.population.config, study.pictured
    if pictured.mdp is None:
        return "No model of the environment is known, so nothing exact can be said of the policies."
    grid = f", map {escape(config.map)}, slip {config.slip:g}" if config.env == ENVIRONMENT else ""
    return (f"The environment is {escape(config.env)}{grid}, {pictured.environment.spec.max_episode_steps} steps an episode. Its "
            "dynamics are known, so returns, hazard probabilities and values of the greedy policies are exact expectations: all "
            "spread shown is between runs, none is rollout noise.")


def _divergence(study: Study) -> str:
    lost = [entry for entry in study.statistics["groups"] if entry["diverged"]]
    if not lost:
        return paragraph("No member diverged.", "note")
    listed = "; ".join(f"{group_name((entry['algorithm'], entry['alpha']))}: {entry['diverged']} of {entry['members']} "
                       f"({_reasons(study, entry)})" for entry in lost)
    return (paragraph(f"{sum(entry['diverged'] for entry in lost)} of {len(study.population.rows)} members diverged. {listed}.",
                      "warning")
            + paragraph("“runaway”: values above what any exact solution can reach; such a member has a policy and counts in "
                        "every mean. “not finite”: no policy; it is left out, and counted as missing.", "note"))


def _reasons(study: Study, entry: dict) -> str:
    found = [row["diverged"] for row in study.population.rows
             if (row["algorithm"], row["alpha"]) == (entry["algorithm"], entry["alpha"]) and row["diverged"]]
    return ", ".join(f"{found.count(reason)} {escape(reason)}" for reason in sorted(set(found)))


# -------------------------------------------------------------------------------------------------- claims and tables


def results(study: Study) -> str:
    """The claims, and the statistics of every alpha."""
    if all(entry["metrics"]["return"] is None for entry in study.statistics["groups"]):
        return paragraph("Without a known model there are no exact returns, and no statement about them.") + _relation(study)
    return (_claims(study) if study.population.alphas else "") + _worth(study) + _relation(study)


def _claims(study: Study) -> str:
    claims, rows = study.statistics["claims"], []

    def say(statement, alpha, evidence):
        rows.append([statement, "none" if alpha is None else f"{alpha:g}", evidence])
    below = claims["hazard_below_bc"]
    others = ", ".join(f"{alpha:g}" for alpha in below["alphas"])
    say(f"Smallest α with a hazard probability below BC’s with {percent(study)} confidence", below["alpha"],
        f"paired difference to BC wholly below 0 at α = {others}" if others else
        "at no α does the interval of the paired difference to BC lie below 0")
    for name, statement, (_, words, form) in (("best_return", "Highest mean return", TARGETS[0]),
                                              ("best_hazard", "Lowest mean hazard probability", TARGETS[1])):
        if (best := claims[name]) is not None:
            say(statement, best["alpha"], f"mean {words} {inline(best['mean'], form)}" + _lead(best, form))
    becomes = claims["becomes_bc"]
    say("CQL has become BC from α =", becomes["alpha"],
        "criterion: from there on the paired difference in return to BC has 0 in its interval, and at most "
        f"{100 * becomes['mismatch_within']:g} % more or fewer of the logged actions are not taken than by BC")
    for target, words, form in TARGETS:
        if (verdict := study.selection["verdict"][target]) is not None:
            rules = [rule for rule in study.selection["rules"] if rule["name"] in verdict["rules"]]
            rows.append([f"Offline rule that loses least {words}", picked(rules[0]["picks"]),
                         f"{named(rule['label'] for rule in rules)}: mean regret {inline(rules[0]['regret'][target], form)} "
                         "against the best α of each draw and seed; α as picked (times)"])
    return table(["statement", "α", "evidence"], rows, "What this run allows to be said", words=(1, 2)) + paragraph(
        "Each statement stands by itself: no correction is made for having looked at several values of α.", "note")


def _lead(best: dict, form: str) -> str:
    if best["lead"] is None:
        return ""
    tie = best["lead"][1] is not None and best["lead"][1] <= 0 <= best["lead"][2]
    return (f"; paired difference to the next best, α = {best['runner_up']:g}: {inline(best['lead'], form)}"
            + ", which is a tie" * tie)


def _worth(study: Study) -> str:
    """`_columns` of `WORTH`, members before them, pairs against BC after them, and rows of the references."""
    entries, found = study.statistics["groups"], study.statistics
    heads, rows = _columns(study, WORTH)
    shown = [column for column in WORTH if column[2] in heads]
    compared = any(entry["against_bc"] and entry["against_bc"]["return"] for entry in entries)
    for entry, row in zip(entries, rows):
        row.insert(1, f"{entry['members']}" + (f"<small>{entry['diverged']} diverged</small>" if entry["diverged"] else ""))
        better = entry["against_bc"] and entry["against_bc"]["probability_of_improvement"]
        row += [estimate(better and better[metric]) for metric, *_ in TARGETS] if compared else []
    for name, words in (("behavior", "behaviour policy"), ("optimal", "optimal policy")):
        if (exact := study.pictured.evaluation["references"][name]["exact"]) is not None:
            numbers = [number(exact[metric], form) if kind == "mean" else "" for metric, kind, _, form in shown]
            rows.append([words, "", *numbers, *[""] * (2 * compared)])
    heads = ["policy", "members", *heads[1:], *["P(return above BC’s)", "P(hazard below BC’s)"][:2 * compared]]
    needed = found["units_needed"]
    return table(heads, rows, "What the policies are worth") + paragraph(
        f"Below an estimate its {percent(study)} interval over {found['intervals_over']} ({escape(found['method'])}; "
        f"{found['resamples']:,} resamples). A mean needs {needed['mean']} independent values for an interval, a 90 % quantile "
        f"{needed['q90']}; the worst has none. No interval knows of failures too rare to have occurred in these draws, and BC’s "
        "failures are of that kind: its mean is less certain than its interval says. The probabilities P compare pairs of the "
        "same draw and training seed, ties counting half.", "note")


def _relation(study: Study) -> str:
    return table(*_columns(study, MEANS), "How they stand to the data, and what they promise") + paragraph(
        "Logged actions not taken: share of the data’s transitions whose action is not the greedy one. Unsupported steps: share "
        "of the steps of an episode whose action the data do not hold in that state. Penalty (logsumexp Q − Q(s, a) "
        "over the data) and TD loss: at the last log entry. V̂: max Q at the start; V<sup>π</sup>: the true discounted value "
        "of the greedy policy there.", "note")


def _columns(study: Study, columns) -> tuple[list[str], list[list[str]]]:
    """Heads and a row for every group, of those columns of which something is known."""
    entries = study.statistics["groups"]
    columns = [column for column in columns if any(entry["metrics"][column[0]] for entry in entries)]
    rows = [[group_name((entry["algorithm"], entry["alpha"])),
             *(estimate(entry["metrics"][metric] and entry["metrics"][metric][kind], form) for metric, kind, _, form in columns)]
            for entry in entries]
    return ["policy", *(words for *_, words, _ in columns)], rows


# ------------------------------------------------------------------------------------------------- pictures over alpha


def curves(study: Study, figures: dict[str, Path]) -> str:
    """The curves over alpha; where and why the network leaves the exact solution."""
    draws = counted(study.population.config.num_datasets, "draw")
    exact = (f" The line is the exact CQL solution of the same data, without training, its mean over {draws}; at α = 0 it is the "
             "limit α → 0." if study.oracles else "")
    shown = picture(figures.get("report_alpha"),
                    f"Points: mean over {behind(study)}; {bars(study)}. α = 0 stands apart on the left.{exact} Triangles "
                    "are means beyond the frame.",
                    "Six quantities over alpha: trained, exact, BC, behaviour and optimum")
    if not study.oracles:
        return shown + paragraph(f"There is no exact solution to hold the run against: {escape(study.unsolved)}", "note")
    return shown + ("" if "report_departure" not in figures else _departure(study, figures["report_departure"]))


def _departure(study: Study, path: Path) -> str:
    rows = []
    for alpha in study.population.alphas:
        distances, mass = study.distances[alpha], study.population.values("ood_mass", ("cql", alpha))
        sides = [found[np.isfinite(found)] for found in (mass, distances)]
        trained, (alphas, returns) = study.mean(("cql", alpha), "return"), study.oracle_mean("return")
        spread = [f(found) if found.size else None for found in sides for f in (np.median, np.max)]
        rows.append([f"{alpha:g}", *(number(value, ".2g") for value in spread),
                     number(trained and trained[0]), number(float(returns[alphas == alpha][0]))])
    heads = ["α", "unlogged mass: median", "largest", "|Q − exact Q|: median", "largest", "mean return: trained", "exact"]
    return ("<h3>Where the network leaves the exact solution, and why</h3>\n" + paragraph(
        "The exact solution has no action outside the data. The network has a value for every action, and the penalty pushes "
        "those never logged down only as hard as α is large: while softmax Q still has mass on them, the maximum in the target "
        "can pick their values up, and learned and exact values part. The two panels show both over α, the table their numbers.")
        + picture(path, f"A point is a member ({behind(study)}), the bar the median. Left: mass of softmax Q on actions that the "
                  "data never hold in that state, mean over the data. Right: distance from the exact solution of the same α and "
                  "data, mean over the logged pairs.", "Unlogged mass and distance from the exact solution over alpha")
        + table(heads, rows, "Network and exact solution"))


def training(study: Study, figures: dict[str, Path]) -> str:
    return picture(figures.get("losses"), f"Training curves, means over {behind(study)}: the terms of the loss, and the exact "
                   "worth of the greedy policy at every log entry.", "Loss terms and exact worth over the updates, by alpha")


def policies(study: Study, figures: dict[str, Path]) -> str:
    config = study.population.config
    return picture(figures.get("report_policies"),
                   f"Greedy action in every cell, one map for each α, of one data draw ({config.data_seed}) and one training "
                   f"seed ({config.seed}); colours are the true value of the policy."
                   + (" Upper rows: trained; lower rows: the exact solution (for BC: the most frequent logged action)."
                      if study.oracles else ""), "Greedy policies on the map for BC and every alpha")


def maps(study: Study, numbers: dict | None) -> str:
    """The slider; numbers: of ``slider_numbers``."""
    if numbers is None:
        return paragraph("There are no maps: " + ("the run has no CQL members." if not study.population.alphas else
                                                  "the states of this environment are no cells of a known grid."), "note")
    exact = numbers["draws"][0]["exact"]
    left = f"on the left the exact solution at {len(exact['alphas'])} values of α, " if exact else ""
    return paragraph(
        f"The maps follow the slider: {left}on the right the trained network at the nearest trained α. Embedded: "
        f"{len(numbers['draws'])} of {counted(study.population.config.num_datasets, 'data draw')}, every training seed. "
        f"Returns and hazard probabilities are of episodes of {numbers['horizon']} steps; values are discounted (γ = {numbers['gamma']:g})."
    ) + shipped("report_maps.html")


def pairs(study: Study, figures: dict[str, Path]) -> str:
    """Paired differences and performance profiles."""
    return picture(figures.get("report_paired"),
                   "CQL less BC on the same data draw and training seed. Points: data draws, each the mean of "
                   f"{counted(study.population.config.num_seeds, 'seed')}; diamonds: mean over the draws; {bars(study)}. "
                   "On the right the probability that CQL is the better of a pair.", "Paired differences of return and hazard to BC by alpha"
                   ) + picture(figures.get("report_profiles"),
                               f"The share of members ({behind(study)}) that are at least as good as a threshold, over all "
                               "thresholds: a curve above another is better there.", "Performance profiles of return and hazard")


# ---------------------------------------------------------------------------------------------------------- the referee


def choice(study: Study) -> str:
    """The rules that choose alpha from data alone, held against the truth."""
    found = study.selection
    if found is None:
        return ""
    rows = [_rule(rule) for rule in found["rules"]]
    heads = ["rule", "scored", "rank: return", "rank: hazard", "regret: return", "within 1 point", "regret: hazard", "covered",
             "effective sample", "α picked (times)"]
    signs = "; ".join(f"α = {sign['alpha']:g}: {sign['overfitting']} over, {sign['underfitting']} under, "
                      f"{sign['diverged']} diverged" for sign in found["signs"])
    return paragraph(
        "Each rule chooses one α on every data draw and training seed from what a practitioner has: the data, the trained "
        "networks, the training log. Only here can its choice be held against the exact return and hazard probability."
    ) + "".join(_verdict(study, *target) for target in TARGETS) + table(
        heads, rows, "The referee’s table", words=(9,)) + paragraph(
        f"Over {counted(found['draws'], 'draw')} and {counted(found['seeds'], 'seed')}; {found['candidates']} of "
        f"{found['members']} members are candidates, those that diverged are not. scored: members the rule has a score for. "
        "rank: correlation with the exact value over α, +1 = ordered exactly right. regret: what is lost against the best α of "
        "that draw and seed; within 1 point: share of draws that lose at most 1 of return. covered: share of the rule’s 95 % "
        "intervals that hold the exact value. effective sample: of episodes, median over the members. Propensities: "
        f"{'as logged' if found['behavior'] == 'logged' else 'by counts'}.", "note") + paragraph(
        f"Signs of over- and underfitting in the training log, members: {signs}.", "note")


def _rule(rule: dict) -> list[str]:
    coverage = next((share for share in rule["coverage"].values() if share is not None), None)
    rank, regret = rule["rank_correlation"], rule["regret"]
    return [f"{escape(rule['label'])}<small>{escape(rule['what'])}</small>", f"{rule['available']} / {rule['of']}",
            estimate(rank["return"], "+.2f"), estimate(rank["hazard_probability"], "+.2f"), estimate(regret["return"]),
            number(rule["within_one_point"], ".0%"), estimate(regret["hazard_probability"], ".4f"), number(coverage, ".0%"),
            number(rule["effective_sample_size"], ".1f"), picked(rule["picks"])]


def _verdict(study: Study, target: str, words: str, form: str) -> str:
    verdict = study.selection["verdict"][target]
    if verdict is None:
        return ""
    label = {rule["name"]: rule["label"] for rule in study.selection["rules"]}
    baselines = "; ".join(f"{escape(label[name])}: {number(lost, form)}" for name, lost in verdict["baselines"].items())
    return paragraph(f"Least {words} is lost by <strong>{named(label[name] for name in verdict['rules'])}</strong>: "
                     f"{number(verdict['regret'], form)} on the mean. Its return is within 1 point of the best on "
                     f"{number(verdict['within_one_point'], '.0%')} of the draws. For comparison: {baselines}.")
