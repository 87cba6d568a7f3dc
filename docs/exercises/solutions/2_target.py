"""2. The target. Write the target y = r + γ V(s') of every transition. A terminated step has no next state that is
worth anything.

Mark it with: python -m cql exercise FILE
"""

import torch
from torch import Tensor


def td_target(rewards: Tensor, terminations: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """The target ``y`` from the value of each s', all ``[M, B]``. A truncated step is not terminated: it bootstraps."""
    _same_shape(rewards, terminations, next_values)
    return rewards + gamma * torch.where(terminations, 0.0, next_values)


def _same_shape(first: Tensor, *others: Tensor) -> None:  # silent broadcasting would train, and train wrongly
    assert all(other.shape == first.shape for other in others), [first.shape, *(other.shape for other in others)]
