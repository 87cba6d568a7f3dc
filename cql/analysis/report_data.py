"""What the report shows, as arrays and plain values: the run, its statistics, its exact solutions. Nothing is drawn here.

Axes: S state, A action, D data draw.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cql.analysis import alpha_maps
from cql.analysis.alpha_maps import Oracle
from cql.analysis.figure_data import Pictured, cross_entropy_floor, exact_values, pair_counts, shown_member
from cql.analysis.logged import behavior_policy, known_model, logged_model
from cql.analysis.results import Group, Population
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.diagnostics import greedy_policies
from cql.exact import phase
from cql.exact.oracle import CertificateError
from cql.members import Member
from cql.runs import RunError, RunFolder


@dataclass(frozen=True)
class Study:
    """A run with everything its report needs.

    Args:
        statistics, selection: content of ``statistics.json`` and ``selection.json``; the latter None without CQL members.
        oracles: the exact solutions by data seed; empty where there are none, and then `unsolved` says why.
    """

    pictured: Pictured
    population: Population
    statistics: dict
    selection: dict | None
    oracles: dict[int, Oracle]
    unsolved: str | None

    @classmethod
    def of(cls, run: RunFolder, statistics: dict, selection: dict | None) -> "Study":
        pictured, population = Pictured.of(run), Population.of(run)
        try:
            oracles, unsolved = solve_draws(pictured, population.alphas), None
        except (RunError, DatasetError, ConfigError, CertificateError, ValueError) as error:
            oracles, unsolved = {}, str(error)
        return cls(pictured, population, statistics, selection, oracles, unsolved)

    @cached_property
    def q(self) -> dict[Member, np.ndarray]:
        """Of every CQL member that has a policy, Q in every state, ``[S, A]``; empty where states cannot be listed."""
        if self.pictured.inputs is None:
            return {}
        return {member: self.pictured.policy(member).q_values(self.pictured.inputs).astype(np.float64)
                for member in self.pictured.members if member.algorithm == "cql"}

    @cached_property
    def distances(self) -> dict[float, np.ndarray]:
        """By alpha, of every member: mean over its data of ``|Q - Q_oracle|``, ``[draws, seeds]``, NaN where not known."""
        config = self.pictured.config
        found = {alpha: np.full((config.num_datasets, config.num_seeds), np.nan) for alpha in self.population.alphas}
        for member, q in self.q.items():
            if (oracle := self.oracles.get(member.data_seed)) is not None:
                found[member.alpha][config.data_seeds.index(member.data_seed), config.seeds.index(member.seed)] = (
                    alpha_maps.distance(q, oracle.q[oracle.at(member.alpha)], oracle.counts, self.pictured.mdp.terminal))
        return found

    def oracle_mean(self, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The exact curve of a metric, ``(alphas [N], mean over the draws [N])``."""
        curves = [oracle.metrics[metric] for oracle in self.oracles.values()]
        if not curves or curves[0] is None:
            return None
        return next(iter(self.oracles.values())).alphas, np.mean(curves, axis=0)

    def entry(self, group: Group) -> dict | None:
        """What the statistics say of a group."""
        return next((e for e in self.statistics["groups"] if (e["algorithm"], e["alpha"]) == group), None)

    def mean(self, group: Group, metric: str) -> list | None:
        """[mean, low, high] of a group, low and high None where there is no interval; None where it is not known."""
        entry = self.entry(group)
        return entry["metrics"][metric] and entry["metrics"][metric]["mean"] if entry else None

    def levels(self, metric: str) -> dict[str, float]:
        """What a metric is held against: optimal, behaviour, floor -> value, where known."""
        evaluation, pictured = self.pictured.evaluation["references"], self.pictured
        exact = {name: evaluation[name]["exact"] for name in ("optimal", "behavior")}
        found = {name: values[metric] for name, values in exact.items() if values and values.get(metric) is not None}
        behavior = None if pictured.environment is None else behavior_policy(pictured.environment, pictured.config)
        if metric == "action_mismatch_rate" and behavior is not None and self.oracles:
            found["behavior"] = float(np.mean([1 - (behavior * oracle.counts).sum() / oracle.counts.sum()
                                               for oracle in self.oracles.values()]))
        if metric == "penalty" and pictured.inputs is not None and pictured.config.objective.is_cql_h:
            found["floor"] = float(np.mean([cross_entropy_floor(data) for data in pictured.datasets.values()]))
        return found


