"""One gradient update of the whole population. Everything it needs is an argument, everything it changes is in ``State``.

The gradient is taken by hand: the closed form of ``cql.losses`` at the output, ``PopulationMLP.backward`` below it.
``tests/test_learner.py`` holds it against autograd through ``cql_loss``.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from cql import losses
from cql.config import LARGEST_ALPHA
from cql.networks import Layer, PopulationMLP
from cql.sampling import Batch

ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)

DUAL_RATE = 0.05  # of log alpha: alpha doubles in 14 updates at most, well within one target interval

CHUNK = 2**16  # observations evaluated at once, over all members


class State(NamedTuple):
    """All that training changes; of ``BUFFERS``, flat over members and layers, ``PopulationMLP.layers`` gives the views."""

    parameters: Tensor  # [M * P]
    target: Tensor  # [M * P], the parameters of Q_target
    first_moment: Tensor  # [M * P], Adam's
    second_moment: Tensor  # [M * P], Adam's
    alpha: Tensor  # [M], the weight of the penalty, fixed or learned; 0 for BC
    updates: Tensor  # [] float32, Adam's count


BUFFERS = State._fields[:4]


class Workspace(NamedTuple):
    """Views of a state, and memory that an update writes into and nothing reads afterwards."""

    layers: list[Layer]  # of the parameters
    gradient: Tensor  # [M * P]
    gradient_layers: list[Layer]
    outputs: list[Tensor]  # per layer [M, R, width]
    room: list[Tensor]  # for gradients with respect to them


def initial_state(network: PopulationMLP, seeds: list[int], alpha: list[float], device: torch.device) -> State:
    """Members with equal seeds start from equal weights; the target starts as a copy."""
    parameters = network.initial(seeds).to(device)
    return State(parameters, parameters.clone(), torch.zeros_like(parameters), torch.zeros_like(parameters),
                 torch.tensor(alpha, device=device), torch.zeros((), device=device))


def workspace(network: PopulationMLP, state: State, rows: int) -> Workspace:
    """For updates of this very state whose network input has ``rows`` observations per member."""
    members = state.parameters.numel() // network.parameters_per_member
    gradient = torch.zeros_like(state.parameters)
    return Workspace(network.layers(state.parameters), gradient, network.layers(gradient),
                     *(network.buffers(members, rows, state.parameters) for _ in range(2)))


def cql_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, targets: Tensor, td_loss: str,
               learning_rate: Tensor, work: Workspace) -> Tensor:
    """One step down the gradient of ``losses.cql_loss``, summed over members, at the state's alpha.

    Args:
        inputs: what the network reads, ``[M, R]`` or ``[M, R, n]``: the observation of every transition, or of a full batch
            every observation once.
        targets: ``losses.td_target`` of the batch ``[M, B]``, or their means over the outcomes of each pair.
        learning_rate: ``[]``.

    Returns:
        Q before the step ``[M, R, A]``, in ``work``: the next update overwrites it.
    """
    outputs = network.forward(work.layers, inputs, work.outputs)
    gradient = losses.cql_gradient(at_rows(outputs[-1], batch.rows), batch.actions, targets, state.alpha, td_loss, batch.weights)
    _step(network, state, inputs, outputs, _summed_at_rows(gradient, batch.rows, outputs[-1]), learning_rate, work)
    return outputs[-1]


def dual_ascent(state: State, q_values: Tensor, batch: Batch, threshold: float, rate: Tensor) -> None:
    """One step of alpha up ``alpha (gap - threshold)``, in its logarithm: it stays positive, and steps are relative to it.

    Kumar et al. 2020, arXiv 2006.04779, its Lagrange form: min over Q, max over alpha >= 0 of TD + alpha (gap - threshold).
    An excess beyond 1 counts as 1: a gap can be of the size of the rewards while Q is still on its way.

    Args:
        q_values: before the update ``[M, R, A]``, as ``cql_update`` returns it.
        rate: ``[]``, ``DUAL_RATE`` at the start; falling with Adam's, lest alpha wander once Q stands still.
    """
    gap = losses.batch_mean(losses.conservative_gap(at_rows(q_values, batch.rows), batch.actions), batch.weights)  # [M]
    state.alpha.mul_(torch.exp(rate * (gap - threshold).clamp(-1, 1))).clamp_(1 / LARGEST_ALPHA, LARGEST_ALPHA)


def bc_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, learning_rate: Tensor,
              work: Workspace) -> Tensor:
    """One step down the gradient of ``losses.bc_loss``; arguments and result as for ``cql_update``."""
    outputs = network.forward(work.layers, inputs, work.outputs)
    gradient = losses.bc_gradient(outputs[-1], batch.actions, batch.weights)
    _step(network, state, inputs, outputs, gradient, learning_rate, work)
    return outputs[-1]


def at_rows(q_values: Tensor, rows: Tensor | None) -> Tensor:
    """Q of each transition's observation, ``[…, R, A], […, B] -> […, B, A]``; without rows every one stands at its own."""
    return q_values if rows is None else q_values.gather(-2, rows[..., None].expand(*rows.shape, q_values.shape[-1]))


def _summed_at_rows(gradient: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """What ``at_rows`` does to a gradient on its way back: ``[M, B, A] -> [M, R, A]``."""
    return gradient if rows is None else torch.zeros_like(like).scatter_add_(1, rows[..., None].expand(gradient.shape), gradient)


def _step(network, state, inputs, outputs, gradient, learning_rate, work) -> None:
    network.backward(work.layers, inputs, outputs, gradient, work.gradient_layers, work.room)
    adam([state.parameters], [work.gradient], [state.first_moment], [state.second_moment], [], [state.updates],
         lr=learning_rate, fused=True, **ADAM)


def greedy_values(network: PopulationMLP, parameters: Tensor, inputs: Tensor) -> Tensor:
    """``max_a Q(s, a)`` of every input: ``[M, rows, …] -> [M, rows]``; in chunks, for there may be many."""
    layers = network.layers(parameters)
    chunk = max(1, CHUNK // len(inputs))
    return torch.cat([network.forward(layers, part)[-1].amax(-1) for part in inputs.split(chunk, dim=1)], 1)


def double_q_values(network: PopulationMLP, state: State, inputs: Tensor) -> Tensor:
    """``Q_target(s, argmax_a Q(s, a))``: van Hasselt et al. 2016, arXiv 1509.06461. ``[M, rows, …] -> [M, rows]``."""
    chosen = network.forward(network.layers(state.parameters), inputs)[-1].argmax(-1)  # [M, rows]
    return losses.taken(network.forward(network.layers(state.target), inputs)[-1], chosen)
