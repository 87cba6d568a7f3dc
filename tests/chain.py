"""A registered environment whose states and actions are numbered from 1, and data of it."""

import gymnasium
import numpy as np


class Chain(gymnasium.Env):
    """Four states in a row and two actions, back and on, all numbered from 1. Reaching the last is worth 1 and an end.

    ``first``: the number from which the table P counts; ``size``: how many states it has.
    """

    observation_space, action_space = gymnasium.spaces.Discrete(4, start=1), gymnasium.spaces.Discrete(2, start=1)

    def __init__(self, first=1, size=4):
        def outcome(s, step):
            target = s if s == size - 1 else max(s + step, 0)
            return [(1.0, target + first, float(target == size - 1 != s), target == size - 1)]
        self.initial_state_distrib = np.eye(size)[0]
        self.P = {s + first: {first: outcome(s, -1), 1 + first: outcome(s, 1)} for s in range(size)}

    def reset(self, seed=None, options=None):
        self.at = 1
        return self.at, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.at = max(self.at + 2 * int(action) - 3, 1)
        return self.at, float(self.at == 4), self.at == 4, False, {}


def chain_columns(first=1):
    """What a logger sees of two episodes in ``Chain``, one straight on and one with a step back in each state."""
    states = [0, 1, 2, 0, 0, 1, 0, 1, 2, 1, 2]
    following, ends = [1, 2, 3, 0, 1, 0, 1, 2, 1, 2, 3], np.isin(np.arange(11), (2, 10))
    actions = [1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1]
    return dict(observations=np.add(states, first), actions=np.add(actions, first), rewards=ends * 1.0,
                next_observations=np.add(following, first), terminations=ends)


for name, arguments in (("Chain-v0", {}), ("ChainTableFromZero-v0", {"first": 0}), ("ChainOfFive-v0", {"size": 5})):
    gymnasium.register(name, Chain, kwargs=arguments, max_episode_steps=20)
