"""Prints how near trained tables come to the exact solutions of the paper's objectives: python -m benchmarks.family

Q[s, a] as a table (--hidden 0), full batch, the data of ``train.py`` with data seeds 42 to 44, alpha 0.1, 1, 6 and 50.
Printed, of every objective and alpha, is the largest mean |Q - exact Q| of the data sets, over the data and as a share
of the range of the exact Q.
"""

import argparse
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch

import cql
from cql.action_weights import behavior
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import eq1_fixed_point, eq2_fixed_point
from cql.world import exact_solution

ALPHAS = (0.1, 1.0, 6.0, 50.0)
OBJECTIVES = {
    "logsumexp": dict(penalty="logsumexp"),
    "logsumexp, tau 2": dict(penalty="logsumexp", temperature=2.0),
    "logsumexp, tau 1/2": dict(penalty="logsumexp", temperature=0.5),
    "logsumexp, supported": dict(penalty="logsumexp", supported=True),
    "rho": dict(penalty="rho"),
    "rho, supported": dict(penalty="rho", supported=True),
    "previous": dict(penalty="previous"),
    "previous, supported": dict(penalty="previous", supported=True),
    "push-down": dict(penalty="push-down", target_policy="behavior"),
    "mu": dict(penalty="mu", target_policy="behavior")}
RATES = {"push-down": 2.0, "mu": 2.0}  # Q of Eq. 1 falls to minus thousands; 0.02 of the others


def distances(job: tuple[str, int], steps: int) -> list[float]:
    """Mean |Q - exact Q| as a share of the range, of every alpha."""
    name, data_seed = job
    torch.set_num_threads(1)
    dataset, = datasets_for(Config(data_seed=data_seed), {})
    fit = cql.fit(dataset, alpha=ALPHAS, steps=steps, hidden=(0,), lr=RATES.get(name, 0.02), log_every=steps,
                  **OBJECTIVES[name])
    mdp, counts = fit.world.empirical(dataset)
    logged = (counts > 0) & ~mdp.terminal[:, None]
    if fit.config.objective.follows_policy:
        policy = np.where(logged.any(-1, keepdims=True), behavior(dataset).astype(np.float64), 1 / mdp.num_actions)
        policy /= policy.sum(-1, keepdims=True)
        solve = {"push-down": eq1_fixed_point, "mu": eq2_fixed_point}[name]
        exact = [solve(mdp, counts, policy, policy, alpha / 2, fit.config.gamma) for alpha in ALPHAS]
    else:
        exact = exact_solution(fit.config.objective, mdp, counts, ALPHAS).q
    weights = counts[logged] / counts[logged].sum()
    return [float(weights @ np.abs(q - e)[logged]) / float(np.ptp(e[logged])) for q, e in zip(fit.q, exact)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    arguments = parser.parse_args()
    print(f"{'objective':<22}" + "".join(f"{f'alpha {alpha:g}':>12}" for alpha in ALPHAS), flush=True)
    with get_context("spawn").Pool(2) as pool:
        jobs = [(name, seed) for name in OBJECTIVES for seed in (42, 43, 44)]
        found = pool.imap(partial(distances, steps=arguments.steps), jobs)
        for name in OBJECTIVES:
            largest = np.max([next(found) for _ in range(3)], axis=0)
            print(f"{name:<22}" + "".join(f"{value:>12.1e}" for value in largest), flush=True)


if __name__ == "__main__":
    main()
