"""Measures d3rlpy's DiscreteCQL and DiscreteBC for ``benchmarks.throughput``, under a Python that has d3rlpy (2.8):

    python -m benchmarks.peer_d3rlpy '{"algorithm": "cql", "data": "FILE.npz", "batch": 64}'

The number of threads is PyTorch's own choice, which is what d3rlpy's users get.
"""

import json
import sys

import d3rlpy
import numpy as np
from d3rlpy.logging import NoopAdapterFactory

from benchmarks.measuring import answer_with, rate


def main(settings: dict) -> None:
    with np.load(settings["data"]) as data:
        columns = {name: data[name] for name in ("observations", "actions", "rewards", "terminations", "truncations")}
    replay = d3rlpy.dataset.MDPDataset(
        observations=columns["observations"], actions=columns["actions"].reshape(-1, 1),
        rewards=columns["rewards"].reshape(-1, 1),
        terminals=columns["terminations"].astype(np.float32), timeouts=columns["truncations"].astype(np.float32))
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[256, 256])
    shared = {"batch_size": settings["batch"], "learning_rate": 1e-4, "encoder_factory": encoder}
    cql = d3rlpy.algos.DiscreteCQLConfig(alpha=6.0, target_update_interval=1000, **shared)
    config = cql if settings["algorithm"] == "cql" else d3rlpy.algos.DiscreteBCConfig(**shared)
    learner = config.create(device="cpu:0")

    def updates(count: int) -> int:
        learner.fit(replay, n_steps=count, n_steps_per_epoch=count, logger_adapter=NoopAdapterFactory(),
                    show_progress=False)
        return count

    updates(20)
    speed = rate(lambda: updates(20), 1.0)

    def measure(seconds: float) -> dict:
        return {"rate": rate(lambda: updates(max(20, int(speed * seconds / 4))), seconds)}

    answer_with(measure)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
