"""The loop: slice after slice, block after block, with the log, the checkpoints and a clean stop on a signal."""

import os
import signal
import sys
from contextlib import contextmanager

import gymnasium
import torch
from tqdm import tqdm

from cql import learner
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import NOT_FINITE, SOUND, Diagnostics
from cql.files import write_whole
from cql.metrics import MetricsLog
from cql.population import slices
from cql.runs import RunError, RunFolder, archive_bytes, load_archive
from cql.sampling import Transitions
from cql.slice import Slice, memory_needed

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


def refuse_too_large(config: Config, dataset: OfflineDataset) -> None:
    """Raises RunError if the population cannot fit into this machine's memory, before anything is written."""
    needed, present = memory_needed(config, dataset), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise RunError(f"this population needs {needed / 2**30:,.0f} GiB and the machine has {present / 2**30:,.0f}: "
                       "give a smaller --slice-size, --hidden or --steps.")


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
    log = MetricsLog(run.path)
    transitions = Transitions(datasets, device, compress=config.full_batch)
    diagnostics = Diagnostics(transitions, datasets, environment)
    position = _load_checkpoint(run, config) if resume else None
    if resume:
        run.remove_partial_files()
        log.cut_back(position["log_sizes"] if position else {})
        log.create()
    with _signals() as interrupted, _torch_settings(device) as threads:
        for number, group in enumerate(slices(config)):
            if position is None or number >= position["slice"]:
                part = Slice(group, config, transitions, datasets, threads)
                step = 0
                if position is not None and number == position["slice"] and position["state"] is not None:
                    step = position["step"]
                    part.restore(position["state"], position["sums"])
                torch.set_num_threads(part.threads_per_tile)
                _train_slice(run, config, number, part, step, diagnostics, log, interrupted)


def _train_slice(run: RunFolder, config: Config, number: int, part: Slice, step: int, diagnostics: Diagnostics,
                 log: MetricsLog, interrupted) -> None:
    """Trains one slice from update ``step`` to its last, and saves its policies."""
    if step == 0:
        log.start(part.members, _trial_settings(config))
    name, warned = part.algorithm.upper(), set()
    bar = tqdm(total=part.steps, initial=step, desc=f"{name} × {len(part.members)}", unit=" updates",
               mininterval=0.5 if sys.stderr.isatty() else 10)
    while step < part.steps:
        end = _block_end(config, step, part)
        part.block_of_updates(step, end)
        bar.update(end - step)
        step = end
        if step % config.log_every == 0 or step == part.steps:
            values = part.loss_means()  # the one synchronisation with the device
            values |= diagnostics.measure(part.network, part.state.parameters, part.draws, part.algorithm, part.bounds)
            values["optimiser/learning_rate"] = [float(part.schedule[step - 1])] * len(part.members)
            log.write(step, part.members, values)
            _warn(bar, step, part, values, warned)
            bar.set_postfix(_shown(values), refresh=False)
        if step < part.steps and (interrupted() or step % config.checkpoint_every == 0):
            _checkpoint(run, config, number, step, log, part)
        if step < part.steps and interrupted():
            bar.close()
            raise Interrupted(f"stopped after update {step:,} of {part.steps:,} ({name}, slice {number}).")
    bar.close()
    for policy, member in zip(part.policies(), part.members):
        if policy.finite:
            policy.save(run.policy_path(member.name))
    _checkpoint(run, config, number + 1, 0, log, None)
    if interrupted():
        raise Interrupted(f"stopped after the last update of {name}, slice {number}.")


def _warn(bar: tqdm, step: int, part: Slice, values: dict[str, list[float]], warned: set[str]) -> None:
    """Names every member that diverged, once."""
    for m, (member, health) in enumerate(zip(part.members, values["health/diverged"])):
        if health != SOUND and member.name not in warned:
            warned.add(member.name)
            reason = "its outputs are not finite" if health == NOT_FINITE else (
                f"max Q {values['q/max'][m]:.4g} is above {float(part.bounds[m]):.4g}, which no exact solution reaches")
            bar.write(f"{member.name} diverged by update {step:,}: {reason}", file=sys.stderr)


def _block_end(config: Config, step: int, part: Slice) -> int:
    """The next update at which something else happens, at most a block on."""
    stops = [(step // every + 1) * every for every in (config.target_interval, config.log_every, config.checkpoint_every)]
    return min(step + part.block, part.steps, *stops)


def _shown(values: dict[str, list[float]]) -> dict[str, str]:
    """What the progress bar shows: means over members."""
    return {name.partition("/")[2]: f"{sum(column) / len(column):.4g}" for name, column in values.items()
            if name.startswith("losses/") or name == "exact/return"}


def _checkpoint(run: RunFolder, config: Config, number: int, step: int, log: MetricsLog, part: Slice | None) -> None:
    """``part`` after ``step`` updates; None between slices."""
    contents = {"format": CHECKPOINT_FORMAT, "files": run.digests(config, _done(run, config, number)), "slice": number, "step": step,
                "log_sizes": log.sizes(), "state": None, "sums": None}
    if part is not None:
        contents["state"] = {name: tensor.cpu() for name, tensor in part.state._asdict().items()}
        contents["sums"] = [tensor.cpu() for tensor in part.sums] + [part.summed]
    write_whole(run.path / "checkpoint.pt", archive_bytes(contents))


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
        for name, digest in run.digests(config, _done(run, config, contents["slice"])).items():
            if contents["files"].get(name) != digest:
                raise RunError(f"{path} does not belong to {run.path / name}: one of the two was changed or swapped.")
        if len(contents["files"]) != len(run.digests(config, _done(run, config, contents["slice"]))):
            raise RunError(f"{path} was written when other policies were there: one is missing or was added.")
        if not _fits(contents, config):
            raise RunError(f"{path} does not fit this run's config.")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(f"{path} is no checkpoint of this project ({error}).") from None
    return contents


def _fits(contents: dict, config: Config) -> bool:
    """Whether a checkpoint's position and parts are such as this config's run writes."""
    groups, number, step = slices(config), contents["slice"], contents["step"]
    sizes = contents["log_sizes"]
    if not isinstance(sizes, dict) or "metrics.csv" not in sizes or not all(type(n) is int and n >= 0 for n in sizes.values()):
        return False
    if type(number) is not int or type(step) is not int or not 0 <= number <= len(groups):
        return False
    if contents["state"] is None:
        return step == 0
    return (number < len(groups) and 0 < step < (config.steps if groups[number][0].algorithm == "cql" else config.bc_steps)
            and contents["state"].keys() == set(learner.State._fields) and isinstance(contents["sums"], list)
            and type(contents["sums"][-1]) is int and contents["sums"][-1] >= 0)


def _done(run: RunFolder, config: Config, number: int) -> list[str]:
    """Members of the slices before ``number`` that have a policy, by name."""
    names = [member.name for group in slices(config)[:number] for member in group]
    return [name for name in names if run.policy_path(name).exists()]


@contextmanager
def _torch_settings(device: torch.device):
    """Within it PyTorch is set for training; yields the number of CPU threads. What it found is put back at the end."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_flush_denormal(True)  # Adam's moments of rarely visited states decay into denormals, which are slow
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(deterministic)


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
