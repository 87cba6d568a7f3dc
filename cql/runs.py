"""The run folder: everything needed to read, judge, repeat or resume a run.

    config.json  datasets/<data_seed>.npz  checkpoint.pt  metrics.csv  policies/*.pt  tensorboard/<member>/
    evaluation.json  figures/*.png  manifest.json

While several processes train it, ``shards/<slice>/`` holds a checkpoint.pt and a metrics.csv of each slice; at the end they are
put together and the folder is what one process leaves.

``python -m cql.runs verify RUN`` holds every file against the manifest.
"""

import argparse
import datetime
import fcntl
import hashlib
import io
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cql.config import Config, ConfigError
from cql.dataset import DatasetError, OfflineDataset
from cql.files import write_whole
from cql.members import Member

MANIFEST = "manifest.json"
DERIVED = ("evaluation.json", "results.csv", "audit.json", "statistics.json", "selection.json", "report.html", "figures/",
           "tensorboard/figures/")  # made from the rest of a run, and can be made again
SHARDS = "shards"
PACKAGES = ("glassbox-cql", "torch", "numpy", "gymnasium", "tensorboard", "matplotlib")


class RunError(ValueError):
    """A run folder that cannot be used; the message is one sentence."""


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
    def create(cls, out: str | None, config: Config, datasets: list[OfflineDataset]) -> "RunFolder":
        """A new folder with its config and data. Without ``out``, a fresh timestamped one under ``runs/``.

        Raises:
            RunError: the folder exists, or cannot be made or written.
        """
        try:
            path = _fresh_folder(out)
        except FileExistsError:
            raise RunError(f"the run folder {out} exists already: give another --out, or --resume it.") from None
        except OSError as error:
            raise RunError(f"the run folder {out} cannot be made ({error.strerror}).") from None
        run = cls(path)
        for folder in ("datasets", "policies", "tensorboard", "figures"):
            (path / folder).mkdir()
        for data_seed, dataset in zip(config.data_seeds, datasets):
            dataset.save(run.dataset_path(data_seed))
        write_whole(path / "config.json", config.to_json().encode())
        return run

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
        try:
            return [OfflineDataset.load(self.dataset_path(seed)) for seed in config.data_seeds]
        except DatasetError as error:
            raise RunError(str(error)) from None

    def policy_path(self, name: str) -> Path:
        return self.path / "policies" / f"{name}.pt"

    def shards(self, groups: list[list[Member]], apart: bool) -> list[Shard]:
        """The shards in which a run's slices are trained: one, the run folder itself, or with ``apart`` one a slice, so that
        any number of processes can go on with them. A run that has begun stays as it is."""
        apart = not (self.path / "checkpoint.pt").exists() and (apart or (self.path / SHARDS).exists())
        if not apart:
            return [Shard(self.path, 0, groups)]
        return [Shard(self.path / SHARDS / str(number), number, [group]) for number, group in enumerate(groups)]

    def lock(self, shared: bool = False):
        """An open file whose lock is held until it is closed: two jobs never write one run.

        Args:
            shared: together with others that hold it so; ``share_lock`` turns an exclusive lock into such a one.

        Raises:
            RunError: another process has it.
        """
        # no file of its own: a run holds nothing but its results; open for writing, for so NFS wants it
        file = open(self.path / "config.json", "r+b")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RunError(f"another process is writing {self.path}.") from None
        return file

    @staticmethod
    def share_lock(file) -> None:
        """Lets others hold the lock of ``file`` too, if they ask for a shared one."""
        fcntl.flock(file, fcntl.LOCK_SH)

    def write_json(self, name: str, value) -> None:
        write_whole(self.path / name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

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
        before = {}
        if (self.path / MANIFEST).is_file():
            before = self.read_json(MANIFEST)
            before = before if isinstance(before, dict) else {}
        self.write_json(MANIFEST, {**before, **facts, "written": utc_now(), "versions": versions(), "commit": commit(),
                                   "files": {name: sha256(self.path / name) for name in self.files()}})

    def refuse_changes(self, derived: bool = True) -> None:
        """Raises RunError if a finished run is not what its manifest records; without a manifest there is nothing to hold.

        Args:
            derived: also of what evaluation makes out of the rest. Not for those who are about to make it anew: an evaluation
                that was interrupted leaves some of it written and the manifest as it was.
        """
        if not (self.path / MANIFEST).is_file():
            return
        if problems := [line for line in self.verify() if derived or not line.startswith(DERIVED)]:
            raise RunError(f"{self.path} is not what its manifest records ({problems[0]}" +
                           (f", and {len(problems) - 1} more" if len(problems) > 1 else "") +
                           "): delete manifest.json to take it as it is.")

    def _recorded(self) -> dict[str, str]:
        manifest = self.read_json(MANIFEST)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise RunError(f"{self.path / MANIFEST} lists no files.")
        return manifest["files"]

    def digests(self, config: Config, policies: list[str]) -> dict[str, str]:
        """SHA-256 of what a checkpoint goes on from: the config, the data and the policies that are done.

        Raises:
            RunError: one of them is missing.
        """
        names = ["config.json", *(f"datasets/{seed}.npz" for seed in config.data_seeds), *(f"policies/{n}.pt" for n in policies)]
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
        recorded = self._recorded()
        present = set(self.files())
        problems = [f"{name}: missing" for name in sorted(recorded.keys() - present)]
        problems += [f"{name}: not in the manifest" for name in sorted(present - recorded.keys())]
        problems += [f"{name}: contents differ from the manifest" for name in sorted(present & recorded.keys())
                     if sha256(self.path / name) != recorded[name]]
        return problems


def _no_number(name: str):
    raise ValueError(f"{name} is no number in JSON")


def archive_bytes(contents: dict) -> bytes:
    """A ``.pt`` archive built in memory, so that equal contents give equal bytes, with a digest of its contents.

    PyTorch does not check the checksums of the archives it reads, so a flipped bit would pass as a weight.
    """
    buffer = io.BytesIO()
    torch.save({"contents": contents, "sha256": contents_digest(contents)}, buffer)
    return buffer.getvalue()


def load_archive(path) -> dict:
    """Reads a ``.pt`` archive of ``archive_bytes`` without unpickling anything but tensors and plain values.

    Raises:
        RunError: missing, damaged, or of another kind.
    """
    try:
        archive = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"there is no file {path}.") from None
    except Exception as error:  # torch raises many kinds on a damaged archive
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise RunError(f"{path} cannot be read: it is damaged or no archive of tensors ({reason}).") from None
    if not isinstance(archive, dict) or archive.keys() != {"contents", "sha256"} or not isinstance(archive["contents"], dict):
        raise RunError(f"{path} is no archive of this project.")
    try:
        sound = contents_digest(archive["contents"]) == archive["sha256"]
    except (TypeError, RecursionError, RuntimeError):
        raise RunError(f"{path} holds values of another kind than this project writes.") from None
    if not sound:
        raise RunError(f"{path} is damaged: its contents do not have the digest it was written with.")
    return archive["contents"]


