"""Matrix products of a population, the large ones on a CPU by oneDNN.

PyTorch multiplies float32 matrices on x86 through MKL, whose AVX-512 kernels run on Intel processors only; oneDNN's run on
every processor that has the instructions, and reach it in PyTorch through the operator that compiled models call for a
linear layer. It takes one member at a time and costs about 12 us more to call than ``torch.bmm``, which serves small
products, every other device and data type, and autograd. ``tests/test_products.py`` holds one against the other.

Two other precisions are for those who ask for them. TF32 is a setting of CUDA's products. On a CPU PyTorch has a like setting for
bfloat16, which does something on processors with AMX only; so operands are rounded here, and every processor gives the same.
"""

from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

PRECISIONS = ("float32", "tf32", "bfloat16")
LARGE = 2**20  # multiply-adds of one member's product from which oneDNN is called: about where the two take equally long
THIN = 8  # columns: a result with so few is faster made as its transpose, see `product`

_onednn = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


class Matrices:
    """``[M, n, k]``, a matrix per member. Views of it are made once, when first asked for: each costs as much as a small sum.

    Args:
        bfloat16: whether products that have it as their right side, or make it, multiply in bfloat16.
    """

    def __init__(self, whole: Tensor, bfloat16: bool = False):
        self.whole, self.bfloat16 = whole, bfloat16

    @cached_property
    def mT(self) -> "Matrices":
        return Matrices(self.whole.mT, self.bfloat16)

    @cached_property
    def each(self) -> tuple[Tensor, ...]:
        return self.whole.unbind()

    @cached_property
    def onednn_takes_it(self) -> bool:
        whole = self.whole
        return _onednn is not None and whole.device.type == "cpu" and whole.dtype == torch.float32 and not whole.requires_grad


def matrices(tensor: Tensor | Matrices) -> Matrices:
    return tensor if isinstance(tensor, Matrices) else Matrices(tensor)


def linear(inputs: Matrices, weight: Matrices, bias: Matrices, relu: bool, out: Matrices | None = None) -> Matrices:
    """``inputs weight^T + bias``, and no value below 0 if ``relu``: ``[M, B, i], [M, o, i], [M, 1, o] -> [M, B, o]``."""
    if out is not None and weight.bfloat16:
        torch.add(_in_bfloat16(inputs, weight.mT), bias.whole, out=out.whole)
        if relu:
            out.whole.relu_()
        return out
    if out is not None and _large(inputs, weight):
        for x, w, b, y in zip(inputs.each, weight.each, bias.each, out.each):
            y.copy_(_onednn(x, w, b[0], "none", [], ""))
        if relu:  # oneDNN's own would turn NaN into 0, and a diverged member's loss into a number
            out.whole.relu_()
        return out
    product = torch.baddbmm(bias.whole, inputs.whole, weight.mT.whole, out=None if out is None else out.whole)
    product = product.relu_() if relu else product
    return Matrices(product) if out is None else out


def product(left: Matrices, right: Matrices, out: Matrices) -> None:
    """Writes ``left right``: ``[M, n, k], [M, k, m] -> [M, n, m]``."""
    if right.bfloat16 or out.bfloat16:
        out.whole.copy_(_in_bfloat16(left, right))
    elif _large(left, right):
        for x, w, y in zip(left.each, right.mT.each, out.each):
            y.copy_(_onednn(x, w, None, "none", [], ""))
    elif right.whole.shape[2] < THIN < left.whole.shape[1]:
        out.mT.whole.copy_(torch.bmm(right.mT.whole, left.mT.whole))
    else:
        torch.bmm(left.whole, right.whole, out=out.whole)


@contextmanager
def tf32(on: bool):
    """Within it products on CUDA multiply in TF32, or in float32; afterwards as they did before."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _in_bfloat16(left: Matrices, right: Matrices) -> Tensor:
    """Operands rounded to bfloat16, their products summed in float32, the sums rounded to bfloat16, which the result is."""
    return torch.bmm(left.whole.bfloat16(), right.whole.bfloat16())


def _large(left: Matrices, right: Matrices) -> bool:
    _, rows, inner = left.whole.shape
    return rows * right.whole.numel() >= LARGE * right.whole.shape[0] and left.onednn_takes_it and right.onednn_takes_it
