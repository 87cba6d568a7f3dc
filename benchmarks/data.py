"""Data sets to measure on: about 10^4 transitions of the default environment, and more with no transition that is new."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from cql.collect import datasets_for
from cql.config import Config
from cql.dataset import OfflineDataset

BASE_EPISODES = 270  # about 10^4 transitions of the default environment


def enlarged(dataset: OfflineDataset, transitions: int, seed: int = 0) -> OfflineDataset:
    """At least so many transitions: every episode once, then episodes drawn with replacement."""
    starts = dataset.episode_starts
    lengths = np.diff(starts, append=len(dataset))
    missing = max(transitions - len(dataset), 0)
    drawn = np.random.default_rng(seed).integers(len(starts), size=missing // int(lengths.min()) + 1)
    drawn = drawn[: np.searchsorted(np.cumsum(lengths[drawn]), missing) + 1 if missing else 0]
    episodes = np.concatenate([np.arange(len(starts)), drawn])
    lengths = lengths[episodes]
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1]) + np.repeat(starts[episodes] - (ends - lengths), lengths)
    arrays = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    arrays = {name: array[index] for name, array in arrays.items() if isinstance(array, np.ndarray)}
    return replace(dataset, **arrays | {"episode_ids": np.repeat(np.arange(len(episodes), dtype=np.int32), lengths)})


class DataFiles:
    """Data sets in a folder, each made when first asked for."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def path(self, observation: str, transitions: int) -> str:
        path = self.folder / f"{observation}-{transitions}.npz"
        if not path.exists():
            base = datasets_for(Config(observation=observation, episodes=BASE_EPISODES), {})[0]
            enlarged(base, transitions).save(path)
        return str(path)
