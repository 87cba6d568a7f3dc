"""The environment behind a data set: Gymnasium environment, true model, what an agent sees in each state, its map.

Axes: S state, A action, K outcome of one (state, action), D transition of a data set.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace

import gymnasium
import numpy as np
import torch

import envs
from cql.collect import first_numbers, make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, DatasetError, RunError
from cql.exact import (
    CertificateError,
    Solution,
    TabularMDP,
    cql_fixed_point,
    empirical_mdp,
    soft_fixed_point,
    start_distribution,
)
from cql.losses import Objective

ARROWS: dict[tuple[int, ...], str] = {(-1, 0): "↑", (1, 0): "↓", (0, -1): "←", (0, 1): "→"}  # (row, column) of a move
MISFIT_LEVEL = 1e-4  # data with a smaller p-value are taken as another environment's
LEAST_P_VALUE = 1e-300  # a smaller one is not told from 0


@dataclass(frozen=True, eq=False)
class World:
    """The environment that a data set names, as far as it is known.

    Attributes:
        environment: None where the data name none; it draws episodes from the model where a file of one was given.
        mdp: its true model; None where it has no transition table.
        named_actions, named_states: what the data's metadata call them; None: nothing.
    """

    environment: gymnasium.Env | None
    mdp: TabularMDP | None
    named_actions: list[str] | None = None
    named_states: list[str] | None = None

    @classmethod
    def of(cls, dataset: OfflineDataset) -> "World":
        """The world of a data set. Raises ConfigError if its environment cannot be made or does not fit the data."""
        model = dataset.model
        world = cls.around(environment_of(dataset)) if model is None else cls(model.environment, model.mdp)
        if dataset.masked and world.environment is not None:
            _refuse_unmasked(world)
        return replace(world, named_actions=dataset.action_names, named_states=dataset.metadata.get("state_names"))

    @classmethod
    def around(cls, environment: gymnasium.Env | None) -> "World":
        """The world of an environment, with its model where it has a transition table ``P`` and shows its states.
        Raises ConfigError if the table is none, or not of the sizes of the environment's spaces."""
        if environment is None or getattr(environment.unwrapped, "P", None) is None:
            return cls(environment, None)
        spaces, name = (environment.observation_space, environment.action_space), environment.spec.id
        num_states, num_actions = (getattr(space, "n", None) for space in spaces)
        if num_states is None and not hasattr(environment.unwrapped, "observe"):
            return cls(environment, None)
        try:
            mdp = TabularMDP.from_env(environment)
        except ValueError as error:
            raise ConfigError(f"the transition table P of {name} cannot be used: {error}") from None
        if mdp.num_actions != num_actions or num_states not in (None, mdp.num_states):
            raise ConfigError(f"the transition table P of {name} has {mdp.num_states} states and {mdp.num_actions} "
                              f"actions, its spaces are {spaces[0]} and {spaces[1]}.")
        return cls(environment, mdp)

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode is truncated; None without an environment."""
        return None if self.environment is None else self.environment.spec.max_episode_steps

    @cached_property
    def inputs(self) -> np.ndarray | None:
        """What an agent sees in every state, ``[S]`` int64 or ``[S, n]`` float32; None without a model."""
        if self.mdp is None:
            return None
        states, observe = np.arange(self.mdp.num_states), getattr(self.environment.unwrapped, "observe", None)
        return states if observe is None else np.asarray(observe(states))

    @cached_property
    def grid(self) -> "GridMap | None":
        """The environment as a map; None where its states are not the cells of one known grid."""
        return None if self.mdp is None else GridMap.of(self.environment, self.mdp)

    @property
    def state_names(self) -> list[str] | None:
        """The name of each state: that of the metadata, else row and column on a grid; None: its number alone."""
        if self.named_states or self.grid is None:
            return self.named_states
        return ["({},{})".format(*divmod(state, self.grid.shape[1])) for state in range(self.mdp.num_states)]

    @property
    def action_names(self) -> list[str] | None:
        """The name of each action: that of the metadata, else on a grid the arrow of its move, or its number; None: its
        number alone."""
        if self.named_actions or self.grid is None:
            return self.named_actions
        return [ARROWS.get(tuple(int(x) for x in move), str(a)) for a, move in enumerate(self.grid.moves)]

    def known(self) -> "World":
        """This world, with a model and a start. Raises RunError, one sentence, if one of them is missing."""
        if self.environment is None:
            raise RunError("the data name no environment: without its true model nothing exact can be said.")
        name = self.environment.spec.id
        if self.mdp is None:
            raise RunError(f"the environment {name} has no transition table P: without the true model nothing exact "
                           "can be said.")
        if self.mdp.start is None:
            raise RunError(f"the environment {name} does not say where it starts.")
        return self

    def behavior_policy(self, config: Config) -> np.ndarray | None:
        """``[S, A]``: the policy that generated the data of a run; None where the data were given."""
        if self.environment is None or config.dataset is not None or not isinstance(
                self.environment.unwrapped, envs.SafetyCriticalGridWorld):
            return None
        return envs.safe_behavior_policy(self.environment, config.epsilon)

    def transitions(self, dataset: OfflineDataset) -> SimpleNamespace:
        """The columns of a data set with states ``[D]`` in place of observations.

        Observations may be indices or vectors; vectors must be those that the environment shows in its states.
        Raises RunError if there is no true model, and DatasetError if the data set has other observations or actions.
        """
        mdp, inputs = self.known().mdp, self.inputs
        if dataset.num_actions != mdp.num_actions:
            raise DatasetError(f"the data set has {dataset.num_actions} actions and the environment {mdp.num_actions}: "
                               "it is of another environment.")
        if dataset.observations.shape[1:] != inputs.shape[1:]:
            raise DatasetError("the data set's observations are not of the kind that the environment shows.")
        states, next_states = (states_of(seen, inputs) for seen in (dataset.observations, dataset.next_observations))
        if min(states.min(), next_states.min()) < 0:
            raise DatasetError("some observations of the data set are none of the environment's states: this needs "
                               "states that can be told apart and counted.")
        return SimpleNamespace(observations=states, next_observations=next_states, actions=dataset.actions,
                               rewards=dataset.rewards, terminations=dataset.terminations,
                               episode_ids=dataset.episode_ids)

    def empirical(self, dataset: OfflineDataset) -> tuple[TabularMDP, np.ndarray]:
        """The model that a data set gives, over the states of the true one: (empirical MDP, counts ``[S, A]``).
        Raises RunError if there is no true model, and DatasetError as ``transitions`` does, or if a logged
        transition cannot happen in this environment."""
        logged, mdp = self.transitions(dataset), self.mdp
        try:
            empirical, counts = empirical_mdp(logged, mdp.num_states, mdp.num_actions, mdp.hazard, mdp.goal, mdp.start,
                                              mdp.terminal)
        except ValueError as error:
            raise DatasetError(f"the data set does not fit: {error}") from None
        strange = (empirical.probability > 0) & (model_probability(mdp, empirical) == 0)
        if strange.any():
            s, a, k = np.argwhere(strange)[0]
            raise DatasetError(f"the data set is of another environment: {self._pair(s, a)} cannot lead to "
                               f"{self._state(empirical.next_state[s, a, k])} with reward "
                               f"{empirical.reward[s, a, k]:g} here.")
        return empirical, counts

    def _state(self, s) -> str:
        return f"state {self.named_states[s] if self.named_states else s}"

    def _pair(self, s, a) -> str:
        return f"action {self.named_actions[a] if self.named_actions else a} in {self._state(s)}"

    def misfit_of_given(self, dataset: OfflineDataset, config: Config) -> str | None:
        """``misfit`` where the data of a run were given; None where they were generated."""
        return None if config.dataset is None else self.misfit(dataset)

    def misfit(self, dataset: OfflineDataset) -> str | None:
        """One sentence if a data set cannot, or can hardly, come from this model; None if it fits or none is known."""
        if self.mdp is None or self.mdp.start is None:
            return None
        try:
            empirical, counts = self.empirical(dataset)
        except DatasetError as error:
            return str(error)
        p_value = goodness_of_fit(self.mdp, empirical, counts)
        if p_value >= MISFIT_LEVEL:
            return None
        expected = counts[..., None] * model_probability(self.mdp, empirical)
        surplus = counts[..., None] * empirical.probability - expected
        s, a, k = np.unravel_index(np.argmax(np.abs(surplus) / np.sqrt(np.maximum(expected, 1e-9))), surplus.shape)
        p = f"{p_value:.1g}" if p_value >= LEAST_P_VALUE else f"below {LEAST_P_VALUE:g}"
        return (f"the data hardly come from this {self.environment.spec.id}, so that no exact value holds for them: "
                f"its model gives data that fit it as badly with probability {p} (limit {MISFIT_LEVEL:g}). The most "
                f"unlikely: {self._pair(s, a)} led to {self._state(empirical.next_state[s, a, k])} "
                f"{round(surplus[s, a, k] + expected[s, a, k])} times of {counts[s, a]}, where "
                f"{expected[s, a, k]:.1f} were expected.")


def environment_of(dataset: OfflineDataset) -> gymnasium.Env | None:
    """The environment that a data set names in its metadata; None if it names none.
    Raises ConfigError if it names one that cannot be made, or whose spaces are not the data set's."""
    spec = dataset.metadata.get("environment")
    if spec is None:
        return None
    if not isinstance(spec, dict) or not {"id", "arguments", "max_episode_steps"} <= spec.keys() or not isinstance(
            spec["arguments"], dict) or not isinstance(spec["id"], str):
        raise ConfigError("the data set's metadata name an environment in no known form.")
    environment = make_environment(spec)
    first = first_numbers(environment)
    told = {name: dataset.metadata.get(name, 0) for name in first}
    if first != told:
        raise ConfigError(f"the environment {spec['id']} numbers its states from {first['first_state']} and its "
                          f"actions from {first['first_action']}, the data set from {told['first_state']} and "
                          f"{told['first_action']}: make it with OfflineDataset.from_arrays(..., first_state=..., "
                          "first_action=...), or give plain arrays and --env.")
    space = environment.observation_space
    if isinstance(space, gymnasium.spaces.Discrete):
        fits = dataset.discrete and dataset.num_states == space.n
    else:
        fits = not dataset.discrete and space.shape == dataset.observations.shape[1:]
    if not fits or not isinstance(environment.action_space, gymnasium.spaces.Discrete) or (
            environment.action_space.n != dataset.num_actions):
        raise ConfigError(f"the data set does not fit the environment {spec['id']} that it names: "
                          f"{environment.unwrapped.observation_space} and {environment.unwrapped.action_space} there.")
    return environment


