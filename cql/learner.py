"""One gradient update of the whole population. Everything it needs is an argument, everything it changes is in ``State``.

The gradient is taken by hand: the closed form of ``cql.losses`` at the output, ``PopulationMLP.backward`` below it.
``tests/test_learner.py`` holds it against autograd through ``cql_loss``.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from cql import losses
from cql.networks import Layer, PopulationMLP
from cql.sampling import Batch

ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)

CHUNK = 2**16  # observations evaluated at once, over all members


class State(NamedTuple):
    """All that training changes; flat buffers over members and layers (``PopulationMLP.layers`` gives the views)."""

    parameters: Tensor  # [M * P]
    target: Tensor  # [M * P], the parameters of Q_target
    first_moment: Tensor  # [M * P], Adam's
    second_moment: Tensor  # [M * P], Adam's
    updates: Tensor  # [] float32, Adam's count


class Workspace(NamedTuple):
    """Views of a state, and memory that an update writes into and nothing reads afterwards."""

    layers: list[Layer]  # of the parameters
    gradient: Tensor  # [M * P]
    gradient_layers: list[Layer]
    outputs: list[Tensor]  # per layer [M, R, width]


def initial_state(network: PopulationMLP, seeds: list[int], device: torch.device) -> State:
    """Members with equal seeds start from equal weights; the target starts as a copy."""
    parameters = network.initial(seeds).to(device)
    return State(parameters, parameters.clone(), torch.zeros_like(parameters), torch.zeros_like(parameters),
                 torch.zeros((), device=device))


def workspace(network: PopulationMLP, state: State, rows: int) -> Workspace:
    """For updates of this very state whose network input has ``rows`` observations per member."""
    members = state.parameters.numel() // network.parameters_per_member
    gradient = torch.zeros_like(state.parameters)
    return Workspace(network.layers(state.parameters), gradient, network.layers(gradient),
                     network.buffers(members, rows, state.parameters))


def cql_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, targets: Tensor, alpha: Tensor,
               td_loss: str, learning_rate: Tensor, work: Workspace) -> Tensor:
    """One step down the gradient of ``losses.cql_loss``, summed over members.

    Args:
        inputs: what the network reads, ``[M, R]`` or ``[M, R, n]``: the observation of every transition, or with
            ``batch.rows`` every observation once.
        targets: ``losses.td_target`` of the batch ``[M, B]``.
        alpha: ``[M]``.
        learning_rate: ``[]``.

    Returns:
        Q before the step ``[M, R, A]``, in ``work``: the next update overwrites it.
    """
    outputs = network.forward(work.layers, inputs, work.outputs)
    gradient = losses.cql_gradient(outputs[-1], batch.actions, targets, alpha, td_loss, batch.weights, batch.rows)
    _step(network, state, inputs, outputs, gradient, learning_rate, work)
    return outputs[-1]


def bc_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, learning_rate: Tensor,
              work: Workspace) -> Tensor:
    """One step down the gradient of ``losses.bc_loss``; arguments and result as for ``cql_update``."""
    outputs = network.forward(work.layers, inputs, work.outputs)
    gradient = losses.bc_gradient(outputs[-1], batch.actions, batch.weights, batch.rows)
    _step(network, state, inputs, outputs, gradient, learning_rate, work)
    return outputs[-1]


def _step(network, state, inputs, outputs, gradient, learning_rate, work) -> None:
    network.backward(work.layers, inputs, outputs, gradient, work.gradient_layers)
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
