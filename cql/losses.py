"""The paper on one page: discrete CQL(H) and Behaviour Cloning as pure functions of tensors.

    L_m = mean_B (Q(s,a) - y)^2  +  alpha_m * mean_B [ logsumexp_a' Q(s,a') - Q(s,a) ]
    y   = r + gamma * (1 - terminated) * max_a' Q_target(s',a')

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, eq. 4. Two departures,
both in the formula above: the squared error carries no 1/2 (``td_loss="half_mse"`` is the paper's, and makes alpha mean
twice as much), and the backup is a plain max over a target network.

Axes: ``M`` members, ``B`` transitions, ``A`` actions; further axes may lead (``[T, M, B, A]`` is T updates at once).
Everything is averaged over ``B`` and never over ``M``. Two options serve batches in which observations come up again:

- ``weights [M, B]`` sum to one over ``B`` and replace the mean;
- ``actions=None`` makes every action of every row of ``q_values [M, R, A]`` an entry of the batch: weights and targets are
  ``[M, A, R]``. With the share of each pair in the batch (0 for those not in it) and the mean target of its outcomes this is
  the squared loss over the transitions, up to the spread of their targets around these means, in which Q does not occur.
  No such mean exists for the Huber loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TD_LOSSES = ("mse", "half_mse", "huber")


class CQLTerms(NamedTuple):
    """The parts of the objective, each ``[M]``: ``total = td + alpha * gap``."""

    td: Tensor
    gap: Tensor
    total: Tensor


def td_target(rewards: Tensor, terminations: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """``y = r + gamma (1 - terminated) max_a' Q_target(s',a')``, all ``[M, B]``.

    ``terminations`` masks the bootstrap; a truncated step is not terminated and does bootstrap.
    """
    _same_shape(rewards, terminations, next_values)
    return rewards + gamma * torch.where(terminations, 0.0, next_values)


def td_error(q_taken: Tensor, targets: Tensor, td_loss: str = "mse") -> Tensor:
    """The loss of one TD residual ``Q(s,a) - y``, elementwise ``[M, B]``. ``huber`` has its knee at 1."""
    _same_shape(q_taken, targets)
    residual = q_taken - targets
    if td_loss == "mse":
        return residual**2
    if td_loss == "half_mse":
        return 0.5 * residual**2
    if td_loss == "huber":
        return torch.where(residual.abs() <= 1, 0.5 * residual**2, residual.abs() - 0.5)
    raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, not {td_loss!r}.")


def td_error_slope(q_taken: Tensor, targets: Tensor, td_loss: str = "mse") -> Tensor:
    """``td'``: the derivative of ``td_error`` with respect to Q(s,a), elementwise ``[M, B]``."""
    _same_shape(q_taken, targets)
    residual = q_taken - targets
    if td_loss == "mse":
        return 2 * residual
    if td_loss == "half_mse":
        return residual
    if td_loss == "huber":
        return residual.clamp(-1, 1)
    raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, not {td_loss!r}.")


def conservative_gap(q_values: Tensor, actions: Tensor | None) -> Tensor:
    """``logsumexp_a' Q(s,a') - Q(s,a)``, elementwise: ``[M, B, A], [M, B] -> [M, B]``.

    It is ``-log softmax(Q)[a]``: the cross-entropy of Behaviour Cloning with Q as logits, never negative.
    """
    log_normaliser = q_values.logsumexp(-1)  # [M, R]
    if actions is None:
        return log_normaliser[..., None, :] - q_values.mT  # [M, A, R]
    return log_normaliser - taken(q_values, actions)


