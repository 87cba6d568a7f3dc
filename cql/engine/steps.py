"""The steps of an update in PyTorch; ``cql.engine.kernels`` has them for CUDA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cql.engine.pairs import Pairs, sum_by_pair

# the defaults of torch.optim.Adam
ADAM: dict[str, Any] = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
THIN = 8  # inputs: a weight gradient with fewer columns is faster made as its transpose


class Layer(NamedTuple):
    """A layer's parameters with transposed views (making one costs as much as a small sum), and what Adam needs."""

    weight: Tensor  # [M, o, i]
    weight_mT: Tensor
    bias: Tensor  # [M, 1, o]
    bias_mT: Tensor
    weight_gradient: Tensor | None  # None where ``Steps.weight_step`` keeps none
    bias_gradient: Tensor | None
    weight_moments: list[Tensor]  # first and second
    bias_moments: list[Tensor]


class Steps(NamedTuple):
    """The steps of an update, which a device may do in fewer kernels (``cql.engine.kernels``). A delta is the gradient
    of the loss with respect to W below^T + b of a layer, or with respect to the rows of a table.

    Attributes:
        hidden_layer: ``(layer, below [M, R, i], above [M, R, o])`` writes above = relu(below W^T + b).
        last_layer: ``(layer, below, outputs [M, o, R])`` writes outputs^T = below W^T + b.
        delta_below: ``(layer, delta [M, R, o], below or None, delta_below [M, R, i])`` writes delta_below = delta W,
            and 0 where below, which a ReLU made, is not positive.
        weight_step: ``(layer, delta, below, learning rate, number)`` writes the layer's gradients, which ``adam``
            reads; or makes Adam's step of its weight and bias.
        adam_in_weight_step: whether it does.
        adam: ``(parameters, gradients, first moments, second moments, learning rate, number)``, the number of the
            first update being 1.
        cql_gradient: ``Pairs.cql_gradient``. sum_by_pair: ``pairs.sum_by_pair``.
    """

    hidden_layer: Callable[[Layer, Tensor, Tensor], None]
    last_layer: Callable[[Layer, Tensor, Tensor], None]
    delta_below: Callable[[Layer, Tensor, Tensor | None, Tensor], None]
    weight_step: Callable[[Layer, Tensor, Tensor, Tensor, Tensor], None]
    adam_in_weight_step: bool
    adam: Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor], None]
    cql_gradient: Callable[[Pairs, Tensor, Tensor, Tensor, str], Tensor]
    sum_by_pair: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]


def _hidden_layer(layer: Layer, below: Tensor, above: Tensor) -> None:
    torch.baddbmm(layer.bias, below, layer.weight_mT, out=above).relu_()


def _last_layer(layer: Layer, below: Tensor, outputs: Tensor) -> None:
    torch.baddbmm(layer.bias_mT, layer.weight, below.mT, out=outputs)


def _delta_below(layer: Layer, delta: Tensor, below: Tensor | None, delta_below: Tensor) -> None:
    torch.bmm(delta, layer.weight, out=delta_below)
    if below is not None:
        torch.ops.aten.threshold_backward.grad_input(delta_below, below, 0, grad_input=delta_below)


def _weight_step(layer: Layer, delta: Tensor, below: Tensor, learning_rate: Tensor, number: Tensor) -> None:
    torch.sum(delta, 1, keepdim=True, out=layer.bias_gradient)
    if below.shape[2] < THIN:
        layer.weight_gradient.mT.copy_(torch.bmm(below.mT, delta))
    else:
        torch.bmm(delta.mT, below, out=layer.weight_gradient)


def _adam(parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
          learning_rate: Tensor, number: Tensor) -> None:
    largest_second_moments: list[Tensor] = []  # of AMSGrad alone
    torch._fused_adam_(parameters, gradients, first_moments, second_moments, largest_second_moments,
                       [number] * len(parameters), lr=learning_rate, **ADAM)


PYTORCH = Steps(_hidden_layer, _last_layer, _delta_below, _weight_step, False, _adam, Pairs.cql_gradient, sum_by_pair)
