"""A finite MDP as arrays: from a transition table, an environment, or a data set.

Axes: S state, A action, K outcome of one (state, action), N policy, D transition of a data set, E edge. float64.

An MDP is stored by its outcomes, [S, A, K], as Gymnasium's toy-text tables are, so a 100 x 100 grid takes a few
megabytes. Two rules hold everywhere:

- Whether the future counts is a property of the *outcome*, never of the state it leads to: a terminated outcome
  contributes its reward and nothing else. In Taxi and CliffWalking the state an episode ends in is an ordinary state.
- A pair without a model (all its probabilities are 0: the data lack it) ends the episode with nothing. So a state
  without any model has value 0. A policy may not choose such a pair where the state has other, modelled ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite MDP by outcomes. Arrays are read-only; `from_P`, `from_env` and `empirical_mdp` build and check one."""

    probability: np.ndarray            # [S, A, K], rows sum to 1 (0 for a pair without a model); padded with 0
    next_state: np.ndarray             # [S, A, K] int
    reward: np.ndarray                 # [S, A, K]
    terminated: np.ndarray             # [S, A, K] bool, whether this outcome ends the episode (masks the bootstrap)
    hazard: np.ndarray | None          # [S] bool; None where the environment has no hazards
    goal: np.ndarray | None            # [S] bool; None where the environment has no goals
    terminal: np.ndarray               # [S] bool, states where every action ends where it is, for nothing: value 0
    start: int | np.ndarray | None     # a state, a distribution [S], or None where unknown

    def __post_init__(self):
        for name, dtype in {"probability": float, "next_state": np.intp, "reward": float, "terminated": bool}.items():
            array = np.array(getattr(self, name), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in ("hazard", "goal", "terminal"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, state_mask(getattr(self, name), self.num_states, name))
        if self.start is not None:
            start = start_distribution(self, self.start)
            certain = np.flatnonzero(start == 1)
            object.__setattr__(self, "start", int(certain[0]) if certain.size else start)

    @property
    def num_states(self) -> int:
        return self.probability.shape[0]

    @property
    def num_actions(self) -> int:
        return self.probability.shape[1]

    @cached_property
    def modelled(self) -> np.ndarray:
        """[S, A] bool: the pairs that have outcomes."""
        return self.probability.sum(-1) > 0

    @cached_property
    def expected_reward(self) -> np.ndarray:
        """[S, A]: E[r | s, a]."""
        return (self.probability * self.reward).sum(-1)

    @cached_property
    def continuing(self) -> np.ndarray:
        """[S, A, K]: probability of an outcome after which the episode goes on."""
        return np.where(self.terminated, 0.0, self.probability)

    @cached_property
    def edges(self) -> "Edges":
        """The distinct (state, next state) that continue an episode, for products with P^pi that need no [S, S]."""
        states, actions, _ = outcomes = np.nonzero(self.continuing)
        key = states * self.num_states + self.next_state[outcomes]
        unique, edge = np.unique(key, return_inverse=True)                                            # [E], sorted
        weight = np.bincount(edge * self.num_actions + actions, weights=self.continuing[outcomes],
                             minlength=unique.size * self.num_actions)
        source, target = np.divmod(unique, self.num_states)
        return Edges(source, target, weight.reshape(unique.size, self.num_actions), outcomes, edge)

    @classmethod
    def from_P(cls, P, hazard=None, goal=None, start=None, first=(0, 0)) -> "TabularMDP":
        """From a toy-text table `P[s][a] = [(probability, next_state, reward, terminated), ...]` (dicts or lists).

        Equal outcomes of a pair are merged, outcomes of probability 0 left out, and probabilities that sum to 1 within
        1e-6 are scaled to do so. A table whose keys begin at `first`, the numbers of the first state and action, counts
        states (`start` too) and actions from there. ValueError, with the pair named, if the table is no such thing.
        """
        rows, first_state = _numbered(P, "P", "state", first[0])
        actions = [_numbered(row, f"P[{s}]", "action", first[1])[0] for s, row in enumerate(rows)]
        num_states, num_actions = len(rows), len(actions[0])
        flat: list[tuple] = []
        for s, row in enumerate(actions):
            if len(row) != num_actions:
                raise ValueError(f"Every state needs the same actions: {s} has {len(row)}, state 0 has {num_actions}.")
            for a, outcomes in enumerate(row):
                try:
                    flat += [(s * num_actions + a, float(p), float(t), float(r), bool(e)) for p, t, r, e in outcomes]
                except (TypeError, ValueError):
                    raise ValueError(f"P[{s}][{a}] must be a list of (probability, next_state, reward, terminated)."
                                     ) from None
        pair, probability, target, reward, end = np.array(flat, dtype=np.float64).reshape(-1, 5).T
        pair, target = pair.astype(np.intp), target - first_state
        total = _checked_sums(probability, target, reward, pair, np.ones((num_states, num_actions), dtype=bool))
        possible = probability > 0
        probability, next_state, reward, terminated = _outcome_arrays(
            num_states, num_actions, pair[possible], target[possible].astype(np.intp), reward[possible],
            end[possible] > 0, (probability / total[pair])[possible])
        loops = (probability == 0) | (
            terminated & (next_state == np.arange(num_states)[:, None, None]) & (reward == 0))
        if first_state and start is not None and np.ndim(start) == 0:
            start = start - first_state
        return cls(probability, next_state, reward, terminated, hazard, goal, loops.all((1, 2)), start)

    @classmethod
    def from_outcomes(cls, probability, next_state, reward, terminated, start, terminal, hazard=None, goal=None,
                      admissible=None) -> "TabularMDP":
        """From outcomes [S, A, K]; an episode ends with a terminated outcome, and on entering a state of `terminal`.

        A pair that is not `admissible` [S, A] has the outcomes of the state's first admissible action, so that a
        maximum over all actions is one over the admissible ones. Terminal states keep nothing of their rows, which may
        be 0 throughout. ValueError, with the place named, if the arrays are no such thing.
        """
        probability = np.asarray(probability, np.float64)
        if probability.ndim != 3 or not probability.size:
            raise ValueError(f"probabilities must be [S, A, K], got {probability.shape}.")
        num_states, num_actions, _ = shape = probability.shape
        actions = np.arange(num_actions)
        for name, array in {"next_state": next_state, "reward": reward, "terminated": terminated}.items():
            if np.shape(array) != shape:
                raise ValueError(f"{name} must be {shape} as the probabilities are, got {np.shape(array)}.")
        terminal = state_mask(terminal, num_states, "terminal")
        admissible = np.ones(shape[:2], dtype=bool) if admissible is None else np.array(admissible)
        if admissible.shape != shape[:2] or admissible.dtype != np.bool_:
            raise ValueError(f"admissible must be bool {shape[:2]}, got {admissible.dtype} {admissible.shape}.")
        if (none := ~admissible.any(1) & ~terminal).any():
            raise ValueError(f"state {np.argmax(none)} has no admissible action.")
        if terminal.all():
            raise ValueError("every state is terminal.")
        s, a, _ = possible = np.nonzero(probability)                         # [D] each, the outcomes one by one
        pair, probability, next_state, reward, terminated = s * num_actions + a, *(
            np.asarray(x)[possible] for x in (probability, next_state, reward, terminated))
        _checked_sums(probability, next_state, reward, pair, admissible & ~terminal[:, None])
        next_state = next_state.astype(np.intp)
        ends = terminal[next_state]
        for wrong, complaint in [(~ends, "leaves a terminal state"), (reward != 0, "has a reward in a terminal state")]:
            if (wrong & terminal[s]).any():
                n = np.argmax(wrong & terminal[s])
                raise ValueError(f"action {a[n]} in state {s[n]} {complaint}.")
        used = admissible[s, a] & ~terminal[s]
        arrays = _outcome_arrays(num_states, num_actions, *(
            x[used] for x in (pair, next_state, reward, terminated.astype(bool) | ends, probability)))
        arrays[0][terminal, :, 0] = 1                                        # the padding is a loop without reward
        same_as = np.where(admissible, actions, admissible.argmax(1)[:, None])                             # [S, A]
        probability, next_state, reward, terminated = (x[np.arange(num_states)[:, None], same_as] for x in arrays)
        return cls(probability, next_state, reward, terminated, hazard, goal, terminal, start)

    @classmethod
    def from_env(cls, env) -> "TabularMDP":
        """From an environment with a table `P` (this project's, FrozenLake, CliffWalking, Taxi).

        Hazards and goals are read from the arrays `hazards` and `goals` [S] of the environment, else from the letters
        H and G of its map `desc` where that has one letter a state (FrozenLake), else there are none. The start is
        the attribute `start`, else `initial_state_distrib`. A table whose keys begin where the environment's spaces do
        (`Discrete(4, start=1)`) counts from there. ValueError if there is no valid transition table.
        """
        env = getattr(env, "unwrapped", env)
        if getattr(env, "P", None) is None:
            raise ValueError(f"{type(env).__name__} has no transition table P (its observation space is "
                             f"{getattr(env, 'observation_space', None)}): exact values need a finite environment with "
                             "known dynamics.")
        hazard, goal = getattr(env, "hazards", None), getattr(env, "goals", None)
        desc = getattr(env, "desc", None)
        if hazard is None and goal is None and desc is not None and np.size(desc) == len(env.P):
            letters = np.asarray(desc).astype("U1").ravel()
            hazard, goal = letters == "H", letters == "G"
        start = getattr(env, "start", None)
        start = getattr(env, "initial_state_distrib", None) if start is None else start
        starts = [getattr(getattr(env, name, None), "start", 0) for name in ("observation_space", "action_space")]
        first = [0 if np.ndim(number) else number for number in starts]  # those of MultiDiscrete are arrays
        return cls.from_P(env.P, hazard, goal, start, first)


@dataclass(frozen=True, eq=False)
class Edges:
    """Continuing transitions as a list sorted by source: `weight[e, a]` = P(target[e], goes on | source[e], a)."""

    source: np.ndarray     # [E]
    target: np.ndarray     # [E]
    weight: np.ndarray     # [E, A]
    outcomes: tuple        # indices into [S, A, K] of the continuing outcomes
    edge: np.ndarray       # the edge of each of these outcomes

    @cached_property
    def by_source(self):
        return np.unique(self.source, return_index=True)

    @cached_property
    def by_target(self):
        order = np.argsort(self.target, kind="stable")
        return order, *np.unique(self.target[order], return_index=True)

    def under(self, policies):
        """[E, N]: the weights of P^pi for policies [N, S, A]."""
        return sum(self.weight[:, a, None] * policies[:, self.source, a].T for a in range(self.weight.shape[1]))

    def collect(self, per_outcome):
        """[E, N]: weights given per outcome, [N, S, A, K], summed over the outcomes of each edge."""
        return np.stack([np.bincount(self.edge, weights=x[self.outcomes], minlength=self.source.size)
                         for x in per_outcome], axis=-1)

    def backward(self, weight, values, ufunc=np.add):
        """P^pi v: weight [E, N], values [S, N] -> [S, N]. With `np.logical_or`: bool, any successor."""
        out = np.zeros_like(values)
        states, first = self.by_source
        if states.size:
            flow = values[self.target]                                                                # [E, N]
            flow *= weight
            out[states] = ufunc.reduceat(flow, first, axis=0)
        return out

    def forward(self, weight, mass):
        """d^T P^pi: weight [E, N], mass [S, N] -> [S, N]."""
        out = np.zeros_like(mass)
        order, states, first = self.by_target
        if states.size:
            out[states] = np.add.reduceat((weight * mass[self.source])[order], first, axis=0)
        return out


def start_distribution(mdp: TabularMDP, start=None) -> np.ndarray:
    """[S]: `start` (a state or a distribution; default `mdp.start`) as a distribution. ValueError if it is none."""
    start = mdp.start if start is None else start
    if start is None:
        raise ValueError("The start is unknown: give start as a state or as a distribution [S].")
    start = np.asarray(start)
    if start.ndim == 0:
        if not np.issubdtype(start.dtype, np.integer) or not 0 <= start < mdp.num_states:
            raise ValueError(f"start must be a state in 0..{mdp.num_states - 1} or a distribution, got {start}.")
        return np.eye(1, mdp.num_states, int(start))[0]
    start = start.astype(np.float64)
    if start.shape != (mdp.num_states,) or not (start >= 0).all() or abs(start.sum() - 1) > 1e-6:
        raise ValueError(f"start must be a distribution over {mdp.num_states} states.")
    return start / start.sum()


def empirical_mdp(dataset, num_states, num_actions, hazard=None, goal=None, start=None, terminal=None):
    """(TabularMDP, counts [S, A] int) of a data set: relative frequencies of outcomes (s', r, terminated) of a pair.

    A truncated step bootstraps from its real next state like any other; a terminated one does not. Pairs without data
    have probability 0 throughout.

    Args:
        dataset: anything with `observations`, `actions`, `rewards`, `next_observations`, `terminations` [D] and, if its
            rows are distinct transitions, their `counts` [D].
        hazard, goal, start, terminal: as for `TabularMDP`, since the data do not say. Without `terminal`, a state is
            terminal if the data enter it, only by terminated steps, and never leave it.

    Raises ValueError if observations are not single integers or lie outside 0..S-1 (a continuous data set, or one of
    another environment), or actions likewise.
    """
    columns = {name: np.asarray(getattr(dataset, name)) for name in ("observations", "next_observations", "actions")}
    for name, column in columns.items():
        size = num_actions if name == "actions" else num_states
        if column.ndim != 1 or not np.issubdtype(column.dtype, np.integer):
            raise ValueError(f"{name} must be one integer a step, got {column.dtype} of shape {column.shape}: an exact "
                             "model needs index observations and discrete actions, not continuous ones.")
        if column.min() < 0 or column.max() >= size:
            raise ValueError(f"{name} reach from {column.min()} to {column.max()}, outside 0..{size - 1}: this is a "
                             "data set of another environment.")
    rewards = np.asarray(dataset.rewards, dtype=np.float64)
    ends = np.asarray(dataset.terminations, dtype=np.bool_)
    times = np.asarray(getattr(dataset, "counts", np.ones(len(rewards), dtype=np.int64)))
    states, next_states = columns["observations"].astype(np.intp), columns["next_observations"].astype(np.intp)
    pair = states * num_actions + columns["actions"]
    counts = np.zeros(num_states * num_actions, dtype=np.int64)
    np.add.at(counts, pair, times)
    arrays = _outcome_arrays(num_states, num_actions, pair, next_states, rewards, ends, times / counts[pair])
    if terminal is None:
        ended, bootstrapped = np.zeros((2, num_states), dtype=bool)
        ended[next_states[ends]] = True
        bootstrapped[next_states[~ends]] = True
        terminal = ended & ~bootstrapped & (np.bincount(states, minlength=num_states) == 0)
    return TabularMDP(*arrays, hazard, goal, terminal, start), counts.reshape(num_states, num_actions)


def _checked_sums(probability, next_state, reward, pair, needed):
    """[S A]: the sums of the probabilities of outcomes [D] by their pair.
    Raises ValueError if an outcome is none, or the sum of a `needed` pair, [S, A] bool, is not 1. It names the pair."""
    for wrong, complaint in [
            (~np.isfinite(probability) | (probability < 0), "has a negative or non-finite probability"),
            (~((next_state == np.floor(next_state)) & (next_state >= 0) & (next_state < len(needed))),
             f"leads to a state outside 0..{len(needed) - 1}"),
            (~np.isfinite(reward), "has a reward that is not finite")]:
        if wrong.any():
            s, a = divmod(int(pair[np.argmax(wrong)]), needed.shape[1])
            raise ValueError(f"action {a} in state {s} {complaint}.")
    total = np.bincount(pair, weights=probability, minlength=needed.size)
    if (wrong := needed.ravel() & (np.abs(total - 1) > 1e-6)).any():
        s, a = divmod(int(np.argmax(wrong)), needed.shape[1])
        raise ValueError(f"probabilities must sum to 1: those of state {s}, action {a} sum to {total[wrong][0]:.6g}.")
    return total


def _outcome_arrays(num_states, num_actions, pair, next_state, reward, terminated, weight):
    """Rows of outcomes, all [D], merged and laid out as probability, next_state, reward, terminated [S, A, K]."""
    order = np.lexsort((terminated, reward, next_state, pair))
    pair, next_state, reward, terminated = (x[order] for x in (pair, next_state, reward, terminated))
    new = np.ones(pair.size, dtype=bool)                                     # differs from the row before it
    new[1:] = ((np.diff(pair) != 0) | (np.diff(next_state) != 0) | (np.diff(reward) != 0)
               | (terminated[1:] != terminated[:-1]))
    first = np.flatnonzero(new)
    probability = np.add.reduceat(weight[order], first)
    pair, next_state, reward, terminated = (x[first] for x in (pair, next_state, reward, terminated))
    slot = np.arange(pair.size) - np.searchsorted(pair, pair)                # k: number among the outcomes of its pair
    shape = (num_states * num_actions, slot.max() + 1)
    columns = []
    for values, padding in [(probability, 0.0), (next_state, np.arange(shape[0])[:, None] // num_actions),
                            (reward, 0.0), (terminated, True)]:
        column = np.broadcast_to(np.asarray(padding, dtype=values.dtype), shape).copy()
        column[pair, slot] = values
        columns.append(column.reshape(num_states, num_actions, -1))
    columns[0] /= np.maximum(columns[0].sum(-1, keepdims=True), 1e-300)      # to the last bit; rows of 0 stay 0
    return columns


def _numbered(table, name, what, first):
    """(entries, number of the first one) of a sequence, or of a dict with keys first..first+n-1 or 0..n-1."""
    if not isinstance(table, (Mapping, list, tuple, np.ndarray)) or not len(table):
        raise ValueError(f"{name} must be a non-empty dict or list over {what}s.")
    keyed = isinstance(table, Mapping) and first in table and first + len(table) - 1 in table
    first = int(first) if keyed else 0
    try:
        return [table[first + i] for i in range(len(table))], first
    except KeyError as missing:
        raise ValueError(f"{name} must number its {what}s {first}..{first + len(table) - 1}: {missing} is missing."
                         ) from None


def state_mask(mask, num_states, name):
    """A read-only copy of a mask [S] bool, checked."""
    mask = np.array(mask)
    if mask.shape != (num_states,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be a bool mask over {num_states} states, got {mask.dtype} {mask.shape}.")
    mask.setflags(write=False)
    return mask


def check_gamma(gamma):
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, got {gamma}.")