def _refuse_unmasked(world: World) -> None:
    """Raises ConfigError if policies of vectors with masks cannot act in an environment."""
    name = world.environment.spec.id
    if world.mdp is not None:
        raise ConfigError(f"masks do not go with vectors of {name}, whose states are known: give state numbers.")
    if "action_mask" not in world.environment.reset(seed=0)[1]:
        raise ConfigError(f'the data have masks, and {name} gives no info["action_mask"], without which no policy '
                          "trained with masks of vectors can act there: leave the environment or the masks out.")


def model_probability(mdp: TabularMDP, empirical: TabularMDP) -> np.ndarray:
    """[S, A, K']: what the true model gives each outcome of the data's model. Rewards are equal to within 1e-4."""
    probability = np.zeros(empirical.probability.shape)
    for k in range(mdp.probability.shape[-1]):
        same = ((empirical.next_state == mdp.next_state[..., k, None])
                & (empirical.terminated == mdp.terminated[..., k, None])
                & np.isclose(empirical.reward, mdp.reward[..., k, None], rtol=1e-4, atol=1e-4))
        probability += np.where(same, mdp.probability[..., k, None], 0.0)
    return probability


def goodness_of_fit(mdp: TabularMDP, empirical: TabularMDP, counts: np.ndarray) -> float:
    """The p-value of the data's transitions: the probability, under the true model, of data that fit it no better.

    The statistic is the sum over all outcomes of w (O - n p)^2, where a pair logged n times had the outcome O times
    and w = 1 / max(n p, 1): Pearson's, except that an outcome expected less than once has weight 1. Given n, the
    deviation of a pair is a sum of n independent vectors d = e_k - p of covariance C = diag(p) - p p^T, so that with
    W = diag(w) the mean is n tr(W C) and the variance n Var(d^T W d) + 2 n (n - 1) tr((W C)^2). The distribution of the
    statistic is approximated by the gamma distribution with the same mean and variance. In the code, q is the
    model's probability of each logged outcome; outcomes that were not logged enter through the first sum.

    Args:
        empirical, counts: the data's model, without impossible outcomes, and how often each pair was logged.
    """
    n, p, q = counts[..., None].astype(np.float64), mdp.probability, model_probability(mdp, empirical)
    w, observed = 1 / np.maximum(n * p, 1), n * empirical.probability
    statistic = (w * (n * p) ** 2).sum() + (observed * (observed - 2 * n * q) / np.maximum(n * q, 1)).sum()
    mean = (n * w * p * (1 - p)).sum()
    square = w * (1 - 2 * p) + (w * p**2).sum(-1, keepdims=True)  # d^T W d of every outcome
    own = (p * square**2).sum(-1) - (p * square).sum(-1) ** 2
    crossed = (w**2 * p**2 * (1 - 2 * p)).sum(-1) + (w * p**2).sum(-1) ** 2
    variance = (counts * own + 2 * counts * (counts - 1.0) * crossed).sum()
    if variance <= 1e-12:  # nothing varies
        return 1.0
    shape, scale = (torch.tensor(x, dtype=torch.float64) for x in (mean**2 / variance, variance / mean))
    return float(torch.special.gammaincc(shape, max(statistic, 0.0) / scale))


