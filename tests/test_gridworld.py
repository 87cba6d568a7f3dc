"""The environment against its specification: numbers for small maps can be redone on paper."""

import copy
import importlib
import math
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import MAPS, SafetyCriticalGridWorld, generate_random_map, rendering
from envs.gridworld import DOWN, LEFT, RIGHT, UP

NAMED = "envs:SafetyCriticalGridWorld-v0"
SMALL = (  # states 0 1 2
    "S.H",  #        3 4 5
    "..G",
)


def small(**kwargs):
    return SafetyCriticalGridWorld(desc=SMALL, **kwargs)


def reachable(desc):
    """The cells that free moves reach from the start, flooded one ring at a time over a set of pairs."""
    cell = {(i, j): c for i, row in enumerate(desc) for j, c in enumerate(row)}
    seen = ring = {place for place, c in cell.items() if c == "S"}
    while ring:
        near = {(i + di, j + dj) for i, j in ring for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        ring = {place for place in near - seen if cell.get(place, "H") != "H"}
        seen = seen | ring
    return {cell[place] for place in seen}


# The interface


@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_gymnasium_finds_nothing_to_warn_about(observation, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = SafetyCriticalGridWorld(observation=observation, render_mode=render_mode)
        check_env(bare, skip_render_check=True)  # which needs the spec that make provides
        made = gymnasium.make(NAMED, observation=observation, render_mode=render_mode)
        check_env(made.unwrapped)
        made.reset(seed=0)
        made.step(RIGHT)  # through the passive checker that make wraps around


def test_registration_survives_a_reload():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)
        assert gymnasium.spec(envs.ENV_ID).max_episode_steps == 80


def test_attributes():
    env = gymnasium.make(NAMED, desc=["S.H", "..G"], slip_probability=0).unwrapped
    assert env.desc == SMALL and env.shape == (2, 3) and env.start == env.state == 0
    assert (env.num_states, env.num_actions) == (6, 4)
    assert env.hazards.tolist() == [False, False, True, False, False, False]
    assert env.goals.tolist() == [False, False, False, False, False, True]
    assert env.slip_probability == 0.0
    assert env.observation_space.n == 6 and env.action_space.n == 4


def test_default_map_is_islands_and_desc_wins_over_map_name():
    assert SafetyCriticalGridWorld().desc == MAPS["islands"]
    assert SafetyCriticalGridWorld("blocks").desc == MAPS["blocks"]
    assert small(map_name="no such map").desc == SMALL


def test_known_maps():
    hazards = {name: "".join(rows).count("H") for name, rows in MAPS.items()}
    assert hazards == {"islands": 3 * 4 + 2 + 2 * 4, "blocks": 10 * 4}
    for rows in MAPS.values():
        assert len(rows) == 15 and {len(row) for row in rows} == {15}
        assert rows[0][0] == "S" and rows[-1][-1] == "G"


def test_copies_and_pickles_continue_alike():
    env = SafetyCriticalGridWorld(slip_probability=0.5)
    env.reset(seed=1)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        twin = copy.deepcopy(env)
        assert [twin.step(DOWN) for _ in range(20)] == [other.step(DOWN) for _ in range(20)]


# The transition table


@pytest.mark.parametrize("slip", [0.0, 0.05, 1 / 3, 1.0])
@pytest.mark.parametrize("name", MAPS)
def test_every_row_is_a_distribution_over_distinct_states(name, slip):
    env = SafetyCriticalGridWorld(name, slip_probability=slip)
    for state in range(env.num_states):
        for action in range(env.num_actions):
            probabilities, states, rewards, terminated = zip(*env.P[state][action])
            assert math.isclose(sum(probabilities), 1.0, abs_tol=1e-12) and min(probabilities) > 0.0
            assert len(set(states)) == len(states)
            assert all(t == (env.hazards[s] or env.goals[s]) for s, t in zip(states, terminated))
            if env.hazards[state] or env.goals[state]:
                assert env.P[state][action] == [(1.0, state, 0.0, True)]
            else:
                entered = [-100.0 if env.hazards[s] else 50.0 if env.goals[s] else -1.0 for s in states]
                assert list(rewards) == entered


@pytest.mark.parametrize(
    "state, action, expected",
    [
        # slip 0.2: each direction 0.05, the chosen one 0.8 more
        (0, UP, {0: 0.90, 3: 0.05, 1: 0.05}),  # up and left both stay in the corner
        (0, RIGHT, {0: 0.10, 3: 0.05, 1: 0.85}),
        (1, RIGHT, {1: 0.05, 4: 0.05, 0: 0.05, 2: 0.85}),
        (4, DOWN, {1: 0.05, 4: 0.85, 3: 0.05, 5: 0.05}),
        (2, LEFT, {2: 1.0}),
        (5, UP, {5: 1.0}),
    ],
)
def test_rows_computed_by_hand(state, action, expected):
    row = small(slip_probability=0.2).P[state][action]
    assert {outcome[1]: outcome[0] for outcome in row} == pytest.approx(expected)


def test_rewards_and_termination_computed_by_hand():
    P = small(slip_probability=0.0).P
    assert P[0][LEFT] == [(1.0, 0, -1.0, False)]
    assert P[1][LEFT] == [(1.0, 0, -1.0, False)]
    assert P[1][RIGHT] == [(1.0, 2, -100.0, True)]
    assert P[4][RIGHT] == [(1.0, 5, 50.0, True)]


def test_full_slip_ignores_the_action():
    row = small(slip_probability=1.0).P[1]
    assert row[UP] == row[DOWN] == row[LEFT] == row[RIGHT]
    assert {outcome[1]: outcome[0] for outcome in row[UP]} == {1: 0.25, 4: 0.25, 0: 0.25, 2: 0.25}


# Steps


@pytest.mark.parametrize("state, action", [(0, UP), (1, RIGHT), (4, DOWN)])
def test_step_frequencies_follow_the_table(state, action):
    env = small(slip_probability=0.4)
    env.reset(seed=7)
    trials, counts = 20_000, np.zeros(env.num_states)
    for _ in range(trials):
        env.state = state
        env.step(action)
        counts[env.state] += 1
    expected = np.zeros(env.num_states)
    for probability, next_state, _, _ in env.P[state][action]:
        expected[next_state] = trials * probability
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 21.1  # exceeded once in 10,000 with three degrees of freedom


def test_step_reports_the_outcome_of_the_table():
    env = SafetyCriticalGridWorld(slip_probability=0.5)
    env.reset(seed=0)
    for _ in range(2_000):
        state, action = env.state, int(env.np_random.integers(4))
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation == env.state and not truncated
        assert (info["probability"], env.state, reward, terminated) in env.P[state][action]
        assert info["hazard"] == env.hazards[env.state] and info["cost"] == info["hazard"]
        if terminated:
            env.reset()


def test_hazard_terminates_at_its_cost():
    env = small(slip_probability=0.0)
    assert env.reset(seed=0) == (0, {"hazard": False, "cost": 0, "probability": 1.0})
    assert env.step(RIGHT) == (1, -1.0, False, False, {"hazard": False, "cost": 0, "probability": 1.0})
    assert env.step(RIGHT) == (2, -100.0, True, False, {"hazard": True, "cost": 1, "probability": 1.0})
    # stepping on stays there for nothing, and the hazard is not paid for twice
    assert env.step(LEFT) == (2, 0.0, True, False, {"hazard": True, "cost": 0, "probability": 1.0})
    assert env.reset()[0] == 0


def test_goal_terminates_with_its_reward():
    env = small(slip_probability=0.0)
    env.reset(seed=0)
    env.step(DOWN)
    env.step(RIGHT)
    assert env.step(RIGHT) == (5, 50.0, True, False, {"hazard": False, "cost": 0, "probability": 1.0})


@pytest.mark.parametrize("action", [-1, 4, 1.0, "up", None])
def test_an_action_outside_the_space_is_an_error(action):
    env = small()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"integer in 0\.\.3"):
        env.step(action)


