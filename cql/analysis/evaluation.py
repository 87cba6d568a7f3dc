"""What the policies of a run are worth: seeded rollouts in Gymnasium, exact expectations, support in the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cql.analysis import convergence
from cql.cloned import cloned_episodes
from cql.config import Config
from cql.dataset import OfflineDataset, number_rows, observation_keys
from cql.diagnostics import NOT_FINITE, SOUND
from cql.errors import RunError
from cql.exact import (
    backward_induction,
    deterministic_policies,
    evaluate_policies,
    expected_visits,
    policy_evaluation,
    start_distribution,
)
from cql.members import Member, all_members
from cql.metrics import read_metrics
from cql.policy import AT_ONCE, Policy
from cql.run_folder import RunFolder
from cql.text import aligned, number
from cql.world import World

DEFAULT_EPISODES, DEFAULT_SEED = 30, 1000
LIKELY = 0.3  # share of the most likely action's probability under BC, from which on an action of vectors is supported


def evaluate(run: RunFolder, episodes: int = DEFAULT_EPISODES, seed: int = DEFAULT_SEED) -> dict:
    """The evaluation of every member of a run and of two references: the content of ``evaluation.json``.

    Args:
        episodes: rollouts of each member; rollout i starts from environment seed ``seed + i`` for every member.

    Raises:
        RunError: a file of the run is missing or damaged.
        ConfigError: the data set names an environment that cannot be made.
    """
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    world = World.of(datasets[config.data_seed])
    members, diverged, alphas = all_members(config), divergence(run), final_alphas(run)
    policies = [None if diverged.get(member.name, {}).get("reason") == "not finite"
                else load_policy(run, member, datasets[member.data_seed]) for member in members]
    supports = supports_of(world, list(datasets.values()), [datasets[m.data_seed] for m in members], policies)
    entries = policy_entries(world, policies, supports, episodes, seed, config.gamma)
    final = [alphas.get(member.name) if policy is not None else None for member, policy in zip(members, policies)]
    cloned = {seed: cloned_episodes(config, dataset, world) for seed, dataset in datasets.items()}
    converged = _convergence(run, members, diverged, cloned if world.inputs is not None else {})
    entries = [{**vars(member), "final_alpha": alpha, "diverged": diverged.get(member.name), "convergence": known,
                **entry}
               for member, alpha, known, entry in zip(members, final, converged, entries)]
    return {"environment": datasets[config.data_seed].environment,
            "misfit": world.misfit_of_given(datasets[config.data_seed], config),
            "bc": config.bc_name, "rollout_episodes": episodes, "rollout_seed": seed,
            "references": _references(world, config), "members": entries}


def policy_entries(world: World, policies: list[Policy | None], supports: list["Support"], episodes: int, seed: int,
                   gamma: float) -> list[dict]:
    """The entry of every policy in ``evaluation.json``, without its member; all values None for no policy.

    Args:
        supports: for each policy, of the data set that it was trained on.
        episodes, seed: rollout i starts from environment seed ``seed + i``.
    """
    rollouts = Rollouts(world, episodes, seed) if world.environment is not None else None
    entries = []
    for policy, support, (exact, rate) in zip(policies, supports, exact_evaluation(world, policies, supports, gamma)):
        known = policy is not None
        entries.append({"rollout": rollouts.summary(policy, support) if known and rollouts is not None else None,
                        "action_mismatch_rate": support.mismatch_rate(policy) if known else None, "exact": exact,
                        "exact_unsupported_action_rate": rate,
                        "value_estimate": _value_estimate(policy, support.dataset) if known else None})
    return entries


def load_policy(run: RunFolder, member: Member, dataset: OfflineDataset) -> Policy:
    """The policy of a member. Raises RunError if its file is missing, damaged, another member's or of other sizes."""
    path = run.policy_path(member.name)
    policy = Policy.load(path)
    if Member(policy.algorithm, policy.alpha, policy.seed, policy.data_seed) != member:
        raise RunError(f"{path} is the policy of another member.")
    refuse_misfit(policy, dataset, path)
    return policy


