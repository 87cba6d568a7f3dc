"""A slippery grid with fatal cells, whose transition table is the environment."""

import heapq
from collections.abc import Sequence
from numbers import Integral, Real

import gymnasium
import numpy as np
from gymnasium import spaces

from envs import rendering

UP, DOWN, LEFT, RIGHT = range(4)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (row, column) step of each action

START, FREE, HAZARD, GOAL = "S.HG"
REWARDS = {START: -1.0, FREE: -1.0, HAZARD: -100.0, GOAL: 50.0}  # of the cell entered

MAPS = {
    "islands": (
        "S..............",
        "...............",
        "...HH.....HH...",
        "...HH.....HH...",
        "...............",
        "...............",
        "......HH.....H.",
        "......HH.....H.",
        "...............",
        "..H........H...",
        "..HH......HH...",
        "...H......H....",
        "...............",
        "...............",
        "..............G",
    ),
    "blocks": (
        "S..............",
        "...............",
        "..HH...HH...HH.",
        "..HH...HH...HH.",
        "...............",
        "....HH...HH....",
        "....HH...HH....",
        "...............",
        "..HH...HH...HH.",
        "..HH...HH...HH.",
        "...............",
        "....HH...HH....",
        "....HH...HH....",
        "...............",
        "..............G",
    ),
}


