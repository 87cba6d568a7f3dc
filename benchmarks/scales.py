"""Prints what the scales of data do to training: python -m benchmarks.scales

Logs of a random policy in CartPole-v1, and the same logs with features and rewards in other units; of each, the return
of BC and CQL over 30 seeded episodes, mean and standard deviation over three training seeds, and of the plain logs also
without ``--observation-scale standard --reward-scale auto``.
"""

import gymnasium
import numpy as np

import cql

EPISODES = 200  # logged
CHANGED = np.array([1.0, 1e6, 1e-6, 1.0])  # factors of the four features
VARIANTS = {  # name -> factor and offset of the features, factor of the rewards, settings
    "plain": (1.0, 0.0, 1.0, {}), "features x (1, 1e6, 1e-6, 1)": (CHANGED, 0.0, 1.0, {}),
    "features + 1e4": (1.0, 1e4, 1.0, {}), "rewards x 1e6": (1.0, 0.0, 1e6, {}), "rewards x 1e-6": (1.0, 0.0, 1e-6, {}),
    "plain, not scaled": (1.0, 0.0, 1.0, {"observation_scale": "none", "reward_scale": 1.0})}


def episodes(act, seeds):
    """The steps of seeded episodes of CartPole, as rows of a data set's columns."""
    environment = gymnasium.make("CartPole-v1")
    for seed in seeds:
        observation, _ = environment.reset(seed=seed)
        done = False
        while not done:
            action = int(act(observation))
            following, reward, terminated, truncated, _ = environment.step(action)
            yield observation, action, reward, following, terminated, truncated, seed
            observation, done = following, terminated or truncated


def mean_return(policy: cql.Policy, factor, offset) -> float:
    rewards = [step[2] for step in episodes(lambda x: policy.act(x.astype(np.float64) * factor + offset),
                                            range(1000, 1030))]
    return float(np.sum(rewards)) / 30


def main() -> None:
    random = np.random.default_rng(0)
    columns = map(np.array, zip(*episodes(lambda _: random.integers(2), range(EPISODES))))
    observations, actions, rewards, following, *rest = columns
    print(f"logged return {len(rewards) / EPISODES:.1f}, {len(rewards):,} transitions")
    for name, (factor, offset, reward, settings) in VARIANTS.items():
        seen, seen_next = (x.astype(np.float64) * factor + offset for x in (observations, following))
        data = cql.OfflineDataset.from_arrays(seen, actions, rewards * reward, seen_next, *rest)
        fits = [cql.fit(data, alpha=1, seeds=3, batch_size=256, algorithm=algorithm, steps=steps, **settings)
                for algorithm, steps in (("bc", 5000), ("cql", 20_000))]
        returns = [[mean_return(policy, factor, offset) for policy in fit.policies if policy] for fit in fits]
        diverged = sum((fit.log["health/diverged"][:, -1] > 0).sum() for fit in fits)
        bc, conservative = (f"{np.mean(x):.1f} ± {np.std(x, ddof=1):.1f}" for x in returns)
        print(f"{name:29} C {fits[1].config.reward_scale:<9.3g}  BC {bc:14}  CQL {conservative:14}  V estimate "
              f"{fits[1].log['q/start'][:, -1].mean():<9.4g}  diverged {diverged}", flush=True)


if __name__ == "__main__":
    main()
