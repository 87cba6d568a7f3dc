"""Members trained together by one thread: their state, their batches, and blocks of updates.

A block is a stretch of updates between which nothing else happens: no target copy, no log entry, no checkpoint. Its
minibatches and TD targets are made at once (the target network stands still), its loss terms are computed at once from
the Q-values kept, and nothing in it waits for the device. On a CUDA device it is captured once and replayed as a graph.
"""

import torch
from torch import Tensor

from cql import learner, losses
from cql.capture import Captured
from cql.config import Config
from cql.networks import PopulationMLP
from cql.population import Member
from cql.sampling import Batch, Transitions, uniform_bits

BLOCK = 100  # updates at most between two visits to Python's side of the loop
BLOCK_TRANSITIONS = 2**18  # and so many transitions at most, to bound the memory of a block


class Tile:
    """Members of one algorithm whose parameters and activations stay in a core's cache together.

    Attributes:
        state: what training changes; sums: loss terms since the last log entry, each ``[M]``.
        draws: ``[M]`` the data draw of each member.
    """

    def __init__(self, members: list[Member], config: Config, transitions: Transitions, network: PopulationMLP,
                 schedule: Tensor):
        device = transitions.actions.device
        self.config, self.network, self.transitions, self.schedule = config, network, transitions, schedule
        self.algorithm = members[0].algorithm
        self.draws = torch.tensor([member.data_seed - config.data_seed for member in members], device=device)  # [M]
        self.seeds = torch.tensor([member.seed for member in members], device=device)  # [M]
        self.state = learner.initial_state(network, [member.seed for member in members],
                                           [member.alpha or 0.0 for member in members], device)
        self.sums = [torch.zeros(len(members), device=device) for _ in loss_terms(self.algorithm)]
        table = transitions.observations
        self.table = table.expand(len(members), *table.shape)  # [M, U] or [M, U, n], no copy
        self.full = FullBatch(transitions, self.draws, config, self.algorithm) if config.full_batch else None
        rows = input_rows(config, transitions)
        self.block = block_length(config, transitions, len(members))
        self.kept = self.state.parameters.new_empty(self.block, len(members), network.outputs, rows).mT  # [T, M, rows, A]
        work = learner.workspace(network, self.state, rows)
        self.work = [work._replace(outputs=[*work.outputs[:-1], kept]) for kept in self.kept]  # Q is kept where it is made
        # The target network's values at all distinct observations are fewer than those that an interval's batches ask
        # for, unless observations hardly repeat.
        self.use_table = config.full_batch or len(table) <= config.target_interval * rows
        self.next_values = self.state.parameters.new_zeros(self.table.shape[:2]) if self.use_table else None  # [M, U]
        self.fresh = False  # whether what is computed once per target copy is that of the target network
        self.start = torch.zeros((), dtype=torch.int64, device=device)  # the block's first update, where a graph can read it
        self.run = Captured(self._updates) if device.type == "cuda" else self._updates

    @torch.no_grad()
    def block_of_updates(self, start: int, end: int) -> None:
        """Updates ``start … end − 1``, no target copy inside; nothing in here waits for the device."""
        if self.algorithm == "cql":
            if start % self.config.target_interval == 0:
                self.state.target.copy_(self.state.parameters)
                self.fresh = False
            if not self.fresh:
                self._refresh()
        self.start.fill_(start)
        self.run(end - start)

    def _updates(self, count: int) -> None:
        steps = self.start + torch.arange(count, device=self.start.device)
        rates = self.schedule[steps]
        batches = self._batches(steps)
        inputs = self._inputs(batches, count)
        if self.algorithm == "bc":
            for t, batch in enumerate(_each(batches, count)):
                learner.bc_update(self.network, self.state, inputs[t], batch, rates[t], self.work[t])
            terms = [losses.bc_loss(learner.at_rows(self.kept[:count], batches.rows), batches.actions, batches.weights)]
        else:
            targets, spread = self._targets(batches, count)
            alpha = self.state.alpha.repeat(count, 1)  # [T, M], of every update
            dual_rates = learner.DUAL_RATE * (rates / self.config.lr)
            for t, batch in enumerate(_each(batches, count)):
                if self.config.double_q:
                    targets[t], spread[t] = self._double_q_targets(batch)
                q_values = learner.cql_update(self.network, self.state, inputs[t], batch, targets[t], self.config.td_loss, rates[t],
                                              self.work[t])
                if self.config.gap_threshold is not None:
                    alpha[t] = self.state.alpha
                    learner.dual_ascent(self.state, q_values, batch, self.config.gap_threshold, dual_rates[t])
            td, gap, total = losses.cql_loss(learner.at_rows(self.kept[:count], batches.rows), batches.actions, targets,
                                             alpha, self.config.td_loss, batches.weights)
            terms = [td + spread, gap, total + spread]
        for total, term in zip(self.sums, terms):
            total += term.sum(0)  # [T, M] -> [M]

    def _refresh(self) -> None:
        """What stands still as long as the target network does."""
        if self.use_table:
            self.next_values.copy_(learner.greedy_values(self.network, self.state.target, self.table))
        if self.full is not None and not self.config.double_q:
            self.full.set_targets(self.next_values)
        self.fresh = True

    def _batches(self, steps: Tensor) -> Batch:
        """The batches of all updates of the block, every field ``[T, M, B]``."""
        if self.full is not None:
            return Batch(*(None if field is None else field.expand(len(steps), *field.shape) for field in self.full.batch))
        uniforms = uniform_bits(self.seeds, steps, self.config.batch_size)
        return self.transitions.gather(self.transitions.minibatch_indices(self.draws, uniforms))

    def _inputs(self, batches: Batch, count: int) -> Tensor:
        """What the network reads at each update, ``[T, M, rows]`` or ``[T, M, rows, n]``."""
        if self.full is not None:
            return self.full.inputs.expand(count, *self.full.inputs.shape)
        rows = batches.observations
        return rows if self.transitions.discrete else self.transitions.observations[rows]

    def _targets(self, batches: Batch, count: int) -> tuple[Tensor, Tensor]:
        """TD targets of the block ``[T, M, B]`` and what their means leave out ``[T, M]``; with double Q room for them, as
        they follow the online network."""
        spread = self.state.alpha.new_zeros(count, len(self.draws))
        if self.config.double_q:
            return spread.new_empty(count, len(self.draws), (batches.weights if self.full else batches.rewards).shape[-1]), spread
        if self.full is not None:
            return self.full.targets.expand(count, *self.full.targets.shape), self.full.spread.expand_as(spread)
        rows = batches.next_observations.transpose(0, 1).flatten(1)  # [M, T * B]
        if self.use_table:
            values = self.next_values.gather(1, rows)
        else:
            values = learner.greedy_values(self.network, self.state.target, self.transitions.observations[rows])
        values = values.unflatten(1, (count, -1)).transpose(0, 1)
        return losses.td_target(batches.rewards, batches.terminations, values, self.config.gamma), spread

    def _double_q_targets(self, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """TD targets of one update ``[M, B]`` and their spread ``[M]``."""
        if self.full is not None:
            self.full.set_targets(learner.double_q_values(self.network, self.state, self.table))
            return self.full.targets, self.full.spread
        values = learner.double_q_values(self.network, self.state, self.transitions.observations[batch.next_observations])
        return losses.td_target(batch.rewards, batch.terminations, values, self.config.gamma), 0.0


class FullBatch:
    """The whole data set of each member as one batch, Q being computed once per observation acted in, ``R`` of them.

    For the squared losses and BC an entry of the batch is a (row, action) with the share of the data that it has and the
    mean target of its outcomes: the same gradient as over the transitions (``cql.losses``). For the Huber loss an entry is
    a distinct transition.

    Attributes:
        inputs: ``[M, R]`` or ``[M, R, n]``. batch: weights and, of single transitions, actions and rows.
        targets: ``[M, B]``; spread: ``[M]``, the squared loss of the transitions' targets around them. Both are kept in
            place, for graphs that read them.
    """

    def __init__(self, transitions: Transitions, draws: Tensor, config: Config, algorithm: str):
        self.config, self.actions = config, transitions.num_actions
        inputs = transitions.observations[transitions.logged]
        self.inputs = inputs.expand(len(draws), *inputs.shape)
        self.transitions = transitions.full_batch(draws)  # [M, N]
        self.averaged = algorithm == "bc" or config.td_loss != "huber"
        self.batch = Batch(None, None, None, None, None, weights=self.transitions.weights)
        if self.averaged:
            self.pairs = self.transitions.actions * inputs.shape[0] + self.transitions.rows  # [M, N], places among A * R
            self.batch = self.batch._replace(weights=self._sum_per_pair(self.transitions.weights))
        else:
            self.batch = self.batch._replace(actions=self.transitions.actions, rows=self.transitions.rows)
        self.targets = torch.zeros_like(self.batch.weights)
        self.spread = torch.zeros_like(self.targets[:, 0])

    def set_targets(self, next_values: Tensor) -> None:
        """From the value of every row of the observation table ``[M, U]``."""
        all_of = self.transitions
        targets = losses.td_target(all_of.rewards, all_of.terminations, next_values.gather(1, all_of.next_observations),
                                   self.config.gamma)  # [M, N]
        if not self.averaged:
            self.targets.copy_(targets)
            return
        weights = self.batch.weights
        mean = self._sum_per_pair(all_of.weights * targets) / torch.where(weights > 0, weights, 1.0)
        self.targets.copy_(mean)
        error = losses.td_error(targets, mean.gather(1, self.pairs), self.config.td_loss)
        self.spread.copy_(losses.batch_mean(error, all_of.weights))

    def _sum_per_pair(self, values: Tensor) -> Tensor:
        """``[M, N] -> [M, A * R]``."""
        return values.new_zeros(len(values), self.inputs.shape[1] * self.actions).scatter_add_(1, self.pairs, values)


def loss_terms(algorithm: str) -> tuple[str, ...]:
    """Names of the loss terms that are summed, as in ``cql.metrics.METRICS``."""
    return ("losses/td", "losses/conservative_gap", "losses/total") if algorithm == "cql" else ("losses/cross_entropy",)


def input_rows(config: Config, transitions: Transitions) -> int:
    """Observations per member that the network reads in one update."""
    return len(transitions.logged) if config.full_batch else config.batch_size


def block_length(config: Config, transitions: Transitions, members: int) -> int:
    """Updates at most in one block of so many members."""
    per_update = members * input_rows(config, transitions) * (transitions.num_actions if config.full_batch else 1)
    return max(1, min(BLOCK, BLOCK_TRANSITIONS // per_update))


def _each(batches: Batch, count: int):
    """The batch of each update of a block, fields ``[M, B]``."""
    fields = [[None] * count if field is None else field.unbind(0) for field in batches]
    return (Batch(*values) for values in zip(*fields))
