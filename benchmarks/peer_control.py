"""Trains d3rlpy's DiscreteCQL for ``benchmarks.control`` and rolls it out, under a Python that has d3rlpy (2.8):

    python -m benchmarks.peer_control '{"task": "CartPole-v1", "data": "FILE.npz", "seed": 0, "updates": 20000,
                                        "gamma": 0.99}'

``standardised``: observations are scaled by d3rlpy; any further setting is one of ``DiscreteCQLConfig``.
"""

import json
import logging
import sys

import d3rlpy
import numpy as np
import structlog
import torch
from d3rlpy.logging import NoopAdapterFactory

from benchmarks.measuring import rolled_out


def main(task: str, data: str, seed: int, updates: int, gamma: float, standardised: bool = False, **settings) -> dict:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    d3rlpy.seed(seed)
    with np.load(data) as file:
        columns = {name: file[name] for name in ("observations", "actions", "rewards", "terminations", "truncations")}
    replay = d3rlpy.dataset.MDPDataset(
        observations=columns["observations"].astype(np.float32), actions=columns["actions"].reshape(-1, 1),
        rewards=columns["rewards"].reshape(-1, 1), terminals=columns["terminations"].astype(np.float32),
        timeouts=columns["truncations"].astype(np.float32))
    scaler = d3rlpy.preprocessing.StandardObservationScaler() if standardised else None
    config = d3rlpy.algos.DiscreteCQLConfig(gamma=gamma, observation_scaler=scaler, **settings)
    learner = config.create(device="cpu:0")
    learner.fit(replay, n_steps=updates, n_steps_per_epoch=updates, logger_adapter=NoopAdapterFactory(),
                show_progress=False)
    return rolled_out(task, lambda o: int(learner.predict(o[None].astype(np.float32))[0]), gamma)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
