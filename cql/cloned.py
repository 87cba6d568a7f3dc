"""The episodes that Behaviour Cloning clones: all of them, those that met no hazard, or the best of these by return.

CQL learns from all episodes in any case, and the shares of OOD actions and of logged actions that are not the greedy
ones are counted over all of them for BC too.
"""

import math

import numpy as np

from cql.action_weights import existing_actions
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, DatasetError
from cql.sampling import Transitions
from cql.scales import Scales
from cql.world import World


def cloned_episodes(config: Config, dataset: OfflineDataset, world: World) -> OfflineDataset:
    """The part of a data set that BC is trained on.

    ``--bc-safe`` leaves out the episodes that met a hazard. Of the E others ``--bc-top`` F keeps the ceil(F E) with the
    highest undiscounted return; of equal returns, the earlier episode.
    Raises DatasetError if an episode is broken, there is only one, hazards are not known, or every episode met one, and
    RunError if the environment does not say where it starts.
    """
    if config.clones_all:
        return dataset
    if broken := dataset.breaks_in_words():
        raise DatasetError(f"{config.bc_name} needs whole episodes: {broken}")
    ids, returns = np.unique(dataset.episode_ids), dataset.episode_returns()  # [E]
    if len(ids) == 1:
        raise DatasetError(f"{config.bc_name} needs several episodes: the data set is a single one.")
    best_first = np.argsort(-returns, kind="stable")
    if config.bc_safe:
        best_first = best_first[_safe(dataset, world)[best_first]]
        if not best_first.size:
            raise DatasetError("--bc-safe leaves nothing to clone: every episode of the data met a hazard.")
    number = math.ceil(round((config.bc_top or 1.0) * len(best_first), 6))  # 0.07 * 100 is a little above 7
    return dataset.of_episodes(ids[best_first[: max(number, 1)]])


def _safe(dataset: OfflineDataset, world: World) -> np.ndarray:
    """Whether each episode met no hazard, ``[E]`` bool, in the order of their ids."""
    if world.mdp is None or world.mdp.hazard is None:
        raise DatasetError("--bc-safe needs data that name an environment whose model has hazards.")
    steps, hazard = world.transitions(dataset), world.mdp.hazard
    _, episode = np.unique(dataset.episode_ids, return_inverse=True)
    return np.bincount(episode, weights=hazard[steps.observations] | hazard[steps.next_observations]) == 0


def cloned_transitions(config: Config, datasets: list[OfflineDataset], world: World, every: Transitions,
                       scales: Scales) -> Transitions:
    """What BC is trained on, of every data set, with the actions that exist: ``every``, the transitions that CQL has,
    where that is the same."""
    if config.clones_all and every.penalty_weights is None:
        return every
    cloned = [scales.scaled(cloned_episodes(config, dataset, world)) for dataset in datasets]
    exist = existing_actions(datasets if datasets[0].discrete else cloned)  # of vectors by the rows of its own table
    return Transitions(cloned, every.actions.device, config.full_batch, exist)


def cloned_in_words(config: Config, datasets: list[OfflineDataset], world: World) -> str | None:
    """One sentence on the episodes that BC clones of the first data set; None where it clones all.
    Raises DatasetError or RunError as ``cloned_episodes`` does, and ConfigError if a minibatch would hold more
    transitions than BC clones."""
    if config.clones_all:
        return None
    first, *further = parts = [cloned_episodes(config, dataset, world) for dataset in datasets]
    if not config.full_batch and config.batch_size > (fewest := min(map(len, parts))):
        raise ConfigError(f"--batch-size {config.batch_size} is larger than the {fewest} transitions that BC clones.")
    returns = first.episode_returns()
    return (f"{config.bc_name}: {len(returns):,} of {len(datasets[0].episode_starts):,} episodes, {len(first):,} of "
            f"{len(datasets[0]):,} transitions, returns from {returns.min():g} to {returns.max():g}"
            + " (the first data set)" * bool(further))
