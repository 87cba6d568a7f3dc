"""What the pictures of a run show, as arrays: read from its files, nothing drawn here.

Axes: S state, A action, N member, T log entry.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cql.analysis.evaluation import load_policy
from cql.analysis.results import Group
from cql.cloned import cloned_episodes
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.exact import TabularMDP, bellman_backup, deterministic_policies, policy_evaluation
from cql.members import Member, all_members
from cql.metrics import MEAN, METRICS, read_metrics
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World, pair_counts, states_of

SHOWN_ALPHA = 6.0  # of several alphas, the maps show the one closest to the default


@dataclass(frozen=True)
class RunData:
    """A finished run, as far as pictures need it.

    Args:
        members: those that have a policy; diverged: what the evaluation says of members that diverged.
        datasets: by data seed; series: as ``read_metrics`` gives it; evaluation: content of ``evaluation.json``.
        world: the environment that the data name.
    """

    run: RunFolder
    config: Config
    datasets: dict[int, OfflineDataset]
    members: list[Member]
    diverged: dict[Member, dict]
    series: dict
    evaluation: dict
    world: World

    @classmethod
    def of(cls, run: RunFolder) -> "RunData":
        """Raises RunError, DatasetError or ConfigError if a file of the run is missing, damaged or contradictory."""
        config = run.config()
        datasets = dict(zip(config.data_seeds, run.datasets(config)))
        evaluation = run.read_json("evaluation.json")
        diverged = {member_of(entry): entry["diverged"] for entry in evaluation["members"] if entry["diverged"]}
        members = [m for m in all_members(config) if diverged.get(m, {}).get("reason") != "not finite"]
        return cls(run, config, datasets, members, diverged, read_metrics(run.path / "metrics.csv"), evaluation,
                   World.of(datasets[config.data_seed]))

    @property
    def dataset(self) -> OfflineDataset:
        """The first data set, the one on the maps."""
        return self.datasets[self.config.data_seed]

    @cached_property
    def inputs(self) -> np.ndarray | None:
        """What the networks see in every state, ``[S]`` or ``[S, n]``; None where states cannot be listed."""
        if self.world.mdp is not None:
            return self.world.inputs
        return np.arange(self.dataset.num_states) if self.dataset.discrete else None

    @cached_property
    def counts(self) -> np.ndarray:
        """How often the first data set has each pair, ``[S, A]``."""
        return pair_counts(self.dataset, self.inputs)

    @cached_property
    def decided(self) -> np.ndarray:
        """``[S]`` bool: the states where an action matters, all but the terminal ones."""
        return np.ones(len(self.inputs), dtype=bool) if self.world.mdp is None else ~self.world.mdp.terminal

    def policy(self, member: Member) -> Policy:
        return load_policy(self.run, member, self.datasets[member.data_seed])

    def q_values(self, member: Member) -> np.ndarray:
        """The learned Q of a member in every state, ``[S, A]`` float64."""
        return self.policy(member).q_values(self.inputs).astype(np.float64)

    def true_values(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        """``exact_values`` of greedy policies ``[N, S]`` on the true model."""
        return exact_values(self.world.mdp, actions, self.config.gamma, self.world.horizon)

    def action_entropy(self, algorithm: str) -> float:
        """Entropy of the logged actions that an algorithm is trained on, in nats, mean over the data sets.

        It is the floor of the penalty (``cql``) and of the cross-entropy (``bc``).
        """
        return float(np.mean([(dataset if algorithm == "cql" else self.cloned(dataset)).action_entropy()
                              for dataset in self.datasets.values()]))

    def cloned(self, dataset: OfflineDataset) -> OfflineDataset:
        """The part of a data set that BC is trained on."""
        return cloned_episodes(self.config, dataset, self.world)


def member_of(entry: dict) -> Member:
    """The member that an entry of ``evaluation.json`` or ``audit.json`` is about."""
    return Member(*(entry[name] for name in ("algorithm", "alpha", "seed", "data_seed")))


def ood_gap(q: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Largest Q among logged actions less the largest among OOD actions, ``[S, A] -> [S]``.

    Negative where the network prefers an OOD action; NaN where a state has no action of one of the kinds.
    """
    logged = counts > 0
    best_logged = np.where(logged, q, -np.inf).max(-1)
    best_ood = np.where(logged, -np.inf, q).max(-1)
    both = logged.any(-1) & ~logged.all(-1)
    return np.subtract(best_logged, best_ood, out=np.full(len(q), np.nan), where=both)


