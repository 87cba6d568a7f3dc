"""The scales that a run is trained in: standardised observations, rewards divided by one number C; and settings that
go by the data where the user left them open.

The network reads ``(observation - mean) / scale`` and learns Q / C. Both are undone at two doors, the log and
``Policy``, so that everything else reads and writes in the units of the data.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cql.config import ENVIRONMENT, LARGEST_SCALE, Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError
from cql.text import counted

LARGEST_RETURN = 10.0  # in size, of the rewards divided by the automatic C: values are as large as the GridWorld's
FULL_BATCH, MINIBATCH = 4096, 256  # batch size auto: full up to so many distinct transitions, else so many of them
SQUARED = ("losses/td", "losses/total")  # in the log, in squared units; what begins with q/ is in units of the rewards


@dataclass(frozen=True, eq=False)
class Scales:
    """What turns observations into what the network reads, and its values into those of the data.

    Attributes:
        mean, scale: ``[n]`` float64, of the columns of an observation; None where they are read as they are.
        reward: C, by which rewards were divided.
    """

    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    reward: float = 1.0

    @classmethod
    def of(cls, config: Config, dataset: OfflineDataset) -> "Scales":
        """The scales of a run on this data set."""
        columns = column_scales(dataset.observations) if config.observation_scale == "standard" else (None, None)
        return cls(*columns, float(config.reward_scale))

    @property
    def used(self) -> bool:
        return self.mean is not None or self.reward != 1

    def inputs(self, observations: np.ndarray) -> np.ndarray:
        """What the network reads: vectors standardised, in float32; state numbers as they are."""
        if observations.ndim == 1 and np.issubdtype(observations.dtype, np.integer):
            return observations
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            if self.mean is None:
                return observations.astype(np.float32, copy=False)
            return ((observations - self.mean) / self.scale).astype(np.float32)

    def scaled(self, dataset: OfflineDataset) -> OfflineDataset:
        """The data set as a trainer reads it; the same one where nothing changes."""
        if not self.used and dataset.observations.dtype != np.float64:
            return dataset
        return replace(dataset, observations=self.inputs(dataset.observations), behavior_probabilities=None,
                       next_observations=self.inputs(dataset.next_observations),
                       rewards=(dataset.rewards.astype(np.float64) / self.reward).astype(np.float32))

    def in_data_units(self, values: dict[str, list[float]]) -> dict[str, list[float]]:
        """Measurements of the log, ``name -> [M]``, times C, or C squared; what has no unit (nats) as it is."""
        factors = {name: self.reward**2 if name in SQUARED else self.reward if name.startswith("q/") else 1.0
                   for name in values}
        return {name: [factors[name] * value for value in column] for name, column in values.items()}


def column_scales(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column over all D observations, ``[D, n] -> [n], [n]`` float64.

    A column of nothing but 0 and 1 is left alone (0 and 1); a constant one is only centred, so that it reads 0.
    """
    columns = np.asarray(observations, np.float64)
    mean, scale = columns.mean(0), columns.std(0)
    constant = columns.min(0) == columns.max(0)
    mean[constant] = columns[0, constant]  # exactly: a mean rounds
    binary = ((columns == 0) | (columns == 1)).all(0) & ~constant
    mean[binary] = 0.0
    scale[constant | binary | (scale == 0)] = 1.0
    return mean, scale


def automatic_reward_scale(dataset: OfflineDataset, gamma: float) -> float:
    """C by the data: the largest discounted return of an episode, in size, over ``LARGEST_RETURN``, to three digits.

    1 where all returns are 0.
    """
    scale = largest_return(dataset, gamma) / LARGEST_RETURN
    return min(max(float(f"{scale:.3g}"), 1 / LARGEST_SCALE), LARGEST_SCALE) if scale else 1.0


def largest_return(dataset: OfflineDataset, gamma: float) -> float:
    """The largest discounted return of an episode, in size; episodes end at their breaks."""
    return float(np.abs(discounted_returns(dataset.split_at_breaks(), gamma)).max())


def discounted_returns(dataset: OfflineDataset, gamma: float) -> np.ndarray:
    """Discounted return of every episode, ``[E]``."""
    starts = dataset.episode_starts
    lengths = np.diff(starts, append=len(dataset))
    step = np.arange(len(dataset)) - starts.repeat(lengths)
    return np.add.reduceat(dataset.rewards.astype(np.float64) * gamma ** step.astype(np.float64), starts)


def resolved(config: Config, dataset: OfflineDataset, given: dict) -> Config:
    """The config with the settings that go by the data, and in ``chosen`` a sentence on each that says why.

    They are those left open on vectors that are not the GridWorld's, and those asked for as ``auto``.

    Args:
        given: the settings that the user named: they are kept.

    Raises ConfigError if state numbers are to be standardised, and DatasetError if masks differ between vectors that
    are one to the network.
    """
    if dataset.discrete and config.observation_scale == "standard":
        raise ConfigError("--observation-scale standard is for vectors, and the observations are state numbers.")
    environment = dataset.metadata.get("environment")
    grid = isinstance(environment, dict) and environment.get("id") == ENVIRONMENT
    open_settings = {name for name in ("reward_scale", "batch_size") if getattr(config, name) == "auto"}
    if not (dataset.discrete or grid):
        open_settings |= {"observation_scale", "reward_scale", "batch_size"} - given.keys()
    values: dict[str, Any] = {}
    chosen = []
    if "observation_scale" in open_settings:
        values["observation_scale"] = "standard"
        chosen.append("--observation-scale standard: observations are vectors of their own units; every column but "
                      "binary ones has its mean taken off and is divided by its standard deviation.")
    if "reward_scale" in open_settings:
        values["reward_scale"] = scale = 1.0 if grid else automatic_reward_scale(dataset, config.gamma)
        largest = largest_return(dataset, config.gamma)
        chosen.append(f"--reward-scale {scale:g}: " + (
            "rewards of the GridWorld stay as they are." if grid else
            f"the largest discounted return of an episode is then {largest / scale:.2g} in size."))
    if "batch_size" in open_settings:
        rows = len(dataset.compress())
        values["batch_size"] = "full" if rows <= FULL_BATCH else MINIBATCH
        chosen.append(f"--batch-size {values['batch_size']}: the data have {rows:,} distinct transitions, "
                      f"{'at most' if rows <= FULL_BATCH else 'more than'} {FULL_BATCH:,}.")
    copies, horizon = -(-config.steps // config.target_interval), 1 / max(1 - config.gamma, 1e-9)
    if open_settings and 0 < copies < round(horizon, 6):
        chosen.append(f"Few copies: the target network is copied {counted(copies, 'time')}, and a value looks 1 / (1 - "
                      f"gamma) = {horizon:,.0f} steps ahead: take more --steps or a smaller --target-interval.")
    config = replace(config, **values, chosen=tuple(chosen))
    if dataset.masked:
        Scales.of(config, dataset).scaled(dataset)  # refuses masks that differ between vectors equal to the network
    return config
