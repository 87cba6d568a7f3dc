"""The card of a data set: what it holds, how long training on it takes, and the command to begin with."""

import math
import shlex
import time
from dataclasses import replace
from itertools import islice

import numpy as np

from cql.action_weights import existing_actions, masks_in_words
from cql.analysis.statistics import student_quantile
from cql.collect import summary
from cql.config import ENVIRONMENT, Config, command_line
from cql.dataset import OfflineDataset
from cql.device import resolve_device, torch_settings
from cql.members import slices, updates_of
from cql.sampling import Transitions
from cql.scales import FULL_BATCH, Scales, column_scales
from cql.text import aligned, counted, interval
from cql.training import Slice

LEVEL = 0.95  # of the interval of the logged return
FEWEST = 6  # episodes for an interval: below, the quantile is not known well
SHOWN = 50  # lines of a table
TIMED, TIMED_ROWS = 25, 100_000  # updates that are timed, after as many others, and the transitions it is done on


def card(dataset: OfflineDataset, config: Config, given: np.ndarray) -> str:
    """The card, in lines for the terminal. ``given``: the observations as the file has them."""
    chosen, names = recommended(dataset, config), dataset.action_names or range(dataset.num_actions)
    actions = [(str(name), f"{count:,}", f"{count / len(dataset):.4f}")
               for name, count in zip(names, np.bincount(dataset.actions, minlength=len(names)))]
    lines = [summary(dataset), f"logged return {logged_return(dataset)}",
             *filter(None, [masks_in_words(dataset)]), ""]
    lines += [*_table(("action", "transitions", "share"), actions), ""]
    if not dataset.discrete:
        lines += [*_table(("feature", "least", "mean", "largest", "different values", "remark"),
                          _features(dataset, given), left=(0, 5)), "no value is missing: NaN is refused", ""]
    seconds = training_seconds(dataset, chosen)
    duration = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return "\n".join([*lines, f"recommended to begin with, about {duration} of training (timed here just now):",
                      f"python train.py {shlex.join(command_line(chosen))}", ""])


def logged_return(dataset: OfflineDataset) -> str:
    """The mean return of the episodes with Student's interval, in words; a dash where episodes are broken."""
    if dataset.breaks.size:
        return "–"
    returns = dataset.episode_returns()
    n, mean = len(returns), float(returns.mean())
    if n < FEWEST:
        return f"{mean:.4g} ({counted(n, 'episode')}, too few for an interval)"
    half = student_quantile((1 + LEVEL) / 2, n - 1) * float(returns.std(ddof=1)) / math.sqrt(n)
    return f"{interval([mean, mean - half, mean + half], '.4g')} (mean of {n:,} episodes, {LEVEL:.0%} interval)"


def recommended(dataset: OfflineDataset, config: Config) -> Config:
    """Settings to begin with. The GridWorld's are the config's: the defaults were chosen for it.

    Elsewhere α has to be found. Vectors get a lower learning rate (docs/control.md), the full batch is for few distinct
    transitions, and 20,000 updates have 200 copies to the target network: 1 / (1 − γ) = 100 are needed.
    """
    named = dataset.metadata.get("environment")
    if named is not None and named["id"] == ENVIRONMENT:
        return config
    if not dataset.discrete:
        config = replace(config, lr=3e-4)
    if len(dataset) > FULL_BATCH and len(dataset.compress()) > FULL_BATCH:
        config = replace(config, batch_size=256)
    return replace(config, alpha=(0.1, 0.3, 1.0, 3.0), steps=20_000, bc_steps=20_000)


def training_seconds(dataset: OfflineDataset, config: Config) -> float:
    """About how long the updates of a run take on this machine, from a few of them on at most ``TIMED_ROWS`` rows."""
    if not config.full_batch:
        dataset = dataset.of_episodes(np.unique(dataset.episode_ids[:TIMED_ROWS]))
    device, seconds = resolve_device(config.device), 0.0
    scales = Scales() if dataset.discrete else Scales(*column_scales(dataset.observations))
    scaled = [scales.scaled(dataset)]
    transitions = Transitions(scaled, device, config.full_batch, existing_actions(scaled))
    with torch_settings(device) as threads:
        for group in slices(config):
            part = Slice(replace(config, log_every=TIMED), group, [dataset], {group[0].algorithm: transitions}, None)
            begun, ended = (time.perf_counter() for _ in islice(part.updates(threads), 2))
            seconds += (ended - begun) / TIMED * updates_of(config, group)
    return seconds


def _features(dataset: OfflineDataset, given: np.ndarray) -> list[tuple]:
    remark = "{} lost in float32" if dataset.observations.dtype == np.float32 else "kept in float64 for {}"
    rows, names = [], dataset.metadata.get("feature_names", range(given.shape[1]))
    for name, column in zip(names, given.T):
        different, stored = len(np.unique(column)), column.astype(np.float32)
        lost = 0 if (stored == column).all() else different - len(np.unique(stored))
        kind = {1: "constant", 2: "binary"}.get(different, "")
        rows.append((str(name), *(f"{x:.6g}" for x in (column.min(), column.mean(), column.max())), f"{different:,}",
                     remark.format(counted(lost, "value")) if lost else kind))
    return rows


def _table(head: tuple, rows: list, left=(0,)) -> list[str]:
    lines = aligned([head, *rows[:SHOWN]], left)
    return lines if len(rows) <= SHOWN else [*lines, f"… and {len(rows) - SHOWN:,} more"]
