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
    _same_shape(actions, targets, actions if weights is None else weights)
    _same_shape(actions[:, 0], alpha)
    one_hot = torch.zeros_like(q_values).scatter(-1, actions[..., None], 1.0)  # 1_a
    errors = (q_taken(q_values, actions) - targets)[..., None]  # [M, B, 1]
    slopes = {"mse": 2 * errors, "half_mse": errors, "huber": errors.clamp(-1, 1)}[td_loss]  # td'
    given = penalty in ("push-down", "mu")
    p = action_weights if given else _weighted(q_values, temperature, action_weights).softmax(-1)
    pulled_up = 0.0 if penalty == "push-down" else one_hot
    gradient = slopes * one_hot + alpha[:, None, None] * (p - pulled_up)
    return gradient / actions.shape[-1] if weights is None else gradient * weights[..., None]


def _same_shape(first: Tensor, *others: Tensor) -> None:  # silent broadcasting would train, and train wrongly
    assert all(other.shape == first.shape for other in others), [first.shape, *(other.shape for other in others)]


def _weighted(q_values: Tensor, temperature: float, action_weights: Tensor | None) -> Tensor:
    """``Q / tau + log w``: its softmax is the gradient of ``tau log sum_a w exp(Q / tau)``."""
    scaled = q_values / temperature
    return scaled if action_weights is None else scaled + action_weights.log()
