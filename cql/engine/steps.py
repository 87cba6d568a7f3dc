"""The steps of an update in PyTorch; ``cql.engine.kernels`` has them for CUDA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cql.engine.pairs import Pairs, sum_by_pair

# the defaults of torch.optim.Adam
ADAM: dict[str, Any] = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
THIN = 8  # inputs: a weight gradient with so few columns is faster made as its transpose


class Layer(NamedTuple):
    """A layer's parameters, their gradients and Adam's moments, with transposed views: making one costs as much as a
    small sum."""

    weight: Tensor  # [M, o, i]
    weight_mT: Tensor
    bias: Tensor  # [M, 1, o]
    bias_mT: Tensor
    weight_gradient: Tensor
    bias_gradient_mT: Tensor
    moments: list[Tensor]  # first and second of the weight, first and second of the bias


class Steps(NamedTuple):
    """The steps of an update, which a device may do in fewer kernels (``cql.engine.kernels``). A delta is the gradient
    of the loss with respect to the output of a layer."""

    hidden_layer: Callable[[Layer, Tensor, Tensor], None]  # (layer, below, above): above = relu(below W^T + b)
    # (layer, below^T [M, i, R], outputs [M, o, R]): outputs = W below^T + b
    last_layer: Callable[[Layer, Tensor, Tensor], None]
    # (layer, delta [M, R, o], below or None, delta_below): delta_below = delta W, and 0 where below, which a ReLU made,
    # is not positive
    delta_below: Callable[[Layer, Tensor, Tensor | None, Tensor], None]
    # (layer, delta^T [M, o, R], below, learning rate, number): writes the layer's gradients, which ``adam`` reads; or,
    # where ``steps_layers``, makes Adam's step of its weight and bias at once
    weight_step: Callable[[Layer, Tensor, Tensor, Tensor, Tensor], None]
    steps_layers: bool
    # (parameters, gradients, first moments, second moments, learning rate, number of the update, the first being 1)
    adam: Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor], None]
    cql_gradient: Callable[[Pairs, Tensor, Tensor, Tensor, str], Tensor]  # ``Pairs.cql_gradient``
    sum_by_pair: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]  # ``pairs.sum_by_pair``


def _hidden_layer(layer: Layer, below: Tensor, above: Tensor) -> None:
    torch.baddbmm(layer.bias, below, layer.weight_mT, out=above).relu_()


def _last_layer(layer: Layer, below_mT: Tensor, outputs: Tensor) -> None:
    torch.baddbmm(layer.bias_mT, layer.weight, below_mT, out=outputs)


def _delta_below(layer: Layer, delta: Tensor, below: Tensor | None, delta_below: Tensor) -> None:
    torch.bmm(delta, layer.weight, out=delta_below)
    if below is not None:
        torch.ops.aten.threshold_backward.grad_input(delta_below, below, 0, grad_input=delta_below)


def _weight_step(layer: Layer, delta_mT: Tensor, below: Tensor, learning_rate: Tensor, number: Tensor) -> None:
    torch.sum(delta_mT, 2, keepdim=True, out=layer.bias_gradient_mT)
    if below.shape[2] < THIN:
        layer.weight_gradient.mT.copy_(torch.bmm(below.mT, delta_mT.mT))
    else:
        torch.bmm(delta_mT, below, out=layer.weight_gradient)


def _adam(parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
          learning_rate: Tensor, number: Tensor) -> None:
    largest_second_moments: list[Tensor] = []  # of AMSGrad alone
    torch._fused_adam_(parameters, gradients, first_moments, second_moments, largest_second_moments,
                       [number] * len(parameters), lr=learning_rate, **ADAM)


PYTORCH = Steps(_hidden_layer, _last_layer, _delta_below, _weight_step, False, _adam, Pairs.cql_gradient, sum_by_pair)
