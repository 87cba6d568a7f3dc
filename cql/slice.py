"""One slice of the population in training: its state, its batches, and blocks of updates.

A block is a stretch of updates between which nothing else happens: no target copy, no log entry, no checkpoint. Its
minibatches and TD targets are made at once (the target network stands still), its loss terms are computed at once from
the Q-values kept, and nothing in it waits for the device.
"""

import math

import torch
from torch import Tensor

from cql import learner, losses
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import value_bound
from cql.networks import Layer, PopulationMLP
from cql.policy import Policy
from cql.population import Member
from cql.runs import RunError
from cql.sampling import Batch, Transitions, uniform_bits

BLOCK = 100  # updates at most between two visits to Python's side of the loop
BLOCK_TRANSITIONS = 2**18  # and so many transitions at most, to bound the memory of a block


class Slice:
    """The members that are trained at once, all of one algorithm.

    Attributes:
        state: what training changes; sums, summed: loss terms since the last log entry and over how many updates.
        draws: ``[M]`` the data draw of each member. bounds: ``[M]`` see ``value_bound``.
        steps: updates to do. schedule: ``[steps]`` learning rates.
    """

    def __init__(self, members: list[Member], config: Config, transitions: Transitions, datasets: list[OfflineDataset]):
        self.transitions, device = transitions, transitions.actions.device
        inputs = len(transitions.observations) if transitions.discrete else transitions.observations.shape[1]
        self.network = PopulationMLP(inputs, transitions.num_actions, config.hidden, transitions.discrete)
        self.config, self.members, self.algorithm = config, members, members[0].algorithm
        self.steps = config.steps if self.algorithm == "cql" else config.bc_steps
        self.draws = torch.tensor([member.data_seed - config.data_seed for member in members], device=device)  # [M]
        self.seeds = torch.tensor([member.seed for member in members], device=device)  # [M]
        self.alpha = torch.tensor([member.alpha or 0.0 for member in members], device=device)  # [M]
        self.bounds = torch.tensor([value_bound(datasets[member.data_seed - config.data_seed], member.alpha or 0.0,
                                                config.gamma, config.td_loss) for member in members], device=device)  # [M]
        self.state = learner.initial_state(self.network, [member.seed for member in members], device)
        self.schedule = cosine_schedule(config.lr, self.steps).to(device)
        count = len(members)
        table = self.transitions.observations
        self.table = table.expand(count, *table.shape)  # [M, U] or [M, U, n], no copy
        self.full = self.transitions.full_batch(self.draws) if config.full_batch else None
        rows = len(table) if config.full_batch else config.batch_size
        per_update = count * (self.full.actions.shape[1] if config.full_batch else config.batch_size)
        self.block = max(1, min(BLOCK, BLOCK_TRANSITIONS // per_update))
        self.largest_product = count * rows * max(i * o for i, o in self.network.sizes[self.network.discrete :] or [(1, 1)])
        self.work = learner.workspace(self.network, self.state, rows)
        self.kept = self.state.parameters.new_empty(self.block, count, rows, self.network.outputs)  # [T, M, rows, A]
        # The target network's values at all distinct observations are fewer than those that an interval's batches ask
        # for, unless observations hardly repeat.
        self.use_table = config.full_batch or len(table) <= config.target_interval * rows
        self.next_values = None  # [M, U], of the target network; made when first asked for after a copy
        terms = len(losses.CQLTerms._fields) if self.algorithm == "cql" else 1
        self.sums, self.summed = [torch.zeros(count, device=device) for _ in range(terms)], 0

    def restore(self, state: dict[str, Tensor], sums: list) -> None:
        """Takes over a checkpoint. Raises RunError if its shapes are not these."""
        theirs_by_name = [state[name] for name in learner.State._fields]
        if len(sums) != len(self.sums) + 1:
            raise RunError("checkpoint.pt does not fit this run's config.")
        for mine, theirs in [*zip(self.state, theirs_by_name), *zip(self.sums, sums)]:
            if not isinstance(theirs, Tensor) or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise RunError("checkpoint.pt does not fit this run's config.")
            mine.copy_(theirs)
        self.summed = sums[-1]

    def policies(self) -> list[Policy]:
        layers = self.network.layers(self.state.parameters)
        return [Policy(self.network, [Layer(*(None if t is None else t[m : m + 1] for t in layer)) for layer in layers],
                       member.algorithm, member.alpha, member.seed, member.data_seed)
                for m, member in enumerate(self.members)]

    def loss_means(self) -> dict[str, list[float]]:
        """Mean of every loss term over the updates since the last call, ``name -> [M]``."""
        names = ("losses/td", "losses/conservative_gap", "losses/total") if self.algorithm == "cql" else (
            "losses/cross_entropy",)
        means = {name: (total.double() / max(self.summed, 1)).tolist() for name, total in zip(names, self.sums)}
        for total in self.sums:
            total.zero_()
        self.summed = 0
        return means

    # ------------------------------------------------------------------------------------------------ updates

    @torch.no_grad()
    def block_of_updates(self, start: int, end: int) -> None:
        """Updates ``start … end − 1``, no target copy inside; nothing in here waits for the device."""
        batches = self._batches(start, end)
        inputs = self._inputs(batches.observations)
        if self.algorithm == "bc":
            for t, (batch, x) in enumerate(zip(_each(batches), inputs)):
                logits = learner.bc_update(self.network, self.state, x, batch, self.schedule[start + t], self.work)
                self.kept[t].copy_(logits)
            terms = [losses.bc_loss(self.kept[: end - start], batches.actions, batches.weights, batches.rows)]
        else:
            if start % self.config.target_interval == 0:
                self.state.target.copy_(self.state.parameters)
                self.next_values = None
            targets = self._targets(batches)
            for t, (batch, x) in enumerate(zip(_each(batches), inputs)):
                if self.config.double_q:
                    targets[t] = self._double_q_targets(batch)
                q_values = learner.cql_update(self.network, self.state, x, batch, targets[t], self.alpha,
                                              self.config.td_loss, self.schedule[start + t], self.work)
                self.kept[t].copy_(q_values)
            terms = losses.cql_loss(self.kept[: end - start], batches.actions, targets, self.alpha, self.config.td_loss,
                                    batches.weights, batches.rows)
        for total, term in zip(self.sums, terms):
            total += term.sum(0)  # [T, M] -> [M]
        self.summed += end - start

    def _batches(self, start: int, end: int) -> Batch:
        """The batches of all updates of the block, every field ``[T, M, B]``."""
        if self.full is not None:
            return Batch(*(field.expand(end - start, *field.shape) for field in self.full))
        steps = torch.arange(start, end, device=self.seeds.device)
        uniforms = uniform_bits(self.seeds, steps, self.config.batch_size)
        return self.transitions.gather(self.transitions.minibatch_indices(self.draws, uniforms))

    def _inputs(self, rows: Tensor) -> Tensor:
        """What the network reads at each update, ``[T, M, rows]`` or ``[T, M, rows, n]``."""
        if self.full is not None:
            return self.table.expand(len(rows), *self.table.shape)
        return rows if self.transitions.discrete else self.transitions.observations[rows]

    def _targets(self, batches: Batch) -> Tensor:
        """TD targets of the block ``[T, M, B]``; with double Q room for them, as they follow the online network."""
        if self.config.double_q:
            return torch.empty(batches.rewards.shape, device=batches.rewards.device)
        if self.use_table and self.next_values is None:
            self.next_values = learner.greedy_values(self.network, self.state.target, self.table)  # [M, U]
        steps = 1 if self.full is not None else len(batches.rewards)  # of the full batch every update is the same
        rows = batches.next_observations[:steps].transpose(0, 1).flatten(1)  # [M, T * B]
        if self.use_table:
            values = self.next_values.gather(1, rows)
        else:
            values = learner.greedy_values(self.network, self.state.target, self.transitions.observations[rows])
        values = values.unflatten(1, (steps, -1)).transpose(0, 1).expand(batches.rewards.shape)
        return losses.td_target(batches.rewards, batches.terminations, values, self.config.gamma)

    def _double_q_targets(self, batch: Batch) -> Tensor:
        """TD targets of one update ``[M, B]``."""
        if self.full is not None:
            values = learner.double_q_values(self.network, self.state, self.table).gather(1, batch.next_observations)
        else:
            values = learner.double_q_values(self.network, self.state,
                                             self.transitions.observations[batch.next_observations])
        return losses.td_target(batch.rewards, batch.terminations, values, self.config.gamma)


def memory_needed(config: Config, dataset: OfflineDataset) -> int:
    """Bytes that the largest slice's parameters, gradient, target and moments take, and its schedule."""
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    network = PopulationMLP(inputs, dataset.num_actions, config.hidden, dataset.discrete)
    members = min(config.slice_size, len(config.alpha) * config.num_seeds * config.num_datasets)
    return 4 * (members * network.parameters_per_member * 6 + 3 * max(config.steps, config.bc_steps))


def cosine_schedule(rate: float, steps: int) -> Tensor:
    """Learning rate of every update, from ``rate`` down to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983): ``[steps]``."""
    progress = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
    return (rate * 0.5 * (1 + torch.cos(math.pi * progress))).float()


def _each(batches: Batch):
    """The batch of each update of a block, fields ``[M, B]``."""
    fields = [[None] * len(batches.actions) if field is None else field.unbind(0) for field in batches]
    return (Batch(*values) for values in zip(*fields))
