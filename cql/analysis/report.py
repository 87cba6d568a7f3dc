"""The report: one HTML page that holds a whole run, its pictures and the numbers of its maps; it needs no network.

The page is ``report_page.html`` with named slots in double braces, filled once, all text from files escaped. Making it again
from the same files gives the same bytes.
"""

import base64
import hashlib
import json
import re
import shlex
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from cql.analysis import evaluation, report_figures, selection, statistics
from cql.analysis.report_data import Study, slider_numbers
from cql.analysis.results import Group, Population
from cql.config import command_line
from cql.files import write_whole
from cql.runs import MANIFEST, RunFolder, commit, sha256, versions

PAGE = "report.html"
COLOURS = {"true": "cividis", "estimate": "cividis", "difference": "PuOr", "passing": "cividis_r"}
SAYS = {"true": "Value, discounted, one scale for both maps and for V̂ and V^π.",
        "estimate": "Value, discounted, one scale for both maps and for V̂ and V^π.",
        "difference": "V̂ − V^π: positive where the value believed in is too high.",
        "passing": "Probability that an episode from the start is ever in the cell (log scale; white: below 0.00005)."}
RULES = {"hazard_below_bc": "Smallest α with a hazard probability below BC’s", "best_return": "Highest mean return",
         "best_hazard": "Lowest mean hazard probability", "becomes_bc": "CQL has become BC from α ="}


def write_report(run: RunFolder) -> Path:
    """Writes ``statistics.json``, ``selection.json`` (if there are CQL members), the report's pictures and ``report.html``.

    Raises:
        RunError, DatasetError, ConfigError: a file of the run is missing, damaged or contradictory.
    """
    population = Population.of(run)
    found = statistics.summary(population)
    chosen = selection.referee(run) if population.alphas else None
    run.write_json("statistics.json", found)
    if chosen is not None:
        run.write_json("selection.json", chosen)
    study = Study.of(run, found, chosen)
    path = run.path / PAGE
    write_whole(path, page(study, report_figures.draw_report(study)).encode())
    return path


def page(study: Study, figures: dict[str, Path]) -> str:
    """The whole page. figures: those drawn, by name."""
    losses = study.pictured.run.path / "figures" / "losses.png"
    if losses.is_file():
        figures = {**figures, "losses": losses}
    numbers = slider_numbers(study)
    sections = [("results", "What was found", _results(study)),
                ("curves", "What α does", _alpha(study, figures)),
                ("training", "Training", _training(study, figures)),
                ("policies", "The policies over α", _policies(study, figures)),
                ("maps", "Maps over α", _maps(study, numbers)),
                ("pairs", "Differences between runs", _pairs(study, figures)),
                ("choice", "Choosing α from data alone", _choice(study)),
                ("reproduction", "Settings, versions and digests", _reproduction(study))]
    sections = [section for section in sections if section[2]]
    return fill(_shipped("report_page.html"), {
        "title": escape(_title(study)), "style": _shipped("report_page.css"), "introduction": _introduction(study),
        "contents": "\n".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in sections),
        "sections": "\n".join(f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(title)}</h2>'
                              f"\n{content}\n</section>" for name, title, content in sections),
        "numbers": "" if numbers is None else embedded("maps-data", _coloured(numbers)),
        "script": _shipped("report_page.js")})


