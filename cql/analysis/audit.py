"""The audit of a trained run: what every network learned, state by state, beside what it should have learned.

Four exact tables stand beside the learned Q of a member, all discounted over an infinite horizon:

- Q_oracle: the fixed point of its own loss on its own data (`cql.exact.oracle`; at alpha = 0 the limit alpha -> 0+);
- Q*_support on the data's model and on the true one: the best that can be done with logged actions alone;
- Q^pi: the true value of the member's own greedy policy; and Q*, the optimum over all actions.

On logged pairs they split the member's error into four parts that add up exactly:

    Q - Q^pi = [Q - Q_oracle] optimisation + [Q_oracle - Q*_support,data] conservatism
             + [Q*_support,data - Q*_support,true] sampling + [Q*_support,true - Q^pi] policy

No data say anything of unlogged pairs: their error is reported apart, as generalisation. A state without data has value 0
in both support-restricted tables, as in the oracle, though not in Q^pi: what that makes is part of `policy`.

Axes: N member, S state, A action. float64. Double Q-learning has the same fixed point (at it, both networks agree). That of
the Huber loss need not be unique: there Q_oracle is one certified solution.
"""

import math

import gymnasium
import numpy as np

import envs
from cql.analysis.evaluation import divergence, final_alphas, load_policy
from cql.analysis.logged import grid_words, known_model, logged_model
from cql.collect import environment_of
from cql.config import Config
from cql.diagnostics import greedy_policies, state_inputs
from cql.exact.oracle import CertificateError, alpha_zero_limit, empirical_policy, half_square_alpha
from cql.exact.phase import ROUNDING, settled_actions, settled_policy
from cql.exact.tabular import (
    TabularMDP,
    bellman_backup,
    evaluate_policies,
    greedy_actions,
    greedy_policy,
    policy_evaluation,
    start_distribution,
    state_value,
    value_iteration,
)
from cql.losses import Objective
from cql.members import Member, all_members
from cql.policy import Policy
from cql.runs import RunError, RunFolder
from cql.world import exact_solution

TERMS = ("optimisation", "conservatism", "sampling", "policy")
MAX_DETAILED, MAX_DETAILED_STATES = 6, 20_000  # members with per-state arrays, and states of all of them together
SHOWN_ALPHA = 6.0  # these arrays go to the members nearest to the default first
CLEAR = 0.01  # a gap between actions is clear from this share of the Q range on


# --------------------------------------------------------------------------------------------------- pure computations


def decomposition(q, oracle, support_data, support_true, true) -> dict:
    """The four parts of Q - Q^pi on logged pairs, `TERMS` -> array of the arguments' shape; any shape, finite values."""
    return dict(zip(TERMS, (q - oracle, oracle - support_data, support_data - support_true, support_true - true)))


def needed_share(gain, alpha_half):
    """The share of the safe one of two logged actions above which it is the greedy one.

    With targets held fixed, an action whose target is higher by `gain` > 0 is preferred over the other iff
    gain > (alpha_half / 2) (1 / share - 1 / (1 - share)). Solved for the share: 2 / (k + 2 + sqrt(k^2 + 4)),
    k = 2 gain / alpha_half. 0 for alpha -> 0; at a gain of 0 a half. Broadcasts.
    """
    gain, alpha_half = np.asarray(gain, dtype=np.float64), np.asarray(alpha_half, dtype=np.float64)
    k = np.divide(2 * gain, alpha_half, out=np.full(np.broadcast(gain, alpha_half).shape, np.inf), where=alpha_half > 0)
    share = 2 / (np.abs(k) + 2 + np.sqrt(k ** 2 + 4))
    return np.where(k >= 0, share, 1 - share)


def hazard_entering(environment: gymnasium.Env, mdp: TabularMDP) -> np.ndarray:
    """[S, A] bool: actions meant to enter a hazard (elsewhere than in a grid of ours: that probably do).

    In the GridWorld the intended cell counts; in other tables a probability above a half."""
    if mdp.hazard is None:
        return np.zeros((mdp.num_states, mdp.num_actions), dtype=bool)
    grid = environment.unwrapped
    if isinstance(grid, envs.SafetyCriticalGridWorld):
        enters = mdp.hazard[envs.gridworld.intended_cells(grid.shape)]
    else:
        enters = np.where(mdp.hazard[mdp.next_state], mdp.probability, 0).sum(-1) > 0.5
    return enters & ~mdp.terminal[:, None]