def exact_values(mdp: TabularMDP, actions: np.ndarray, gamma: float, horizon: int):
    """True values of deterministic policies in every state: actions ``[N, S] -> (v [N, S], q [N, S, A], words)``.

    Discounted without end; at gamma 1, where such a value may not exist, over ``horizon`` steps. ``words`` say which.
    """
    policies = deterministic_policies(actions, mdp.num_actions)
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
    """The member a map shows: alpha closest to 6 (the lower of two), first data set, first training seed."""
    return min((member for member in members if member.algorithm == algorithm), default=None,
               key=lambda m: (abs((m.alpha or 0) - SHOWN_ALPHA), m.alpha or 0, m.data_seed, m.seed))


def groups(members: list[Member]) -> dict[Group, list[Member]]:
    """Members by (algorithm, alpha), BC first, then by rising alpha."""
    by_group: dict[Group, list[Member]] = {}
    for member in sorted(members, key=lambda m: (m.algorithm, m.alpha or 0)):
        by_group.setdefault((member.algorithm, member.alpha), []).append(member)
    return by_group


def curves(run_data: RunData, metric: str) -> dict[Group, tuple[np.ndarray, np.ndarray]]:
    """A logged metric by group: ``(updates [T], values [N, T])``."""
    by_group = {}
    for group, members in groups(run_data.members).items():
        logged = [run_data.series[m.name, metric] for m in members if (m.name, metric) in run_data.series]
        if logged:
            length = min(len(steps) for steps, _ in logged)
            by_group[group] = np.array(logged[0][0][:length]), np.array([values[:length] for _, values in logged])
    return by_group


def means(run_data: RunData) -> dict[str, dict[int, dict[str, float]]]:
    """Every logged metric's mean over each group of several members, as ``MetricsLog.write_means`` takes them."""
    runs: dict[str, dict[int, dict[str, float]]] = {}
    by_group = groups(run_data.members)
    for metric in METRICS:
        for group, (updates, values) in curves(run_data, metric).items():
            if len(values) > 1:
                name = MEAN.format(group=by_group[group][0].group, members=len(values))
                for update, mean in zip(updates.tolist(), values.mean(0).tolist()):
                    runs.setdefault(name, {}).setdefault(update, {})[metric] = mean
    return runs


OUTCOMES = {  # in "exact" -> in "rollout"
    "return": "return_mean", "hazard_probability": "hazard_rate", "goal_probability": "goal_rate"}


@dataclass(frozen=True)
class Outcome:
    """One row of one outcome: exact values of the members ``[N]`` (maybe none), rollout mean and standard error."""

    exact: list[float]
    rollout: float | None = None
    error: float | None = None


def outcomes(run_data: RunData, name: str) -> dict[Group, Outcome]:
    """``name`` of behaviour, BC, CQL by rising alpha, and the optimal policy, in this order, where known.

    The rollout mean is that of the members. Its standard error is the mean of theirs: members share their episode
    seeds, so that more members need not make it smaller. The behaviour's rollouts are the logged episodes.
    """
    by_group: dict[Group, Outcome] = {("behavior", None): behavior_outcome(run_data, name)}
    entries = {member_of(entry): entry for entry in run_data.evaluation["members"]}
    for group, members in groups(run_data.members).items():
        mine = [entries[member] for member in members]
        exact = [e["exact"][name] for e in mine if e["exact"] and e["exact"][name] is not None]
        rollouts = [e["rollout"] for e in mine if e["rollout"] and e["rollout"][OUTCOMES[name]] is not None]
        means = [rollout[OUTCOMES[name]] for rollout in rollouts]
        errors = [error for rollout in rollouts if (error := standard_error(rollout, name)) is not None]
        by_group[group] = Outcome(exact, *(float(np.mean(values)) if values else None for values in (means, errors)))
    optimal = reference(run_data.evaluation, "optimal", name)
    by_group["optimal", None] = Outcome([] if optimal is None else [optimal])
    return {group: outcome for group, outcome in by_group.items() if outcome.exact or outcome.rollout is not None}


def behavior_outcome(run_data: RunData, name: str) -> Outcome:
    """Exact worth of the behaviour policy beside the mean over the data's episodes, unless they are broken."""
    exact = reference(run_data.evaluation, "behavior", name)
    if exact is None:
        return Outcome([])
    if any(dataset.breaks.size for dataset in run_data.datasets.values()):
        return Outcome([exact])
    per_dataset = []
    for dataset in run_data.datasets.values():
        if name == "return":
            per_dataset.append(dataset.episode_returns())
        else:
            mask = run_data.world.mdp.hazard if name == "hazard_probability" else run_data.world.mdp.goal
            last = np.append(np.flatnonzero(np.diff(dataset.episode_ids)), len(dataset) - 1)
            per_dataset.append(mask[states_of(dataset.next_observations[last], run_data.inputs)].astype(np.float64))
    episodes = np.concatenate(per_dataset)
    error = episodes.std(ddof=1) / len(episodes) ** 0.5 if len(episodes) > 1 else None
    return Outcome([exact], float(episodes.mean()), error)


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
