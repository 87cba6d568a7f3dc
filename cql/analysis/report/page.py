"""The report: one HTML page that holds a whole run, its pictures and the numbers of its maps; it needs no network.

What the page says stands in the templates beside this file. Jinja escapes all that is put in, so that no name from a
file can become markup. Making the page again from the same files gives the same bytes.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

import envs
from cql.analysis import audit as auditing
from cql.analysis import convergence, evaluation, judging, selection, statistics
from cql.analysis.report import tables
from cql.analysis.report.data import ReportData
from cql.analysis.report.figures import draw_report
from cql.analysis.report.slider import slider_numbers
from cql.analysis.results import Results
from cql.config import ENVIRONMENT, command_line
from cql.files import atomic_write, sha256
from cql.run_folder import MANIFEST, RunFolder, commit, versions

PAGE = "report.html"
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True, undefined=jinja2.StrictUndefined)
TEMPLATES.filters.update(tables.FILTERS, base64=lambda path: base64.b64encode(path.read_bytes()).decode())
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


def write_report(run: RunFolder, audit: dict | None = None, pictures: Mapping[str, Path] | None = None) -> Path:
    """Writes ``statistics.json``, with CQL members ``selection.json``, the report's pictures and ``report.html``.

    Args:
        audit, pictures: of the run, if the page is to show an audit.

    Raises:
        RunError, DatasetError, ConfigError: a file of the run is missing, damaged or contradictory.
    """
    results = Results.of(run)
    summary = statistics.summary(results)
    chosen = selection.referee(run) if results.alphas else None
    run.write_json("statistics.json", summary)
    if chosen is not None:
        run.write_json("selection.json", chosen)
    data = ReportData.of(run, summary, chosen, audit)
    atomic_write(run.path / PAGE, render(data, {**draw_report(data), **(pictures or {})}).encode())
    return run.path / PAGE


def render(data: ReportData, figures: dict[str, Path]) -> str:
    """The page. figures: those drawn for it, by name."""
    losses = data.run_data.run.path / "figures" / "losses.png"
    config, folder = data.run_data.config, Path(__file__).parent
    return TEMPLATES.get_template("page.html").render(
        data=data, config=config, run_data=data.run_data, title=title(data), tables=tables,
        statistics=statistics, choosing=selection, judging=judging, convergence=convergence, auditing=auditing,
        numbers=slider_numbers(data), environment=environment(data),
        figures={**figures, **({"losses": losses} if losses.is_file() else {})},
        level=f"{100 * data.statistics['level']:g} %", reproduction=reproduction(data),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((folder / name).read_text(encoding="utf-8") for name in ("map.js", "page.js"))))


def title(data: ReportData) -> str:
    config, alphas = data.run_data.config, data.results.alphas
    if not alphas:
        what = "Behaviour Cloning"
    elif config.penalty_threshold is not None:
        what = "CQL with a learned α"
    else:
        what = f"CQL at α = {alphas[0]:g}" if len(alphas) == 1 else f"CQL over α from {alphas[0]:g} to {alphas[-1]:g}"
    if data.run_data.world.environment is None:
        return f"{what} on given data"
    if config.dataset is not None:
        return f"{what} on given data of {data.run_data.world.environment.spec.id}"
    return f"{what} on " + (f"the GridWorld “{config.map}”" if config.env == ENVIRONMENT else config.env)


def environment(data: ReportData) -> str | None:
    """The environment that the data name, with the map and slip of a GridWorld; None if they name none."""
    made, config = data.run_data.world.environment, data.run_data.config
    if made is None:
        return None
    grid = made.unwrapped
    if not isinstance(grid, envs.SafetyCriticalGridWorld):
        return made.spec.id
    known = [name for name, rows in envs.MAPS.items() if rows == grid.desc]
    name = config.map if config.dataset is None else known[0] if known else "of {} × {} cells".format(*grid.shape)
    return f"{made.spec.id}, map {name}, slip {grid.slip_probability:g}"


def commands(data: ReportData) -> list[str]:
    """The command lines that make this run and this page again."""
    judged, words = data.run_data.evaluation, []
    for flag, name, default in (("--episodes", "rollout_episodes", evaluation.DEFAULT_EPISODES),
                                ("--seed", "rollout_seed", evaluation.DEFAULT_SEED)):
        words += [flag, str(judged[name])] if judged[name] != default else []
    return [shlex.join(["python", "train.py", *command_line(data.run_data.config), "--out", "RUN"]),
            shlex.join(["python", "evaluate.py", "RUN", *words, *["--audit"] * (data.audit is not None), "--report"])]


def reproduction(data: ReportData) -> dict[str, list]:
    """Of the last section: command lines, and rows of settings, versions and digests."""
    run, config, code = data.run_data.run, data.run_data.config, Markup("<code>{}</code>").format
    settings = [[code(f"--{name.replace('_', '-')}"), " ".join(map(str, value)) if isinstance(value, list) else
                 "–" if value is None else str(value)] for name, value in json.loads(config.to_json()).items()]
    files = ["config.json", *(f"datasets/{seed}.npz" for seed in config.data_seeds), "metrics.csv", "evaluation.json"]
    digests = [[name, code(sha256(run.path / name))] for name in files]
    # SHA-256 of the lines that sha256sum prints, in byte order of the names
    paths = sorted((run.path / "policies").glob("*.pt"), key=lambda path: path.name.encode())
    lines = "".join(f"{sha256(path)}  policies/{path.name}\n" for path in paths)
    digests.append([f"{len(paths)} policies, as a list", code(hashlib.sha256(lines.encode()).hexdigest())])
    manifest = run.read_json(MANIFEST) if (run.path / MANIFEST).is_file() else {}
    trained = {"training device": manifest.get("device"), "training, seconds": manifest.get("training_seconds")}
    facts = {**versions(), "commit": commit() or "not in a checkout", **trained}
    return {"commands": commands(data), "settings": settings, "digests": digests,
            "versions": [[name, str(value)] for name, value in facts.items() if value is not None]}
