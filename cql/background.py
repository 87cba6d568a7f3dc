"""Work that is done while the device goes on training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Does one thing after the other: in a thread of its own, or at once, where a thread would compete with the trainer
    for the same cores.

    Args:
        beside: whether there is such a thread.
    """

    def __init__(self, beside: bool):
        self.pool = ThreadPoolExecutor(1) if beside else None
        self.pending: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Begins the work, after what was begun before; raises what that raised."""
        self.wait()
        if self.pool is None:
            work()
        else:
            self.pending = self.pool.submit(work)

    def wait(self) -> None:
        """Until nothing is left to do; raises what the work raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()
