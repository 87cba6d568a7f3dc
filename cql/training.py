"""The loop: slice after slice, block after block, with the log, the checkpoints and a clean stop on a signal."""

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gymnasium
import torch
from torch import Tensor
from tqdm import tqdm

from cql import learner
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import NOT_FINITE, SOUND, Diagnostics
from cql.files import write_whole
from cql.metrics import MetricsLog, join_csv
from cql.population import Member, largest_slice, slices
from cql.ranks import Ranks
from cql.runs import SHARDS, RunError, RunFolder, Shard, archive_bytes, load_archive
from cql.sampling import Transitions
from cql.slice import Slice, memory_needed

CHECKPOINT_FORMAT = 2


class Interrupted(Exception):
    """A signal arrived, or another rank ended the job; the run has been checkpointed."""


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is CUDA if present; ``cuda`` without a number is the device of this rank's number on its node.

    Raises:
        RunError: CUDA where there is none (or fewer devices than ranks), or an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"--device {name} is no device: give auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name} is not supported: give auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA device(s) here.")
    return device


def refuse_precision(precision: str, device: torch.device) -> None:
    """Raises RunError if the device has no products of this precision."""
    if precision == "tf32" and device.type == "cpu":
        raise RunError("--precision tf32 needs a CUDA device: on a CPU there are float32 and bfloat16.")
    if precision == "bfloat16" and device.type == "cuda":
        raise RunError("--precision bfloat16 is for a CPU: on CUDA there are float32 and tf32.")
    if precision == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise RunError(f"--precision tf32: {torch.cuda.get_device_name(device)} does not have it "
                       "(compute capability 8.0 and above does).")


