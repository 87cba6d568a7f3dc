"""Members trained together by one core: their state, their batches, and blocks of updates.

A block is a stretch of updates between which nothing else happens: no target copy, no log entry, no checkpoint. Its
minibatches and TD targets are made at once (the target network stands still), its loss terms are computed at once from
the Q-values kept, and nothing in it waits for the device. On a CUDA device it is captured once and replayed as a graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cql import learner, losses
from cql.batches import Block, FullBatch, Minibatches, Pairs, entry_targets
from cql.capture import Captured
from cql.config import Config
from cql.networks import PopulationMLP
from cql.population import Member
from cql.sampling import Batch, Transitions

BLOCK = 100  # updates at most between two visits to Python's side of the loop
BLOCK_VALUES = 2**18  # and so many Q-values at most, to bound the memory of a block


class Tile:
    """Members of one algorithm whose parameters and activations stay in a core's cache together.

    Args:
        keep: where what is read from outside between blocks is to lie: a tensor to its copy there.

    Attributes:
        state: what training changes; sums: loss terms since the last log entry, each ``[M]``.
        draws: ``[M]`` the data draw of each member.
    """

    def __init__(self, members: list[Member], config: Config, transitions: Transitions, network: PopulationMLP,
                 schedule: Tensor, keep: Callable[[Tensor], Tensor] = lambda tensor: tensor):
        device = transitions.actions.device
        self.config, self.network, self.transitions, self.schedule = config, network, transitions, schedule
        self.algorithm = members[0].algorithm
        self.draws = torch.tensor([member.data_seed - config.data_seed for member in members], device=device)  # [M]
        self.seeds = torch.tensor([member.seed for member in members], device=device)  # [M]
        state = learner.initial_state(network, [member.seed for member in members],
                                      [member.alpha or 0.0 for member in members], device)
        self.state = learner.State(*map(keep, state))
        self.sums = [keep(torch.zeros(len(members), device=device)) for _ in loss_terms(self.algorithm)]
        table = transitions.observations
        self.table = table.expand(len(members), *table.shape)  # [M, U] or [M, U, n], no copy
        self.source = (FullBatch(transitions, self.draws, config, self.algorithm) if config.full_batch else
                       Minibatches(transitions, self.draws, self.seeds, config, self.algorithm))
        rows = input_rows(config, transitions)
        self.block = block_length(config, transitions, len(members))
        self.kept = self.state.parameters.new_zeros(self.block, len(members), network.outputs, rows)  # Q of every update
        self.workspaces = learner.Workspaces(network, self.state, rows, config.precision == "bfloat16")
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
        block = self.source.block(steps)
        q_values = self.kept[:count].mT  # [T, M, R, A]
        if self.algorithm == "bc":
            for rate, (inputs, batch, _, logits) in zip(rates.unbind(), block.updates(q_values)):
                learner.bc_update(self.network, self.state, inputs, batch, rate, self.workspaces.of(inputs.shape[1]), logits)
            terms = [losses.bc_loss(learner.at_rows(q_values, block.batch.rows), block.batch.actions, block.batch.weights)]
        else:
            targets, spread = self._targets(block, count)
            alpha = self.state.alpha.repeat(count, 1)  # [T, M], of every update
            dual_rates = learner.DUAL_RATE * (rates / self.config.lr)
            for t, (rate, (inputs, batch, target, q)) in enumerate(zip(rates.unbind(), block.updates(q_values, targets))):
                if self.config.double_q:
                    spread[t] = self._set_double_q_targets(block, t, targets[t])
                learner.cql_update(self.network, self.state, inputs, batch, target, self.config.td_loss, rate,
                                   self.workspaces.of(inputs.shape[1]), q)
                if self.config.gap_threshold is not None:
                    alpha[t] = self.state.alpha
                    learner.dual_ascent(self.state, q, batch, self.config.gap_threshold, dual_rates[t])
            td, gap, total = losses.cql_loss(learner.at_rows(q_values, block.batch.rows), block.batch.actions, targets, alpha,
                                             self.config.td_loss, block.batch.weights)
            terms = [td + spread, gap, total + spread]
        for total, term in zip(self.sums, terms):
            total += term.sum(0)  # [T, M] -> [M]

    def _refresh(self) -> None:
        """What stands still as long as the target network does."""
        if self.use_table:
            self.next_values.copy_(learner.greedy_values(self.network, self.state.target, self.table))
        if self.config.full_batch and not self.config.double_q:
            self.source.set_targets(self.next_values)
        self.fresh = True

    def _targets(self, block: Block, count: int) -> tuple[Tensor, Tensor]:
        """TD targets of the block's entries and the loss that they leave out ``[T, M]``; with double Q room for them, as they
        follow the online network."""
        left_out = self.state.alpha.new_zeros(count, len(self.draws))
        if self.config.double_q:
            return torch.zeros_like(block.drawn.rewards if block.batch.weights is None else block.batch.weights), left_out
        if self.config.full_batch:
            return self.source.targets.expand(count, *self.source.targets.shape), self.source.spread.expand_as(left_out)
        rows = block.drawn.next_observations.transpose(0, 1).flatten(1)  # [M, T * B]
        if self.use_table:
            values = self.next_values.gather(1, rows)
        else:
            values = learner.greedy_values(self.network, self.state.target, self.transitions.observations[rows])
        values = values.unflatten(1, (count, -1)).transpose(0, 1)
        targets = losses.td_target(block.drawn.rewards, block.drawn.terminations, values, self.config.gamma)
        targets, spread = entry_targets(targets, block.pairs, self.config.td_loss)
        return targets, left_out + spread

    def _set_double_q_targets(self, block: Block, t: int, targets: Tensor) -> Tensor | float:
        """Writes those of update ``t``; returns the loss that they leave out ``[M]``."""
        if self.config.full_batch:
            self.source.set_targets(learner.double_q_values(self.network, self.state, self.table))
            targets.copy_(self.source.targets)
            return self.source.spread
        drawn = block.drawn
        values = learner.double_q_values(self.network, self.state, self.transitions.observations[drawn.next_observations[t]])
        made = losses.td_target(drawn.rewards[t], drawn.terminations[t], values, self.config.gamma)
        made, spread = entry_targets(made, block.pairs and Pairs(*(field[t] for field in block.pairs)), self.config.td_loss)
        targets.copy_(made)
        return spread


def loss_terms(algorithm: str) -> tuple[str, ...]:
    """Names of the loss terms that are summed, as in ``cql.metrics.METRICS``."""
    return ("losses/td", "losses/conservative_gap", "losses/total") if algorithm == "cql" else ("losses/cross_entropy",)


def input_rows(config: Config, transitions: Transitions) -> int:
    """Observations per member that the network reads in one update, at most."""
    return len(transitions.logged) if config.full_batch else config.batch_size


def block_length(config: Config, transitions: Transitions, members: int) -> int:
    """Updates at most in one block of so many members."""
    per_update = members * input_rows(config, transitions) * transitions.num_actions
    return max(1, min(BLOCK, BLOCK_VALUES // per_update))
