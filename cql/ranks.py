"""A job of several processes (ranks): who this one is, what work it takes, and how it learns that another is gone.

``torchrun --nproc-per-node K train.py …`` starts K ranks, ``--nnodes N`` with them on N machines; the run folder must
then lie on a file system that all of them share. Without torchrun the job is one process and nothing here is started.

Members never talk to each other, so no tensor travels and no process group is made: neither Gloo nor NCCL would have
anything to do. What the ranks share is the key-value store of ``torch.distributed`` that torchrun keeps anyway: a
counter that deals out the work, the path of the run, and signs of life. (A collective would be worse: a rank that waits
inside one hears no signal, its timeout would bound how unequal ranks may be, and ``broadcast_object_list`` unpickles.)
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

BEAT = 1.0  # seconds between two signs of life, and between two looks at those of the others
SILENCE = 30.0  # seconds without one after which a rank on another node counts as gone
STORE_TIMEOUT = timedelta(seconds=120)  # for an answer of the store, and for all ranks to appear
LEFT = b"left"  # the last sign of life of a rank that ended in good order
STORE_GONE = "torchrun on the first node, which holds the store of the job, is gone."


class Stopped(Exception):
    """The job has ended; ``status`` is what this rank exits with."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.status = status


class Ranks:
    """This process among those of its job; ``Ranks()`` is a job of one.

    Attributes:
        rank: 0 … world - 1. world: number of processes. local_rank: place among those of this node.
        launcher: the command that started the job, as far as it can be told.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, node: int = 0, launcher: str = "python",
                 store: dist.Store | None = None):
        self.rank, self.world, self.local_rank, self.node, self.launcher = rank, world, local_rank, node, launcher
        self._store = dist.HashStore() if store is None else store
        self._ending: tuple[str, int] | None = None  # (reason, status) once the job is to end
        self._beats: dict[int, tuple[bytes, float]] = {}  # rank -> (its last sign of life, when it was first seen)
        self._processes: dict[int, list[int]] = {}  # rank -> [node, process id]

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, word: dict) -> None:
        """What the other ranks wait for in ``hear``."""
        self._store.set("word", json.dumps(word))

    def hear(self) -> dict:
        """The word of the first rank. Raises Stopped if it, or another, ended the job instead."""
        while not self._store.check(["word"]):
            if self._ending:
                raise Stopped(*self._ending)
            time.sleep(BEAT / 20)
        return json.loads(self._store.get("word"))

    def share(self, items: list) -> Iterator:
        """Deals ``items`` out in their order, each to the rank that asks next. Ends early if the job does."""
        while not self.stopped and (number := self._store.add("dealt", 1)) <= len(items):
            yield items[number - 1]

    def wait_for_all(self) -> None:
        """Says that this rank has done its work; the first rank waits until all have, or the job is stopped."""
        self._store.set(f"done/{self.rank}", "")
        while self.first and not self.stopped and not self._store.check([f"done/{rank}" for rank in range(self.world)]):
            time.sleep(BEAT / 20)

    # --------------------------------------------------------------------------------------------------- the end

    def stop(self, reason: str = "", status: int = 130) -> None:
        """Ends the job: the others notice within about a second. The first reason stands.

        Args:
            reason: a line that names the rank; without one, that of a rank of this node which vanished just now (it is
                why torchrun sends the others a signal), or none.
        """
        try:
            reason = reason or next(filter(None, map(self._gone, self._processes)), "")
            stands = json.loads(self._store.compare_set("stop", "", json.dumps([reason, status])))
        except RuntimeError:
            stands = [reason or STORE_GONE, status]
        self._ending = self._ending or stands

    @property
    def stopped(self) -> bool:
        return self._ending is not None

    def say(self, text: str) -> None:
        """Prints the last words of the job to stderr, if no rank has said any: one message, not one a rank."""
        try:
            spoken = self._store.add("spoken", 1) > 1
        except RuntimeError:
            spoken = False
        if not spoken:
            print(text, file=sys.stderr)

    @property
    def reason(self) -> str:
        """Why the job ends; empty if it does not, or by a signal."""
        return self._ending[0] if self._ending else ""

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Within it, SIGINT and SIGTERM only stop the job, which the loop that trains notices."""
        previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, lambda *_: self.stop())
        except ValueError:  # not the main thread: leave signals to it
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --------------------------------------------------------------------------------------------- signs of life

    def meet(self) -> None:
        """Exchanges process ids with all ranks. Raises Stopped if one does not appear."""
        names = [f"process/{rank}" for rank in range(self.world)]
        self._store.set(names[self.rank], json.dumps([self.node, os.getpid()]))
        self._store.set(f"beat/{self.rank}", "0")
        try:
            self._store.wait(names, STORE_TIMEOUT)
        except RuntimeError:
            raise Stopped(f"not all {self.world} ranks appeared within {STORE_TIMEOUT.seconds} s.", 2) from None
        texts = self._store.multi_get(names)
        self._processes = {rank: json.loads(text) for rank, text in enumerate(texts) if rank != self.rank}

    def watch(self, ended: threading.Event) -> None:
        """In a thread of its own, until ``ended``: gives signs of life, looks for the job's end and for lost ranks.

        The first rank looks at all, the others at the first. A rank whose node died is noticed by its silence; those
        beside one that died on their own node are ended by torchrun.
        """
        watched = list(self._processes) if self.first else [0]
        count = 0
        while not ended.is_set():
            count += 1
            try:
                self._store.set(f"beat/{self.rank}", str(count))
                if self._store.check(["stop"]):
                    self._ending = self._ending or json.loads(self._store.get("stop"))
                for rank in watched:
                    if gone := self._gone(rank):
                        self.stop(gone)
            except RuntimeError:
                self._ending = self._ending or (STORE_GONE, 130)
                return
            ended.wait(BEAT)

    def leave(self) -> None:
        with suppress(RuntimeError):
            self._store.set(f"beat/{self.rank}", LEFT.decode())

    def _gone(self, rank: int) -> str | None:
        """A sentence if the rank has vanished without leaving."""
        beat, now = self._store.get(f"beat/{rank}"), time.monotonic()
        if beat == LEFT:
            return None
        node, process = self._processes[rank]
        if node == self.node and not _exists(process):
            return None if self._store.get(f"beat/{rank}") == LEFT else f"rank {rank} (process {process}) died."
        if rank not in self._beats or self._beats[rank][0] != beat:
            self._beats[rank] = beat, now
        silent = now - self._beats[rank][1]
        if silent <= SILENCE:
            return None
        return f"rank {rank} (on node {node}) has given no sign of life for {silent:.0f} s."


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process's place in the job that torchrun describes in the environment; a job of one without torchrun.

    An exception that leaves the block ends the whole job.

    Raises:
        Stopped: not all ranks appeared.
    """
    found = os.environ
    if "RANK" not in found or int(found.get("WORLD_SIZE", 1)) == 1:
        yield Ranks()
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=STORE_TIMEOUT))
    nodes = int(found.get("GROUP_WORLD_SIZE", 1))
    several = f"--nnodes {nodes} … " if nodes > 1 else ""
    launcher = f"torchrun {several}--nproc-per-node {found.get('LOCAL_WORLD_SIZE', world)}"
    ranks = Ranks(rank, world, int(found.get("LOCAL_RANK", 0)), int(found.get("GROUP_RANK", 0)), launcher,
                  dist.PrefixStore(f"glassbox-cql/{found.get('TORCHELASTIC_RESTART_COUNT', 0)}", store))
    ranks.meet()
    ended = threading.Event()
    watch = threading.Thread(target=ranks.watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield ranks
    except SystemExit as end:
        ranks.stop("", end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException as error:
        ranks.stop(f"rank {rank} failed ({type(error).__name__}).", 1)
        raise
    finally:
        ended.set()
        watch.join()
        ranks.leave()


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
