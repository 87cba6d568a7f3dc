"""The paper on one page: the losses of discrete CQL and Behaviour Cloning as pure functions of tensors.

    L_m = mean_B (Q(s,a) - y)^2  +  alpha_m * mean_B [ logsumexp_a' Q(s,a') - Q(s,a) ]
    y   = r + gamma * (1 - terminated) * max_a' Q_target(s',a')

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, eq. 4, CQL(H), but
for two things: the squared error has no 1/2 (``td_loss="half_mse"`` is the paper's, and doubles the effect of alpha),
and the backup is a plain max over a target network. The paper's other objectives have another penalty in the brackets:

    logsumexp    tau log sum_a' exp(Q(s,a') / tau) - Q(s,a)    CQL(H), tau = 1
    rho          log sum_a' rho(a'|s) exp Q(s,a') - Q(s,a)     CQL(rho), rho the frequencies of the logged actions
    previous     log sum_a' rho(a'|s) exp Q(s,a') - Q(s,a)     CQL(rho), rho = softmax Q_target
    push-down    sum_a' mu(a'|s) Q(s,a')                       eq. 1, mu a given policy
    mu           sum_a' mu(a'|s) Q(s,a') - Q(s,a)              eq. 2, mu a given policy

and for the last two the target has the mean over a given policy in the place of the max. Axes: ``M`` members, ``B``
transitions, ``A`` actions. Losses are means over ``B``; ``weights [M, B]``, which sum to one over ``B``, replace them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TD_LOSSES = ("mse", "half_mse", "huber")
PENALTIES = ("logsumexp", "rho", "previous", "push-down", "mu")
LARGEST_ALPHA = 1e18  # above this, Adam's second moment overflows float32


class Objective(NamedTuple):
    """The CQL objective that all members share (alpha is per member). A new term is a field that is off by default."""

    td_loss: str = "mse"  # of one TD error: mse, half_mse or huber
    penalty: str = "logsumexp"  # one of PENALTIES
    temperature: float = 1.0  # tau of logsumexp
    supported: bool = False  # whether the penalty, the target's max and the policy leave out OOD actions
    double_q: bool = False  # whether the online network chooses the next action
    gamma: float = 0.99  # discount factor
    reward_scale: float = 1.0  # C, by which rewards are divided before they come here (cql/scales.py)

    @property
    def is_cql_h(self) -> bool:
        """Whether this is the paper's CQL(H), with the target's max over all actions."""
        return self.solved_as_cql_h and not self.supported

    @property
    def solved_as_cql_h(self) -> bool:
        """Whether its exact solution, on the logged actions, is that of CQL(H)."""
        return (self.penalty, self.temperature) == ("logsumexp", 1.0)

    @property
    def follows_policy(self) -> bool:
        """Whether the target is that of a given policy, without a max."""
        return self.penalty in ("push-down", "mu")


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


def cql_loss(q_values: Tensor, actions: Tensor, targets: Tensor, alpha: Tensor, td_loss: str = "mse",
             penalty: str = "logsumexp", temperature: float = 1.0, action_weights: Tensor | None = None,
             weights: Tensor | None = None) -> CQLTerms:
    """The terms of the CQL objective, from Q ``[M, B, A]`` and the logged actions and their targets ``[M, B]``."""
    _same_shape(actions, targets)
    td = batch_mean(td_losses(q_taken(q_values, actions) - targets, td_loss), weights)  # [M]
    mean_penalty = batch_mean(conservative_penalty(q_values, actions, penalty, temperature, action_weights), weights)
    _same_shape(td, alpha)
    return CQLTerms(td, mean_penalty, td + alpha * mean_penalty)


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
