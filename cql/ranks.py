"""A job of several processes (ranks), which torchrun starts, watches and starts again: who this one is, and its work.

``torchrun --nproc-per-node K train.py …`` starts K ranks, ``--nnodes N`` with them on N machines, which must share the
file system of the run folder. Members do not depend on each other, so ranks only wait for each other, at a barrier.
"""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from cql.errors import RunError

MEET = timedelta(minutes=5)  # Gloo's time-out for the ranks to find each other
WAIT = timedelta(days=1)  # Gloo's time-out of a barrier: the last rank may come so much later than the first


class Interrupted(Exception):
    """A signal arrived, or another rank or torchrun has ended; checkpoints hold what was trained."""


class Ranks:
    """This process: ``rank`` 0 … ``world`` - 1, ``local_rank`` on its machine; by default a job of one process.
    ``launched``: torchrun has started it, and may start it again."""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, launched: bool = False):
        self.rank, self.world, self.local_rank, self.launched, self.first = rank, world, local_rank, launched, rank == 0
        self._group = dist.new_group(timeout=WAIT, backend="gloo") if world > 1 else None
        self._parent, self._stopped = os.getppid(), False

    def share(self, items: list, cost: Callable) -> list:
        """The items that fall to this rank when they are dealt out in turn, the costliest first."""
        return sorted(items, key=cost, reverse=True)[self.rank :: self.world]

    def stop(self, *_) -> None:
        """Sets ``stopped``; may handle signals."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether this rank is to end: it was told to, or its torchrun has died, and others may take over its work."""
        return self._stopped or (self.launched and os.getppid() != self._parent)

    def wait_for_all(self) -> None:
        """Returns when every rank has called it. Raises Interrupted if this one is stopped or another has ended."""
        if self.world == 1:
            return
        try:
            barrier = dist.barrier(self._group, async_op=True)
            while not barrier.is_completed():  # its wait() would hear no signal
                if self.stopped:
                    raise Interrupted("stopped while waiting for the other ranks.")
                time.sleep(0.05)
            barrier.wait()
        except RuntimeError:
            raise Interrupted("stopped because another rank has ended.") from None


def joined() -> Ranks:
    """This process's place in the job that torchrun describes in the environment; a job of one without torchrun."""
    if not dist.is_torchelastic_launched():
        return Ranks()
    found = os.environ
    rank, world, shared = int(found["RANK"]), int(found["WORLD_SIZE"]), found["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    if shared and found["GROUP_WORLD_SIZE"] != "1" and found["TORCHELASTIC_MAX_RESTARTS"] != "0":
        if rank > 0:  # the first says why
            sys.exit(2)
        raise RunError("restarts on several machines need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set for each torchrun.")
    try:
        if world > 1:
            attempt = found["TORCHELASTIC_RESTART_COUNT"] if shared else ""  # a shared store keeps old addresses
            store = dist.PrefixStore(attempt, next(dist.rendezvous("env://", timeout=MEET))[0])
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=MEET)
        return Ranks(rank, world, int(found["LOCAL_RANK"]), launched=True)
    except RuntimeError as error:
        raise Interrupted(f"not all {world} ranks have met ({str(error).splitlines()[0]}).") from None
