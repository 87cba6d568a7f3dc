"""One case of the throughput table, measured in a process of its own: python -m benchmarks.case '{"algorithm": "cql", …}'

Speaks the language of ``benchmarks.session``.
"""

import json
import sys
from contextlib import contextmanager
from typing import Callable, Iterator, NamedTuple

import torch

from benchmarks.floor import Rates, update_cost
from benchmarks.session import peak_memory, rate, serve
from benchmarks.turns import Child
from cql import training
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.population import slices
from cql.sampling import Transitions
from cql.slice import Slice
from cql.tile import input_rows

WARM_UP = 0.2  # seconds
AT_ONCE = 2**19  # observations read, at most, between two looks at the clock: seconds for a large slice on a CPU
UPDATES = 100_000  # of the learning rate's schedule; it is gone through again and again


class Case(NamedTuple):
    """What is trained: ``members`` agents with seeds of their own on the data set ``data``, two hidden layers of ``width``."""

    algorithm: str  # "cql" | "bc"
    observation: str
    members: int
    batch: int | str
    width: int
    transitions: int
    data: str
    device: str = "cpu"
    precision: str = "float32"


def child_of(case: Case) -> Child:
    return Child(sys.executable, "benchmarks.case", case._asdict())


class Ready(NamedTuple):
    """A slice set up as ``cql.training.train`` does it."""

    config: Config
    part: Slice
    rows: int  # observations that the network reads per update
    block: Callable[[], int]  # does the next block of updates and returns their number
    threads: int


@contextmanager
def training_slice(case: Case) -> Iterator[Ready]:
    """Everything that is known here of how ``cql.training`` makes and runs a slice."""
    cql = case.algorithm == "cql"
    config = Config(dataset=case.data, hidden=(case.width,) * 2, batch_size=case.batch, alpha=(6.0,), num_seeds=case.members,
                    steps=UPDATES * cql, bc_steps=UPDATES * (not cql), slice_size=case.members, lr=1e-4, target_interval=1000,
                    device=case.device, precision=case.precision)
    device = training.resolve_device(case.device)
    training.refuse_precision(case.precision, device)
    datasets = [OfflineDataset.load(case.data)]
    transitions = Transitions(datasets, device, compress=config.full_batch)
    with training._torch_settings(device) as threads:
        part = Slice(slices(config)[0], config, transitions, datasets, threads)
        torch.set_num_threads(part.threads_per_tile)
        step, rows = 0, input_rows(config, transitions)
        longest = max(1, AT_ONCE // (case.members * rows)) if device.type == "cpu" else part.steps

        def block() -> int:
            nonlocal step
            end = min(training._block_end(config, step, part), step + longest)
            part.block_of_updates(step, end)
            done, step = end - step, end % part.steps
            return done
        yield Ready(config, part, rows, block, threads)


@contextmanager
def measured(case: Case) -> Iterator[tuple[dict, Callable[[float], dict]]]:
    """What the case is, once warm, and the function that measures it for so many seconds."""
    device = training.resolve_device(case.device)
    synchronise = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    with training_slice(case) as (_, part, rows, block, threads):
        rate(block, WARM_UP, synchronise)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        network = part.network
        cost = update_cost(network.sizes, network.discrete, rows)
        rates = Rates(network.sizes, network.discrete, rows, part.sizes, min(threads, len(part.sizes)), part.threads_per_tile, device)

        def measure(seconds: float) -> dict:
            """Products, updates, products again: the machine's speed drifts, and so the product rate is taken around them."""
            before = rates.products(seconds / 4)
            updates = rate(block, seconds, synchronise)
            bmm, products = (sum(both) / 2 for both in zip(before, rates.products(seconds / 4)))
            return {"rate": updates * case.members, "bmm": bmm, "products": products, "copy": rates.copy(seconds / 10)}
        yield {"rows": rows, "threads": threads, "peak_memory": memory, **cost._asdict()}, measure


if __name__ == "__main__":
    with measured(Case(**json.loads(sys.argv[1]))) as session:
        serve(*session)
