"""The behaviour policy: by hand on small maps, and against the rule spelled out on large ones."""

import math

import gymnasium
import numpy as np
import pytest

from envs import MAPS, SafetyCriticalGridWorld, generate_random_map, safe_behavior_policy

STEPS = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}  # up, down, left, right


def policy_of(*desc, epsilon):
    return safe_behavior_policy(SafetyCriticalGridWorld(desc=desc), epsilon)


def intended_place(desc, row, column, action):
    i, j = row + STEPS[action][0], column + STEPS[action][1]
    return (i, j) if 0 <= i < len(desc) and 0 <= j < len(desc[0]) else (row, column)


def rule(desc, epsilon):
    """The policy as its definition reads, with plain loops."""
    goals = [(i, j) for i, row in enumerate(desc) for j, cell in enumerate(row) if cell == "G"]
    rows = []
    for i, line in enumerate(desc):
        for j, cell in enumerate(line):
            place = {action: intended_place(desc, i, j, action) for action in STEPS}
            safe = [a for a, (r, c) in place.items() if desc[r][c] != "H"] or list(STEPS)
            far = {a: min(abs(place[a][0] - r) + abs(place[a][1] - c) for r, c in goals) for a in safe}
            best = [a for a in safe if far[a] == min(far.values())]
            row = [(a in best) * (1 - epsilon) / len(best) + (a in safe) * epsilon / len(safe) for a in STEPS]
            rows.append([0.25] * 4 if cell in "HG" else row)
    return np.array(rows)


def test_small_map_by_hand():
    # epsilon 0.2: each of n safe moves 0.2 / n, each of m best ones 0.8 / m more
    policy = policy_of("S.H",
                       "..G", epsilon=0.2)
    assert policy.dtype == np.float64 and policy.shape == (6, 4)
    expected = [
        [0.05, 0.45, 0.05, 0.45],  # down and right both lead to distance 2
        [0.2 / 3, 0.8 + 0.2 / 3, 0.2 / 3, 0.0],  # right is the hazard
        [0.25, 0.25, 0.25, 0.25],  # the hazard
        [0.05, 0.05, 0.05, 0.85],
        [0.05, 0.05, 0.05, 0.85],
        [0.25, 0.25, 0.25, 0.25],  # the goal
    ]
    np.testing.assert_allclose(policy, expected, rtol=0, atol=1e-15)


def test_hazards_on_all_sides_make_every_move_safe():
    policy = policy_of("S.H.",
                       ".H.H",
                       "..H.",
                       "...G", epsilon=0.2)
    # in row 1, column 2, down and right lead to distance 2, up and left to distance 4
    np.testing.assert_allclose(policy[1 * 4 + 2], [0.05, 0.45, 0.05, 0.45])


def test_where_every_closer_move_is_unsafe_staying_at_the_border_is_best():
    policy = policy_of("S.H",
                       "..H",
                       "..G", epsilon=0.0)
    assert policy[1].tolist() == [0, 1, 0, 0]
    policy = policy_of("S.HG",
                       "..H.",
                       "....", epsilon=0.0)
    # in row 0, column 1, up stays at distance 2; left and down lead to distance 3
    assert policy[1].tolist() == [1, 0, 0, 0]


def test_the_nearest_of_several_goals_counts():
    policy = policy_of("GS...G", epsilon=0.2)
    np.testing.assert_allclose(policy[1], [0.05, 0.05, 0.85, 0.05])
    np.testing.assert_allclose(policy[2], [0.05, 0.05, 0.85, 0.05])
    np.testing.assert_allclose(policy[3], [0.05, 0.05, 0.05, 0.85])


@pytest.mark.parametrize("epsilon", [0.0, 0.22, 1.0])
@pytest.mark.parametrize("desc", [*MAPS.values(), generate_random_map(12, 0.4, seed=0)])
def test_equals_the_rule_on_large_maps(desc, epsilon):
    env = SafetyCriticalGridWorld(desc=desc)
    policy = safe_behavior_policy(env, epsilon)
    np.testing.assert_allclose(policy, rule(desc, epsilon), rtol=0, atol=1e-15)
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, rtol=0, atol=1e-15)
    assert policy.min() >= 0.0


@pytest.mark.parametrize("name", MAPS)
def test_never_means_to_enter_a_hazard_while_a_safe_move_exists(name):
    desc = MAPS[name]
    policy = safe_behavior_policy(SafetyCriticalGridWorld(name), 1.0)
    for i, line in enumerate(desc):
        for j, cell in enumerate(line):
            into = [desc[r][c] == "H" for r, c in (intended_place(desc, i, j, a) for a in STEPS)]
            if cell not in "HG" and not all(into):
                assert policy[i * 15 + j][into].sum() == 0.0


def test_neither_slip_nor_wrappers_nor_the_kind_of_observation_matter():
    expected = safe_behavior_policy(SafetyCriticalGridWorld())
    made = gymnasium.make("SafetyCriticalGridWorld-v0", slip_probability=0.9, observation="coordinates")
    assert (safe_behavior_policy(made) == expected).all()
    assert (safe_behavior_policy(made, epsilon=0.22) == expected).all()  # the default


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, math.nan, "0.2", None])
def test_epsilon_outside_the_unit_interval_is_an_error(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be a number in \[0, 1\]"):
        safe_behavior_policy(SafetyCriticalGridWorld(), epsilon)
