"""The run folder: everything needed to read, judge, repeat or resume a run.

    config.json  datasets/<data_seed>.npz  model.npz (--model)  checkpoint.pt  metrics.csv  policies/*.pt
    tensorboard/<member>/
    snapshots/*.npy (--snapshots)  evaluation.json  results.csv  figures/*.png  manifest.json

While several processes train it, ``shards/<slice>/`` holds a checkpoint.pt and a metrics.csv of each slice; at the end
they are joined, and the folder is what one process leaves.

``python -m cql verify RUN`` holds every file against the manifest.
"""

import fcntl
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cql.config import BEHAVIOR, GIVEN_POLICIES, Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, DatasetError, RunError
from cql.files import atomic_write, new_folder, sha256, utc_now, write_json
from cql.members import Member
from cql.model_file import NAME as MODEL
from cql.model_file import KnownModel

MANIFEST = "manifest.json"
DERIVED = (  # made from the rest of a run, and can be made again
    "evaluation.json", "results.csv", "audit.json", "statistics.json", "selection.json", "report.html",
    "figures/", "tensorboard/figures/", "tensorboard/alpha=", "tensorboard/bc, mean of ")
FOLDERS = ("datasets", "policies", "tensorboard", "figures")
SHARDS = "shards"
PACKAGES = ("glassbox-cql", "torch", "numpy", "gymnasium", "tensorboard", "matplotlib")


@dataclass(frozen=True)
class Shard:
    """Slices that one process trains one after the other, with a checkpoint and a log of their own.

    Attributes:
        folder: of the two files. first: number of the first of its slices. groups: their members.
    """

    folder: Path
    first: int
    groups: list[list[Member]]

    @property
    def end(self) -> int:
        """The number after that of its last slice."""
        return self.first + len(self.groups)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"


