"""The rows of the report's tables and its numbers as words. A cell is text, which the page escapes, or ``Markup``."""

import numpy as np
from markupsafe import Markup

from cql.analysis import audit, judging, selection, statistics
from cql.analysis.report.data import ReportData
from cql.text import counted

Table = tuple[list, list[list]]  # heads, rows
TARGETS = {"return": ("return", ".2f"), "hazard_probability": ("hazard probability", ".4f")}  # metric -> words, form
WORTH = [  # metric, statistic, words, form
    ("return", "mean", "return: mean", ".2f"), ("return", "iqm", "interquartile mean", ".2f"),
    ("hazard_probability", "mean", "hazard probability: mean", ".4f"),
    ("hazard_probability", "q90", "90 % quantile", ".4f"), ("hazard_probability", "worst", "worst", ".4f"),
    ("goal_probability", "mean", "goal probability: mean", ".4f")]
RELATION = [
    ("action_mismatch_rate", "mean", "logged actions not taken", ".3f"),
    ("unsupported_action_rate", "mean", "steps with an OOD action", ".5f"), ("penalty", "mean", "penalty", ".3f"),
    ("td", "mean", "TD loss", ".3g"), ("value_estimate", "mean", "V̂ at the start", ".2f"),
    ("value_error", "mean", Markup("V̂ − V<sup>π</sup> at the start"), ".2f")]


def number(value, form: str = ".2f") -> str:
    """With a true minus; a dash for None. Numbers too large for their form take a power of ten."""
    if value is None:
        return "–"
    form = ".2e" if abs(value) >= 1e5 and form.endswith("f") else form
    return format(value, form).replace("-", "−").replace("%", "\u00a0%")


def estimate(triple, form: str = ".2f") -> str | Markup:
    """[estimate, low, high] as a cell: the interval below, where there is one."""
    if triple is None or triple[1] is None or triple[1] == triple[2]:
        return number(triple and triple[0], form)
    mean, low, high = (number(value, form) for value in triple)
    return Markup("{}<small>{} … {}</small>").format(mean, low, high)


def inline(triple, form: str = ".2f") -> str:
    """[estimate, low, high] within a sentence."""
    mean, low, high = (number(value, form) for value in triple)
    return mean if triple[1] is None else f"{mean} ({low} … {high})"


def span(first: int, many: int) -> str:
    return f"{first}" if many == 1 else f"{first} to {first + many - 1}"


def alphas(values) -> str:
    return ", ".join(f"{alpha:g}" for alpha in values)


def policy_name(entry: dict) -> str:
    """What the page calls the members of one algorithm and alpha."""
    return "BC" if entry["alpha"] is None else f"α = {entry['alpha']:g}"


def named(labels) -> str:
    return selection.listed([f"“{label}”" for label in labels])


FILTERS = {function.__name__: function for function in (number, estimate, inline, counted, alphas, policy_name, named)}


def claims(data: ReportData) -> list[list]:
    """What the statistics allow to be said: rows of statement, alpha, evidence."""
    rows = [[cell.replace("alpha", "α") for cell in row] for row in statistics.statements(data.statistics, inline)]
    for metric, (words, form) in TARGETS.items():
        if (verdict := data.selection["verdict"][metric]) is not None:
            rules = [rule for rule in data.selection["rules"] if rule["name"] in verdict["rules"]]
            labels, regret = named(rule["label"] for rule in rules), inline(rules[0]["regret"][metric], form)
            rows.append([f"Offline rule that loses least {words}", selection.picked(rules[0]["picks"]),
                         f"{labels}: mean regret {regret} against the best α of each data set and seed; α as picked "
                         "(times)"])
    return rows


def by_group(data: ReportData, columns) -> Table:
    """Heads and a row for every group, of those columns of which something is known."""
    entries = data.statistics["groups"]
    columns = [column for column in columns if any(entry["metrics"][column[0]] for entry in entries)]
    rows = [[policy_name(entry), *(estimate(entry["metrics"][metric] and entry["metrics"][metric][statistic], form)
                                   for metric, statistic, _, form in columns)] for entry in entries]
    return ["policy", *(words for *_, words, _ in columns)], rows


def relation(data: ReportData) -> Table:
    return by_group(data, RELATION)


def worth(data: ReportData) -> Table:
    """Outcomes by group; members before them, pairs against BC after them, and rows of the references."""
    entries = data.statistics["groups"]
    heads, rows = by_group(data, WORTH)
    compared = any(entry["against_bc"] and entry["against_bc"]["return"] for entry in entries)
    for entry, row in zip(entries, rows):
        flaws = [(entry[name], name.replace("_", " ")) for name in ("diverged", "not_converged") if entry[name]]
        row.insert(1, Markup(entry["members"]) + Markup().join(
            Markup("<small>{} {}</small>").format(*flaw) for flaw in flaws))
        better = entry["against_bc"] and entry["against_bc"]["probability_of_improvement"]
        row += [estimate(better and better[metric]) for metric in TARGETS] if compared else []
    for name, words in (("behavior", "behaviour policy"), ("optimal", "optimal policy")):
        if (exact := data.run_data.evaluation["references"][name]["exact"]) is not None:
            numbers = [number(exact[metric], form) if statistic == "mean" else ""
                       for metric, statistic, head, form in WORTH if head in heads]
            rows.append([words, "", *numbers, *[""] * (2 * compared)])
    return ["policy", "members", *heads[1:], *["P(return above BC’s)", "P(hazard below BC’s)"][:2 * compared]], rows


def judged(data: ReportData) -> Table:
    """What was logged, BC and every alpha: worth, differences, verdicts; without columns that say nothing."""
    heads, *rows = judging.cells(data.judged, estimate)
    return [head.replace("alpha", "α") or "training" for head in heads], rows


def departure(data: ReportData) -> Table:
    """By alpha: members not converged, softmax mass on OOD actions, distance from the exact solution, both returns."""
    rows = []
    for alpha in data.results.alphas:
        sides = [values[np.isfinite(values)] for values in (data.results.values("ood_mass", ("cql", alpha)),
                                                            data.distances[alpha])]
        trained, (exact_alphas, returns) = data.mean(("cql", alpha), "return"), data.exact_mean("return")
        numbers = [f(values) if values.size else None for values in sides for f in (np.median, np.max)]
        early = (data.results.converged(("cql", alpha)) == 0).sum()
        rows.append([f"{alpha:g}", str(early), *(number(value, ".2g") for value in numbers),
                     number(trained and trained[0]), number(float(returns[exact_alphas == alpha][0]))])
    return ["α", "not converged", "OOD mass: median", "largest", "|Q − exact Q|: median", "largest",
            "mean return: trained", "exact"], rows


def rules(data: ReportData) -> Table:
    """The rules that score a member, compared with the truth."""
    heads, *rows = judging.without_unknown(selection.cells(
        data.selection, lambda rule: Markup("{}<small>{}</small>").format(rule["label"], rule["what"]), estimate,
        estimate, number))
    return [head.replace("alpha", "α") for head in heads], rows


def audit_table(data: ReportData, columns: list[audit.Column]) -> Table:
    """A table of the audit, means over the members of each alpha."""
    lines = audit.values(audit.by_alpha(data.audit), columns)
    return [head.replace("alpha", "α").replace("beta", "β") for head, _, _ in columns], [
        [number(value, form) for value, (_, form, _) in zip(line, columns)] for line in lines]
