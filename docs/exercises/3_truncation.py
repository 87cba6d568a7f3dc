"""3. Truncation. As exercise 2, but you are told which episodes were cut off by the step limit (the project does not
need to know). Decide for each of the two flags whether the step bootstraps.

Mark it with: python -m cql exercise FILE
"""

import torch
from torch import Tensor


def td_target(rewards: Tensor, terminations: Tensor, truncations: Tensor, next_values: Tensor,
              gamma: float) -> Tensor:
    """The target ``y`` from the value of each s', all ``[M, B]``. A truncated step is not terminated: it bootstraps."""
    ...  # your lines
