"""The forward and the backward pass of the network by hand, and Adam's step, in memory that is made once.

Q has the layout ``[M, A, R]``, action by action: products with a few rows are several times faster than with a few
columns, and so is a softmax over an axis that is not the innermost.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cql.network import PopulationMLP

# the defaults of torch.optim.Adam
ADAM: dict[str, Any] = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
THIN = 8  # inputs: a weight gradient with so few columns is faster made as its transpose


class Layer(NamedTuple):
    """A layer's parameters and their gradients, with transposed views: making one costs as much as a small sum."""

    weight: Tensor  # [M, o, i]
    weight_mT: Tensor
    bias: Tensor  # [M, 1, o]
    bias_mT: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    bias_gradient_mT: Tensor


class Buffers(NamedTuple):
    """Memory of one number of rows ``R``, per hidden layer ``[M, R, width]``."""

    hidden: list[Tensor]  # the layer's output
    deltas: list[Tensor]  # the loss's gradient with respect to it
    last_hidden_mT: list[Tensor]  # of the last one, where there is any


class Passes:
    """Forward pass, backward pass and Adam's step for some members' parameters, in place.

    Args:
        parameters, first_moment, second_moment: as in ``cql.algorithm.State``.
        rows: observations of each member that the network reads at once, at most.
        updates_done: so far, which Adam counts.
    """

    def __init__(self, network: PopulationMLP, parameters: list[Tensor], first_moment: list[Tensor],
                 second_moment: list[Tensor], rows: int, updates_done: int):
        self.network, self.members = network, len(parameters[0])
        self.gradients = [torch.zeros_like(tensor) for tensor in parameters]
        nothing: list[Tensor] = []  # no largest second moments: Adam without AMSGrad
        self.adam = (parameters, self.gradients, first_moment, second_moment, nothing)
        self.adam_steps = [torch.tensor(float(updates_done), device=parameters[0].device)] * len(parameters)
        first = int(network.discrete)  # after the table: weight, bias, weight, bias, …
        weights, biases = parameters[first::2], parameters[first + 1 :: 2]
        gradients = self.gradients[first::2], self.gradients[first + 1 :: 2]
        self.layers = [Layer(weight, weight.mT, bias, bias.mT, of_weight, of_bias, of_bias.mT)
                       for weight, bias, of_weight, of_bias in zip(weights, biases, *gradients)]
        self.memory = [parameters[0].new_empty(2, self.members * rows * width) for width in network.hidden]
        self.buffers: dict[int, Buffers] = {}
        if network.discrete:
            states, width = parameters[0].shape[1:]
            self.table, self.table_gradient = (tensor.view(-1, width) for tensor in (parameters[0], self.gradients[0]))
            self.first_rows = torch.arange(self.members, device=self.table.device)[:, None] * states  # [M, 1]

    def forward(self, inputs: Tensor, q_values: Tensor) -> None:
        """Writes Q (or the logits) into ``q_values [M, A, R]``; ``inputs [M, R]`` or ``[M, R, n]``."""
        network, (hidden, _, last_mT) = self.network, self._buffers(inputs.shape[1])
        if network.discrete:
            self.rows = (inputs + self.first_rows).view(-1)  # in the tables of all members as one, [M * R]
            if not network.hidden:
                q_values.copy_(self.table.index_select(0, self.rows).view(q_values.mT.shape).mT)
                return
            torch.index_select(self.table, 0, self.rows, out=hidden[0].view(-1, self.table.shape[1]))
            self.read = hidden  # by each layer
        else:
            self.read = [inputs, *hidden]
        for layer, below, above in zip(self.layers, self.read, self.read[1:]):
            torch.baddbmm(layer.bias, below, layer.weight_mT, out=above).relu_()
        last = self.layers[-1]
        torch.baddbmm(last.bias_mT, last.weight, last_mT[0] if last_mT else inputs.mT, out=q_values)

    def step(self, gradient: Tensor, learning_rate: Tensor) -> None:
        """One step of Adam down the gradient of a loss, ``[M, A, R]`` with respect to the last ``forward``'s Q."""
        self._backward(gradient)
        self.adam_steps[0].add_(1)  # the same tensor for every parameter
        torch._fused_adam_(*self.adam, self.adam_steps, lr=learning_rate, **ADAM)

    def _backward(self, gradient: Tensor) -> None:
        """Writes ``self.gradients``."""
        deltas, delta = self._buffers(gradient.shape[2]).deltas, gradient.mT  # [M, R, A]
        if self.layers:
            last = self.layers[-1]
            torch.bmm(gradient, self.read[-1], out=last.weight_gradient)
            torch.sum(gradient, 2, keepdim=True, out=last.bias_gradient_mT)
            if deltas:
                delta = torch.bmm(delta, last.weight, out=deltas[-1])  # [M, R, i]
        for n in range(len(self.layers) - 2, -1, -1):
            layer, below = self.layers[n], self.read[n]
            torch.ops.aten.threshold_backward.grad_input(delta, self.read[n + 1], 0, grad_input=delta)  # the ReLU's
            if below.shape[2] < THIN:
                layer.weight_gradient.mT.copy_(torch.bmm(below.mT, delta))
            else:
                torch.bmm(delta.mT, below, out=layer.weight_gradient)
            torch.sum(delta, 1, keepdim=True, out=layer.bias_gradient)
            if n or self.network.discrete:
                delta = torch.bmm(delta, layer.weight, out=deltas[n - (not self.network.discrete)])
        if self.network.discrete:
            self.table_gradient.zero_()
            self.table_gradient.index_add_(0, self.rows, delta.reshape(-1, self.table.shape[1]))

    def _buffers(self, rows: int) -> Buffers:
        if rows not in self.buffers:
            hidden, deltas = ([memory[which, : self.members * rows * width].view(self.members, rows, width)
                               for memory, width in zip(self.memory, self.network.hidden)] for which in range(2))
            self.buffers[rows] = Buffers(hidden, deltas, [tensor.mT for tensor in hidden[-1:]])
        return self.buffers[rows]
