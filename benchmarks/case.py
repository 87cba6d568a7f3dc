"""Measures the updates per second of one training, as a process that ``benchmarks.measuring`` talks to:

    python -m benchmarks.case '{"algorithm": "cql", "data": "FILE.npz", "members": 8, "batch": 64}'
"""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring import answer_with, rate
from cql.collect import datasets_for
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.device import torch_settings
from cql.members import slices
from cql.sampling import Transitions
from cql.training import Slice

EPISODES = 270  # about 10^4 transitions of the default environment
WARM_UP = 0.2  # seconds
AT_ONCE = 2**19  # observations read, at most, between two looks at the clock: seconds for many members on a CPU
UPDATES = 100_000  # of the learning rate's schedule; it is gone through again and again


def data_file(folder: str, observation: str) -> str:
    """A data set of about 10^4 transitions of the default environment."""
    path = Path(folder) / f"{observation}.npz"
    datasets_for(Config(observation=observation, episodes=EPISODES), {})[0].save(path)
    return str(path)


def main(settings: dict) -> None:
    """Sets the members up as ``cql.training.train`` does it, warms up, and answers.

    Args:
        settings: ``members`` agents of different seeds train on ``data``, with two hidden layers of 256.
    """
    members, batch = settings["members"], settings["batch"]
    device, datasets = torch.device("cpu"), [OfflineDataset.load(settings["data"])]
    transitions = Transitions(datasets, device, compress=batch == "full")
    rows = transitions.rows.unique().numel() if batch == "full" else batch  # observations that an update reads
    steps = {"cql": {"steps": UPDATES, "bc_steps": 0}, "bc": {"steps": 0, "bc_steps": UPDATES}}[settings["algorithm"]]
    config = Config(dataset=settings["data"], hidden=(256, 256), batch_size=batch, num_seeds=members, lr=1e-4, **steps,
                    slice_size=members, target_interval=1000, device="cpu",
                    log_every=max(1, AT_ONCE // (members * rows)))
    with torch_settings(device) as threads:
        part = Slice(config, slices(config)[0], datasets, {settings["algorithm"]: transitions}, None)
        with closing(blocks(part, threads)) as updates:
            block = partial(next, updates)
            rate(block, WARM_UP)
            answer_with(lambda seconds: {"rate": members * rate(block, seconds)})


def blocks(part: Slice, threads: int):
    """The number of updates of every block that the trainer yields, again from the first once the last is done."""
    while True:
        done = 0
        for step, _, _ in part.updates(threads):
            yield step - done
            done = step


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
