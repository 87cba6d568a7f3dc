"""What a block of updates trains on: minibatches drawn for it, or the whole data set again and again.

For BC and the squared losses a batch is held as its distinct (observation, action) pairs, with the share of the batch that
each has and the mean target of its outcomes: the same gradient as over the transitions (``cql.losses``), and the network
reads no observation twice. For the Huber loss, which has no such mean, an entry of the batch is a transition.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cql import losses
from cql.config import Config
from cql.sampling import Batch, Transitions, uniform_bits

MULTIPLE = 4  # of rows that the network reads: odd numbers slow its products down


class Pairs(NamedTuple):
    """Transitions as (row, action) pairs; more axes may lead."""

    place: Tensor  # [M, B] of each transition among the A * R pairs
    shares: Tensor  # [M, B] of each transition in the batch, summing to one
    weights: Tensor  # [M, A, R] of each pair

    def mean(self, targets: Tensor, td_loss: str) -> tuple[Tensor, Tensor]:
        """Mean target of every pair ``[M, A, R]``, and the squared loss of the targets ``[M, B]`` around them, ``[M]``."""
        mean = _summed(self.shares * targets, self.place, self.weights.shape) / torch.where(self.weights > 0, self.weights, 1.0)
        error = losses.td_error(targets, mean.flatten(-2).gather(-1, self.place), td_loss)
        return mean, losses.batch_mean(error, self.shares)


def pairs(rows: Tensor, actions: Tensor, shares: Tensor, num_rows: int, num_actions: int) -> Pairs:
    """All ``[M, B]``."""
    place = actions * num_rows + rows
    return Pairs(place, shares, _summed(shares, place, (*rows.shape[:-1], num_actions, num_rows)))


def _summed(values: Tensor, place: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Per pair: ``[M, B] -> [M, A, R]``."""
    return values.new_zeros(shape).flatten(-2).scatter_add_(-1, place, values).view(shape)


def held_as_pairs(config: Config, algorithm: str) -> bool:
    return algorithm == "bc" or config.td_loss != "huber"


def entry_targets(targets: Tensor, held: Pairs | None, td_loss: str) -> tuple[Tensor, Tensor | float]:
    """From the TD targets of the transitions ``[M, B]`` those of the batch's entries, and the loss that they leave out ``[M]``."""
    return (targets, 0.0) if held is None else held.mean(targets, td_loss)


class Block(NamedTuple):
    """The batches of ``T`` updates; every field has ``T`` before the axes named."""

    inputs: Tensor  # [M, R] or [M, R, n], what the network reads
    batch: Batch  # actions, weights and rows of its entries, for ``cql.learner``
    drawn: Batch  # [M, B], its transitions
    pairs: Pairs | None  # of these, if its entries are pairs
    filled: list[int] | None  # how many of the R rows each update needs; None: all of them

    def updates(self, q_values: Tensor, targets: Tensor | None = None) -> Iterator[tuple[Tensor, Batch, Tensor | None, Tensor]]:
        """Inputs, batch, targets and room for Q of each update, only the rows that it needs.

        Args:
            q_values: ``[T, M, R, A]``. targets: ``[T, M, A, R]`` of pairs.
        """
        count = len(q_values)
        fields = ([None] * count if field is None else field.unbind() for field in self.batch)
        each = zip(self.inputs.unbind(), map(Batch._make, zip(*fields)), [None] * count if targets is None else targets.unbind(),
                   q_values.unbind())
        if self.filled is None:
            yield from each
            return
        for rows, (inputs, batch, target, q) in zip(self.filled, each):
            batch = batch._replace(weights=batch.weights.narrow(2, 0, rows))
            yield inputs.narrow(1, 0, rows), batch, target if target is None else target.narrow(2, 0, rows), q.narrow(1, 0, rows)


