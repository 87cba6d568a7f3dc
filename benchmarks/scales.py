"""Prints what the scales of data do to training: python -m benchmarks.scales cartpole | table [--rows 1000000]

``cartpole``: logs of a random policy in CartPole-v1, and the same logs with features and rewards in other units; of
each, the return of BC and CQL over 30 seeded episodes, mean and standard deviation over the training seeds, with and
without ``--observation-scale standard --reward-scale auto``. ``table``: seconds and peak memory of ``train.py`` on so
many distinct rows of 20 features.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np

from cql.dataset import OfflineDataset
from cql.policy import Policy

EPISODES = 200  # logged
FACTORS = np.array([1.0, 1e6, 1e-6, 1.0])  # of the four features
VARIANTS = {  # name -> factor and offset of the features, factor of the rewards
    "plain": (1.0, 0.0, 1.0), "features x (1, 1e6, 1e-6, 1)": (FACTORS, 0.0, 1.0), "features + 1e4": (1.0, 1e4, 1.0),
    "rewards x 1e6": (1.0, 0.0, 1e6), "rewards x 1e-6": (1.0, 0.0, 1e-6)}
UNSCALED = ["--observation-scale", "none", "--reward-scale", "1"]


def logged() -> dict[str, np.ndarray]:
    """Transitions of a random policy in CartPole, as plain arrays."""
    environment, random = gymnasium.make("CartPole-v1"), np.random.default_rng(0)
    rows = []
    for episode in range(EPISODES):
        observation, _ = environment.reset(seed=episode)
        done = False
        while not done:
            action = int(random.integers(2))
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, following, terminated, truncated, episode))
            observation, done = following, terminated or truncated
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids")
    return dict(zip(names, map(np.array, zip(*rows))))


def mean_return(policy: Policy, factor, offset, episodes: int = 30) -> float:
    environment, total = gymnasium.make("CartPole-v1"), 0.0
    for episode in range(episodes):
        observation, _ = environment.reset(seed=1000 + episode)
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = environment.step(
                policy.act(observation.astype(np.float64) * factor + offset))
            total, done = total + float(reward), terminated or truncated
    return total / episodes


def train(folder: Path, dataset: OfflineDataset, flags: list[str]) -> Path:
    """The run folder of ``train.py`` on this data set."""
    dataset.save(folder / "data.npz")
    command = [sys.executable, "train.py", "--dataset", str(folder / "data.npz"), "--out", str(folder / "run"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return folder / "run"


def cartpole(arguments) -> None:
    plain = logged()
    print(f"logged return {len(plain['rewards']) / EPISODES:.1f}, {len(plain['rewards']):,} transitions")
    for kind, flags in {"scaled": [], "as they are": UNSCALED}.items():
        for name, (factor, offset, reward) in VARIANTS.items():
            arrays = {**plain, "rewards": plain["rewards"] * reward}
            for column in ("observations", "next_observations"):
                arrays[column] = plain[column].astype(np.float64) * factor + offset
            with tempfile.TemporaryDirectory() as folder:
                run = train(Path(folder), OfflineDataset.from_arrays(**arrays), [
                    "--alpha", str(arguments.alpha), "--num-seeds", "3", "--steps", str(arguments.steps), "--bc-steps",
                    "5000", "--batch-size", "256", *flags])
                scale = json.loads((run / "config.json").read_text())["reward_scale"]
                cells = []
                for algorithm in ("bc", "cql"):
                    found = [Policy.load(path) for path in sorted((run / "policies").glob(f"{algorithm}-*.pt"))]
                    returns = [mean_return(policy, factor, offset) for policy in found]
                    cells.append(f"{np.mean(returns):6.1f} ± {np.std(returns, ddof=1):5.1f}"
                                 if len(returns) > 1 else "–")
                entries = json.loads((run / "evaluation.json").read_text())["members"]
                values = [entry["value_estimate"] for entry in entries if entry["value_estimate"] is not None]
                gone = sum(entry["diverged"] is not None for entry in entries)
                print(f"{name:28} {kind:12} C {scale:<10g} BC {cells[0]}  CQL {cells[1]}  V estimate "
                      f"{np.mean(values) if values else np.nan:.4g}  diverged {gone}", flush=True)


def table(arguments) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(arguments.rows + 1, 20)).astype(np.float32)
    ends = np.arange(1, arguments.rows + 1) % 200 == 0
    dataset = OfflineDataset.from_arrays(rows[:-1], random.integers(4, size=arguments.rows), rows[:-1, 0], rows[1:],
                                         ends)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = train(Path(folder), dataset, ["--steps", str(arguments.steps), "--bc-steps", "0"])
        seconds = time.perf_counter() - start
        trained = json.loads((run / "manifest.json").read_text())["training_seconds"]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{arguments.rows:,} rows of 20 features, {arguments.steps:,} updates of 256: {seconds:.0f} s in all, "
          f"{trained:.0f} s until trained, {used.ru_utime + used.ru_stime:.0f} s of one core, peak memory "
          f"{used.ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scales", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cartpole", "table"))
    parser.add_argument("--alpha", type=float, default=1.0, metavar="A")
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    parser.add_argument("--rows", type=int, default=10**6, metavar="N")
    arguments = parser.parse_args()
    {"cartpole": cartpole, "table": table}[arguments.what](arguments)


if __name__ == "__main__":
    main()