def refuse_misfit(policy: Policy, dataset: OfflineDataset, path) -> None:
    """Raises RunError if a policy (read from ``path``) has other observations or actions than its data."""
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    if (policy.network.discrete, policy.network.inputs, policy.network.outputs, policy.masked) != (
            dataset.discrete, inputs, dataset.num_actions, dataset.masked):
        raise RunError(f"{path} does not fit its data: other observations, actions or masks.")


def divergence(run: RunFolder) -> dict[str, dict]:
    """Members whose last log entry says that they diverged: ``{name: {"since": update, "reason": …}}``."""
    entries = {}
    for (name, metric), (steps, values) in finished_log(run).items():
        if metric == "health/diverged" and values[-1] != SOUND:
            since = next(n for n in range(len(values), 0, -1) if n == 1 or values[n - 2] == SOUND)
            reason = "not finite" if values[-1] == NOT_FINITE else "runaway"
            entries[name] = {"since": steps[since - 1], "reason": reason}
    return entries


def _convergence(run: RunFolder, members: list[Member], diverged: dict, cloned: dict) -> list[dict | None]:
    """``convergence.judged`` of every member; None for one that diverged, and for BC where ``cloned`` has no data."""
    logs: dict[str, dict] = {member.name: {} for member in members}
    for (name, metric), curve in finished_log(run).items():
        logs[name][metric] = curve
    batch_size, floors = run.config().batch_size, {seed: dataset.action_entropy() for seed, dataset in cloned.items()}
    return [None if member.name in diverged else
            convergence.judged(logs[member.name], floors.get(member.data_seed), batch_size) for member in members]


def final_alphas(run: RunFolder) -> dict[str, float]:
    """The weight of the penalty that each CQL member ended with, by name: ``--alpha``, unless it was learned."""
    return {name: values[-1] for (name, metric), (_, values) in finished_log(run).items()
            if metric == "optimiser/alpha" and math.isfinite(values[-1])}


def finished_log(run: RunFolder) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """``read_metrics`` of a finished training. Raises RunError if the last entry of a member is missing."""
    config, series = run.config(), read_metrics(run.path / "metrics.csv")
    for member in all_members(config):
        steps = config.steps if member.algorithm == "cql" else config.bc_steps
        for metric in ("health/diverged", *["optimiser/alpha"] * (member.algorithm == "cql")):
            if series.get((member.name, metric), ([None],))[0][-1] != steps:
                raise RunError(f"{run.path}/metrics.csv has no {metric} of {member.name} after its last update: its "
                               "training is not finished (go on with train.py --resume), or the file was cut short.")
    return series


class Support:
    """The actions that a data set has in every state: ``counts [S, A]`` over its distinct ``observations``.

    ``rows`` has the state of every transition, ``[D]``.
    """

    by_state = True

    def __init__(self, dataset: OfflineDataset):
        self.dataset = dataset
        self.observations, self.rows = number_rows(dataset.observations)
        self.counts = np.zeros((len(self.observations), dataset.num_actions), dtype=np.int64)
        np.add.at(self.counts, (self.rows, dataset.actions), 1)
        keys = observation_keys(self.observations, self.observations.dtype)
        self._row_of = {key: row for row, key in enumerate(keys)}

    def mismatch_rate(self, policy: Policy) -> float:
        """The share of transitions whose logged action is not the greedy one."""
        greedy = in_parts(policy.act, self.observations, self.dataset.masks_of(self.observations))[self.rows]
        return float((greedy != self.dataset.actions).mean())

    def supported(self, observation, action: int, mask=None) -> bool | None:
        """Whether one action is supported; None where that is not known."""
        unsupported = self.unsupported([observation], [action], None if mask is None else [mask])
        return None if unsupported is None else not unsupported[0]

    def unsupported(self, observations, actions, masks=None) -> np.ndarray | None:
        """Whether the data do not have each of the actions in its state, ``[B]`` bool; None where that is not known.

        ``masks [B, A]``: where the policies need them. A state that the data never visit supports no action.
        """
        return np.array([self.counts_of(x)[a] == 0 for x, a in zip(observations, actions)], dtype=bool)

    def counts_of(self, observation) -> np.ndarray:
        """How often the data have each action in this state, ``[A]``."""
        row = self.row_of(observation)
        return np.zeros(self.counts.shape[1], dtype=np.int64) if row is None else self.counts[row]

    def row_of(self, observation) -> int | None:
        """The row of this state in ``observations`` and ``counts``; None if the data never visit it."""
        return self._row_of.get(observation_keys([observation], self.observations.dtype)[0])


