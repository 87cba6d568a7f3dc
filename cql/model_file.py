"""The true model of a problem without an environment, from one ``.npz``; no pickle.

Axes: S state, A action, K outcome of one (state, action). The arrays of a file:

    P [S, A, S], R [S, A] or [S, A, S]                        transition probabilities and rewards; or instead
    probability, next_state, reward, terminated [S, A, K]     outcomes, as ``cql.exact.TabularMDP`` has them
    start [S], terminal [S] bool                              how episodes begin; the states that end them
    hazard, goal [S] bool, admissible [S, A] bool             optional
    metadata                                                  optional JSON: {"horizon": N}, most steps of an episode
"""

from dataclasses import dataclass, replace
from functools import cached_property

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from cql.dataset import LARGEST_REWARD, OfflineDataset, read_metadata, read_npz, refuse_other_arrays
from cql.errors import ConfigError, DatasetError
from cql.exact import TabularMDP, start_distribution

NAME = "model.npz"  # of a run's copy, and of the environment that draws episodes from it
OUTCOMES = ("probability", "next_state", "reward", "terminated")
OPTIONAL = ("hazard", "goal", "admissible")
MOST_EPISODE_STEPS = 1_000_000


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model as a file gives it.

    Attributes:
        admissible: ``[S, A]`` bool, the actions that exist in each state; None: all. ``mdp`` has for the others the
            outcomes of the first one that exists.
        horizon: steps after which an episode is truncated.
    """

    mdp: TabularMDP
    admissible: np.ndarray | None
    horizon: int

    @classmethod
    def load(cls, path, max_episode_steps: int | None = None) -> "KnownModel":
        """The model in a file; ``max_episode_steps`` takes the place of the horizon in its metadata.
        Raises ConfigError if the file is missing, damaged, or no model; or nothing says how long an episode may be."""
        arrays = read_npz(path, "model file", ConfigError)
        form = OUTCOMES if "probability" in arrays else ("P", "R")
        refuse_other_arrays(path, arrays, (*form, "start", "terminal"), (*form, "start", "terminal", *OPTIONAL,
                            "metadata"), "model file", ConfigError)
        for name, array in arrays.items():
            if name != "metadata" and array.dtype.kind not in "biuf":
                raise ConfigError(f"{path}: {name} must be numbers.")
        horizon = max_episode_steps or read_metadata(path, arrays, ConfigError).get("horizon")
        if horizon is None:
            raise ConfigError(f"{path} does not say after how many steps an episode is cut: give --max-episode-steps.")
        if type(horizon) is not int or not 1 <= horizon <= MOST_EPISODE_STEPS:
            raise ConfigError(f"the horizon of a model must be an integer from 1 to {MOST_EPISODE_STEPS:,}, not "
                              f"{horizon!r}.")
        try:
            mdp = TabularMDP.from_outcomes(**dict(zip(OUTCOMES, _outcomes(arrays))), start=arrays["start"],
                                           terminal=arrays["terminal"], **{name: arrays.get(name) for name in OPTIONAL})
        except (ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"{path} is no model: {error}") from None
        if np.abs(mdp.reward).max() > LARGEST_REWARD:
            raise ConfigError(f"{path}: rewards must lie between {-LARGEST_REWARD:g} and {LARGEST_REWARD:g}.")
        admissible = arrays.get("admissible")
        if admissible is not None:
            admissible = admissible | mdp.terminal[:, None]
        return cls(mdp, None if admissible is None or admissible.all() else admissible, horizon)

    @property
    def spec(self) -> dict:
        """What evaluations and audits record in the place of an environment's."""
        return {"id": NAME, "arguments": {}, "max_episode_steps": self.horizon}

    @cached_property
    def environment(self) -> gymnasium.Env:
        """An environment that draws episodes from the model."""
        return gymnasium.wrappers.TimeLimit(ModelEnvironment(self), self.horizon)

    def known_for(self, dataset: OfflineDataset) -> OfflineDataset:
        """The data set with this model. Raises DatasetError if it cannot be of it."""
        named = dataset.metadata.get("environment")
        if named is not None:
            raise DatasetError("the data name an environment: a model file takes the place of one and goes with data "
                               "that name none.")
        if not dataset.discrete:
            raise DatasetError("a model file knows states by their numbers: the data have vectors.")
        sizes = {"num_states": self.mdp.num_states, "num_actions": self.mdp.num_actions}
        for name, size in sizes.items():
            if dataset.metadata[name] > size:
                raise DatasetError(f"the data have {dataset.metadata[name]} {name.removeprefix('num_')}, the model "
                                   f"file {size}.")
        return replace(dataset, metadata={**dataset.metadata, **sizes}, model=self)


class ModelEnvironment(gymnasium.Env):
    """Episodes drawn from a model: rollouts of the very probabilities that the exact values are computed from."""

    def __init__(self, model: KnownModel):
        self.mdp, self.state = model.mdp, 0
        self.observation_space = gymnasium.spaces.Discrete(self.mdp.num_states)
        self.action_space = gymnasium.spaces.Discrete(self.mdp.num_actions)
        self.spec = EnvSpec(NAME, max_episode_steps=model.horizon)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.choice(self.mdp.num_states, p=start_distribution(self.mdp)))
        return self.state, {}

    def step(self, action):
        pair = self.state, int(action)
        outcome = pair + (self.np_random.choice(self.mdp.probability.shape[-1], p=self.mdp.probability[pair]),)
        self.state = int(self.mdp.next_state[outcome])
        return self.state, float(self.mdp.reward[outcome]), bool(self.mdp.terminated[outcome]), False, {}


def _outcomes(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """probability, next_state, reward, terminated, each ``[S, A, K]``; K is S for transition probabilities."""
    if "probability" in arrays:
        return [arrays[name] for name in OUTCOMES]
    probability, reward = arrays["P"], arrays["R"]
    if probability.ndim != 3 or probability.shape[0] != probability.shape[2]:
        raise ValueError(f"P must be [S, A, S], got {list(probability.shape)}.")
    if reward.shape not in (probability.shape, probability.shape[:2]):
        raise ValueError(f"R must be [S, A] or [S, A, S] for the P of {list(probability.shape)}, got "
                         f"{list(reward.shape)}.")
    next_state = np.broadcast_to(np.arange(len(probability)), probability.shape)
    reward = np.broadcast_to(reward if reward.ndim == 3 else reward[..., None], probability.shape)
    return [probability, next_state, reward, np.zeros(probability.shape, np.bool_)]