def fill(template: str, slots: dict[str, str]) -> str:
    """Puts each slot's text for ``{{its name}}``, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: slots[found[1]], template)


def embedded(name: str, value) -> str:
    """JSON in a script element; no text in it can end the element or begin another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _shipped(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8").rstrip("\n")


def _coloured(numbers: dict) -> dict:
    return {**numbers, "scales": {name: {**scale, "colours": report_figures.palette(COLOURS[name]), "words": SAYS[name]}
                                  for name, scale in numbers["scales"].items()}}


# ---------------------------------------------------------------------------------------------- pieces of the page


def table(heads: list[str], rows: list[list[str]], caption: str, words: tuple[int, ...] = ()) -> str:
    """An HTML table. Cells and caption are HTML already; the first of a row names it; `words` are columns of text."""
    def cells(row):
        return "".join(f'<th scope="row">{cell}</th>' if n == 0 else f'<td class="words">{cell}</td>' if n in words
                       else f"<td>{cell}</td>" for n, cell in enumerate(row))
    head = "".join(f'<th scope="col"{" class=" + chr(34) + "words" + chr(34) if n in words else ""}>{cell}</th>'
                   for n, cell in enumerate(heads))
    label, caption = caption, f"<caption>{caption}</caption>"
    look = ' class="prose"' if words else ""
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{look}>{caption}<thead><tr>{head}</tr></thead><tbody>'
            + "\n".join(f"<tr>{cells(row)}</tr>" for row in rows) + "</tbody></table></div>")


def picture(figures: dict[str, Path], name: str, caption: str, words: str) -> str:
    """A figure with its caption (HTML), embedded; nothing if it was not drawn. words: what a reader who cannot see it is told."""
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name].read_bytes()).decode()
    return (f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escape(words)}"><img alt="{escape(words)}" '
            f'src="data:image/png;base64,{data}"></div><figcaption>{caption}</figcaption></figure>')


def number(value, form: str = ".2f") -> str:
    """With a true minus; a dash for None. Numbers too large for the form take a power of ten."""
    if value is None:
        return "–"
    if abs(value) >= 1e5 and form.endswith("f"):
        form = ".2e"
    return format(value, form).replace("-", "−").replace("%", "\u00a0%")


def estimate(found, form: str = ".2f") -> str:
    """[estimate, low, high] as a cell: the interval below, where there is one."""
    if found is None:
        return "–"
    value, low, high = found
    return number(value, form) + ("" if low is None else f"<small>{number(low, form)} … {number(high, form)}</small>")


def inline(found, form: str = ".2f") -> str:
    """[estimate, low, high] within a sentence."""
    value, low, high = found
    return number(value, form) + ("" if low is None else f" ({number(low, form)} … {number(high, form)})")


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def group_name(group: Group) -> str:
    return "BC" if group[1] is None else f"α = {group[1]:g}"


def span(first: int, many: int) -> str:
    return f"{first}" if many == 1 else f"{first} to {first + many - 1}"


def members_words(study: Study) -> str:
    """Who is behind a mean, for captions."""
    config = study.population.config
    return (f"{config.num_datasets} data draw{'s' * (config.num_datasets > 1)} × {config.num_seeds} training "
            f"seed{'s' * (config.num_seeds > 1)} for each α")


def bars(study: Study) -> str:
    """What the bars in the pictures are; how they are made stands below the first table."""
    return f"bars: {100 * study.statistics['level']:g} % intervals over {study.statistics['intervals_over']}, where there are any"


# ------------------------------------------------------------------------------------------------------- the sections


def _title(study: Study) -> str:
    config, alphas = study.population.config, study.population.alphas
    what = "Behaviour Cloning" if not alphas else f"CQL at α = {alphas[0]:g}" if len(alphas) == 1 else (
        f"CQL over α from {alphas[0]:g} to {alphas[-1]:g}")
    where = config.env if config.env != "SafetyCriticalGridWorld-v0" else f"the GridWorld “{config.map}”"
    return f"{what} on {'given data' if study.pictured.environment is None else where}"