class ClonedSupport(Support):
    """Support of vectors that no state numbers stand behind, none of which need ever come again.

    An action counts as supported where its probability under Behaviour Cloning of the data is at least LIKELY times
    that of the most likely action. ``cloned`` is that policy, or None: then support is not known.
    """

    by_state = False

    def __init__(self, dataset: OfflineDataset, cloned: Policy | None):
        super().__init__(dataset)
        self.cloned = cloned

    def unsupported(self, observations, actions, masks=None) -> np.ndarray | None:
        if self.cloned is None:
            return None
        p = in_parts(self.cloned.probabilities, np.asarray(observations), None if masks is None else np.asarray(masks))
        return p[np.arange(len(p)), np.asarray(actions)] < LIKELY * p.max(1)


def supports_of(world: World, distinct: list[OfflineDataset], datasets: list[OfflineDataset],
                policies: list[Policy | None]) -> list[Support]:
    """The support of each policy in its data set, by states where the data have them, else by the BC policy.

    Args:
        distinct: the data sets, each once. datasets, policies: of each member; that of BC has the same data, and the
            same training seed where there is one.
    """
    if distinct[0].discrete or world.inputs is not None:
        known = {id(dataset): Support(dataset) for dataset in distinct}
        return [known[id(dataset)] for dataset in datasets]
    cloned = {key: policy for policy in policies if policy and policy.algorithm == "bc"
              for key in ((policy.data_seed, None), (policy.data_seed, policy.seed))}
    return [ClonedSupport(dataset, policy and (cloned.get((policy.data_seed, policy.seed))
                                               or cloned.get((policy.data_seed, None))))
            for dataset, policy in zip(datasets, policies)]