@dataclass(frozen=True)
class GridMap:
    """A grid environment as a map.

    Args:
        shape: (rows, columns); hazard, goal, terminal, start: ``[S]`` bool; moves: ``[A, 2]`` as ``action_moves``.
    """

    shape: tuple[int, int]
    hazard: np.ndarray
    goal: np.ndarray
    terminal: np.ndarray
    start: np.ndarray
    moves: np.ndarray

    @classmethod
    def of(cls, environment: gymnasium.Env, mdp: TabularMDP) -> "GridMap | None":
        """None for an environment whose states are not the cells of one grid."""
        shape = grid_shape(environment, mdp.num_states)
        if shape is None:
            return None
        nowhere = np.zeros(mdp.num_states, dtype=bool)
        return cls(shape, nowhere if mdp.hazard is None else mdp.hazard, nowhere if mdp.goal is None else mdp.goal,
                   mdp.terminal, nowhere if mdp.start is None else start_distribution(mdp) > 0,
                   action_moves(mdp, shape))

    def cells(self, per_state: np.ndarray) -> np.ndarray:
        """``[S] -> [rows, columns]``."""
        return np.reshape(per_state, self.shape)


def grid_shape(environment: gymnasium.Env, num_states: int) -> tuple[int, int] | None:
    """Rows and columns by the attribute ``shape``, else by the map ``desc``, where that has one cell a state."""
    grid = environment.unwrapped
    for shape in (getattr(grid, "shape", None), np.shape(getattr(grid, "desc", ()))):
        if isinstance(shape, tuple) and len(shape) == 2 and shape[0] * shape[1] == num_states:
            return int(shape[0]), int(shape[1])
    return None


