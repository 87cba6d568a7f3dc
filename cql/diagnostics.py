"""What is measured of a population while it trains; the names are those of ``cql.metrics.METRICS``."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cql.dataset import OfflineDataset, number_rows
from cql.exact import deterministic_policies, evaluate_policies, policy_evaluation, start_distribution
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions
from cql.scales import Scales
from cql.world import World

SOUND, RUNAWAY, NOT_FINITE = 0.0, 1.0, 2.0  # values of health/diverged
MAX_ROWS = 16_384  # distinct observations measured, and as many first ones; of more, evenly spaced ones
AT_ONCE = 2**18  # observations that the networks read at once, over all members
VALUED_STATES = 400  # of a model: a discounted value takes a factorisation, 1 ms at 225 states and 31 ms at 961


class Diagnostics:
    """Fixed inputs and weights of the measurements: made once a run, used at every log entry.

    Args:
        transitions: of all data sets, on the device.
        datasets: the same as arrays.
        world: of the data; without a model of it nothing exact is reported.
        scales: of the data sets, which are scaled already, and of the world, which is not.
        gamma: of the objective. No discounted value is reported at 1, where it need not exist, and for models of more
            than ``VALUED_STATES`` states, where it would take too long.
    """

    def __init__(self, transitions: Transitions, datasets: list[OfflineDataset], world: World, gamma: float,
                 scales: Scales | None = None):
        device, actions = transitions.actions.device, transitions.num_actions
        rows = [table_rows(transitions, dataset.observations) for dataset in datasets]  # each [D]
        first = [row[dataset.episode_starts] for row, dataset in zip(rows, datasets)]  # each [E]
        looked_at = np.union1d(*(_evenly(np.unique(np.concatenate(part))) for part in (rows, first)))  # [R]
        self.rows = torch.from_numpy(looked_at).to(device)  # [R], of the table
        self.inputs = transitions.observations[self.rows]  # [R] or [R, n]
        row_number = np.full(len(transitions.observations), -1)  # of a table row among those looked at
        row_number[looked_at] = np.arange(len(looked_at))
        pair_counts, start_counts, self.rewards = [], [], []
        for row, start, dataset in zip(rows, first, datasets):
            self.rewards.append(RewardRange.of(dataset, row))
            seen = row_number[row] >= 0
            pairs = row_number[row][seen] * actions + dataset.actions[seen]
            pair_counts.append(np.bincount(pairs, minlength=len(looked_at) * actions))
            start_counts.append(np.bincount(row_number[start][row_number[start] >= 0], minlength=len(looked_at)))
        counts = np.stack(pair_counts).reshape(len(datasets), len(looked_at), actions).astype(np.float64)
        starts = np.stack(start_counts).astype(np.float64)

        def tensor(array):
            return torch.from_numpy(array).to(device, torch.float32)

        self.weights = tensor(counts / counts.sum((1, 2), keepdims=True))  # [data sets, R, A]
        self.start_weights = tensor(starts / starts.sum(1, keepdims=True))  # [data sets, R]
        self.mdp, self.horizon, self.gamma, self.scales = world.mdp, world.horizon, gamma, scales or Scales()
        self.listed = transitions.discrete or world.mdp is not None  # whether states are: then every one is judged
        masks = None if datasets[0].admissible is None else np.stack([dataset.admissible for dataset in datasets])
        self.allowed = {"cql": None if transitions.allowed is None else transitions.allowed.bool(),
                        "bc": None if masks is None else torch.from_numpy(masks).to(device)}  # [data sets, table, A]
        if world.mdp is not None:
            self.states = torch.from_numpy(self.scales.inputs(world.inputs)).to(device)  # [S] or [S, n]

    def bounds(self, data_index: Tensor, alphas: list[float], objective: Objective) -> Tensor:
        """``value_bounds`` of each member at its alpha, ``[M, 2]``."""
        pairs = [value_bounds(self.rewards[n], alpha, objective) for n, alpha in zip(data_index.tolist(), alphas)]
        return torch.tensor(pairs, dtype=torch.float32, device=data_index.device)

    @torch.no_grad()
    def read(self, network: PopulationMLP, parameters: list[Tensor], data_index: Tensor, algorithm: str,
             bounds: Tensor) -> tuple[dict[str, list[float]], np.ndarray | None]:
        """The measurements that the device makes, ``name -> [M]``, and what the exact ones need of it: the greedy
        actions ``[M, S]``, or None without a model. Waits for the device.

        Args:
            parameters: each ``[M, ...]``. data_index: ``[M]``, the number of each member's data set.
            bounds: ``value_bounds`` of each member ``[M, 2]``.
        """
        raw = population_outputs(network, parameters, self.inputs)  # [M, R, A]
        allowed = self.allowed[algorithm]
        outputs = raw if allowed is None else raw.masked_fill(~allowed[data_index[:, None], self.rows], -torch.inf)
        weights = self.weights[data_index]  # [M, R, A]
        state_weights, logged = weights.sum(-1), weights > 0  # [M, R], [M, R, A]
        visited = logged.any(-1)  # [M, R]
        best, greedy = outputs.max(-1)  # [M, R]
        values = {}
        if algorithm == "cql":
            values["q/data_mean"] = (weights * raw).sum((-1, -2))
            values["q/max_mean"] = (state_weights * best).sum(-1)
            values["q/max"] = torch.where(visited, best, -torch.inf).amax(-1)
            values["q/start"] = (self.start_weights[data_index] * best).sum(-1)
        health = torch.where(raw.isfinite().all(-1).all(-1), SOUND, NOT_FINITE)  # [M]
        if algorithm == "cql":
            low, high = bounds.unbind(-1)
            means = torch.stack([values["q/max_mean"], values["q/start"]])
            largest = values["q/max"] if self.listed else means.amax(0)
            health = torch.where((health == SOUND) & ((largest > high) | (means.amin(0) < low)), RUNAWAY, health)
        values["health/diverged"] = health
        ood_mass = torch.where(logged, 0.0, outputs.softmax(-1)).sum(-1)
        values["policy/ood_mass"] = (state_weights * ood_mass).sum(-1)
        agreed = weights.gather(-1, greedy[..., None]).squeeze(-1)
        values["policy/action_mismatch_rate"] = 1 - agreed.sum(-1)
        columns = {name: column.double().tolist() for name, column in values.items()}
        if self.mdp is None:
            return columns, None
        everywhere = population_outputs(network, parameters, self.states)  # [M, S, A]
        everywhere = everywhere if allowed is None else everywhere.masked_fill(~allowed[data_index], -torch.inf)
        return columns, everywhere.argmax(-1).cpu().numpy()

    def with_exact(self, columns: dict[str, list[float]], actions: np.ndarray | None) -> dict[str, list[float]]:
        """What ``read`` gave, with the exact measurements; needs no device."""
        if actions is not None:
            columns = columns | self._exact(actions)
        for m, diverged in enumerate(columns["health/diverged"]):
            if diverged == NOT_FINITE:  # the greedy action of a NaN is no action: nothing said of it would be true
                for name in columns.keys() - {"health/diverged"}:
                    columns[name][m] = math.nan
        return columns

    def _exact(self, actions: np.ndarray) -> dict[str, list[float]]:
        policies = deterministic_policies(actions, self.mdp.num_actions)
        result = evaluate_policies(self.mdp, policies, horizon=self.horizon)
        values = {"exact/return": result.returns, "exact/hazard_probability": result.hazard_probability,
                 "exact/goal_probability": result.goal_probability}
        if self.gamma < 1 and self.mdp.num_states <= VALUED_STATES:
            value, _ = policy_evaluation(self.mdp, policies, self.gamma)  # [M, S]
            values["exact/discounted_value"] = value @ start_distribution(self.mdp)
        return {name: column.tolist() for name, column in values.items() if column is not None}


class RewardRange(NamedTuple):
    """What bounds the values of a data set. Least and largest are infinite where there are no such outcomes."""

    ended: tuple[float, float]  # least and largest reward of the outcomes that terminate
    going_on: tuple[float, float]  # and of those that do not
    uneven: float  # the largest log count(a | s) / count(b | s) of two logged actions

    @classmethod
    def of(cls, dataset: OfflineDataset, rows: np.ndarray) -> "RewardRange":
        """Of a data set whose observations are the table's ``rows [D]``."""
        ended, going_on = ((float(part.min(initial=np.inf)), float(part.max(initial=-np.inf))) for part in (
            dataset.rewards[dataset.terminations], dataset.rewards[~dataset.terminations]))
        states, row = np.unique(rows, return_inverse=True)
        counts = np.bincount(row * dataset.num_actions + dataset.actions, minlength=len(states) * dataset.num_actions)
        counts = counts.reshape(len(states), dataset.num_actions)
        return cls(ended, going_on, float(np.log(counts.max(-1) / np.where(counts, counts, len(rows)).min(-1)).max()))


