"""Triton's kernels against PyTorch's steps: on a CUDA device, or by Triton's interpreter where Triton is installed."""

import pytest
import torch

pytest.importorskip("triton")

from cql.engine import kernels  # noqa: E402
from cql.engine.pairs import pairs_of, sum_by_pair  # noqa: E402
from cql.engine.passes import steps_on  # noqa: E402
from cql.engine.steps import PYTORCH, Layer  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # there interpreted: tests/conftest.py
SIZES = [(1, 201, 64), (3, 16, 12), (2, 70, 33), (5, 1, 1)]  # members, rows, width


def numbers(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5).to(DEVICE)


@pytest.mark.parametrize("members, rows, width", SIZES)
def test_hidden_layer(members, rows, width):
    weight, bias, below = numbers(members, width, 7), numbers(members, 1, width), numbers(members, rows, 7)
    layer = Layer(weight, weight.mT, bias, bias.mT, *(bias,) * 3)
    ours, expected = (torch.full((members, rows, width), torch.nan, device=DEVICE) for _ in range(2))
    kernels.hidden_layer(layer, below, ours)
    PYTORCH.hidden_layer(layer, below, expected)
    torch.testing.assert_close(ours, expected)
    assert (ours == 0).any() or width == 1


@pytest.mark.parametrize("members, rows, width", SIZES)
def test_relu_backward(members, rows, width):
    output, given = numbers(members, rows, width).relu(), numbers(rows, members, width).transpose(0, 1).contiguous()
    found = []
    for steps in (kernels, PYTORCH):
        delta, bias_gradient = given.clone(), torch.full((members, 1, width), torch.nan, device=DEVICE)
        steps.relu_backward(delta, output, bias_gradient)
        found += [delta, bias_gradient]
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


@pytest.mark.parametrize("td_loss", ["mse", "half_mse"])
@pytest.mark.parametrize("rows, actions", [(201, 4), (16, 3), (1, 1), (40, 25), (2500, 2)])
def test_cql_gradient(rows, actions, td_loss):
    members, generator = 2, torch.Generator().manual_seed(rows)
    drawn, taken = (torch.randint(0, most, (members, 64), generator=generator).to(DEVICE) for most in (rows, actions))
    pairs = pairs_of(drawn, taken, torch.full((members, 64), 1 / 64, device=DEVICE), rows, actions, sum_by_pair)
    q_values, targets = 100 * numbers(members, actions, rows), 100 * numbers(members, actions, rows)
    alpha = torch.tensor([0.5, 6.0], device=DEVICE)
    found = []
    for steps in (kernels, PYTORCH):
        sums = torch.full((members, actions, 1), torch.nan, device=DEVICE)
        found += [steps.cql_gradient(pairs, q_values, targets, alpha, td_loss, sums), sums]
        assert torch.equal(steps.cql_gradient(pairs, q_values, targets, alpha, td_loss, None), found[-2])
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 1000, 80_000])
def test_adam_is_the_formula_in_float64(number):
    shapes = [(3, 40, 25), (3, 1, 25), (1,)]
    rate, n = torch.tensor(1e-2, device=DEVICE), torch.tensor(float(number), device=DEVICE)
    tensors = [[scale * numbers(k, *shape)[0] for shape in shapes] for k, scale in ((1, 1.0), (2, 5.0), (3, 2.0))]
    tensors.append([numbers(4, *shape)[0].square() for shape in shapes])
    p, g, m, v = ([tensor.double() for tensor in group] for group in tensors)
    first = [0.9 * a + 0.1 * b for a, b in zip(m, g)]
    second = [0.999 * a + 0.001 * b * b for a, b in zip(v, g)]
    moved = [a - 0.01 / (1 - 0.9**number) * b / ((c / (1 - 0.999**number)).sqrt() + 1e-8)
             for a, b, c in zip(p, first, second)]
    kernels.adam(*tensors, rate, n)
    for found, expected in zip((tensors[0], tensors[2], tensors[3]), (moved, first, second)):
        torch.testing.assert_close([tensor.double() for tensor in found], expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("batch, actions, rows", [(64, 4, 64), (7, 3, 500), (512, 2, 33), (600, 4, 9), (1, 1, 1)])
def test_sum_by_pair(batch, actions, rows):
    generator = torch.Generator().manual_seed(batch)
    index = torch.randint(0, actions * rows, (2, 3, batch), generator=generator).to(DEVICE)
    values, shape = numbers(2, 3, batch), (2, 3, actions, rows)
    torch.testing.assert_close(kernels.sum_by_pair(values, index, shape), sum_by_pair(values, index, shape))
    one = torch.full((1, 1, 1), 1 / batch, device=DEVICE).expand(index.shape)
    torch.testing.assert_close(kernels.sum_by_pair(one, index, shape), sum_by_pair(one, index, shape))


def test_what_is_not_a_number_stays_so():
    nothing = torch.full((1, 4, 8), torch.nan, device=DEVICE)
    layer = Layer(*(torch.zeros(1, 8, 8, device=DEVICE),) * 2, *(torch.zeros(1, 1, 8, device=DEVICE),) * 5)
    above = torch.empty_like(nothing)
    kernels.hidden_layer(layer, nothing, above)
    assert above.isnan().all()
    delta, bias_gradient = nothing.clone(), torch.zeros(1, 1, 8, device=DEVICE)
    kernels.relu_backward(delta, torch.ones_like(delta), bias_gradient)
    assert delta.isnan().all() and bias_gradient.isnan().all()


def test_the_same_bits_again():
    found = []
    for _ in range(3):
        delta, bias_gradient = numbers(4, 500, 64), torch.empty(4, 1, 64, device=DEVICE)
        kernels.relu_backward(delta, numbers(4, 64, 500).mT.contiguous(), bias_gradient)
        found.append(bias_gradient)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_a_cuda_device_uses_them():
    assert steps_on(DEVICE) is kernels.FUSED and steps_on(torch.device("cpu")) is PYTORCH