def test_time_limit_truncates_at_80_steps():
    env = gymnasium.make(NAMED, slip_probability=0.0)
    env.reset(seed=0)
    ends = [env.step(UP)[2:4] for _ in range(80)]
    assert ends == [(False, False)] * 79 + [(False, True)]
    env = gymnasium.make(NAMED, slip_probability=0.0, max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(UP)[3] for _ in range(3)] == [False, False, True]


def test_equal_seeds_give_equal_episodes():
    def states(seed):
        env = SafetyCriticalGridWorld(slip_probability=0.5)
        env.reset(seed=seed)
        return [env.step(t % 4)[0] for t in range(60)]

    assert states(3) == states(3)
    assert len({tuple(states(seed)) for seed in range(8)}) > 1


# Observations


def test_index_observations():
    env = small()
    assert env.observe(4) == 4 and type(env.observe(np.int32(4))) is int
    many = env.observe([[0, 1], [4, 5]])
    assert many.dtype == np.int64 and many.tolist() == [[0, 1], [4, 5]]


def test_coordinates_are_centred_and_scaled():
    env = small(observation="coordinates", slip_probability=0.0)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32 and observation.tolist() == [-1.0, -1.0]
    assert env.step(RIGHT)[0].tolist() == [-1.0, 0.0]
    every = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert env.observe(np.arange(6)).tolist() == every
    assert env.observe(np.zeros((2, 3), dtype=int)).shape == (2, 3, 2)


