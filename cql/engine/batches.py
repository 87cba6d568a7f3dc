"""What the engine trains on, block by block: minibatches drawn for it, or the whole data set again and again.

A batch is stored as its distinct (observation, action) pairs (``cql.engine.pairs``), so that the network reads no
observation twice; minibatches on a CUDA device as their transitions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cql.engine.pairs import Entries, Pairs, Single, pairs_of
from cql.sampling import Batch, Transitions, uniform_bits

MULTIPLE = 4  # numbers of rows are rounded up to a multiple of it: products are faster


class Block(NamedTuple):
    """The batches of ``T`` updates; every field has ``T`` before the axes named."""

    inputs: Tensor  # [M, R] or [M, R, n], what the network reads
    entries: Entries  # what the losses are sums over
    drawn: Batch  # [M, B], the transitions, observations as row numbers
    filled: list[int]  # how many of the R rows each update needs

    def updates(self, q_history: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Entries, Tensor, Tensor]]:
        """Inputs, entries, targets and memory for Q of each update, only the rows that it needs.

        Args:
            q_history: ``[T, M, A, R]``. targets: of the entries, ``[T, M, A, R]`` of pairs and ``[T, M, B]`` of
                transitions.
        """
        fields = zip(self.filled, self.inputs.unbind(), q_history.unbind(), targets.unbind())
        for t, (rows, inputs, q, target) in enumerate(fields):
            entries = self.entries.of_update(t)
            if rows < inputs.shape[1]:
                inputs, q, target = inputs.narrow(1, 0, rows), q.narrow(2, 0, rows), target.narrow(2, 0, rows)
                entries = entries.first_rows(rows)
            yield inputs, entries, target, q


class Minibatches:
    """Batches drawn with replacement, of every member its own.

    Attributes:
        rows: observations per member that the network reads in one update, at most.
    """

    def __init__(self, transitions: Transitions, data_index: Tensor, seeds: Tensor, batch_size: int):
        self.transitions, self.data_index, self.seeds, self.rows = transitions, data_index, seeds, batch_size

    def block(self, updates: Tensor) -> Block:
        """``updates``: ``[T]``, their numbers."""
        uniforms = uniform_bits(self.seeds, updates, self.rows)
        drawn = self.transitions.at(self.transitions.minibatch_indices(self.data_index, uniforms))
        if not pairs_on(self.data_index.device):
            inputs = self.transitions.observations[drawn.observations]
            return Block(inputs, Single(drawn.actions), drawn, [self.rows] * len(updates))
        observations, places, filled = distinct(drawn.observations)
        shares = drawn.rewards.new_full((1, 1, 1), 1 / self.rows).expand(places.shape)
        entries = pairs_of(places, drawn.actions, shares, self.rows, self.transitions.num_actions)
        return Block(self.transitions.observations[observations], entries, drawn, filled)


def pairs_on(device: torch.device) -> bool:
    """Whether minibatches are held as pairs: a CUDA device would have to wait for the number of distinct
    observations, and would record a graph for each number."""
    return device.type != "cuda"


def distinct(observations: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The distinct ones of each batch ``[T, M, B]``, the rest filled up with row 0; the place of each observation
    among them, likewise; and for every update the largest number of them that a member has, rounded up."""
    ordered, order = observations.sort(-1)
    place = torch.nn.functional.pad((ordered[..., 1:] != ordered[..., :-1]).cumsum(-1), (1, 0))
    places = torch.empty_like(order).scatter_(-1, order, place)
    first = torch.zeros_like(observations).scatter_(-1, place, ordered)
    number = place[..., -1].amax(-1) + 1  # [T]
    return first, places, (-(-number // MULTIPLE) * MULTIPLE).clamp_max(observations.shape[-1]).tolist()


class FullBatch:
    """The whole data set of each member as one batch, Q being computed once per observation acted in.

    Attributes:
        rows: observations per member that the network reads in one update.
    """

    def __init__(self, transitions: Transitions, data_index: Tensor):
        acted_in = transitions.rows.unique().long()  # [R]
        inputs = transitions.observations[acted_in]
        drawn = transitions.every(data_index)  # [M, N]
        places = torch.searchsorted(acted_in, drawn.observations)
        entries = pairs_of(places, drawn.actions, drawn.weights, len(acted_in), transitions.num_actions)
        self.rows = len(acted_in)
        self.one = Block(inputs.expand(len(data_index), *inputs.shape), entries, drawn, [self.rows])

    def block(self, updates: Tensor) -> Block:
        """``updates``: ``[T]``, their numbers; the same batch for each."""
        def repeated(field: Tensor | None) -> Tensor | None:
            return None if field is None else field.expand(len(updates), *field.shape)
        one = self.one
        return Block(repeated(one.inputs), Pairs(*map(repeated, one.entries)), Batch(*map(repeated, one.drawn)),
                     one.filled * len(updates))
