"""What the policies of a run are worth: seeded rollouts through Gymnasium, the exact expectation, support in the data."""

import math
from dataclasses import dataclass

import gymnasium
import numpy as np

import envs
from cql.collect import environment_of, exact_model
from cql.dataset import OfflineDataset
from cql.diagnostics import NOT_FINITE, SOUND, greedy_policies, state_inputs
from cql.exact.tabular import (
    TabularMDP,
    backward_induction,
    evaluate_policies,
    expected_visits,
    policy_evaluation,
    start_distribution,
)
from cql.members import Member, all_members
from cql.metrics import read_metrics
from cql.policy import Policy
from cql.runs import RunError, RunFolder

DEFAULT_EPISODES, DEFAULT_SEED = 30, 1000


def evaluate(run: RunFolder, episodes: int = DEFAULT_EPISODES, seed: int = DEFAULT_SEED) -> dict:
    """Evaluates every member of a run and the two references; the result is the content of ``evaluation.json``.

    Args:
        episodes: rollouts of each member; rollout i starts from environment seed ``seed + i`` for every member.

    Raises:
        RunError: a file of the run is missing or damaged.
        ConfigError: the data set names an environment that cannot be made.
    """
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    environment = environment_of(datasets[config.data_seed])
    members, diverged, alphas = all_members(config), divergence(run), final_alphas(run)
    policies = [None if diverged.get(member.name, {}).get("reason") == "not finite"
                else load_policy(run, member, datasets[member.data_seed]) for member in members]
    model = exact_model(environment)
    rollouts = Rollouts(environment, model, episodes, seed) if environment is not None else None
    support = {seed: Support(dataset) for seed, dataset in datasets.items()}
    exact = exact_members(model, environment, policies, [support[member.data_seed] for member in members], config.gamma)
    entries = []
    for member, policy, (known, unsupported) in zip(members, policies, exact):
        data, judged = support[member.data_seed], policy is not None
        entries.append({**vars(member), "final_alpha": alphas.get(member.name) if judged else None,
                        "diverged": diverged.get(member.name),
                        "rollout": rollouts.judge(policy, data) if rollouts is not None and judged else None,
                        "action_mismatch_rate": data.mismatch_rate(policy) if judged else None, "exact": known,
                        "exact_unsupported_action_rate": unsupported,
                        "value_estimate": _value_estimate(policy, datasets[member.data_seed]) if judged else None})
    return {"environment": datasets[config.data_seed].metadata.get("environment"),
            "rollout_episodes": episodes, "rollout_seed": seed,
            "references": _references(model, environment, config), "members": entries}


def load_policy(run: RunFolder, member: Member, dataset: OfflineDataset) -> Policy:
    """The policy of a member. Raises RunError if the file is missing, damaged, another member's or of other sizes."""
    path = run.policy_path(member.name)
    policy = Policy.load(path)
    if Member(policy.algorithm, policy.alpha, policy.seed, policy.data_seed) != member:
        raise RunError(f"{path} is the policy of another member.")
    refuse_misfit(policy, dataset, path)
    return policy


def refuse_misfit(policy: Policy, dataset: OfflineDataset, path) -> None:
    """Raises RunError if a policy (read from ``path``) has other observations or actions than its data."""
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    if (policy.network.discrete, policy.network.inputs, policy.network.outputs) != (
            dataset.discrete, inputs, dataset.num_actions):
        raise RunError(f"{path} does not fit its data: other observations or actions.")


def divergence(run: RunFolder) -> dict[str, dict]:
    """Members whose last log entry says that they diverged: ``{name: {"since": update, "reason": …}}``."""
    found = {}
    for (name, metric), (steps, values) in finished_log(run).items():
        if metric == "health/diverged" and values[-1] != SOUND:
            since = next(n for n in range(len(values), 0, -1) if n == 1 or values[n - 2] == SOUND)
            found[name] = {"since": steps[since - 1], "reason": "not finite" if values[-1] == NOT_FINITE else "runaway"}
    return found


