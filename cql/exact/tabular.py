"""A finite MDP as arrays, and what dynamic programming says about it, without sampling.

Axes: S state, A action, K outcome of one (state, action), N policy, H step, D transition of a data set. float64.

An MDP is stored by its outcomes, [S, A, K], as Gymnasium's toy-text tables are, so a 100 x 100 grid takes a few
megabytes. Two rules hold everywhere:

- Whether the future counts is a property of the *outcome*, never of the state it leads to: a terminated outcome
  contributes its reward and nothing else. In Taxi and CliffWalking the state an episode ends in is an ordinary state.
- A pair without a model (all its probabilities 0: a pair that no data set row contains) ends the episode with nothing.
  So a state without any model has value 0. A policy may not choose such a pair where the state has other, known ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

DENSE_STATES = 1000        # up to here (I - gamma P) is factorised; beyond, iteration on the sparse edges is quicker
DENSE_CHUNK = 2 ** 24      # matrix entries factorised in one call: 128 MiB


# ---------------------------------------------------------------------------------------------------- the MDP itself


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite MDP by outcomes. Arrays are read-only; build one with `from_P`, `from_env` or `empirical_mdp`.

    Args:
        probability: [S, A, K], rows sum to 1, or are all 0 for a pair without a model; outcomes are padded with 0.
        next_state: [S, A, K] int.
        reward: [S, A, K].
        terminated: [S, A, K] bool, whether this outcome ends the episode (masks the bootstrap).
        hazard, goal: [S] bool or None where the environment knows no such thing.
        terminal: [S] bool, states where every action only ends where it is, for nothing. They have value 0.
        start: a state, a distribution [S], or None where unknown.

    Raises:
        ValueError: shapes disagree, probabilities are no distribution, an index is out of range, a reward not finite.
    """

    probability: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    hazard: np.ndarray | None
    goal: np.ndarray | None
    terminal: np.ndarray
    start: int | np.ndarray | None

    def __post_init__(self):
        shape = np.shape(self.probability)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"probability must be [S, A, K] with no empty axis, got shape {shape}.")
        for name, dtype in [("probability", np.float64), ("next_state", np.intp), ("reward", np.float64),
                            ("terminated", np.bool_)]:
            array = np.array(getattr(self, name), dtype=dtype)
            if array.shape != shape:
                raise ValueError(f"{name} must have the shape {shape} of probability, got {array.shape}.")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        total = self.probability.sum(-1)                                                              # [S, A]
        bad = ~((np.abs(total - 1) <= 1e-9) | (total == 0)) | (self.probability < 0).any(-1)
        if bad.any():
            raise ValueError(f"Outcome probabilities of {_pair(bad)} are no distribution (they sum to "
                             f"{total[tuple(np.argwhere(bad)[0])]:.6g}).")
        if self.next_state.min() < 0 or self.next_state.max() >= shape[0]:
            raise ValueError(f"next_state must lie in 0..{shape[0] - 1}.")
        if not np.isfinite(self.reward).all():
            raise ValueError("Rewards must be finite.")
        for name in ("hazard", "goal", "terminal"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _state_mask(getattr(self, name), shape[0], name))
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
        """[S, A] bool: the pairs that have outcomes at all."""
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
        states, actions, _ = kept = np.nonzero(self.continuing)
        key = states * self.num_states + self.next_state[kept]
        unique, edge = np.unique(key, return_inverse=True)                                            # [E], sorted
        weight = np.bincount(edge * self.num_actions + actions, weights=self.continuing[kept],
                             minlength=unique.size * self.num_actions)
        source, target = np.divmod(unique, self.num_states)
        return Edges(source, target, weight.reshape(unique.size, self.num_actions), kept, edge)

    @classmethod
    def from_P(cls, P, hazard=None, goal=None, start=None) -> "TabularMDP":
        """From a toy-text table `P[s][a] = [(probability, next_state, reward, terminated), ...]` (dicts or lists).

        Equal outcomes of a pair are merged and those of probability 0 left out.

        Raises:
            ValueError: the table is ragged or misnumbered, an outcome is no such 4-tuple, probabilities of a pair do
                not sum to 1 (within 1e-6; then they are scaled to), an index is out of range, a reward not finite.
        """
        rows = _numbered(P, "P", "state")
        actions = [_numbered(row, f"P[{s}]", "action") for s, row in enumerate(rows)]
        num_states, num_actions = len(rows), len(actions[0])
        flat = []
        for s, row in enumerate(actions):
            if len(row) != num_actions:
                raise ValueError(f"Every state needs the same actions: state {s} has {len(row)}, state 0 {num_actions}.")
            for a, outcomes in enumerate(row):
                try:
                    flat.extend((s * num_actions + a, float(p), float(t), float(r), bool(end))
                                for p, t, r, end in outcomes)
                except (TypeError, ValueError):
                    raise ValueError(f"P[{s}][{a}] must be a list of (probability, next_state, reward, terminated)."
                                     ) from None
        table = np.array(flat, dtype=np.float64).reshape(-1, 5)
        pair, probability, target, reward = table[:, 0].astype(np.intp), table[:, 1], table[:, 2], table[:, 3]
        _check_rows(~np.isfinite(probability) | (probability < 0), pair, num_actions,
                    "has a negative or non-finite probability")
        _check_rows((target != np.floor(target)) | (target < 0) | (target >= num_states), pair, num_actions,
                    f"leads to a state outside 0..{num_states - 1}")
        _check_rows(~np.isfinite(reward), pair, num_actions, "has a reward that is not finite")
        total = np.bincount(pair, weights=probability, minlength=num_states * num_actions)
        bad = (np.abs(total - 1) > 1e-6).reshape(num_states, num_actions)
        if bad.any():
            raise ValueError(f"Probabilities must sum to 1: those of {_pair(bad)} sum to {total[bad.ravel()][0]:.6g}.")
        kept = probability > 0
        arrays = _outcome_arrays(num_states, num_actions, pair[kept], target[kept].astype(np.intp), reward[kept],
                                 table[kept, 4] > 0, (probability / total[pair])[kept])
        probability, next_state, reward, terminated = arrays
        loops = (probability == 0) | (
            terminated & (next_state == np.arange(num_states)[:, None, None]) & (reward == 0))
        return cls(probability, next_state, reward, terminated, hazard, goal, loops.all((1, 2)), start)

    @classmethod
    def from_env(cls, env) -> "TabularMDP":
        """From an environment with a table `P` (this project's, FrozenLake, CliffWalking, Taxi).

        Hazards and goals are read from the arrays `hazards` and `goals` [S] of the environment, else from the letters
        H and G of its map `desc` where that has one letter a state (FrozenLake), else there are none. The start is
        the attribute `start`, else `initial_state_distrib`.

        Raises:
            ValueError: the environment has no transition table, as a continuous one, or its table is no valid one.
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
        return cls.from_P(env.P, hazard, goal, getattr(env, "initial_state_distrib", None) if start is None else start)


@dataclass(frozen=True, eq=False)
class Edges:
    """Continuing transitions as a list sorted by source: `weight[e, a]` = P(target[e], goes on | source[e], a)."""

    source: np.ndarray     # [E]
    target: np.ndarray     # [E]
    weight: np.ndarray     # [E, A]
    outcomes: tuple        # indices into [S, A, K] of the continuing outcomes
    edge: np.ndarray       # and the edge each of them belongs to

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
        """P^pi v: weight [E, N], values [S, N] -> [S, N]. With `np.logical_or`: whether any successor has it."""
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
    """[S]: `start` (a state or a distribution; default `mdp.start`) as a distribution.

    Raises:
        ValueError: there is no start, or it is neither a state of the MDP nor a distribution over its states.
    """
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
    """The MDP a data set describes: relative frequencies of the outcomes (s', r, terminated) of each pair.

    A truncated step bootstraps from its real next state like any other; a terminated one does not. Pairs without data
    keep probability 0 throughout. Unless `terminal` [S] is given, a state counts as terminal if it was entered, only
    ever by terminated steps, and never left: as far as data can tell.

    Args:
        dataset: anything with `observations`, `actions`, `rewards`, `next_observations`, `terminations` [D] and, if its
            rows are distinct transitions, their `counts` [D]. `truncations` have no effect on the model.
        hazard, goal, start, terminal: what the data cannot tell, passed on to the MDP.

    Returns:
        (TabularMDP, counts [S, A] int).

    Raises:
        ValueError: observations are not single integers or lie outside 0..S-1 (a continuous data set, or one of
            another environment), actions likewise, rewards not finite, columns of unequal length, no rows.
    """
    columns = {}
    for name, size in [("observations", num_states), ("next_observations", num_states), ("actions", num_actions)]:
        column = columns[name] = np.asarray(getattr(dataset, name))
        if column.ndim != 1 or not np.issubdtype(column.dtype, np.integer):
            raise ValueError(f"{name} must be one integer a step, got {column.dtype} of shape {column.shape}: an exact "
                             "model needs index observations and discrete actions, not continuous ones.")
        if column.size and (column.min() < 0 or column.max() >= size):
            raise ValueError(f"{name} reach from {column.min()} to {column.max()}, outside 0..{size - 1}: this is a "
                             "data set of another environment.")
    columns["rewards"] = np.asarray(dataset.rewards, dtype=np.float64)
    columns["terminations"] = np.asarray(dataset.terminations, dtype=np.bool_)
    columns["counts"] = np.asarray(getattr(dataset, "counts", np.ones(len(columns["rewards"]), dtype=np.int64)))
    length = columns["observations"].shape
    if length == (0,):
        raise ValueError("The data set is empty.")
    for name, column in columns.items():
        if column.shape != length:
            raise ValueError(f"Columns must be of one length: {name} has shape {column.shape}, observations {length}.")
    if not np.isfinite(columns["rewards"]).all():
        raise ValueError("Rewards of the data set must be finite.")
    states, next_states = columns["observations"].astype(np.intp), columns["next_observations"].astype(np.intp)
    pair = states * num_actions + columns["actions"]
    counts = np.zeros(num_states * num_actions, dtype=np.int64)
    np.add.at(counts, pair, columns["counts"])
    arrays = _outcome_arrays(num_states, num_actions, pair, next_states, columns["rewards"], columns["terminations"],
                             columns["counts"] / counts[pair])
    if terminal is None:
        ended, bootstrapped = np.zeros((2, num_states), dtype=bool)
        ended[next_states[columns["terminations"]]] = True
        bootstrapped[next_states[~columns["terminations"]]] = True
        terminal = ended & ~bootstrapped & (np.bincount(states, minlength=num_states) == 0)
    return TabularMDP(*arrays, hazard, goal, terminal, start), counts.reshape(num_states, num_actions)


def _outcome_arrays(num_states, num_actions, pair, next_state, reward, terminated, weight):
    """Rows of outcomes, all [D], merged and laid out as probability, next_state, reward, terminated [S, A, K]."""
    order = np.lexsort((terminated, reward, next_state, pair))
    pair, next_state, reward, terminated = (x[order] for x in (pair, next_state, reward, terminated))
    fresh = np.ones(pair.size, dtype=bool)
    fresh[1:] = ((np.diff(pair) != 0) | (np.diff(next_state) != 0) | (np.diff(reward) != 0)
                 | (terminated[1:] != terminated[:-1]))
    first = np.flatnonzero(fresh)
    probability = np.add.reduceat(weight[order], first)
    pair, next_state, reward, terminated = (x[first] for x in (pair, next_state, reward, terminated))
    slot = np.arange(pair.size) - np.searchsorted(pair, pair)                # place among the outcomes of its pair
    shape = (num_states * num_actions, slot.max() + 1)
    columns = []
    for values, padding in [(probability, 0.0), (next_state, np.arange(shape[0])[:, None] // num_actions),
                            (reward, 0.0), (terminated, True)]:
        column = np.broadcast_to(np.asarray(padding, dtype=values.dtype), shape).copy()
        column[pair, slot] = values
        columns.append(column.reshape(num_states, num_actions, -1))
    columns[0] /= np.maximum(columns[0].sum(-1, keepdims=True), 1e-300)      # to the last bit; rows of 0 stay 0
    return columns


def _numbered(table, name, what):
    """The entries of a dict with keys 0..n-1, or of a sequence, as a list."""
    if not isinstance(table, (Mapping, list, tuple, np.ndarray)) or not len(table):
        raise ValueError(f"{name} must be a non-empty dict or list over {what}s.")
    try:
        return [table[i] for i in range(len(table))]
    except KeyError as missing:
        raise ValueError(f"{name} must number its {what}s 0..{len(table) - 1}: {missing} is missing.") from None


def _pair(bad):
    s, a = np.argwhere(bad)[0]
    return f"state {s}, action {a}"


def _check_rows(bad, pair, num_actions, complaint):
    if bad.any():
        s, a = divmod(int(pair[np.flatnonzero(bad)[0]]), num_actions)
        raise ValueError(f"P[{s}][{a}] {complaint}.")


def _state_mask(mask, num_states, name):
    mask = np.array(mask)
    if mask.shape != (num_states,) or mask.dtype != np.bool_:
        raise ValueError(f"{name} must be a bool mask over {num_states} states, got {mask.dtype} of shape {mask.shape}.")
    mask.setflags(write=False)
    return mask


def _check_gamma(gamma):
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, got {gamma}.")


# ------------------------------------------------------------------------------------------ optimality, greedy policies


def bellman_backup(mdp: TabularMDP, values, gamma):
    """r(s, a) + gamma E[(1 - terminated) V(s')]: values [..., S] -> [..., S, A]."""
    return mdp.expected_reward + gamma * (mdp.continuing * np.asarray(values)[..., mdp.next_state]).sum(-1)


def state_value(q):
    """max_a Q(s, a), and 0 where a state has no action at all (all -inf): [..., S, A] -> [..., S]."""
    best = np.max(q, axis=-1)
    return np.where(np.isneginf(best), 0.0, best)


def greedy_actions(q, tolerance=0.0):
    """The best action, ties (within `tolerance`) to the lowest index: [..., A] -> [...] int."""
    q = np.asarray(q)
    return np.argmax(q >= np.max(q, axis=-1, keepdims=True) - tolerance, axis=-1)


def greedy_policy(q):
    """The greedy policy as probabilities, uniform where a state has no action at all: [..., S, A] -> [..., S, A]."""
    q = np.asarray(q)
    one_hot = (np.arange(q.shape[-1]) == greedy_actions(q)[..., None]).astype(np.float64)
    return np.where(np.isneginf(q).all(-1, keepdims=True), 1 / q.shape[-1], one_hot)


def value_iteration(mdp: TabularMDP, gamma, tolerance=1e-12, support=None, max_iterations=200_000):
    """The optimal Q [S, A]: iterated from V = 0 until max |T Q - Q| <= tolerance * max(1, max |Q|).

    For gamma < 1 the distance to the optimum is then at most gamma / (1 - gamma) times as large. gamma = 1 (total
    reward until the episode ends) needs an action sequence to an end from every state, and no cycle that earns for ever.

    Args:
        support: [S, A] bool, the actions allowed (say counts > 0); default all that have a model. Q is -inf outside,
            and a state without any allowed action has value 0.

    Raises:
        ValueError: gamma = 1 where some state cannot reach an end, or where the iteration does not settle.
    """
    _check_gamma(gamma)
    allowed = mdp.modelled if support is None else np.asarray(support, dtype=bool) & mdp.modelled
    if allowed.shape != mdp.modelled.shape:
        raise ValueError(f"support must be [S, A] = {mdp.modelled.shape}, got {allowed.shape}.")
    if gamma == 1:
        stuck = ~_ends(mdp, np.where(allowed.any(-1, keepdims=True), allowed, True)[None])[0]
        if stuck.any():
            raise ValueError(f"gamma = 1 needs a policy that ends the episode from every state, and from "
                             f"{stuck.sum()} states (first: {np.argmax(stuck)}) none does; take gamma < 1.")
    q = np.where(allowed, mdp.expected_reward, -np.inf)                      # T applied to V = 0
    for _ in range(max_iterations):
        previous, q = q, np.where(allowed, bellman_backup(mdp, state_value(q), gamma), -np.inf)
        change = np.abs(q[allowed] - previous[allowed]).max(initial=0)
        if change <= tolerance * max(1, np.abs(q[allowed]).max(initial=0)):
            return q
    raise ValueError(f"Value iteration did not settle in {max_iterations} steps (last change {change:.3g})"
                     + ("; with gamma = 1 a cycle that earns for ever has no finite value." if gamma == 1 else "."))


# ---------------------------------------------------------------------------------------- policies, discounted or total


def policy_evaluation(mdp: TabularMDP, policy, gamma):
    """The value of policies: policy [N, S, A] or [S, A] -> (v [N, S], q [N, S, A]), or without N.

    V solves V = r^pi + gamma P^pi V (see `solve_bellman` for how and how well); q is its backup.

    Raises:
        ValueError: no valid policy, or gamma = 1 and a policy that never ends from some state.
    """
    policies, single = _policies(mdp, policy)
    v = solve_bellman(mdp, policies, (policies * mdp.expected_reward).sum(-1), gamma)
    q = bellman_backup(mdp, v, gamma)
    return (v[0], q[0]) if single else (v, q)


def solve_bellman(mdp: TabularMDP, policy, reward, gamma):
    """(I - gamma P^pi)^-1 reward: the value of a reward per *state*, reward [N, S] or [S] -> [N, S], or [S].

    One factorisation per policy up to `DENSE_STATES` states; beyond, the Bellman recursion, until its residual is at
    most 1e-12 * max(1, max |v|).

    Raises:
        ValueError: no valid policy, or gamma = 1 and a policy that never ends from some state.
    """
    _check_gamma(gamma)
    policies, single = _policies(mdp, policy)
    if gamma == 1:
        stuck = ~_ends(mdp, policies)
        if stuck.any():
            n, s = np.argwhere(stuck)[0]
            raise ValueError(f"gamma = 1 needs a policy that ends the episode from every state: policy {n} never does "
                             f"from state {s} ({stuck[n].sum()} states in all); take gamma < 1.")
    reward = np.broadcast_to(np.asarray(reward, dtype=np.float64), policies.shape[:2])
    v = _solve(mdp.edges, gamma * mdp.edges.under(policies), reward.T).T
    return v[0] if single else v


def discounted_occupancy(mdp: TabularMDP, policy, start=None, gamma=1.0):
    """Expected discounted visits d(s) = sum_t gamma^t P(s_t = s, episode still on): [N, S], or [S] for one policy.

    Not normalised, so that the value at the start is sum_s d(s) r^pi(s); divide by its sum for a distribution.

    Raises:
        ValueError: as `solve_bellman`; no valid start.
    """
    _check_gamma(gamma)
    policies, single = _policies(mdp, policy)
    if gamma == 1 and not _ends(mdp, policies).all():
        raise ValueError("gamma = 1 needs policies that end the episode from every state; take gamma < 1.")
    start = np.repeat(start_distribution(mdp, start)[:, None], len(policies), axis=1)                 # [S, N]
    d = _solve(mdp.edges, gamma * mdp.edges.under(policies), start, transposed=True).T
    return d[0] if single else d


def hitting_probability(mdp: TabularMDP, policy, mask, horizon=None):
    """P(an episode from s ever enters the masked states), or within `horizon` steps: [N, S], or [S] for one policy.

    Entering is a transition out of s, so a terminal state has 0, masked or not. Without a horizon this is the least
    solution of h = P(enter) + P h: states that cannot reach the mask are set to 0 and left out of the system.

    Raises:
        ValueError: no valid policy or mask.
    """
    policies, single = _policies(mdp, policy)
    mdp, enters = _until_entered(mdp, _state_mask(mask, mdp.num_states, "mask"))
    direct = np.einsum("sa,nsa->sn", enters, policies)                                                # [S, N]
    edges, weight = mdp.edges, mdp.edges.under(policies)
    if horizon is not None:
        h = _total(edges, weight, direct, _check_horizon(horizon))
    else:
        reaches = _reaches(edges, weight, direct > 0)
        h = _solve(edges, weight * reaches[edges.source], direct)
    return h[:, 0] if single else h.T


# ------------------------------------------------------------------------------------- a finite horizon, undiscounted


@dataclass(frozen=True)
class PolicyEvaluation:
    """Exact expectations over one episode of at most `horizon` undiscounted steps. Arrays [N], or floats.

    hazard_probability and goal_probability (of entering one at least once) are None where the MDP has no such mask.
    """

    returns: np.ndarray
    hazard_probability: np.ndarray | None
    goal_probability: np.ndarray | None
    length: np.ndarray


def evaluate_policies(mdp: TabularMDP, policies, start=None, horizon=None) -> PolicyEvaluation:
    """What stationary policies are worth over one episode, without sampling.

    The state distribution is pushed forward, so that one pass gives return, hazard, goal and length of all policies.

    Args:
        policies: [N, S, A] probabilities (or [S, A]: then the record holds floats).
        start: a state or a distribution [S]; default `mdp.start`.
        horizon: steps after which an episode is cut, as by Gymnasium's TimeLimit.

    Raises:
        ValueError: no valid policy, start or horizon.
    """
    policies, single = _policies(mdp, policies)
    start, horizon = start_distribution(mdp, start), _check_horizon(horizon)
    return _summary(mdp, lambda mdp: _visits(mdp, policies, start, horizon),
                    lambda seen, per_pair: np.einsum("ns,nsa,sa->n", seen, policies, per_pair), single)


def evaluate_first_actions(mdp: TabularMDP, policy, horizon) -> PolicyEvaluation:
    """What each action is worth from each state: taken once, then the policy followed, over `horizon` steps in all.

    Arrays are [S, A]; 0 in terminal states. The mean under the policy is `evaluate_policies` from that state.

    Args:
        policy: [S, A] probabilities, stationary.

    Raises:
        ValueError: no valid policy, or a horizon below 1.
    """
    policies, single = _policies(mdp, policy)
    if not single:
        raise ValueError(f"A policy must be [S, A] here, got {policies.shape}.")
    if _check_horizon(horizon) < 1:
        raise ValueError("horizon must be at least 1: the first action is a step.")

    def then_followed(mdp, per_pair):                                                                 # [S, A]
        per_step = (policies[0] * per_pair).sum(-1)[:, None]
        rest = _total(mdp.edges, mdp.edges.under(policies), per_step, horizon - 1)[:, 0]
        return per_pair + (mdp.continuing * rest[mdp.next_state]).sum(-1)

    return _summary(mdp, lambda mdp: mdp, then_followed, False)


def expected_visits(mdp: TabularMDP, policies, start=None, horizon=None):
    """Expected number of steps taken from each state in one episode of at most `horizon` steps: [N, S], or [S].

    Raises:
        ValueError: no valid policy, start or horizon.
    """
    policies, single = _policies(mdp, policies)
    seen = _visits(mdp, policies, start_distribution(mdp, start), _check_horizon(horizon))
    seen = np.where(mdp.terminal, 0.0, seen)
    return seen[0] if single else seen


def _visits(mdp, policies, start, horizon):
    """[N, S]: expected visits of each state while the episode is on, the state it ends in left out."""
    edges, weight = mdp.edges, mdp.edges.under(policies)
    mass = np.repeat(start[:, None], len(policies), axis=1)
    total = np.zeros_like(mass)
    for _ in range(horizon):
        total += mass
        mass = edges.forward(weight, mass)
    return total.T


def evaluate_time_dependent(mdp: TabularMDP, policies, start=None) -> PolicyEvaluation:
    """As `evaluate_policies`, for one policy that depends on the step: policies [H, S, A], or actions [H, S] int."""
    policies = np.asarray(policies)
    if policies.ndim == 2:
        policies = (policies[..., None] == np.arange(mdp.num_actions)).astype(np.float64)
    policies, _ = _policies(mdp, policies)
    start = start_distribution(mdp, start)

    def visits(mdp):                                                                                  # [H, S]
        weight = mdp.edges.under(policies)                                                            # [E, H]
        mass, total = start[:, None], np.zeros(policies.shape[:2])
        for step in range(len(policies)):
            total[step] = mass[:, 0]
            mass = mdp.edges.forward(weight[:, step:step + 1], mass)
        return total

    return _summary(mdp, visits, lambda seen, per_pair: np.einsum("hs,hsa,sa->", seen, policies, per_pair)[None], True)


@dataclass(frozen=True, eq=False)
class OptimalHorizon:
    """The best that can be done in H steps. values [H + 1, S]: best return of the last H - h steps, values[H] = 0;
    actions [H, S] int: the greedy action at step h, ties to the lowest index; evaluation: that policy from the
    start of the MDP (None where it has none)."""

    values: np.ndarray
    actions: np.ndarray
    evaluation: PolicyEvaluation | None


def backward_induction(mdp: TabularMDP, horizon, gamma=1.0) -> OptimalHorizon:
    """The optimal return over `horizon` steps with the time-dependent policy that reaches it.

    Values within 1e-12 * max(1, max |q|) count as a tie, so that rounding does not pick the policy. `gamma` weighs
    the values; the evaluation beside them is undiscounted, as everywhere.
    """
    _check_gamma(gamma)
    horizon = _check_horizon(horizon)
    values, actions = np.zeros((horizon + 1, mdp.num_states)), np.zeros((horizon, mdp.num_states), dtype=np.intp)
    for step in reversed(range(horizon)):
        q = np.where(mdp.modelled, bellman_backup(mdp, values[step + 1], gamma), -np.inf)             # [S, A]
        values[step] = state_value(q)
        actions[step] = greedy_actions(q, 1e-12 * max(1, np.abs(values[step]).max()))
    return OptimalHorizon(values, actions, None if mdp.start is None else evaluate_time_dependent(mdp, actions))


def _summary(mdp, visits, expect, single):
    """PolicyEvaluation from `visits(mdp)` and `expect(visits, per_pair [S, A]) -> [N]`."""
    seen = visits(mdp)
    results = [expect(seen, mdp.expected_reward)]
    for mask in (mdp.hazard, mdp.goal):
        if mask is None:
            results.append(None)
            continue
        stopped, enters = _until_entered(mdp, mask)
        results.append(expect(seen if stopped is mdp else visits(stopped), enters))
    results.append(expect(seen, (~mdp.terminal[:, None] & mdp.modelled).astype(np.float64)))
    return PolicyEvaluation(*(x if x is None or not single else float(x[0]) for x in results))


def _until_entered(mdp, mask):
    """(the MDP whose episodes also end on entering `mask`, P(enter | s, a) [S, A]): a first entry is the only one."""
    enters = mask[mdp.next_state] & ~mdp.terminal[:, None, None]                                      # [S, A, K]
    probability = np.where(enters, mdp.probability, 0.0).sum(-1)
    if (enters & (mdp.continuing > 0)).any():
        mdp = replace(mdp, terminated=mdp.terminated | enters)
    return mdp, probability


# ------------------------------------------------------------------------------------------------------- the machinery


def _policies(mdp, policy):
    """([N, S, A] float64 with rows summing to 1, whether N was missing), checked against the MDP."""
    policies = np.asarray(policy, dtype=np.float64)
    single = policies.ndim == 2
    policies = policies[None] if single else policies
    if policies.ndim != 3 or policies.shape[1:] != mdp.modelled.shape:
        raise ValueError(f"A policy must be [N, S, A] or [S, A] with S, A = {mdp.modelled.shape}, got "
                         f"{np.shape(policy)}.")
    total = policies.sum(-1, keepdims=True)
    if not (policies >= 0).all() or not (np.abs(total - 1) <= 1e-5).all():
        n, s = np.argwhere(~((policies >= 0).all(-1) & (np.abs(total[..., 0] - 1) <= 1e-5)))[0]
        raise ValueError(f"Policy {n} is no distribution over actions in state {s}: {policies[n, s]}.")
    if not mdp.modelled.all():
        outside = (policies > 0) & ~mdp.modelled & mdp.modelled.any(-1, keepdims=True)
        if outside.any():
            n, s, a = np.argwhere(outside)[0]
            raise ValueError(f"Policy {n} takes action {a} in state {s}, of which this (empirical) model knows nothing.")
    return policies / total, single


def _check_horizon(horizon):
    if horizon is None or int(horizon) != horizon or horizon < 0:
        raise ValueError(f"horizon must be a whole number of steps, got {horizon}.")
    return int(horizon)


def _total(edges, weight, per_step, horizon):
    """Expected sum of `per_step` [S, N] over so many steps: x = per_step + W x, from 0. [S, N]."""
    x = np.zeros_like(per_step)
    for _ in range(horizon):
        x = per_step + edges.backward(weight, x)
    return x


def _reaches(edges, weight, reached):
    """[S, N] bool: states from which positive weights lead to a state of `reached` [S, N]."""
    positive = weight > 0
    while True:
        wider = reached | edges.backward(positive, reached, np.logical_or)
        if (wider == reached).all():
            return wider
        reached = wider


def _ends(mdp, policies):
    """[N, S] bool: whether an episode from s can end under the policy (for all s: ends with probability 1)."""
    stops = ((mdp.terminated & (mdp.probability > 0)).any(-1) | ~mdp.modelled)                        # [S, A]
    directly = (stops & (policies > 0)).any(-1)                                                       # [N, S]
    return _reaches(mdp.edges, mdp.edges.under(policies), directly.T).T


def _solve(edges, weight, right, transposed=False, tolerance=1e-12, dense_states=None, max_iterations=1_000_000):
    """x = right + W x (or W^T x) for the sparse W of `weight` [E, N]; right, x [S, N]."""
    num_states, num = right.shape
    if num_states <= (DENSE_STATES if dense_states is None else dense_states):
        x = np.empty((num, num_states))
        chunk = max(1, DENSE_CHUNK // num_states ** 2)
        rows, columns = (edges.target, edges.source) if transposed else (edges.source, edges.target)
        for n in range(0, num, chunk):
            part = slice(n, n + chunk)
            matrix = np.zeros((len(x[part]), num_states, num_states))
            matrix[:, rows, columns] = -weight.T[part]
            matrix[:, np.arange(num_states), np.arange(num_states)] += 1
            x[part] = np.linalg.solve(matrix, right.T[part, :, None])[..., 0]
        return x.T
    step = edges.forward if transposed else edges.backward
    x = right
    for _ in range(max_iterations):
        previous, x = x, right + step(weight, x)
        if (np.abs(x - previous).max(0) <= tolerance * np.maximum(1, np.abs(x).max(0))).all():
            return x
    raise ValueError(f"Policy evaluation did not settle in {max_iterations} steps: the episodes hardly ever end.")
