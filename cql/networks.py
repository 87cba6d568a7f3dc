"""A population of multilayer perceptrons: every parameter tensor has a leading member axis ``M``.

All parameters of all members lie in one flat buffer, layer after layer, so that the optimiser and the target copy are
one operation each; ``PopulationMLP.layers`` gives the named views into it. The first layer reads a Box observation as a
matrix product, a Discrete one as a row of a table. Such a row has no bias (it would only add the same vector to every
row) and no ReLU (a state whose row had become all negative would pass no gradient ever again; on two of sixteen data
draws one did). With ``hidden=()`` on a Discrete observation the network *is* the table Q[s, a].
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cql.products import Matrices, linear, matrices, product


class Layer(NamedTuple):
    weight: Tensor  # [M, outputs, inputs], as in torch.nn.Linear; of a table [M, inputs, outputs], a row per state
    bias: Tensor | None  # [M, 1, outputs]; None for a table


@dataclass(frozen=True)
class PopulationMLP:
    """Shapes of the network; it holds no parameters.

    Args:
        inputs: number of states (``discrete``) or length of the observation vector.
        outputs: number of actions ``A``.
        hidden: widths of the hidden layers, ReLU after each but a table; ``()`` is the linear network.
        discrete: observations are state indices ``[M, B]`` instead of vectors ``[M, B, inputs]``.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    discrete: bool

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """``(inputs, outputs)`` of each layer."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return list(zip(widths[:-1], widths[1:]))

    def weight_shape(self, layer: int) -> tuple[int, int]:
        inputs, outputs = self.sizes[layer]
        return (inputs, outputs) if self._is_table(layer) else (outputs, inputs)

    def _is_table(self, layer: int) -> bool:
        return self.discrete and layer == 0

    def _has_relu(self, layer: int) -> bool:
        return layer < len(self.hidden) and not self._is_table(layer)

    @property
    def parameters_per_member(self) -> int:
        return sum(i * o + (0 if self._is_table(n) else o) for n, (i, o) in enumerate(self.sizes))

    def layers(self, flat: Tensor) -> list[Layer]:
        """Views into the flat buffer ``[M * parameters_per_member]``, each layer's block contiguous over members."""
        members, remainder = divmod(flat.numel(), self.parameters_per_member)
        assert flat.ndim == 1 and remainder == 0, flat.shape
        views, start = [], 0
        for n, (i, o) in enumerate(self.sizes):
            weight = flat[start : start + members * i * o].view(members, *self.weight_shape(n))
            start += members * i * o
            bias = None
            if not self._is_table(n):
                bias = flat[start : start + members * o].view(members, 1, o)
                start += members * o
            views.append(Layer(weight, bias))
        return views

    def joined(self, parts: list[Tensor]) -> Tensor:
        """One flat buffer of the members of several, in their order."""
        layers = zip(*(self.layers(flat) for flat in parts))
        return torch.cat([torch.cat(tensors).flatten() for layer in layers for tensors in zip(*layer) if tensors[0] is not None])

    def split(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        """The reverse of ``joined``: flat buffers of so many members each, copied."""
        layers = [[None if t is None else t.split(sizes) for t in layer] for layer in self.layers(flat)]
        return [torch.cat([t[part].flatten() for layer in layers for t in layer if t is not None]) for part in range(len(sizes))]

    def initial(self, seeds: list[int]) -> Tensor:
        """Flat parameters of one member per seed, uniform in ±1/sqrt(inputs of the layer). Equal seeds, equal weights.

        Drawn on the CPU, so that every device starts from the same numbers.
        """
        flat = torch.empty(len(seeds) * self.parameters_per_member)
        layers = self.layers(flat)
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for layer, (inputs, _) in zip(layers, self.sizes):
                bound = 1 / math.sqrt(inputs)
                for tensor in layer:
                    if tensor is not None:
                        tensor[member].uniform_(-bound, bound, generator=generator)
        return flat

    def forward(self, layers: list[Layer], observations: Tensor | Matrices, out: list[Matrices] | None = None) -> list[Matrices]:
        """The outputs of every layer; the last one is Q (or the logits) ``[M, B, A]``.

        Args:
            layers: from ``layers``, or their ``Matrices``.
            observations: ``[M, B]`` integers or ``[M, B, inputs]`` floats.
            out: memory for every output; without it new tensors are made and autograd works. That of the last is ``[M, A, B]``
                seen as ``[M, B, A]``: products with a few rows are several times faster than with a few columns, and so is a
                softmax over an axis that is not the innermost.
        """
        out = out or [None] * len(layers)
        outputs, hidden = [], matrices(observations)
        for n, (layer, room) in enumerate(zip(layers, out)):
            weight = matrices(layer.weight)
            if layer.bias is None:
                hidden = _look_up(weight.whole, hidden.whole, room)  # [M, B, o]
            elif n < len(layers) - 1:
                hidden = linear(hidden, weight, matrices(layer.bias), self._has_relu(n), room)  # [M, B, o]
            else:
                made = torch.baddbmm(matrices(layer.bias).mT.whole, weight.whole, hidden.mT.whole,
                                     out=None if room is None else room.mT.whole)  # [M, A, B]
                hidden = Matrices(made.mT) if room is None else room
            outputs.append(hidden)
        return outputs

    def q_values(self, layers: list[Layer], observations: Tensor) -> Tensor:
        """Q (or the logits), ``[M, B] or [M, B, inputs] -> [M, B, A]``."""
        return self.forward(layers, observations)[-1].whole

    def backward(self, layers: list[Layer], observations: Tensor | Matrices, outputs: list[Matrices], gradient: Tensor,
                 out: list[Layer], room: list[Matrices]) -> None:
        """Writes the gradient of a scalar with respect to all parameters into ``out``, by hand.

        Args:
            layers, observations, outputs: as given to and returned by ``forward``.
            gradient: of the scalar with respect to the last output ``[M, B, A]``.
            out: views of the gradient buffer, from ``layers``, or their ``Matrices``.
            room: memory for the gradients with respect to the hidden outputs.
        """
        gradient = Matrices(gradient)
        for n in range(len(layers) - 1, -1, -1):
            if layers[n].bias is None:
                _add_rows(matrices(out[n].weight).whole, matrices(observations).whole, gradient.whole)
                continue
            inputs = outputs[n - 1] if n else matrices(observations)  # [M, B, i]
            product(gradient.mT, inputs, matrices(out[n].weight))  # [M, o, i]
            torch.sum(gradient.whole, 1, keepdim=True, out=matrices(out[n].bias).whole)
            if n:
                product(gradient, matrices(layers[n].weight), room[n - 1])  # [M, B, i]
                gradient = room[n - 1]
                if self._has_relu(n - 1):  # the ReLU's own backward, in one pass: 0 where its output is not above 0
                    torch.ops.aten.threshold_backward.grad_input(gradient.whole, inputs.whole, 0, grad_input=gradient.whole)


def _flat_rows(table: Tensor, indices: Tensor) -> Tensor:
    """Row numbers in the table of all members ``[M * S, o]``, as one vector ``[M * B]``."""
    members, states, _ = table.shape
    return (indices + _offsets(members, states, indices.device)).view(-1)


@lru_cache(maxsize=None)  # a CUDA graph reads it for as long as it lives
def _offsets(members: int, states: int, device: torch.device) -> Tensor:
    return torch.arange(0, members * states, states, device=device)[:, None]


def _look_up(table: Tensor, indices: Tensor, out: Matrices | None) -> Matrices:
    members, _, width = table.shape
    rows = table.reshape(-1, width).index_select(0, _flat_rows(table, indices)).view(members, -1, width)
    if out is None:
        return Matrices(rows)
    out.whole.copy_(rows)
    return out


def _add_rows(table_gradient: Tensor, indices: Tensor, gradient: Tensor) -> None:
    width = table_gradient.shape[-1]
    table_gradient.zero_()
    table_gradient.view(-1, width).index_add_(0, _flat_rows(table_gradient, indices), gradient.reshape(-1, width))
