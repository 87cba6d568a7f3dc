"""Prints estimates by FQE with networks beside rollouts: python -m benchmarks.fqe_coverage

On logged episodes of CartPole, Acrobot and MountainCar, from hand-written controllers that act at random half of the
time, BC and CQL are trained with minibatches. Each policy is estimated from the log alone (``cql.analysis.judging``)
and rolled out. Printed are, for every policy, the discounted return of rollouts with its standard error, the estimate
with its 95 % interval or why there is none, and, for every task, the rank correlation over alpha of each way to choose
it.
"""

import argparse

import gymnasium
import numpy as np

from cql.analysis.judging import estimated, words
from cql.analysis.selection import spearman
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.notebook import fit
from cql.policy import Policy
from cql.text import aligned, number
from cql.world import World

CONTROLLERS = {  # task -> the action of a hand-written controller
    "CartPole-v1": lambda o: int(o[2] + 0.5 * o[3] > 0), "Acrobot-v1": lambda o: 2 if o[5] > 0 else 0,
    "MountainCar-v0": lambda o: 2 if o[1] >= 0 else 0}
EPISODES = {"CartPole-v1": 60, "Acrobot-v1": 60, "MountainCar-v0": 100}
GAMMA, EPSILON, ALPHAS, FIRST_SEED = 0.99, 0.5, (0.1, 1.0, 10.0), 5000


def logged(task: str, episodes: int, seed: int) -> OfflineDataset:
    """Episodes of the controller, of whose actions a share EPSILON is uniform; they name their environment."""
    environment, random, rows = gymnasium.make(task), np.random.default_rng([seed, 1]), []
    actions = int(environment.action_space.n)
    for episode in range(episodes):
        observation, _ = environment.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            chosen = CONTROLLERS[task](observation)
            action = int(random.integers(actions)) if random.random() < EPSILON else chosen
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, following, terminated, truncated, episode))
            observation, done = following, terminated or truncated
    spec = {"id": task, "arguments": {}, "max_episode_steps": environment.spec.max_episode_steps}
    columns = map(np.array, zip(*rows))
    return OfflineDataset.from_arrays(*columns, metadata={"environment": spec, "num_actions": actions})


def rolled_out(task: str, policy: Policy, episodes: int) -> tuple[float, float]:
    """Mean discounted return, and its standard error."""
    environment, returns = gymnasium.make(task), np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = environment.reset(seed=FIRST_SEED + episode)
        done, weight = False, 1.0
        while not done:
            observation, reward, terminated, truncated, _ = environment.step(policy.act(observation))
            returns[episode] += weight * reward
            weight, done = weight * GAMMA, terminated or truncated
    return float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(episodes))


def judged(task: str, seed: int, arguments: argparse.Namespace) -> tuple[list[list[str]], list[bool], dict[str, float]]:
    """Rows of one data set, which intervals hold the truth, and the rank correlation of each way to choose alpha."""
    dataset = logged(task, EPISODES[task], seed)
    settings = {"batch_size": 128, "lr": 1e-3, "hidden": (64, 64), "gamma": GAMMA}
    cloned = fit(dataset, algorithm="bc", steps=arguments.steps, **settings)
    trained = fit(dataset, alpha=ALPHAS, steps=arguments.steps, target_interval=25, **settings)
    policies = [*cloned.policies, *trained.policies]
    found = estimated(Config(gamma=GAMMA), World.of(dataset), dataset, policies)
    truth = np.array([rolled_out(task, policy, arguments.rollouts) for policy in policies])  # [N, 2]
    members = [{"algorithm": p.algorithm, "alpha": p.alpha, "seed": p.seed} for p in policies]
    rows, holds = [], []
    for entry, (mean, error), value, share in zip(found.entries(members), truth, found.values[:, 0], found.unsupported):
        estimate = entry["value"]
        if estimate is not None:
            holds.append(bool(estimate[1] <= mean + 2 * error and mean - 2 * error <= estimate[2]))
        rows.append([task, str(seed), "BC" if entry["alpha"] is None else f"{entry['alpha']:g}",
                     f"{mean:.2f} ± {error:.2f}", f"{value:.2f}", words(estimate), number(share, ".3f"),
                     entry["withheld"] or ("holds" if holds[-1] else "MISSES")])
    ways = {"FQE": [value if not why else np.nan for value, why in zip(found.values[1:, 0], found.withheld[1:])],
            "FQE, doubts ignored": found.values[1:, 0], "value estimate": trained.log["q/start"][:, -1],
            "support by BC": -np.array(found.unsupported[1:]), "TD loss": -trained.log["losses/td"][:, -1]}
    return rows, holds, {name: spearman(scores, truth[1:, 0]) for name, scores in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fqe_coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--task", nargs="+", default=list(CONTROLLERS), choices=CONTROLLERS)
    parser.add_argument("--num-datasets", type=int, default=1, metavar="N")
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="updates of each policy")
    parser.add_argument("--rollouts", type=int, default=40, metavar="N")
    arguments = parser.parse_args()
    rows = [["task", "data", "policy", "rollouts", "FQE", "believed [95 %]", "unsupported", ""]]
    held, ranked = [], []
    for task in arguments.task:
        for seed in range(1, arguments.num_datasets + 1):
            found, holds, ranks = judged(task, seed, arguments)
            rows, held = rows + found, held + holds
            shown = [number(None if np.isnan(rank) else rank, "+.2f") for rank in ranks.values()]
            ranked.append([task, str(seed), *shown])
    print("\n".join(aligned(rows, left=(0, 7))))
    print(f"\n{len(held)} of {len(rows) - 1} policies have an estimate; {sum(held)} of these intervals hold the mean "
          "of the rollouts, within two standard errors")
    print("\nrank correlation over alpha with the rollouts")
    print("\n".join(aligned([["task", "data", *ranks], *ranked])))


if __name__ == "__main__":
    main()