def action_moves(mdp: TabularMDP, shape: tuple[int, int]) -> np.ndarray:
    """Where each action is meant to lead, as (row, column) steps of length 1: ``[A, 2]``; 0, 0 if nowhere.

    Read off the transition table, since environments number their actions differently: the main direction of the
    expected displacement, summed over states so that slips cancel. Jumps count as one step, so that a teleport does
    not outweigh the steps.
    """
    row, column = np.divmod(np.arange(mdp.num_states), shape[1])
    step = np.stack([row[mdp.next_state] - row[:, None, None], column[mdp.next_state] - column[:, None, None]])
    drift = (np.clip(step, -1, 1) * mdp.probability).sum((1, 3)).T  # [A, 2]
    main = np.abs(drift) == np.abs(drift).max(-1, keepdims=True)
    main[:, 1] &= ~main[:, 0]  # a tie goes to the row
    clear = np.abs(drift).max(-1, keepdims=True) > 0.1 * np.abs(drift).max()  # else it is only the border's pull
    return np.where(main & clear, np.sign(drift), 0.0)


def states_of(observations: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The state of each observation, ``[D, ...] -> [D]``; −1 if it is none of ``inputs``, those of the states."""
    if observations.ndim == 1:
        return observations.astype(np.int64)
    _, ranks = np.unique(np.concatenate([inputs.astype(observations.dtype), observations]), axis=0, return_inverse=True)
    ranks = ranks.reshape(-1)
    state_of_rank = np.full(ranks.max() + 1, -1)
    state_of_rank[ranks[: len(inputs)]] = np.arange(len(inputs))
    return state_of_rank[ranks[len(inputs):]]


def pair_counts(dataset: OfflineDataset, inputs: np.ndarray) -> np.ndarray:
    """How often each (state, action) was logged, ``[S, A]``."""
    states = states_of(dataset.observations, inputs)
    pairs = (states * dataset.num_actions + dataset.actions)[states >= 0]
    return np.bincount(pairs, minlength=len(inputs) * dataset.num_actions).reshape(len(inputs), dataset.num_actions)


# ------------------------------------------------------------------------------------- the one call for exact solutions


def exact_solution(objective: Objective, mdp: TabularMDP, counts, alphas, strict: bool = True,
                   initial_value=None) -> Solution:
    """The exact solution of a run's own objective on the logged actions.

    Args:
        mdp, counts, alphas, strict, initial_value: as for ``cql_fixed_point``. With a reward scale C, rewards are
            divided by it and Q is multiplied by it; the certificate's residuals stay those of the divided problem.

    Raises RunError if no exact solution of this objective is known, none need exist (gamma 1), or none was certified.
    """
    if objective.gamma == 1:
        raise RunError("at gamma 1 the exact solution of CQL need not exist: take gamma below 1.")
    if not objective.solved_as_cql_h and (objective.follows_policy or objective.td_loss == "huber"):
        raise RunError(f"there is no exact solution to compare with a max for {_further(objective)}.")
    try:
        if (scale := objective.reward_scale) != 1:
            start = None if initial_value is None else initial_value / scale
            solution = exact_solution(objective._replace(reward_scale=1.0), replace(mdp, reward=mdp.reward / scale),
                                      counts, alphas, strict, start)
            return replace(solution, q=scale * solution.q)
        if objective.solved_as_cql_h:
            return cql_fixed_point(mdp, counts, alphas, objective.gamma, objective.td_loss, strict,
                                   initial_value)
        return soft_fixed_point(mdp, counts, alphas, objective.gamma, objective.td_loss, objective.penalty,
                                objective.temperature, strict)
    except CertificateError as error:
        raise RunError(f"the exact solution could not be certified: {error}") from None


def exact_curve_solution(objective: Objective, mdp: TabularMDP, counts, alphas, **options) -> Solution:
    """``exact_solution`` of CQL(H); raises RunError for the Huber loss too, whose solution need not be unique."""
    refuse_unknown(objective)
    if objective.td_loss == "huber":
        raise RunError("a curve over alpha needs a squared error (mse or half_mse): the exact solution of huber "
                       "need not be unique.")
    return exact_solution(objective, mdp, counts, alphas, **options)


def refuse_unknown(objective: Objective) -> None:
    """Raises RunError, one sentence, if what holds for the exact solution of CQL(H) does not hold for this objective's.

    A comparison with the solution of another objective would be wrong without anyone noticing.
    """
    if not objective.solved_as_cql_h:
        raise RunError(f"this is known of CQL(H) alone, not of an objective with {_further(objective)}.")


def _further(objective: Objective) -> str:
    """The fields of an objective that make it another than CQL(H), in words."""
    known = Objective()._asdict()
    return ", ".join(f"{name} {value!r}" for name, value in objective._asdict().items()
                     if name not in ("double_q", "gamma", "reward_scale") and value != known[name])