def final_alphas(run: RunFolder) -> dict[str, float]:
    """The weight of the penalty that each CQL member ended with, by name: ``--alpha``, unless it was learned."""
    return {name: values[-1] for (name, metric), (_, values) in finished_log(run).items()
            if metric == "optimiser/alpha" and math.isfinite(values[-1])}


def finished_log(run: RunFolder) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """``read_metrics`` of a run whose training is finished.

    Raises:
        RunError: the last entry of a member is missing.
    """
    config, series = run.config(), read_metrics(run.path / "metrics.csv")
    for member in all_members(config):
        steps = config.steps if member.algorithm == "cql" else config.bc_steps
        for metric in ("health/diverged", *["optimiser/alpha"] * (member.algorithm == "cql")):
            if series.get((member.name, metric), ([None],))[0][-1] != steps:
                raise RunError(f"{run.path}/metrics.csv has no {metric} of {member.name} after its last update: its training is "
                               "not finished (go on with train.py --resume), or the file was cut short.")
    return series


class Support:
    """Which actions a data set holds in which state, and how often."""

    def __init__(self, dataset: OfflineDataset):
        self.dataset = dataset
        self.observations, self.rows = np.unique(dataset.observations, axis=0, return_inverse=True)
        self.rows = self.rows.reshape(-1)
        self.counts = np.zeros((len(self.observations), dataset.num_actions), dtype=np.int64)
        np.add.at(self.counts, (self.rows, dataset.actions), 1)
        self._row_of = {observation.tobytes(): row for row, observation in enumerate(self.observations)}

    def mismatch_rate(self, policy: Policy) -> float:
        """Over the transitions of the data: how often the greedy action differs from the logged one."""
        greedy = policy.act(self.observations)[self.rows]
        return float((greedy != self.dataset.actions).mean())

    def supported(self, observation, action: int) -> bool:
        """Whether the data hold this action in this state; a state the data never visit supports none."""
        return bool(self.counts_of(observation)[action] > 0)

    def counts_of(self, observation) -> np.ndarray:
        """``[A]``: how often the data hold each action in this state; zeros where they never were."""
        row = self.row_of(observation)
        return np.zeros(self.counts.shape[1], dtype=np.int64) if row is None else self.counts[row]

    def row_of(self, observation) -> int | None:
        """Which row of ``observations`` and ``counts`` it is; None if the data never were there."""
        return self._row_of.get(np.asarray(observation, dtype=self.observations.dtype).tobytes())


class Rollouts:
    """Seeded episodes of greedy policies; policies that act alike everywhere are rolled out once.

    Args:
        model: of the environment, or None: then nothing is said of hazards and goals.
    """

    def __init__(self, environment: gymnasium.Env, model: TabularMDP | None, episodes: int, seed: int):
        self.environment, self.model, self.episodes, self.seed = environment, model, episodes, seed
        self.inputs = None if model is None else state_inputs(environment).numpy()
        self._known = {}

    def judge(self, policy: Policy, support: Support) -> dict:
        """The ``rollout`` entry of one member."""
        rolled = self.roll(policy)
        returns, rates = rolled.returns, {name: int(met.sum()) / self.episodes for name, met in rolled.ends.items()}
        return {"episodes": self.episodes, "return_mean": float(returns.mean()),
                "return_std": float(returns.std(ddof=1)) if self.episodes > 1 else None,
                "hazard_rate": rates.get("hazard"), "goal_rate": rates.get("goal"),
                "action_mismatch_rate": support.mismatch_rate(policy),
                "unsupported_action_rate": int(rolled.unsupported(support).sum()) / len(rolled.visited)}

    def roll(self, policy: Policy) -> "Rolled":
        """The episodes of one member."""
        if self.inputs is None:
            return self._roll(policy.act)
        actions = policy.act(self.inputs)
        key = actions.tobytes()
        if key not in self._known:
            table = {observation.tobytes(): int(action) for observation, action in zip(self.inputs, actions)}
            dtype = self.inputs.dtype
            self._known[key] = self._roll(lambda seen: table[np.asarray(seen, dtype=dtype).tobytes()])
        return self._known[key]

    def _roll(self, act) -> "Rolled":
        masks = {name: getattr(self.model, name, None) for name in ("hazard", "goal")}
        masks = {name: mask for name, mask in masks.items() if mask is not None}
        visited, lengths, returns, told = [], [], np.zeros(self.episodes), []
        ends = {name: np.zeros(self.episodes, dtype=bool) for name in masks}
        for episode in range(self.episodes):
            observation, _ = self.environment.reset(seed=self.seed + episode)
            done, before, met = False, len(visited), []
            while not done:
                action = act(observation)
                visited.append((observation, action))
                observation, reward, terminated, truncated, info = self.environment.step(action)
                returns[episode] += reward
                met.append(info.get("hazard"))
                done = terminated or truncated
            lengths.append(len(visited) - before)
            told.append(None if None in met else any(met))
            for name, mask in masks.items():
                ends[name][episode] = mask[_state(self.environment)]
        if "hazard" not in ends and None not in told:
            ends["hazard"] = np.array(told, dtype=bool)
        return Rolled(visited, np.array(lengths), returns, ends)


