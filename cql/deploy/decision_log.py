"""What the service decided, a line of JSON each, in numbered files of bounded size and number.

    FOLDER/decisions-00000001.jsonl  decisions-00000002.jsonl  …  lock

A line is with the operating system before its decision is answered: it outlives the process however that ends. A thread
flushes to the disk every ``FLUSH`` seconds: a power failure takes at most the lines since then. A file is never
renamed, and never written again once the next one is begun; when one is full, the newest ``files`` of them are kept.
The log may hold a decision whose answer did not get out, never the other way round.

All is done in the folder that was opened, wherever that is moved. If it is removed, nothing can be appended any more.
"""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cql.errors import RunError

FLUSH = 1.0  # seconds
TAIL = 2**20  # bytes: longer than any line (numbers are written at most four times as long as a body may give them)
NAME, LOCK = re.compile(r"decisions-(\d{8,})\.jsonl"), "lock"
OPENING = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

log = logging.getLogger("cql.deploy")


class AuditLog:
    """The log in a folder, made if it is missing; one process at a time writes it.

    Args:
        size: bytes that a file holds at most (a longer append has one of its own). files: how many are kept.

    Attributes:
        problem: a sentence, where the last flush failed or did not find the file in its place.

    Raises:
        RunError: another process writes it, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 2**26, files: int = 16):
        self.folder, self.size, self.files = Path(folder), size, files
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._directory = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock = os.open(LOCK, OPENING, 0o600, dir_fd=self._directory)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                os.close(self._directory)
                raise RunError(f"another process is writing the audit log {self.folder}.") from None
            self._number = max(self._numbers(), default=1)
            self._file, self._length = self._opened(self._number)
        except OSError as error:
            raise RunError(f"the audit log {self.folder} cannot be written ({error.strerror}).") from None
        self._full: list[int] = []  # open files that are no longer written, to be flushed and closed
        self._lost = False  # whether what the present file holds may be torn, not on the disk, or out of reach
        # whether the last flush of a present file failed: one new file is begun for it, not one a second
        self._failing = False
        self.problem: str | None = None
        self._writing, self._stop = threading.Lock(), threading.Event()
        self._flusher = threading.Thread(target=self._flush_until_stopped, name="audit log", daemon=True)
        self._flusher.start()

    def append(self, lines: bytes) -> None:
        """Adds whole lines, all of them or none; they stay together in one file.

        Raises:
            OSError: nothing was added: the disk is full, or no new file can be begun where one is needed.
        """
        with self._writing:
            full = 0 < self._length > self.size - len(lines)
            if full or self._lost:
                self._begin_next()
            if full:  # never for a file that was lost: a disk that fails must not cost what is older
                self._remove_oldest()
            written = 0
            try:
                while written < len(lines):
                    written += os.write(self._file, lines[written:])
            except OSError:
                try:
                    os.ftruncate(self._file, self._length)
                except OSError:
                    self._lost = True  # a torn line may stand there: the next one belongs in another file
                raise
            self._length += written

    def close(self) -> None:
        """Flushes what is left and gives the folder free."""
        self._stop.set()
        self._flusher.join()
        self._flush()
        for file in (self._file, self._lock, self._directory):
            _failure(os.close, file)

    def _begin_next(self) -> None:
        file, length = self._opened(self._number + 1)
        self._full.append(self._file)
        self._number, self._file, self._length, self._lost = self._number + 1, file, length, False

    def _remove_oldest(self) -> None:
        for number in self._numbers()[: -self.files]:
            if failure := _failure(partial(os.unlink, _name(number), dir_fd=self._directory)):
                log.warning("audit log %s: %s stays: %s.", self.folder, _name(number), failure)

    def _opened(self, number: int) -> tuple[int, int]:
        """The file of this number, cut back to its last whole line (the rest was never answered), and its length."""
        file = os.open(_name(number), OPENING | os.O_APPEND, 0o600, dir_fd=self._directory)
        try:
            length = os.fstat(file).st_size
            tail = os.pread(file, TAIL, max(0, length - TAIL))
            whole = length - len(tail) + tail.rfind(b"\n") + 1
            if whole < length:
                os.ftruncate(file, whole)
            return file, whole
        except BaseException:
            os.close(file)
            raise

    def _flush_until_stopped(self) -> None:
        while not self._stop.wait(FLUSH):
            self._flush()

    def _flush(self) -> None:
        """Raises nothing: the thread must go on."""
        with self._writing:
            full, self._full = self._full, []
            file, name = self._file, _name(self._number)
        # outside the lock: a slow disk holds up no decision
        present, place = _failure(os.fsync, file), _failure(self._find, file, name)
        others = [_failure(os.fsync, other) for other in (*full, self._directory)]
        for closed in full:
            _failure(os.close, closed)
        with self._writing:
            if file == self._file and (place or present and not self._failing):
                self._lost = True
        self._failing = present is not None
        problem = next(filter(None, (present, place, *others)), None)
        if (problem is None) != (self.problem is None):
            log.warning("audit log %s: %s.", self.folder, problem and f"not flushed: {problem}" or "flushed again")
        self.problem = problem

    def _find(self, file: int, name: str) -> None:
        """Raises OSError if the open file is not the one of this name in the folder."""
        if not os.path.samestat(os.fstat(file), os.stat(name, dir_fd=self._directory, follow_symlinks=False)):
            raise FileExistsError(f"another file is in the place of {name}")

    def _numbers(self) -> list[int]:
        """Of the files that are there, oldest first."""
        found = (NAME.fullmatch(name) for name in os.listdir(self._directory))
        return sorted(int(match[1]) for match in found if match and match[0] == _name(int(match[1])))


def _name(number: int) -> str:
    return f"decisions-{number:08d}.jsonl"


def _failure(action: Callable, *arguments) -> str | None:
    """What the system refused, if it did."""
    try:
        action(*arguments)
    except OSError as error:
        return str(error)
    return None
