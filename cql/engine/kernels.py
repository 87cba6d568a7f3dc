"""The steps of ``cql.engine.steps`` as one CUDA kernel each, in Triton.

The gradient of a weight is never written: the kernel that sums it makes Adam's step with it. That kernel waits for
memory, so that its products may use the units of float32. The other products use the tensor cores, with three products
of TF32 each: x = big + small, both with 11 significant bits, and x y = big big + big small + small big. Their results
are no farther from the exact ones (``tests/test_kernels.py``).

``program (…)`` says what one instance of a kernel computes; it finds its part from its number. Every sum is made in one
order, so that repeating a step gives the same bits. Comparisons are written so that NaN stays NaN.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cql.engine.pairs import Pairs, slope
from cql.engine.steps import ADAM, PYTORCH, Layer, Steps

ELEMENTS = 1024  # numbers that one program handles
PROGRAMS = 264  # of a grid, at least, where the work allows: two for each multiprocessor of an H100
PRECISION = "tf32x3"  # "ieee": the units of float32
ADAM_NUMBERS = (ADAM["beta1"], ADAM["beta2"], ADAM["eps"], math.log2(ADAM["beta1"]), math.log2(ADAM["beta2"]))
LARGEST_BATCH = 512  # of larger ones, PyTorch's sum by pairs is faster: it sorts


@triton.jit
def _layer(above, below, weight, bias, rows, inputs, outputs, below_member, below_row, above_member, above_row,
           above_column, RELU: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
           COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """above ``[M, R, o]`` = below ``[M, R, i]`` W ``[M, o, i]``^T + b ``[M, o]``, with RELU its positive part; program
    (member, some rows, some columns)."""
    parts = tl.cdiv(outputs, COLUMNS)
    member = (tl.program_id(0) // (tl.cdiv(rows, ROWS) * parts)).to(tl.int64)
    row = tl.program_id(0) // parts % tl.cdiv(rows, ROWS) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % parts * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    below += member * below_member + row * below_row
    weight += (member * outputs + column) * inputs
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, inputs, DEPTH):
        i = first + tl.arange(0, DEPTH)
        b = tl.load(below + i[None, :], mask=(row < rows) & (i[None, :] < inputs), other=0.0)
        w = tl.load(weight + i[:, None], mask=(column < outputs) & (i[:, None] < inputs), other=0.0)
        value = tl.dot(b, w, value, input_precision=PRECISION)
    value += tl.load(bias + member * outputs + column, mask=column < outputs, other=0.0)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    above += member * above_member + row * above_row + column * above_column
    tl.store(above, value, mask=(row < rows) & (column < outputs))


@triton.jit
def _delta_below(delta_below, delta, weight, below, rows, inputs, outputs, delta_member, delta_row, delta_column,
                 RELU: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 DEPTH: tl.constexpr):
    """delta_below ``[M, R, i]`` = delta ``[M, R, o]`` W ``[M, o, i]``, with RELU 0 where below is not positive; program
    (member, some rows, some columns).

    It computes the transpose, W^T delta^T: the tensor cores read the second factor of TF32 along the axis of the sum,
    which is contiguous in delta and not in W.
    """
    parts = tl.cdiv(inputs, COLUMNS)
    member = (tl.program_id(0) // (tl.cdiv(rows, ROWS) * parts)).to(tl.int64)
    row = tl.program_id(0) // parts % tl.cdiv(rows, ROWS) * ROWS + tl.arange(0, ROWS)[None, :]
    column = tl.program_id(0) % parts * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    delta += member * delta_member + row * delta_row
    weight += member * outputs * inputs + column
    value = tl.zeros((COLUMNS, ROWS), tl.float32)
    for first in range(0, outputs, DEPTH):
        o = first + tl.arange(0, DEPTH)
        w = tl.load(weight + o[None, :].to(tl.int64) * inputs, mask=(column < inputs) & (o[None, :] < outputs),
                    other=0.0)
        d = tl.load(delta + o[:, None] * delta_column, mask=(row < rows) & (o[:, None] < outputs), other=0.0)
        value = tl.dot(w, d, value, input_precision=PRECISION)
    inside, at = (row < rows) & (column < inputs), (member * rows + row) * inputs + column
    if RELU:
        value = tl.where(tl.load(below + at, mask=inside, other=0.0) <= 0, 0.0, value)
    tl.store(delta_below + at, value, mask=inside)


@triton.jit
def _adam_at(at, inside, g, parameters, first_moment, second_moment, learning_rate, number, beta1: tl.constexpr,
             beta2: tl.constexpr, eps: tl.constexpr, log2_beta1: tl.constexpr, log2_beta2: tl.constexpr):
    """Adam's step of the parameters ``at``, whose gradient is g, in place."""
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


