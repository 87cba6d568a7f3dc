"""SafetyCriticalGridWorld and the policy that gathers data in it; importing this package registers it."""

import gymnasium

from envs.behavior import safe_behavior_policy
from envs.gridworld import MAPS, SafetyCriticalGridWorld, generate_random_map

ENV_ID = "SafetyCriticalGridWorld-v0"

if ENV_ID not in gymnasium.registry:  # a reload would otherwise warn that it overrides itself
    gymnasium.register(ENV_ID, "envs.gridworld:SafetyCriticalGridWorld", max_episode_steps=80)

__all__ = ["ENV_ID", "MAPS", "SafetyCriticalGridWorld", "generate_random_map", "safe_behavior_policy"]