class RunFolder:
    """Paths and whole-file reading and writing of one run."""

    def __init__(self, path):
        self.path = Path(path)

    @classmethod
    def create(cls, out: str | None, config: Config, datasets: list[OfflineDataset], again: bool = False
               ) -> "RunFolder":
        """A new folder with its config and data. Without ``out``, a fresh timestamped one under ``runs/``.

        Args:
            again: take ``out`` as it is if it was made, or half made, of this config and data before.

        Raises RunError if the folder exists, with ``again`` one of something else, or cannot be made or written.
        """
        path = Path(out) if again and _made_here(Path(out)) else new_folder(out)
        finished = (path / "config.json").exists()
        for folder in FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        for name, contents in _inputs(config, datasets):
            if not finished:
                atomic_write(path / name, contents)
            elif (path / name).read_bytes() != contents:
                raise RunError(f"{path} was made with other settings or data: give another --out.")
        return cls(path)

    @classmethod
    def open(cls, path) -> "RunFolder":
        """An existing run. Raises RunError if it is none."""
        run = cls(path)
        if not (run.path / "config.json").is_file():
            raise RunError(f"{path} is no run folder: it has no config.json.")
        for inside in run.path.rglob("*"):
            if inside.is_symlink():  # it could lead reading or writing out of the folder
                raise RunError(f"{inside} is a symbolic link: a run folder holds none.")
            if not (inside.is_file() or inside.is_dir()):  # reading a pipe would wait for ever
                raise RunError(f"{inside} is neither a file nor a folder: a run folder holds nothing else.")
        return run

    def config(self) -> Config:
        try:
            return Config.from_json((self.path / "config.json").read_text())
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path}/config.json cannot be used: {error}") from None

    def dataset_path(self, data_seed: int) -> Path:
        return self.path / "datasets" / f"{data_seed}.npz"

    def datasets(self, config: Config) -> list[OfflineDataset]:
        """One per data seed, in order. Raises RunError if one is missing or damaged."""
        return [self.dataset(config, seed) for seed in config.data_seeds]

    def dataset(self, config: Config, data_seed: int) -> OfflineDataset:
        """The data set of a seed, with the run's model file. Raises RunError if one of them is missing or damaged."""
        try:
            dataset = OfflineDataset.load(self.dataset_path(data_seed))
            if config.model is None:
                return dataset
            return KnownModel.load(self.path / MODEL, config.max_episode_steps).known_for(dataset)
        except (ConfigError, DatasetError) as error:
            raise RunError(str(error)) from None

    def policy_path(self, name: str) -> Path:
        return self.path / "policies" / f"{name}.pt"

    def shards(self, groups: list[list[Member]], apart: bool) -> list[Shard]:
        """The shards in which a run's slices are trained: the run folder alone, or with ``apart`` one for each slice.

        With one for each slice, any number of processes can go on with them. A run that has begun stays as it is.
        """
        apart = not (self.path / "checkpoint.pt").exists() and (apart or (self.path / SHARDS).exists())
        if not apart:
            return [Shard(self.path, 0, groups)]
        return [Shard(self.path / SHARDS / str(number), number, [group]) for number, group in enumerate(groups)]

    def lock(self, shared: bool = False, wait: bool = False):
        """An open file whose lock is held until it is closed: two jobs never write one run.

        Args:
            shared: a lock that several may hold; ``share_lock`` turns an exclusive lock into one.
            wait: if another process has it, say so and wait until it ends.

        Raises RunError if another process has it.
        """
        # locks config.json: a run holds nothing but results; open for writing, as NFS requires
        file = open(self.path / "config.json", "r+b")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                file.close()
                raise RunError(f"another process is writing {self.path}.") from None
            print(f"note: waiting for another process that is writing {self.path}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        return file

    @staticmethod
    def share_lock(file) -> None:
        """Lets others hold the lock of ``file`` too, if they ask for a shared one."""
        fcntl.flock(file, fcntl.LOCK_SH)

    def write_json(self, name: str, value) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str):
        try:
            return json.loads((self.path / name).read_text(), parse_constant=_no_number)
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} cannot be read ({error}).") from None

    # ------------------------------------------------------------------------------------------- manifest

    def files(self) -> list[str]:
        """Every file of the run but the manifest, relative, sorted."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*")
                      if path.is_file() and not path.name.endswith(".partial") and path.name != MANIFEST)

    def write_manifest(self, **facts) -> None:
        """SHA-256 of every file, versions, commit, times; ``facts`` (device, seconds) are kept from call to call."""
        before = self.read_json(MANIFEST) if (self.path / MANIFEST).is_file() else {}
        self.write_json(MANIFEST, {
            **(before if isinstance(before, dict) else {}), **facts, "written": utc_now(), "versions": versions(),
            "commit": commit(), "files": {name: sha256(self.path / name) for name in self.files()}})

    def check_manifest(self, derived: bool = True) -> None:
        """Raises RunError if a run has a manifest and is not what it records.

        Args:
            derived: also check the files that evaluation makes. An evaluation checks the others alone: one that was
                interrupted leaves some of its files written and the manifest as it was.
        """
        if not (self.path / MANIFEST).is_file():
            return
        if problems := [line for line in self.verify() if derived or not line.startswith(DERIVED)]:
            raise RunError(f"{self.path} is not what its manifest records ({problems[0]}" +
                           (f", and {len(problems) - 1} more" if len(problems) > 1 else "") +
                           "): delete manifest.json to take it as it is.")

    def digests(self, config: Config, policies: list[str]) -> dict[str, str]:
        """SHA-256 of what a checkpoint goes on from: the config, given policies, the data, policies that are done.
        Raises RunError if one of them is missing."""
        given = (f"{name}.pt" for name in GIVEN_POLICIES if getattr(config, name) not in (None, BEHAVIOR))
        names = ["config.json", *given, *[MODEL] * (config.model is not None),
                 *(f"datasets/{seed}.npz" for seed in config.data_seeds),
                 *(f"policies/{name}.pt" for name in policies)]
        try:
            return {name: sha256(self.path / name) for name in names}
        except FileNotFoundError as error:
            raise RunError(f"{error.filename} is missing: the run cannot go on.") from None

    def remove_partial_files(self) -> None:
        """What a killed process left of files that were never finished."""
        for path in self.path.rglob(".*.partial"):
            path.unlink(missing_ok=True)

    def verify(self) -> list[str]:
        """What differs from the manifest, a line each; empty if the run is sound."""
        manifest, present = self.read_json(MANIFEST), set(self.files())
        if not isinstance(manifest, dict) or not isinstance(recorded := manifest.get("files"), dict):
            raise RunError(f"{self.path / MANIFEST} lists no files.")
        problems = [f"{name}: missing" for name in sorted(recorded.keys() - present)]
        problems += [f"{name}: not in the manifest" for name in sorted(present - recorded.keys())]
        problems += [f"{name}: contents differ from the manifest" for name in sorted(present & recorded.keys())
                     if sha256(self.path / name) != recorded[name]]
        return problems


def _made_here(path: Path) -> bool:
    """Whether it is a run folder, or what a process that was killed has left of one."""
    made = {*FOLDERS, MODEL, *(f"{name}.pt" for name in GIVEN_POLICIES)}
    return path.is_dir() and ((path / "config.json").exists() or all(
        inside.name in made or inside.suffix == ".partial" for inside in path.iterdir()))


def _inputs(config: Config, datasets: list[OfflineDataset]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that a run is made of; config.json, with which it is one, comes last."""
    for data_seed, dataset in zip(config.data_seeds, datasets):
        yield f"datasets/{data_seed}.npz", dataset.to_bytes()
    for name in GIVEN_POLICIES:
        if getattr(config, name) not in (None, BEHAVIOR):
            yield f"{name}.pt", Path(getattr(config, name)).read_bytes()
    if config.model is not None:
        yield MODEL, Path(config.model).read_bytes()
    yield "config.json", config.to_json().encode()


def _no_number(name: str):
    raise ValueError(f"{name} is no number in JSON")


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    versions_of = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_of[package] = version(package)
        except PackageNotFoundError:
            versions_of[package] = "not installed"
    return versions_of


def commit() -> str | None:
    """The commit of the code, with ``-dirty`` after it where files differ; None outside a checkout."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                                   cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