def value_bounds(rewards: RewardRange, alpha: float, objective: Objective) -> tuple[float, float]:
    """A lower and an upper bound of max_a Q(s, a) at logged states in every exact CQL(H) solution.

    A learned value beyond them has run away. With a squared loss, stationarity gives Q <= y + alpha_half on every
    logged pair; with the Huber loss max_a Q <= max y + max(1, ``uneven``), at any alpha; with both, some logged action
    has Q >= min y (docs/scales.md). As y is r where the outcome terminates or leads to a state without data (value 0),
    else r + gamma max Q, the values lie between the least and the largest of the terms below, and 0, about where
    networks start; with a margin of 5 % and 1 for minibatch noise. Double Q does not raise y. Infinite for any other
    objective.
    """
    if not objective.solved_as_cql_h:
        return -np.inf, np.inf
    gamma, raised = objective.gamma, alpha / 2 if objective.td_loss == "mse" else alpha
    if objective.td_loss == "huber":
        raised = max(1.0, rewards.uneven)
    ends, step = rewards.ended[1] + raised, rewards.going_on[1] + raised
    lowest, down = rewards.ended[0], rewards.going_on[0]
    high = max(ends, step, _for_ever(step, gamma), 0.0)
    low = min(lowest, down, -_for_ever(-down, gamma), 0.0)
    return 1.05 * low - 1, 1.05 * high + 1


def _for_ever(reward: float, gamma: float) -> float:
    """The value of a reward at every step; minus infinity where it is not positive."""
    return -np.inf if reward <= 0 else reward / (1 - gamma) if gamma < 1 else np.inf


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


def population_outputs(network: PopulationMLP, parameters: list[Tensor], inputs: Tensor) -> Tensor:
    """The network of every member at the same inputs, ``[rows, …] -> [M, rows, A]``; in parts that fit the memory."""
    members = len(parameters[0])
    parts = inputs.split(max(1, AT_ONCE // members))
    return torch.cat([network.q_values(parameters, part.expand(members, *part.shape)) for part in parts], 1)
