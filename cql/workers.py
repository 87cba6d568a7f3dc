"""The tiles of a slice trained at once, each worker its share of them.

Threads of one Python process hardly overlap in operations of a few microseconds, each of which gives the interpreter's lock
away and waits for it again; so on Linux the workers are forked processes. Of a tile's state only ``shared`` memory is seen
by both sides; everything else of it is used by its worker alone.
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
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize

import torch
from torch import Tensor

from cql.runs import RunError
from cql.tile import Tile

FORKS = sys.platform == "linux"
UPDATES = struct.Struct("qq")  # what a worker is told: the first update of a block and the one after its last; nothing is pickled
STOPPING = (signal.SIGINT, signal.SIGTERM)


def shared(tensor: Tensor) -> Tensor:
    """A copy in memory that forked processes see and change together. It is not a file: /dev/shm is small in containers."""
    if tensor.numel() == 0:
        return tensor
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


class Threads:
    """``count`` workers, threads of this process; where there is one, the caller itself."""

    def __init__(self, tiles: list[Tile], count: int):
        self.tiles = tiles
        # denormals are flushed per thread
        self.map = map if count == 1 else ThreadPoolExecutor(count, initializer=torch.set_flush_denormal, initargs=(True,)).map

    def block_of_updates(self, start: int, end: int) -> None:
        for _ in self.map(lambda tile: tile.block_of_updates(start, end), self.tiles):
            pass


class Processes:
    """``count`` workers, forked from this process; they end with it, or when this object is no longer used.

    Args:
        tiles: whose ``state`` and ``sums`` are ``shared``.
    """

    def __init__(self, tiles: list[Tile], count: int):
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        for n in range(count):
            ours, theirs = context.Pipe()
            self.connections.append(ours)
            process = context.Process(target=_serve, args=(tiles[n::count], theirs, self.connections[:]), daemon=True)
            held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # a worker answers them from its first moment on
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
        """Raises RunError if a worker was ended, RuntimeError with its traceback if it failed."""
        try:
            for connection in self.connections:
                connection.send_bytes(UPDATES.pack(start, end))
            failures = [connection.recv_bytes().decode() for connection in self.connections]
        except (EOFError, OSError):
            raise RunError("a worker process of the training was ended from outside, perhaps for want of memory.") from None
        for failure in failures:
            if failure:
                raise RuntimeError(f"a worker process failed:\n{failure}")


def _serve(tiles: list[Tile], connection: Connection, others: list[Connection]) -> None:
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
            connection.send_bytes(_failure(tiles, *UPDATES.unpack(connection.recv_bytes())).encode())
    except (EOFError, OSError):  # the other side is gone
        os._exit(0)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _failure(tiles: list[Tile], start: int, end: int) -> str:
    """The traceback of what went wrong in a block of updates; empty if nothing did."""
    try:
        for tile in tiles:
            tile.block_of_updates(start, end)
    except Exception:
        return traceback.format_exc()
    return ""
