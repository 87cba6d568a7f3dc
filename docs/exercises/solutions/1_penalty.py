"""1. The penalty. Write CQL(H)'s penalty of every transition: the logsumexp of Q over the actions minus Q of the
logged action. Only this penalty is asked for: leave the last three arguments alone.

Mark it with: python -m cql exercise FILE
"""

from torch import Tensor

from cql.losses import PENALTIES, q_taken


def conservative_penalty(q_values: Tensor, actions: Tensor, penalty: str = "logsumexp", temperature: float = 1.0,
                         action_weights: Tensor | None = None) -> Tensor:
    """The penalty of every transition ``[M, B]``; of CQL(H) it is ``-log softmax(Q)[a]``, the cross-entropy of BC.

    Args:
        action_weights: ``[M, B, A]``, the rho or mu of the penalty; for logsumexp the actions that count, 1 or 0.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"the penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}.")
    if penalty in ("push-down", "mu"):
        pushed_down = (action_weights * q_values).sum(-1)
    else:
        pushed_down = temperature * _weighted(q_values, temperature, action_weights).logsumexp(-1)
    return pushed_down if penalty == "push-down" else pushed_down - q_taken(q_values, actions)


def _weighted(q_values: Tensor, temperature: float, action_weights: Tensor | None) -> Tensor:
    """``Q / tau + log w``: its softmax is the gradient of ``tau log sum_a w exp(Q / tau)``."""
    scaled = q_values / temperature
    return scaled if action_weights is None else scaled + action_weights.log()
