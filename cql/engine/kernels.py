"""The steps of ``cql.engine.steps``, where PyTorch takes two to six CUDA kernels, as one kernel each, in Triton.

``tests/test_kernels.py`` compares the two. Every sum is made in one order, so that a step gives the same bits again.
Comparisons are written so that NaN stays NaN.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cql.engine.pairs import Pairs, slope
from cql.engine.steps import ADAM, PYTORCH, Layer, Steps, sum_rows

ELEMENTS = 1024  # of one program
MOST_PARTS = 2**16 - 1  # of a grid's second axis
TILE = 4096  # elements, at most, of one program that sums over rows
LONGEST = 256  # rows of one program in the ReLU's backward pass, at most
LARGEST_BATCH = 512  # of larger ones, PyTorch's sum by pairs is faster: it sorts


@triton.jit
def _bias_relu(values, bias, rows, width: tl.constexpr, ELEMENTS: tl.constexpr):
    """values ``[M, R, width]`` = relu(values + bias ``[M, width]``); program (member, part of its values)."""
    member = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < rows * width
    place = values + member * rows * width + at
    value = tl.load(place, mask=inside) + tl.load(bias + member * width + at % width, mask=inside)
    tl.store(place, tl.where(value <= 0, 0.0, value), mask=inside)


@triton.jit
def _relu_backward(delta, output, bias_gradient, rows, width: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """delta ``[M, R, width]`` = 0 where output is not positive; bias_gradient ``[M, width]``, its sum over the rows;
    program (member, some columns)."""
    member = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < width)
        at = member * rows * width + row[:, None] * width + column[None, :]
        value = tl.load(delta + at, mask=inside, other=0.0)
        value = tl.where(tl.load(output + at, mask=inside, other=0.0) <= 0, 0.0, value)
        tl.store(delta + at, value, mask=inside)
        sums += value
    tl.store(bias_gradient + member * width + column, tl.sum(sums, 0), mask=column < width)


@triton.jit
def _cql_gradient(gradient, bias_gradient, q_values, targets, weights, row_weights, alpha, rows, slope: tl.constexpr,
                  actions: tl.constexpr, ACTIONS: tl.constexpr, ROWS: tl.constexpr, SUMMED: tl.constexpr):
    """``W [slope (Q - Y) - alpha] + alpha softmax(Q) sum_a W``, all ``[M, A, R]``; program (member, some rows). SUMMED:
    a program has all rows and writes their sum, bias_gradient ``[M, A]``."""
    member = tl.program_id(0).to(tl.int64)
    action = tl.arange(0, ACTIONS)[:, None]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[None, :]
    inside = (action < actions) & (row < rows)
    at = (member * actions + action) * rows + row
    q = tl.load(q_values + at, mask=inside, other=0.0)
    shown = tl.where(action < actions, q, float("-inf"))
    exponential = tl.exp(shown - tl.max(shown, 0, keep_dims=True))
    softmax = exponential / tl.sum(exponential, 0, keep_dims=True)
    weight = tl.load(weights + at, mask=inside, other=0.0)
    row_weight = tl.load(row_weights + member * rows + row, mask=row < rows, other=0.0)
    a = tl.load(alpha + member)
    error = q - tl.load(targets + at, mask=inside, other=0.0)
    value = weight * (slope * error - a) + a * row_weight * softmax
    tl.store(gradient + at, value, mask=inside)
    if SUMMED:
        sums = tl.sum(tl.where(inside, value, 0.0), 1, keep_dims=True)
        tl.store(bias_gradient + member * actions + action, sums, mask=action < actions)


@triton.jit
def _adam(parameters, gradient, first_moment, second_moment, learning_rate, number, count, beta1: tl.constexpr,
          beta2: tl.constexpr, eps: tl.constexpr, log2_beta1: tl.constexpr, log2_beta2: tl.constexpr,
          ELEMENTS: tl.constexpr):
    """Adam's step of ``count`` parameters, in place; program (part of them)."""
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < count
    g = tl.load(gradient + at, mask=inside)
    m, v = tl.load(first_moment + at, mask=inside), tl.load(second_moment + at, mask=inside)
    m += (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    tl.store(first_moment + at, m, mask=inside)
    tl.store(second_moment + at, v, mask=inside)
    n = tl.load(number).to(tl.float64)  # 1 − beta^n loses digits in float32
    step = (tl.load(learning_rate) / (1 - tl.exp2(n * log2_beta1))).to(tl.float32)
    correction = tl.sqrt(1 - tl.exp2(n * log2_beta2)).to(tl.float32)
    p = tl.load(parameters + at, mask=inside)
    tl.store(parameters + at, p - step * m / (tl.sqrt(v) / correction + eps), mask=inside)


@triton.jit
def _sum_by_pair(sums, values, index, batch, pairs, PAIRS: tl.constexpr):
    """sums ``[N, pairs]`` of values ``[N, batch]`` whose index is the pair; program (one of N, some pairs)."""
    line = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    total = tl.zeros((PAIRS,), tl.float32)
    for b in range(batch):
        total += tl.where(tl.load(index + line * batch + b) == pair, tl.load(values + line * batch + b), 0.0)
    tl.store(sums + line * pairs + pair, total, mask=pair < pairs)


def hidden_layer(layer: Layer, below: Tensor, above: Tensor) -> None:
    members, rows, width = above.shape
    parts = triton.cdiv(rows * width, ELEMENTS)
    if parts > MOST_PARTS:
        return PYTORCH.hidden_layer(layer, below, above)
    torch.bmm(below, layer.weight_mT, out=above)
    _bias_relu[members, parts](above, layer.bias, rows, width, ELEMENTS)


def relu_backward(delta: Tensor, output: Tensor, bias_gradient: Tensor) -> None:
    members, rows, width = delta.shape
    at_once = min(triton.next_power_of_2(rows), LONGEST)
    columns = min(triton.next_power_of_2(width), TILE // at_once)
    _relu_backward[members, triton.cdiv(width, columns)](delta, output, bias_gradient, rows, width, at_once, columns)


def cql_gradient(pairs: Pairs, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str,
                 bias_gradient: Tensor | None) -> Tensor:
    members, actions, rows = q_values.shape
    padded, at_once = triton.next_power_of_2(actions), triton.next_power_of_2(rows)
    whole = padded * at_once <= TILE
    at_once = at_once if whole else max(1, ELEMENTS // padded)
    parts = triton.cdiv(rows, at_once)
    if parts > MOST_PARTS:
        return PYTORCH.cql_gradient(pairs, q_values, targets, alpha, td_loss, bias_gradient)
    summed = whole and bias_gradient is not None
    gradient = torch.empty_like(q_values)
    _cql_gradient[members, parts](
        gradient, bias_gradient if summed else gradient, q_values, targets, pairs.weights, pairs.row_weights, alpha,
        rows, slope(td_loss), actions, padded, at_once, summed)
    if not summed:
        sum_rows(gradient, bias_gradient)
    return gradient


def adam(parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
         learning_rate: Tensor, number: Tensor) -> None:
    beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
    for tensors in zip(parameters, gradients, first_moments, second_moments):
        count = tensors[0].numel()
        _adam[(triton.cdiv(count, ELEMENTS),)](*tensors, learning_rate, number, count, beta1, beta2, ADAM["eps"],
                                               math.log2(beta1), math.log2(beta2), ELEMENTS)


def sum_by_pair(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    batch, pairs = index.shape[-1], shape[-2] * shape[-1]
    if batch > LARGEST_BATCH:
        return PYTORCH.sum_by_pair(values, index, shape)
    sums, at_once = values.new_empty(shape), min(triton.next_power_of_2(pairs), ELEMENTS)
    _sum_by_pair[index.numel() // batch, triton.cdiv(pairs, at_once)](
        sums, values.contiguous(), index.contiguous(), batch, pairs, at_once)
    return sums


FUSED = Steps(hidden_layer, relu_backward, cql_gradient, adam, sum_by_pair)
