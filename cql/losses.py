"""The paper on one page: the losses of discrete CQL(H) and Behaviour Cloning as pure functions of tensors.

    L_m = mean_B (Q(s,a) - y)^2  +  alpha_m * mean_B [ logsumexp_a' Q(s,a') - Q(s,a) ]
    y   = r + gamma * (1 - terminated) * max_a' Q_target(s',a')

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, eq. 4, but for two
things: the squared error has no 1/2 (``td_loss="half_mse"`` is the paper's, and doubles the effect of alpha), and
the backup is a plain max over a target network. Axes: ``M`` members, ``B`` transitions, ``A`` actions. Losses are
means over ``B``, never over ``M``; ``weights [M, B]``, which sum to one over ``B``, replace the mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TD_LOSSES = ("mse", "half_mse", "huber")
LARGEST_ALPHA = 1e18  # above this, Adam's second moment overflows float32


class Objective(NamedTuple):
    """The CQL objective that all members share (alpha is per member). A new term is a field that is off by default."""

    td_loss: str = "mse"  # of one TD error: mse, half_mse or huber
    penalty: str = "logsumexp"  # the only one there is
    double_q: bool = False  # whether the online network chooses the next action
    gamma: float = 0.99  # discount factor

    @property
    def is_cql_h(self) -> bool:
        """Whether this is the paper's CQL(H), whose exact solution is known: further fields have their defaults."""
        return self == Objective(td_loss=self.td_loss, double_q=self.double_q, gamma=self.gamma)

    @property
    def loss_arguments(self) -> dict:
        """The fields that ``cql_loss`` takes, by name: all but those of the target."""
        return {name: value for name, value in self._asdict().items() if name not in ("double_q", "gamma")}


class CQLTerms(NamedTuple):
    td: Tensor  # [M]
    penalty: Tensor  # [M]
    total: Tensor  # [M], td + alpha * penalty


def td_target(rewards: Tensor, terminations: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """The target ``y`` from the value of each s', all ``[M, B]``. A truncated step is not terminated: it bootstraps."""
    _same_shape(rewards, terminations, next_values)
    return rewards + gamma * torch.where(terminations, 0.0, next_values)


def td_losses(errors: Tensor, td_loss: str = "mse") -> Tensor:
    """The loss of every TD error ``Q(s,a) - y``, elementwise. ``huber`` has its knee at 1."""
    if td_loss == "mse":
        return errors**2
    if td_loss == "half_mse":
        return 0.5 * errors**2
    if td_loss == "huber":
        return torch.where(errors.abs() <= 1, 0.5 * errors**2, errors.abs() - 0.5)
    raise ValueError(f"td_loss must be one of {', '.join(TD_LOSSES)}, not {td_loss!r}.")


def conservative_penalty(q_values: Tensor, actions: Tensor, penalty: str = "logsumexp") -> Tensor:
    """The penalty of every transition ``[M, B]``: ``-log softmax(Q)[a]``, the cross-entropy of BC with Q as logits."""
    if penalty == "logsumexp":
        return q_values.logsumexp(-1) - q_taken(q_values, actions)
    raise ValueError(f"the penalty must be logsumexp, not {penalty!r}.")


def cql_loss(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
             penalty: str = "logsumexp", weights: Tensor | None = None) -> CQLTerms:
    """The terms of the CQL objective, from Q ``[M, B, A]`` and the logged actions and their targets ``[M, B]``."""
    _same_shape(actions, targets)
    td = batch_mean(td_losses(q_taken(q_values, actions) - targets, td_loss), weights)  # [M]
    mean_penalty = batch_mean(conservative_penalty(q_values, actions, penalty), weights)  # [M]
    _same_shape(td, alpha)
    return CQLTerms(td, mean_penalty, td + alpha * mean_penalty)


def cql_gradient(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
                 weights: Tensor | None = None) -> Tensor:
    """``d total / d Q`` in closed form, ``[M, B, A]``: ``[ td'(Q - y) 1_a + alpha (softmax Q - 1_a) ] / B``."""
    _same_shape(actions, targets, actions if weights is None else weights)
    _same_shape(actions[:, 0], alpha)
    one_hot = torch.zeros_like(q_values).scatter(-1, actions[..., None], 1.0)  # 1_a
    errors = (q_taken(q_values, actions) - targets)[..., None]  # [M, B, 1]
    slopes = {"mse": 2 * errors, "half_mse": errors, "huber": errors.clamp(-1, 1)}[td_loss]  # td'
    gradient = slopes * one_hot + alpha[:, None, None] * (q_values.softmax(-1) - one_hot)
    return gradient / actions.shape[-1] if weights is None else gradient * weights[..., None]


def bc_loss(logits: Tensor, actions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Behaviour Cloning: the mean cross-entropy of the logged actions, ``[M, B, A], [M, B] -> [M]``."""
    return batch_mean(conservative_penalty(logits, actions), weights)


def q_taken(q_values: Tensor, actions: Tensor) -> Tensor:
    """``Q(s, a)`` at the logged action: ``[M, B, A], [M, B] -> [M, B]``."""
    _same_shape(q_values[..., 0], actions)
    return q_values.gather(-1, actions[..., None]).squeeze(-1)


def batch_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the batch of each member, or the weighted sum: ``[M, B] -> [M]``."""
    assert weights is None or weights.shape == values.shape
    return values.mean(-1) if weights is None else (values * weights).sum(-1)


def _same_shape(first: Tensor, *others: Tensor) -> None:  # silent broadcasting would train, and train wrongly
    assert all(other.shape == first.shape for other in others), [first.shape, *(other.shape for other in others)]
