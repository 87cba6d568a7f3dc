"""Workers that train several cohorts at once, each its share of them.

Threads of one Python process hardly overlap in operations of a few microseconds, each of which gives the
interpreter's lock away and waits for it again; so on Linux the workers are forked processes. Both sides see a
cohort's ``state`` and ``terms``, which lie in ``shared`` memory; everything else of a cohort is used by its worker
alone.
"""

import mmap
import multiprocessing
import os
import signal
import struct
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize

import torch
from torch import Tensor

from cql.engine.cohort import Cohort
from cql.errors import RunError

FORKS = sys.platform == "linux"
UPDATES = struct.Struct("qq")  # a worker is told a block's first update and the one after its last; nothing is pickled
STOPPING = (signal.SIGINT, signal.SIGTERM)


def shared(tensor: Tensor) -> Tensor:
    """A copy in memory that forked processes see and change together. It is not a file: /dev/shm is small in
    containers."""
    if tensor.numel() == 0:
        return tensor
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


class Threads:
    """``count`` workers, threads of this process; where there is one, the caller itself."""

    def __init__(self, cohorts: list[Cohort], count: int):
        self.cohorts = cohorts
        # denormals are flushed per thread
        threads = partial(ThreadPoolExecutor, initializer=torch.set_flush_denormal, initargs=(True,))
        self.map = map if count == 1 else threads(count).map

    def block_of_updates(self, start: int, end: int) -> None:
        for _ in self.map(lambda cohort: cohort.block_of_updates(start, end), self.cohorts):
            pass


class Processes:
    """``count`` workers, forked from this process; they end with it, or when this object is no longer used.

    Args:
        cohorts: whose ``state`` and ``terms`` lie in ``shared`` memory.
    """

    def __init__(self, cohorts: list[Cohort], count: int):
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        for n in range(count):
            ours, theirs = context.Pipe()
            self.connections.append(ours)
            process = context.Process(target=_serve, args=(cohorts[n::count], theirs, self.connections[:]), daemon=True)
            held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the worker ignores them
            try:
                with warnings.catch_warnings():  # of threads at the fork: TensorBoard's writer, which no worker uses
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
            theirs.close()
        # before this process waits for its children at its end, which are deaf to SIGTERM
        Finalize(self, _close, args=(self.connections,), exitpriority=0)

    def block_of_updates(self, start: int, end: int) -> None:
        """Makes updates ``start … end − 1`` of all cohorts and waits for them.

        Raises:
            RunError: a worker was ended from outside. RuntimeError: a worker failed; with its traceback.
        """
        try:
            for connection in self.connections:
                connection.send_bytes(UPDATES.pack(start, end))
            failures = [connection.recv_bytes().decode() for connection in self.connections]
        except (EOFError, OSError):
            raise RunError("a worker process of the training was ended from outside, "
                           "perhaps for want of memory.") from None
        for failure in failures:
            if failure:
                raise RuntimeError(f"a worker process failed:\n{failure}")


def _serve(cohorts: list[Cohort], connection: Connection, others: list[Connection]) -> None:
    """What a worker does: a block whenever it is told, until the other side is gone."""
    for number in STOPPING:  # they may reach the whole group; the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    _close(others)  # the parent's ends, held open here they would keep other workers waiting
    own = connection.fileno()
    os.closerange(3, own)  # and so would the run's lock be held by a worker whose parent was killed
    os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        while True:
            connection.send_bytes(_failure(cohorts, *UPDATES.unpack(connection.recv_bytes())).encode())
    except (EOFError, OSError):  # the other side is gone
        os._exit(0)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _failure(cohorts: list[Cohort], start: int, end: int) -> str:
    """The traceback of what went wrong in a block of updates; empty if nothing did."""
    try:
        for cohort in cohorts:
            cohort.block_of_updates(start, end)
    except Exception:
        return traceback.format_exc()
    return ""