def test_coordinates_of_an_axis_with_one_cell_are_zero():
    env = SafetyCriticalGridWorld(desc=("S.G",), observation="coordinates")
    assert env.observe(np.arange(3)).tolist() == [[0, -1], [0, 0], [0, 1]]


def test_changing_an_observation_does_not_change_the_next_one():
    env = small(observation="coordinates")
    env.reset(seed=0)[0][:] = 9.0
    env.observe(0)[:] = 9.0
    assert env.reset()[0].tolist() == [-1.0, -1.0]


# Random maps


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_random_maps_are_solvable(probability):
    for size in (2, 3, 5, 9, 16):
        for seed in range(10):
            desc = generate_random_map(size, probability, seed=seed)
            assert len(desc) == size and {len(row) for row in desc} == {size}
            assert desc[0][0] == "S" and desc[-1][-1] == "G"
            assert set("".join(desc)) <= set("S.HG")
            assert "G" in reachable(desc)
            assert SafetyCriticalGridWorld(desc=desc).desc == desc


def test_random_maps_have_the_density_asked_for():
    cells = "".join("".join(generate_random_map(20, 0.2, seed=seed)) for seed in range(50))
    assert cells.count("H") / len(cells) == pytest.approx(0.2, abs=0.01)
    assert "H" not in "".join(generate_random_map(9, 0.0, seed=0))


def test_nothing_is_opened_that_need_not_be():
    # everything a hazard: the shortest ways have 2 * 7 moves, hence 15 cells
    for seed in range(10):
        assert "".join(generate_random_map(8, 1.0, seed=seed)).count("H") == 64 - 15
    # a map that is solvable as drawn keeps every hazard: those of a lower probability are among them
    low, high = (generate_random_map(12, p, seed=5) for p in (0.1, 0.2))
    assert all(b == "H" for a, b in zip("".join(low), "".join(high)) if a == "H")


def test_random_maps_are_seeded():
    assert generate_random_map(12, seed=1) == generate_random_map(12, seed=1)
    assert generate_random_map(12, seed=1) != generate_random_map(12, seed=2)


@pytest.mark.parametrize("size", [1, 0, -3, 2.5, "8", None])
def test_random_map_refuses_a_bad_size(size):
    with pytest.raises(ValueError, match="size must be an integer of at least 2"):
        generate_random_map(size)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan, "0.2", None])
def test_random_map_refuses_a_bad_probability(probability):
    with pytest.raises(ValueError, match=r"hazard_probability must be a number in \[0, 1\]"):
        generate_random_map(4, probability)