def softmax(outputs) -> np.ndarray:
    """Over the last axis."""
    p = np.exp(outputs - outputs.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


class Exact:
    """The exact tables of one data draw, shared by all members trained on it."""

    def __init__(self, dataset, environment, mdp: TabularMDP, objective: Objective, alphas):
        gamma, td_loss = objective.gamma, objective.td_loss
        self.environment, self.mdp, self.gamma, self.td_loss = environment, mdp, gamma, td_loss
        self.empirical, self.counts = logged_model(dataset, environment, mdp)
        self.logged = (self.counts > 0) & ~mdp.terminal[:, None]  # [S, A]
        self.seen = self.logged.any(-1)  # [S]
        self.weights = np.where(self.logged, self.counts, 0) / self.counts[self.logged].sum()  # [S, A], sums to 1
        self.beta = empirical_policy(np.where(self.logged, self.counts, 0))
        self.start = start_distribution(mdp)
        self.optimal = value_iteration(mdp, gamma)  # Q*
        self.support_data = alpha_zero_limit(self.empirical, self.counts, gamma)
        self.support_true = alpha_zero_limit(mdp, self.counts, gamma)
        self.enters_hazard = hazard_entering(environment, mdp)
        alphas = sorted(set(alphas))
        self.oracle, self.residual, self.certified = {}, {}, {}
        if alphas:
            solution = exact_solution(objective, self.empirical, self.counts, alphas, strict=False)
            for n, alpha in enumerate(alphas):
                # the limit alpha -> 0+ is Q*_support itself, so that nothing is left for conservatism
                # (the Huber loss has a limit of its own, a location of the targets that is not their mean)
                self.oracle[alpha] = solution.q[n] if alpha > 0 or td_loss == "huber" else self.support_data
                self.residual[alpha] = float(solution.residual[n])
                self.certified[alpha] = bool(solution.certified[n])

    @classmethod
    def of(cls, dataset, environment, mdp: TabularMDP, config: Config, alphas) -> "Exact":
        """The tables of a draw of a run. Raises RunError where the fixed point of CQL need not exist, or was not found."""
        if config.gamma == 1:
            raise RunError("the run has gamma 1, where the fixed point of CQL need not exist: an audit needs gamma below 1.")
        try:
            return cls(dataset, environment, mdp, config.objective, alphas)
        except CertificateError as error:
            raise RunError(f"the oracle has no certified solution: {error}") from None

    def states(self) -> dict:
        """Per-state arrays that all members of the draw share."""
        return {"counts": self.counts, "optimal_value": state_value(self.optimal), "q_optimal": self.optimal,
                "q_support_data": np.where(self.logged, self.support_data, np.nan),
                "q_support_true": np.where(self.logged, self.support_true, np.nan)}

    def outcome(self, policies) -> list[dict]:
        """Exact return and hazard probability over an episode of policies [N, S, A]."""
        found = evaluate_policies(self.mdp, policies, horizon=self.environment.spec.max_episode_steps)
        return [{"return": float(found.returns[n]),
                 "hazard_probability": None if found.hazard_probability is None else float(found.hazard_probability[n])}
                for n in range(len(policies))]


def audit_cql(exact: Exact, q, alpha: float) -> tuple[dict, dict]:
    """One CQL member: (summaries, per-state arrays).

    Args:
        q: [S, A], what the network says in every state.
        alpha: in the units of its loss.
    """
    mdp, logged, seen, weights = exact.mdp, exact.logged, exact.seen, exact.weights
    oracle, visits = exact.oracle[alpha], weights.sum(-1)
    actions = np.argmax(q, axis=-1)  # [S]
    policy = greedy_policies(actions[None], mdp.num_actions)[0]
    value_true, q_true = policy_evaluation(mdp, policy, exact.gamma)
    value, oracle_value = q.max(-1), state_value(oracle)
    parts = decomposition(*(x[logged] for x in (q, oracle, exact.support_data, exact.support_true, q_true)))
    total = (q - q_true)[logged]
    span = max(float(np.ptp(oracle[logged])), 1e-12)
    distance = np.abs(parts["optimisation"])
    p = softmax(q)
    top = np.arange(len(q)), actions
    error = (value - value_true)[seen]
    oracle_actions = settled_actions(np.where(logged, oracle, -np.inf))
    agree = _as_good(np.where(logged, oracle, -np.inf), actions)[seen]
    clear = _clear(np.where(logged, oracle, -np.inf), CLEAR * span)[seen]
    unlogged = ~logged & seen[:, None]
    mass = np.where(unlogged, p, 0.0).sum(-1)
    below = (p[top] < exact.beta[top]) & seen
    network, best = exact.outcome(np.stack([policy, settled_policy(np.where(logged, oracle, -np.inf))]))
    summary = {
        "oracle": {"residual": exact.residual[alpha], "certified": exact.certified[alpha], "q_range": span, **best},
        "network": network,
        "distance": {"mean": float(weights[logged] @ distance), "max": float(distance.max()),
                     "mean_share": float(weights[logged] @ distance) / span, "max_share": float(distance.max()) / span},
        "greedy_as_oracle": float(agree.mean()), "greedy_as_oracle_where_clear": _mean(agree[clear]),
        "clear_states": int(clear.sum()),
        "start": _at_start(exact, q, actions, value, oracle_value, value_true, q_true, oracle),
        "decomposition": {name: {"mean": float(weights[logged] @ x), "mean_abs": float(weights[logged] @ np.abs(x)),
                                 "max_abs": float(np.abs(x).max())} for name, x in {**parts, "total": total}.items()},
        "generalisation": _generalisation((q - q_true)[unlogged], (unlogged[top] & seen), (value - value_true)[
            ~seen & ~mdp.terminal]),
        "overestimates": {"states": int((error > 0).sum()), "of": int(seen.sum()),
                          "share_of_visits": float(visits[seen] @ (error > 0)), "mean_error": float(visits[seen] @ error),
                          "largest": float(error.max())},
        "p_below_beta": {"states": int(below.sum()), "of": int(seen.sum()), "share_of_visits": float(visits @ below)},
        "ood_mass": {"mean": float(visits @ mass), "max": float(mass.max())},
        "hazard": hazard_certificate(exact, alpha, actions, oracle_actions)}
    states = {"value": value, "oracle_value": np.where(seen, oracle_value, np.nan), "true_value": value_true,
              "action": actions,
              "oracle_action": np.where(seen, oracle_actions, -1), "p_greedy": p[top], "beta_greedy": exact.beta[top],
              "ood_mass": np.where(seen, mass, np.nan),
              "q": q, "q_oracle": np.where(logged, oracle, np.nan), "q_true": q_true}
    return summary, states


def _as_good(q, actions) -> np.ndarray:
    """[S] bool: whether these actions are greedy in q [S, A], or tie with the greedy one up to rounding."""
    q = np.where(np.isneginf(q).all(-1, keepdims=True), 0.0, q)
    return q[np.arange(len(q)), actions] >= q.max(-1) - ROUNDING * (1 + np.abs(q[np.isfinite(q)]).max())


def _clear(q, gap) -> np.ndarray:
    """[S] bool: whether the best action leads the next one by more than `gap`; a single one always does."""
    ordered = np.sort(q, axis=-1)
    best, second = ordered[:, -1], ordered[:, -2] if q.shape[-1] > 1 else np.full(len(q), -np.inf)
    return np.isneginf(second) | (best > second + gap)


def _at_start(exact, q, actions, value, oracle_value, value_true, q_true, oracle) -> dict:
    """Values at the start; and V - V^pi there in parts, if the greedy action of every start state is a logged one."""
    start = exact.start
    found = {"value_estimate": float(start @ value), "oracle_value": float(start @ oracle_value),
             "true_value": float(start @ value_true), "optimal_value": float(start @ state_value(exact.optimal))}
    states = np.flatnonzero(start)
    pairs = states, actions[states]
    found["decomposition"] = None
    if exact.logged[pairs].all():
        parts = decomposition(*(x[pairs] for x in (q, oracle, exact.support_data, exact.support_true, q_true)))
        found["decomposition"] = {name: float(start[states] @ x) for name, x in parts.items()}
    return found


def _generalisation(error, chosen, nowhere) -> dict:
    """Errors Q - Q^pi where the data say nothing: unlogged actions of visited states, and states never visited."""
    def summary(x):
        return {"number": int(x.size), "mean": _mean(x), "largest": float(x.max()) if x.size else None,
                "smallest": float(x.min()) if x.size else None}
    return {"pairs": summary(error), "states_choosing_unlogged": int(chosen.sum()), "unvisited_states": summary(nowhere)}


def hazard_certificate(exact: Exact, alpha: float, actions, oracle_actions) -> dict:
    """The states where a logged action that is meant to enter a hazard is the greedy one, of the oracle or the network.

    Beside each: the share of the best safe logged action among the two, and the share it would have needed by
    `needed_share`, which holds for two actions and fixed targets (the oracle's). States without a safe logged action
    have None for both.
    """
    danger = exact.enters_hazard & exact.logged  # [S, A]
    every = np.arange(len(danger))
    by_oracle, by_network = danger[every, oracle_actions], danger[every, actions]
    backup = bellman_backup(exact.empirical, state_value(exact.oracle[alpha]), exact.gamma)  # y [S, A]
    alpha_half = float(half_square_alpha(alpha, exact.td_loss))
    found = []
    for s in np.flatnonzero(by_oracle | by_network):
        taken = oracle_actions[s] if by_oracle[s] else actions[s]
        safe = exact.logged[s] & ~danger[s]
        entry = {"state": int(s), "hazard_action": int(taken), "by_oracle": bool(by_oracle[s]),
                 "by_network": bool(by_network[s]), "safe_action": None, "safe_share": None, "needed_share": None}
        if safe.any():
            best = int(greedy_actions(np.where(safe, backup[s], -np.inf)))
            share = exact.beta[s, best] / (exact.beta[s, best] + exact.beta[s, taken])
            entry |= {"safe_action": best, "safe_share": float(share),
                      "needed_share": None if exact.td_loss == "huber" else float(  # of which there is no such formula
                          needed_share(backup[s, best] - backup[s, taken], alpha_half))}
        found.append(entry)
    return {"states_with_logged_hazard_action": int(danger.any(-1).sum()), "states_by_oracle": int(by_oracle.sum()),
            "states_by_network": int(by_network.sum()), "states": found}


def audit_bc(exact: Exact, p) -> dict:
    """One BC member: its probabilities p [S, A] against the counts; means over the data."""
    logged, beta, seen = exact.logged, exact.beta, exact.seen
    visits = exact.weights.sum(-1)
    ratio = np.divide(beta, np.maximum(p, 1e-300), out=np.ones_like(beta), where=logged)
    divergence = np.maximum((beta * np.log(ratio)).sum(-1), 0)  # KL(beta || p), [S]; rounding alone makes it negative
    variation = np.abs(p - beta).sum(-1)[seen] / 2
    counted = greedy_actions(np.where(logged, beta, -np.inf))
    agree = (p.argmax(-1) == counted)[seen]
    network, counts = exact.outcome(np.stack([greedy_policies(p.argmax(-1)[None], p.shape[-1])[0],
                                              greedy_policy(np.where(logged, beta, -np.inf))]))
    return {"kl_mean": float(visits @ np.where(seen, divergence, 0.0)), "kl_max": float(divergence[seen].max()),
            "total_variation_mean": float(visits[seen] @ variation), "total_variation_max": float(variation.max()),
            "ood_mass": float(visits[seen] @ np.where(logged, 0.0, p).sum(-1)[seen]),
            "greedy_as_counts": float(agree.mean()), "of": int(seen.sum()), "network": network, "by_counts": counts}


def audit_policy(exact: Exact, policy: Policy, inputs, final_alpha: float | None) -> tuple[dict, dict]:
    """One member of either kind: (summaries, per-state arrays; those of BC are none).

    Args:
        inputs: the observation of every state. final_alpha: the weight that a CQL member ended with.
    """
    if policy.algorithm == "bc":
        return audit_bc(exact, policy.probabilities(inputs).astype(np.float64)), {}
    summary, states = audit_cql(exact, policy.q_values(inputs).astype(np.float64), final_alpha)
    return {"final_alpha": final_alpha, **summary}, states


def _mean(x):
    return float(np.mean(x)) if np.size(x) else None


# ------------------------------------------------------------------------------------------------------ the whole run


def audit(run: RunFolder) -> dict:
    """Audits every member of a run; the result is the content of ``audit.json``.

    Per-state arrays go to at most `MAX_DETAILED` members (fewer on large maps): the first draw and training seed first, by
    the distance of alpha from 6. Numbers that do not exist (an unlogged pair of the oracle) are null.

    Raises:
        RunError: a file of the run is missing or damaged, there is no model to hold it against, or gamma is 1.
        DatasetError: the data are of another environment. ConfigError: their environment cannot be made.
    """
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    environment = environment_of(datasets[config.data_seed])
    mdp = known_model(environment)
    inputs = state_inputs(environment).numpy()
    lost = {name for name, found in divergence(run).items() if found["reason"] == "not finite"}  # they have no policy
    members = [member for member in all_members(config) if member.name not in lost]
    detailed = _detailed(members, mdp.num_states)
    entries, draws, alphas = {}, {}, final_alphas(run)
    if unknown := [m.name for m in members if m.algorithm == "cql" and m.name not in alphas]:
        raise RunError(f"{run.path}/metrics.csv does not say with which alpha {unknown[0]} ended.")
    for data_seed, dataset in datasets.items():
        mine = [member for member in members if member.data_seed == data_seed]
        exact = Exact.of(dataset, environment, mdp, config, {alphas[m.name] for m in mine if m.algorithm == "cql"})
        draws[str(data_seed)] = {"logged_pairs": int(exact.logged.sum()), "states_with_data": int(exact.seen.sum()),
                                 "states_without_data": int((~exact.seen & ~mdp.terminal).sum()),
                                 "transitions": int(exact.counts.sum()), "states": None}
        if any(member.data_seed == data_seed for member in detailed):
            draws[str(data_seed)]["states"] = {k: _plain(v) for k, v in exact.states().items()}
        for member in mine:
            summary, states = audit_policy(exact, load_policy(run, member, dataset), inputs, alphas.get(member.name))
            entries[member] = {**vars(member), **summary}
            if member.algorithm == "cql":
                entries[member]["states"] = {k: _plain(v) for k, v in states.items()} if member in detailed else None
    return {"environment": datasets[config.data_seed].metadata.get("environment"), "gamma": config.gamma,
            "td_loss": config.td_loss, "penalty_threshold": config.penalty_threshold, "double_q": config.double_q,
            "hidden": list(config.hidden), "steps": config.steps,
            "horizon": environment.spec.max_episode_steps, "draws": draws,
            "cells": grid_words(environment, mdp)[0], "action_names": grid_words(environment, mdp)[1],
            "members": [entries[member] for member in members]}


def _detailed(members: list[Member], num_states: int) -> list[Member]:
    limit = min(MAX_DETAILED, max(1, MAX_DETAILED_STATES // num_states))
    cql = [member for member in members if member.algorithm == "cql"]
    return sorted(cql, key=lambda m: (m.data_seed, m.seed, abs(m.alpha - SHOWN_ALPHA)))[:limit]


def _plain(array: np.ndarray):
    """Nested lists with seven significant digits, NaN and infinities as None."""
    if array.ndim > 1:
        return [_plain(row) for row in array]
    if np.issubdtype(array.dtype, np.integer):
        return array.tolist()
    return [float(f"{x:.7g}") if math.isfinite(x) else None for x in array.tolist()]


# ------------------------------------------------------------------------------------------------------------- the page


def text(audit: dict) -> str:
    """The audit as a page for the terminal: one line per alpha, means over its members."""
    cql = [entry for entry in audit["members"] if entry["algorithm"] == "cql"]
    bc = [entry for entry in audit["members"] if entry["algorithm"] == "bc"]
    lines = [_about(audit)]
    groups = {alpha: [e for e in cql if e["alpha"] == alpha] for alpha in sorted({e["alpha"] for e in cql})}
    if groups:
        lines += ["", *_start_page(groups), "", *_oracle_page(groups), "", *_error_page(groups), "",
                  *_hazard_page(audit, groups)]
    if bc:
        lines += ["", *_bc_page(bc)]
    return "\n".join(lines)


def _about(audit) -> str:
    draws = audit["draws"].values()
    first = next(iter(draws))
    network = "linear network" if not audit["hidden"] else "x".join(map(str, audit["hidden"])) + " network"
    more = f" (first of {len(draws)} draws)" if len(draws) > 1 else ""
    learned = "" if audit["penalty_threshold"] is None else ", alpha learned from the one shown (the oracle is that of final_alpha)"
    return (f"AUDIT   gamma {audit['gamma']:g}, loss {audit['td_loss']}{', double Q' if audit['double_q'] else ''}{learned}, {network}, "
            f"{audit['steps']:,} updates; {first['states_with_data']} states with data, {first['logged_pairs']} logged pairs, "
            f"{first['states_without_data']} states without data{more}")


def _over(entries, *path):
    """Mean over members of a nested number; None if a member has none."""
    values = []
    for entry in entries:
        for key in path:
            entry = None if entry is None else entry[key]
        values.append(entry)
    return None if any(value is None for value in values) else float(np.mean(values))


def _grid(title, heads, rows, notes=()) -> list[str]:
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    return [title, *("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in (heads, *rows)),
            *("  " + note for note in notes)]


def _cell(value, form=".2f") -> str:
    return "–" if value is None else format(value, form)


def _start_page(groups) -> list[str]:
    rows = [[f"{alpha:g}", str(len(group)), *(_cell(_over(group, "start", name)) for name in (
                "value_estimate", "oracle_value", "true_value", "optimal_value")),
             _cell(_over(group, "start", "value_estimate") - _over(group, "start", "true_value"), "+.2f"),
             *(_cell(_over(group, "start", "decomposition", term), "+.2f") for term in TERMS)]
            for alpha, group in groups.items()]
    notes = ["true V: of the learned greedy policy; V*: the optimum. error = learned V - true V, positive if it is too high.",
             "It is the sum of  optimisation: network - oracle, at the learned action;  conservatism: what alpha does to the fixed",
             "point (under Huber, what that loss does too);  sampling: the data's model for the true one;",
             "policy: what the learned policy loses against the best that logged actions allow."]
    if any(row[-1] == "–" for row in rows):
        notes.append("–: a greedy action at the start was never logged; then the error is generalisation and has no parts.")
    return _grid("1. The value at the start (discounted), and why the learned one is off",
                 ["alpha", "members", "learned V", "oracle V", "true V", "V*", "error", f"= {TERMS[0]}",
                  *(f"+ {term}" for term in TERMS[1:])], rows, notes)


def _oracle_page(groups) -> list[str]:
    rows = [[f"{alpha:g}", _cell(_over(group, "distance", "mean"), ".3g"), _cell(_over(group, "distance", "max"), ".3g"),
             _cell(_over(group, "distance", "mean_share"), ".2%"), _cell(_over(group, "distance", "max_share"), ".2%"),
             _cell(_over(group, "greedy_as_oracle"), ".1%"), _cell(_over(group, "greedy_as_oracle_where_clear"), ".1%"),
             _cell(_over(group, "network", "return")), _cell(_over(group, "oracle", "return")),
             _cell(_over(group, "network", "hazard_probability"), ".4f"),
             _cell(_over(group, "oracle", "hazard_probability"), ".4f"),
             _cell(max(entry["oracle"]["residual"] for entry in group), ".0e")] for alpha, group in groups.items()]
    notes = ["Distances: on logged pairs, means over the data; range: of the oracle's Q there. same greedy: states with data whose",
             f"greedy action is the oracle's; where clear: those whose best action leads by over {CLEAR:.0%} of the range.",
             "return, hazard: exact, of the greedy policy over an episode. residual: the oracle's certificate."]
    uncertain = [f"{alpha:g}" for alpha, group in groups.items() if not all(e["oracle"]["certified"] for e in group)]
    if uncertain:
        notes.append(f"NOT CERTIFIED, so no fixed point to rely on: alpha = {', '.join(uncertain)}.")
    return _grid("2. How far the network is from the exact fixed point of its own loss",
                 ["alpha", "|Q-oracle|", "max", "of range", "max", "same greedy", "where clear", "return", "oracle's",
                  "hazard", "oracle's", "residual"], rows, notes)


def _error_page(groups) -> list[str]:
    rows = [[f"{alpha:g}", *(_cell(_over(group, "decomposition", term, "mean"), "+.2f") for term in ("total", *TERMS)),
             f"{_over(group, 'overestimates', 'states'):.0f} of {_over(group, 'overestimates', 'of'):.0f}",
             _cell(_over(group, "overestimates", "largest"), "+.1f"),
             f"{_over(group, 'p_below_beta', 'states'):.0f}",
             _cell(_over(group, "ood_mass", "mean"), ".4f"),
             f"{_over(group, 'generalisation', 'states_choosing_unlogged'):.0f}",
             _cell(_over(group, "generalisation", "pairs", "mean"), "+.1f")] for alpha, group in groups.items()]
    return _grid("3. Everywhere: the error of Q on logged pairs and its parts; where V is too high; unlogged actions",
                 ["alpha", "error", *TERMS, "V too high", "by up to", "p<beta", "mass", "chosen", "error there"], rows,
                 ["error: Q - true Q, mean over the data. V too high: states with data where learned V > true V.",
                  "p<beta: states where softmax Q gives the greedy action less than the data do, the sign of a local overestimate.",
                  "mass: of softmax Q on unlogged actions, mean over the data; chosen: states whose greedy action is unlogged;",
                  "error there: mean Q - true Q of the unlogged actions of visited states (generalisation: no data hold it)."])


def _hazard_page(audit, groups) -> list[str]:
    title = "4. Hazard certificate: logged actions meant to enter a hazard that became the greedy ones"
    if not any(entry["hazard"]["states_with_logged_hazard_action"] for group in groups.values() for entry in group):
        return [title, "  The data hold no action that is meant to enter a hazard, so no alpha can make one greedy in the oracle.",
                "  (Slips still enter hazards, and so does a network that prefers unlogged actions: section 3, chosen.)"]
    rows = [[f"{alpha:g}", f"{_over(group, 'hazard', 'states_with_logged_hazard_action'):.0f}",
             f"{_over(group, 'hazard', 'states_by_oracle'):.0f}", f"{_over(group, 'hazard', 'states_by_network'):.0f}",
             _listed(audit, group[0]["hazard"]["states"])] for alpha, group in groups.items()]
    return _grid(title, ["alpha", "states with one", "oracle's", "network's", "safe share (needed), first member"], rows,
                 ["states with one: that hold such an action in the data; oracle's, network's: where it is their greedy action.",
                  "safe share: of the best safe logged action, out of it and the hazard action; needed: what it would take by the",
                  "formula for two actions and fixed targets. o: chosen by the oracle, n: by the network, on: by both."])


def _listed(audit, states) -> str:
    parts = []
    for entry in states[:3]:
        who = "o" * entry["by_oracle"] + "n" * entry["by_network"]
        share = "no safe one" if entry["safe_share"] is None else f"{entry['safe_share']:.1%}"
        share += "" if entry["needed_share"] is None else f" ({entry['needed_share']:.1%})"
        name = audit["cells"][entry["state"]] if audit["cells"] else f"state {entry['state']}"
        parts.append(f"{name} {who} {share}")
    return "; ".join(parts) + (f"; {len(states) - 3} more" if len(states) > 3 else "") if parts else "–"


def _bc_page(bc) -> list[str]:
    rows = [[str(entry["seed"]), str(entry["data_seed"]), f"{entry['kl_mean']:.5f}", f"{entry['total_variation_mean']:.4f}",
             f"{entry['total_variation_max']:.3f}", f"{entry['ood_mass']:.4f}", f"{entry['greedy_as_counts']:.1%}",
             f"{entry['network']['return']:.2f}", f"{entry['by_counts']['return']:.2f}",
             _cell(entry["network"]["hazard_probability"], ".4f"), _cell(entry["by_counts"]["hazard_probability"], ".4f")]
            for entry in bc[:12]]
    return _grid("BC against its own optimum, BC by counts", ["seed", "data", "KL(beta||p)", "mean TV", "max TV", "unlogged mass",
                 "same greedy", "return", "counts'", "hazard", "counts'"], rows,
                 ["KL: excess cross-entropy over the data, in nats; TV: total variation distance per state."]
                 + [f"and {len(bc) - 12} more members in audit.json"] * (len(bc) > 12))
