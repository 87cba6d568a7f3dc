"""Members trained together by one core: their state, their batches, and blocks of updates.

A block is a stretch of updates between which nothing else happens: no target copy, no state that the caller asked
for. Its minibatches and TD targets are made at once (the target network stands still), its loss terms are computed at
once from the Q-values kept, and nothing in it waits for the device. On a CUDA device it is captured once and replayed
as a graph.
"""

import torch
from torch import Tensor

from cql.algorithm import DUAL_RATE, Settings, State, dual_ascent, next_values
from cql.engine.batches import Block, FullBatch, Minibatches
from cql.engine.capture import Graphs, Recorder
from cql.engine.passes import Passes, steps_on
from cql.losses import Objective, td_target
from cql.network import PopulationMLP
from cql.sampling import Transitions

BLOCK = 100  # updates in a block at most
BLOCK_VALUES = 2**18  # and so many Q-values at most, to bound the memory of a block
CUDA_BLOCK_VALUES = 2**25  # likewise
CHUNK = 2**16  # observations evaluated at once, over all members


class Cohort:
    """Members of one algorithm whose parameters and activations stay in a core's cache together.

    Args:
        state, data_index, seeds: of these members; ``state`` is changed in place.
        terms: memory for the sums of the loss terms over a block, each ``[M]``.
        rates: ``[steps]``, the learning rate of every update.
    """

    def __init__(self, network: PopulationMLP, transitions: Transitions, state: State, data_index: Tensor,
                 seeds: Tensor, algorithm: str, objective: Objective, settings: Settings, terms: list[Tensor],
                 rates: Tensor):
        device, members = data_index.device, len(data_index)
        self.network, self.transitions, self.state, self.terms, self.rates = network, transitions, state, terms, rates
        self.algorithm, self.objective, self.settings = algorithm, objective, settings
        self.full_batch, self.steps = settings.batch_size == "full", steps_on(device)
        summed = self.steps.sum_by_pair
        self.batches = (FullBatch(transitions, data_index, summed) if self.full_batch else
                        Minibatches(transitions, data_index, seeds, settings.batch_size, summed))
        rows = self.batches.rows
        self.passes = Passes(network, state.parameters, state.first_moment, state.second_moment, rows, self.steps)
        numbered = network.inputs if network.discrete and not self.full_batch else 0  # ``Block.gradient_lines``
        self.length = block_length(members * rows * network.outputs, members * numbered, device)
        self.q_history = rates.new_zeros(self.length, members, network.outputs, rows)  # Q at every update
        table = transitions.observations
        self.table = table.expand(members, *table.shape)  # [M, U] or [M, U, n], no copy
        # The target network's values at all distinct observations are fewer than those that an interval's batches ask
        # for, unless observations hardly repeat.
        self.keeps_values = self.full_batch or len(table) <= settings.target_interval * rows
        # Between target copies these stand still (but with double Q), in place, for graphs that read them.
        self.values = rates.new_zeros(self.table.shape[:2])  # [M, U], of the target network
        if self.full_batch:
            pairs = self.batches.one.pairs
            self.targets, self.variance = torch.zeros_like(pairs.weights), torch.zeros_like(pairs.shares[:, 0])
        self.values_are_fresh = False
        self.first = torch.zeros((), dtype=torch.int64, device=device)  # the block's first update, for graphs to read
        self.graphs = Graphs(Recorder(device)) if device.type == "cuda" else None

    @torch.no_grad()
    def block_of_updates(self, start: int, end: int) -> None:
        """Makes updates ``start … end − 1``, after a target copy if one is due at ``start``; waits for no device."""
        if self.algorithm == "cql":
            if start % self.settings.target_interval == 0:
                torch._foreach_copy_(self.state.target, self.state.parameters)
                self.values_are_fresh = False
            if not self.values_are_fresh:
                self._refresh()
        self.first.fill_(start)
        if self.graphs is None:
            self._updates(end - start)
        else:
            self.graphs.run(self._updates, end - start)

    def _updates(self, count: int) -> None:
        steps = self.first + torch.arange(count, device=self.first.device)
        rates, numbers = self.rates[steps], (steps + 1).float()
        block, q_history = self.batches.block(steps), self.q_history[:count]  # [T, M, A, R]
        if self.algorithm == "bc":
            no_targets = q_history
            for t, (inputs, gradient_lines, pairs, _, logits) in enumerate(block.updates(q_history, no_targets)):
                self.passes.forward(inputs, logits)
                self.passes.step(pairs.bc_gradient(logits), gradient_lines, rates[t], numbers[t])
            terms = [block.pairs.penalty(q_history)]
        else:
            targets, variance = self._targets(block, count)
            alpha = self.state.alpha.repeat(count, 1)  # [T, M], of every update
            dual_rates = DUAL_RATE * (rates / self.settings.learning_rate)
            for t, (inputs, gradient_lines, pairs, target, q) in enumerate(block.updates(q_history, targets)):
                if self.objective.double_q:
                    variance[t] = self._set_double_q_targets(block, t, targets[t])
                self.passes.forward(inputs, q)
                gradient = self.steps.cql_gradient(pairs, q, target, self.state.alpha, self.objective.td_loss)
                self.passes.step(gradient, gradient_lines, rates[t], numbers[t])
                if self.settings.learn_alpha:
                    alpha[t] = self.state.alpha
                    dual_ascent(self.state.alpha, pairs.penalty(q), self.settings.penalty_threshold, dual_rates[t])
            td = block.pairs.td(q_history, targets, self.objective.td_loss) + variance  # [T, M]
            penalty = block.pairs.penalty(q_history)
            terms = [td, penalty, td + alpha * penalty]
        for total, term in zip(self.terms, terms):
            total.copy_(term.sum(0))  # [T, M] -> [M]

    def _refresh(self) -> None:
        """Computes the target values, and a full batch's targets, of a new target network."""
        if self.objective.double_q:
            return  # the online network chooses among its values
        if self.keeps_values:
            self.values.copy_(self._next_values(self.table))
        if self.full_batch:
            self._set_full_batch_targets()
        self.values_are_fresh = True

    def _set_full_batch_targets(self) -> None:
        """Writes ``targets`` and ``variance`` from ``values``."""
        drawn, pairs = self.batches.one.drawn, self.batches.one.pairs
        values = self.values.gather(1, drawn.next_observations)  # [M, N]
        targets, variance = pairs.targets(td_target(drawn.rewards, drawn.terminations, values, self.objective.gamma),
                                          self.objective.td_loss, self.steps.sum_by_pair)
        self.targets.copy_(targets)
        self.variance.copy_(variance)

    def _targets(self, block: Block, count: int) -> tuple[Tensor, Tensor]:
        """TD targets of the block's pairs ``[T, M, A, R]``, and the loss that they leave out ``[T, M]``. With double Q,
        whose targets follow the online network, memory for both."""
        drawn = block.drawn
        if self.objective.double_q:
            return torch.zeros_like(block.pairs.weights), self.state.alpha.new_zeros(count, len(self.state.alpha))
        if self.full_batch:
            return self.targets.expand(count, *self.targets.shape), self.variance.expand(count, -1)
        rows = drawn.next_observations.transpose(0, 1).flatten(1)  # [M, T * B]
        if self.keeps_values:
            values = self.values.gather(1, rows)
        else:
            values = self._next_values(self.transitions.observations[rows])
        values = values.unflatten(1, (count, -1)).transpose(0, 1)  # [T, M, B]
        return block.pairs.targets(td_target(drawn.rewards, drawn.terminations, values, self.objective.gamma),
                                   self.objective.td_loss, self.steps.sum_by_pair)

    def _set_double_q_targets(self, block: Block, t: int, targets: Tensor) -> Tensor:
        """Writes the TD targets of update ``t``; returns the loss that they leave out ``[M]``."""
        if self.full_batch:
            self.values.copy_(self._next_values(self.table))
            self._set_full_batch_targets()
            targets.copy_(self.targets)
            return self.variance
        drawn = block.drawn
        values = self._next_values(self.transitions.observations[drawn.next_observations[t]])
        made, variance = block.pairs.of_update(t).targets(
            td_target(drawn.rewards[t], drawn.terminations[t], values, self.objective.gamma), self.objective.td_loss,
            self.steps.sum_by_pair)
        targets.copy_(made)
        return variance

    def _next_values(self, observations: Tensor) -> Tensor:
        """``algorithm.next_values`` in chunks, for there may be many: ``[M, rows, …] -> [M, rows]``."""
        chunk = max(1, CHUNK // len(observations))
        parts = observations.split(chunk, 1)
        return torch.cat([next_values(self.network, self.state, part, self.objective) for part in parts], 1)


def block_length(q_values: int, table_rows: int, device: torch.device) -> int:
    """Updates at most in one block.

    Args:
        q_values: of all members in one update. table_rows: of all members, for each of which a block of minibatches on
            CUDA holds a number; 0 without.
    """
    if device.type == "cpu":
        return max(1, min(BLOCK, BLOCK_VALUES // q_values))
    return max(1, min(BLOCK, CUDA_BLOCK_VALUES // max(q_values, table_rows)))

