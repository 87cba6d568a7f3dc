"""The paper on one page: discrete CQL(H) and Behaviour Cloning as pure functions of tensors.

    L_m = mean_B (Q(s,a) - y)^2  +  alpha_m * mean_B [ logsumexp_a' Q(s,a') - Q(s,a) ]
    y   = r + gamma * (1 - terminated) * max_a' Q_target(s',a')

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, eq. 4. Two departures,
both in the formula above: the squared error carries no 1/2 (``td_loss="half_mse"`` is the paper's, and makes alpha mean
twice as much), and the backup is a plain max over a target network.

Axes: ``M`` members, ``B`` batch, ``A`` actions; further axes may lead (``[T, M, B, A]`` is T updates at once). Everything is
averaged over ``B`` and never over ``M``. ``weights [M, B]``, where given, replace the mean by a weighted sum; they sum to
one over ``B``.
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
    """``d td_error / d Q(s,a)``, elementwise ``[M, B]``."""
    _same_shape(q_taken, targets)
    residual = q_taken - targets
    if td_loss == "mse":
        return 2 * residual
    if td_loss == "half_mse":
        return residual
    if td_loss == "huber":
        return residual.clamp(-1, 1)
    raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, not {td_loss!r}.")


def conservative_gap(q_values: Tensor, actions: Tensor) -> Tensor:
    """``logsumexp_a' Q(s,a') - Q(s,a)``, elementwise: ``[M, B, A], [M, B] -> [M, B]``.

    It is ``-log softmax(Q)[a]``: the cross-entropy of Behaviour Cloning with Q as logits, never negative.
    """
    return q_values.logsumexp(-1) - taken(q_values, actions)


def cql_loss(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
             weights: Tensor | None = None) -> CQLTerms:
    """The CQL(H) objective, term by term.

    Args:
        q_values: Q(s, .) of the logged states ``[M, B, A]``.
        actions: the logged actions ``[M, B]``, integers.
        targets: ``td_target`` of the same transitions ``[M, B]``; no gradient flows through it.
        alpha: the weight of the penalty ``[M]``.
        td_loss: ``mse`` | ``half_mse`` | ``huber``.
        weights: ``[M, B]``, summing to one over B; None is the plain mean.
    """
    td = batch_mean(td_error(taken(q_values, actions), targets, td_loss), weights)  # [M]
    gap = batch_mean(conservative_gap(q_values, actions), weights)  # [M]
    assert alpha.shape == td.shape[-1:], (alpha.shape, td.shape)
    return CQLTerms(td, gap, td + alpha * gap)


def cql_gradient(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
                 weights: Tensor | None = None) -> Tensor:
    """``d total / d Q(s, .)`` in closed form ``[M, B, A]``: ``[ td'(Q - y) 1_a + alpha (softmax Q - 1_a) ] / B``."""
    slope = td_error_slope(taken(q_values, actions), targets, td_loss)  # [M, B]
    alpha = alpha[:, None]
    gradient = q_values.softmax(-1).mul_(alpha[..., None])
    gradient.scatter_add_(-1, actions[..., None], (slope - alpha)[..., None])
    return _averaged(gradient, weights)


def bc_loss(logits: Tensor, actions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Behaviour Cloning: the mean cross-entropy of the logged actions, ``[M, B, A], [M, B] -> [M]``."""
    return batch_mean(conservative_gap(logits, actions), weights)


def bc_gradient(logits: Tensor, actions: Tensor, weights: Tensor | None = None) -> Tensor:
    """``d bc_loss / d logits`` in closed form ``[M, B, A]``: ``(softmax - 1_a) / B``."""
    gradient = logits.softmax(-1)
    gradient.scatter_add_(-1, actions[..., None], gradient.new_full((), -1.0).expand(*actions.shape, 1))
    return _averaged(gradient, weights)


def taken(q_values: Tensor, actions: Tensor) -> Tensor:
    """``Q(s, a)`` at the logged action: ``[M, B, A], [M, B] -> [M, B]``."""
    assert q_values.shape[:-1] == actions.shape, (q_values.shape, actions.shape)
    return q_values.gather(-1, actions[..., None]).squeeze(-1)


def batch_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the batch of each member, or the weighted sum: ``[M, B] -> [M]``."""
    assert values.ndim >= 2, values.shape
    if weights is None:
        return values.mean(-1)
    _same_shape(values, weights)
    return (values * weights).sum(-1)


def _averaged(gradient: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return gradient.div_(gradient.shape[-2])
    return gradient.mul_(weights[..., None])


def _same_shape(first: Tensor, *others: Tensor) -> None:
    for other in others:  # silent broadcasting is the enemy: [M] against [M, B] would train, and train wrongly
        assert other.shape == first.shape, (first.shape, other.shape)
