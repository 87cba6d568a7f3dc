"""The constrained policy that gathers the offline data."""

from numbers import Real

import gymnasium
import numpy as np

from envs.gridworld import intended_cells


def safe_behavior_policy(env: gymnasium.Env, epsilon: float = 0.22) -> np.ndarray:
    """The action probabilities of a goal-seeking policy that never means to enter a hazard.

    A move is safe if the cell it leads to without a slip is no hazard; in a cell with hazards on all sides
    every move counts as safe. Of the safe moves the policy takes

    - with probability `1 - epsilon` one of those after which the goal is nearest (Manhattan distance to the
      nearest goal, hazards on the way ignored; a move into the border stays in place; ties uniformly),
    - with probability `epsilon` any one, uniformly.

    Slips are not foreseen, so episodes can still end in a hazard.

    Args:
        env: a SafetyCriticalGridWorld, wrapped or not.
        epsilon: probability of a uniform safe move, in [0, 1].

    Returns:
        float64 `[S, A]`, each row a distribution; uniform in terminal cells, where nothing depends on it.

    Raises ValueError if `epsilon` is outside [0, 1] or no number.
    """
    if not isinstance(epsilon, Real) or not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be a number in [0, 1], not {epsilon!r}.")
    grid = env.unwrapped
    intended = intended_cells(grid.shape)  # [S, A]
    safe = ~grid.hazards[intended]  # [S, A]
    safe |= ~safe.any(axis=1, keepdims=True)

    distance = np.where(safe, _goal_distance(grid)[intended], np.inf)  # [S, A]
    nearest = distance == distance.min(axis=1, keepdims=True)

    policy = (1.0 - epsilon) * _uniform_over(nearest) + epsilon * _uniform_over(safe)
    policy[grid.hazards | grid.goals] = 1.0 / grid.num_actions
    return policy


def _goal_distance(grid) -> np.ndarray:
    """The Manhattan distance of every cell to its nearest goal, int `[S]`."""
    row, column = np.divmod(np.arange(grid.num_states), grid.shape[1])
    goals = np.flatnonzero(grid.goals)
    return (abs(row[:, None] - row[goals]) + abs(column[:, None] - column[goals])).min(axis=1)


def _uniform_over(mask: np.ndarray) -> np.ndarray:
    """Row by row, the uniform distribution over the true entries of a bool `[S, A]`."""
    return mask / mask.sum(axis=1, keepdims=True)
