"""One gradient update of the whole population. Everything it needs is an argument, everything it changes is in ``State``.

The gradient is taken by hand: the closed form of ``cql.losses`` at the output, ``PopulationMLP.backward`` below it.
``tests/test_learner.py`` holds it against autograd through ``cql_loss``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cql import losses
from cql.config import LARGEST_ALPHA
from cql.networks import Layer, PopulationMLP
from cql.products import Matrices
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
    outputs: list[Matrices]  # of each hidden layer [M, R, width]
    room: list[Matrices]  # for gradients with respect to them


class Workspaces:
    """For updates of this very state whose network input has up to ``rows`` observations per member; all in the same memory.

    Args:
        bfloat16: whether products between hidden layers multiply in it. The first layer reads a few inputs and the last makes a few
            Q-values: nothing would be won there, and Q would be rounded.
    """

    def __init__(self, network: PopulationMLP, state: State, rows: int, bfloat16: bool = False):
        self.network, self.members = network, state.parameters.numel() // network.parameters_per_member
        self.gradient = torch.zeros_like(state.parameters)
        between = [bfloat16 and 0 < n < len(network.hidden) for n in range(len(network.sizes))]
        self.layers, self.gradient_layers = (
            [Layer(*(None if t is None else Matrices(t, inner) for t in layer)) for layer, inner in zip(network.layers(flat), between)]
            for flat in (state.parameters, self.gradient))
        self.memory = [state.parameters.new_empty(2, self.members * rows * width) for width in network.hidden]
        self.made: dict[int, Workspace] = {}

    def of(self, rows: int) -> Workspace:
        if rows not in self.made:
            outputs, room = ([Matrices(memory[which, : self.members * rows * width].view(self.members, rows, width))
                              for memory, width in zip(self.memory, self.network.hidden)] for which in range(2))
            self.made[rows] = Workspace(self.layers, self.gradient, self.gradient_layers, outputs, room)
        return self.made[rows]


def initial_state(network: PopulationMLP, seeds: list[int], alpha: list[float], device: torch.device) -> State:
    """Members with equal seeds start from equal weights; the target starts as a copy."""
    parameters = network.initial(seeds).to(device)
    return State(parameters, parameters.clone(), torch.zeros_like(parameters), torch.zeros_like(parameters),
                 torch.tensor(alpha, device=device), torch.zeros((), device=device))


def cql_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, targets: Tensor, td_loss: str,
               learning_rate: Tensor, work: Workspace, q_values: Tensor) -> None:
    """One step down the gradient of ``losses.cql_loss``, summed over members, at the state's alpha.

    Args:
        inputs: what the network reads, ``[M, R]`` or ``[M, R, n]``: the observation of every transition, or every observation
            of the batch once.
        targets: of the batch's entries, shaped as ``losses.cql_gradient`` takes them.
        learning_rate: ``[]``.
        q_values: Q before the step is written there, ``[M, R, A]`` action by action (``PopulationMLP.forward``).
    """
    outputs = network.forward(work.layers, inputs, [*work.outputs, Matrices(q_values)])
    gradient = losses.cql_gradient(at_rows(q_values, batch.rows), batch.actions, targets, state.alpha, td_loss, batch.weights)
    _step(network, state, inputs, outputs, _summed_at_rows(gradient, batch.rows, q_values), learning_rate, work)


def dual_ascent(state: State, q_values: Tensor, batch: Batch, threshold: float, rate: Tensor) -> None:
    """One step of alpha up ``alpha (gap - threshold)``, in its logarithm: it stays positive, and steps are relative to it.

    Kumar et al. 2020, arXiv 2006.04779, its Lagrange form: min over Q, max over alpha >= 0 of TD + alpha (gap - threshold).
    An excess beyond 1 counts as 1: a gap can be of the size of the rewards while Q is still on its way.

    Args:
        q_values: before the update ``[M, R, A]``, as ``cql_update`` leaves it.
        rate: ``[]``, ``DUAL_RATE`` at the start; falling with Adam's, lest alpha wander once Q stands still.
    """
    gap = losses.bc_loss(at_rows(q_values, batch.rows), batch.actions, batch.weights)  # [M]
    state.alpha.mul_(torch.exp(rate * (gap - threshold).clamp(-1, 1))).clamp_(1 / LARGEST_ALPHA, LARGEST_ALPHA)


def bc_update(network: PopulationMLP, state: State, inputs: Tensor, batch: Batch, learning_rate: Tensor, work: Workspace,
              logits: Tensor) -> None:
    """One step down the gradient of ``losses.bc_loss``; arguments as for ``cql_update``."""
    outputs = network.forward(work.layers, inputs, [*work.outputs, Matrices(logits)])
    gradient = losses.bc_gradient(logits, batch.actions, batch.weights)
    _step(network, state, inputs, outputs, gradient, learning_rate, work)


def at_rows(q_values: Tensor, rows: Tensor | None) -> Tensor:
    """Q of each transition's observation, ``[…, R, A], […, B] -> […, B, A]``; without rows every one stands at its own."""
    return q_values if rows is None else q_values.gather(-2, rows[..., None].expand(*rows.shape, q_values.shape[-1]))


def _summed_at_rows(gradient: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """What ``at_rows`` does to a gradient on its way back: ``[M, B, A] -> [M, R, A]``."""
    return gradient if rows is None else torch.zeros_like(like).scatter_add_(1, rows[..., None].expand(gradient.shape), gradient)


def _step(network, state, inputs, outputs, gradient, learning_rate, work) -> None:
    network.backward(work.layers, inputs, outputs, gradient, work.gradient_layers, work.room)
    state.updates.add_(1)
    torch._fused_adam_([state.parameters], [work.gradient], [state.first_moment], [state.second_moment], [], [state.updates],
                       lr=learning_rate, **ADAM)


def greedy_values(network: PopulationMLP, parameters: Tensor, inputs: Tensor) -> Tensor:
    """``max_a Q(s, a)`` of every input: ``[M, rows, …] -> [M, rows]``; in chunks, for there may be many."""
    layers = network.layers(parameters)
    chunk = max(1, CHUNK // len(inputs))
    return torch.cat([network.q_values(layers, part).amax(-1) for part in inputs.split(chunk, dim=1)], 1)


def double_q_values(network: PopulationMLP, state: State, inputs: Tensor) -> Tensor:
    """``Q_target(s, argmax_a Q(s, a))``: van Hasselt et al. 2016, arXiv 1509.06461. ``[M, rows, …] -> [M, rows]``."""
    chosen = network.q_values(network.layers(state.parameters), inputs).argmax(-1)  # [M, rows]
    return losses.taken(network.q_values(network.layers(state.target), inputs), chosen)
