"""Transitions on the device, and the minibatches drawn from them.

The draw is a pure function of (training seed, update, position in the batch): no generator state, so a run resumes at
any update, members that share a seed see the same uniform numbers whoever is trained beside them, and every device
draws the same. The mixing function is splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), used as a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cql.dataset import OfflineDataset, number_rows


class Batch(NamedTuple):
    """The same number of transitions for each member."""

    observations: Tensor  # [M, B] int64 state indices or [M, B, n] float32; row numbers where a method says so
    actions: Tensor  # [M, B] int64
    rewards: Tensor  # [M, B] float32
    next_observations: Tensor  # as observations
    terminations: Tensor  # [M, B] bool
    weights: Tensor | None = None  # [M, B] float32, summing to one over B; the plain mean without
    action_weights: Tensor | None = None  # [M, B, A], of the penalty: ``cql.action_weights``
    next_action_weights: Tensor | None = None  # [M, B, A], of the target


class ActionWeights(NamedTuple):
    """What an objective needs beside the transitions, each ``[data sets, S, A]`` float32 NumPy, or None.

    ``penalty``: rho or mu of the penalty, or 1 for the actions that count. ``target``: the policy of the target, or 1
    for the actions of its max. ``allowed``: 1 for the actions that the trained policy may take.
    """

    penalty: np.ndarray | None = None
    target: np.ndarray | None = None
    allowed: np.ndarray | None = None


class Transitions:
    """The transitions of one or more data sets, stored once, shared by all members.

    ``observations`` is the table of distinct observations ``[U]`` (Discrete: the states themselves) or ``[U, n]``; the
    data sets stand one after the other and name observations by their row.

    Args:
        compress: keep every distinct transition once with its share of the data set, as ``full_batch`` needs it.
        weights: of the actions in every state, where the objective needs them.
    """

    def __init__(self, datasets: list[OfflineDataset], device: torch.device, compress: bool,
                 weights: ActionWeights | None = None):
        first = datasets[0]
        self.discrete, self.num_actions = first.discrete, first.num_actions
        parts = [dataset.compress() if compress else dataset for dataset in datasets]
        lengths = [len(part) for part in parts]
        table, rows, next_rows = _observation_table(parts, first.num_states if first.discrete else None)

        def column(name, dtype):
            return torch.from_numpy(np.concatenate([getattr(part, name) for part in parts])).to(device, dtype)

        self.observations = torch.from_numpy(table).to(device)
        self.rows = torch.from_numpy(rows.astype(np.int32)).to(device)
        self.next_rows = torch.from_numpy(next_rows.astype(np.int32)).to(device)
        self.actions = column("actions", torch.int32)
        self.rewards = column("rewards", torch.float32)
        self.terminations = column("terminations", torch.bool)
        self.weights = None
        if compress:
            self.weights = torch.from_numpy(np.concatenate([part.weights for part in parts])).to(device, torch.float32)
        tables = (None if table is None else torch.from_numpy(table).to(device) for table in weights or ActionWeights())
        self.penalty_weights, self.target_weights, self.allowed = tables  # each [data sets, S, A], or None
        self.lengths = torch.tensor(lengths, device=device)  # [data sets]
        self.offsets = self.lengths.cumsum(0) - self.lengths  # [data sets]
        self.longest = max(lengths)  # known here, so that nobody waits for the device to ask it
        self.acted_in = torch.from_numpy(np.unique(rows)).to(device)  # [R], the rows of observations

    def minibatch(self, data_index: Tensor, seeds: Tensor, update: int, batch_size: int) -> Batch:
        """The transitions that each member trains on in one update, drawn with replacement from its own data set.

        Args:
            data_index: ``[M]``, the number of each member's data set. seeds: ``[M]``, its training seed.
        """
        uniforms = uniform_bits(seeds, torch.tensor([update], device=seeds.device), batch_size)[0]  # [M, B]
        return self._read(self.at(self.minibatch_indices(data_index, uniforms)), data_index)

    def full_batch(self, data_index: Tensor) -> Batch:
        """All distinct transitions of each member's data set with their shares."""
        return self._read(self.every(data_index), data_index)

    def at(self, index: Tensor) -> Batch:
        """The transitions at ``index [..., M, B]``, observations as row numbers of the table."""
        return Batch(self.rows[index].long(), self.actions[index].long(), self.rewards[index],
                     self.next_rows[index].long(), self.terminations[index])

    def every(self, data_index: Tensor) -> Batch:
        """``full_batch`` with observations as row numbers of the table. Shorter data sets are filled up with weight
        0."""
        position = torch.arange(self.longest, device=data_index.device)  # [N]
        inside = position < self.lengths[data_index][:, None]  # [M, N]
        index = self.offsets[data_index][:, None] + torch.where(inside, position, 0)
        return self.at(index)._replace(weights=torch.where(inside, self.weights[index], 0.0))

    def minibatch_indices(self, data_index: Tensor, uniforms: Tensor) -> Tensor:
        """``offset + floor(u D)`` in each member's own data set: ``[M], [..., M, B] -> [..., M, B]``; u in units of
        2^-32."""
        return self.offsets[data_index][:, None] + ((uniforms * self.lengths[data_index][:, None]) >> 32)

    def _read(self, batch: Batch, data_index: Tensor) -> Batch:
        """The observations themselves in place of their row numbers, with the weights of the actions there."""
        penalty, target = (None if table is None else table[data_index[:, None], rows] for table, rows in (
            (self.penalty_weights, batch.observations), (self.target_weights, batch.next_observations)))
        return batch._replace(observations=self.observations[batch.observations], action_weights=penalty,
                              next_observations=self.observations[batch.next_observations], next_action_weights=target)


def uniform_bits(seeds: Tensor, steps: Tensor, batch_size: int) -> Tensor:
    """Uniform integers below 2^32: ``[M] seeds, [T] updates -> [T, M, batch_size]`` int64."""
    position = torch.arange(batch_size, device=seeds.device)
    counter = steps[:, None] * batch_size + position  # [T, B]: a different number for every draw of a seed
    key = _splitmix64(seeds.long() + _GOLDEN)  # [M]
    return (_splitmix64(key[:, None] + counter[:, None, :] * _GOLDEN) >> 32) & 0xFFFFFFFF


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _splitmix64(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 tensors, whose products wrap as unsigned ones do."""
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & (2 ** (64 - bits) - 1)  # >> keeps the sign; the mask makes it the unsigned shift


def _observation_table(parts, num_states: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    observations = np.concatenate([part.observations for part in parts])
    next_observations = np.concatenate([part.next_observations for part in parts])
    if num_states is not None:
        return np.arange(num_states), observations, next_observations
    table, rows = number_rows(np.concatenate([observations, next_observations]))
    return table, rows[: len(observations)], rows[len(observations) :]
