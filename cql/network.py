"""The multilayer perceptron of one agent or of many: every parameter tensor has a leading member axis ``M``.

An observation is a vector ``[n]`` or the index of a state. An index selects a row of a table, which takes the place
of the first layer. The row has no bias (it would only add the same vector to every row) and no ReLU (a state whose
row had become all negative would pass no gradient ever again; on two of sixteen data sets one did). With
``hidden=()`` the table is Q[s, a] itself.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PopulationMLP:
    """The shapes of the network; it holds no parameters.

    Args:
        inputs: number of states (``discrete``) or length of the observation vector.
        outputs: number of actions ``A``.
        hidden: widths of the hidden layers, each with a ReLU, but not a table; ``()`` is the linear network.
        discrete: whether observations are state indices ``[M, B]`` instead of vectors ``[M, B, inputs]``.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    discrete: bool

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """``(inputs, outputs)`` of each layer, a table being the first."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return list(zip(widths[:-1], widths[1:]))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape (without ``M``) of each parameter, in order: a table ``[inputs, outputs]``; of each other layer
        weight ``[outputs, inputs]``, as in ``torch.nn.Linear``, and bias ``[1, outputs]``."""
        found: dict[str, tuple[int, ...]] = {}
        for n, (inputs, outputs) in enumerate(self.sizes):
            if self.discrete and n == 0:
                found["table"] = (inputs, outputs)
            else:
                found |= {f"layers.{n}.weight": (outputs, inputs), f"layers.{n}.bias": (1, outputs)}
        return found

    @property
    def parameters_per_member(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, seeds: list[int]) -> list[Tensor]:
        """Parameters of one member per seed, uniform in ±1/sqrt(inputs of the layer); equal seeds give equal weights.

        They are drawn on the CPU, so that every device starts from the same numbers.
        """
        parameters = [torch.empty(len(seeds), *shape) for shape in self.shapes.values()]
        bounds = [1 / math.sqrt(inputs) for inputs, _ in self.sizes for _ in ("weight", "bias")][self.discrete :]
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for tensor, bound in zip(parameters, bounds):
                tensor[member].uniform_(-bound, bound, generator=generator)
        return parameters

    def q_values(self, parameters: list[Tensor], observations: Tensor) -> Tensor:
        """Q (or the logits of Behaviour Cloning): ``[M, B] or [M, B, inputs] -> [M, B, A]``."""
        hidden, layers = observations, parameters
        if self.discrete:
            table, *layers = parameters
            member = torch.arange(len(table), device=table.device)[:, None]  # [M, 1]
            hidden = table[member, observations]  # [M, B, width]
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2]):
            hidden = torch.baddbmm(bias, hidden, weight.mT).relu()  # [M, B, width]
        if not layers:
            return hidden
        weight, bias = layers[-2:]
        return torch.baddbmm(bias.mT, weight, hidden.mT).mT  # [M, B, A], faster with A as rows than as columns
