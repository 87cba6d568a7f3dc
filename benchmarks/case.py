"""One case of the throughput table, measured in a process of its own: python -m benchmarks.case '{"algorithm": …}'

Speaks the language of ``benchmarks.session``.
"""

import json
import sys
from contextlib import closing, contextmanager
from functools import partial
from typing import Callable, Iterator, NamedTuple

import torch

from benchmarks.floor import Rates, update_cost
from benchmarks.session import peak_memory, rate, serve
from benchmarks.turns import Child
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.device import resolve_device, torch_settings
from cql.engine.trainer import cohort_size
from cql.members import slices
from cql.sampling import Transitions
from cql.training import Slice

WARM_UP = 0.2  # seconds
AT_ONCE = 2**19  # observations read, at most, between two looks at the clock: seconds for many members on a CPU
UPDATES = 100_000  # of the learning rate's schedule; it is gone through again and again


class Case(NamedTuple):
    """What is trained: ``members`` agents of different seeds on the data set ``data``, two hidden layers of ``width``."""

    algorithm: str  # "cql" | "bc"
    observation: str
    members: int
    batch: int | str
    width: int
    transitions: int
    data: str
    device: str = "cpu"
    trainer: str = "fast"


def child_of(case: Case) -> Child:
    return Child(sys.executable, "benchmarks.case", case._asdict())


@contextmanager
def measured(case: Case) -> Iterator[tuple[dict, Callable[[float], dict]]]:
    """What the case is, once warm, and the function that measures it for so many seconds.

    Members are set up and trained as ``cql.training.train`` does it.
    """
    device, datasets = resolve_device(case.device), [OfflineDataset.load(case.data)]
    cuda = device.type == "cuda"
    synchronise = partial(torch.cuda.synchronize, device) if cuda else lambda: None
    transitions = Transitions(datasets, device, compress=case.batch == "full")
    rows = transitions.rows.unique().numel() if case.batch == "full" else case.batch  # read by the network per update
    config = Config(dataset=case.data, hidden=(case.width,) * 2, batch_size=case.batch, num_seeds=case.members, lr=1e-4,
                    steps=UPDATES * (case.algorithm == "cql"), bc_steps=UPDATES * (case.algorithm == "bc"),
                    slice_size=case.members, target_interval=1000, device=case.device, trainer=case.trainer,
                    log_every=UPDATES if cuda else max(1, AT_ONCE // (case.members * rows)))
    with torch_settings(device) as threads:
        part = Slice(config, slices(config)[0], datasets, transitions, None)
        sizes, discrete = part.network.sizes, part.network.discrete
        cohort = case.members if cuda else cohort_size(part.network, rows, case.members)
        cohorts = [min(cohort, case.members - first) for first in range(0, case.members, cohort)]
        with closing(_updates(part, threads)) as blocks:
            block = partial(next, blocks)
            rate(block, WARM_UP, synchronise)
            memory = torch.cuda.max_memory_allocated(device) if cuda else peak_memory()
            rates = Rates(sizes, discrete, rows, cohorts, threads, device)

            def measure(seconds: float) -> dict:
                """Products, updates, products again: the machine's speed drifts, so their rate is taken around them."""
                before = rates.products(seconds / 4)
                updates = rate(block, seconds, synchronise)
                bmm = (before + rates.products(seconds / 4)) / 2
                return {"rate": updates * case.members, "bmm": bmm, "copy": rates.copy(seconds / 10)}
            cost = update_cost(sizes, discrete, rows)
            yield {"rows": rows, "threads": threads, "peak_memory": memory, **cost._asdict()}, measure


def _updates(part: Slice, threads: int) -> Iterator[int]:
    """The number of updates of every block that the trainer yields, again from the first once the last is done."""
    while True:
        done = 0
        for step, _, _ in part.updates(threads):
            yield step - done
            done = step


if __name__ == "__main__":
    with measured(Case(**json.loads(sys.argv[1]))) as session:
        serve(*session)