def solve_draws(pictured: Pictured, alphas) -> dict[int, Oracle]:
    """The exact side of every draw of a run at the alphas trained and between them.

    Raises:
        RunError, DatasetError, ConfigError, CertificateError, ValueError: nothing exact can be said; why, in one sentence.
    """
    config, mdp = pictured.config, known_model(pictured.environment)
    if config.penalty_threshold is not None:
        raise RunError("its members learned alpha, and each has a solution of its own: evaluate.py --audit holds it against that.")
    grid = alpha_maps.grid(alphas, mdp.num_states)
    found = {}
    for data_seed, dataset in pictured.datasets.items():
        empirical, counts = logged_model(dataset, pictured.environment, mdp)
        found[data_seed] = alpha_maps.solve(config.objective, mdp, empirical, counts, grid,
                                            pictured.environment.spec.max_episode_steps)
    return found


# ----------------------------------------------------------------------------------------------- the maps of one draw


@dataclass(frozen=True, eq=False)
class Shown:
    """One column of the map grid: policies of BC or of one alpha, first draw and seed. actions, true: ``[S]``; trained or
    exact may be None (a member without a policy, no exact side)."""

    group: Group
    trained: tuple[np.ndarray, np.ndarray] | None
    exact: tuple[np.ndarray, np.ndarray] | None


def shown_policies(study: Study) -> list[Shown]:
    """BC and every alpha: ``(greedy action, true value)`` of the trained policy and of the exact one (BC: by counts)."""
    pictured = study.pictured
    config, first = pictured.config, {}
    for member in pictured.members:
        if (member.seed, member.data_seed) == (config.seed, config.data_seed):
            first[member.algorithm, member.alpha] = member
    oracle = study.oracles.get(config.data_seed)
    found = []
    for group in study.population.groups:
        exact = trained = None
        if group in first:
            actions = pictured.policy(first[group]).act(pictured.inputs)
            trained = actions, _true(pictured, actions)
        if oracle is not None:
            actions = (phase.cloned_policy(oracle.counts).argmax(-1) if group[1] is None
                       else oracle.policies[oracle.at(group[1])].argmax(-1))
            exact = actions, (_true(pictured, actions) if group[1] is None else oracle.true[oracle.at(group[1])])
        found.append(Shown(group, trained, exact))
    return found


def _true(pictured: Pictured, actions) -> np.ndarray:
    values, _, _ = exact_values(pictured.mdp, actions[None], pictured.config.gamma,
                                pictured.environment.spec.max_episode_steps)
    return values[0]


# ------------------------------------------------------------------------------------------- the numbers of the slider


