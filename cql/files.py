"""Files that are written whole or not at all, and archives of tensors that are checked when they are read."""

import datetime
import hashlib
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from cql.errors import RunError, first_line


def atomic_write(path, contents: bytes) -> None:
    """The file with these contents. Raises as ``atomic_file`` does."""
    with atomic_file(path) as file:
        file.write(contents)


def write_json(path, value) -> None:
    """The file with this value as JSON, without NaN and infinity, which JSON does not have."""
    atomic_write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


@contextmanager
def atomic_file(path):
    """An open file beside the target, flushed to disk and renamed at the end: readers see the old file or the new one.
    Raises OSError if the folder is missing, unwritable or full; nothing is left behind."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(path) -> None:
    """Flushes the names in a folder to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def archive_bytes(contents: dict) -> bytes:
    """A ``.pt`` archive built in memory, so that equal contents give equal bytes, with a digest of its contents.

    PyTorch does not check the checksums of the archives it reads, so a flipped bit would pass as a weight.
    """
    buffer = io.BytesIO()
    torch.save({"contents": contents, "sha256": contents_digest(contents)}, buffer)
    return buffer.getvalue()


def load_archive(path) -> dict:
    """Reads a ``.pt`` archive of ``archive_bytes`` without unpickling anything but tensors and plain values.
    Raises RunError if it is missing, damaged or of another kind."""
    try:
        archive = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"there is no file {path}.") from None
    except Exception as error:  # torch raises many kinds on a damaged archive
        raise RunError(f"{path} cannot be read: it is damaged or no archive of tensors "
                       f"({first_line(error)}).") from None
    if not isinstance(archive, dict) or archive.keys() != {"contents", "sha256"} or not isinstance(
            archive["contents"], dict):
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
    Raises TypeError for a value of another kind."""
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


def utc_now() -> str:
    """The time, in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_folder(out: str | None, prefix: str = "") -> Path:
    """The folder ``out``, newly made; without it one under ``runs/``, named after the time.
    Raises RunError if it exists, or cannot be made."""
    stamp, number = prefix + datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), 0
    while True:  # two runs may start within a second
        path = Path(out) if out is not None else Path("runs") / (stamp + (f"-{number}" if number else ""))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if out is not None:
                raise RunError(f"the folder {out} exists already: give another --out.") from None
            number += 1
        except OSError as error:
            raise RunError(f"the folder {path} cannot be made ({error.strerror}).") from None
