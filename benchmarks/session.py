"""How a measuring child process is talked to: one line of JSON when it is ready, then one for every line of seconds it reads.

Runs under any Python (the peers' environments too): imports nothing but the standard library.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


class MeasuringError(RuntimeError):
    """A measuring child ended before it answered; the message is its last words."""


class Session:
    """A child process that measures when told to and sleeps otherwise, so that several can be measured in turns.

    Attributes:
        ready: what the child said of itself once set up and warmed up.
    """

    def __init__(self, interpreter: str, module: str, settings: dict, checkout: Path | str = ROOT):
        self._words = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen([interpreter, "-m", module, json.dumps(settings)], cwd=checkout, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words)
        self.ready = self._answer()

    def measure(self, seconds: float) -> dict:
        """Raises MeasuringError if the child has died."""
        try:
            print(seconds, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # the reason stands on its stderr
        return self._answer()

    def close(self) -> None:
        self.process.communicate()
        self._words.close()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries write to stdout as they like
                return json.loads(line)
        self.process.wait()
        self._words.seek(0)
        words = self._words.read().strip().splitlines() or [f"exit status {self.process.returncode}"]
        raise MeasuringError(f"{' '.join(self.process.args[:3])} ended before it answered: {words[-1]}")


def serve(ready: dict, measure) -> None:
    """The child's side: says that it is ready, then answers every line of seconds with ``measure(seconds)``."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), flush=True)


def rate(work, seconds: float, synchronise=lambda: None) -> float:
    """Units per second of ``work()``, which does some and returns how many, repeated for about so many seconds."""
    units, spent, calls = 0, 0.0, 1
    synchronise()
    while spent < seconds:
        start = time.perf_counter()
        units += sum(work() for _ in range(calls))
        synchronise()
        took = time.perf_counter() - start
        spent += took
        if took < seconds / 20:
            calls *= 2
    return units / spent


def peak_memory() -> int:
    """The largest resident size of this process so far, and what its worker processes hold now beside it, in bytes.

    From Linux's VmHWM: ``ru_maxrss`` also counts what the parent held when it forked.
    """
    return _own_peak() + sum(_private(child.pid) for child in multiprocessing.active_children())


def _private(pid: int) -> int:
    with suppress(OSError):  # there is no such file, or the process has ended
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
    return 0


def _own_peak() -> int:
    if os.path.exists("/proc/self/status"):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
