"""What the pictures of a run show, as arrays: read from its files, nothing drawn here.

Axes: S state, A action, N member, T log entry.
"""

from dataclasses import dataclass
from functools import cached_property

import gymnasium
import numpy as np

from cql.analysis.evaluation import load_policy
from cql.collect import environment_of, exact_model
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import greedy_policies, state_inputs
from cql.exact.tabular import TabularMDP, bellman_backup, policy_evaluation, start_distribution
from cql.members import Member, all_members
from cql.metrics import read_metrics
from cql.policy import Policy
from cql.runs import RunFolder

MEMBER = ("algorithm", "alpha", "seed", "data_seed")
SHOWN_ALPHA = 6.0  # of several alphas, the maps show the one closest to the default


@dataclass(frozen=True)
class Pictured:
    """A finished run, as far as pictures need it.

    Args:
        members: those that have a policy; diverged: what the evaluation says of those that diverged.
        datasets: by data seed; series: as ``read_metrics`` gives it; evaluation: content of ``evaluation.json``.
        environment, mdp: None where the data name none, or none with a known model.
    """

    run: RunFolder
    config: Config
    datasets: dict[int, OfflineDataset]
    members: list[Member]
    diverged: dict[Member, dict]
    series: dict
    evaluation: dict
    environment: gymnasium.Env | None
    mdp: TabularMDP | None

    @classmethod
    def of(cls, run: RunFolder) -> "Pictured":
        """Raises RunError, DatasetError or ConfigError if a file of the run is missing, damaged or contradictory."""
        config = run.config()
        datasets = dict(zip(config.data_seeds, run.datasets(config)))
        environment = environment_of(datasets[config.data_seed])
        evaluation = run.read_json("evaluation.json")
        diverged = {Member(*(e[name] for name in MEMBER)): e["diverged"] for e in evaluation["members"] if e["diverged"]}
        members = [m for m in all_members(config) if diverged.get(m, {}).get("reason") != "not finite"]
        return cls(run, config, datasets, members, diverged, read_metrics(run.path / "metrics.csv"), evaluation, environment,
                   exact_model(environment))

    @property
    def dataset(self) -> OfflineDataset:
        """The first draw: the one that maps are drawn from."""
        return self.datasets[self.config.data_seed]

    @cached_property
    def inputs(self) -> np.ndarray | None:
        """What the networks see in every state, ``[S]`` or ``[S, n]``; None where states cannot be listed."""
        if self.mdp is not None:
            return state_inputs(self.environment).numpy()
        return np.arange(self.dataset.num_states) if self.dataset.discrete else None

    @cached_property
    def counts(self) -> np.ndarray:
        """Of the first draw, ``[S, A]``."""
        return pair_counts(self.dataset, self.inputs)

    @cached_property
    def board(self) -> "Board | None":
        return None if self.mdp is None else Board.of(self.environment, self.mdp)

    @cached_property
    def decided(self) -> np.ndarray:
        """``[S]`` bool: the states where an action matters, all but the terminal ones."""
        return np.ones(len(self.inputs), dtype=bool) if self.mdp is None else ~self.mdp.terminal

    def policy(self, member: Member) -> Policy:
        return load_policy(self.run, member, self.datasets[member.data_seed])


@dataclass(frozen=True)
class Board:
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
    def of(cls, environment: gymnasium.Env, mdp: TabularMDP) -> "Board | None":
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