def _introduction(study: Study) -> str:
    config, population, pictured = study.population.config, study.population, study.pictured
    cql = sum(row["algorithm"] == "cql" for row in population.rows)
    bc = len(population.rows) - cql
    parts = []
    if cql:
        parts.append(f"{cql} agents were trained by Conservative Q-Learning, {config.steps:,} updates each: "
                     f"{len(population.alphas)} value{'s' * (len(population.alphas) > 1)} of α "
                     f"({', '.join(f'{alpha:g}' for alpha in population.alphas)})")
    if bc:
        parts.append(f"{bc} by Behaviour Cloning (BC), {config.bc_steps:,} updates each")
    seeds = (f"for every training seed ({span(config.seed, config.num_seeds)}) and every "
             f"data draw ({span(config.data_seed, config.num_datasets)})")
    data = [len(dataset) for dataset in pictured.datasets.values()]
    drawn = f"{min(data):,}" if min(data) == max(data) else f"{min(data):,} to {max(data):,}"
    source = ("A data set was given" if config.dataset is not None else
              f"A data draw is {config.episodes:,} episodes of a cautious ε-greedy policy (ε = {config.epsilon:g})")
    text = f"{', and '.join(parts)}, {seeds}. {source}: {drawn} transitions."
    if pictured.mdp is not None:
        text += (f" The environment is {escape(config.env)}" + (f", map {escape(config.map)}, slip {config.slip:g}"
                                                               if config.env == "SafetyCriticalGridWorld-v0" else "")
                 + f", {pictured.environment.spec.max_episode_steps} steps an episode. Its dynamics are known, so returns, hazard "
                 "probabilities and values of the greedy policies are exact expectations: all spread shown is between runs, "
                 "none is rollout noise.")
    else:
        text += " No model of the environment is known, so nothing exact can be said of the policies."
    return paragraph(text) + _divergence(study)


def _divergence(study: Study) -> str:
    groups = [(entry, _reasons(study, entry)) for entry in study.statistics["groups"] if entry["diverged"]]
    if not groups:
        return paragraph("No member diverged.", "note")
    members = sum(entry["diverged"] for entry, _ in groups)
    listed = "; ".join(f"{group_name((entry['algorithm'], entry['alpha']))}: {entry['diverged']} of {entry['members']} ({reasons})"
                       for entry, reasons in groups)
    return (paragraph(f"{members} of {len(study.population.rows)} members diverged. {listed}.", "warning")
            + paragraph("“runaway”: values above what any exact solution can reach; such a member has a policy and counts in every "
                        "mean. “not finite”: no policy; it is left out, and counted as missing.", "note"))


def _reasons(study: Study, entry: dict) -> str:
    found = [row["diverged"] for row in study.population.rows
             if (row["algorithm"], row["alpha"]) == (entry["algorithm"], entry["alpha"]) and row["diverged"]]
    return ", ".join(f"{found.count(reason)} {escape(reason)}" for reason in sorted(set(found)))


def _results(study: Study) -> str:
    if all(entry["metrics"]["return"] is None for entry in study.statistics["groups"]):
        return paragraph("Without a known model there are no exact returns, and no statement about them.") + _group_tables(study)
    return (_claims(study) if study.population.alphas else "") + _group_tables(study)


def _claims(study: Study) -> str:
    claims, level = study.statistics["claims"], f"{100 * study.statistics['level']:g} %"
    rows = []
    below = claims["hazard_below_bc"]
    others = ", ".join(f"{alpha:g}" for alpha in below["alphas"])
    rows.append([f"{RULES['hazard_below_bc']} with {level} confidence", _alpha_cell(below["alpha"]),
                 f"paired difference to BC wholly below 0 at α = {others}" if others else
                 "at no α does the interval of the paired difference to BC lie below 0"])
    for name, form, metric in (("best_return", ".2f", "return"), ("best_hazard", ".4f", "hazard probability")):
        best = claims[name]
        if best is None:
            continue
        text = f"mean {metric} {inline(best['mean'], form)}"
        if best["lead"] is not None:
            tie = best["lead"][1] is not None and best["lead"][1] <= 0 <= best["lead"][2]
            text += (f"; paired difference to the next best, α = {best['runner_up']:g}: {inline(best['lead'], form)}"
                     + ", which is a tie" * tie)
        rows.append([RULES[name], _alpha_cell(best["alpha"]), text])
    becomes = claims["becomes_bc"]
    rows.append([RULES["becomes_bc"], _alpha_cell(becomes["alpha"]),
                 "criterion: from there on the paired difference in return to BC has 0 in its interval, and at most "
                 f"{100 * becomes['mismatch_within']:g} % more of the logged actions are not taken than by BC"])
    for target, words, form in (("return", "return", ".2f"), ("hazard_probability", "hazard probability", ".4f")):
        verdict = study.selection["verdict"][target]
        if verdict is not None:
            rules = [rule for rule in study.selection["rules"] if rule["name"] in verdict["rules"]]
            rows.append([f"Offline rule that loses least {words}", _picks(rules[0]["picks"]),
                         f"{_named(rule['label'] for rule in rules)}: mean regret {inline(rules[0]['regret'][target], form)} "
                         "against the best α of each draw and seed; α as picked (times)"])
    return table(["statement", "α", "evidence"], rows, "What this run allows to be said", words=(1, 2)) + paragraph(
        "Each statement stands by itself: no correction is made for having looked at several values of α.", "note")


