"""The report: one HTML page that holds a whole run, its pictures and the numbers of its maps; it needs no network.

The page is ``report_page.html`` with named slots in double braces, filled once. Making it again from the same files gives the
same bytes.
"""

import hashlib
import json
import shlex
from html import escape
from pathlib import Path

from cql.analysis import evaluation, report_figures, report_sections, selection, statistics
from cql.analysis.report_data import Study, slider_numbers
from cql.analysis.report_html import embedded, fill, paragraph, shipped, table
from cql.analysis.results import Population
from cql.config import command_line
from cql.files import write_whole
from cql.runs import MANIFEST, RunFolder, commit, sha256, versions

PAGE = "report.html"
SCALES = {  # of the maps: quantity -> colour map, what its legend says
    "true": ("cividis", "Value, discounted: one scale for both maps and for V̂ and V^π."),
    "estimate": ("cividis", "Value, discounted: one scale for both maps and for V̂ and V^π."),
    "difference": ("PuOr", "V̂ − V^π: positive where the value believed in is too high."),
    "passing": ("cividis_r", "Probability that an episode from the start is ever in the cell (log scale; white: below 0.00005).")}


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
    write_whole(run.path / PAGE, page(study, report_figures.draw_report(study)).encode())
    return run.path / PAGE


def page(study: Study, figures: dict[str, Path]) -> str:
    """The whole page. figures: those drawn for it, by name."""
    losses = study.pictured.run.path / "figures" / "losses.png"
    figures = {**figures, "losses": losses} if losses.is_file() else figures
    numbers = slider_numbers(study)
    sections = [("results", "What was found", report_sections.results(study)),
                ("curves", "What α does", report_sections.curves(study, figures)),
                ("training", "Training", report_sections.training(study, figures)),
                ("policies", "The policies over α", report_sections.policies(study, figures)),
                ("maps", "Maps over α", report_sections.maps(study, numbers)),
                ("pairs", "Differences between runs", report_sections.pairs(study, figures)),
                ("choice", "Choosing α from data alone", report_sections.choice(study)),
                ("reproduction", "Settings, versions and digests", reproduction(study))]
    sections = [section for section in sections if section[2]]
    return fill(shipped("report_page.html"), {
        "title": escape(report_sections.title(study)), "style": shipped("report_page.css"),
        "introduction": report_sections.introduction(study),
        "contents": "\n".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections),
        "sections": "\n".join(f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
                              f"{content}</section>" for name, title, content in sections),
        "numbers": "" if numbers is None else embedded("maps-data", {**numbers, "scales": {
            name: {**scale, "colours": report_figures.palette(SCALES[name][0]), "words": SCALES[name][1]}
            for name, scale in numbers["scales"].items()}}),
        "script": shipped("report_page.js")})


# --------------------------------------------------------------------------------------------------- what reproduces it


def commands(study: Study) -> list[str]:
    """The command lines that make this run and this page again."""
    judged, words = study.pictured.evaluation, []
    for flag, name, default in (("--episodes", "rollout_episodes", evaluation.DEFAULT_EPISODES),
                                ("--seed", "rollout_seed", evaluation.DEFAULT_SEED)):
        words += [flag, str(judged[name])] if judged[name] != default else []
    return [shlex.join(["python", "train.py", *command_line(study.population.config), "--out", "RUN"]),
            shlex.join(["python", "evaluate.py", "RUN", *words, "--report"])]


def policies_digest(run: RunFolder) -> str:
    """SHA-256 of the lines that ``sha256sum policies/*.pt`` prints in the run folder, in byte order of the names."""
    paths = sorted((run.path / "policies").glob("*.pt"), key=lambda path: path.name.encode())
    return hashlib.sha256("".join(f"{sha256(path)}  policies/{path.name}\n" for path in paths).encode()).hexdigest()


def reproduction(study: Study) -> str:
    """The last section: commands, settings, versions, digests."""
    run, config = study.pictured.run, study.population.config
    settings = [[f"<code>--{escape(name.replace('_', '-'))}</code>", escape(_plain(value))]
                for name, value in json.loads(config.to_json()).items()]
    files = ["config.json", *(f"datasets/{seed}.npz" for seed in config.data_seeds), "metrics.csv", "evaluation.json"]
    digests = [[escape(name), f"<code>{sha256(run.path / name)}</code>"] for name in files]
    policies = len(list((run.path / "policies").glob("*.pt")))
    digests.append([f"{policies} policies, as a list", f"<code>{policies_digest(run)}</code>"])
    facts = {**versions(), "commit": commit() or "not in a checkout", **_trained_on(run)}
    return (f"<pre><code>{escape(chr(10).join(commands(study)))}</code></pre>\n"
            + paragraph("The same machine, slices and threads give the same bytes; others agree within rounding."
                        + " The data file is part of what has to be kept." * (config.dataset is not None), "note")
            + table(["setting", "value"], settings, "Settings", words=(1,))
            + table(["of", "version"], [[escape(name), escape(value)] for name, value in facts.items()], "Versions", words=(1,))
            + table(["file", "SHA-256"], digests, "Digests", words=(1,))
            + paragraph("The policies’ digest is that of the list which <code>LC_ALL=C; sha256sum policies/*.pt</code> prints in "
                        "the run folder; <code>manifest.json</code> has every file’s own.", "note"))


def _trained_on(run: RunFolder) -> dict[str, str]:
    """Device and seconds of training, as far as the manifest of the run has them."""
    manifest = run.read_json(MANIFEST) if (run.path / MANIFEST).is_file() else {}
    found = {"training device": manifest.get("device"), "training, seconds": manifest.get("training_seconds")}
    return {name: str(value) for name, value in found.items() if value is not None}


def _plain(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
