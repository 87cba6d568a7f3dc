"""The forward and the backward pass of the network by hand, and Adam's step, in memory that is made once.

Q has the layout ``[M, A, R]``, action by action: products with a few rows are several times faster than with a few
columns, and so is a softmax over an axis that is not the innermost.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from cql.engine.steps import PYTORCH, Layer, Steps
from cql.network import PopulationMLP

THIN = 8  # inputs: a weight gradient with so few columns is faster made as its transpose
PIECES = 16  # about, of few parameters on a CUDA device: PyTorch's Adam gives each to a multiprocessor of its own
ENOUGH = 2**20  # parameters; with more of them a kernel for each tensor fills the multiprocessors


class Buffers(NamedTuple):
    """Memory of one number of rows ``R``; ``hidden`` and ``deltas`` per hidden layer ``[M, R, width]``."""

    hidden: list[Tensor]  # the layer's output
    last_hidden_mT: list[Tensor]  # of the last one, where there is any
    deltas: list[Tensor]  # the loss's gradient with respect to it; of the linear network with a table, to Q
    first_deltas: list[Tensor]  # the first of them behind a row of zeros, [1 + M * R, width]


@cache
def steps_on(device: torch.device) -> Steps:
    """The steps as a device does them: on CUDA by Triton's kernels, where Triton is there and can compile them."""
    if device.type != "cuda":
        return PYTORCH
    try:
        from cql.engine import kernels
        kernels.relu_backward(*(torch.zeros(1, 1, 1, device=device) for _ in range(3)))
    except Exception:  # no Triton, no C compiler, a device that it does not know: everything works without, only slower
        return PYTORCH
    return kernels.FUSED


class Passes:
    """Forward pass, backward pass and Adam's step for some members' parameters, in place.

    Args:
        parameters, first_moment, second_moment: as in ``cql.algorithm.State``.
        rows: observations of each member that the network reads at once, at most.
        steps: what the device does beside the products.
    """

    def __init__(self, network: PopulationMLP, parameters: list[Tensor], first_moment: list[Tensor],
                 second_moment: list[Tensor], rows: int, steps: Steps):
        self.network, self.members, self.steps = network, len(parameters[0]), steps
        self.gradients = [torch.zeros_like(tensor) for tensor in parameters]
        tensors = (parameters, self.gradients, first_moment, second_moment)
        if sum(tensor.numel() for tensor in parameters) > ENOUGH:
            self.adam = partial(steps.adam, *tensors)
        else:
            self.adam = partial(PYTORCH.adam, *map(_pieces, tensors))
        first = int(network.discrete)  # after the table: weight, bias, weight, bias, …
        weights, biases = parameters[first::2], parameters[first + 1 :: 2]
        gradients = self.gradients[first::2], self.gradients[first + 1 :: 2]
        self.layers = [Layer(weight, weight.mT, bias, bias.mT, of_weight, of_bias, of_bias.mT)
                       for weight, bias, of_weight, of_bias in zip(weights, biases, *gradients)]
        self.bias_gradient = self.layers[-1].bias_gradient_mT if self.layers else None  # [M, A, 1], of the last layer
        self.widths = network.hidden or ((network.outputs,) if network.discrete else ())  # of deltas
        self.hidden = [parameters[0].new_empty(self.members * rows * width) for width in network.hidden]
        self.deltas = [parameters[0].new_zeros((1 + self.members * rows) * width) for width in self.widths]
        self.buffers: dict[int, Buffers] = {}
        if network.discrete:
            width = parameters[0].shape[2]
            self.table, self.table_gradient = (tensor.view(-1, width) for tensor in (parameters[0], self.gradients[0]))

    def forward(self, inputs: Tensor, q_values: Tensor) -> None:
        """Writes Q (or the logits) of ``network_inputs`` into ``q_values [M, A, R]``."""
        network, (hidden, last_mT, _, _) = self.network, self._buffers(inputs.shape[1])
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
        last = self.layers[-1]
        torch.baddbmm(last.bias_mT, last.weight, last_mT[0] if last_mT else inputs.mT, out=q_values)

    def step(self, gradient: Tensor, gradient_lines: Tensor | None, learning_rate: Tensor, number: Tensor) -> None:
        """One step of Adam down the gradient of a loss, ``[M, A, R]`` with respect to the last ``forward``'s Q, whose
        sum over the rows stands in ``bias_gradient``.

        Args:
            gradient_lines: as ``Block`` has them. number: of the update, the first being 1, which Adam counts.
        """
        self._backward(gradient, gradient_lines)
        self.adam(learning_rate, number)

    def _backward(self, gradient: Tensor, gradient_lines: Tensor | None) -> None:
        """Writes ``self.gradients``."""
        _, _, deltas, first_deltas = self._buffers(gradient.shape[2])
        delta, discrete = gradient.mT, self.network.discrete  # [M, R, A]
        if self.layers:
            last = self.layers[-1]
            torch.bmm(gradient, self.read[-1], out=last.weight_gradient)
            if deltas:
                delta = torch.bmm(delta, last.weight, out=deltas[-1])  # [M, R, i]
        else:
            deltas[0].copy_(delta)
        for n in range(len(self.layers) - 2, -1, -1):
            layer, below = self.layers[n], self.read[n]
            self.steps.relu_backward(delta, self.read[n + 1], layer.bias_gradient)
            if below.shape[2] < THIN:
                layer.weight_gradient.mT.copy_(torch.bmm(below.mT, delta))
            else:
                torch.bmm(delta.mT, below, out=layer.weight_gradient)
            if n or discrete:  # without a table, nothing asks for the gradient with respect to the input
                delta = torch.bmm(delta, layer.weight, out=deltas[n - (not discrete)])
        if discrete and gradient_lines is not None:
            torch.index_select(first_deltas[0], 0, gradient_lines, out=self.table_gradient)
        elif discrete:
            self.table_gradient.zero_().index_add_(0, self.rows, first_deltas[0][1:])

    def _buffers(self, rows: int) -> Buffers:
        if rows not in self.buffers:
            count = self.members * rows
            hidden = [memory[: count * width].view(self.members, rows, width)
                      for memory, width in zip(self.hidden, self.network.hidden)]
            flat = [memory[: (1 + count) * width].view(-1, width) for memory, width in zip(self.deltas, self.widths)]
            deltas = [tensor[1:].view(self.members, rows, -1) for tensor in flat]
            self.buffers[rows] = Buffers(hidden, [tensor.mT for tensor in hidden[-1:]], deltas, flat[:1])
        return self.buffers[rows]


def _pieces(tensors: list[Tensor]) -> list[Tensor]:
    """The same memory; on a CUDA device in about ``PIECES`` pieces of equal size."""
    if tensors[0].device.type == "cpu":
        return tensors
    size = max(1024, -(-sum(tensor.numel() for tensor in tensors) // PIECES))
    return [piece for tensor in tensors for piece in tensor.view(-1).split(size)]