def _named(labels) -> str:
    return " and ".join(f"“{escape(label)}”" for label in labels)


def _alpha_cell(alpha) -> str:
    return "none" if alpha is None else f"{alpha:g}"


def _picks(picks) -> str:
    most = sorted(picks, key=lambda pick: (-pick[1], pick[0]))
    return ", ".join(f"{alpha:g} ({times:.3g})" for alpha, times in most[:3]) + (", …" if len(most) > 3 else "")


WORTH = [("return", "mean", "return: mean", ".2f"), ("return", "iqm", "interquartile mean", ".2f"),
         ("hazard_probability", "mean", "hazard probability: mean", ".4f"), ("hazard_probability", "q90", "90 % quantile", ".4f"),
         ("hazard_probability", "worst", "worst", ".4f"), ("goal_probability", "mean", "goal probability: mean", ".4f")]
MEANS = [("action_mismatch_rate", "mean", "logged actions not taken", ".3f"), ("unsupported_action_rate", "mean", "unsupported steps", ".5f"),
         ("conservative_gap", "mean", "conservative gap", ".3f"), ("td_error", "mean", "TD error", ".3g"),
         ("value_estimate", "mean", "V̂ at the start", ".2f"), ("value_error", "mean", "V̂ − V<sup>π</sup> at the start", ".2f")]


def _group_tables(study: Study) -> str:
    found, heads, rows = study.statistics, *_worth_table(study)
    return (table(heads, rows, "What the policies are worth") + paragraph(
        f"Below an estimate its {100 * found['level']:g} % interval over {found['intervals_over']} ({found['method']}; "
        f"{found['resamples']:,} resamples). A mean needs {found['units_needed']['mean']} independent values for an interval, a 90 % "
        f"quantile {found['units_needed']['q90']}; the worst has none. The probabilities P compare pairs of the same draw and "
        "training seed, ties counting half.", "note") + table(*_columns(study, MEANS), "How they stand to the data, and what they promise")
        + paragraph("Logged actions not taken: share of the data’s transitions whose action is not the greedy one. Unsupported steps: share of "
                    "the steps of an episode whose action the data do not hold in that state. Conservative gap (logsumexp Q − Q(s, a) over "
                    "the data) and TD error: at the last log entry. V̂: max Q at the start; V<sup>π</sup>: the true discounted value there.",
                    "note"))


def _columns(study: Study, columns) -> tuple[list[str], list[list[str]]]:
    """Heads and a row for every group, of those columns of which something is known."""
    entries = study.statistics["groups"]
    columns = [column for column in columns if any(entry["metrics"][column[0]] for entry in entries)]
    rows = [[group_name((entry["algorithm"], entry["alpha"])),
             *(estimate(entry["metrics"][metric] and entry["metrics"][metric][name], form) for metric, name, _, form in columns)]
            for entry in entries]
    return ["", *(words for *_, words, _ in columns)], rows