class SafetyCriticalGridWorld(gymnasium.Env):
    """Walk from the start to a goal; a slip beside a hazard can end the episode at great cost.

    ## Description
    The agent moves on a grid of `rows x columns` cells, one cell per step. Every move may slip. Entering a
    goal is the only reward, entering a hazard costs more than a detour, so a good policy keeps its
    distance from hazards even where the direct way leads along them.

    The dynamics are a finite table, `P`, and `step` samples that very table: simulator and model are one.

    ## Action space
    `Discrete(4)`: 0 up, 1 down, 2 left, 3 right.

    ## Observation space
    A state is the number of the agent's cell, `row * columns + column`, row 0 at the top.

    - `observation="index"`: `Discrete(rows * columns)`, the state itself.
    - `observation="coordinates"`: `Box(-1, 1, (2,), float32)`, row and column scaled so that the first is
      -1 and the last is 1; on an axis with a single cell, 0.

    ## Starting state
    The one cell marked `S`.

    ## Transitions
    With probability `slip_probability` the executed move is one of the four drawn uniformly (the chosen one
    among them), otherwise it is the chosen one. A move into the border stays in place.

    ## Rewards
    That of the cell entered: -1 for a free cell or the start (staying in place counts as entering), -100
    for a hazard, +50 for a goal.

    ## Episode end
    Entering a hazard or a goal terminates. A terminal cell leads to itself with reward 0, and stepping on
    from it does just that. `gymnasium.make("SafetyCriticalGridWorld-v0")` truncates after 80 steps; give it
    `max_episode_steps` for maps that need more.

    ## Information
    `step` and `reset` return a dict with

    - `hazard` (bool): the agent stands on a hazard,
    - `cost` (int): 1 if this step entered a hazard, else 0,
    - `probability` (float): that of the transition taken, given state and action; 1.0 at reset.

    ## Arguments
    - `map_name="islands"`: one of `MAPS`; not read if `desc` is given.
    - `desc=None`: a map of one's own, a sequence of rows over the alphabet `S` start, `.` free, `H` hazard,
      `G` goal, for instance `("S..", ".H.", "..G")`. It has exactly one start, and a goal that can be
      reached from it by free cells. `generate_random_map` makes such maps.
    - `slip_probability=0.05`: in [0, 1].
    - `observation="index"`: or `"coordinates"`.
    - `render_mode=None`: `"ansi"` returns the map as text, the agent's cell in brackets; `"rgb_array"` a
      picture, uint8 `[height, width, 3]`.

    ## Attributes
    To be read through `env.unwrapped`; S states, A = 4 actions.

    - `P`: `P[s][a]` is a list of `(probability, next_state, reward, terminated)`, with distinct next states,
      positive probabilities that sum to 1, and `[(1.0, s, 0.0, True)]` in terminal cells.
    - `desc`: the map, a tuple of str; `shape`: `(rows, columns)`; `num_states`, `num_actions`: int.
    - `start`: int, the start state; `state`: int, the current one.
    - `hazards`, `goals`: bool `[S]`.
    - `slip_probability`: float.

    Raises `ValueError` for an argument outside what is said above.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(self, map_name: str = "islands", desc: Sequence[str] | None = None, slip_probability: float = 0.05,
                 observation: str = "index", render_mode: str | None = None):
        if desc is None and map_name not in MAPS:
            raise ValueError(f"Unknown map_name {map_name!r}: the known maps are {', '.join(MAPS)}.")
        if not _is_probability(slip_probability):
            raise ValueError(f"slip_probability must be a number in [0, 1], not {slip_probability!r}.")
        if observation not in ("index", "coordinates"):
            raise ValueError(f"Unknown observation mode {observation!r}: it must be 'index' or 'coordinates'.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"Unknown render_mode {render_mode!r}: it must be None or 'ansi' or 'rgb_array'.")

        self.desc = _validated_map(MAPS[map_name] if desc is None else desc)
        self.shape = (len(self.desc), len(self.desc[0]))
        self.slip_probability, self.observation, self.render_mode = float(slip_probability), observation, render_mode

        cells = "".join(self.desc)
        self.num_states, self.num_actions = len(cells), len(MOVES)
        self.start = self.state = cells.index(START)
        self.hazards = np.array([cell == HAZARD for cell in cells])  # [S]
        self.goals = np.array([cell == GOAL for cell in cells])  # [S]
        self.P = _transition_table(cells, intended_cells(self.shape), self.slip_probability)

        self.action_space = spaces.Discrete(self.num_actions)
        if observation == "index":
            self.observation_space = spaces.Discrete(self.num_states)
        else:
            self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
            self._coordinates = _coordinates(self.shape)  # [S, 2]

    def observe(self, states):
        """What the agent observes in `states`, an int or an int array `[...]`: the same as int or int64, or with
        coordinates a new float32 array `[..., 2]`."""
        if self.observation == "coordinates":
            return np.take(self._coordinates, states, axis=0)
        return int(states) if np.ndim(states) == 0 else np.array(states, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Put the agent on the start and return `(observation, info)`; `options` are not used."""
        super().reset(seed=seed)
        self.state = self.start
        return self.observe(self.state), {"hazard": False, "cost": 0, "probability": 1.0}

    def step(self, action: int):
        """Sample `P[state][action]`: `(observation, reward, terminated, False, info)`. Raises `ValueError` for an
        action that is no integer in 0..3."""
        if not self.action_space.contains(action):
            raise ValueError(f"The action must be an integer in 0..{self.num_actions - 1}, not {action!r}.")
        outcomes = self.P[self.state][int(action)]
        probability, next_state, reward, terminated = _sample(outcomes, self.np_random.random())
        hazard = bool(self.hazards[next_state])
        cost = int(hazard and next_state != self.state)  # a self-loop enters nothing
        info = {"hazard": hazard, "cost": cost, "probability": probability}
        self.state = next_state
        return self.observe(next_state), reward, terminated, False, info

    def render(self):
        """Return the map as a str (`ansi`), or as uint8 `[height, width, 3]` (`rgb_array`)."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs the render_mode 'ansi' or 'rgb_array' at construction.")
            return None
        cell = divmod(self.state, self.shape[1])
        return (rendering.text if self.render_mode == "ansi" else rendering.picture)(self.desc, cell)


def intended_cells(shape: tuple[int, int]) -> np.ndarray:
    """The state that each action leads to when it does not slip, int64 `[S, A]`, of a map of `(rows, columns)`."""
    rows, columns = shape
    row, column = np.divmod(np.arange(rows * columns), columns)
    step = np.array(MOVES)  # [A, 2]
    row = np.clip(row[:, None] + step[:, 0], 0, rows - 1)  # [S, A]
    column = np.clip(column[:, None] + step[:, 1], 0, columns - 1)  # [S, A]
    return row * columns + column


def generate_random_map(size: int, hazard_probability: float = 0.2, seed: int | None = None) -> tuple[str, ...]:
    """Return a random solvable map: `size` rows of `size` characters, ready to be passed as `desc`.

    The start is the top left cell, the goal the bottom right one, and every other cell is a hazard with
    probability `hazard_probability`, independently. Where that leaves no free way to the goal, as few
    hazards are opened as make one, so that any probability gives a map, 1 included. Equal arguments give
    equal maps; `seed=None` gives a new one each time.

    Raises `ValueError` if `size` is no integer of at least 2 or `hazard_probability` is outside [0, 1].
    """
    if not isinstance(size, Integral) or size < 2:
        raise ValueError(f"size must be an integer of at least 2, not {size!r}.")
    if not _is_probability(hazard_probability):
        raise ValueError(f"hazard_probability must be a number in [0, 1], not {hazard_probability!r}.")
    rng = np.random.default_rng(seed)
    hazards = rng.random(size * size) < hazard_probability  # [S]
    hazards[[0, -1]] = False
    # A hazard costs 1 and a free cell nothing; the random parts, less than 1 together, only break ties.
    toll = np.where(hazards, 1.0 + rng.random(size * size) / size**2, 0.0)  # [S]
    hazards[_cheapest_path(toll, intended_cells((size, size)))] = False

    cells = np.where(hazards, HAZARD, FREE)
    cells[0], cells[-1] = START, GOAL
    return tuple("".join(row) for row in cells.reshape(size, size))


def _cheapest_path(toll: np.ndarray, neighbours: np.ndarray) -> list[int]:
    """Return the states on the way from the first to the last that pays the least toll (Dijkstra)."""
    cost, came_from = {0: 0.0}, {}
    frontier = [(0.0, 0)]
    while frontier:
        paid, state = heapq.heappop(frontier)
        if paid > cost[state]:
            continue  # an outdated entry: a cheaper way to this state is known by now
        for neighbour in neighbours[state].tolist():
            price = paid + toll[neighbour]
            if price < cost.get(neighbour, np.inf):
                cost[neighbour], came_from[neighbour] = price, state
                heapq.heappush(frontier, (price, neighbour))
    path = [len(toll) - 1]
    while path[-1] != 0:
        path.append(came_from[path[-1]])
    return path


def _is_probability(value) -> bool:
    return isinstance(value, Real) and 0.0 <= float(value) <= 1.0  # NaN compares false


def _validated_map(desc: Sequence[str]) -> tuple[str, ...]:
    """Return `desc` as a tuple of str, or raise the `ValueError` that says what is wrong with it."""
    try:
        rows = () if isinstance(desc, str) else tuple("".join(row) for row in desc)
    except TypeError:
        rows = ()
    if not rows or not rows[0]:
        raise ValueError("A map is a sequence of rows of one length, such as ('S.', '.G').")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"The map is ragged: row {number} has {len(row)} cells, but row 0 has {len(rows[0])}.")
    cells = "".join(rows)
    unknown = sorted(set(cells) - set(REWARDS))
    if unknown:
        raise ValueError(f"Unknown map character {unknown[0]!r}: use S start, . free, H hazard, G goal.")
    if cells.count(START) != 1:
        raise ValueError(f"The map must have exactly one start S, not {cells.count(START)}.")
    if GOAL not in cells:
        raise ValueError("The map has no goal G.")
    if not _goal_is_reachable(cells, intended_cells((len(rows), len(rows[0])))):
        raise ValueError("No goal can be reached from the start by free cells.")
    return rows


def _goal_is_reachable(cells: str, neighbours: np.ndarray) -> bool:
    frontier = [cells.index(START)]
    seen = set(frontier)
    while frontier:
        state = frontier.pop()
        if cells[state] == GOAL:
            return True
        for neighbour in neighbours[state].tolist():
            if neighbour not in seen and cells[neighbour] != HAZARD:
                seen.add(neighbour)
                frontier.append(neighbour)
    return False


def _transition_table(cells: str, intended: np.ndarray, slip_probability: float) -> dict:
    """`P[s][a] = [(probability, next_state, reward, terminated), ...]`; `intended` is `[S, A]`."""
    def outcomes(state: int, action: int) -> list[tuple]:
        if cells[state] in (HAZARD, GOAL):
            return [(1.0, state, 0.0, True)]
        probabilities = _next_state_probabilities(intended[state].tolist(), action, slip_probability)
        return [(probability, target, REWARDS[cells[target]], cells[target] in (HAZARD, GOAL))
                for target, probability in probabilities.items()]

    return {state: {action: outcomes(state, action) for action in range(len(MOVES))} for state in range(len(cells))}


def _next_state_probabilities(targets: list[int], action: int, slip_probability: float) -> dict[int, float]:
    """Return the probability of each next state, where move i leads to `targets[i]`.

    Moves that lead to the same state (at the border) are merged, impossible ones left out.
    """
    probabilities: dict[int, float] = {}
    for move, target in enumerate(targets):
        probability = slip_probability / len(MOVES) + (1.0 - slip_probability) * (move == action)
        if probability > 0.0:
            probabilities[target] = probabilities.get(target, 0.0) + probability
    return probabilities


def _coordinates(shape: tuple[int, int]) -> np.ndarray:
    """Return row and column of every state, scaled to [-1, 1], float32 `[S, 2]`."""
    axes = [np.linspace(-1.0, 1.0, length) if length > 1 else np.zeros(1) for length in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def _sample(outcomes: list[tuple], uniform: float) -> tuple:
    """Return the outcome that `uniform`, drawn from [0, 1), falls on."""
    for outcome in outcomes:
        uniform -= outcome[0]
        if uniform < 0.0:
            return outcome
    return outcomes[-1]  # the probabilities may sum to a rounding error less than 1
