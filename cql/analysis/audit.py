"""The audit of a trained run: what every network learned, state by state, beside the exact solution of its own loss.

Four exact tables stand beside the learned Q of a member, all discounted over an infinite horizon: Q_exact, the solution
of its own loss on its own data (at alpha = 0 the limit alpha -> 0+; one certified solution for the Huber loss, where it
need not be unique); Q*_support on the data's model and on the true one, the best that logged actions alone can do;
Q^pi, the true value of the member's own greedy policy; and Q*, the optimum over all actions. On logged pairs they split
the member's error into four parts that add up exactly:

    Q - Q^pi = [Q - Q_exact] optimisation + [Q_exact - Q*_support,data] conservatism
             + [Q*_support,data - Q*_support,true] sampling + [Q*_support,true - Q^pi] policy

Data say nothing of OOD actions (never logged in their state): the error there is reported apart, as generalisation. A
state without data has value 0 in Q_exact and Q*_support but not in Q^pi; the difference is part of `policy`.

Axes: N member, S state, A action. float64. "oracle" in a key of audit.json is the exact solution, "draw" a data set.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import envs
from cql import exact
from cql.analysis.evaluation import divergence, final_alphas, load_policy
from cql.cloned import cloned_episodes
from cql.dataset import OfflineDataset
from cql.errors import RunError
from cql.exact import ROUNDING, settled_actions, settled_policy
from cql.losses import Objective
from cql.members import all_members
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.text import aligned, number
from cql.world import World, exact_solution, pair_counts

TERMS = ("optimisation", "conservatism", "sampling", "policy")
MAX_DETAILED, MAX_DETAILED_STATES = 6, 20_000  # members with per-state arrays, and states of all of them together
SHOWN_ALPHA = 6.0  # the members nearest to the default alpha get per-state arrays first
CLEAR = 0.01  # the best action is clear if it leads the next one by more than this share of the Q range


def decomposition(q, exact, support_data, support_true, true) -> dict[str, np.ndarray]:
    """The four parts of Q - Q^pi on logged pairs, by `TERMS`; arrays of one shape, finite values."""
    return dict(zip(TERMS, (q - exact, exact - support_data, support_data - support_true, support_true - true)))


def needed_share(gain, alpha_half) -> np.ndarray:
    """Of two logged actions, the share above which the safe one is greedy.

    With fixed targets, an action whose target is higher by `gain` > 0 is preferred over the other iff
    gain > (alpha_half / 2) (1 / share - 1 / (1 - share)): solved for the share. Broadcasts.
    """
    gain, alpha_half = np.asarray(gain, dtype=np.float64), np.asarray(alpha_half, dtype=np.float64)
    k = np.divide(2 * gain, alpha_half, out=np.full(np.broadcast(gain, alpha_half).shape, np.inf), where=alpha_half > 0)
    share = 2 / (np.abs(k) + 2 + np.sqrt(k ** 2 + 4))
    return np.where(k >= 0, share, 1 - share)


def hazard_entering(world: World) -> np.ndarray:
    """``[S, A]`` bool: actions meant to enter a hazard; outside the GridWorld, those that probably do."""
    mdp = world.mdp
    if mdp.hazard is None:
        return np.zeros((mdp.num_states, mdp.num_actions), dtype=bool)
    grid = world.environment.unwrapped
    if isinstance(grid, envs.SafetyCriticalGridWorld):
        enters = mdp.hazard[envs.gridworld.intended_cells(grid.shape)]
    else:
        enters = np.where(mdp.hazard[mdp.next_state], mdp.probability, 0).sum(-1) > 0.5
    return enters & ~mdp.terminal[:, None]


class ExactTables:
    """The exact tables of one data set, shared by all members trained on it.

    ``logged [S, A]`` and ``seen [S]`` say where there are data; ``weights`` and ``beta [S, A]`` are the share of each
    logged pair in the data, and in its state; ``solutions`` and ``certificates`` belong to Q_exact, by alpha.

    Raises:
        RunError: there is no model or no exact solution, or gamma is 1. DatasetError: data of another environment.
    """

    def __init__(self, dataset: OfflineDataset, world: World, objective: Objective, alphas: Iterable[float]):
        mdp, gamma = world.known().mdp, objective.gamma
        if gamma == 1:
            raise RunError("the run has gamma 1, where the exact solution of CQL need not exist: "
                           "an audit needs gamma below 1.")
        self.world, self.mdp, self.gamma, self.objective = world, mdp, gamma, objective
        self.empirical, self.counts = world.empirical(dataset)
        self.logged = (self.counts > 0) & ~mdp.terminal[:, None]
        self.seen = self.logged.any(-1)
        self.weights = np.where(self.logged, self.counts, 0) / self.counts[self.logged].sum()
        self.beta = exact.empirical_policy(np.where(self.logged, self.counts, 0))
        self.start = exact.start_distribution(mdp)
        self.optimal = exact.value_iteration(mdp, gamma)
        self.support_data = exact.alpha_zero_limit(self.empirical, self.counts, gamma)
        self.support_true = exact.alpha_zero_limit(mdp, self.counts, gamma)
        self.enters_hazard = hazard_entering(world)
        self.solutions, self.certificates = {}, {}
        if alphas := sorted(set(alphas)):
            solution = exact_solution(objective, self.empirical, self.counts, alphas, strict=False)
            self.solutions = dict(zip(alphas, solution.q))
            self.certificates = {alpha: {"residual": float(residual), "certified": bool(certified)} for
                                 alpha, residual, certified in zip(alphas, solution.residual, solution.certified)}
        if 0 in self.solutions and objective.td_loss != "huber":
            # the limit alpha -> 0+ is Q*_support itself, so that no conservatism is left
            # (the Huber loss has a limit of its own, a location of the targets that is not their mean)
            self.solutions[0] = self.support_data

    def states(self) -> dict[str, np.ndarray]:
        """Per-state arrays that all members share."""
        return {"counts": self.counts, "optimal_value": exact.state_value(self.optimal), "q_optimal": self.optimal,
                "q_support_data": np.where(self.logged, self.support_data, np.nan),
                "q_support_true": np.where(self.logged, self.support_true, np.nan)}

    def outcomes(self, policies) -> list[dict]:
        """Exact return and hazard probability over an episode, of policies ``[N, S, A]``."""
        result = exact.evaluate_policies(self.mdp, policies, horizon=self.world.horizon)
        hazards = [None] * len(policies) if result.hazard_probability is None else result.hazard_probability.tolist()
        return [{"return": value, "hazard_probability": p} for value, p in zip(result.returns.tolist(), hazards)]


def audit_cql(tables: ExactTables, q, alpha: float) -> tuple[dict, dict]:
    """The audit of one CQL member: (summaries, per-state arrays).

    Args:
        q: ``[S, A]``, the network's Q. alpha: in the units of the member's loss.
    """
    logged, seen, weights = tables.logged, tables.seen, tables.weights
    solution, visits = tables.solutions[alpha], weights.sum(-1)
    on_support = np.where(logged, solution, -np.inf)
    actions, exact_actions = q.argmax(-1), settled_actions(on_support)
    chosen = np.arange(len(q)), actions
    policy = exact.deterministic_policies(actions[None], q.shape[-1])[0]
    true_value, q_true = exact.policy_evaluation(tables.mdp, policy, tables.gamma)
    value, exact_value = q.max(-1), exact.state_value(solution)
    q_tables = (q, solution, tables.support_data, tables.support_true, q_true)
    parts = decomposition(*(table[logged] for table in q_tables)) | {"total": (q - q_true)[logged]}
    q_range = max(float(np.ptp(solution[logged])), 1e-12)
    distance = np.abs(parts["optimisation"])
    mean, largest = float(weights[logged] @ distance), float(distance.max())
    agree = _is_greedy(on_support, actions)[seen]
    clear = _leads_by(on_support, CLEAR * q_range)[seen]
    p, ood = exact.softmax(q / tables.objective.reward_scale), ~logged & seen[:, None]
    ood_mass = np.where(ood, p, 0.0).sum(-1)
    below = (p[chosen] < tables.beta[chosen]) & seen
    error, ood_errors = (value - true_value)[seen], (q - q_true)[ood]
    network, best = tables.outcomes(np.stack([policy, settled_policy(on_support)]))
    summary = {
        "oracle": {**tables.certificates[alpha], "q_range": q_range, **best},
        "network": network,
        "distance": {"mean": mean, "max": largest, "mean_share": mean / q_range, "max_share": largest / q_range},
        "greedy_as_oracle": float(agree.mean()), "greedy_as_oracle_where_clear": _mean(agree[clear]),
        "clear_states": int(clear.sum()),
        "start": _at_start(tables, q_tables, actions, {
            "value_estimate": value, "oracle_value": exact_value, "true_value": true_value,
            "optimal_value": exact.state_value(tables.optimal)}),
        "decomposition": {name: {"mean": float(weights[logged] @ part)} for name, part in parts.items()},
        "generalisation": {"pairs": {"number": int(ood.sum()), "mean": _mean(ood_errors[np.isfinite(ood_errors)])},
                           "states_choosing_unlogged": int(ood[chosen].sum())},
        "overestimates": {"states": int((error > 0).sum()), "of": int(seen.sum()), "largest": float(error.max())},
        "p_below_beta": {"states": int(below.sum()), "of": int(seen.sum())},
        "ood_mass": {"mean": float(visits @ ood_mass), "max": float(ood_mass.max())},
        "hazard": hazard_certificate(tables, alpha, actions, exact_actions)}
    states = {"value": value, "oracle_value": np.where(seen, exact_value, np.nan), "true_value": true_value,
              "action": actions, "oracle_action": np.where(seen, exact_actions, -1), "p_greedy": p[chosen],
              "beta_greedy": tables.beta[chosen], "ood_mass": np.where(seen, ood_mass, np.nan),
              "q": q, "q_oracle": np.where(logged, solution, np.nan), "q_true": q_true}
    return summary, states


def _is_greedy(q, actions) -> np.ndarray:
    """``[S]`` bool: whether these actions are greedy in q ``[S, A]``, or tie with the greedy one up to rounding."""
    q = np.where(np.isneginf(q).all(-1, keepdims=True), 0.0, q)
    return q[np.arange(len(q)), actions] >= q.max(-1) - ROUNDING * (1 + np.abs(q[np.isfinite(q)]).max())


def _leads_by(q, gap) -> np.ndarray:
    """``[S]`` bool: whether the best action leads the next one by more than `gap`; a single one always does."""
    ordered = np.sort(q, axis=-1)
    second = ordered[:, -2:-1].max(-1, initial=-np.inf)
    return np.isneginf(second) | (ordered[:, -1] > second + gap)


def _at_start(tables, q_tables, actions, values) -> dict:
    """Means over start states of values ``[S]``, and the parts of V - V^pi if every greedy action there was logged."""
    states = np.flatnonzero(tables.start)
    start, pairs, parts = tables.start[states], (states, actions[states]), None
    if tables.logged[pairs].all():
        parts = {name: float(start @ part)
                 for name, part in decomposition(*(table[pairs] for table in q_tables)).items()}
    return {**{name: float(tables.start @ value) for name, value in values.items()}, "decomposition": parts}


def _mean(x) -> float | None:
    return float(np.mean(x)) if np.size(x) else None


def hazard_certificate(tables: ExactTables, alpha: float, actions, exact_actions) -> dict:
    """The states where a logged action that is meant to enter a hazard is greedy, in the exact solution or the network.

    Each has the share of the best safe logged action out of the two, and the share it would have needed by
    `needed_share` with the targets of the exact solution; None for both in a state without a safe logged action.
    """
    danger = tables.enters_hazard & tables.logged  # [S, A]
    states = np.arange(len(danger))
    by_exact, by_network = danger[states, exact_actions], danger[states, actions]
    target = exact.bellman_backup(tables.empirical, exact.state_value(tables.solutions[alpha]), tables.gamma)  # [S, A]
    entries = []
    for s in np.flatnonzero(by_exact | by_network):
        taken = exact_actions[s] if by_exact[s] else actions[s]
        entry: dict = {"state": int(s), "hazard_action": int(taken),
                       "by_oracle": bool(by_exact[s]), "by_network": bool(by_network[s]),
                       "safe_action": None, "safe_share": None, "needed_share": None}
        safe = tables.logged[s] & ~danger[s]
        if safe.any():
            best = int(exact.greedy_actions(np.where(safe, target[s], -np.inf)))
            entry["safe_action"] = best
            entry["safe_share"] = float(tables.beta[s, best] / (tables.beta[s, best] + tables.beta[s, taken]))
            if tables.objective.solved_as_cql_h and tables.objective.td_loss != "huber":  # else the formula is another
                alpha_half = float(exact.half_square_alpha(alpha, tables.objective.td_loss))
                alpha_half *= tables.objective.reward_scale  # in the units of the data
                entry["needed_share"] = float(needed_share(target[s, best] - target[s, taken], alpha_half))
        entries.append(entry)
    return {"states_with_logged_hazard_action": int(danger.any(-1).sum()), "states_by_oracle": int(by_exact.sum()),
            "states_by_network": int(by_network.sum()), "states": entries}


def audit_bc(tables: ExactTables, p, cloned) -> dict:
    """The audit of one BC member: its probabilities p ``[S, A]`` against the counts of what it clones.

    No data say what it does in other states; ``unseen_visits`` is the expected share of its steps that are there.

    Args:
        cloned: ``[S, A]``, how often the episodes that it clones have each pair.
    """
    logged = (cloned > 0) & ~tables.mdp.terminal[:, None]
    beta, seen = exact.empirical_policy(np.where(logged, cloned, 0)), logged.any(-1)
    visits = np.where(logged, cloned, 0).sum(-1) / cloned[logged].sum()
    by_counts = np.where(logged, beta, -np.inf)
    ratio = np.divide(beta, np.maximum(p, 1e-300), out=np.ones_like(beta), where=logged)
    divergence = np.maximum((beta * np.log(ratio)).sum(-1), 0)  # KL(beta || p), [S]; rounding could make it negative
    variation = np.abs(p - beta).sum(-1)[seen] / 2
    agree = (p.argmax(-1) == exact.greedy_actions(by_counts))[seen]
    policies = np.stack([exact.deterministic_policies(p.argmax(-1)[None], p.shape[-1])[0],
                         exact.greedy_policy(by_counts)])
    network, counted = tables.outcomes(policies)
    steps = exact.expected_visits(tables.mdp, policies[:1], horizon=tables.world.horizon)[0]
    return {"kl_mean": float(visits @ np.where(seen, divergence, 0.0)), "kl_max": float(divergence[seen].max()),
            "total_variation_mean": float(visits[seen] @ variation), "total_variation_max": float(variation.max()),
            "ood_mass": float(visits[seen] @ np.where(logged, 0.0, p).sum(-1)[seen]),
            "greedy_as_counts": float(agree.mean()), "of": int(seen.sum()),
            "unseen_visits": float(steps[~seen].sum() / max(steps.sum(), 1e-300)),
            "network": network, "by_counts": counted}


def audit_policy(tables: ExactTables, policy: Policy, final_alpha: float | None,
                 cloned: OfflineDataset) -> tuple[dict, dict]:
    """The audit of one member: (summaries, per-state arrays; BC has none).

    Args:
        final_alpha: the weight that a CQL member ended with. cloned: what BC is trained on.
    """
    inputs = tables.world.inputs
    if policy.algorithm == "bc":
        return audit_bc(tables, policy.probabilities(inputs).astype(np.float64), pair_counts(cloned, inputs)), {}
    summary, states = audit_cql(tables, policy.q_values(inputs).astype(np.float64), final_alpha)
    return {"final_alpha": final_alpha, **summary}, states


def audit(run: RunFolder) -> dict:
    """The audit of every member of a run: the content of ``audit.json``.

    At most `MAX_DETAILED` members have per-state arrays (fewer on large maps): of the first data and training seed
    first, by the distance of alpha from 6. Numbers that do not exist (an OOD action in the exact solution) are null.

    Raises:
        RunError: a file of the run is missing or damaged, there is no model to compare with, or gamma is 1.
        DatasetError: the data are of another environment. ConfigError: their environment cannot be made.
    """
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    world = World.of(datasets[config.data_seed]).known()
    without_policy = {name for name, entry in divergence(run).items() if entry["reason"] == "not finite"}
    members = [member for member in all_members(config) if member.name not in without_policy]
    cql = sorted((member for member in members if member.algorithm == "cql"),
                 key=lambda member: (member.data_seed, member.seed, abs(member.alpha - SHOWN_ALPHA)))
    detailed = cql[:min(MAX_DETAILED, max(1, MAX_DETAILED_STATES // world.mdp.num_states))]
    entries, data_sets, alphas = {}, {}, final_alphas(run)
    if unknown := [member.name for member in cql if member.name not in alphas]:
        raise RunError(f"{run.path}/metrics.csv does not say with which alpha {unknown[0]} ended.")
    for data_seed, dataset in datasets.items():
        trained = [member for member in members if member.data_seed == data_seed]
        final = {alphas[member.name] for member in cql if member.data_seed == data_seed}
        cloned = cloned_episodes(config, dataset, world)
        tables = ExactTables(dataset, world, config.objective, final)
        shown = any(member in detailed for member in trained)
        data_sets[str(data_seed)] = {
            "logged_pairs": int(tables.logged.sum()), "states_with_data": int(tables.seen.sum()),
            "states_without_data": int((~tables.seen & ~world.mdp.terminal).sum()),
            "transitions": int(tables.counts.sum()), "misfit": world.misfit_of_given(dataset, config),
            "states": _plain_lists(tables.states()) if shown else None}
        for member in trained:
            policy = load_policy(run, member, dataset)
            summary, states = audit_policy(tables, policy, alphas.get(member.name), cloned)
            entries[member] = {**vars(member), **summary}
            if member.algorithm == "cql":
                entries[member]["states"] = _plain_lists(states) if member in detailed else None
    return {"environment": datasets[config.data_seed].environment, "gamma": config.gamma,
            "td_loss": config.td_loss, "penalty_threshold": config.penalty_threshold, "double_q": config.double_q,
            "bc": config.bc_name, "hidden": list(config.hidden), "steps": config.steps, "horizon": world.horizon,
            "draws": data_sets, "cells": world.state_names, "action_names": world.action_names,
            "members": [entries[member] for member in members]}


def _plain_lists(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    """Nested lists with seven significant digits, NaN and infinities as None."""
    def plain(array):
        if array.ndim > 1:
            return [plain(row) for row in array]
        if np.issubdtype(array.dtype, np.integer):
            return array.tolist()
        return [float(f"{x:.7g}") if math.isfinite(x) else None for x in array.tolist()]
    return {name: plain(array) for name, array in arrays.items()}


# ------------------------------------------------------------------------------------------------------------ the text

Members = list[dict]  # entries of audit.json that share a row of a table
Column = tuple[str, str, str | Callable[[Members], Any]]  # heading, format, path of keys or function of the members


def text(audit: dict) -> str:
    """The audit for the terminal: a row per alpha, with means over its members."""
    rows, bc = by_alpha(audit), [entry for entry in audit["members"] if entry["algorithm"] == "bc"]
    tables = [_start_table(rows), _distance_table(rows), _error_table(rows), _hazard_table(audit, rows)] if rows else []
    if bc:
        tables.append(_bc_table(audit["bc"], bc))
    return "\n".join([_heading(audit), *(line for table in tables for line in ("", *table))])


def by_alpha(audit: dict) -> list[Members]:
    """The CQL members in groups of one alpha, rising."""
    cql = [entry for entry in audit["members"] if entry["algorithm"] == "cql"]
    return [[entry for entry in cql if entry["alpha"] == alpha] for alpha in sorted({entry["alpha"] for entry in cql})]


def _heading(audit) -> str:
    first, *further = audit["draws"].values()
    network = "x".join(map(str, audit["hidden"])) or "linear"
    learned = ", alpha learned from the one shown (the exact solution is that of final_alpha)"
    return (f"AUDIT   gamma {audit['gamma']:g}, loss {audit['td_loss']}{', double Q' * audit['double_q']}"
            f"{learned * (audit['penalty_threshold'] is not None)}, {network} network, {audit['steps']:,} updates; "
            f"{first['states_with_data']} states with data, {first['logged_pairs']} logged pairs, "
            f"{first['states_without_data']} states without data"
            + f" (first of {len(audit['draws'])} data sets)" * bool(further)
            + (f"\nNOTE: {first['misfit']}" if first["misfit"] else ""))


def _table(title: str, rows: list[Members], columns: list[Column], *notes: str) -> list[str]:
    """A title, a line per row, the notes."""
    cells = [[number(value, form) for value, (_, form, _) in zip(line, columns)] for line in values(rows, columns)]
    lines = aligned([[heading for heading, _, _ in columns], *cells], left=())
    return [title, *("  " + line for line in (*lines, *notes))]


def values(rows: list[Members], columns: list[Column]) -> list[list]:
    """The numbers of a table, a list for every row; None where a member has none."""
    return [[read(row) if callable(read) else _mean_over(row, read) for _, _, read in columns] for row in rows]


def _mean_over(row: Members, path: str) -> float | None:
    """Mean over members of a nested number, its keys separated by dots; None if a member has none."""
    values: list[Any] = []
    for value in row:
        for key in path.split("."):
            value = None if value is None else value[key]
        values.append(value)
    return None if None in values else float(np.mean(values))


def _start_error(row: Members) -> float:
    return float(np.mean([entry["start"]["value_estimate"] - entry["start"]["true_value"] for entry in row]))


AT_START: list[Column] = [
    ("alpha", "g", "alpha"), ("members", "d", len), ("learned V", ".2f", "start.value_estimate"),
    ("exact V", ".2f", "start.oracle_value"), ("true V", ".2f", "start.true_value"),
    ("V*", ".2f", "start.optimal_value"), ("error", "+.2f", _start_error),
    *((f"{'+' if n else '='} {term}", "+.2f", f"start.decomposition.{term}") for n, term in enumerate(TERMS))]
EVERYWHERE: list[Column] = [
    ("alpha", "g", "alpha"), *((name, "+.2f", f"decomposition.{key}.mean") for name, key in (
        ("error", "total"), *zip(TERMS, TERMS))),
    ("V too high", ".0f", "overestimates.states"), ("of", ".0f", "overestimates.of"),
    ("by up to", "+.1f", "overestimates.largest"), ("p<beta", ".0f", "p_below_beta.states"),
    ("mass", ".4f", "ood_mass.mean"), ("chosen", ".0f", "generalisation.states_choosing_unlogged"),
    ("error there", "+.1f", "generalisation.pairs.mean")]


def _start_table(rows) -> list[str]:
    no_parts = ["–: a greedy action at the start is OOD; then the error is generalisation and has no parts."]
    return _table(
        "1. The value at the start (discounted), and why the learned one is off", rows, AT_START,
        "true V: of the learned greedy policy; V*: the optimum. error: learned V - true V, positive if it is too high.",
        "optimisation: network - exact solution; conservatism: what alpha (with Huber, the loss too) does to it;",
        "sampling: the data's model for the true one; policy: its loss against the best that logged actions allow.",
        *no_parts * any(entry["start"]["decomposition"] is None for row in rows for entry in row))


def _distance_table(rows) -> list[str]:
    uncertain = ", ".join(f"{row[0]['alpha']:g}" for row in rows if not all(e["oracle"]["certified"] for e in row))
    return _table(
        "2. How far the network is from the exact solution of its own loss", rows,
        [("alpha", "g", "alpha"), ("|Q-exact|", ".3g", "distance.mean"), ("max", ".3g", "distance.max"),
         ("of range", ".2%", "distance.mean_share"), ("max", ".2%", "distance.max_share"),
         ("same greedy", ".1%", "greedy_as_oracle"), ("where clear", ".1%", "greedy_as_oracle_where_clear"),
         ("return", ".2f", "network.return"), ("exact's", ".2f", "oracle.return"),
         ("hazard", ".4f", "network.hazard_probability"), ("exact's", ".4f", "oracle.hazard_probability"),
         ("residual", ".0e", lambda row: max(entry["oracle"]["residual"] for entry in row))],
        "Distances: on logged pairs, mean over the data; range: of the exact Q there. same greedy: states whose",
        f"greedy action is the exact one; where clear: only those where it leads by over {CLEAR:.0%} of the range.",
        "return, hazard: exact, of the greedy policy over an episode. residual: certificate of the exact solution.",
        *[f"NOT CERTIFIED, so no exact solution to rely on: alpha = {uncertain}."] * bool(uncertain))


def _error_table(rows) -> list[str]:
    return _table(
        "3. Everywhere: the error of Q on logged pairs and its parts; where V is too high; OOD actions",
        rows, EVERYWHERE,
        "error: Q - true Q, mean over the data. V too high: states with data where learned V > true V.",
        "p<beta: states where softmax Q gives the greedy action less than the data do: a sign of local overestimation.",
        "mass: of softmax Q on OOD actions, mean over the data; chosen: states whose greedy action is OOD;",
        "error there: mean Q - true Q of the OOD actions of visited states (generalisation).")


def _hazard_table(audit, rows) -> list[str]:
    def shares(row):
        states, parts = row[0]["hazard"]["states"], []
        for entry in states[:3]:
            name = audit["cells"][entry["state"]] if audit["cells"] else f"state {entry['state']}"
            needed = "" if entry["needed_share"] is None else f" ({entry['needed_share']:.1%})"
            share = "no safe one" if entry["safe_share"] is None else f"{entry['safe_share']:.1%}{needed}"
            parts.append(f"{name} {'e' * entry['by_oracle']}{'n' * entry['by_network']} {share}")
        return "; ".join(parts + [f"{len(states) - 3} more"] * (len(states) > 3)) or "–"

    title = "4. Hazard certificate: logged actions meant to enter a hazard that became the greedy ones"
    if not any(entry["hazard"]["states_with_logged_hazard_action"] for row in rows for entry in row):
        return [title,
                "  No logged action is meant to enter a hazard, so none is greedy in the exact solution at any alpha.",
                "  (Slips still enter hazards, and so does a network that prefers OOD actions: section 3, chosen.)"]
    return _table(
        title, rows,
        [("alpha", "g", "alpha"), ("states with one", ".0f", "hazard.states_with_logged_hazard_action"),
         ("exact's", ".0f", "hazard.states_by_oracle"), ("network's", ".0f", "hazard.states_by_network"),
         ("safe share (needed), first member", "", shares)],
        "exact's, network's: states where such an action is greedy in the exact solution (e), in the network (n).",
        "safe share: of the best safe logged action, out of it and the hazard action; needed: by the formula for two",
        "actions and fixed targets.")


def _bc_table(name: str, bc) -> list[str]:
    return _table(
        f"{name} against its own optimum, BC by counts", [[entry] for entry in bc[:12]],
        [("seed", ".0f", "seed"), ("data", ".0f", "data_seed"), ("KL(beta||p)", ".5f", "kl_mean"),
         ("mean TV", ".4f", "total_variation_mean"), ("max TV", ".3f", "total_variation_max"),
         ("OOD mass", ".4f", "ood_mass"), ("same greedy", ".1%", "greedy_as_counts"), ("of", ".0f", "of"),
         ("unseen", ".1%", "unseen_visits"),
         ("return", ".2f", "network.return"), ("counts'", ".2f", "by_counts.return"),
         ("hazard", ".4f", "network.hazard_probability"), ("counts'", ".4f", "by_counts.hazard_probability")],
        "KL: excess cross-entropy over the data cloned, in nats; TV: total variation distance per state of theirs.",
        "unseen: share of the policy's steps in states that are not in them; there BC by counts acts uniformly.",
        *[f"and {len(bc) - 12} more members in audit.json"] * (len(bc) > 12))
