"""The forward and the backward pass of the network by hand, and Adam's step, in memory that is made once.

Q has the layout ``[M, A, R]``, action by action: products with a few rows are several times faster than with a few
columns, and so is a softmax over an axis that is not the innermost.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from cql.engine.steps import PYTORCH, Layer, Steps
from cql.network import PopulationMLP

MOST_ELEMENTS = 2**31 - 1  # of a member's matrix with the kernels, which count them in 32 bits


class Buffers(NamedTuple):
    """Memory of one number of rows ``R``.

    Attributes:
        hidden: the output of every hidden layer, ``[M, R, width]``.
        deltas: for every layer the loss's gradient with respect to its input, ``[M, R, i]``, None for observations;
            without a layer, that with respect to Q.
        first_deltas: of a network with a table, the first of them behind a row of zeros, ``[1 + M * R, width]``.
    """

    hidden: list[Tensor]
    deltas: list[Tensor | None]
    first_deltas: Tensor | None


@cache
def steps_on(device: torch.device) -> Steps:
    """The steps as a device does them: on CUDA by Triton's kernels, where Triton is there and can compile them."""
    if device.type != "cuda":
        return PYTORCH
    try:
        from cql.engine import kernels
        kernels.try_on(device)
    except Exception:  # no Triton, no C compiler, a device that it does not know: everything works without, only slower
        return PYTORCH
    return kernels.FUSED


class Passes:
    """Forward pass, backward pass and Adam's step for some members' parameters, in place.

    Args:
        parameters, first_moment, second_moment: as in ``cql.algorithm.State``.
        rows: observations of each member that the network reads at once, at most.
        steps: as the device does them.
    """

    def __init__(self, network: PopulationMLP, parameters: list[Tensor], first_moment: list[Tensor],
                 second_moment: list[Tensor], rows: int, steps: Steps):
        widest = max(network.outputs, *network.hidden, 0 if network.discrete else network.inputs)
        self.steps = steps = steps if rows * widest <= MOST_ELEMENTS else PYTORCH
        self.network, self.members = network, len(parameters[0])
        first = int(network.discrete)  # after the table: weight, bias, weight, bias, …
        self.gradients = [torch.zeros_like(tensor) if n < first or not steps.adam_in_weight_step else None
                          for n, tensor in enumerate(parameters)]
        tensors = list(zip(parameters, self.gradients, first_moment, second_moment))
        self.layers = [
            Layer(weight, weight.mT, bias, bias.mT, weight_gradient, bias_gradient, weight_moments, bias_moments)
            for (weight, weight_gradient, *weight_moments), (bias, bias_gradient, *bias_moments)
            in zip(tensors[first::2], tensors[first + 1 :: 2])]
        left = [group for group in tensors if group[1] is not None]  # the table, or with PyTorch's steps everything
        self.adam_tensors = [[group[k] for group in left] for k in range(4)]
        self.widths = network.hidden or ((network.outputs,) if network.discrete else ())  # of deltas
        self.hidden = [parameters[0].new_empty(self.members * rows * width) for width in network.hidden]
        self.deltas = [parameters[0].new_zeros((1 + self.members * rows) * width) for width in self.widths]
        self.buffers: dict[int, Buffers] = {}
        if network.discrete:
            width = parameters[0].shape[2]
            self.table, self.table_gradient = (tensor.view(-1, width) for tensor in (parameters[0], self.gradients[0]))

    def forward(self, inputs: Tensor, q_values: Tensor) -> None:
        """Writes Q (or the logits) of ``network_inputs`` into ``q_values [M, A, R]``."""
        network, hidden = self.network, self._buffers(inputs.shape[1]).hidden
        if network.discrete:
            self.rows = inputs.reshape(-1)
            if not network.hidden:
                q_values.copy_(self.table.index_select(0, self.rows).view(q_values.mT.shape).mT)
                return
            torch.index_select(self.table, 0, self.rows, out=hidden[0].view(-1, self.table.shape[1]))
            self.read = hidden  # by each layer
        else:
            self.read = [inputs, *hidden]
        for layer, below, above in zip(self.layers, self.read, self.read[1:]):
            self.steps.hidden_layer(layer, below, above)
        self.steps.last_layer(self.layers[-1], self.read[-1], q_values)

    def step(self, gradient: Tensor, gradient_lines: Tensor | None, learning_rate: Tensor, number: Tensor) -> None:
        """One step of Adam down the gradient of a loss, ``[M, A, R]`` with respect to the last ``forward``'s Q.

        Args:
            gradient_lines: as ``Block`` has them. number: of the update, the first being 1, which Adam counts.
        """
        _, deltas, first_deltas = self._buffers(gradient.shape[2])
        delta = gradient.mT
        if not self.layers:
            deltas[0].copy_(delta)
        for n in range(len(self.layers) - 1, -1, -1):
            layer, below, delta_below = self.layers[n], self.read[n], deltas[n]
            if delta_below is not None:  # it reads the weight, which the step changes; a table's rows have no ReLU
                self.steps.delta_below(layer, delta, below if n else None, delta_below)
            self.steps.weight_step(layer, delta, below, learning_rate, number)
            delta = delta_below
        if first_deltas is not None and gradient_lines is not None:
            torch.index_select(first_deltas, 0, gradient_lines, out=self.table_gradient)
        elif first_deltas is not None:
            self.table_gradient.zero_().index_add_(0, self.rows, first_deltas[1:])
        parameters, gradients, first_moments, second_moments = self.adam_tensors
        if parameters:
            self.steps.adam(parameters, gradients, first_moments, second_moments, learning_rate, number)

    def _buffers(self, rows: int) -> Buffers:
        if rows not in self.buffers:
            count = self.members * rows
            hidden = [memory[: count * width].view(self.members, rows, width)
                      for memory, width in zip(self.hidden, self.network.hidden)]
            flat = [memory[: (1 + count) * width].view(-1, width) for memory, width in zip(self.deltas, self.widths)]
            deltas = [tensor[1:].view(self.members, rows, -1) for tensor in flat]
            discrete = self.network.discrete
            self.buffers[rows] = Buffers(hidden, deltas if discrete else [None, *deltas], flat[0] if discrete else None)
        return self.buffers[rows]
