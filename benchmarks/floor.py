"""What an update costs at least: operations and bytes from its shapes, and this machine's rates at just these sizes."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple

import torch

from benchmarks.session import rate

ADAM = 13  # operations per parameter: 3 for the first moment, 4 for the second, 3 for the denominator, 3 for the step
CALIBRATION = 0.05  # seconds per candidate arrangement of the products


class Product(NamedTuple):
    """``[rows, inner] @ [inner, columns]``, once per member."""

    layer: int
    kind: str  # "forward" | "weights" | "inputs": the layer's output, its weights' gradient, its inputs' gradient
    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inner * self.columns

    @property
    def numbers(self) -> int:
        """Read and written, each once."""
        return self.rows * self.inner + self.inner * self.columns + self.rows * self.columns


class Cost(NamedTuple):
    """Of one update of one member."""

    product_operations: int
    operations: int
    bytes: int


def products(sizes: list[tuple[int, int]], discrete: bool, rows: int) -> list[Product]:
    """The matrix products of one update of one member.

    Args:
        sizes: ``(inputs, outputs)`` of each layer. discrete: the first layer is a table of rows.
        rows: observations that the network reads.
    """
    found = []
    for n, (i, o) in enumerate(sizes):
        if discrete and n == 0:
            continue
        found.append(Product(n, "forward", rows, i, o))
        found.append(Product(n, "weights", i, rows, o))
        if n:
            found.append(Product(n, "inputs", rows, o, i))
    return found


def update_cost(sizes: list[tuple[int, int]], discrete: bool, rows: int) -> Cost:
    """Operations and bytes that no implementation in float32 can do without.

    Operations: the products; per output of a layer the bias, its gradient, the ReLU and its mask; Adam's 13 per
    parameter. The loss (a few per output of the last layer) is left out. Bytes: each product reads its operands and
    writes its result once, a table's rows are read and written in both directions, Adam reads four numbers per parameter
    and writes three; elementwise work can be fused into these and moves nothing.
    """
    made = products(sizes, discrete, rows)
    parameters = elementwise = looked_up = 0
    for n, (i, o) in enumerate(sizes):
        table = discrete and n == 0
        parameters += i * o + (0 if table else o)
        looked_up += 4 * rows * o if table else 0
        elementwise += 0 if table else 2 * rows * o
        elementwise += 2 * rows * o if n < len(sizes) - 1 and not table else 0
    operations = sum(one.operations for one in made)
    numbers = sum(one.numbers for one in made) + looked_up + 7 * parameters
    return Cost(operations, operations + elementwise + ADAM * parameters, 4 * numbers)


class Rates:
    """The machine's rates at the sizes of one population's updates.

    The products are arranged as the engine's, cohort by cohort, several cohorts at once and each on one thread; and also
    with all members in one ``torch.bmm`` on all threads. Each layer's weight may be stored either way round. The fastest
    arrangement counts.

    Args:
        sizes, discrete, rows: as for ``products``.
        cohorts: members of each cohort. threads: that a CPU is to use.
    """

    def __init__(self, sizes: list[tuple[int, int]], discrete: bool, rows: int, cohorts: list[int], threads: int,
                 device: torch.device):
        self.device = device
        made, members, before = products(sizes, discrete, rows), sum(cohorts), torch.get_num_threads()
        layers = [list(layer) for _, layer in itertools.groupby(made, key=lambda one: one.layer)]
        self._operations = members * sum(one.operations for one in made)
        threads = threads if device.type == "cpu" else 1
        different = dict.fromkeys([(tuple(cohorts), min(threads, len(cohorts)), 1), ((members,), 1, threads)])
        self._arrangements = []  # (one pass over all products, what PyTorch is set to)
        for split, workers, each in different:
            torch.set_num_threads(each)
            run = map if workers == 1 else ThreadPoolExecutor(workers).map
            chosen = []  # per layer the works of all cohorts
            for layer in layers:
                ways = [[_layer_work(layer, count, turned, device) for count in split] for turned in (False, True)]
                chosen.append(max(ways, key=lambda way: rate(self._once(way, run), CALIBRATION, self._synchronise)))
            self._arrangements.append((self._once([_in_turn(works) for works in zip(*chosen)], run), each))
        torch.set_num_threads(before)
        parameters = members * sum(i * o for i, o in sizes)
        self._from, self._to = (torch.zeros(4 * parameters, device=device) for _ in range(2))

    def products(self, seconds: float) -> float:
        """Operations per second of the matrix products alone, by ``torch.bmm``."""
        before, rates = torch.get_num_threads(), []
        for work, threads in self._arrangements:
            torch.set_num_threads(threads)
            rates.append(self._operations * rate(work, seconds / len(self._arrangements), self._synchronise))
        torch.set_num_threads(before)
        return max(rates)

    def copy(self, seconds: float) -> float:
        """Bytes per second, read plus written, of copying as much memory as Adam works on."""
        def copy() -> int:
            self._to.copy_(self._from)
            return 1
        return 2 * 4 * self._from.numel() * rate(copy, seconds, self._synchronise)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _once(self, works: list[Callable[[], None]], run) -> Callable[[], int]:
        """All the works once; on a GPU as a graph, so that it is the device that is measured and not the launching."""
        def all_works() -> int:
            for _ in run(lambda work: work(), works):
                pass
            return 1
        if self.device.type != "cuda":
            return all_works
        all_works()  # what cuBLAS sets up at its first call cannot be captured
        self._synchronise()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_works()

        def replay() -> int:
            graph.replay()
            return 1
        return replay


def _in_turn(works: tuple[Callable[[], None], ...]) -> Callable[[], None]:
    def run() -> None:
        for work in works:
            work()
    return run


def _layer_work(layer: list[Product], members: int, transposed: bool, device: torch.device) -> Callable[[], None]:
    """The products of one layer for so many members; if transposed, weight and gradient lie ``[outputs, inputs]``."""
    rows, inputs, outputs = layer[0].rows, layer[0].inner, layer[0].columns

    def numbers(*shape):
        return torch.rand(members, *shape, device=device) - 0.5

    (x, below), (delta, result) = ((numbers(rows, width), numbers(rows, width)) for width in (inputs, outputs))
    shape = (outputs, inputs) if transposed else (inputs, outputs)
    weight, gradient = numbers(*shape), numbers(*shape)
    in_out = weight.mT if transposed else weight
    left, right = (delta, x) if transposed else (x, delta)
    calls = {"forward": (x, in_out, result), "weights": (left.mT, right, gradient), "inputs": (delta, in_out.mT, below)}
    made = [calls[one.kind] for one in layer]

    def run() -> None:
        for a, b, out in made:
            torch.bmm(a, b, out=out)
    return run
