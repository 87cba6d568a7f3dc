"""What the service decided, a line of JSON each: FOLDER/decisions.jsonl, and full files decisions-00000001.jsonl, …

A line is with the operating system before its decision is answered, so that it outlives the process however that ends.
A thread flushes to the disk every second: a power failure takes at most the lines since then.
"""

import fcntl
import logging
import os
import threading
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from cql.errors import RunError

NUMBERED = f"decisions-{8 * '[0-9]'}.jsonl"


class DecisionLog(RotatingFileHandler):
    """The log in a folder, made if it is missing; one process at a time writes it, and begins a file of its own.

    Args:
        size: bytes of a file. keep: how many full files remain, the newest; None: all.

    Attributes:
        problem: what the system said when the last flush failed or the file was not in its place; else None.

    Raises:
        RunError: another process writes it, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, size: int = 2**26, keep: int | None = None):
        self.folder, self.keep, self._closing = Path(folder), keep, threading.Event()
        self.problem: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._directory = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            super().__init__(self.folder / "decisions.jsonl", maxBytes=size, backupCount=1)
            self.doRollover()
        except OSError as error:
            reason = "another process is writing it" if isinstance(error, BlockingIOError) else error.strerror
            raise RunError(f"the decision log {self.folder} cannot be written ({reason}).") from None
        self._flusher = threading.Thread(target=self._flush_each_second, daemon=True)
        self._flusher.start()

    def append(self, lines: str) -> None:
        """Adds lines, which stay together in one file. Raises OSError if they cannot be written."""
        self.handle(logging.makeLogRecord({"msg": lines}))

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        return self.stream is None or self.stream.tell() + len(record.msg) >= self.maxBytes

    def namer(self, _: str) -> str:  # type: ignore[override]
        number = int(max(self.folder.glob(NUMBERED), default=Path("decisions-0")).stem[10:]) + 1
        return str(self.folder / f"decisions-{number:08d}.jsonl")

    def rotator(self, source: str, numbered: str) -> None:  # type: ignore[override]
        """Gives a file that holds lines its number, and a torn last line an end: no other is to continue it."""
        if not os.path.exists(source) or not os.path.getsize(source):
            return
        with open(source, "rb+", buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
            os.fsync(file)
        os.rename(source, numbered)
        if self.keep is not None:
            for path in sorted(self.folder.glob(NUMBERED))[: -self.keep]:
                path.unlink()

    def handleError(self, record: logging.LogRecord) -> None:
        """Raises what kept a line from being written, half of which may stand in the file: a new file follows."""
        self._leave_file()
        raise

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._flusher.join()
            self._flush()
            super().close()
            os.close(self._directory)

    def _leave_file(self) -> None:
        stream, self.stream = self.stream, None  # type: ignore[assignment]
        if stream is not None:
            with suppress(OSError):
                stream.close()

    def _flush_each_second(self) -> None:
        while not self._closing.wait(1.0):
            self._flush()

    def _flush(self) -> None:
        """Raises nothing, and holds no lock while the disk works."""
        problem = None
        try:
            with open(self.baseFilename, "rb") as file:
                os.fsync(file)
            os.fsync(self._directory)
        except OSError as error:
            problem = str(error)
            if isinstance(error, FileNotFoundError):
                with self.lock:
                    self._leave_file()
        if (problem is None) != (self.problem is None):
            logging.getLogger("cql.deploy").warning("decision log: %s", problem or "flushed again")
        self.problem = problem
