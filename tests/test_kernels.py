"""Triton's kernels against PyTorch's steps: on a CUDA device, or by Triton's interpreter where Triton is installed."""

import pytest
import torch

pytest.importorskip("triton")

from cql.engine import kernels  # noqa: E402
from cql.engine.pairs import pairs_of, sum_by_pair  # noqa: E402
from cql.engine.passes import Passes, steps_on  # noqa: E402
from cql.engine.steps import PYTORCH, Layer  # noqa: E402
from cql.network import PopulationMLP  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # there interpreted: tests/conftest.py
SIZES = [(1, 70, 40, 33), (3, 16, 2, 70), (2, 70, 33, 5), (7, 5, 4, 3), (5, 1, 1, 1)]
# members, rows, inputs, outputs


@pytest.fixture(autouse=True)
def both_kinds_of_tiles(monkeypatch):
    """With more programs the tiles of all SIZES would be small, as they are for one member."""
    monkeypatch.setattr(kernels, "PROGRAMS", 4)


def numbers(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5).to(DEVICE)


def layer_of(members, inputs, outputs):
    weight, bias = numbers(members, outputs, inputs), numbers(members, 1, outputs)
    moments = [numbers(k, *tensor.shape)[0].abs() for tensor in (weight, bias) for k in (2, 3)]
    nothing = [torch.full_like(tensor, torch.nan) for tensor in (weight, bias)]
    return Layer(weight, weight.mT, bias, bias.mT, *nothing, moments[:2], moments[2:])


def by_both(shape, work):
    """What ``work(steps, memory)`` writes, by the kernels and by PyTorch."""
    found = []
    for steps in (kernels.FUSED, PYTORCH):
        found.append(torch.full(shape, torch.nan, device=DEVICE))
        work(steps, found[-1])
    torch.testing.assert_close(*found)
    return found[0]


@pytest.mark.parametrize("members, rows, inputs, outputs", SIZES)
def test_layers(members, rows, inputs, outputs):
    layer, below = layer_of(members, inputs, outputs), numbers(1, rows, inputs).expand(members, -1, -1)
    above = by_both((members, rows, outputs), lambda steps, memory: steps.hidden_layer(layer, below, memory))
    assert (above == 0).any() or rows == 1
    outputs = by_both((members, outputs, rows), lambda steps, memory: steps.last_layer(layer, below, memory))
    torch.testing.assert_close(outputs.mT.relu(), above)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("members, rows, inputs, outputs", SIZES)
def test_deltas(members, rows, inputs, outputs, last):
    layer, below = layer_of(members, inputs, outputs), numbers(members, rows, inputs).relu()
    delta = numbers(members, outputs, rows).mT if last else numbers(members, rows, outputs)
    by_both(below.shape, lambda steps, memory: steps.delta_below(layer, delta, below, memory))
    by_both(below.shape, lambda steps, memory: steps.delta_below(layer, delta, None, memory))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("members, rows, inputs, outputs", SIZES)
def test_the_step_of_a_layer_is_adams_with_its_gradient(members, rows, inputs, outputs, last):
    below = numbers(1, rows, inputs).expand(members, -1, -1)
    delta = numbers(members, outputs, rows).mT if last else numbers(members, rows, outputs)
    rate, number = torch.tensor(1e-2, device=DEVICE), torch.tensor(7.0, device=DEVICE)
    layer, expected = layer_of(members, inputs, outputs), layer_of(members, inputs, outputs)
    kernels.weight_step(layer, delta, below, rate, number)
    PYTORCH.weight_step(expected, delta, below, rate, number)
    first, second = zip(expected.weight_moments, expected.bias_moments)
    PYTORCH.adam([expected.weight, expected.bias], [expected.weight_gradient, expected.bias_gradient], list(first),
                 list(second), rate, number)
    torch.testing.assert_close(stepped(layer), stepped(expected), rtol=1e-5, atol=1e-6)


def stepped(layer):
    return [layer.weight, layer.bias, *layer.weight_moments, *layer.bias_moments]


