"""Measures the updates per second of one training, as a process that ``benchmarks.measuring`` talks to:

    python -m benchmarks.case '{"algorithm": "cql", "data": "FILE.npz", "members": 8, "batch": 64, "width": 256}'
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

from benchmarks.measuring import Command, answer_with, rate
from cql.collect import datasets_for
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.device import torch_settings
from cql.engine.trainer import cohort_size
from cql.members import slices
from cql.sampling import Transitions
from cql.training import Slice

EPISODES = 270  # about 10^4 transitions of the default environment
WARM_UP = 0.2  # seconds
AT_ONCE = 2**19  # observations read, at most, between two looks at the clock: seconds for many members on a CPU
UPDATES = 100_000  # of the learning rate's schedule; it is gone through again and again


def data_file(folder: str, observation: str, transitions: int = 10**4) -> str:
    """A data set of about 10^4 transitions of the default environment, or the same repeated until it has so many."""
    dataset = datasets_for(Config(observation=observation, episodes=EPISODES), {})[0]
    times = -(-transitions // len(dataset)) if transitions > 10**4 else 1
    arrays = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    arrays = {name: np.concatenate([array] * times) for name, array in arrays.items() if isinstance(array, np.ndarray)}
    arrays["episode_ids"] += np.repeat(np.arange(times, dtype=np.int32) * EPISODES, len(dataset))
    path = Path(folder) / f"{observation}-{transitions}.npz"
    replace(dataset, **arrays).save(path)
    return str(path)


def command(data: str, algorithm: str = "cql", members: int = 8, batch: int | str = "full", width: int = 256,
            **settings) -> Command:
    """The command that measures a case, for ``benchmarks.measuring.in_turns``."""
    return Command(sys.executable, "benchmarks.case", settings | {
        "algorithm": algorithm, "data": data, "members": members, "batch": batch, "width": width})


def main(settings: dict) -> None:
    """Sets the members up as ``cql.training.train`` does it, warms up, and answers.

    Args:
        settings: ``members`` agents of different seeds train on ``data``, two hidden layers of ``width``. With ``bmm``
            each answer also holds the share of ``torch.bmm``'s rate that the products of the training reach.
    """
    members, batch = settings["members"], settings["batch"]
    device, datasets = torch.device("cpu"), [OfflineDataset.load(settings["data"])]
    transitions = Transitions(datasets, device, compress=batch == "full")
    rows = transitions.rows.unique().numel() if batch == "full" else batch  # observations that an update reads
    steps = {"cql": {"steps": UPDATES, "bc_steps": 0}, "bc": {"steps": 0, "bc_steps": UPDATES}}[settings["algorithm"]]
    config = Config(dataset=settings["data"], hidden=(settings["width"],) * 2, batch_size=batch, num_seeds=members,
                    lr=1e-4, **steps, slice_size=members, target_interval=1000, device="cpu",
                    log_every=max(1, AT_ONCE // (members * rows)))
    with torch_settings(device) as threads:
        part = Slice(config, slices(config)[0], datasets, {settings["algorithm"]: transitions}, None)
        network = part.network
        cohort = cohort_size(network, rows, members)
        cohorts = [min(cohort, members - first) for first in range(0, members, cohort)]
        shapes = product_shapes(network.sizes, network.discrete, rows)
        bmm_rate = partial(products_per_second, shapes, cohorts, threads)

        def measure(seconds: float) -> dict:
            """Products are timed before and after the updates, since the machine's speed drifts."""
            before = bmm_rate(seconds / 4) if settings.get("bmm") else None
            found = {"rate": members * rate(block, seconds)}
            if settings.get("bmm"):
                found["of bmm"] = found["rate"] / ((before + bmm_rate(seconds / 4)) / 2)
            return found

        with closing(blocks(part, threads)) as updates:
            block = partial(next, updates)
            rate(block, WARM_UP)
            answer_with(measure)


def blocks(part: Slice, threads: int):
    """The number of updates of every block that the trainer yields, again from the first once the last is done."""
    while True:
        done = 0
        for step, _, _ in part.updates(threads):
            yield step - done
            done = step


def product_shapes(sizes: list[tuple[int, int]], discrete: bool, rows: int) -> list[tuple[int, int, int]]:
    """(n, k, m) of the matrix products ``[n, k] @ [k, m]`` that one member's update asks for.

    For each layer these give the output, the gradient of the weights and, above the first layer, that of the inputs.
    The first layer of a discrete network is a table, whose rows are looked up.
    """
    shapes = []
    for n, (inputs, outputs) in enumerate(sizes):
        if n or not discrete:
            shapes += [(rows, inputs, outputs), (inputs, rows, outputs)]
        if n:
            shapes.append((rows, outputs, inputs))
    return shapes


def products_per_second(shapes, cohorts: list[int], threads: int, seconds: float) -> float:
    """How often per second ``torch.bmm`` makes one member's products.

    Counted is the faster of two ways: cohorts side by side on one thread each, as the engine trains them, or all
    members in one call on all threads.
    """
    members, found = sum(cohorts), []
    for split, workers in ((cohorts, threads), ([members], 1)):
        def numbers(*shape):
            return torch.rand(shape) - 0.5
        work = [[(numbers(count, n, k), numbers(count, k, m), numbers(count, n, m)) for n, k, m in shapes]
                for count in split]

        def multiply(cohort) -> None:
            for left, right, out in cohort:
                torch.bmm(left, right, out=out)

        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            def once(run=pool.map if workers > 1 else map, cohorts=work):
                return list(run(multiply, cohorts))

            timer = Timer("once()", globals={"once": once}, num_threads=1 if split is cohorts else threads)
            found.append(members / timer.blocked_autorange(min_run_time=seconds / 2).median)
    return max(found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