def fitted(config: Config, dataset: OfflineDataset, device: torch.device) -> Config:
    """The config with a slice size, halved as often as it takes, whose members fit the memory of the device.

    Raises:
        RunError: not even one member does.
    """
    present = _memory(device)
    while (needed := memory_needed(config, dataset)) > present:
        if largest_slice(config) == 1:
            raise RunError(f"a member of this population needs {needed / 2**30:,.0f} GiB and there are {present / 2**30:,.0f}: "
                           "give a smaller --hidden, --batch-size or --steps.")
        config = replace(config, slice_size=max(1, largest_slice(config) // 2))
    return config


def _memory(device: torch.device) -> int:
    """Bytes in all, of the card or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def train(run: RunFolder, config: Config, datasets: list[OfflineDataset], environment: gymnasium.Env | None,
          resume: bool = False, ranks: Ranks | None = None) -> None:
    """Trains every member of the config and writes log, checkpoints and policies into the run.

    Of a job of several ranks each calls this. A slice is trained by whichever rank is free next, and what it becomes does not
    depend on which: same device type, slices and threads, bit-identical results, whatever the number of ranks.

    Args:
        environment: with an exact model, for the exact curves of the log; None without.
        resume: go on from the checkpoints instead of starting anew.
        ranks: this process's place in the job; by default it is the whole job.

    Raises:
        Interrupted: a signal or another rank stopped it; a checkpoint is written.
        RunError: no such device, one without this precision, or a checkpoint that does not belong to this run.
    """
    ranks = ranks or Ranks()
    device = resolve_device(config.device, ranks.local_rank)
    refuse_precision(config.precision, device)
    transitions = Transitions(datasets, device, compress=config.full_batch)
    diagnostics = Diagnostics(transitions, datasets, environment)
    shards = run.shards(slices(config), apart=ranks.world > 1)
    with _signals(ranks), _torch_settings(device) as threads:
        for shard in ranks.share(sorted(shards, key=lambda shard: -_updates(config, shard))):  # the longest first
            log = _open_log(run, shard)
            position = _load_checkpoint(run, config, shard) if resume else None
            if resume:
                log.cut_back(position["log_sizes"] if position else {})
                log.create()
            if ranks.world > 1 and shard.folder == run.path and position["slice"] < shard.end:
                raise RunError(f"{run.path} was begun by one process, with one checkpoint for all slices: go on without torchrun.")
            for number, group in enumerate(shard.groups, shard.first):
                if position is None or number >= position["slice"]:
                    part = Slice(group, config, transitions, datasets, threads)
                    step = 0
                    if position is not None and number == position["slice"] and position["state"] is not None:
                        step = position["step"]
                        part.restore(position["state"], position["sums"])
                    torch.set_num_threads(part.threads_per_tile)
                    _train_slice(run, config, shard, number, part, step, diagnostics, log, ranks)
        ranks.wait_for_all()
        if ranks.stopped:
            raise Interrupted("stopped while other ranks were training.")
    if ranks.first:
        _join(run, shards)


def _train_slice(run: RunFolder, config: Config, shard: Shard, number: int, part: Slice, step: int, diagnostics: Diagnostics,
                 log: MetricsLog, ranks: Ranks) -> None:
    """Trains one slice from update ``step`` to its last, and saves its policies."""
    if step == 0:
        log.start(part.members, _trial_settings(config))
    name, warned = part.algorithm.upper(), set()
    bar = tqdm(total=part.steps, initial=step, desc=f"{name} × {len(part.members)}", unit=" updates", disable=not ranks.first,
               mininterval=0.5 if sys.stderr.isatty() else 10)
    while step < part.steps:
        end = _block_end(config, step, part)
        part.block_of_updates(step, end)
        bar.update(end - step)
        step = end
        if step % config.log_every == 0 or step == part.steps:
            values, bounds = part.loss_means(), part.bounds  # the one synchronisation with the device
            values |= diagnostics.measure(part.network, part.state.parameters, part.draws, part.algorithm, bounds)
            if part.algorithm == "cql":
                values["optimiser/alpha"] = part.alpha
            values["optimiser/learning_rate"] = [float(part.schedule[step - 1])] * len(part.members)
            log.write(step, part.members, values)
            _warn(bar, step, part, values, bounds, warned)
            bar.set_postfix(_shown(values), refresh=False)
        stopped = ranks.stopped
        if step < part.steps and (stopped or step % config.checkpoint_every == 0):
            _checkpoint(run, config, shard, number, step, log, part)
        if step < part.steps and stopped:
            bar.close()
            raise Interrupted(f"stopped after update {step:,} of {part.steps:,} ({name}, slice {number}).")
    bar.close()
    for policy, member in zip(part.policies(), part.members):
        if policy.finite:
            policy.save(run.policy_path(member.name))
    _checkpoint(run, config, shard, number + 1, 0, log, None)
    if ranks.stopped:
        raise Interrupted(f"stopped after the last update of {name}, slice {number}.")


def _updates(config: Config, shard: Shard) -> int:
    """Member-updates of a shard."""
    return sum(len(group) * _steps(config, group) for group in shard.groups)


def _steps(config: Config, group: list[Member]) -> int:
    return config.steps if group[0].algorithm == "cql" else config.bc_steps


def _open_log(run: RunFolder, shard: Shard) -> MetricsLog:
    if shard.folder == run.path:
        return MetricsLog(run.path)
    shard.folder.mkdir(parents=True, exist_ok=True)
    return MetricsLog(run.path, shard.metrics, [member.name for group in shard.groups for member in group])


def _join(run: RunFolder, shards: list[Shard]) -> None:
    """Puts the shards together: afterwards the run folder is what one process leaves.

    Raises:
        RunError: a shard is not finished, or damaged.
    """
    if shards[0].folder != run.path:
        files, sizes = {}, {}
        for shard in shards:
            contents = load_archive(shard.checkpoint)
            if contents["slice"] != shard.end:
                raise RunError(f"{shard.checkpoint} is not that of a finished slice.")
            files |= contents["files"]
            sizes |= contents["log_sizes"]
        join_csv(run.path / "metrics.csv", [shard.metrics for shard in shards])
        sizes = {"metrics.csv": (run.path / "metrics.csv").stat().st_size, **{
            name: sizes[name] for name in sorted(sizes, key=Path) if not name.startswith(SHARDS)}}
        write_whole(run.path / "checkpoint.pt", archive_bytes(_contents(files, shards[-1].end, 0, sizes, None)))
    shutil.rmtree(run.path / SHARDS, ignore_errors=True)


def _warn(bar: tqdm, step: int, part: Slice, values: dict[str, list[float]], bounds: Tensor, warned: set[str]) -> None:
    """Names every member that diverged, once."""
    for m, (member, health) in enumerate(zip(part.members, values["health/diverged"])):
        if health != SOUND and member.name not in warned:
            warned.add(member.name)
            reason = "its outputs are not finite" if health == NOT_FINITE else (
                f"max Q {values['q/max'][m]:.4g} is above {float(bounds[m]):.4g}, which no exact solution reaches")
            bar.write(f"{member.name} diverged by update {step:,}: {reason}", file=sys.stderr)


def _block_end(config: Config, step: int, part: Slice) -> int:
    """The next update at which something else happens, at most a block on."""
    stops = [(step // every + 1) * every for every in (config.target_interval, config.log_every, config.checkpoint_every)]
    return min(step + part.block, part.steps, *stops)


def _shown(values: dict[str, list[float]]) -> dict[str, str]:
    """What the progress bar shows: means over members."""
    return {name.partition("/")[2]: f"{sum(column) / len(column):.4g}" for name, column in values.items()
            if name.startswith("losses/") or name == "exact/return"}


def _checkpoint(run: RunFolder, config: Config, shard: Shard, number: int, step: int, log: MetricsLog,
                part: Slice | None) -> None:
    """``part`` after ``step`` updates; None between slices."""
    contents = _contents(run.digests(config, _done(run, shard, number)), number, step, log.sizes(), part)
    write_whole(shard.checkpoint, archive_bytes(contents))


def _contents(files: dict[str, str], number: int, step: int, sizes: dict[str, int], part: Slice | None) -> dict:
    """What a checkpoint holds: slice ``number`` is to go on from update ``step``, and what stood beside it then."""
    contents = {"format": CHECKPOINT_FORMAT, "files": files, "slice": number, "step": step, "log_sizes": sizes, "state": None,
                "sums": None}
    if part is not None:
        contents["state"] = {name: tensor.cpu() for name, tensor in part.state._asdict().items()}
        contents["sums"] = [tensor.cpu() for tensor in part.sums] + [part.summed]
    return contents


def _trial_settings(config: Config) -> dict:
    names = ("lr", "gamma", "target_interval", "td_loss", "double_q", "gap_threshold", "precision", "slip", "epsilon", "episodes")
    return {name: getattr(config, name) for name in names} | {
        "batch_size": str(config.batch_size), "hidden": " ".join(map(str, config.hidden)) or "0"}


def _load_checkpoint(run: RunFolder, config: Config, shard: Shard) -> dict | None:
    """The position to go on from; None if the shard was stopped before its first checkpoint."""
    path = shard.checkpoint
    if not path.exists():
        return None
    contents = load_archive(path)
    try:
        if contents["format"] != CHECKPOINT_FORMAT:
            raise RunError(f"{path} is of a format that this version does not know.")
        digests = run.digests(config, _done(run, shard, contents["slice"]))
        for name, digest in digests.items():
            if contents["files"].get(name) != digest:
                raise RunError(f"{path} does not belong to {run.path / name}: one of the two was changed or swapped.")
        if len(contents["files"]) != len(digests):
            raise RunError(f"{path} was written when other policies were there: one is missing or was added.")
        if not _fits(contents, config, run, shard):
            raise RunError(f"{path} does not fit this run's config.")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(f"{path} is no checkpoint of this project ({error}).") from None
    return contents


def _fits(contents: dict, config: Config, run: RunFolder, shard: Shard) -> bool:
    """Whether a checkpoint's position and parts are such as this config's run writes."""
    number, step, sizes = contents["slice"], contents["step"], contents["log_sizes"]
    log = str(shard.metrics.relative_to(run.path))
    if not isinstance(sizes, dict) or log not in sizes or not all(type(n) is int and n >= 0 for n in sizes.values()):
        return False
    if type(number) is not int or type(step) is not int or not shard.first <= number <= shard.end:
        return False
    if contents["state"] is None:
        return step == 0
    return (number < shard.end and 0 < step < _steps(config, shard.groups[number - shard.first])
            and contents["state"].keys() == set(learner.State._fields) and isinstance(contents["sums"], list)
            and type(contents["sums"][-1]) is int and contents["sums"][-1] >= 0)


def _done(run: RunFolder, shard: Shard, number: int) -> list[str]:
    """Members of the shard's slices before ``number`` that have a policy, by name."""
    names = [member.name for group in shard.groups[: number - shard.first] for member in group]
    return [name for name in names if run.policy_path(name).exists()]


@contextmanager
def _torch_settings(device: torch.device):
    """Within it PyTorch is set for training; yields the number of CPU threads. What it found is put back at the end."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_flush_denormal(True)  # Adam's moments of rarely visited states decay into denormals, which are slow
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of the devices of a node each rank has its own
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        if device.type == "cuda":  # a call imports half of torch.compile, a second or more
            torch.use_deterministic_algorithms(deterministic)


@contextmanager
def _signals(ranks: Ranks):
    """Within it, SIGINT and SIGTERM only stop the job, which the loop notices after its block."""
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda *_: ranks.stop())
    except ValueError:  # not the main thread: leave signals to it
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
