"""The loop: blocks of updates, the target copy, logging, checkpoints, slices of the population.

A block is a stretch of updates between which nothing happens: no target copy, no log entry, no checkpoint. Its
minibatches and TD targets are made at once (the target network stands still), its loss terms are computed at once from
the Q-values kept, and nothing in it waits for the device.
"""

import math
import signal
import sys
from contextlib import contextmanager

import gymnasium
import torch
from torch import Tensor
from tqdm import tqdm

from cql import learner, losses
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import Diagnostics
from cql.files import write_whole
from cql.metrics import MetricsLog
from cql.networks import Layer, PopulationMLP
from cql.policy import Policy
from cql.population import Member, slices
from cql.runs import RunError, RunFolder, archive_bytes, load_archive, sha256
from cql.sampling import Batch, Transitions, uniform_bits

BLOCK = 100  # updates at most between two visits to Python's side of the loop
BLOCK_TRANSITIONS = 2**18  # and so many transitions at most, to bound the memory of a block
ONE_THREAD = 2**24  # multiply-adds of a slice's largest product below which a second CPU thread costs more than it gives
CHECKPOINT_FORMAT = 1


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the run has been checkpointed."""


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA if present. Raises RunError for CUDA where there is none, or an unknown name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"--device {name} is no device: give auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name} is not supported: give auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA device(s) here.")
    return device


def train(run: RunFolder, config: Config, datasets: list[OfflineDataset], environment: gymnasium.Env | None,
          resume: bool = False) -> None:
    """Trains every member of the config and writes log, checkpoints and policies into the run.

    Args:
        environment: with an exact model, for the exact curves of the log; None without.
        resume: go on from ``checkpoint.pt`` instead of starting anew.

    Raises:
        Interrupted: a signal stopped it; a checkpoint is written.
        RunError: no such device, or a checkpoint that does not belong to this run.
    """
    device = resolve_device(config.device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)  # Adam's moments of rarely visited states decay into denormals, which are slow
    log = MetricsLog(run.path)
    transitions = Transitions(datasets, device, compress=config.full_batch)
    diagnostics = Diagnostics(transitions, datasets, environment)
    trainer = SliceTrainer(run, config, transitions, diagnostics, log)
    position = _load_checkpoint(run, config) if resume else None
    if resume:
        log.cut_back(position["log_sizes"] if position else {})
        log.create()
    with _signals() as interrupted:
        for number, group in enumerate(slices(config)):
            if position is None or number >= position["slice"]:
                here = position if position is not None and number == position["slice"] else None
                trainer.train(number, group, here, interrupted)


class SliceTrainer:
    """What all slices of a run share."""

    def __init__(self, run: RunFolder, config: Config, transitions: Transitions, diagnostics: Diagnostics,
                 log: MetricsLog):
        self.run, self.config, self.transitions, self.diagnostics, self.log = run, config, transitions, diagnostics, log
        inputs = len(transitions.observations) if transitions.discrete else transitions.observations.shape[1]
        self.network = PopulationMLP(inputs, transitions.num_actions, config.hidden, transitions.discrete)
        self.config_digest = sha256(run.path / "config.json")

    def train(self, number: int, members: list[Member], position: dict | None, interrupted) -> None:
        """Trains one slice from the start, or from a checkpoint's position, to its last update."""
        config, algorithm = self.config, members[0].algorithm
        steps = config.steps if algorithm == "cql" else config.bc_steps
        population = Population(members, self, steps)
        if population.largest_product < ONE_THREAD:
            torch.set_num_threads(1)
        step = 0
        if position is not None and position["state"] is not None:
            step = position["step"]
            population.restore(position["state"], position["sums"])
        if step == 0:
            self.log.start(members, _trial_settings(config))
        bar = tqdm(total=steps, initial=step, desc=f"{algorithm.upper()} × {len(members)}", unit=" updates",
                   mininterval=0.5 if sys.stderr.isatty() else 10)
        while step < steps:
            end = self._block_end(step, steps, population.block)
            population.block_of_updates(step, end)
            bar.update(end - step)
            step = end
            if step % config.log_every == 0 or step == steps:
                self._log(step, population, bar)
            if interrupted() or (step % config.checkpoint_every == 0 and step < steps):
                self._checkpoint(number, step, population)
            if interrupted():
                bar.close()
                raise Interrupted(f"stopped after update {step:,} of {steps:,} ({algorithm.upper()}, slice {number}).")
        bar.close()
        for policy, member in zip(population.policies(), members):
            policy.save(self.run.policy_path(member.name))
        self._checkpoint(number + 1, 0, None)

    def _block_end(self, step: int, steps: int, block: int) -> int:
        """The next update at which something else happens, at most ``block`` updates on."""
        config = self.config
        stops = [(step // every + 1) * every for every in (config.target_interval, config.log_every, config.checkpoint_every)]
        return min(step + block, steps, *stops)

    def _log(self, step: int, population: "Population", bar: tqdm) -> None:
        values = population.loss_means()  # the one synchronisation with the device
        values |= self.diagnostics.measure(self.network, population.state.parameters, population.draws,
                                           population.algorithm)
        values["optimiser/learning_rate"] = [float(population.schedule[step - 1])] * len(population.members)
        self.log.write(step, population.members, values)
        bar.set_postfix({name.partition("/")[2]: f"{sum(column) / len(column):.4g}" for name, column in values.items()
                         if name.startswith("losses/") or name == "exact/return"}, refresh=False)

    def _checkpoint(self, number: int, step: int, population: "Population | None") -> None:
        contents = {"format": CHECKPOINT_FORMAT, "config": self.config_digest, "slice": number, "step": step,
                    "log_sizes": self.log.sizes(), "state": None, "sums": None}
        if population is not None:
            contents["state"] = {name: tensor.cpu() for name, tensor in population.state._asdict().items()}
            contents["sums"] = [tensor.cpu() for tensor in population.sums] + [population.summed]
        write_whole(self.run.path / "checkpoint.pt", archive_bytes(contents))


class Population:
    """The members of one slice in training: their state, their batches, the loss terms since the last log entry."""

    def __init__(self, members: list[Member], trainer: SliceTrainer, steps: int):
        config, self.transitions, self.network = trainer.config, trainer.transitions, trainer.network
        device = self.transitions.actions.device
        self.config, self.members, self.algorithm = config, members, members[0].algorithm
        self.draws = torch.tensor([member.data_seed - config.data_seed for member in members], device=device)  # [M]
        self.seeds = torch.tensor([member.seed for member in members], device=device)  # [M]
        self.alpha = torch.tensor([member.alpha or 0.0 for member in members], device=device)  # [M]
        self.state = learner.initial_state(self.network, [member.seed for member in members], device)
        self.schedule = cosine_schedule(config.lr, steps).to(device)  # [steps]
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
        for mine, theirs in [*zip(self.state, state.values()), *zip(self.sums, sums)]:
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
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


def cosine_schedule(rate: float, steps: int) -> Tensor:
    """Learning rate of every update, from ``rate`` down to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983): ``[steps]``."""
    progress = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
    return (rate * 0.5 * (1 + torch.cos(math.pi * progress))).float()


def _each(batches: Batch):
    """The batch of each update of a block, fields ``[M, B]``."""
    fields = [[None] * len(batches.actions) if field is None else field.unbind(0) for field in batches]
    return (Batch(*values) for values in zip(*fields))


def _trial_settings(config: Config) -> dict:
    names = ("lr", "gamma", "target_interval", "td_loss", "double_q", "slip", "epsilon", "episodes")
    return {name: getattr(config, name) for name in names} | {
        "batch_size": str(config.batch_size), "hidden": " ".join(map(str, config.hidden)) or "0"}


def _load_checkpoint(run: RunFolder, config: Config) -> dict | None:
    """The position to go on from; None if the run was stopped before its first checkpoint."""
    path = run.path / "checkpoint.pt"
    if not path.exists():
        return None
    contents = load_archive(path)
    try:
        if contents["format"] != CHECKPOINT_FORMAT:
            raise RunError(f"{path} is of a format that this version does not know.")
        if contents["config"] != sha256(run.path / "config.json"):
            raise RunError(f"{path} belongs to another config than {run.path}/config.json.")
        known = contents["state"] is None or set(contents["state"]) == set(learner.State._fields)
        if not known or not 0 <= contents["slice"] <= len(slices(config)) or contents["step"] < 0:
            raise RunError(f"{path} does not fit this run's config.")
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is no checkpoint of this project ({error}).") from None
    return contents


@contextmanager
def _signals():
    """Within it, SIGINT and SIGTERM only set a flag, which the yielded function reads."""
    received = []
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda *_: received.append(True))
    except ValueError:  # not the main thread: leave signals to it
        pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
