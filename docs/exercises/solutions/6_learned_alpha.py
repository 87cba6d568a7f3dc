"""6. A learned α. Write one step of dual ascent, in place: log α rises by rate times (penalty − threshold), the
difference being clipped to ±1.

Mark it with: python -m cql exercise FILE
"""

import torch
from torch import Tensor

from cql.losses import LARGEST_ALPHA


def dual_ascent(alpha: Tensor, penalty: Tensor, threshold: float, rate: float | Tensor) -> None:
    """Multiplies alpha ``[M]``, in place, by exp(rate (penalty - threshold)), the difference being clipped to ±1.

    The paper's Lagrange form: min over Q, max over alpha >= 0 of td + alpha (penalty - threshold).
    """
    assert alpha.shape == penalty.shape, (alpha.shape, penalty.shape)
    alpha.mul_(torch.exp(rate * (penalty - threshold).clamp(-1, 1))).clamp_(1 / LARGEST_ALPHA, LARGEST_ALPHA)