def silent_gap(q: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Largest Q among logged actions less the largest among unlogged ones, ``[S, A] -> [S]``.

    Negative where the network prefers an action it never saw; NaN where a state has no action of one of the kinds.
    """
    logged = counts > 0
    best_logged = np.where(logged, q, -np.inf).max(-1)
    best_unlogged = np.where(logged, -np.inf, q).max(-1)
    both = logged.any(-1) & ~logged.all(-1)
    return np.subtract(best_logged, best_unlogged, out=np.full(len(q), np.nan), where=both)


def cross_entropy_floor(dataset: OfflineDataset) -> float:
    """Entropy of the logged action given the observation, in nats: no policy's cross-entropy on these data is lower."""
    _, rows = np.unique(dataset.observations, axis=0, return_inverse=True)
    rows = rows.reshape(-1).astype(np.int64)
    _, count = np.unique(rows * dataset.num_actions + dataset.actions, return_counts=True)
    per_state = np.bincount(rows)
    return float((per_state * np.log(per_state)).sum() - (count * np.log(count)).sum()) / len(dataset)


def exact_values(mdp: TabularMDP, actions: np.ndarray, gamma: float, horizon: int):
    """True values of deterministic policies in every state: actions ``[N, S] -> (v [N, S], q [N, S, A], words)``.

    Discounted without end; at gamma 1, where such a value may not exist, over ``horizon`` steps. ``words`` say which.
    """
    policies = greedy_policies(actions, mdp.num_actions)
    try:
        return *policy_evaluation(mdp, policies, gamma), f"discounted, γ = {gamma:g}"
    except ValueError:
        if gamma < 1:
            raise
    v = np.zeros(policies.shape[:2])
    for _ in range(horizon):
        q = bellman_backup(mdp, v, gamma)
        v = (policies * q).sum(-1)
    return v, q, f"undiscounted, {horizon} steps"


def shown_member(members: list[Member], algorithm: str) -> Member | None:
    """The member a map shows: alpha closest to 6 (the lower of two), first training seed, first data draw."""
    found = [member for member in members if member.algorithm == algorithm]
    return min(found, default=None,
               key=lambda m: (abs((m.alpha or 0) - SHOWN_ALPHA), m.alpha or 0, m.data_seed, m.seed))


def groups(members: list[Member]) -> dict[tuple[str, float | None], list[Member]]:
    """Members by (algorithm, alpha), BC first, then by rising alpha."""
    found = {}
    for member in sorted(members, key=lambda m: (m.algorithm, m.alpha or 0)):
        found.setdefault((member.algorithm, member.alpha), []).append(member)
    return found


def curves(pictured: Pictured, metric: str) -> dict[tuple[str, float | None], tuple[np.ndarray, np.ndarray]]:
    """A logged metric by group: ``(updates [T], values [N, T])``."""
    found = {}
    for group, members in groups(pictured.members).items():
        logged = [pictured.series[m.name, metric] for m in members if (m.name, metric) in pictured.series]
        if logged:
            length = min(len(steps) for steps, _ in logged)
            found[group] = np.array(logged[0][0][:length]), np.array([values[:length] for _, values in logged])
    return found


# --------------------------------------------------------------------------------------------------------- outcomes

OUTCOMES = {  # in "exact" -> in "rollout"
    "return": "return_mean", "hazard_probability": "hazard_rate", "goal_probability": "goal_rate"}


@dataclass(frozen=True)
class Outcome:
    """One row of one outcome: exact values of the members ``[N]`` (maybe none), rollout mean and standard error."""

    exact: list[float]
    rollout: float | None = None
    error: float | None = None


def outcomes(pictured: Pictured, name: str) -> dict[tuple[str, float | None], Outcome]:
    """``name`` of behaviour, BC, CQL by rising alpha, and the optimal policy, in this order, where known.

    The rollout mean is that of the members. Its standard error is the mean of theirs: members share their episode
    seeds, so that more members need not make it smaller. The behaviour's rollouts are the logged episodes.
    """
    evaluation = pictured.evaluation
    found = {("behavior", None): behavior_outcome(pictured, name)}
    entries = {(e["algorithm"], e["alpha"], e["seed"], e["data_seed"]): e for e in evaluation["members"]}
    for group, members in groups(pictured.members).items():
        mine = [entries[m.algorithm, m.alpha, m.seed, m.data_seed] for m in members]
        exact = [e["exact"][name] for e in mine if e["exact"] and e["exact"][name] is not None]
        rollouts = [(e["rollout"][OUTCOMES[name]], standard_error(e["rollout"], name)) for e in mine
                    if e["rollout"] and e["rollout"][OUTCOMES[name]] is not None]
        errors = [error for _, error in rollouts if error is not None]
        found[group] = Outcome(exact, float(np.mean([mean for mean, _ in rollouts])) if rollouts else None,
                               float(np.mean(errors)) if errors else None)
    optimal = reference(evaluation, "optimal", name)
    found["optimal", None] = Outcome([] if optimal is None else [optimal])
    return {group: outcome for group, outcome in found.items() if outcome.exact or outcome.rollout is not None}


def behavior_outcome(pictured: Pictured, name: str) -> Outcome:
    """Exact worth of the behaviour policy beside the mean over the episodes of all draws; empty if it is not known."""
    exact = reference(pictured.evaluation, "behavior", name)
    if exact is None:
        return Outcome([])
    if name == "return":
        episodes = np.concatenate([dataset.episode_returns() for dataset in pictured.datasets.values()])
    else:
        mask = pictured.mdp.hazard if name == "hazard_probability" else pictured.mdp.goal
        episodes = np.concatenate([_ended_in(mask, dataset, pictured.inputs) for dataset in pictured.datasets.values()])
    error = episodes.std(ddof=1) / len(episodes) ** 0.5 if len(episodes) > 1 else None
    return Outcome([exact], float(episodes.mean()), error)


def _ended_in(mask: np.ndarray, dataset: OfflineDataset, inputs: np.ndarray) -> np.ndarray:
    """``[E]`` 0 or 1: whether each episode's last state is in the mask ``[S]``."""
    last = np.append(np.flatnonzero(np.diff(dataset.episode_ids)), len(dataset) - 1)
    return mask[states_of(dataset.next_observations[last], inputs)].astype(np.float64)


def standard_error(rollout: dict, name: str) -> float | None:
    """Of the mean over the episodes of one member; None for a single episode."""
    episodes = rollout["episodes"]
    if episodes < 2:
        return None
    if name == "return":
        return rollout["return_std"] / episodes ** 0.5
    rate = rollout[OUTCOMES[name]]
    return (rate * (1 - rate) / (episodes - 1)) ** 0.5


def reference(evaluation: dict, who: str, name: str) -> float | None:
    """Exact ``name`` of "optimal" or "behavior", None where it is not known."""
    exact = evaluation["references"][who]["exact"]
    return None if exact is None else exact[name]

