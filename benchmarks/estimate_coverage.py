"""Prints how often intervals of off-policy estimates contain the truth: python -m benchmarks.estimate_coverage

On every data set policies between the behaviour policy and two greedy ones (the optimal policy, which does not depend
on the data, and that of the exact solution of CQL at alpha 6, which does) are estimated from its episodes and
evaluated exactly. Printed is the share of 95 % intervals that contain the exact value, by the effective sample size,
for each estimator that weighs episodes. Nothing is trained.
"""

import argparse
from functools import partial
from multiprocessing import get_context

import numpy as np

from cql.analysis import ope
from cql.analysis.ope import episode_log
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import deterministic_policies, evaluate_policies, greedy_actions, settled_policy, value_iteration
from cql.world import World, exact_solution

SHARES = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # of the greedy policy in the mixture
EDGES = (0, 2, 5, 10, 20, 50, 100, 200, np.inf)  # of the effective sample size
WEIGHING = ("wis", "pdis", "dr")


def rows(data_seed: int, episodes: int, resamples: int) -> list[tuple]:
    """(estimator, target, effective sample size, exact value, estimate, low, high) of the policies of one data set."""
    config = Config(data_seed=data_seed, episodes=episodes)
    dataset, = datasets_for(config, {})
    world = World.of(dataset)
    mdp, behavior = world.mdp, world.behavior_policy(config)
    empirical, counts = world.empirical(dataset)
    solution = exact_solution(config.objective, empirical, counts, [6.0]).q[0]
    greedy = [deterministic_policies(greedy_actions(value_iteration(mdp, config.gamma))[None], mdp.num_actions)[0],
              settled_policy(np.where(counts > 0, solution, -np.inf))]
    policies = np.stack([(1 - share) * behavior + share * policy for policy in greedy for share in SHARES])
    exact = evaluate_policies(mdp, policies, horizon=world.horizon)
    truth = {"return": exact.returns, "hazard_probability": exact.hazard_probability}
    log, states = episode_log(dataset, world)
    found = ope.estimate(log, policies[:, states], world.horizon, resamples)
    return [(name, target, size, value, *estimated)
            for name in WEIGHING for target, values in found.values[name].items()
            for size, value, estimated in zip(found.effective_sample_size, truth[target], values)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate_coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--num-datasets", type=int, default=64, metavar="N")
    parser.add_argument("--episodes", type=int, default=500, metavar="N")
    parser.add_argument("--resamples", type=int, default=200, metavar="N")
    arguments = parser.parse_args()
    ope.FEWEST = 0  # estimates of every size are judged here
    work = partial(rows, episodes=arguments.episodes, resamples=arguments.resamples)
    with get_context("fork").Pool(2) as pool:
        found = [row for part in pool.imap(work, range(42, 42 + arguments.num_datasets)) for row in part]
    print(f"{arguments.num_datasets} data sets of {arguments.episodes} episodes: intervals with the exact value")
    print(f"{'effective sample':<18}{'policies':>9}  " + "".join(
        f"{name + ' ' + target[:6]:>13}" for name in WEIGHING for target in ope.TARGETS))
    for low, high in zip(EDGES, EDGES[1:]):
        inside = [row for row in found if low <= row[2] < high]
        cells = []
        for name in WEIGHING:
            for target in ope.TARGETS:
                hits = [lower <= value <= upper for estimator, goal, _, value, _, lower, upper in inside
                        if (estimator, goal) == (name, target) and np.isfinite([lower, upper]).all()]
                cells.append(f"{np.mean(hits):>13.0%}" if hits else f"{'–':>13}")
        number = len(inside) // (len(WEIGHING) * len(ope.TARGETS))
        print(f"{f'{low:g} to {high:g}':<18}{number:>9}  " + "".join(cells))


if __name__ == "__main__":
    main()
