"""Algorithm 1: Conservative Q-Learning and Behaviour Cloning, in the order in which things happen.

This page is what the algorithm *is*, in plain PyTorch: ``python train.py --trainer plain`` runs it. ``cql.engine``
makes the same updates faster; ``tests/test_engine.py`` compares the two. Axes: ``M`` members (agents that are
trained at once and never touch each other), ``B`` transitions of a batch, ``A`` actions.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cql.losses import LARGEST_ALPHA, Objective, bc_loss, cql_loss, q_taken, td_target
from cql.network import PopulationMLP
from cql.sampling import Batch, Transitions

DUAL_RATE = 0.05  # of log alpha: alpha takes at least 14 updates to double


class State(NamedTuple):
    """Everything that an update changes."""

    parameters: list[Tensor]  # of Q, or of BC's logits; each [M, ...], in the order of network.shapes
    target: list[Tensor]  # the parameters of Q_target
    first_moment: list[Tensor]  # Adam's
    second_moment: list[Tensor]  # Adam's
    alpha: Tensor  # [M], the weight of the penalty, fixed or learned; 0 for BC


class Settings(NamedTuple):
    """How the objective is minimised."""

    batch_size: int | str  # transitions of an update, or "full": the whole data set
    learning_rate: float  # Adam's, at the first update
    steps: int  # updates in all: the learning rate falls to 0 over them
    target_interval: int  # updates between copies to the target network
    learn_alpha: bool = False  # whether alpha follows the penalty by dual ascent
    penalty_threshold: float = 0.0  # the penalty at which a learned alpha stands still
    yield_every: tuple[int, ...] = ()  # for the engine: it yields the state at the multiples of these
    threads: int = 1  # for the engine: CPU cores that it may use


def initial_state(network: PopulationMLP, seeds: list[int], alpha: list[float], device: torch.device) -> State:
    """The state before the first update, of one member per seed and alpha; equal seeds start from equal weights."""
    parameters = [tensor.to(device) for tensor in network.initial(seeds)]
    target = [tensor.clone() for tensor in parameters]
    first_moment, second_moment = ([torch.zeros_like(tensor) for tensor in parameters] for _ in range(2))
    return State(parameters, target, first_moment, second_moment, torch.tensor(alpha, device=device))


def updates(network: PopulationMLP, transitions: Transitions, state: State, data_index: Tensor, seeds: Tensor,
            algorithm: str, objective: Objective, settings: Settings, start: int,
            stop: int) -> Iterator[tuple[int, State, tuple[Tensor, ...]]]:
    """Generator of updates ``start … stop − 1`` of M members, which changes ``state`` in place.

    Args:
        data_index: ``[M]``, the number of each member's data set. seeds: ``[M]``, each member's training seed.
        algorithm: ``cql`` or ``bc``, that of all members.

    Yields:
        After every update: the number of updates done, the state, and the update's loss terms, each ``[M]`` (td,
        penalty and total of CQL, the cross-entropy of BC).
    """
    parameters = [tensor.detach().requires_grad_() for tensor in state.parameters]  # the same memory, for autograd
    adam = torch.optim.Adam(parameters)
    for tensor, first, second in zip(parameters, state.first_moment, state.second_moment):
        adam.state[tensor] = {"step": torch.tensor(float(start)), "exp_avg": first, "exp_avg_sq": second}
    if settings.batch_size == "full":
        batch = transitions.full_batch(data_index)

    for step in range(start, stop):
        if step % settings.target_interval == 0 and algorithm == "cql":
            for target, tensor in zip(state.target, state.parameters):
                target.copy_(tensor)
        if settings.batch_size != "full":
            batch = transitions.minibatch(data_index, seeds, step, settings.batch_size)

        outputs = network.q_values(parameters, batch.observations)  # [M, B, A]: Q, or the logits of BC
        if algorithm == "cql":
            bootstrap = next_values(network, state, batch.next_observations, objective, batch.next_action_weights)
            targets = td_target(batch.rewards, batch.terminations, bootstrap, objective.gamma)  # [M, B]
            action_weights = penalty_weights(network, state, batch, objective)
            terms = cql_loss(outputs, batch.actions, targets, state.alpha, objective.td_loss, objective.penalty,
                             objective.temperature, action_weights, batch.weights)
        else:
            if batch.action_weights is not None:  # masks: 0 for an action that does not exist
                outputs = outputs.masked_fill(batch.action_weights == 0, -torch.inf)
            terms = (bc_loss(outputs, batch.actions, batch.weights),)
        loss = terms[-1].sum()  # the total of every member; summed over members, so the gradient of each is its own
        adam.zero_grad()
        loss.backward()
        decay = cosine_decay(step, settings.steps)
        adam.param_groups[0]["lr"] = settings.learning_rate * decay
        adam.step()
        if settings.learn_alpha and algorithm == "cql":
            dual_ascent(state.alpha, terms.penalty.detach(), settings.penalty_threshold, DUAL_RATE * decay)
        yield step + 1, state, tuple(term.detach() for term in terms)


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


@torch.no_grad()
def penalty_weights(network: PopulationMLP, state: State, batch: Batch, objective: Objective) -> Tensor | None:
    """``action_weights`` of the penalty, ``[M, B, A]``: as the batch has them, or softmax Q_target held fixed."""
    if objective.penalty != "previous":
        return batch.action_weights
    previous = network.q_values(state.target, batch.observations).softmax(-1)
    return previous if batch.action_weights is None else previous * batch.action_weights


def cosine_decay(step: int, steps: int) -> float:
    """The factor of the learning rate at an update, from 1 down to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def dual_ascent(alpha: Tensor, penalty: Tensor, threshold: float, rate: float | Tensor) -> None:
    """Multiplies alpha ``[M]``, in place, by exp(rate (penalty - threshold)), the difference being clipped to ±1.

    The paper's Lagrange form: min over Q, max over alpha >= 0 of td + alpha (penalty - threshold).
    """
    assert alpha.shape == penalty.shape, (alpha.shape, penalty.shape)
    alpha.mul_(torch.exp(rate * (penalty - threshold).clamp(-1, 1))).clamp_(1 / LARGEST_ALPHA, LARGEST_ALPHA)
