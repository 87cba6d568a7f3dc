"""CUDA graphs: a function whose work is all on the device, captured once and then replayed without Python."""

from collections.abc import Callable

import torch

Work = Callable[[], None]


class Graphs:
    """One graph for every ``count`` of a function that reads and writes tensors that stay where they are.

    The first call of a ``count`` runs the function as it stands, which does the work and brings cuBLAS and the
    allocator to where a capture may start; the second captures it, and from then on it is replayed. Results are those
    of the function itself: the same kernels in the same order.

    Args:
        record: makes of a function, without running it, one that does its work; ``Recorder`` on a CUDA device.
    """

    def __init__(self, record: Callable[[Work], Work]):
        self.record = record
        self.graphs: dict[int, Work] = {}
        self.warm: set[int] = set()

    def run(self, function: Callable[[int], None], count: int) -> None:
        """Does what ``function(count)`` does; always the same function."""
        if count not in self.warm:
            self.warm.add(count)
            function(count)
            return
        if count not in self.graphs:
            self.graphs[count] = self.record(lambda: function(count))
        self.graphs[count]()


class Recorder:
    """Records on one CUDA device. Its graphs are replayed one after the other, so they share their memory.

    The stream is its own: PyTorch's default one for captures belongs to the first device that captured, and a graph
    captured there for another device is empty.
    """

    def __init__(self, device: torch.device):
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, function: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self.pool, self.stream):
            function()
        return graph.replay
