"""8. Find the bug. One place in these functions was changed; training runs through all the same. Look for it before
you mark the file: the mark names it.

Mark it with: python -m cql exercise FILE
"""

import torch
from torch import Tensor

from cql.algorithm import State
from cql.losses import CQLTerms, Objective, batch_mean, conservative_penalty, q_taken, td_losses
from cql.network import PopulationMLP


def cql_loss(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
             penalty: str = "logsumexp", temperature: float = 1.0, action_weights: Tensor | None = None,
             weights: Tensor | None = None) -> CQLTerms:
    """The terms of the CQL objective, from Q ``[M, B, A]`` and the logged actions and their targets ``[M, B]``."""
    _same_shape(actions, targets)
    td = batch_mean(td_losses(q_taken(q_values, actions) - targets, td_loss), weights)  # [M]
    mean_penalty = batch_mean(conservative_penalty(q_values, actions, penalty, temperature, action_weights), weights)
    _same_shape(td, alpha)
    return CQLTerms(td, mean_penalty, td + alpha * mean_penalty)


@torch.no_grad()
def next_values(network: PopulationMLP, state: State, observations: Tensor, objective: Objective,
                action_weights: Tensor | None = None) -> Tensor:
    """``max_a Q_target(s, a)`` of next observations, ``[M, B]``; with double Q the online network chooses a
    (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", arXiv 1509.06461).

    Args:
        action_weights: ``[M, B, A]``: a given policy, whose mean takes the place of the max; or 1 for the actions of
            the max (supported: the logged ones; by masks: those that exist), 0 for others. A state of none is worth 0.
    """
    target_values = network.q_values(state.target, observations)  # [M, B, A]
    if objective.follows_policy:
        return (action_weights * target_values).sum(-1)
    choosing = network.q_values(state.parameters, observations) if objective.double_q else target_values
    if action_weights is None:
        return q_taken(target_values, choosing.argmax(-1)) if objective.double_q else target_values.amax(-1)
    best = choosing.masked_fill(action_weights == 0, -torch.inf).argmax(-1)
    return torch.where(action_weights.any(-1), q_taken(target_values, best), 0.0)


def _same_shape(first: Tensor, *others: Tensor) -> None:  # silent broadcasting would train, and train wrongly
    assert all(other.shape == first.shape for other in others), [first.shape, *(other.shape for other in others)]