def cql_loss(q_values: Tensor, actions: Tensor | None, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
             weights: Tensor | None = None) -> CQLTerms:
    """The CQL(H) objective, term by term.

    Args:
        q_values: Q(s, .) of the logged states ``[M, B, A]``.
        actions: the logged actions ``[M, B]``, integers, or None.
        targets: ``td_target`` of the same transitions ``[M, B]``; no gradient flows through it.
        alpha: the weight of the penalty ``[M]``, or of each update ``[T, M]``.
        td_loss: ``mse`` | ``half_mse`` | ``huber``.
        weights: see the top of the page, as for ``actions=None``.
    """
    axes = _batch_axes(actions)
    td = batch_mean(td_error(taken(q_values, actions), targets, td_loss), weights, axes)  # [M]
    gap = batch_mean(conservative_gap(q_values, actions), weights, axes)  # [M]
    assert alpha.shape in (td.shape, td.shape[-1:]), (alpha.shape, td.shape)
    return CQLTerms(td, gap, td + alpha * gap)


def cql_gradient(q_values: Tensor, actions: Tensor | None, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
                 weights: Tensor | None = None) -> Tensor:
    """``d total / d Q`` in closed form, shaped as ``q_values``: ``[ td'(Q - y) 1_a + alpha (softmax Q - 1_a) ] / B``."""
    slope = td_error_slope(taken(q_values, actions), targets, td_loss)  # [M, B]
    assert alpha.shape == slope.shape[:1], (alpha.shape, slope.shape)
    alpha, weights = alpha.view(-1, *[1] * (slope.ndim - 1)), _weights(weights, targets)
    return _gradient(q_values, actions, alpha * weights, (slope - alpha) * weights)


def bc_loss(logits: Tensor, actions: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Behaviour Cloning: the mean cross-entropy of the logged actions, ``[M, B, A], [M, B] -> [M]``."""
    return batch_mean(conservative_gap(logits, actions), weights, _batch_axes(actions))


def bc_gradient(logits: Tensor, actions: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """``d bc_loss / d logits`` in closed form, shaped as ``logits``: ``(softmax - 1_a) / B``."""
    weights = _weights(weights, taken(logits, actions))
    return _gradient(logits, actions, weights, -weights)


def taken(q_values: Tensor, actions: Tensor | None) -> Tensor:
    """``Q(s, a)`` at the logged action: ``[M, B, A], [M, B] -> [M, B]``."""
    if actions is None:
        return q_values.mT  # [M, A, R]
    _same_shape(q_values[..., 0], actions)
    return q_values.gather(-1, actions[..., None]).squeeze(-1)


def batch_mean(values: Tensor, weights: Tensor | None, axes: int | tuple[int, int] = -1) -> Tensor:
    """Mean over the batch of each member, or the weighted sum: ``[M, B] -> [M]``; of pairs, over ``axes`` (-2, -1)."""
    assert values.ndim >= 2, values.shape
    if weights is None:
        return values.mean(axes)
    _same_shape(values, weights)
    return (values * weights).sum(axes)


def _batch_axes(actions: Tensor | None) -> int | tuple[int, int]:
    return (-2, -1) if actions is None else -1


def _weights(weights: Tensor | None, like: Tensor) -> Tensor:
    """``[M, B]``."""
    if weights is None:
        return like.new_full((1, 1), 1 / like.shape[-1]).expand(like.shape)
    _same_shape(like, weights)
    return weights


def _gradient(q_values: Tensor, actions: Tensor | None, penalty: Tensor, at_taken: Tensor) -> Tensor:
    """``sum_B [ penalty softmax Q + at_taken 1_a ]``, the shares in the batch being in the two: ``[M, R, A]``."""
    p = q_values.mT.softmax(-2)  # [M, A, R]: fastest where the axis summed over is not the innermost
    if actions is None:
        return p.mul_(penalty.sum(-2, keepdim=True)).add_(at_taken).mT
    return p.mul_(penalty[..., None, :]).scatter_add_(-2, actions[..., None, :], at_taken[..., None, :]).mT


def _same_shape(first: Tensor, *others: Tensor) -> None:
    for other in others:  # silent broadcasting is the enemy: [M] against [M, B] would train, and train wrongly
        assert other.shape == first.shape, (first.shape, other.shape)
