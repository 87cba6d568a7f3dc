"""The steps of an update between its matrix products, in PyTorch; ``cql.engine.kernels`` has them for CUDA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cql.engine.pairs import Pairs, sum_by_pair

# the defaults of torch.optim.Adam
ADAM: dict[str, Any] = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)


class Layer(NamedTuple):
    """A layer's parameters and their gradients, with transposed views: making one costs as much as a small sum."""

    weight: Tensor  # [M, o, i]
    weight_mT: Tensor
    bias: Tensor  # [M, 1, o]
    bias_mT: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    bias_gradient_mT: Tensor


class Steps(NamedTuple):
    """The steps of an update that a device may do in fewer kernels (``cql.engine.kernels``)."""

    hidden_layer: Callable[[Layer, Tensor, Tensor], None]  # (layer, below, above): above = relu(below W^T + b)
    # (delta, output, bias_gradient): delta = 0 where output is not positive, and its sum over the rows
    relu_backward: Callable[[Tensor, Tensor, Tensor], None]
    # ``Pairs.cql_gradient``; the last argument, if any, is where ``sum_rows`` of it goes
    cql_gradient: Callable[[Pairs, Tensor, Tensor, Tensor, str, Tensor | None], Tensor]
    # (parameters, gradients, first moments, second moments, learning rate, number of the update, the first being 1)
    adam: Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor], None]
    sum_by_pair: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]  # ``pairs.sum_by_pair``


def _hidden_layer(layer: Layer, below: Tensor, above: Tensor) -> None:
    torch.baddbmm(layer.bias, below, layer.weight_mT, out=above).relu_()


def _relu_backward(delta: Tensor, output: Tensor, bias_gradient: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(delta, output, 0, grad_input=delta)
    torch.sum(delta, 1, keepdim=True, out=bias_gradient)


def _cql_gradient(pairs: Pairs, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str,
                  bias_gradient: Tensor | None) -> Tensor:
    gradient = pairs.cql_gradient(q_values, targets, alpha, td_loss)
    sum_rows(gradient, bias_gradient)
    return gradient


def sum_rows(gradient: Tensor, bias_gradient: Tensor | None) -> None:
    """Writes the sum of the gradient ``[M, A, R]`` over the rows, that of the last bias ``[M, A, 1]``, if there is
    one."""
    if bias_gradient is not None:
        torch.sum(gradient, 2, keepdim=True, out=bias_gradient)


def _adam(parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
          learning_rate: Tensor, number: Tensor) -> None:
    largest_second_moments: list[Tensor] = []  # of AMSGrad alone
    torch._fused_adam_(parameters, gradients, first_moments, second_moments, largest_second_moments,
                       [number] * len(parameters), lr=learning_rate, **ADAM)


PYTORCH = Steps(_hidden_layer, _relu_backward, _cql_gradient, _adam, sum_by_pair)
