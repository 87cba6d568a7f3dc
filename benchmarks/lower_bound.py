"""Prints where trained values exceed the true ones, for Eq. 1, Eq. 2 and CQL(H): python -m benchmarks.lower_bound

Q[s, a] as a table (--hidden 0), full batch, the data of ``train.py`` with data seeds 42 to 44, alpha 0.1, 1, 6 and 50.
Eq. 1 (--penalty push-down) and Eq. 2 (--penalty mu) are trained for a given policy pi, with mu = pi: that of the data,
and the greedy one of a trained CQL(H) at alpha 6. Their value estimate is E_pi[Q]; that of CQL(H) is max Q, and pi its
own greedy policy. The true value is that of pi in the model of the data, of which theorems 3.1 and 3.2 speak without
sampling error, and in the environment itself, where pi is uniform in states without data. Printed is in how many of the
states with data, of the three data sets together, the estimate is above the true value by more than TOLERANCE, and the
largest excess.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import cql
from cql.action_weights import behavior, given_policy
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import deterministic_policies, policy_evaluation
from cql.notebook import Fit
from cql.text import aligned

ALPHAS = (0.1, 1.0, 6.0, 50.0)
TOLERANCE = 1e-3  # the values of float32 tables reach from -100 to 50, those of Eq. 1 to minus thousands
Excess = dict[tuple[str, str], list[np.ndarray]]  # (objective, model) -> by alpha, [states with data]


def excesses(data_seed: int, steps: int) -> Excess:
    """Value estimate less true value of every objective, alpha and model, on one data set."""
    dataset, = datasets_for(Config(data_seed=data_seed), {})
    shared = {"alpha": ALPHAS, "steps": steps, "hidden": (0,), "log_every": steps}
    conservative = cql.fit(dataset, lr=0.02, **shared)
    found = {("CQL(H)", model): [] for model in ("data", "environment")}
    for q in conservative.q:
        policy = deterministic_policies(q.argmax(-1)[None], dataset.num_actions)[0]
        for model, excess in compared(conservative, q.max(-1), policy).items():
            found["CQL(H)", model].append(excess)
    with TemporaryDirectory() as folder:
        greedy = Path(folder) / "greedy.pt"
        conservative.policies[ALPHAS.index(6.0)].save(greedy)
        for penalty, equation in (("push-down", "Eq. 1"), ("mu", "Eq. 2")):
            for words, file in (("policy of the data", "behavior"), ("greedy policy of CQL", str(greedy))):
                fit = cql.fit(dataset, lr=2.0, penalty=penalty, target_policy=file, **shared)
                policy = given_policy(fit.config, "target_policy", behavior(dataset)).astype(np.float64)
                policy = np.where(policy.any(-1, keepdims=True), policy, 1 / dataset.num_actions)
                policy /= policy.sum(-1, keepdims=True)
                for q in fit.q:
                    for model, excess in compared(fit, (policy * q).sum(-1), policy).items():
                        found.setdefault((f"{equation}, {words}", model), []).append(excess)
    return found


def compared(fit: Fit, estimate: np.ndarray, policy: np.ndarray) -> dict[str, np.ndarray]:
    """The estimate less the true value of a policy ``[S, A]``, in the states with data, by model."""
    empirical, counts = fit.world.empirical(fit.dataset)
    return {model: (estimate - policy_evaluation(mdp, policy, fit.config.gamma)[0])[counts.any(-1)]
            for model, mdp in (("data", empirical), ("environment", fit.world.mdp))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lower_bound", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    arguments = parser.parse_args()
    parts = [excesses(data_seed, arguments.steps) for data_seed in (42, 43, 44)]
    rows = [["objective", "true value in", "states", *(f"alpha {alpha:g}" for alpha in ALPHAS)]]
    for objective, model in parts[0]:
        by_alpha = [np.concatenate(found) for found in zip(*(part[objective, model] for part in parts))]
        rows.append([objective, model, str(len(by_alpha[0])), *(
            f"{(excess > TOLERANCE).sum()} ({excess.max():+.4f})" for excess in by_alpha)])
    print("\n".join(aligned(rows, left=(0, 1))))


if __name__ == "__main__":
    main()