def contents_digest(value) -> str:
    """SHA-256 of nested dictionaries, lists, plain values and dense tensors, whatever container they stand in.

    Raises:
        TypeError: a value of another kind.
    """
    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise TypeError("a tensor larger than its memory, or sparse")
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"tensor {array.dtype.str} {array.shape};".encode())
            digest.update(array.tobytes())
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)};".encode())
            for name, item in value.items():
                add(name)
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(f"list {len(value)};".encode())
            for item in value:
                add(item)
        elif value is None or isinstance(value, (bool, int, float, str)):
            text = repr(value).encode()
            digest.update(f"{type(value).__name__} {len(text)};".encode() + text)
        else:
            raise TypeError(f"a {type(value).__name__} has no digest here")

    add(value)
    return digest.hexdigest()


def sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fresh_folder(out: str | None) -> Path:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).mkdir()
        return Path(out)
    stamp, number = datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), 0
    while True:  # two runs may start within a second
        path = Path("runs") / (stamp + (f"-{number}" if number else ""))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def utc_now() -> str:
    """The time, in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the code, with ``-dirty`` after it where files differ; None outside a checkout."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                                   cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql.runs", description="Checks a run folder against its manifest.")
    parser.add_argument("command", choices=["verify"])
    parser.add_argument("run", metavar="RUN")
    arguments = parser.parse_args(argv)
    try:
        run = RunFolder.open(arguments.run)
        problems = run.verify()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    print(f"{arguments.run}: {len(problems)} problem(s) in {len(run.files())} files" if problems
          else f"{arguments.run}: sound, {len(run.files())} files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
