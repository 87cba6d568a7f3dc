"""The loop around a trainer: the log, the checkpoints, the policies, and a clean stop on a signal.

A trainer is a generator: ``cql.algorithm.updates``, or ``cql.engine.updates``, which makes them faster.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from cql import algorithm, checkpoint, engine
from cql.action_weights import action_weights
from cql.checkpoint import Position
from cql.cloned import cloned_transitions
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.device import network_for, resolve_device, torch_settings
from cql.diagnostics import NOT_FINITE, SOUND, Diagnostics
from cql.errors import RunError
from cql.members import Member, slices, updates_of
from cql.metrics import LossSums, MetricsLog
from cql.policy import Policy
from cql.ranks import Interrupted, Ranks
from cql.run_folder import RunFolder, Shard
from cql.sampling import Transitions
from cql.scales import Scales
from cql.world import World


def train(run: RunFolder, config: Config, datasets: list[OfflineDataset], world: World,
          resume: bool = False, ranks: Ranks | None = None, watch: Callable = lambda *_: None) -> None:
    """Trains every member of the config and writes log, checkpoints and policies into the run.

    In a job of several ranks, every rank calls this and trains its share of the slices: with the same type of
    device, slices and threads the results are bit-identical for any number of ranks.

    Args:
        world: of the data; with a model, the log has exact values of the greedy policies.
        resume: go on from the checkpoints. ranks: this process's place in the job; by default it is the whole job.
        watch: called at every log entry with (members, update, network, parameters).

    Raises:
        Interrupted: a signal or the end of another rank stopped it; a checkpoint is written.
        RunError: no such device, or a checkpoint that does not belong to this run.
    """
    ranks = ranks or Ranks()
    device = resolve_device(config.device, ranks.local_rank)
    shards = run.shards(slices(config), apart=ranks.launched)
    with on_signals(ranks.stop), torch_settings(device) as threads:
        scales = Scales.of(config, datasets[0])
        scaled = [scales.scaled(dataset) for dataset in datasets]
        transitions = Transitions(scaled, device, config.full_batch, action_weights(config, scaled, run.path))
        diagnostics = Diagnostics(transitions, scaled, world, config.gamma, scales)
        by_algorithm = {"cql": transitions, "bc": cloned_transitions(config, datasets, world, transitions, scales)}
        for shard, log, position in _shards_to_train(run, config, shards, resume, ranks):
            for index in range(position.number, shard.end):
                part = state = terms = policy = None  # frees the last slice before the next one is made
                part = Slice(config, shard.groups[index - shard.first], datasets, by_algorithm, position.of(index))
                if part.step == 0:
                    log.start(part.members, config)
                with part.progress_bar(shown=ranks.first) as bar:
                    for step, state, terms in part.updates(threads):
                        bar.update(step - part.step)
                        part.sums.add(terms, step - part.step)
                        part.state, part.step = state, step
                        if step % config.log_every == 0 or step == part.steps:  # waits for the device
                            log.later(part.log_entry(diagnostics, log, bar))
                            watch(part.members, step, part.network, state.parameters)
                        stopped = ranks.stopped
                        if step < part.steps and (stopped or step % config.checkpoint_every == 0):
                            checkpoint.save(run, config, shard, log, Position(index, step, state, part.sums.contents()))
                        if step < part.steps and stopped:
                            raise Interrupted(f"stopped after update {step:,} of {part.steps:,} "
                                              f"({part.name}, slice {index}).")
                for policy, member in zip(part.policies(scales), part.members):
                    if policy.finite:
                        policy.save(run.policy_path(member.name))
                checkpoint.save(run, config, shard, log, Position(index + 1))
                if ranks.stopped:
                    raise Interrupted(f"stopped after the last update of {part.name}, slice {index}.")
        ranks.wait_for_all()
    if ranks.first:
        checkpoint.join(run, shards)


@contextmanager
def on_signals(stop: Callable) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM call ``stop``, where this is the main thread, which alone may handle them."""
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def trainer_for(config: Config, name: str, masked: bool = False):
    """``updates`` of the engine; of ``cql.algorithm`` where asked for, with masks, or if it does not serve ``name``."""
    fast = config.trainer == "fast" and not masked and engine.serves(name, config.objective)
    return engine.updates if fast else algorithm.updates