class Minibatches:
    """Batches drawn with replacement, of every member its own."""

    def __init__(self, transitions: Transitions, draws: Tensor, seeds: Tensor, config: Config, algorithm: str):
        self.transitions, self.draws, self.seeds, self.config = transitions, draws, seeds, config
        self.as_pairs = held_as_pairs(config, algorithm)

    def block(self, steps: Tensor) -> Block:
        uniforms = uniform_bits(self.seeds, steps, self.config.batch_size)
        drawn = self.transitions.gather(self.transitions.minibatch_indices(self.draws, uniforms))
        if not self.as_pairs:
            return Block(self._inputs(drawn.observations), Batch(None, drawn.actions, None, None, None), drawn, None, None)
        observations, rows, filled = distinct(drawn.observations)
        shares = drawn.rewards.new_full((1, 1, 1), 1 / self.config.batch_size).expand(rows.shape)
        held = pairs(rows, drawn.actions, shares, observations.shape[-1], self.transitions.num_actions)
        return Block(self._inputs(observations), Batch(None, None, None, None, None, held.weights), drawn, held, filled)

    def _inputs(self, observations: Tensor) -> Tensor:
        return observations if self.transitions.discrete else self.transitions.observations[observations]


def distinct(observations: Tensor) -> tuple[Tensor, Tensor, list[int] | None]:
    """The different ones of each batch ``[T, M, B]``, the rest filled up with row 0; where among them each stands, likewise;
    and for every update the largest number of them that a member has, rounded up.

    A CUDA device would have to wait for that number, and would record a graph for it alone: there every observation stands
    for itself.
    """
    if observations.device.type == "cuda":
        return observations, torch.arange(observations.shape[-1], device=observations.device).expand_as(observations), None
    ordered, order = observations.sort(-1)
    place = torch.nn.functional.pad((ordered[..., 1:] != ordered[..., :-1]).cumsum(-1), (1, 0))
    rows = torch.empty_like(order).scatter_(-1, order, place)
    found = torch.zeros_like(observations).scatter_(-1, place, ordered)
    different = place[..., -1].amax(-1) + 1  # [T]
    return found, rows, (-(-different // MULTIPLE) * MULTIPLE).clamp_max(observations.shape[-1]).tolist()


class FullBatch:
    """The whole data set of each member as one batch, Q being computed once per observation acted in.

    Attributes:
        targets: of the batch's entries; spread: ``[M]``, the loss that they leave out. Both are kept in place, for graphs
            that read them.
    """

    def __init__(self, transitions: Transitions, draws: Tensor, config: Config, algorithm: str):
        self.config = config
        inputs = transitions.observations[transitions.logged]
        inputs = inputs.expand(len(draws), *inputs.shape)
        drawn = transitions.full_batch(draws)  # [M, N]
        if held_as_pairs(config, algorithm):
            held = pairs(drawn.rows, drawn.actions, drawn.weights, inputs.shape[1], transitions.num_actions)
            batch = Batch(None, None, None, None, None, held.weights)
        else:
            held, batch = None, drawn
        self.one = Block(inputs, batch, drawn, held, None)
        self.targets = torch.zeros_like(batch.weights)
        self.spread = torch.zeros_like(drawn.weights[:, 0])

    def set_targets(self, next_values: Tensor) -> None:
        """From the value of every row of the observation table ``[M, U]``."""
        drawn = self.one.drawn
        targets = losses.td_target(drawn.rewards, drawn.terminations, next_values.gather(1, drawn.next_observations),
                                   self.config.gamma)  # [M, N]
        targets, spread = entry_targets(targets, self.one.pairs, self.config.td_loss)
        self.targets.copy_(targets)
        if self.one.pairs is not None:
            self.spread.copy_(spread)

    def block(self, steps: Tensor) -> Block:
        def again(field):
            return None if field is None else field.expand(len(steps), *field.shape)
        one = self.one
        return Block(again(one.inputs), Batch(*map(again, one.batch)), Batch(*map(again, one.drawn)),
                     one.pairs and Pairs(*map(again, one.pairs)), None)
