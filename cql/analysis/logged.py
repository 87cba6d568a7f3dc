"""A data set held against the true model of its environment: what both the audit and the exact curve start from."""

import math
from functools import partial

import gymnasium
import numpy as np

import envs
from cql.analysis.figure_data import Board, states_of
from cql.collect import exact_model
from cql.config import Config, ConfigError
from cql.dataset import DatasetError, OfflineDataset
from cql.diagnostics import state_inputs
from cql.exact import phase
from cql.exact.oracle import CertificateError
from cql.exact.tabular import DENSE_STATES, TabularMDP, empirical_mdp
from cql.losses import Objective
from cql.runs import RunError
from cql.world import exact_curve_solution


def known_model(environment: gymnasium.Env | None) -> TabularMDP:
    """The true model of an environment with a start and a step limit.

    Raises:
        RunError: there is none to hold anything against.
    """
    if environment is None:
        raise RunError("the data name no environment: without its true model nothing exact can be said.")
    mdp = exact_model(environment)
    if mdp is None:
        raise RunError(f"the environment {environment.spec.id} has no transition table P: without the true model nothing "
                       "exact can be said.")
    if mdp.start is None:
        raise RunError(f"the environment {environment.spec.id} does not say where it starts.")
    return mdp


def logged_model(dataset: OfflineDataset, environment: gymnasium.Env, mdp: TabularMDP):
    """What the data say, over the states of the true model: (empirical MDP, counts [S, A]).

    Observations may be indices or vectors; vectors must be those the environment shows in its states.

    Raises:
        DatasetError: they are not, or a logged transition cannot happen in this environment.
    """
    inputs = state_inputs(environment).numpy()
    if dataset.num_actions != mdp.num_actions:
        raise DatasetError(f"the data set has {dataset.num_actions} actions and the environment {mdp.num_actions}: it is of "
                           "another environment.")
    if (dataset.observations.ndim == 1) != (inputs.ndim == 1) or (
            inputs.ndim == 2 and dataset.observations.shape[1:] != inputs.shape[1:]):
        raise DatasetError("the data set's observations are not of the kind that the environment shows.")
    columns = [states_of(observations, inputs) for observations in (dataset.observations, dataset.next_observations)]
    if min(column.min() for column in columns) < 0:
        raise DatasetError("some observations of the data set are none of the environment's states: an audit needs "
                           "states that can be told apart and counted.")
    logged = _Columns(dataset, *columns)
    try:
        empirical, counts = empirical_mdp(logged, mdp.num_states, mdp.num_actions, mdp.hazard, mdp.goal, mdp.start,
                                          mdp.terminal)
    except ValueError as error:
        raise DatasetError(f"the data set does not fit: {error}") from None
    strange = impossible_outcomes(mdp, empirical)
    if strange.any():
        s, a, k = np.argwhere(strange)[0]
        raise DatasetError(f"the data set is of another environment: action {a} in state {s} cannot lead to state "
                           f"{empirical.next_state[s, a, k]} with reward {empirical.reward[s, a, k]:g} here.")
    return empirical, counts


class _Columns:
    """A data set with states in place of observations, as `empirical_mdp` reads it."""

    def __init__(self, dataset, states, next_states):
        self.observations, self.next_observations = states, next_states
        self.actions, self.rewards, self.terminations = dataset.actions, dataset.rewards, dataset.terminations


def behavior_policy(environment: gymnasium.Env, config: Config) -> np.ndarray | None:
    """[S, A]: the policy that generated the data, None where they were given."""
    if not isinstance(environment.unwrapped, envs.SafetyCriticalGridWorld) or config.dataset is not None:
        return None
    return envs.safe_behavior_policy(environment, config.epsilon)


def impossible_outcomes(mdp: TabularMDP, empirical: TabularMDP) -> np.ndarray:
    """[S, A, K'] bool: outcomes of the data's model that the true one gives no probability. Rewards to 1e-4."""
    possible = np.zeros(empirical.probability.shape, dtype=bool)
    for k in range(mdp.probability.shape[-1]):
        possible |= ((mdp.probability[..., k, None] > 0) & (empirical.next_state == mdp.next_state[..., k, None])
                     & (empirical.terminated == mdp.terminated[..., k, None])
                     & np.isclose(empirical.reward, mdp.reward[..., k, None], rtol=1e-4, atol=1e-4))
    return (empirical.probability > 0) & ~possible


def grid_words(environment, mdp) -> tuple[list[str] | None, list[str] | None]:
    """(name of each state by row and column, name of each action as an arrow); None where states are no cells."""
    board = Board.of(environment, mdp)
    if board is None:
        return None, None
    arrows = {(-1, 0): "↑", (1, 0): "↓", (0, -1): "←", (0, 1): "→"}
    names = [arrows.get(tuple(int(x) for x in move), str(a)) for a, move in enumerate(board.moves)]
    return ["({},{})".format(*divmod(s, board.shape[1])) for s in range(mdp.num_states)], names


def exact_curve(environment, mdp, dataset, alphas, objective: Objective, behavior=None, flips=True) -> dict:
    """The exact curve of one data set, its references and flips, as the content of ``phase.json``.

    Raises:
        ConfigError: the environment or the objective rules a curve out; DatasetError: the data set is of another environment.
    """
    horizon, gamma = environment.spec.max_episode_steps, objective.gamma
    empirical, counts = logged_model(dataset, environment, mdp)
    solve = partial(exact_curve_solution, objective, empirical, counts)
    try:
        found = phase.curve(mdp, counts, solve, alphas, gamma, horizon)
        held = phase.references(mdp, empirical, counts, solve, gamma, horizon, behavior)
        # on a large map every solution takes seconds and thousands of actions flip: there, between which points is enough
        tolerance = phase.FLIP_TOLERANCE if mdp.num_states <= DENSE_STATES else math.inf
        changes = phase.flip_points(found, solve, tolerance) if flips else []
    except (ValueError, CertificateError) as error:
        raise ConfigError(str(error)) from None
    return {"environment": dataset.metadata.get("environment"), "data_seed": dataset.metadata.get("seed"),
            "gamma": gamma, "td_loss": objective.td_loss, "horizon": horizon, "transitions": int(counts.sum()),
            "states_with_data": int(counts.any(-1).sum()), "largest_residual": float(found.residual.max()),
            "references": held, "curve": found.rows(),
            "flip_tolerance": tolerance if tolerance < math.inf else None,
            "flips": [vars(flip) for flip in changes], "flip_states": len({flip.state for flip in changes})}
