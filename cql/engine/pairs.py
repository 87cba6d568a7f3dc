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

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cql import losses

SumByPair = Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]  # ``sum_by_pair``, as the device does it

class Pairs(NamedTuple):
    """A batch of transitions as pairs."""

    pair_index: Tensor  # [M, B], the pair of each transition among the A * R
    shares: Tensor  # [M, B], w
    weights: Tensor  # [M, A, R], W; 0 for a pair that does not occur
    row_weights: Tensor  # [M, 1, R], sum_a W

    def targets(self, targets: Tensor, td_loss: str, sum_by_pair: SumByPair) -> tuple[Tensor, Tensor]:
        """From the targets of the transitions ``[M, B]``: Y ``[M, A, R]``, and the loss that Y leaves out ``[M]``."""
        sums = sum_by_pair(self.shares * targets, self.pair_index, self.weights.shape)
        mean = sums / torch.where(self.weights > 0, self.weights, 1.0)
        errors = targets - mean.flatten(-2).gather(-1, self.pair_index)
        return mean, (self.shares * losses.td_losses(errors, td_loss)).sum(-1)

    def cql_gradient(self, q_values: Tensor, targets: Tensor, alpha: Tensor, td_loss: str) -> Tensor:
        """``losses.cql_gradient`` with W in the place of 1 / B: ``W [td'(Q - Y) - alpha] + alpha softmax(Q) sum_a
        W``."""
        alpha = alpha[:, None, None]
        slopes = torch.add(-alpha, q_values - targets, alpha=slope(td_loss))  # td' - alpha
        return slopes.mul_(self.weights).addcmul_(_softmax(q_values), alpha * self.row_weights)

    def bc_gradient(self, logits: Tensor) -> Tensor:
        """The gradient of ``losses.bc_loss``: ``softmax sum_a W - W``."""
        return _softmax(logits).mul_(self.row_weights).sub_(self.weights)

    def td(self, q_values: Tensor, targets: Tensor, td_loss: str) -> Tensor:
        """The TD loss without the variance of the targets, ``[M]``."""
        return (self.weights * losses.td_losses(q_values - targets, td_loss)).sum((-2, -1))

    def penalty(self, q_values: Tensor) -> Tensor:
        """The mean of ``losses.conservative_penalty``, ``[M]``: with logits in the place of Q that is
        ``losses.bc_loss``."""
        return (self.weights * (q_values.logsumexp(-2, keepdim=True) - q_values)).sum((-2, -1))

    def of_update(self, t: int) -> "Pairs":
        """The pairs of one of T updates."""
        return Pairs(self.pair_index[t], self.shares[t], self.weights[t], self.row_weights[t])

    def first_rows(self, rows: int) -> "Pairs":
        """The pairs without the rows from ``rows`` on, which no transition has; ``pair_index`` counts all rows."""
        return self._replace(weights=self.weights.narrow(-1, 0, rows), row_weights=self.row_weights.narrow(-1, 0, rows))


def pairs_of(rows: Tensor, actions: Tensor, shares: Tensor, num_rows: int, num_actions: int,
             sum_by_pair: SumByPair) -> Pairs:
    """The pairs of transitions whose observations stand in ``rows`` of the network's input; all ``[M, B]``."""
    index = actions * num_rows + rows
    weights = sum_by_pair(shares, index, (*rows.shape[:-1], num_actions, num_rows))
    return Pairs(index, shares, weights, weights.sum(-2, keepdim=True))


def slope(td_loss: str) -> int:
    """The factor c of the squared loss's derivative, td'(e) = c e."""
    return {"mse": 2, "half_mse": 1}[td_loss]


def sum_by_pair(values: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums over the transitions of each pair: ``[M, B] -> [M, A, R]``."""
    return values.new_zeros(shape).flatten(-2).scatter_add_(-1, index, values).view(shape)


def _softmax(q_values: Tensor) -> Tensor:
    return q_values.softmax(-2)  # over the actions