def slider_numbers(study: Study) -> dict | None:
    """All that the page's maps are drawn from: as many draws as fit into ``alpha_maps.BUDGET``, one at least.

    None where states are no cells of a grid, or nothing can be drawn over alpha.
    """
    pictured = study.pictured
    if pictured.board is None or not (study.q or study.oracles and study.population.alphas):
        return None
    board, horizon = pictured.board, pictured.environment.spec.max_episode_steps
    alphas = len(next(iter(study.oracles.values())).alphas) if study.oracles else 0
    policies = alphas + len(study.population.alphas) * pictured.config.num_seeds
    room = max(1, alpha_maps.BUDGET // (alpha_maps.CELL_BYTES * pictured.mdp.num_states * policies))
    return {"rows": board.shape[0], "columns": board.shape[1], "horizon": horizon, "gamma": pictured.config.gamma,
            **{name: np.flatnonzero(getattr(board, name)).tolist() for name in ("hazard", "goal", "terminal", "start")},
            "moves": board.moves.astype(int).tolist(), "alphas": study.population.alphas,
            "first": shown_member(pictured.members, "cql").alpha if study.q else study.population.alphas[0],
            "step": alpha_maps.SHOWN_PASSING, "scales": scales(study),
            "draws": [_draw_numbers(study, seed) for seed in pictured.config.data_seeds[:room]]}


def scales(study: Study) -> dict[str, dict]:
    """By quantity where its colours begin and end: by the exact sides where there are any, since a diverged network, worth as
    little everywhere, would leave all else one colour."""
    pictured, decided = study.pictured, ~study.pictured.mdp.terminal
    if study.oracles:
        true, estimate = (np.concatenate([getattr(oracle, name)[:, oracle.counts.any(-1) & decided].ravel()
                                          for oracle in study.oracles.values()]) for name in ("true", "estimate"))
    else:
        q = np.stack(list(study.q.values()))
        true, _, _ = exact_values(pictured.mdp, q.argmax(-1), pictured.config.gamma,
                                  pictured.environment.spec.max_episode_steps)
        true, estimate = true[:, decided].ravel(), q.max(-1)[:, decided].ravel()
    low, high = np.quantile(true, (0.05, 1.0))
    reach = max(float(np.quantile(np.abs(estimate - true), 0.98)), 1e-6)
    value = {"low": float(f"{low:.3g}"), "high": float(f"{max(high, low + 1e-3):.3g}"), "log": False}
    return {"true": value, "estimate": value,
            "difference": {"low": -float(f"{reach:.2g}"), "high": float(f"{reach:.2g}"), "log": False},
            "passing": {"low": 1e-3, "high": 1.0, "log": True}}


def _draw_numbers(study: Study, data_seed: int) -> dict:
    pictured, oracle = study.pictured, study.oracles.get(data_seed)
    mdp, config, horizon = pictured.mdp, pictured.config, pictured.environment.spec.max_episode_steps
    start = pictured.board.start / max(pictured.board.start.sum(), 1)
    members = [member for member in study.q if member.data_seed == data_seed]
    found = {"seed": data_seed, "exact": None, "trained": None}
    if oracle is not None:
        passing = alpha_maps.passing_probability(mdp, oracle.policies, horizon)
        found["exact"] = {"alphas": [alpha if alpha in study.population.alphas else alpha_maps.rounded(alpha)[0]
                                     for alpha in oracle.alphas.tolist()],
                          **alpha_maps.side(oracle.policies, oracle.estimate, oracle.true, passing),
                          **_numbers({"return": oracle.metrics["return"], "hazard": oracle.metrics["hazard_probability"],
                                      "estimateAtStart": oracle.metrics["value_estimate"],
                                      "trueAtStart": oracle.metrics["discounted_value"]})}
    if members:
        q = np.stack([study.q[member] for member in members])
        policies = greedy_policies(q.argmax(-1), mdp.num_actions)
        true, _, _ = exact_values(mdp, q.argmax(-1), config.gamma, horizon)
        entries = {(e["alpha"], e["seed"]): e for e in pictured.evaluation["members"]
                   if e["algorithm"] == "cql" and e["data_seed"] == data_seed}
        mine = [entries[member.alpha, member.seed] for member in members]
        passing = alpha_maps.passing_probability(mdp, policies, horizon)
        found["trained"] = {
            "alphas": [member.alpha for member in members], "seeds": [member.seed for member in members],
            "diverged": [e["diverged"]["reason"] if e["diverged"] else None for e in mine],
            **alpha_maps.side(policies, q.max(-1), true, passing),
            **_numbers({"return": [e["exact"]["return"] for e in mine],
                        "hazard": _known([e["exact"]["hazard_probability"] for e in mine]),
                        "estimateAtStart": [e["value_estimate"] for e in mine], "trueAtStart": true @ start})}
    return {**found, "logged": alpha_maps.support(pair_counts(pictured.datasets[data_seed], pictured.inputs))}


def _numbers(columns: dict) -> dict:
    return {name: None if values is None else alpha_maps.rounded(values) for name, values in columns.items()}


def _known(values: list) -> list | None:
    return None if None in values else values