def _worth_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """`_columns` of `WORTH` with members before them, pairs against BC after them, and rows of the references."""
    heads, rows = _columns(study, WORTH)
    entries, shown = study.statistics["groups"], [column for column in WORTH if column[2] in heads]
    compared = any(entry["against_bc"] and entry["against_bc"]["return"] for entry in entries)
    for entry, row in zip(entries, rows):
        row.insert(1, f"{entry['members']}" + (f"<small>{entry['diverged']} diverged</small>" if entry["diverged"] else ""))
        better = entry["against_bc"] and entry["against_bc"]["probability_of_improvement"]
        row += [estimate(better and better[metric]) for metric in ("return", "hazard_probability")] if compared else []
    references = study.pictured.evaluation["references"]
    for name, words in (("behavior", "behaviour policy"), ("optimal", "optimal policy")):
        if (exact := references[name]["exact"]) is not None:
            rows.append([words, "", *(number(exact.get(metric), form) if kind == "mean" else "" for metric, kind, _, form in shown),
                         *[""] * (2 * compared)])
    return [heads[0], "members", *heads[1:], *["P(return above BC’s)", "P(hazard below BC’s)"][:2 * compared]], rows


def _alpha(study: Study, figures) -> str:
    config = study.population.config
    exact = ("The line is the exact CQL solution of the same data, without training, its mean over the "
             f"{config.num_datasets} draws." if study.oracles else "")
    curves = picture(figures, "report_alpha", f"Points: mean over {members_words(study)}; {bars(study)}. {exact} α = 0 "
                     "stands apart on the left: the exact side there is the limit α → 0. Triangles are means beyond the frame.",
                     "Six quantities over alpha: trained, exact, BC, behaviour and optimum")
    why = ""
    if study.oracles and "report_departure" in figures:
        why = "<h3>Where the network leaves the exact solution, and why</h3>" + paragraph(
            "The exact solution has no action outside the data. The network has a value for every action, and the penalty pushes "
            "those never logged down only as hard as α is large: while softmax Q still has mass on them, the maximum in the target "
            "can pick their values up, and learned and exact values part. The two panels show both over α; the table has their numbers.")
        why += picture(figures, "report_departure", f"A point is a member ({members_words(study)}), the bar the median. Left: mass of "
                       "softmax Q on actions that the data never hold in that state, mean over the data. Right: distance from the exact "
                       "solution of the same α and data, mean over the logged pairs.", "Unlogged mass and distance from the oracle over alpha")
        why += _departure_table(study)
    elif study.unsolved:
        why = paragraph(f"There is no exact solution to hold the run against: {escape(study.unsolved)}", "note")
    return curves + why


def _departure_table(study: Study) -> str:
    rows = []
    for alpha in study.population.alphas:
        distances = study.distances[alpha][np.isfinite(study.distances[alpha])]
        mass = study.population.values("unlogged_mass", ("cql", alpha))
        mass = mass[np.isfinite(mass)]
        trained, (alphas, returns) = study.mean(("cql", alpha), "return"), study.oracle_mean("return")
        rows.append([f"{alpha:g}", *(number(x, ".2g") for x in ((np.median(mass), mass.max()) if mass.size else (None, None))),
                     *(number(x, ".2g") for x in ((np.median(distances), distances.max()) if distances.size else (None, None))),
                     number(trained and trained[0]), number(float(returns[alphas == alpha][0]))])
    return table(["α", "unlogged mass: median", "largest", "|Q − exact Q|: median", "largest", "mean return: trained", "exact"], rows,
                 "Network and exact solution")


def _training(study: Study, figures) -> str:
    return picture(figures, "losses", f"Training curves, means over {members_words(study)}; the loss terms, and the exact worth of the "
                   "greedy policy at every log entry.", "Loss terms and exact worth over the updates, by alpha")