# Validation


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"map_name": "lake"}, "Unknown map_name 'lake': the known maps are islands, blocks."),
        ({"desc": ()}, "A map is a sequence of rows"),
        ({"desc": ("",)}, "A map is a sequence of rows"),
        ({"desc": ("S..", ".G")}, "The map is ragged: row 1 has 2 cells, but row 0 has 3."),
        ({"desc": ("S?", ".G")}, "Unknown map character '?'"),
        ({"desc": ("..", ".G")}, "exactly one start S, not 0."),
        ({"desc": ("SS", ".G")}, "exactly one start S, not 2."),
        ({"desc": ("S.", "..")}, "The map has no goal G."),
        ({"desc": ("SH", "HG")}, "No goal can be reached from the start by free cells."),
        ({"desc": "S.G"}, "A map is a sequence of rows"),
        ({"desc": 7}, "A map is a sequence of rows"),
        ({"desc": [1, 2]}, "A map is a sequence of rows"),
        ({"slip_probability": -0.01}, "slip_probability must be a number in [0, 1], not -0.01."),
        ({"slip_probability": 1.01}, "slip_probability must be a number in [0, 1], not 1.01."),
        ({"slip_probability": math.nan}, "slip_probability must be a number in [0, 1], not nan."),
        ({"slip_probability": "0.1"}, "slip_probability must be a number in [0, 1], not '0.1'."),
        ({"observation": "pixels"}, "observation mode 'pixels': it must be 'index' or 'coordinates'."),
        ({"render_mode": "human"}, "Unknown render_mode 'human': it must be None or 'ansi' or 'rgb_array'."),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        SafetyCriticalGridWorld(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_goal_out_of_reach_beside_one_in_reach_is_fine():
    env = SafetyCriticalGridWorld(desc=("SGH", "HHG"))
    assert env.goals.tolist() == [False, True, False, False, False, True]


# Rendering


def test_text_marks_the_agent():
    env = small(render_mode="ansi", slip_probability=0.0)
    env.reset(seed=0)
    assert env.render() == "[S] .  H \n .  .  G \n"
    env.step(RIGHT)
    assert env.render() == " S [.] H \n .  .  G \n"


def cells_of(picture):
    """[rows, columns, height, width, ...] of a picture of SMALL."""
    rows, columns = len(SMALL), len(SMALL[0])
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    return picture.reshape(rows, height, columns, width, *picture.shape[2:]).swapaxes(1, 2)


def test_the_picture_changes_where_the_agent_moves_and_nowhere_else():
    env = small(render_mode="rgb_array", slip_probability=0.0)
    env.reset(seed=0)
    before = env.render()
    env.step(RIGHT)
    after = env.render()
    for frame in (before, after):
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    assert before.shape == after.shape and after.shape[1] > after.shape[0]  # a wide map
    changed = (before != after).any(axis=-1)
    by_cell = cells_of(changed)
    assert by_cell[0, :2].any((1, 2)).all()
    by_cell[0, :2] = False
    assert not by_cell.any()


def test_frames_do_not_share_memory():
    env = small(render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    kept = first.copy()
    first[:] = 0
    assert (env.render() == kept).all()


def test_cells_differ_in_colour_and_in_shape():
    board = cells_of(rendering.picture(SMALL))
    pictures = {SMALL[i][j]: board[i, j] for i, j in ((0, 0), (0, 2), (1, 0), (1, 2))}  # one of each kind
    corner = len(pictures["S"]) // 5
    ground = {cell: picture[corner, corner].tolist() for cell, picture in pictures.items()}
    assert len({tuple(colour) for colour in ground.values()}) == 4
    drawn = {  # the outline of what is drawn on the ground, whatever its colour
        cell: abs(picture.astype(int) - ground[cell]).sum(axis=-1) > 60 for cell, picture in pictures.items()
    }
    for cell in "SHG":
        for other in "SHG.":
            if cell != other:
                assert (drawn[cell] != drawn[other]).mean() > 0.05


def test_large_and_single_cell_wide_maps_have_pictures_of_bounded_size():
    for desc in (("S" + "." * 98 + "G",), tuple("S" + "." * 98 + "G"), ("SG",)):
        env = SafetyCriticalGridWorld(desc=desc, render_mode="rgb_array")
        env.reset(seed=0)
        frame = env.render()
        assert max(frame.shape) <= 900
        assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0


def test_render_without_a_mode_warns_and_returns_nothing():
    env = small()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
