"""CUDA graphs: a function whose work is all on the device, captured once and then replayed without Python."""

from collections.abc import Callable

import torch


class Graphs:
    """One graph for every ``count`` of a function that reads and writes tensors that stay where they are.

    The first call of a ``count`` runs the function as it stands, which does the work and brings cuBLAS and the
    allocator to where a capture may start; the second captures it, and from then on it is replayed. Results are those
    of the function itself: the same kernels in the same order.
    """

    def __init__(self) -> None:
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.warm: set[int] = set()

    def run(self, function: Callable[[int], None], count: int) -> None:
        """Does what ``function(count)`` does; always the same function."""
        if count not in self.warm:
            self.warm.add(count)
            function(count)
            return
        if count not in self.graphs:
            self.graphs[count] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[count]):  # records, does not run
                function(count)
        self.graphs[count].replay()
