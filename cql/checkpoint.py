"""Checkpoints: where the training of a shard stands, written whole, and refused if they do not belong to their run."""

import shutil
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cql.algorithm import State
from cql.config import Config
from cql.errors import RunError
from cql.files import archive_bytes, atomic_write, load_archive
from cql.metrics import LossSums, MetricsLog, join_csv
from cql.run_folder import SHARDS, RunFolder, Shard

FORMAT = 3


class Position(NamedTuple):
    """The point to go on from: slice ``number`` after ``step`` updates; at its beginning there is no state."""

    number: int
    step: int = 0
    state: State | None = None
    sums: list | None = None  # ``LossSums.contents``

    def of(self, number: int) -> "Position | None":
        """The position, if it is in the middle of this slice."""
        return self if self.number == number and self.state is not None else None

    def restore(self, state: State, sums: LossSums) -> None:
        """Writes the position into a fresh state and fresh sums."""
        for mine, theirs in zip(_tensors(state), _tensors(self.state), strict=True):
            mine.copy_(theirs)
        sums.restore(self.sums)


def save(run: RunFolder, config: Config, shard: Shard, log: MetricsLog, position: Position) -> None:
    """Writes the checkpoint of a shard, with digests of the files that it goes on from."""
    _write(shard.checkpoint, run.digests(config, _done(run, shard, position.number)), log.sizes(), position)


def load(run: RunFolder, config: Config, shard: Shard, log: MetricsLog) -> Position:
    """The position to go on from, ``log`` being cut back to it; the beginning if the shard was stopped before its
    first checkpoint.
    Raises RunError if the checkpoint is damaged, or does not belong to this run, its policies and its log.
    """
    path = shard.checkpoint
    if not path.exists():
        log.cut_back({})
        log.create()
        return Position(shard.first)
    contents = load_archive(path)
    if contents.get("format") != FORMAT:
        raise RunError(f"{path} is of a format that this version does not know.")
    if str(shard.metrics.relative_to(run.path)) not in contents["log_sizes"]:
        raise RunError(f"{path} does not belong to {shard.metrics}: one of the two was swapped.")
    state = None if contents["state"] is None else State(**contents["state"])
    position = Position(contents["number"], contents["step"], state, contents["sums"])
    digests = run.digests(config, _done(run, shard, position.number))
    for name, digest in digests.items():
        if contents["files"].get(name) != digest:
            raise RunError(f"{path} does not belong to {run.path / name}: one of the two was changed or swapped.")
    if len(contents["files"]) != len(digests):
        raise RunError(f"{path} was written when other policies were there: one is missing or was added.")
    log.cut_back(contents["log_sizes"])
    return position


def join(run: RunFolder, shards: list[Shard]) -> None:
    """Merges the logs and checkpoints of the shards: afterwards the run folder is what one process leaves.
    Raises RunError if a shard is not finished, or damaged."""
    if shards[0].folder != run.path:
        files: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for shard in shards:
            contents = load_archive(shard.checkpoint)
            if contents["number"] != shard.end:
                raise RunError(f"{shard.checkpoint} is not that of a finished slice.")
            files |= contents["files"]
            sizes |= contents["log_sizes"]
        join_csv(run.path / "metrics.csv", [shard.metrics for shard in shards])
        sizes = {"metrics.csv": (run.path / "metrics.csv").stat().st_size, **{
            name: sizes[name] for name in sorted(sizes, key=Path) if not name.startswith(SHARDS)}}
        _write(run.path / "checkpoint.pt", files, sizes, Position(shards[-1].end))
    shutil.rmtree(run.path / SHARDS, ignore_errors=True)


def _write(path: Path, files: dict[str, str], log_sizes: dict[str, int], position: Position) -> None:
    state = None if position.state is None else {
        name: field.cpu() if isinstance(field, Tensor) else [tensor.cpu() for tensor in field]
        for name, field in position.state._asdict().items()}
    contents = {"format": FORMAT, "files": files, "log_sizes": log_sizes, **position._asdict(), "state": state}
    atomic_write(path, archive_bytes(contents))


def _tensors(state: State) -> list[Tensor]:
    return [tensor for field in state for tensor in ([field] if isinstance(field, Tensor) else field)]


def _done(run: RunFolder, shard: Shard, number: int) -> list[str]:
    """Members of the shard's slices before ``number`` that have a policy, by name."""
    names = [member.name for group in shard.groups[: number - shard.first] for member in group]
    return [name for name in names if run.policy_path(name).exists()]
