"""What is measured of a population while it trains; the names are those of ``cql.metrics.METRICS``."""

import math

import gymnasium
import numpy as np
import torch
from torch import Tensor

from cql.collect import exact_model
from cql.dataset import OfflineDataset, number_rows
from cql.exact.tabular import evaluate_policies
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions

SOUND, RUNAWAY, NOT_FINITE = 0.0, 1.0, 2.0  # values of health/diverged
MAX_ROWS = 16_384  # distinct observations looked at, and first ones; beyond, so many evenly spaced ones stand for all


class Diagnostics:
    """Fixed inputs and weights of the measurements: made once a run, used at every log entry.

    Args:
        transitions: the draws on the device.
        datasets: the same draws as arrays.
        environment: the Gymnasium environment, if there is one; without a model of it nothing exact is reported.
    """

    def __init__(self, transitions: Transitions, datasets: list[OfflineDataset], environment: gymnasium.Env | None):
        device, actions = transitions.actions.device, transitions.num_actions
        rows = [table_rows(transitions, dataset.observations) for dataset in datasets]  # each [D]
        first = [row[dataset.episode_starts] for row, dataset in zip(rows, datasets)]  # each [E]
        looked_at = np.union1d(_evenly(np.unique(np.concatenate(rows))), _evenly(np.unique(np.concatenate(first))))  # [R]
        self.inputs = transitions.observations[torch.from_numpy(looked_at).to(device)]  # [R] or [R, n]
        place = np.full(len(transitions.observations), -1)  # of a table row among those looked at
        place[looked_at] = np.arange(len(looked_at))
        counts, starts = [], []
        for row, start, dataset in zip(rows, first, datasets):
            seen = place[row] >= 0
            pairs = place[row][seen] * actions + dataset.actions[seen]
            counts.append(np.bincount(pairs, minlength=len(looked_at) * actions))
            starts.append(np.bincount(place[start][place[start] >= 0], minlength=len(looked_at)))
        counts = np.stack(counts).reshape(len(datasets), len(looked_at), actions).astype(np.float64)
        starts = np.stack(starts).astype(np.float64)

        def tensor(array):
            return torch.from_numpy(array).to(device, torch.float32)

        self.weights = tensor(counts / counts.sum((1, 2), keepdims=True))  # [draws, R, A]
        self.start_weights = tensor(starts / starts.sum(1, keepdims=True))  # [draws, R]
        self.mdp = exact_model(environment)
        if self.mdp is not None:
            self.horizon = environment.spec.max_episode_steps
            self.states = state_inputs(environment).to(device)  # [S] or [S, n]

    @torch.no_grad()
    def measure(self, network: PopulationMLP, parameters: list[Tensor], draws: Tensor, algorithm: str,
                bounds: Tensor) -> dict[str, list[float]]:
        """Every measurement of every member, ``name -> [M]``. Synchronises with the device.

        Args:
            parameters: each ``[M, ...]``. draws: ``[M]``, the number of each member's data set.
            bounds: ``value_bound`` of each member ``[M]``.
        """
        outputs = population_outputs(network, parameters, self.inputs)  # [M, R, A]
        weights = self.weights[draws]  # [M, R, A]
        state_weights, logged = weights.sum(-1), weights > 0  # [M, R], [M, R, A]
        visited = logged.any(-1)  # [M, R]
        best, greedy = outputs.max(-1)  # [M, R]
        found = {}
        if algorithm == "cql":
            found["q/data_mean"] = (weights * outputs).sum((-1, -2))
            found["q/max_mean"] = (state_weights * best).sum(-1)
            found["q/max"] = torch.where(visited, best, -torch.inf).amax(-1)
            found["q/start"] = (self.start_weights[draws] * best).sum(-1)
        health = torch.where(outputs.isfinite().all(-1).all(-1), SOUND, NOT_FINITE)  # [M]
        if algorithm == "cql":
            health = torch.where((health == SOUND) & (found["q/max"] > bounds), RUNAWAY, health)
        found["health/diverged"] = health
        ood_mass = torch.where(logged, 0.0, outputs.softmax(-1)).sum(-1)
        found["policy/ood_mass"] = (state_weights * ood_mass).sum(-1)
        agreed = weights.gather(-1, greedy[..., None]).squeeze(-1)
        found["policy/action_mismatch_rate"] = 1 - agreed.sum(-1)
        found = {name: values.double().tolist() for name, values in found.items()}
        if self.mdp is not None:
            found |= self._exact(population_outputs(network, parameters, self.states).argmax(-1).cpu().numpy())
        for m, health in enumerate(found["health/diverged"]):
            if health == NOT_FINITE:  # the greedy action of a NaN is no action: nothing said of it would be true
                for name in found.keys() - {"health/diverged"}:
                    found[name][m] = math.nan
        return found

    def _exact(self, actions: np.ndarray) -> dict[str, list[float]]:
        result = evaluate_policies(self.mdp, greedy_policies(actions, self.mdp.num_actions), horizon=self.horizon)
        found = {"exact/return": result.returns, "exact/hazard_probability": result.hazard_probability,
                 "exact/goal_probability": result.goal_probability}
        return {name: values.tolist() for name, values in found.items() if values is not None}