class Slice:
    """Members that are trained, logged and checkpointed together, all of one algorithm.

    Args:
        transitions: by algorithm. position: the checkpoint to continue this slice from; None to begin it.

    Attributes:
        state: what the trainer changes; step: updates done, of ``steps``; sums: loss terms since the last log entry.
        data_index, seeds: ``[M]``, the number of each member's data set and its training seed.
    """

    def __init__(self, config: Config, members: list[Member], datasets: list[OfflineDataset],
                 transitions: dict[str, Transitions], position: Position | None):
        self.config, self.members, self.transitions = config, members, transitions[members[0].algorithm]
        device = self.transitions.actions.device
        self.network, self.steps = network_for(config, datasets[0]), updates_of(config, members)
        self.algorithm, self.name = members[0].algorithm, members[0].algorithm.upper()
        self.data_index = torch.tensor([member.data_seed - config.data_seed for member in members], device=device)
        self.seeds = torch.tensor(seeds := [member.seed for member in members], device=device)
        self.state = algorithm.initial_state(self.network, seeds, [member.alpha or 0.0 for member in members], device)
        self.sums, self.step, self.diverged = LossSums(self.algorithm, len(members), device), 0, set[str]()
        if position is not None:
            position.restore(self.state, self.sums)
            self.step = position.step

    def updates(self, threads: int) -> Iterator[tuple[int, algorithm.State, tuple[Tensor, ...]]]:
        """The trainer's generator, from where the slice stands to its last update; ``threads``: CPU cores for it."""
        c = self.config
        learned, threshold = c.penalty_threshold is not None, c.penalty_threshold or 0.0
        settings = algorithm.Settings(c.batch_size, c.lr, self.steps, c.target_interval, learned, threshold,
                                      (c.log_every, c.checkpoint_every), threads)
        return trainer_for(c, self.algorithm, self.transitions.penalty_weights is not None)(
            self.network, self.transitions, self.state, self.data_index, self.seeds, self.algorithm, c.objective,
            settings, self.step, self.steps)

    def log_entry(self, diagnostics: Diagnostics, log: MetricsLog, bar: tqdm) -> Callable[[], None]:
        """Reads off the device what is logged now, for which it waits; the result computes the rest and writes it."""
        step, means = self.step, self.sums.take_means()
        bounds = diagnostics.bounds(self.data_index, self.alpha(), self.config.objective)
        read = diagnostics.read(self.network, self.state.parameters, self.data_index, self.algorithm, bounds)
        optimiser = {"optimiser/alpha": self.alpha()} if self.algorithm == "cql" else {}
        rate = self.config.lr * algorithm.cosine_decay(step - 1, self.steps)
        optimiser["optimiser/learning_rate"] = [rate] * len(self.members)

        def write() -> None:
            values = diagnostics.scales.in_data_units(means | diagnostics.with_exact(*read)) | optimiser
            log.write(step, self.members, values, first=step <= self.config.log_every)
            self.warn_of_divergence(step, values, diagnostics.scales.reward * bounds, bar)
        return write

    def alpha(self) -> list[float]:
        """Every member's alpha now (0 for BC), as the shortest decimal with the same float32."""
        return [float(str(alpha)) for alpha in self.state.alpha.cpu().numpy()]

    def policies(self, scales: Scales) -> list[Policy]:
        allowed, masked = self.transitions.allowed, self.transitions.allowed is not None and not self.network.discrete
        masks = [None] * len(self.members) if allowed is None or masked else allowed[self.data_index].bool().cpu()
        return [Policy(self.network, [tensor[m : m + 1] for tensor in self.state.parameters], **vars(member),
                       allowed=masks[m], scales=scales, masked=masked) for m, member in enumerate(self.members)]

    def progress_bar(self, shown: bool) -> tqdm:
        return tqdm(total=self.steps, initial=self.step, desc=f"{self.name} × {len(self.members)}", unit=" updates",
                    disable=not shown, mininterval=0.5 if sys.stderr.isatty() else 10)

    def warn_of_divergence(self, step: int, values: dict[str, list[float]], bounds: Tensor, bar: tqdm) -> None:
        """Names every member that diverged, once, and shows the means of the log entry."""
        for m, (member, health) in enumerate(zip(self.members, values["health/diverged"])):
            if health != SOUND and member.name not in self.diverged:
                self.diverged.add(member.name)
                reason = "its outputs are not finite" if health == NOT_FINITE else (
                    "max Q is {:.4g} at most and {:.4g} on average; exact solutions lie in [{:.4g}, {:.4g}]".format(
                        values["q/max"][m], values["q/max_mean"][m], *bounds[m].tolist()))
                bar.write(f"{member.name} diverged by update {step:,}: {reason}", file=sys.stderr)
        bar.set_postfix({name.partition("/")[2]: f"{sum(column) / len(column):.4g}" for name, column in values.items()
                         if name.startswith("losses/") or name == "exact/return"}, refresh=False)


def _shards_to_train(run: RunFolder, config: Config, shards: list[Shard], resume: bool,
                     ranks: Ranks) -> Iterator[tuple[Shard, MetricsLog, Position]]:
    """The shards that fall to this rank, the longest first, each with its log and where to begin in it."""
    def work(shard: Shard) -> int:
        return sum(len(group) * updates_of(config, group) for group in shard.groups)

    for shard in ranks.share(shards, work):
        shard.folder.mkdir(parents=True, exist_ok=True)
        names = None if shard.folder == run.path else [member.name for group in shard.groups for member in group]
        log = MetricsLog(run.path, shard.metrics, names, beside=config.on_cuda)
        position = checkpoint.load(run, config, shard, log) if resume else Position(shard.first)
        if ranks.world > 1 and shard.folder == run.path and position.number < shard.end:
            raise RunError(f"{run.path} was begun by one process, with one checkpoint for all slices: "
                           "go on without torchrun.")
        yield shard, log, position
