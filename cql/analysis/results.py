"""The numbers of every member of a run: one line each in ``results.csv``, and as arrays.

``Results`` is what statistics, figures and the report start from: an array ``[D, S]``, data sets by training seeds, per
metric and group; a group is an (algorithm, alpha). A missing number (no policy, no known model) is NaN in the array and
empty in the file.
"""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cql.config import Config
from cql.errors import RunError
from cql.files import atomic_write
from cql.members import all_members
from cql.metrics import read_metrics
from cql.run_folder import RunFolder

Group = tuple[str, float | None]  # (algorithm, alpha); alpha is None for BC

SETTINGS = ("epsilon", "episodes", "slip", "td_loss", "double_q", "penalty_threshold", "gamma", "batch_size", "lr",
            "target_interval", "bc_top", "bc_safe")  # of the run, repeated in every line of results.csv
COLUMNS = {  # name -> meaning: the member, its settings, exact numbers, rollouts, the log
    "algorithm": "cql or bc",
    "alpha": "weight of the penalty, or where it started; empty for BC",
    "seed": "training seed",
    "data_seed": "seed of the data set",
    **{name: f"the run's --{name.replace('_', '-')}" for name in SETTINGS},
    "updates": "gradient updates done",
    "final_alpha": "weight of the penalty at the end; empty for BC",
    "diverged": "runaway or not finite, empty if neither",
    "converged": "False if its values still moved, or BC's cross-entropy is above its floor; empty if it diverged or "
                 "cannot be judged",
    "return": "exact undiscounted return of the greedy policy over the episode",
    "hazard_probability": "exact probability that its episode ends in a hazard",
    "goal_probability": "exact probability that it ends in the goal",
    "unsupported_action_rate": "exact share of its steps that take an OOD action, never logged in that state",
    "discounted_value": "true value of the greedy policy at the start, discounted",
    "value_estimate": "max_a Q at the start; empty for BC",
    "value_error": "value_estimate - discounted_value: positive if the estimate is too high",
    "action_mismatch_rate": "share of logged transitions whose action is not the greedy one",
    "rollout_return": "mean return of the rollouts",
    "rollout_hazard_rate": "share of the rollouts that end in a hazard",
    "rollout_goal_rate": "share that ends in the goal",
    "rollout_unsupported_action_rate": "share of the rollouts' steps that take an OOD action",
    "td": "losses/td of the last log entry, a mean over the updates since the one before",
    "penalty": "losses/penalty of the last log entry, likewise",
    "cross_entropy": "losses/cross_entropy of the last log entry, likewise; BC only",
    "data_q": "q/data_mean at the last log entry",
    "ood_mass": "policy/ood_mass at the last log entry",
}
_LOGGED = {"td": "losses/td", "penalty": "losses/penalty", "cross_entropy": "losses/cross_entropy",
           "data_q": "q/data_mean", "ood_mass": "policy/ood_mass"}
_EXACT = ("return", "hazard_probability", "goal_probability", "discounted_value")
_ROLLOUT = {"rollout_return": "return_mean", "rollout_hazard_rate": "hazard_rate", "rollout_goal_rate": "goal_rate",
            "rollout_unsupported_action_rate": "unsupported_action_rate"}


def member_rows(run: RunFolder) -> list[dict]:
    """One dictionary per member with the keys of ``COLUMNS``; None for a missing number.

    Raises:
        RunError: ``evaluation.json`` or ``metrics.csv`` is missing, damaged, or of another form.
    """
    try:
        return _rows(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{run.path}/evaluation.json is not what this version writes ({type(error).__name__}: "
                       f"{str(error)[:100]}): evaluate the run again.") from None


def _rows(run: RunFolder) -> list[dict]:
    config, series = run.config(), read_metrics(run.path / "metrics.csv")
    entries = {(entry["algorithm"], entry["alpha"], entry["seed"], entry["data_seed"]): entry
               for entry in run.read_json("evaluation.json")["members"]}
    rows = []
    for member in all_members(config):
        entry = entries[member.algorithm, member.alpha, member.seed, member.data_seed]
        exact, rollout = entry["exact"] or {}, entry["rollout"] or {}
        last = {name: series[member.name, metric][1][-1] for name, metric in _LOGGED.items()
                if (member.name, metric) in series}
        row = {**vars(member), **{name: getattr(config, name) for name in SETTINGS},
               "updates": config.steps if member.algorithm == "cql" else config.bc_steps,
               "final_alpha": entry["final_alpha"], "diverged": entry["diverged"] and entry["diverged"]["reason"],
               "converged": entry["convergence"] and entry["convergence"]["converged"],
               **{name: exact.get(name) for name in _EXACT},
               "unsupported_action_rate": entry["exact_unsupported_action_rate"],
               "value_estimate": entry["value_estimate"], "action_mismatch_rate": entry["action_mismatch_rate"],
               **{name: rollout.get(key) for name, key in _ROLLOUT.items()},
               **{name: value for name, value in last.items() if math.isfinite(value)}}
        if row["value_estimate"] is not None and row["discounted_value"] is not None:
            row["value_error"] = row["value_estimate"] - row["discounted_value"]
        rows.append({name: row.get(name) for name in COLUMNS})
    return rows


def write_results(run: RunFolder) -> list[dict]:
    """Writes ``results.csv``, numbers in full precision; returns its rows."""
    rows, text = member_rows(run), io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else repr(value) if isinstance(value, float) else value
                      for name, value in row.items()} for row in rows)
    atomic_write(run.path / "results.csv", text.getvalue().encode())
    return rows


@dataclass(frozen=True)
class Results:
    """The members of one run as arrays ``[D, S]``, data sets by training seeds.

    Args:
        config: of the run; rows: ``member_rows``.
    """

    config: Config
    rows: list[dict]

    @classmethod
    def of(cls, run: RunFolder) -> "Results":
        return cls(run.config(), member_rows(run))

    @property
    def groups(self) -> list[Group]:
        """BC first where it was trained, then CQL by rising alpha."""
        return sorted({(row["algorithm"], row["alpha"]) for row in self.rows}, key=lambda g: (g[0], g[1] or 0.0))

    @property
    def alphas(self) -> list[float]:
        return [alpha for algorithm, alpha in self.groups if algorithm == "cql"]

    def values(self, metric: str, group: Group) -> np.ndarray:
        """float64, NaN for a missing number."""
        return self._array(group, lambda row: math.nan if row[metric] is None else float(row[metric]))

    def diverged(self, group: Group) -> np.ndarray:
        """bool."""
        return self._array(group, lambda row: row["diverged"] is not None)

    def converged(self, group: Group) -> np.ndarray:
        """1 if a member has converged, 0 if not, NaN where it diverged or cannot be judged."""
        return self.values("converged", group)

    def _array(self, group: Group, read: Callable) -> np.ndarray:
        values = {(row["data_seed"], row["seed"]): read(row) for row in self.rows
                  if (row["algorithm"], row["alpha"]) == group}
        data_seeds, seeds = self.config.data_seeds, self.config.seeds
        return np.array([[values[data_seed, seed] for seed in seeds] for data_seed in data_seeds])
