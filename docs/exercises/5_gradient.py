"""5. The gradient by hand. Write the derivative of the mean loss by Q, without autograd: [ 2 (Q − y) 1_a + α (softmax
Q − 1_a) ] times the transition's share of the batch, which is weights where they are given. Only td_loss mse and
the penalty logsumexp are asked for.

Mark it with: python -m cql exercise FILE
"""

import torch
from torch import Tensor

from cql.losses import q_taken


def cql_gradient(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
                 weights: Tensor | None = None, penalty: str = "logsumexp", temperature: float = 1.0,
                 action_weights: Tensor | None = None) -> Tensor:
    """``d total / d Q`` in closed form, ``[M, B, A]``: ``[ td'(Q - y) 1_a + alpha (p - 1_a) ] / B``.

    p: ``w exp(Q / tau) / sum w exp(Q / tau)``, softmax Q for CQL(H), or mu. Eq. 1 has no ``- 1_a`` in the penalty.
    """
    ...  # your lines
