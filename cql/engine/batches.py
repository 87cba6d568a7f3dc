"""What the engine trains on, block by block: minibatches drawn for it, or the whole data set again and again.

A batch is stored as its distinct (observation, action) pairs (``cql.engine.pairs``), so that the network reads no
observation twice.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cql.engine.pairs import Pairs, SumByPair, pairs_of
from cql.sampling import Batch, Transitions, uniform_bits

MULTIPLE = 4  # numbers of rows are rounded up to a multiple of it: products are faster


class Update(NamedTuple):
    """What one update reads and writes."""

    inputs: Tensor  # [M, R] or [M, R, n], what the network reads: see ``network_inputs``
    gradient_lines: Tensor | None  # [M * S], of every row of the members' tables: see ``Block``
    pairs: Pairs  # what the losses are sums over
    targets: Tensor  # [M, A, R], of the pairs
    q_values: Tensor  # [M, A, R], memory for Q


class Block(NamedTuple):
    """The batches of ``T`` updates; every field has ``T`` before the axes named."""

    inputs: Tensor  # [M, R] or [M, R, n], what the network reads: see ``network_inputs``
    pairs: Pairs  # what the losses are sums over
    drawn: Batch  # [M, B], the transitions, observations as row numbers
    filled: list[int]  # how many of the R rows each update needs
    # [M * S], for every row of all members' tables the line of ``Buffers.first_deltas`` that holds its gradient: 0, the
    # line of zeros, if no input reads the row, else 1 + m R + r; None where the network has no table, or where the
    # number of rows differs from update to update
    gradient_lines: Tensor | None

    def updates(self, q_history: Tensor, targets: Tensor) -> Iterator[Update]:
        """Each update, with only the rows that it needs. ``q_history``, ``targets``: ``[T, M, A, R]``."""
        for t, (rows, inputs, q, target) in enumerate(zip(self.filled, self.inputs, q_history, targets)):
            lines, pairs = None if self.gradient_lines is None else self.gradient_lines[t], self.pairs.of_update(t)
            if rows < inputs.shape[1]:
                inputs, q, target = inputs.narrow(1, 0, rows), q.narrow(2, 0, rows), target.narrow(2, 0, rows)
                pairs = pairs.first_rows(rows)
            yield Update(inputs, lines, pairs, target, q)


class Minibatches:
    """Batches drawn with replacement, of every member its own.

    Attributes:
        rows: observations per member that the network reads in one update, at most.
        counted: whether the number of distinct observations is read back. A CUDA device would have to be waited for,
            and would record a graph for each number; there every update reads ``rows``, the last ones without weight.
    """

    def __init__(self, transitions: Transitions, data_index: Tensor, seeds: Tensor, batch_size: int,
                 sum_by_pair: SumByPair):
        self.transitions, self.data_index, self.seeds, self.rows = transitions, data_index, seeds, batch_size
        self.sum_by_pair = sum_by_pair
        self.counted = data_index.device.type == "cpu"

    def block(self, updates: Tensor) -> Block:
        """``updates``: ``[T]``, their numbers."""
        uniforms = uniform_bits(self.seeds, updates, self.rows)
        drawn = self.transitions.at(self.transitions.minibatch_indices(self.data_index, uniforms))
        found = Distinct.of(drawn.observations)
        shares = drawn.rewards.new_full((1, 1, 1), 1 / self.rows).expand(found.places.shape)
        pairs = pairs_of(found.places, drawn.actions, shares, self.rows, self.transitions.num_actions, self.sum_by_pair)
        inputs = network_inputs(self.transitions, found.rows)
        if self.counted:
            return Block(inputs, pairs, drawn, found.filled(), None)
        gradient_lines = found.gradient_lines(len(self.transitions.observations)) if self.transitions.discrete else None
        return Block(inputs, pairs, drawn, [self.rows] * len(updates), gradient_lines)


class Distinct(NamedTuple):
    """The distinct ones among the observations of each batch, by binary search: nothing is written to one place twice,
    so that every device does it in the same way."""

    ordered: Tensor  # [..., M, B], the observations, sorted
    rank: Tensor  # [..., M, B], of each sorted observation its number among the distinct ones
    rows: Tensor  # [..., M, B], the distinct ones, sorted; the rest filled up with 0
    places: Tensor  # [..., M, B], of each observation, in the order of the batch, its number among the distinct ones

    @classmethod
    def of(cls, observations: Tensor) -> "Distinct":
        """``observations``: row numbers ``[..., M, B]``."""
        ordered = observations.sort(-1).values
        rank = torch.nn.functional.pad((ordered[..., 1:] != ordered[..., :-1]).cumsum(-1), (1, 0))
        size = observations.shape[-1]
        first = torch.searchsorted(rank, _counted_up(size, rank))  # where each distinct one begins; the end for none
        rows = torch.where(first < size, ordered.gather(-1, first.clamp_max(size - 1)), 0)
        return cls(ordered, rank, rows, rank.gather(-1, torch.searchsorted(ordered, observations)))

    def filled(self) -> list[int]:
        """For every update the largest number of distinct ones that a member has, rounded up."""
        number = self.rank[..., -1].amax(-1) + 1  # [T]
        return (-(-number // MULTIPLE) * MULTIPLE).clamp_max(self.rank.shape[-1]).tolist()

    def gradient_lines(self, states: int) -> Tensor:
        """``Block.gradient_lines`` of tables with so many rows."""
        every, size = _counted_up(states, self.rank), self.rank.shape[-1]
        at = torch.searchsorted(self.ordered, every).clamp_max(size - 1)
        return _gradient_lines(torch.where(self.ordered.gather(-1, at) == every, self.rank.gather(-1, at), -1), size)


def _counted_up(size: int, like: Tensor) -> Tensor:
    """0 … size − 1 for every member and update: ``[..., M, B] -> [..., M, size]``."""
    return torch.arange(size, device=like.device).expand(*like.shape[:-1], size).contiguous()


def _gradient_lines(place: Tensor, rows: int) -> Tensor:
    """``Block.gradient_lines`` from the place of every state among its member's inputs ``[..., M, S]``, −1 for none."""
    before = rows * torch.arange(place.shape[-2], device=place.device)[:, None]  # inputs of the members before
    return torch.where(place < 0, 0, 1 + before + place).flatten(-2)