@triton.jit(do_not_specialize_on_alignment=["learning_rate", "number"])
def _weight_step(weight, weight_first, weight_second, bias, bias_first, bias_second, delta, below, learning_rate,
                 number, rows, inputs, outputs, delta_member, delta_row, delta_column, below_member, below_row,
                 beta1: tl.constexpr, beta2: tl.constexpr, eps: tl.constexpr, log2_beta1: tl.constexpr,
                 log2_beta2: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """Adam's step of W ``[M, o, i]`` by delta ``[M, R, o]``^T below ``[M, R, i]``, and of b ``[M, o]`` by the sum of
    delta over the rows; program (member, some outputs, some inputs)."""
    parts = tl.cdiv(inputs, INPUTS)
    member = (tl.program_id(0) // (tl.cdiv(outputs, OUTPUTS) * parts)).to(tl.int64)
    output = tl.program_id(0) // parts % tl.cdiv(outputs, OUTPUTS) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.program_id(0) % parts * INPUTS + tl.arange(0, INPUTS)[None, :]
    delta += member * delta_member + output[:, None] * delta_column
    below += member * below_member + column
    gradient = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    deltas = tl.zeros((OUTPUTS, ROWS), tl.float32)  # their sum over the tiles of rows
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        d = tl.load(delta + row[None, :] * delta_row, mask=(output[:, None] < outputs) & (row[None, :] < rows),
                    other=0.0)
        b = tl.load(below + row[:, None] * below_row, mask=(row[:, None] < rows) & (column < inputs), other=0.0)
        gradient = tl.dot(d, b, gradient, input_precision="ieee")
        deltas += d
    inside = (output[:, None] < outputs) & (column < inputs)
    at = (member * outputs + output[:, None]) * inputs + column
    _adam_at(at, inside, gradient, weight, weight_first, weight_second, learning_rate, number, beta1, beta2, eps,
             log2_beta1, log2_beta2)
    if tl.program_id(0) % parts == 0:
        _adam_at(member * outputs + output, output < outputs, tl.sum(deltas, 1), bias, bias_first, bias_second,
                 learning_rate, number, beta1, beta2, eps, log2_beta1, log2_beta2)


@triton.jit
def _cql_gradient(gradient, q_values, targets, weights, row_weights, alpha, rows, slope: tl.constexpr,
                  actions: tl.constexpr, ACTIONS: tl.constexpr, ROWS: tl.constexpr):
    """``W [slope (Q - Y) - alpha] + alpha softmax(Q) sum_a W``, all ``[M, A, R]``; program (member, some rows)."""
    member = (tl.program_id(0) // tl.cdiv(rows, ROWS)).to(tl.int64)
    action = tl.arange(0, ACTIONS)[:, None]
    row = tl.program_id(0) % tl.cdiv(rows, ROWS) * ROWS + tl.arange(0, ROWS)[None, :]
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
    tl.store(gradient + at, weight * (slope * error - a) + a * row_weight * softmax, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["learning_rate", "number"])
def _adam(parameters, gradient, first_moment, second_moment, learning_rate, number, count, beta1: tl.constexpr,
          beta2: tl.constexpr, eps: tl.constexpr, log2_beta1: tl.constexpr, log2_beta2: tl.constexpr,
          ELEMENTS: tl.constexpr):
    """Adam's step of ``count`` parameters, in place; program (part of them)."""
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    g = tl.load(gradient + at, mask=at < count)
    _adam_at(at, at < count, g, parameters, first_moment, second_moment, learning_rate, number, beta1, beta2, eps,
             log2_beta1, log2_beta2)


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
    _layer_of(layer, below, above, relu=True)


def last_layer(layer: Layer, below: Tensor, outputs: Tensor) -> None:
    _layer_of(layer, below, outputs.mT, relu=False)


def _layer_of(layer: Layer, below: Tensor, above: Tensor, relu: bool) -> None:
    members, rows, outputs = above.shape
    inputs = below.shape[2]
    grid, *tile = tiles(members, rows, outputs, 64, 128, inputs)
    _layer[grid](above, below, layer.weight, layer.bias, rows, inputs, outputs, below.stride(0), below.stride(1),
                 *above.stride(), relu, PRECISION, *tile)


def delta_below(layer: Layer, delta: Tensor, below: Tensor | None, delta_below: Tensor) -> None:
    members, rows, inputs = delta_below.shape
    outputs = delta.shape[2]
    grid, *tile = tiles(members, rows, inputs, 64, 128, outputs)
    _delta_below[grid](delta_below, delta, layer.weight, delta if below is None else below, rows, inputs, outputs,
                       *delta.stride(), below is not None, PRECISION, *tile)


def weight_step(layer: Layer, delta: Tensor, below: Tensor, learning_rate: Tensor, number: Tensor) -> None:
    members, rows, outputs = delta.shape
    inputs = below.shape[2]
    grid, at_outputs, at_inputs, at_rows = tiles(members, outputs, inputs, 32, 64, rows)
    _weight_step[grid](
        layer.weight, *layer.weight_moments, layer.bias, *layer.bias_moments, delta, below, learning_rate, number, rows,
        inputs, outputs, *delta.stride(), below.stride(0), below.stride(1), *ADAM_NUMBERS, at_rows, at_outputs,
        at_inputs)


def tiles(members: int, rows: int, columns: int, most_rows: int, most_columns: int,
          depth: int) -> tuple[tuple[int], int, int, int]:
    """A grid of one axis for products of so many rows and columns, sums over ``depth``; the rows, columns and terms
    that a program takes at once: no fewer than 16, which ``tl.dot`` needs, and no more than leaves ``PROGRAMS``."""
    at_rows, at_columns = (min(max(16, triton.next_power_of_2(size)), most)
                           for size, most in ((rows, most_rows), (columns, most_columns)))

    def programs() -> int:
        return members * triton.cdiv(rows, at_rows) * triton.cdiv(columns, at_columns)

    while programs() < PROGRAMS and (at_rows > 16 or at_columns > 32):
        if at_columns > max(at_rows, 32):
            at_columns //= 2
        else:
            at_rows //= 2
    most_terms = 64 if at_rows == 16 else 32
    return (programs(),), at_rows, at_columns, min(max(16, triton.next_power_of_2(depth)), most_terms)


def cql_gradient(pairs: Pairs, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str) -> Tensor:
    """All tensors are contiguous."""
    members, actions, rows = q_values.shape
    padded = triton.next_power_of_2(actions)
    at_once = max(1, min(triton.next_power_of_2(rows), ELEMENTS // padded))
    gradient = torch.empty_like(q_values)
    _cql_gradient[(members * triton.cdiv(rows, at_once),)](
        gradient, q_values, targets, pairs.weights, pairs.row_weights, alpha, rows, slope(td_loss), actions, padded,
        at_once)
    return gradient


def adam(parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
         learning_rate: Tensor, number: Tensor) -> None:
    for tensors in zip(parameters, gradients, first_moments, second_moments):
        count = tensors[0].numel()
        _adam[(triton.cdiv(count, ELEMENTS),)](*tensors, learning_rate, number, count, *ADAM_NUMBERS, ELEMENTS)


def sum_by_pair(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    batch, pairs = index.shape[-1], shape[-2] * shape[-1]
    if batch > LARGEST_BATCH:
        return PYTORCH.sum_by_pair(values, index, shape)
    sums, at_once = values.new_empty(shape), min(triton.next_power_of_2(pairs), ELEMENTS)
    _sum_by_pair[index.numel() // batch, triton.cdiv(pairs, at_once)](
        sums, values.contiguous(), index.contiguous(), batch, pairs, at_once)
    return sums


def try_on(device: torch.device) -> None:
    """Raises an error if the device cannot do this."""
    one = torch.zeros(1, 1, 1, device=device)
    layer = Layer(one, one, one, one, None, None, [one, one], [one, one])
    delta_below(layer, one, one, one.clone())
    weight_step(layer, one, one, one, one)


FUSED = Steps(hidden_layer, last_layer, delta_below, weight_step, True, adam, cql_gradient, sum_by_pair)
