"""What several tests share: random tables, a policy rolled in a table, and dense one-line counterparts."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Transitions:
    """A data set as the exact code reads it: columns [D]."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def random_table(rng, num_states=8, num_actions=3, num_outcomes=3, end=0.15, scale=5.0):
    """A random `P[s][a]`. Any outcome may end the episode, wherever it leads (as in Taxi), so no state is terminal."""
    def outcomes():
        probabilities = rng.dirichlet(np.ones(num_outcomes))
        return [(p, int(rng.integers(num_states)), float(np.round(rng.normal(scale=scale), 2)),
                 bool(rng.random() < end)) for p in probabilities]
    return [[outcomes() for _ in range(num_actions)] for _ in range(num_states)]


def random_policies(rng, *shape):
    """[..., S, A] of full support."""
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def roll(P, policy, start, horizon, episodes, rng) -> Transitions:
    """Episodes of `policy` [S, A] from state `start`, cut after `horizon` steps."""
    rows = []
    for _ in range(episodes):
        s = start
        for t in range(horizon):
            a = rng.choice(policy.shape[1], p=policy[s])
            outcomes = P[s][a]
            _, s2, r, end = outcomes[rng.choice(len(outcomes), p=[o[0] for o in outcomes])]
            rows.append((s, a, r, s2, end, t == horizon - 1 and not end))
            s = s2
            if end:
                break
    return Transitions(*(np.array(column) for column in zip(*rows, strict=True)))


def dense(P):
    """(reward [S, A], going on [S, A, S]): the table once more, by a plain loop."""
    reward, on = np.zeros((len(P), len(P[0]))), np.zeros((len(P), len(P[0]), len(P)))
    for s in range(len(P)):
        for a in range(len(P[0])):
            for p, s2, r, end in P[s][a]:
                reward[s, a] += p * r
                on[s, a, s2] += p * (not end)
    return reward, on
