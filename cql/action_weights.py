"""The weights of actions that an objective takes from the data or from a given policy, in every state.

Axes: S state, A action.
"""

from pathlib import Path

import numpy as np

from cql.config import BEHAVIOR, GIVEN_POLICIES, Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError
from cql.policy import Policy
from cql.sampling import ActionWeights


def action_weights(config: Config, datasets: list[OfflineDataset], folder: Path | None = None) -> ActionWeights:
    """The weights of the config's objective; all None for CQL(H) where every action exists in every state.

    Args:
        datasets: for training as the network reads them: masks belong to the rows of its table of observations.
        folder: of the run, with its own copies of the given policies; without it the config's files are read.

    Raises ConfigError if the objective needs state numbers and the data have vectors, or a given policy does not fit
    them.
    """
    objective, exist = config.objective, existing_actions(datasets)
    if not (objective.follows_policy or objective.supported or objective.penalty == "rho") or config.steps == 0:
        return exist
    if not datasets[0].discrete:
        raise ConfigError(f"--penalty {objective.penalty}{' --supported' * objective.supported} counts the actions of "
                          "every state: it needs observations that are state numbers.")
    beta = np.stack([behavior(dataset) for dataset in datasets])
    if objective.follows_policy:
        target, mu = (None if getattr(config, name) is None else
                      np.stack([given_policy(config, name, table, folder) for table in beta])
                      for name in GIVEN_POLICIES)
        return ActionWeights(target if mu is None else mu, target, exist.allowed)
    if not objective.supported:
        return ActionWeights(beta, exist.target, exist.allowed)
    logged = (beta > 0).astype(np.float32)
    others = np.float32(1) if exist.allowed is None else exist.allowed
    return ActionWeights(beta if objective.penalty == "rho" else logged, logged,
                         np.where(logged.any(-1, keepdims=True), logged, others))


def existing_actions(datasets: list[OfflineDataset]) -> ActionWeights:
    """The actions that exist in each state, or at each distinct vector, for penalty, target and policy; None where all
    do (``admissible``)."""
    if datasets[0].admissible is None:
        return ActionWeights()
    return ActionWeights(*[np.stack([dataset.admissible for dataset in datasets]).astype(np.float32)] * 3)


def masks_in_words(dataset: OfflineDataset) -> str | None:
    """One sentence on the actions that exist, for the summary of a run; None where all do."""
    if (exist := dataset.admissible) is None:
        return None
    where = "in a state" if dataset.discrete else "at a distinct observation"
    return (f"masks: {exist.sum(1).mean():.1f} of {exist.shape[1]} actions exist {where}, on average; "
            "cql/algorithm.py trains all members, since the fast trainer does not know masks.")


def behavior(dataset: OfflineDataset) -> np.ndarray:
    """The relative frequencies of the logged actions, ``[S, A]`` float32; rows of states without data are 0."""
    counts = np.zeros((dataset.num_states, dataset.num_actions))
    np.add.at(counts, (dataset.observations, dataset.actions), 1)
    return (counts / np.maximum(counts.sum(-1, keepdims=True), 1)).astype(np.float32)


def given_policy(config: Config, name: str, beta: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """A given policy on the logged actions, ``[S, A]`` float32; rows of states without data are 0.

    That of a file takes in every state the logged action of its largest output.

    Args:
        name: one of ``cql.config.GIVEN_POLICIES``. beta: ``behavior`` of the data set.

    Raises ConfigError if it is of other states or actions.
    """
    path = getattr(config, name)
    if path == BEHAVIOR:
        return beta
    policy = Policy.load(path if folder is None else folder / f"{name}.pt")
    if not policy.network.discrete or (policy.network.inputs, policy.network.outputs) != beta.shape:
        raise ConfigError(f"--{name.replace('_', '-')} {path} is of other states or actions than the data.")
    outputs = np.where(beta > 0, policy.outputs(np.arange(len(beta))), -np.inf)
    chosen = np.eye(beta.shape[1], dtype=np.float32)[outputs.argmax(-1)]
    return np.where((beta > 0).any(-1, keepdims=True), chosen, 0.0).astype(np.float32)