def _policies(study: Study, figures) -> str:
    config = study.population.config
    return picture(figures, "report_policies", f"Greedy action in every cell, one map for each α, of one data draw ({config.data_seed}) and "
                   f"one training seed ({config.seed}); colours are the true value of the policy. Upper rows: trained; lower rows: the exact "
                   "solution (for BC: the most frequent logged action).", "Greedy policies on the map for BC and every alpha")


def _maps(study: Study, numbers: dict | None) -> str:
    if numbers is None:
        return paragraph("There are no maps: " + ("the run has no CQL members." if not study.population.alphas else
                                                  "the states of this environment are no cells of a known grid."), "note")
    draws = len(numbers["draws"])
    exact = numbers["draws"][0]["exact"]
    many = f"{len(exact['alphas'])} values of α" if exact else f"{len(numbers['alphas'])} values of α"
    words = (f"Both maps follow the slider: on the left the exact solution at {many}, on the right the trained network at the nearest "
             f"trained one. Embedded: {draws} of {study.population.config.num_datasets} data draws, every training seed. Returns and "
             f"hazard probabilities are of episodes of {numbers['horizon']} steps, values are discounted (γ = {numbers['gamma']:g}).")
    return paragraph(words) + _shipped("report_maps.html")


def _pairs(study: Study, figures) -> str:
    return picture(figures, "report_paired", f"CQL less BC on the same data draw and training seed. Points: data draws, means over "
                   f"{study.population.config.num_seeds} seed(s); diamonds: mean over the draws; {bars(study)}. On the right the "
                   "probability that CQL is the better of a pair.", "Paired differences of return and hazard to BC for every alpha") + picture(
        figures, "report_profiles", f"The share of members ({members_words(study)}) that are at least as good as a threshold, over all "
        "thresholds: a curve above another is better there.", "Performance profiles of return and hazard probability")


def _choice(study: Study) -> str:
    if study.selection is None:
        return ""
    found = study.selection
    rows = []
    for rule in found["rules"]:
        coverage = [share for share in rule["coverage"].values() if share is not None]
        rows.append([f"{escape(rule['label'])}<small>{escape(rule['what'])}</small>", f"{rule['available']} / {rule['of']}",
                     estimate(rule["rank_correlation"]["return"], "+.2f"), estimate(rule["rank_correlation"]["hazard_probability"], "+.2f"),
                     estimate(rule["regret"]["return"]), number(rule["within_one_point"], ".0%"),
                     estimate(rule["regret"]["hazard_probability"], ".4f"), number(coverage[0] if coverage else None, ".0%"),
                     number(rule["effective_sample_size"], ".1f"), _picks(rule["picks"])])
    heads = ["rule", "scored", "rank: return", "rank: hazard", "regret: return", "within 1 point", "regret: hazard", "covered",
             "effective sample", "α picked (times)"]
    text = paragraph("Each rule chooses one α on every data draw and training seed from what a practitioner has: the data, the trained "
                     "networks, the training log. Only here can its choice be held against the exact return and hazard probability.")
    verdicts = "".join(_verdict(study, target, words, form) for target, words, form in (
        ("return", "return", ".2f"), ("hazard_probability", "hazard probability", ".4f")))
    signs = "; ".join(f"α = {sign['alpha']:g}: {sign['overfitting']} over, {sign['underfitting']} under, {sign['diverged']} diverged"
                      for sign in found["signs"])
    return text + verdicts + table(heads, rows, "The referee’s table", words=(9,)) + paragraph(
        f"Over {found['draws']} draws and {found['seeds']} seeds; {found['candidates']} of {found['members']} members are candidates, those "
        "that diverged are not. scored: members the rule has a score for. rank: correlation with the exact value, +1 = ordered exactly right. "
        "regret: what is lost against the best α of that draw and seed; within 1 point: share of draws that lose at most 1 of return. "
        "covered: share of the rule’s 95 % intervals that hold the exact value. effective sample: median over the members, of "
        f"{study.population.config.episodes:,} episodes. Propensities: {escape(found['behavior'])}." if study.population.config.dataset is None
        else "", "note") + paragraph(f"Signs of over- and underfitting in the training curves, members: {signs}.", "note")


