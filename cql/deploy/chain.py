"""An append-only log of JSON records, one a line, each of which carries the SHA-256 of the line before it.

Whoever edits, removes, inserts or reorders a line breaks the chain there. What a chain cannot show: that its last lines
were cut off whole, or that someone who may write the file made all of it anew. Against both there is its head, the
``sha256`` of the last record: kept elsewhere, it must be found again in every later state of the log
(``ChainedLog.problems(head)``).
"""

import hashlib
import json
import os
import re
import stat
from pathlib import Path

from cql.errors import RunError

FIRST = "0" * 64  # what the first record has for the line before it
MAX_LINE = 2**16  # bytes
DIGEST = re.compile(r"[0-9a-f]{64}")


def line_of(record: dict) -> bytes:
    """The one way a record is written, without the end of the line. Raises ValueError for NaN and infinite numbers."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sealed(facts: dict, n: int, before: bytes | None) -> dict:
    """The record of these facts: number n (from 0), after the line ``before`` (None: there is none)."""
    record = {**facts, "n": n, "previous": FIRST if before is None else hashlib.sha256(before).hexdigest()}
    return {**record, "sha256": hashlib.sha256(line_of(record)).hexdigest()}


def opened(line: bytes) -> dict:
    """The record in a line. Raises ValueError, a few words, if it is none or not what its own digest says."""
    if len(line) > MAX_LINE:
        raise ValueError(f"is longer than {MAX_LINE} bytes")
    try:
        record = json.loads(line)
        whole = isinstance(record, dict) and line_of(record) == line
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    if not whole:
        raise ValueError("is not in the form in which records are written")
    if record.get("sha256") != hashlib.sha256(line_of({k: v for k, v in record.items() if k != "sha256"})).hexdigest():
        raise ValueError("was changed: it does not have the digest it was written with")
    return record


def unchained(lines: list[bytes], sound: int = 0) -> tuple[list[dict], list[str]]:
    """The records in these lines but the first ``sound`` ones, and all that breaks their chain, a sentence each."""
    records, problems = [], []
    for n, line in enumerate(lines[sound:], sound):
        try:
            record = opened(line)
        except ValueError as error:
            problems.append(f"line {n + 1} {error}.")
            continue
        expected = sealed({}, n, lines[n - 1] if n else None)
        if record.get("previous") != expected["previous"]:
            problems.append(f"line {n + 1} does not follow the line before it: "
                            "lines were removed, added, changed or moved.")
        elif record.get("n") != n:
            problems.append(f"line {n + 1} has the number {record.get('n')!r}.")
        records.append(record)
    return records, problems


class ChainedLog:
    """The log in one file. Readers never lock: a line counts once its end is written. Writers hold their own lock."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._last: tuple[tuple | None, dict | None] = (None, None)  # state of the file, its last record
        self._sound: tuple[list, list] = ([], [])  # lines found sound before, their records

    def records(self) -> list[dict]:
        """Every record, in order; a last line without an end is left out. Raises RunError if the chain is broken."""
        return list(self._read()[0])

    def last(self) -> dict | None:
        """The last record, held against its own digest; the file is read again only when it has changed.

        Raises:
            RunError: the last line is no record.
        """
        try:
            with _opened(self.path) as file:
                found = os.fstat(file.fileno())
                state = (found.st_ino, found.st_size, found.st_mtime_ns)
                if state == self._last[0]:
                    return self._last[1]
                file.seek(max(0, found.st_size - 2 * MAX_LINE))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return None
        if not lines and found.st_size > MAX_LINE:
            raise RunError(f"{self.path} is broken: its last line is longer than {MAX_LINE} bytes.")
        try:
            record = opened(lines[-1]) if lines else None
        except ValueError as error:
            raise RunError(f"{self.path} is broken: its last line {error}.") from None
        self._last = (state, record)
        return record

    def problems(self, head: str | None = None) -> list[str]:
        """Whatever is wrong, a sentence each; a last line without an end too.

        Args:
            head: the ``sha256`` of a record that was the last one once: said, if it is in the chain no more.
        """
        try:
            lines, torn = self._lines()
        except RunError as error:
            return [str(error)]
        records, found = unchained(lines)
        if torn:
            found.append(f"line {len(lines) + 1} has no end: its writer was stopped, and the next record cuts it off.")
        if head is not None and head != FIRST and head not in {record["sha256"] for record in records}:
            found.append(f"no record has the digest {head}: "
                         "the log was cut off or written anew since that was its head.")
        return [f"{self.path.name}: {problem}" for problem in found]

    def append(self, facts: dict) -> dict:
        """Adds a record on disk and returns it; the caller holds the writers' lock. A torn last line is cut off, and
        the record says so: ``cut`` is the SHA-256 of its text, else None.

        Raises:
            RunError: the chain is broken, or the record too long. OSError: nothing was added.
        """
        _, lines, torn = self._read()
        cut = hashlib.sha256(torn).hexdigest() if torn else None
        try:
            record = sealed({**facts, "cut": cut}, len(lines), lines[-1] if lines else None)
        except ValueError as error:
            raise RunError(f"the log cannot hold this record ({error}).") from None
        line = line_of(record)
        if len(line) > MAX_LINE:
            raise RunError(f"a record of {len(line)} bytes is too long for the log.")
        end = sum(map(len, lines)) + len(lines)
        with _opened(self.path, os.O_RDWR | os.O_CREAT) as file:
            file.seek(end)
            try:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[file.write(rest) :]
                file.truncate(end + len(line) + 1)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
        sync_folder(self.path.parent)
        return record

    def _read(self) -> tuple[list[dict], list[bytes], bytes]:
        """Records, their lines, and what follows the last of them. Raises RunError if the chain is broken."""
        lines, torn = self._lines()
        sound, records = self._sound
        if lines[: len(sound)] != sound:
            sound, records = [], []
        further, problems = unchained(lines, len(sound))
        if problems:
            raise RunError(f"{self.path} is broken: {problems[0]}")
        self._sound = lines, records + further
        return records + further, lines, torn

    def _lines(self) -> tuple[list[bytes], bytes]:
        """The lines that have an end, without it, and what follows the last of them."""
        try:
            with _opened(self.path) as file:
                *lines, torn = file.read().split(b"\n")
        except FileNotFoundError:
            return [], b""
        return lines, torn


def refuse_other_kinds(path: Path) -> None:
    """Raises RunError if the path is a link, a pipe or a folder instead of a plain file. What is not there passes."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(mode):
        raise RunError(f"{path} is a link or another thing than a plain file.")


def sync_folder(path: Path) -> None:
    """Flushes the names in a folder to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _opened(path: Path, flags: int = os.O_RDONLY):
    """An open binary file that is no link; unbuffered, so that nothing is written later than it is meant to be."""
    refuse_other_kinds(path)
    try:
        number = os.open(path, flags | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be opened ({error.strerror}).") from None
    return os.fdopen(number, "rb" if flags == os.O_RDONLY else "r+b", buffering=0)
