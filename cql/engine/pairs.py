"""The losses of ``cql.losses`` as sums over the distinct (observation, action) pairs of a batch.

Transitions i of a batch have shares w_i, which sum to one, and targets y_i. A pair p = (action, row of the network's
input) has

    W_p = sum of w_i over its transitions          Y_p = (sum of w_i y_i over its transitions) / W_p

and for the squared loss (docs/math.md, section 2)

    sum_i w_i (Q_i - y_i)^2  =  sum_p W_p (Q_p - Y_p)^2  +  sum_i w_i (y_i - Y_p(i))^2.

The last sum, the variance of the targets within the pairs, does not depend on Q. So the gradient is that over the
transitions, and the loss is smaller by the variance. The penalty has no target: its sum over pairs is the one over
transitions. ``tests/test_pairs.py`` holds this against ``cql.losses``.

Q has the layout ``[M, A, R]``, action by action; wherever ``M`` stands, ``T, M`` may stand for the batches of T
updates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cql import losses


class Pairs(NamedTuple):
    """A batch of transitions as pairs."""

    pair_index: Tensor  # [M, B], the pair of each transition among the A * R
    shares: Tensor  # [M, B], w
    weights: Tensor  # [M, A, R], W; 0 for a pair that does not occur

    def targets(self, targets: Tensor, td_loss: str) -> tuple[Tensor, Tensor]:
        """From the targets of the transitions ``[M, B]``: Y ``[M, A, R]``, and the loss that Y leaves out ``[M]``."""
        sums = _sum_by_pair(self.shares * targets, self.pair_index, self.weights.shape)
        mean = sums / torch.where(self.weights > 0, self.weights, 1.0)
        errors = targets - mean.flatten(-2).gather(-1, self.pair_index)
        return mean, (self.shares * losses.td_losses(errors, td_loss)).sum(-1)

    def cql_gradient(self, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str) -> Tensor:
        """``losses.cql_gradient`` with W in the place of 1 / B: ``W [td'(Q - Y) - alpha] + alpha softmax(Q) sum_a
        W``."""
        slopes = (q_values - targets) * (2 if td_loss == "mse" else 1)  # td'
        alpha = alpha[:, None, None]
        row_weights = (alpha * self.weights).sum(-2, keepdim=True)
        return _softmax(q_values).mul_(row_weights).add_((slopes - alpha).mul_(self.weights))

    def bc_gradient(self, logits: Tensor) -> Tensor:
        """The gradient of ``losses.bc_loss``: ``softmax sum_a W - W``."""
        return _softmax(logits).mul_(self.weights.sum(-2, keepdim=True)).sub_(self.weights)

    def td(self, q_values: Tensor, targets: Tensor, td_loss: str) -> Tensor:
        """The TD loss without the variance of the targets, ``[M]``."""
        return (self.weights * losses.td_losses(q_values - targets, td_loss)).sum((-2, -1))

    def penalty(self, q_values: Tensor) -> Tensor:
        """The mean of ``losses.conservative_penalty``, ``[M]``: with logits in the place of Q that is
        ``losses.bc_loss``."""
        return (self.weights * (q_values.logsumexp(-2, keepdim=True) - q_values)).sum((-2, -1))

    def empty_targets(self) -> Tensor:
        """Memory for ``targets``."""
        return torch.zeros_like(self.weights)

    def of_update(self, t: int) -> "Pairs":
        """The pairs of one of T updates."""
        return Pairs(self.pair_index[t], self.shares[t], self.weights[t])

    def first_rows(self, rows: int) -> "Pairs":
        """The pairs without the rows from ``rows`` on, which no transition has; ``pair_index`` counts all rows."""
        return self._replace(weights=self.weights.narrow(-1, 0, rows))


class Single(NamedTuple):
    """A batch of transitions of equal share, each a row of the network's input of its own; methods as of ``Pairs``."""

    actions: Tensor  # [M, B]

    def targets(self, targets: Tensor, td_loss: str) -> tuple[Tensor, Tensor]:
        return targets, torch.zeros_like(targets[..., 0])

    def cql_gradient(self, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str) -> Tensor:
        return losses.cql_gradient(q_values.mT, self.actions, targets, alpha, td_loss).mT

    def bc_gradient(self, logits: Tensor) -> Tensor:
        one_hot = torch.zeros_like(logits).scatter_(-2, self.actions[..., None, :], 1.0)
        return _softmax(logits).sub_(one_hot).div_(self.actions.shape[-1])

    def td(self, q_values: Tensor, targets: Tensor, td_loss: str) -> Tensor:
        return losses.td_losses(losses.q_taken(q_values.mT, self.actions) - targets, td_loss).mean(-1)

    def penalty(self, q_values: Tensor) -> Tensor:
        return losses.conservative_penalty(q_values.mT, self.actions).mean(-1)

    def empty_targets(self) -> Tensor:
        return torch.zeros(self.actions.shape, device=self.actions.device)

    def of_update(self, t: int) -> "Single":
        return Single(self.actions[t])


Entries = Pairs | Single


def pairs_of(rows: Tensor, actions: Tensor, shares: Tensor, num_rows: int, num_actions: int) -> Pairs:
    """The pairs of transitions whose observations stand in ``rows`` of the network's input; all ``[M, B]``."""
    index = actions * num_rows + rows
    return Pairs(index, shares, _sum_by_pair(shares, index, (*rows.shape[:-1], num_actions, num_rows)))


def _sum_by_pair(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums over the transitions of each pair: ``[M, B] -> [M, A, R]``."""
    return values.new_zeros(shape).flatten(-2).scatter_add_(-1, index, values).view(shape)


def _softmax(q_values: Tensor) -> Tensor:
    return q_values.softmax(-2)  # over the actions