@pytest.mark.parametrize("network", [PopulationMLP(9, 3, (20, 6), True), PopulationMLP(2, 3, (20,), False),
                                     PopulationMLP(9, 3, (), True)], ids=str)
def test_updates_are_those_of_pytorchs_steps(network):
    x = numbers(2, 5, 2) if not network.discrete else torch.tensor([[0, 3, 3, 8, 1], [2, 2, 0, 4, 7]], device=DEVICE)
    inputs = x + 9 * torch.arange(2, device=DEVICE)[:, None] if network.discrete else x
    found = []
    for steps in (kernels.FUSED, PYTORCH):
        state = [[tensor.to(DEVICE) for tensor in network.initial([1, 2])]]
        state += [[torch.zeros_like(tensor) for tensor in state[0]] for _ in range(2)]
        passes, q_values = Passes(network, *state, 5, steps), torch.empty(2, 3, 5, device=DEVICE)
        for number in (1.0, 2.0, 3.0):
            passes.forward(inputs, q_values)
            passes.step(q_values.sin(), None, *torch.tensor([0.01, number], device=DEVICE))
        found.append([q_values, *sum(state, [])])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_products_are_as_exact_as_those_of_float32_units():
    layer, below = layer_of(16, 256, 256), numbers(16, 64, 256)
    exact = (below.double() @ layer.weight.double().mT).mT + layer.bias.double().mT
    errors = []
    for steps in (kernels.FUSED, PYTORCH):
        found = torch.empty(16, 256, 64, device=DEVICE)
        steps.last_layer(layer, below, found)
        errors.append(float((found - exact).abs().max() / exact.abs().max()))
    assert errors[0] <= errors[1] < 1e-6


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
        found.append(steps.cql_gradient(pairs, q_values, targets, alpha, td_loss))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


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
    generator, lines = torch.Generator().manual_seed(batch), (2, 3) if batch < 512 else (1, 1)
    index = torch.randint(0, actions * rows, (*lines, batch), generator=generator).to(DEVICE)
    values, shape = numbers(*lines, batch), (*lines, actions, rows)
    torch.testing.assert_close(kernels.sum_by_pair(values, index, shape), sum_by_pair(values, index, shape))
    one = torch.full((1, 1, 1), 1 / batch, device=DEVICE).expand(index.shape)
    torch.testing.assert_close(kernels.sum_by_pair(one, index, shape), sum_by_pair(one, index, shape))


def test_what_is_not_a_number_stays_so():
    nothing, layer = torch.full((1, 4, 8), torch.nan, device=DEVICE), layer_of(1, 8, 8)
    above, delta = torch.empty_like(nothing), torch.empty_like(nothing)
    kernels.hidden_layer(layer, nothing, above)
    assert above.isnan().all()
    kernels.delta_below(layer, nothing, torch.ones_like(delta), delta)
    assert delta.isnan().all()
    kernels.delta_below(layer, torch.ones_like(delta), nothing, delta)
    assert not delta.isnan().any()  # as PyTorch's ReLU
    kernels.weight_step(layer, nothing, torch.ones_like(nothing), *torch.ones(2, device=DEVICE))
    assert all(tensor.isnan().all() for tensor in stepped(layer))


def test_the_same_bits_again():
    found = []
    for _ in range(3):
        layer = layer_of(4, 33, 64)
        kernels.weight_step(layer, numbers(4, 100, 64), numbers(4, 100, 33), *torch.ones(2, device=DEVICE))
        found.append(stepped(layer))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found))


def test_tiles_cover_the_matrix():
    for members, rows, columns, depth in [(1, 201, 64, 64), (1024, 64, 256, 256), (1024, 64, 4, 256), (1, 1, 1, 1)]:
        (programs,), at_rows, at_columns, terms = kernels.tiles(members, rows, columns, 64, 128, depth)
        assert programs == members * -(-rows // at_rows) * -(-columns // at_columns) and 16 <= terms <= 64
        assert 16 <= at_rows <= 64 and 16 <= at_columns <= 128


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_a_cuda_device_uses_them():
    assert steps_on(DEVICE) is kernels.FUSED and steps_on(torch.device("cpu")) is PYTORCH