def in_parts(read: Callable, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """What a policy's method gives for observations ``[B, …]`` and masks ``[B, A]``, in parts that fit the memory."""
    parts = [slice(first, first + AT_ONCE) for first in range(0, len(observations), AT_ONCE)]
    return np.concatenate([read(observations[part], None if masks is None else masks[part]) for part in parts])


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes of one policy in the environment.

    Attributes:
        steps: every (observation, action), in order. lengths, returns: steps and undiscounted return, ``[episodes]``.
        ends: ``"hazard"``, ``"goal"`` -> whether an episode ended in one, ``[episodes]`` bool, where known. Without a
            model, a hazard is what the environment says in ``info["hazard"]`` of every step.
        masks: of every step what the environment says in ``info["action_mask"]``; None for a policy that needs none.
    """

    steps: list[tuple]
    lengths: np.ndarray
    returns: np.ndarray
    ends: dict[str, np.ndarray]
    masks: list | None = None

    def unsupported(self, support: Support) -> np.ndarray | None:
        """How many steps of each episode took an unsupported action, ``[episodes]``; None where that is not known."""
        observations, actions = zip(*self.steps)
        flags = support.unsupported(observations, actions, self.masks)
        if flags is None:
            return None
        return np.add.reduceat(flags.astype(np.int64), np.cumsum(self.lengths) - self.lengths)


class Rollouts:
    """Seeded episodes of greedy policies, in the environment of a world."""

    def __init__(self, world: World, episodes: int, seed: int):
        self.environment: Any = world.environment
        self.model, self.inputs, self.episodes, self.seed = world.mdp, world.inputs, episodes, seed
        if self.inputs is not None:
            keys = observation_keys(self.inputs, self.inputs.dtype)
            self._state_of = {key: state for state, key in enumerate(keys)}

    def summary(self, policy: Policy, support: Support) -> dict:
        """The ``rollout`` entry of one member; without a model with the return of every episode."""
        episodes = self.of(policy)
        rates = {name: int(flags.sum()) / self.episodes for name, flags in episodes.ends.items()}
        unsupported = episodes.unsupported(support)
        return {"episodes": self.episodes, "return_mean": float(episodes.returns.mean()),
                "return_std": float(episodes.returns.std(ddof=1)) if self.episodes > 1 else None,
                "hazard_rate": rates.get("hazard"), "goal_rate": rates.get("goal"),
                "action_mismatch_rate": support.mismatch_rate(policy),
                "unsupported_action_rate": None if unsupported is None else (
                    int(unsupported.sum()) / len(episodes.steps)),
                **({"returns": episodes.returns.tolist()} if self.model is None else {})}

    def of(self, policy: Policy) -> Episodes:
        """The episodes of one policy. Raises RunError if it needs a mask and the environment gives none that can be."""
        act: Callable = self._within_masks(policy) if policy.masked else lambda observation, _: policy.act(observation)
        if self.inputs is not None:  # one pass through the network instead of one per step
            actions = policy.act(self.inputs).tolist()

            def act(observation, _):
                return actions[self._state(observation)]

        places = {name: getattr(self.model, name, None) for name in ("hazard", "goal")}
        places = {name: place for name, place in places.items() if place is not None}
        steps, masks, lengths, returns, reported = [], [], [], np.zeros(self.episodes), []
        ends = {name: np.zeros(self.episodes, dtype=bool) for name in places}
        for episode in range(self.episodes):
            observation, info = self.environment.reset(seed=self.seed + episode)
            done, hazards = False, []
            while not done:
                action = act(observation, info.get("action_mask"))
                steps.append((observation, action))
                if policy.masked:
                    masks.append(np.array(info["action_mask"]))  # a copy: it may be changed in place
                observation, reward, terminated, truncated, info = self.environment.step(action)
                returns[episode] += reward
                hazards.append(info.get("hazard"))
                done = terminated or truncated
            lengths.append(len(hazards))
            reported.append(None if None in hazards else any(hazards))
            for name, place in places.items():
                ends[name][episode] = place[self._state(observation)]
        if "hazard" not in ends and None not in reported:
            ends["hazard"] = np.array(reported, dtype=bool)
        return Episodes(steps, np.array(lengths), returns, ends, masks if policy.masked else None)

    def _within_masks(self, policy: Policy) -> Callable:
        """``policy.act``, for which what the environment says is no mask is a RunError."""
        def act(observation, mask):
            try:
                return policy.act(observation, mask)
            except ValueError as error:
                raise RunError(f"the environment {self.environment.spec.id} must say which actions exist, in "
                               f'info["action_mask"] of every reset and step: {error}') from None
        return act

    def _state(self, observation) -> int:
        try:
            return self._state_of[observation_keys([observation], self.inputs.dtype)[0]]
        except KeyError:
            raise RunError(f"the environment {self.environment.spec.id} shows {observation}, which is none of the "
                           "states of its transition table.") from None


def exact_evaluation(world: World, policies: list[Policy | None], supports: list[Support],
                     gamma: float) -> list[tuple[dict | None, float | None]]:
    """The ``exact`` entry of every member and the exact share of its steps that take an OOD action."""
    entries: list = [(None, None)] * len(policies)
    members = {n: policy for n, policy in enumerate(policies) if policy is not None}
    if world.mdp is None or not members:
        return entries
    model, inputs, horizon = world.mdp, world.inputs, world.horizon
    actions = np.stack([policy.act(inputs) for policy in members.values()])  # [N, S]
    tables = deterministic_policies(actions, model.num_actions)  # [N, S, A]
    result = evaluate_policies(model, tables, horizon=horizon)
    try:
        values = (policy_evaluation(model, tables, gamma)[0] @ start_distribution(model)).tolist()
    except ValueError:  # at gamma 1 an episode may never end
        if gamma < 1:
            raise
        values = [None] * len(tables)
    visits = expected_visits(model, tables, horizon=horizon)  # [N, S]
    for row, n in enumerate(members):
        unsupported = supports[n].unsupported(inputs, actions[row])  # [S]
        entries[n] = (_exact_entry(result, row) | {"discounted_value": values[row]},
                      float(visits[row] @ unsupported / visits[row].sum()) if visits[row].any() else None)
    return entries


def _exact_entry(result, *n: int) -> dict:
    """Exact numbers of policy n of an evaluation; without n, of an evaluation of one policy."""
    numbers = {"return": result.returns, "hazard_probability": result.hazard_probability,
               "goal_probability": result.goal_probability}
    return {name: None if value is None else float(np.asarray(value)[n]) for name, value in numbers.items()}


def _references(world: World, config: Config) -> dict:
    """Exact worth over an episode of the optimal policy and of the behaviour policy."""
    if world.mdp is None:
        return {"optimal": {"exact": None}, "behavior": {"exact": None}}
    optimal, policy = backward_induction(world.mdp, world.horizon).evaluation, world.behavior_policy(config)
    behavior = None if policy is None else evaluate_policies(world.mdp, policy[None], horizon=world.horizon)
    return {"optimal": {"exact": _exact_entry(optimal)},
            "behavior": {"exact": behavior and _exact_entry(behavior, 0)}}


def _value_estimate(policy: Policy, dataset: OfflineDataset) -> float | None:
    """``max_a Q(s0, a)``, averaged over the first observations of the data's episodes; None for BC."""
    if policy.algorithm == "bc":
        return None
    first = dataset.observations[dataset.episode_starts]
    return float(policy.q_values(first, dataset.masks_of(first)).max(-1).mean(dtype=np.float64))


def table(evaluation: dict) -> str:
    """The evaluation for the terminal: a row per member, exact beside rollout; references below."""
    rows = [["policy", "alpha", "seed", "data", "return", "hazard", "goal", "true V", "V estimate", "rollout return",
             "hazard", "goal", "mismatch", "unsupported", ""]]
    for entry in evaluation["members"]:
        exact, rollout, diverged = entry["exact"] or {}, entry["rollout"] or {}, entry["diverged"]
        deviation = rollout.get("return_std")
        rows.append([
            entry["algorithm"].upper(), number(entry["alpha"], "g"), str(entry["seed"]), str(entry["data_seed"]),
            number(exact.get("return")), number(exact.get("hazard_probability"), ".3f"),
            number(exact.get("goal_probability"), ".3f"), number(exact.get("discounted_value")),
            number(entry["value_estimate"]),
            number(rollout.get("return_mean")) + ("" if deviation is None else f" ± {deviation:.1f}"),
            number(rollout.get("hazard_rate"), ".3f"), number(rollout.get("goal_rate"), ".3f"),
            number(entry["action_mismatch_rate"], ".3f"), number(rollout.get("unsupported_action_rate"), ".3f"),
            f"DIVERGED ({diverged['reason']}, since update {diverged['since']:,})" if diverged else
            convergence.words(entry["convergence"])])
    for name, reference in evaluation["references"].items():
        if (exact := reference["exact"]) is not None:
            rows.append([name, "", "", "", number(exact["return"]), number(exact["hazard_probability"], ".3f"),
                         number(exact["goal_probability"], ".3f"), *[""] * 8])
    lines = aligned(rows, left=(0, len(rows[0]) - 1))
    heading = " " * lines[0].index("return") + "exact"
    if any(entry["rollout"] for entry in evaluation["members"]):
        heading = heading.ljust(lines[0].index("rollout")) + f"rollouts ({evaluation['rollout_episodes']} episodes)"
    notes = []
    if evaluation["bc"] != "BC":
        episodes = evaluation["bc"].removeprefix("BC of ")
        notes = [f"BC clones {episodes}. Mismatch and unsupported count the actions of all episodes."]
    if evaluation["environment"] is None:
        notes += ["No environment: nothing exact can be said, and there are no rollouts."]
    elif evaluation["references"]["optimal"]["exact"] is None:
        notes += ["The environment has no transition table: nothing exact can be said."]
    elif evaluation["misfit"]:
        notes += [f"note: {evaluation['misfit']}"]
    return "\n".join([heading, *lines, *notes])