def largest_rewards(dataset: OfflineDataset) -> tuple[float, float]:
    """Of the outcomes that terminate and of those that do not; minus infinity where there are none."""
    ended = dataset.terminations
    return tuple(float(dataset.rewards[among].max(initial=-np.inf)) for among in (ended, ~ended))


def value_bound(rewards: tuple[float, float], alpha: float, objective: Objective) -> float:
    """What no exact solution of CQL(H) with a squared loss exceeds at a logged state; a learned value above it has run away.

    Stationarity gives Q <= y + alpha_half on every logged pair (docs/math.md), and y is r where the outcome terminates or
    leads to a state without data (value 0), else r + gamma max Q: so the largest value is at most the largest of the terms
    below. Never below 0, about where networks start; with a margin of 5 % and 1 for minibatch noise. Infinite for any other
    objective. ``rewards`` are ``largest_rewards`` of the data.
    """
    if objective.td_loss == "huber" or not objective.is_cql_h:
        return np.inf
    gamma, alpha_half = objective.gamma, alpha / 2 if objective.td_loss == "mse" else alpha
    ends, step = (reward + alpha_half for reward in rewards)
    for_ever = -np.inf if step <= 0 else step / (1 - gamma) if gamma < 1 else np.inf
    return 1.05 * max(ends, step, for_ever, 0.0) + 1


def table_rows(transitions: Transitions, observations: np.ndarray) -> np.ndarray:
    """Row of each observation in the table of distinct ones, ``[D, …] -> [D]`` int64."""
    if transitions.discrete:
        return observations.astype(np.int64)
    table = transitions.observations.cpu().numpy()
    _, rows = number_rows(np.concatenate([table, observations]))
    return rows[len(table) :]  # the table is itself sorted and distinct: its ranks are its row numbers


def _evenly(rows: np.ndarray) -> np.ndarray:
    """At most MAX_ROWS of them, evenly spaced."""
    return rows[:: -(-len(rows) // MAX_ROWS)]


def state_inputs(environment: gymnasium.Env) -> Tensor:
    """The observation of every state of a finite environment, ``[S]`` int64 or ``[S, n]`` float32."""
    grid = environment.unwrapped
    if hasattr(grid, "observe"):
        return torch.from_numpy(np.asarray(grid.observe(np.arange(grid.num_states))))
    return torch.arange(int(environment.observation_space.n))


def population_outputs(network: PopulationMLP, parameters: list[Tensor], inputs: Tensor) -> Tensor:
    """The network of every member at the same inputs, ``[rows, …] -> [M, rows, A]``."""
    return network.q_values(parameters, inputs.expand(len(parameters[0]), *inputs.shape))


def greedy_policies(actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Deterministic policies as probabilities, ``[N, S] int -> [N, S, A]``."""
    return (actions[..., None] == np.arange(num_actions)).astype(np.float64)
