"""What the service decided, a line of JSON each, in numbered files of bounded size and number.

    FOLDER/decisions-00000001.jsonl  decisions-00000002.jsonl  …  lock

A line is with the operating system before its decision is answered: it outlives the process however that ends. A thread flushes
to the disk every ``FLUSH`` seconds: a power failure takes at most the lines since then. A file is never renamed, and never
written again once the next one is begun; the newest ``files`` of them are kept. The log may hold a decision whose answer did not
get out, never the other way round.
"""

import fcntl
import os
import re
import threading
from pathlib import Path

from cql.runs import RunError

FLUSH = 1.0  # seconds
TAIL = 2**20  # bytes: longer than any append
NAME, LOCK = re.compile(r"decisions-(\d{8,})\.jsonl"), "lock"


class AuditLog:
    """The log in a folder, made if it is missing; one process at a time writes it.

    Args:
        size: bytes that a file holds at most (a longer append has one of its own). files: how many are kept.

    Raises:
        RunError: another process writes it, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 2**26, files: int = 16):
        self.folder, self.size, self.files = Path(folder), size, files
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise RunError(f"another process is writing the audit log {self.folder}.") from None
            self._number = max(self._numbers(), default=1)
            self._file, self._length = self._opened(self._number)
        except OSError as error:
            raise RunError(f"the audit log {self.folder} cannot be written ({error.strerror}).") from None
        self._full = []  # open files that are no longer written, to be flushed and closed
        self._lost = False  # whether a flush failed: what the present file holds may not be on the disk
        self._writing, self._stop = threading.Lock(), threading.Event()
        self._flusher = threading.Thread(target=self._flush_until_stopped, name="audit log", daemon=True)
        self._flusher.start()

    def append(self, lines: bytes) -> None:
        """Adds whole lines, all of them or none; they stay together in one file.

        Raises:
            OSError: nothing was added: the disk is full, or a flush to it failed and no new file can be begun.
        """
        with self._writing:
            if self._lost or 0 < self._length > self.size - len(lines):
                self._begin_next()
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
        os.close(self._file)
        os.close(self._lock)

    def _begin_next(self) -> None:
        numbers = self._numbers()
        for number in numbers[: max(0, len(numbers) + 1 - self.files)]:
            self._path(number).unlink()
        file, length = self._opened(self._number + 1)
        self._full.append(self._file)
        self._number, self._file, self._length, self._lost = self._number + 1, file, length, False

    def _opened(self, number: int) -> tuple[int, int]:
        """The file of this number, cut back to its last whole line (what follows was never answered), and its length."""
        file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
        with self._writing:
            full, self._full = self._full, []
            present = self._file
        folder = os.open(self.folder, os.O_RDONLY)
        for file in (*full, present, folder):  # outside the lock: a slow disk holds up no decision
            try:
                os.fsync(file)
            except OSError:
                self._lost = True
        for file in (*full, folder):
            os.close(file)

    def _numbers(self) -> list[int]:
        """Of the files that are there, oldest first."""
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := NAME.fullmatch(path.name)))

    def _path(self, number: int) -> Path:
        return self.folder / f"decisions-{number:08d}.jsonl"