@dataclass(frozen=True, eq=False)
class Rolled:
    """Episodes of one policy.

    Attributes:
        visited: every (observation, action), in order. lengths: steps, ``[episodes]``. returns: undiscounted, ``[episodes]``.
        ends: ``"hazard"``, ``"goal"`` -> whether an episode ended in one, ``[episodes]`` bool; a name is left out where that is
            unknown. Without a model, a hazard is what the environment says of itself in ``info["hazard"]`` of every step.
    """

    visited: list[tuple]
    lengths: np.ndarray
    returns: np.ndarray
    ends: dict[str, np.ndarray]

    def unsupported(self, support: Support) -> np.ndarray:
        """How many steps of each episode took an action that the data do not hold there, ``[episodes]``."""
        flags = np.array([not support.supported(observation, action) for observation, action in self.visited])
        return np.add.reduceat(flags.astype(np.int64), np.cumsum(self.lengths) - self.lengths)


def _state(environment: gymnasium.Env) -> int:
    """The state a finite environment is in: ours calls it ``state``, Gymnasium's toy text ``s``."""
    grid = environment.unwrapped
    return int(grid.state if hasattr(grid, "state") else grid.s)


def exact_members(model, environment, policies: list[Policy | None], supports: list[Support],
                   gamma: float) -> list[tuple[dict | None, float | None]]:
    """Per member its ``exact`` entry and the exact share of its steps that the data do not support."""
    judged = [n for n, policy in enumerate(policies) if policy is not None]
    found = [(None, None)] * len(policies)
    if model is None or not judged:
        return found
    inputs, horizon = state_inputs(environment).numpy(), environment.spec.max_episode_steps
    actions = np.stack([policies[n].act(inputs) for n in judged])  # [N, S]
    tables = greedy_policies(actions, model.num_actions)  # [N, S, A]
    result = evaluate_policies(model, tables, horizon=horizon)
    values = _start_value(model, tables, gamma)
    visits = expected_visits(model, tables, horizon=horizon)  # [N, S]
    for row, n in enumerate(judged):
        unsupported = [not supports[n].supported(x, a) for x, a in zip(inputs, actions[row])]  # [S]
        found[n] = (_exact_entry(result, row) | {"discounted_value": values[row]},
                    float(visits[row] @ unsupported / visits[row].sum()) if visits[row].any() else None)
    return found


def _start_value(model: TabularMDP, tables: np.ndarray, gamma: float) -> list[float | None]:
    """True infinite-horizon discounted value at the start, ``[N]``; None at gamma 1 where an episode may never end."""
    try:
        values, _ = policy_evaluation(model, tables, gamma)
    except ValueError:
        if gamma < 1:
            raise
        return [None] * len(tables)
    return (values @ start_distribution(model)).tolist()


