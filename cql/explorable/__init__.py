"""The explorable: one HTML page on which a world, its data and α are changed and the exact solution follows.

Its sources stand beside this file, so that an installed package has them: JavaScript modules, a style sheet and a
template, which ``page`` joins to one file that loads nothing. docs/explore/index.html is that file, made by
``python -m cql explore --out docs/explore/index.html``; a test holds it against the sources.
"""

import html
import json
import os
import re
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

import envs
from cql.config import LARGEST_INTEGER, Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, RunError
from cql.files import atomic_write
from cql.losses import Objective
from cql.members import Member, members
from cql.notebook import Fit
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World

MATHS = ("world", "random", "solve", "policies", "data", "curve")  # what the worker runs too, in order of imports
INTERFACE = ("files", "draw", "lessons", "panels", "address", "main")
MOST_CELLS = 20  # a side
MOST_TABLES = 100  # trained tables on one page: 20 kB each
LARGEST_GAMMA = 0.999
TD_LOSSES, PENALTIES = ("mse", "half_mse"), ("logsumexp", "rho", "previous")  # those that the page solves
FACTS: dict = {"epsilon": (float, 0, 1), "episodes": (int, 1, LARGEST_INTEGER), "seed": (int, 0, LARGEST_INTEGER)}


def script(names) -> str:
    """The modules as one classic script: without ``import`` lines and the word ``export``; names are unique."""
    text = "\n".join((files(__name__) / f"{name}.js").read_text(encoding="utf-8") for name in names)
    text = text.replace("/*maps*/ {}", json.dumps(envs.MAPS))
    return re.sub(r"^export ", "", re.sub(r"^import [^;]*;\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)


def page(preload: dict | None = None) -> str:
    """The page as HTML.

    Args:
        preload: what ``preload_of`` gives; without it the page opens with the default map.
    """
    data = json.dumps(preload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    text = (files(__name__) / "page.html").read_text(encoding="utf-8")
    for name, part in (("style", (files(__name__) / "page.css").read_text(encoding="utf-8")), ("maths", script(MATHS)),
                       ("interface", script(INTERFACE)), ("preload", data)):
        text = text.replace(f"/*{name}*/", part)
    return text


def preload_of(dataset: OfflineDataset, objective: Objective | None = None, alpha: float = 6.0,
               trained: list[dict] | None = None, name: str = "given data") -> dict:
    """What a page needs to open with this data set, as JSON: its world, its distinct steps and trained Q.

    Args:
        objective: what the page solves at first; CQL(H) if not given. Double Q and ``supported`` leave the exact
            solution as it is (docs/math.md).
        trained: ``{"name", "alpha", "q"}`` of every network that is shown, q ``[S][A]``.

    Raises:
        RunError: the environment is not a SafetyCriticalGridWorld, or larger than the page shows, gamma is 1, or the
            page lacks the penalty or the loss.
        DatasetError: the data set is of another environment.
    """
    objective = objective or Objective()
    if objective.gamma > LARGEST_GAMMA:
        raise RunError(f"the page solves for gamma up to {LARGEST_GAMMA}, not {objective.gamma}.")
    for value, solved in ((objective.td_loss, TD_LOSSES), (objective.penalty, PENALTIES)):
        if value not in solved:
            raise RunError(f"the page solves for {', '.join(solved)}, not {value}.")
    world = World.of(dataset).known()
    grid = world.environment.unwrapped
    if not isinstance(grid, envs.SafetyCriticalGridWorld):
        raise RunError(f"the page shows SafetyCriticalGridWorld alone, not {world.environment.spec.id}.")
    if max(grid.shape) > MOST_CELLS:
        raise RunError(f"the page shows maps of at most {MOST_CELLS} × {MOST_CELLS} cells, not "
                       f"{grid.shape[0]} × {grid.shape[1]}.")
    world.empirical(dataset)
    logged = world.transitions(dataset)
    rows = np.column_stack([logged.observations, logged.actions, logged.rewards, logged.next_observations,
                            logged.terminations]).astype(np.float64)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    facts = {key: value for key, (kind, low, high) in FACTS.items()  # anything may stand there in a foreign file
             if isinstance(value := dataset.metadata.get(key), (int, kind)) and not isinstance(value, bool)
             and low <= value <= high}
    return {"name": name, "map": list(grid.desc), "slip": grid.slip_probability, "steps": world.horizon, **facts,
            "gamma": objective.gamma, "alpha": alpha, "tdLoss": objective.td_loss, "penalty": objective.penalty,
            "temperature": objective.temperature, "logged": np.column_stack([distinct, counts]).tolist(),
            "trained": (trained or [])[:MOST_TABLES]}


def preload_of_fit(fit: Fit) -> dict:
    """As ``preload_of``, with the CQL members of a fit."""
    tables = {m: q for m, q in zip(fit.members, fit.q if fit.q is not None else ()) if m.algorithm == "cql"}
    return _preload(fit.config, fit.dataset, tables, "the fit’s data")


def preload_of_run(path) -> dict:
    """As ``preload_of``, with the first data set of a run and the CQL members trained on it.

    Raises:
        RunError: it is no run, or not what its manifest records.
    """
    run = RunFolder.open(path)
    run.check_manifest(derived=False)
    config = run.config()
    dataset, tables = run.datasets(config)[0], {}
    inputs = World.of(dataset).known().inputs
    for member in members(config, "cql"):
        if member.data_seed == config.data_seed and (file := run.policy_path(member.name)).exists():
            tables[member] = Policy.load(file).outputs(inputs)
    return _preload(config, dataset, tables, f"data of {run.path.name}")


def _preload(config: Config, dataset: OfflineDataset, tables: dict[Member, np.ndarray], name: str) -> dict:
    if config.penalty_threshold is not None:
        raise RunError("the page solves for a given alpha, not for one learned with a penalty threshold.")
    # a trained Q with --supported is minus infinity for OOD actions, which JSON has not
    trained = [{"name": member.name, "alpha": member.alpha, "q": q.astype(np.float64).tolist()}
               for member, q in tables.items() if np.isfinite(q).all()]
    if not trained:
        name += " (trained Q not shown: not finite)" if members(config, "cql") else " (no CQL member was trained)"
    return preload_of(dataset, config.objective, config.alpha[0], trained, name)


@dataclass(frozen=True)
class Explorable:
    """A page that a notebook shows by itself, in a frame; ``save`` writes it to a file."""

    html: str

    def _repr_html_(self) -> str:
        return (f'<iframe srcdoc="{html.escape(self.html)}" title="CQL, solved as you change it" '
                'style="width: 100%; height: 900px; border: 0"></iframe>')

    def save(self, path) -> None:
        """Writes the page, whole or not at all. Raises RunError: it cannot be written."""
        try:
            atomic_write(path, self.html.encode())
        except (OSError, ValueError) as error:  # ValueError: of a path that names no file
            reason = error.strerror if isinstance(error, OSError) else "it names no file"
            raise RunError(f"{str(path) or repr('')} cannot be written ({reason}).") from None


def explore(dataset: OfflineDataset | None = None, fit: Fit | None = None, run=None) -> Explorable:
    """The explorable in a notebook, opened with a data set, with a fit and its trained Q, or with the run in a folder.

    Raises:
        RunError, DatasetError: what is given cannot be shown: see ``preload_of``.
        ConfigError: more than one is given, or one of another kind.
    """
    if sum(given is not None for given in (dataset, fit, run)) > 1:
        raise ConfigError("explore shows a data set, a fit or a run: give one of them.")
    paths = (str, os.PathLike)
    for name, given, kind in (("dataset", dataset, OfflineDataset), ("fit", fit, Fit), ("run", run, paths)):
        if given is not None and not isinstance(given, kind):
            hint = f" (a run: run={str(given)!r})" if isinstance(given, paths) else ""
            raise ConfigError("explore takes an OfflineDataset as dataset, what cql.fit gives as fit or a path as run, "
                              f"not {name} of type {type(given).__name__}{hint}.")
    if fit is not None:
        return Explorable(page(preload_of_fit(fit)))
    if run is not None:
        return Explorable(page(preload_of_run(run)))
    return Explorable(page(None if dataset is None else preload_of(dataset)))
