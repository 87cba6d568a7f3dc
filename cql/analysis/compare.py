"""Runs side by side: python -m cql.analysis.compare RUN RUN [...] [--out FILE.json]

For factors that are not swept within a run (td_loss, double_q, epsilon, episodes, hidden, ...): which settings differ, what
each group of each run is worth, and the difference to the first run in groups that both have. Members of equal algorithm,
alpha, seed and data seed are a pair: also where the data differ (another epsilon, map or number of episodes), since both
sides are then drawn with the same random numbers; the result says which. Runs are read, never written.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from cql.analysis.results import Population
from cql.analysis.statistics import (
    PAIRED,
    Bootstrap,
    aligned,
    difference_lines,
    group_lines,
    paired,
    resample_counts,
    summary,
    unpaired_difference,
)
from cql.config import Config, ConfigError
from cql.files import write_whole
from cql.runs import RunError, RunFolder


def comparison(runs: list[RunFolder], resamples: int = 2000, level: float = 0.95) -> dict:
    """The content of ``--out``, JSON without NaN:

    {"settings": {name: [value of each run]}, those that differ,
     "runs": [{"path", "summary": cql.analysis.statistics.summary}],
     "against_first": [{"run": number from 1, "algorithm", "alpha", "pairs": 0 if not paired, "same_data": of all pairs,
                        "return", "hazard_probability", "probability_of_improvement"}]}, this run minus the first

    Raises:
        RunError: a run is not evaluated, damaged, or not what its manifest records.
        ValueError: level or resamples out of range.
    """
    populations = [_population(run) for run in runs]
    against = []
    for number, (run, population) in enumerate(zip(runs[1:], populations[1:]), 2):
        draws, seeds = (sorted({*getattr(populations[0].config, name)} & {*getattr(population.config, name)})
                        for name in ("data_seeds", "seeds"))
        same_data = _same_data(runs[0], run, draws)
        for group in population.groups:
            if group in populations[0].groups:
                algorithm, alpha = group
                against.append({"run": number, "algorithm": algorithm, "alpha": alpha, "same_data": same_data,
                                **_difference(population, populations[0], group, draws, seeds, resamples, level)})
    return {"settings": differing_settings([population.config for population in populations]),
            "runs": [{"path": str(run.path), "summary": summary(population, resamples, level)}
                     for run, population in zip(runs, populations)],
            "against_first": against}


def differing_settings(configs: list[Config]) -> dict[str, list]:
    """name -> the value of each config, for settings that are not the same in all."""
    values = {field.name: [getattr(config, field.name) for config in configs] for field in dataclasses.fields(Config)}
    return {name: [list(value) if isinstance(value, tuple) else value for value in found]
            for name, found in values.items() if any(value != found[0] for value in found)}


def _same_data(first, second, draws) -> bool:
    """Whether both runs logged the same actions, rewards and ends in each of these draws, however states are shown."""
    sides = [dict(zip(config.data_seeds, run.datasets(config))) for run in (first, second) for config in [run.config()]]
    return bool(draws) and all(np.array_equal(getattr(sides[0][draw], name), getattr(sides[1][draw], name)) for draw in draws
               for name in ("actions", "rewards", "terminations", "truncations"))


def _population(run):
    run.refuse_changes()
    return Population.of(run)


def _difference(population, first, group, draws, seeds, resamples, level):
    if not draws or not seeds:
        return {"pairs": 0, **{metric: unpaired_difference(population.values(metric, group), first.values(metric, group),
                                                           resamples, level) for metric in PAIRED},
                "probability_of_improvement": dict.fromkeys(PAIRED)}
    bootstrap = Bootstrap(resample_counts(len(draws), len(seeds), resamples), level)
    mine, theirs = ({metric: _among(side, side.values(metric, group), draws, seeds) for metric in PAIRED}
                    for side in (population, first))
    return {"pairs": len(draws) * len(seeds), **paired(bootstrap, mine, theirs)}


def _among(population, values, draws, seeds):
    """Those rows and columns of values [D, S]."""
    config = population.config
    return values[np.ix_([config.data_seeds.index(draw) for draw in draws], [config.seeds.index(seed) for seed in seeds])]


def text(result: dict) -> str:
    """A ``comparison`` for a terminal."""
    runs = result["runs"]
    lines = aligned([("run", "draws", "seeds", "folder")] + [
        (str(n), str(run["summary"]["draws"]), str(run["summary"]["seeds"]), run["path"]) for n, run in enumerate(runs, 1)],
        right=(1, 2))
    lines += ["", *(aligned([("setting", *(f"run {n}" for n in range(1, len(runs) + 1)))] + [
        (name, *map(_setting, values)) for name, values in result["settings"].items()])
        if result["settings"] else ["All settings are the same."])]
    level = runs[0]["summary"]["level"]
    for number, run in enumerate(runs, 1):
        lines += ["", f"run {number}: exact values, [{level:.0%} intervals] over {run['summary']['intervals_over']}",
                  *group_lines(run["summary"]["groups"])]
    for number in range(2, len(runs) + 1):
        rows = [row for row in result["against_first"] if row["run"] == number]
        lines += ["", *_against_lines(number, rows)]
    return "\n".join(lines)


def _against_lines(number, rows):
    if not rows:
        return [f"run {number} and run 1 have no group in common."]
    how = (f"{rows[0]['pairs']} pairs of the same seeds a group, their data {'equal' if rows[0]['same_data'] else 'different'}"
           if rows[0]["pairs"] else "unpaired: no data seed or no training seed is in both")
    return [f"run {number} minus run 1, {how}",
            *difference_lines([("BC" if row["alpha"] is None else f"{row['alpha']:g}", row) for row in rows])]


def _setting(value) -> str:
    return " ".join(f"{x:g}" for x in value) or "0" if isinstance(value, list) else str(value)


MOST_RESAMPLES = 100_000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql.analysis.compare", description="Runs side by side: settings that "
                                     "differ, return and hazard with intervals, differences to the first run.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="evaluated run folders, at least two")
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="of the intervals (default %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default %(default)s)")
    parser.add_argument("--out", metavar="FILE.json", help="write the comparison here too")
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.runs) < 2:
            raise ConfigError("a comparison needs at least two run folders.")
        if not 0.5 <= arguments.level <= 0.999 or not 2 <= arguments.resamples <= MOST_RESAMPLES:
            raise ConfigError(f"--level must lie between 0.5 and 0.999, and --resamples between 2 and {MOST_RESAMPLES:,}.")
        if arguments.out is not None and not Path(arguments.out).absolute().parent.is_dir():
            raise ConfigError(f"--out {arguments.out} is in no folder that exists.")
        runs = [RunFolder.open(path) for path in arguments.runs]
        inside = [run.path for run in runs if arguments.out and run.path.resolve() in Path(arguments.out).resolve().parents]
        if inside:
            raise ConfigError(f"--out {arguments.out} lies in the run {inside[0]}, which is read only.")
        result = comparison(runs, arguments.resamples, arguments.level)
        if arguments.out is not None:
            write_whole(arguments.out, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    except (ConfigError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