def _exact_entry(result, n: int) -> dict:
    return {"return": float(result.returns[n]),
            "hazard_probability": None if result.hazard_probability is None else float(result.hazard_probability[n]),
            "goal_probability": None if result.goal_probability is None else float(result.goal_probability[n])}


def _references(model, environment, config) -> dict:
    """Exact worth of the optimal policy over the episode, and of the behaviour policy with its own probabilities."""
    if model is None:
        return {"optimal": {"exact": None}, "behavior": {"exact": None}}
    horizon = environment.spec.max_episode_steps
    optimal = backward_induction(model, horizon).evaluation
    behavior = None
    if isinstance(environment.unwrapped, envs.SafetyCriticalGridWorld) and config.dataset is None:
        policy = envs.safe_behavior_policy(environment, config.epsilon)
        behavior = _exact_entry(evaluate_policies(model, policy[None], horizon=horizon), 0)
    return {"optimal": {"exact": {"return": optimal.returns, "hazard_probability": optimal.hazard_probability,
                                  "goal_probability": optimal.goal_probability}},
            "behavior": {"exact": behavior}}


def _value_estimate(policy: Policy, dataset: OfflineDataset) -> float | None:
    """``max_a Q(s0, a)``, averaged over the first observations of the data's episodes; None for BC."""
    if policy.algorithm == "bc":
        return None
    return float(policy.q_values(dataset.observations[dataset.episode_starts]).max(-1).mean(dtype=np.float64))


def table(evaluation: dict) -> str:
    """The evaluation as text: a row a member, exact beside rollout, references below."""
    columns = ["policy", "alpha", "seed", "data", "return", "hazard", "goal", "true V", "V estimate", "rollout return",
               "hazard", "goal", "mismatch", "unsupported"]
    rows = []
    for entry in evaluation["members"]:
        exact, rollout = entry["exact"] or {}, entry["rollout"] or {}
        spread = rollout.get("return_std")
        rows.append([entry["algorithm"].upper(), _number(entry["alpha"], "g"), str(entry["seed"]), str(entry["data_seed"]),
                     _number(exact.get("return"), ".2f"), _number(exact.get("hazard_probability"), ".3f"),
                     _number(exact.get("goal_probability"), ".3f"), _number(exact.get("discounted_value"), ".2f"),
                     _number(entry["value_estimate"], ".2f"),
                     _number(rollout.get("return_mean"), ".2f") + (f" ± {spread:.1f}" if spread is not None else ""),
                     _number(rollout.get("hazard_rate"), ".3f"), _number(rollout.get("goal_rate"), ".3f"),
                     _number(entry["action_mismatch_rate"], ".3f"), _number(rollout.get("unsupported_action_rate"), ".3f")])
        if entry["diverged"]:
            rows[-1][-1] += f"  DIVERGED ({entry['diverged']['reason']}, since update {entry['diverged']['since']:,})"
    for name, reference in evaluation["references"].items():
        exact = reference["exact"]
        if exact is not None:
            rows.append([name, "", "", "", _number(exact["return"], ".2f"), _number(exact["hazard_probability"], ".3f"),
                         _number(exact["goal_probability"], ".3f"), *[""] * 7])
    widths = [max(len(row[n].partition("  DIVERGED")[0]) for row in [columns, *rows]) for n in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths)))
             for row in [columns, *rows]]
    left = sum(widths[:4]) + 2 * 4
    heading = " " * left + "exact".ljust(sum(widths[4:8]) + 2 * 4) + " " * (widths[8] + 2) + (
        f"rollouts ({evaluation['rollout_episodes']} episodes)" if any(e["rollout"] for e in evaluation["members"]) else "")
    notes = []
    if evaluation["environment"] is None:
        notes = ["No environment: nothing exact can be said, and there are no rollouts."]
    elif evaluation["references"]["optimal"]["exact"] is None:
        notes = ["The environment has no transition table: nothing exact can be said."]
    return "\n".join([heading.rstrip(), *(line.rstrip() for line in lines), *notes])


def _number(value, form: str) -> str:
    return "–" if value is None else format(value, form)