def network_inputs(transitions: Transitions, rows: Tensor) -> Tensor:
    """What the networks read for observations in these ``rows [..., M, R]`` of the transitions: the observations, or,
    for networks with a table, the number of the row in the tables of all members as one."""
    if not transitions.discrete:
        return transitions.observations[rows]
    return rows + len(transitions.observations) * torch.arange(rows.shape[-2], device=rows.device)[:, None]


def full_batch_rows(transitions: Transitions) -> int:
    """Observations per member that the network reads for the whole data set: those acted in, rounded up."""
    return -(-len(transitions.acted_in) // MULTIPLE) * MULTIPLE


class FullBatch:
    """The whole data set of each member as one batch, Q being computed once per observation acted in.

    Attributes:
        rows: observations per member that the network reads in one update.
    """

    def __init__(self, transitions: Transitions, data_index: Tensor, sum_by_pair: SumByPair):
        count, self.rows = len(transitions.acted_in), full_batch_rows(transitions)
        acted_in = torch.nn.functional.pad(transitions.acted_in, (0, self.rows - count))  # [R], the rest row 0
        drawn = transitions.every(data_index)  # [M, N]
        places = torch.searchsorted(transitions.acted_in, drawn.observations)
        pairs = pairs_of(places, drawn.actions, drawn.weights, self.rows, transitions.num_actions, sum_by_pair)
        inputs, gradient_lines = network_inputs(transitions, acted_in.expand(len(data_index), -1)), None
        if transitions.discrete:
            place = torch.full((len(data_index), len(transitions.observations)), -1, device=acted_in.device)
            place[:, transitions.acted_in] = torch.arange(count, device=acted_in.device)
            gradient_lines = _gradient_lines(place, self.rows)
        self.one = Block(inputs, pairs, drawn, [self.rows], gradient_lines)

    def block(self, updates: Tensor) -> Block:
        """``updates``: ``[T]``, their numbers; the same batch for each."""
        def repeated(field: Tensor | None) -> Tensor | None:
            return None if field is None else field.expand(len(updates), *field.shape)
        one = self.one
        return Block(repeated(one.inputs), Pairs(*map(repeated, one.pairs)), Batch(*map(repeated, one.drawn)),
                     one.filled * len(updates), repeated(one.gradient_lines))