def _verdict(study: Study, target: str, words: str, form: str) -> str:
    verdict = study.selection["verdict"][target]
    if verdict is None:
        return ""
    label = {rule["name"]: rule["label"] for rule in study.selection["rules"]}
    baselines = "; ".join(f"{escape(label[name])}: {number(lost, form)}" for name, lost in verdict["baselines"].items())
    return paragraph(f"Least {words} is lost by <strong>{_named(label[name] for name in verdict['rules'])}</strong>: "
                     f"{number(verdict['regret'], form)} on the mean, within 1 point of the best return on "
                     f"{number(verdict['within_one_point'], '.0%')} of the draws. For comparison: {baselines}.")


# --------------------------------------------------------------------------------------------------- what reproduces it


def commands(study: Study) -> list[str]:
    """The command lines that make this run and this page again."""
    judged = study.pictured.evaluation
    evaluated = []
    for flag, name, default in (("--episodes", "rollout_episodes", evaluation.DEFAULT_EPISODES),
                                ("--seed", "rollout_seed", evaluation.DEFAULT_SEED)):
        evaluated += [flag, str(judged[name])] if judged[name] != default else []
    return [shlex.join(["python", "train.py", *command_line(study.population.config), "--out", "RUN"]),
            shlex.join(["python", "evaluate.py", "RUN", *evaluated, "--report"])]


def policies_digest(run: RunFolder) -> str:
    """SHA-256 of the lines that ``sha256sum policies/*.pt`` prints in the run folder, in byte order of the names."""
    paths = sorted((run.path / "policies").glob("*.pt"), key=lambda path: path.name.encode())
    return hashlib.sha256("".join(f"{sha256(path)}  policies/{path.name}\n" for path in paths).encode()).hexdigest()


def _reproduction(study: Study) -> str:
    run, config = study.pictured.run, study.population.config
    settings = json.loads(config.to_json())
    rows = [[f"<code>--{escape(name.replace('_', '-'))}</code>", escape(_plain(value))] for name, value in settings.items()]
    files = ["config.json", *(f"datasets/{seed}.npz" for seed in config.data_seeds), "metrics.csv", "evaluation.json"]
    digests = [[escape(name), f"<code>{sha256(run.path / name)}</code>"] for name in files]
    count = len(list((run.path / "policies").glob("*.pt")))
    digests.append([f"{count} policies, as a list", f"<code>{policies_digest(run)}</code>"])
    facts = {**versions(), "commit": commit() or "not in a checkout", **_trained_on(run)}
    return ("<h3>Commands</h3><pre><code>" + escape("\n".join(commands(study))) + "</code></pre>"
            + paragraph("The same machine, slices and threads give the same bytes; others agree within rounding."
                        + (" The data file is part of what has to be kept." if config.dataset is not None else ""), "note")
            + table(["setting", "value"], rows, "Settings", words=(1,))
            + table(["of", "version"], [[escape(name), escape(value)] for name, value in facts.items()], "Versions", words=(1,))
            + table(["file", "SHA-256"], digests, "Digests", words=(1,))
            + paragraph("The policies’ digest is that of the list which <code>LC_ALL=C; sha256sum policies/*.pt</code> prints in the run "
                        "folder; <code>manifest.json</code> has every file’s own.", "note"))


def _trained_on(run: RunFolder) -> dict[str, str]:
    """Device and seconds of training, as far as the manifest of the run has them."""
    manifest = run.read_json(MANIFEST) if (run.path / MANIFEST).is_file() else {}
    found = {"training device": manifest.get("device"), "training, seconds": manifest.get("training_seconds")}
    return {name: str(value) for name, value in found.items() if value is not None}


def _plain(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
