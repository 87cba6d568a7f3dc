"""Runs side by side: what ``python -m cql compare`` prints and writes.

For settings that do not vary within a run (td_loss, double_q, epsilon, episodes, hidden, ...): which of them differ,
the statistics of each run, and the paired difference to the first run. Members of equal algorithm, alpha, seed and data
seed are a pair, even if their data differ (another epsilon, map or number of episodes), since both sides have the same
random numbers; the result says whether they do. Runs are only read.
"""

import dataclasses

import numpy as np

from cql.analysis import statistics
from cql.analysis.results import Group, Results
from cql.config import Config
from cql.run_folder import RunFolder
from cql.text import aligned


def comparison(runs: list[RunFolder], resamples: int = 2000, level: float = 0.95) -> dict:
    """The content of ``--out``, JSON without NaN:

    {"settings": {name: [value of each run]}, of those that differ,
     "runs": [{"path", "summary": cql.analysis.statistics.summary}],
     "against_first": [{"run": number from 1, "algorithm", "alpha", "pairs", "same_data": of all pairs, "return",
                        "hazard_probability", "probability_of_improvement"}]}, this run minus the first

    Raises:
        RunError: a run is not evaluated, damaged, or not what its manifest records.
        ValueError: level or resamples out of range.
    """
    for run in runs:
        run.check_manifest()
    results = [Results.of(run) for run in runs]
    first, against = results[0], []
    for number, (run, other) in enumerate(zip(runs[1:], results[1:]), 2):
        data_seeds = sorted({*first.config.data_seeds} & {*other.config.data_seeds})
        seeds = sorted({*first.config.seeds} & {*other.config.seeds})
        if not (data_seeds and seeds):
            continue
        same_data = _same_data(runs[0], run, data_seeds)
        bootstrap = statistics.Bootstrap(statistics.resample_counts(len(data_seeds), len(seeds), resamples), level)
        for algorithm, alpha in (group for group in other.groups if group in first.groups):
            values = [_values(side, (algorithm, alpha), data_seeds, seeds) for side in (other, first)]
            against.append({"run": number, "algorithm": algorithm, "alpha": alpha, "same_data": same_data,
                            "pairs": len(data_seeds) * len(seeds), **statistics.paired(bootstrap, *values)})
    return {"settings": differing_settings([side.config for side in results]),
            "runs": [{"path": str(run.path), "summary": statistics.summary(side, resamples, level)}
                     for run, side in zip(runs, results)],
            "against_first": against}


def differing_settings(configs: list[Config]) -> dict[str, list]:
    """name -> the value of each config, for settings that are not the same in all."""
    values = {field.name: [getattr(config, field.name) for config in configs] for field in dataclasses.fields(Config)}
    return {name: [list(value) if isinstance(value, tuple) else value for value in row]
            for name, row in values.items() if any(value != row[0] for value in row)}


def _same_data(first: RunFolder, second: RunFolder, data_seeds: list[int]) -> bool:
    """Whether both runs logged the same actions, rewards and ends with each data seed, however states are shown."""
    a, b = (dict(zip(run.config().data_seeds, run.datasets(run.config()))) for run in (first, second))
    return all(np.array_equal(getattr(a[seed], name), getattr(b[seed], name))
               for seed in data_seeds for name in ("actions", "rewards", "terminations", "truncations"))


def _values(results: Results, group: Group, data_seeds: list[int], seeds: list[int]) -> dict[str, np.ndarray]:
    """The paired metrics of a group, ``[D, S]``, of these data and training seeds."""
    index = np.ix_([results.config.data_seeds.index(seed) for seed in data_seeds],
                   [results.config.seeds.index(seed) for seed in seeds])
    return {metric: results.values(metric, group)[index] for metric in statistics.PAIRED}


def text(result: dict) -> str:
    """A ``comparison`` for the terminal."""
    runs, settings = result["runs"], result["settings"]
    numbers = range(1, len(runs) + 1)
    lines = aligned([("run", "data sets", "seeds", "folder"), *(
        (str(n), str(run["summary"]["draws"]), str(run["summary"]["seeds"]), run["path"])
        for n, run in zip(numbers, runs))], left=(0, 3))
    lines += ["", *(aligned([("setting", *(f"run {n}" for n in numbers)), *(
        (name, *map(_setting, values)) for name, values in settings.items())], left=range(len(runs) + 1))
        if settings else ["All settings are the same."])]
    for n, run in zip(numbers, runs):
        draws, seeds, level, over = (run["summary"][name] for name in ("draws", "seeds", "level", "intervals_over"))
        few = statistics.too_few(draws, seeds, level)
        intervals = f"means have no interval: {few}" if few else f"[{level:.0%} intervals] over {over}"
        lines += ["", f"run {n}: exact values, {intervals}",
                  *statistics.group_lines(run["summary"]["groups"])]
    for n in numbers[1:]:
        lines += ["", *_against_lines(n, [row for row in result["against_first"] if row["run"] == n])]
    return "\n".join(lines)


def _against_lines(number: int, rows: list[dict]) -> list[str]:
    if not rows:
        return [f"run {number} and run 1 have no members in common: a difference needs the same alpha, training seed "
                "and data seed in both."]
    data = "equal" if rows[0]["same_data"] else "different"
    return [f"run {number} minus run 1, {rows[0]['pairs']} pairs of the same seeds a group, their data {data}",
            *statistics.difference_lines([("BC" if row["alpha"] is None else f"{row['alpha']:g}", row)
                                          for row in rows])]


def _setting(value) -> str:
    return " ".join(f"{x:g}" for x in value) or "0" if isinstance(value, list) else str(value)
