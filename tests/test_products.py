"""oneDNN's products, and those made as their transpose, against torch.bmm in float64."""

import pytest
import torch

from cql import products
from cql.networks import PopulationMLP
from cql.products import Matrices

ONEDNN = pytest.mark.skipif(products._onednn is None, reason="PyTorch without oneDNN")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counted(monkeypatch):
    calls, onednn = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: calls.append(args) or onednn(*args))
    return calls


def close(made, exact, inner):
    """Within a rounding error of sums of ``inner`` products of standard normal numbers."""
    assert (made.double() - exact).abs().max() < 2e-6 * inner**0.5 * 4


@ONEDNN
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("relu", [False, True])
def test_linear(members, relu, monkeypatch):
    calls = counted(monkeypatch)
    x, w, b = random(members, 64, 128), random(members, 160, 128, seed=1), random(members, 1, 160, seed=2)
    out = Matrices(torch.full((members, 64, 160), torch.nan))
    assert products.linear(Matrices(x), Matrices(w), Matrices(b), relu, out) is out and len(calls) == members
    exact = torch.baddbmm(b.double(), x.double(), w.double().mT)
    close(out.whole, exact.relu() if relu else exact, 128)


@ONEDNN
def test_what_is_not_a_number_stays_none():
    x, w = random(1, 64, 128), random(1, 160, 128, seed=1)
    w[0, 3] = torch.nan
    out = Matrices(torch.zeros(1, 64, 160))
    products.linear(Matrices(x), Matrices(w), Matrices(torch.zeros(1, 1, 160)), True, out)
    assert out.whole[..., 3].isnan().all() and out.whole.isfinite().sum() == 64 * 159


@ONEDNN
@pytest.mark.parametrize("transposed", [False, True])  # views as the backward pass hands them over
@pytest.mark.parametrize("members", [1, 3])
def test_product(members, transposed, monkeypatch):
    calls = counted(monkeypatch)
    left = random(members, 100, 128).mT.contiguous().mT if transposed else random(members, 100, 128)
    right = random(members, 128, 96, seed=1)
    out = Matrices(torch.full((members, 100, 96), torch.nan))
    products.product(Matrices(left), Matrices(right), out)
    assert len(calls) == members
    close(out.whole, left.double() @ right.double(), 128)


@pytest.mark.parametrize("rows, inner, columns, dtype", [(256, 64, 2, torch.float32), (4, 64, 2, torch.float32),
                                                         (10, 10, 10, torch.float32), (128, 128, 128, torch.float64)])
def test_products_that_are_small_thin_or_not_float32_are_pytorchs(rows, inner, columns, dtype, monkeypatch):
    calls = counted(monkeypatch)
    left, right = random(2, rows, inner).to(dtype), random(2, inner, columns, seed=1).to(dtype)
    out = Matrices(torch.full((2, rows, columns), torch.nan, dtype=dtype))
    products.product(Matrices(left), Matrices(right), out)
    assert not calls
    close(out.whole, left.double() @ right.double(), inner)


@ONEDNN
def test_a_wide_network_with_and_without_onednn(monkeypatch):
    network = PopulationMLP(2, 4, (128, 128), discrete=False)
    flat, x = network.initial([1, 2]), random(2, 80, 2)

    def gradient():
        room = [Matrices(torch.empty(2, 80, width)) for width in network.hidden]
        out = [*[Matrices(torch.empty(2, 80, width)) for width in network.hidden], Matrices(torch.empty(2, 4, 80).mT)]
        made, layers = torch.empty_like(flat), network.layers(flat)
        outputs = network.forward(layers, x, out)
        network.backward(layers, x, outputs, random(2, 80, 4, seed=3), network.layers(made), room)
        return outputs[-1].whole.clone(), made
    calls = counted(monkeypatch)
    with_onednn = gradient()
    assert len(calls) == 2 * 3  # of each member forward and both gradients
    monkeypatch.setattr(products, "_onednn", None)
    for mine, theirs in zip(with_onednn, gradient()):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
