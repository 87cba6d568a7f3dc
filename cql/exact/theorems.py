"""Theorems 3.1 to 3.4 of the CQL paper, computed: each is an equality of which both sides can be printed.

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779. The paper states
inequalities that hold with high probability for a large enough alpha. On a finite, known MDP what they bound can be
computed, and without sampling error each bound is an equality. `python -m cql.exact.theorems` prints both sides.

Axes: S state, A action, K outcome. float64. `alpha_half` is alpha in front of a *half* square, the paper's; alpha of
this project's default loss is twice that. beta = counts / row sums is the data's policy, p = softmax Q(s,.) over the
logged actions, y = r + gamma P V, and D(s) = sum_a policy^2 / beta - 1.

Nothing is claimed of pairs without data: an `Equality` holds NaN there.
"""

import argparse
import sys
from dataclasses import dataclass, replace

import numpy as np

from cql import config as settings
from cql.collect import datasets_for, environment_of, exact_model
from cql.config import Config, ConfigError
from cql.dataset import DatasetError
from cql.exact.oracle import cql_fixed_point, empirical_policy, eq1_fixed_point, eq2_fixed_point, half_square_alpha
from cql.exact.tabular import (
    TabularMDP,
    bellman_backup,
    empirical_mdp,
    greedy_policy,
    policy_evaluation,
    solve_bellman,
    start_distribution,
    state_value,
)

DELTA = 0.05       # the paper's bounds hold with probability 1 - delta
ROUNDING = 1e-9    # an excess, or a push-down, below this times the size of the values counts as none


@dataclass(frozen=True, eq=False)
class Equality:
    """Two sides that should agree, [S] or [S, A]; NaN where nothing is claimed."""

    left: np.ndarray
    right: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        return self.left - self.right

    @property
    def largest(self) -> float:
        """max |left - right|, 0 if nothing is claimed anywhere."""
        return float(np.nanmax(np.abs(self.difference), initial=0.0))


def covered(mdp: TabularMDP, counts) -> TabularMDP:
    """The true dynamics of what was logged: `mdp` without the pairs [S, A] that have no data.

    In a data set's model an episode ends, for nothing, in a state without data. Held against that model, the true MDP
    cut in the same way differs by sampling error alone. An empirical model comes back unchanged.
    """
    kept = (np.asarray(counts) > 0) | mdp.terminal[:, None]
    return replace(mdp, probability=np.where(kept[..., None], mdp.probability, 0.0))


# --------------------------------------------------------------------------------------------- Theorems 3.1 and 3.2


def theorem_3_1(mdp: TabularMDP, counts, mu, policy, alpha_half, gamma) -> Equality:
    """Eq. 1 pushes each Q value down: Q^ = Q^policy - alpha_half (I - gamma P^policy)^-1 (mu / beta), [S, A].

    Left: the fixed point of Eq. 1, with the penalty in its reward. Right: the value of the policy and the penalty's
    own discounted sum, solved for apart. Both on `mdp`: the empirical model, or `covered` of the true one for the
    statement without sampling error.

    Args:
        counts: [S, A], or any weights of the data; mu, policy: [S, A], only on logged actions where a state has data.
        alpha_half: one number; gamma: in [0, 1).

    Raises:
        ValueError: arguments out of range, or mu or policy outside the data.
    """
    model, beta = covered(mdp, counts), empirical_policy(counts)
    logged = _logged(model, beta)
    left = eq1_fixed_point(model, counts, mu, policy, alpha_half, gamma)
    _, q = policy_evaluation(model, policy, gamma)
    ratio = np.divide(mu, beta, out=np.zeros_like(beta), where=logged)                               # [S, A]
    pushed = solve_bellman(model, policy, (policy * ratio).sum(-1), gamma)                           # [S]
    pushed = ratio + bellman_backup(model, pushed, gamma) - model.expected_reward                    # [S, A]
    return Equality(*(np.where(logged, x, np.nan) for x in (left, q - alpha_half * pushed)))


def theorem_3_2(mdp: TabularMDP, counts, policy, alpha_half, gamma) -> Equality:
    """Eq. 2 with mu = policy lowers its value: V^ - V^policy = -alpha_half (I - gamma P^policy)^-1 D, [S].

    Single Q values may lie above Q^policy: where policy < beta they are pushed up. Arguments as for `theorem_3_1`.
    """
    model = covered(mdp, counts)
    seen = _logged(model, empirical_policy(counts)).any(-1)
    left = eq2_value(model, counts, policy, alpha_half, gamma) - policy_evaluation(model, policy, gamma)[0]
    right = -alpha_half * conservatism(model, counts, policy, gamma)
    return Equality(*(np.where(seen, x, np.nan) for x in (left, right)))


def eq2_value(mdp: TabularMDP, counts, policy, alpha_half, gamma) -> np.ndarray:
    """V^ = E_policy[Q^] of Eq. 2 with mu = policy, [S]; 0 in states without data."""
    q = eq2_fixed_point(mdp, counts, policy, policy, alpha_half, gamma)
    return (policy * np.where(np.isneginf(q), 0.0, q)).sum(-1)


def penalty(counts, policy) -> np.ndarray:
    """D(s) = sum_a policy^2 / beta - 1, the chi-square distance of policy from beta, [S]; 0 in states without data."""
    beta = empirical_policy(counts)
    squares = np.divide(np.square(policy), beta, out=np.zeros_like(beta), where=beta > 0)
    return np.where(beta.any(-1), squares.sum(-1) - 1, 0.0)


def conservatism(mdp: TabularMDP, counts, policy, gamma) -> np.ndarray:
    """U = (I - gamma P^policy)^-1 D, [S]: what one unit of alpha_half takes from the value of each state."""
    return solve_bellman(covered(mdp, counts), policy, penalty(counts, policy), gamma)


@dataclass(frozen=True, eq=False)
class SamplingError:
    """Theorem 3.2 on an empirical model, held against the true value.

    Args:
        equality: V^(alpha) against V^(0) - alpha_half U, [S].
        excess: V^(0) - V^policy, [S]: what the model of the data overestimates without any penalty.
        conservatism: U, [S].
        needed: smallest alpha_half with V^(s) <= V^policy(s), [S]: 0 where nothing is overestimated, inf where the
            excess is positive and U = 0, NaN in states without data.
    """

    equality: Equality
    excess: np.ndarray
    conservatism: np.ndarray
    needed: np.ndarray

    @property
    def smallest_alpha(self) -> float:
        """The smallest alpha_half that makes V^ a lower bound in every state with data; inf if none does."""
        return float(np.nanmax(self.needed, initial=0.0))

    @property
    def beyond_repair(self) -> int:
        """How many states no alpha repairs."""
        return int(np.isposinf(self.needed).sum())

    @property
    def smallest_alpha_of_the_rest(self) -> float:
        """As `smallest_alpha`, over the states that some alpha repairs."""
        return float(np.nanmax(np.where(np.isposinf(self.needed), 0.0, self.needed), initial=0.0))


def sampling_error(true_mdp: TabularMDP, mdp: TabularMDP, counts, policy, alpha_half, gamma) -> SamplingError:
    """How much alpha Theorem 3.2 needs on this very data set, exactly: max_s (V^(0) - V)_+ / U.

    Args:
        true_mdp: the environment; mdp, counts: `empirical_mdp` of the data.
        policy: [S, A], a distribution in every state, on logged actions where a state has data.
    """
    seen = _logged(mdp, empirical_policy(counts)).any(-1)
    pushed = conservatism(mdp, counts, policy, gamma)
    unpenalised = eq2_value(mdp, counts, policy, 0.0, gamma)
    sides = (eq2_value(mdp, counts, policy, alpha_half, gamma), unpenalised - alpha_half * pushed)
    truth = policy_evaluation(true_mdp, policy, gamma)[0]
    excess = unpenalised - truth
    small = ROUNDING * (1 + np.abs(truth).max())
    needed = np.divide(excess, pushed, out=np.full_like(excess, np.inf), where=pushed > ROUNDING)
    needed = np.where(excess <= small, 0.0, needed)
    return SamplingError(Equality(*(np.where(seen, x, np.nan) for x in sides)), np.where(seen, excess, np.nan),
                         np.where(seen, pushed, np.nan), np.where(seen, needed, np.nan))


@dataclass(frozen=True)
class PaperConstant:
    """The sufficient alpha_half of the paper's form for Theorem 3.2 (see `paper_constant`).

    Args:
        c: the C that was put in.
        alpha_half: over every state with data: inf as soon as one of them has D = 0.
        alpha_half_of_the_rest: over the states with D > 0 only. Not sufficient for the others, printed for its size.
        without_penalty: how many states with data have D = 0.
    """

    c: float
    alpha_half: float
    alpha_half_of_the_rest: float
    without_penalty: int


def paper_constant(mdp: TabularMDP, counts, policy, gamma, c) -> PaperConstant:
    """max_s  C R_max / (1 - gamma)  E_{a ~ policy}[1 / sqrt|D(s,a)|] / D(s).

    The paper assumes that the empirical backup errs by at most C R_max / ((1 - gamma) sqrt|D(s,a)|) in each pair, and
    asks that alpha D(s) outweigh that error in each state. It leaves C open (a constant of concentration, dependent on
    delta): `smallest_c` and `hoeffding_c` are two ends of what may be put there. Its theorem writes max_s 1/sqrt|D(s)|
    for the expectation used here, which is what the error of a *policy's* backup asks for, and is never smaller than
    1/sqrt|D(s)|.
    """
    factor = c * _largest_reward(mdp) / (1 - gamma)
    counts = np.asarray(counts, dtype=np.float64)
    seen = _logged(mdp, empirical_policy(counts)).any(-1)
    error = (policy * np.divide(1, np.sqrt(counts), out=np.zeros_like(counts), where=counts > 0)).sum(-1)
    distance = penalty(counts, policy)
    positive = seen & (distance > ROUNDING)
    rest = float((factor * error[positive] / distance[positive]).max(initial=0.0))
    without = int((seen & ~positive).sum())
    return PaperConstant(float(c), np.inf if without and c > 0 else rest, rest, without)


def backup_error(true_mdp: TabularMDP, mdp: TabularMDP, counts, policy, gamma) -> np.ndarray:
    """(B^ - B) V^policy on the logged pairs, [S, A]; 0 elsewhere. V counts as 0 in states without data, as in V^."""
    beta = empirical_policy(counts)
    logged = _logged(mdp, beta)
    truth = policy_evaluation(true_mdp, policy, gamma)[0]
    known = np.where(logged.any(-1), truth, 0.0)
    return np.where(logged, bellman_backup(mdp, known, gamma) - bellman_backup(true_mdp, truth, gamma), 0.0)


def smallest_c(true_mdp: TabularMDP, mdp: TabularMDP, counts, policy, gamma) -> float:
    """The smallest C with which the paper's assumption holds for V^policy on this data set. Needs the true MDP."""
    error = np.maximum(backup_error(true_mdp, mdp, counts, policy, gamma), 0.0)
    return float((error * np.sqrt(counts)).max() * (1 - gamma) / _largest_reward(mdp))


def hoeffding_c(mdp: TabularMDP, counts, gamma, num_outcomes, delta=DELTA) -> float:
    """A C that can be had without knowing the true MDP, for all logged pairs at once with probability 1 - delta.

    Hoeffding for the reward, |r^ - r| <= R_max sqrt(2 log(2/d) / n); Weissman et al. for the next state,
    |P^ - P|_1 <= sqrt(2 (K log 2 + log(1/d)) / n); d = delta / (2 pairs); |V| <= R_max / (1 - gamma).

    Args:
        num_outcomes: K, how many next states a pair may have.
    """
    share = delta / (2 * np.count_nonzero(counts))
    reward = (1 - gamma) * np.sqrt(2 * np.log(2 / share))
    transition = gamma * np.sqrt(2 * (num_outcomes * np.log(2) + np.log(1 / share)))
    return float(reward + transition)


def _largest_reward(mdp):
    return max(float(np.abs(mdp.reward[mdp.probability > 0]).max(initial=0.0)), np.finfo(float).tiny)


# --------------------------------------------------------------------------------------------- Theorems 3.3 and 3.4


@dataclass(frozen=True, eq=False)
class OneStep:
    """Theorem 3.3 for CQL(H), one step: what the penalty does to the value of a policy, state by state.

    Args:
        equality: E_policy[Q - y] against alpha_half (1 - ratio), [S].
        ratio: sum_a policy p / beta, [S]; NaN in states without data.
        overestimates: [S] bool, ratio < 1: the penalty *raises* the value of the policy here.
        paper_condition: [S] bool, the paper's sufficient condition D(p, beta) >= max_a (p/beta) TV(policy, p).
    """

    equality: Equality
    ratio: np.ndarray
    overestimates: np.ndarray
    paper_condition: np.ndarray


def theorem_3_3(mdp: TabularMDP, counts, q, policy, alpha_half, gamma) -> OneStep:
    """E_policy[Q - y] <= 0 iff sum_a policy p / beta >= 1; for the greedy policy, iff p(a*) >= beta(a*).

    Args:
        q: [S, A], a fixed point of CQL(H) on `mdp` (-inf without data), or one update of it if `mdp`'s backup of
            `state_value(q)` is its target. policy: [S, A] on logged actions where a state has data.
    """
    beta = empirical_policy(counts)
    logged, p = _logged(mdp, beta), softmax(q)
    error = _residual(mdp, logged, q, gamma)
    weight = np.where(logged, policy, 0.0)
    ratio = np.divide(p, beta, out=np.zeros_like(beta), where=logged)
    seen = logged.any(-1)
    change = np.where(seen, (weight * ratio).sum(-1), np.nan)
    distance = np.abs(weight - np.where(logged, p, 0.0)).sum(-1) / 2
    condition = seen & (penalty(counts, np.where(logged, p, 0.0)) >= ratio.max(-1) * distance)
    left = np.where(seen, (weight * error).sum(-1), np.nan)
    return OneStep(Equality(left, alpha_half * (1 - change)), change, seen & (change < 1 - 1e-12), condition)


def theorem_3_4(mdp: TabularMDP, counts, mu, values, alpha_half, gamma) -> Equality:
    """One update of Eq. 2 widens the gap E_beta Q - E_mu Q by alpha_half chi^2(mu || beta), [S].

    Left: gap(Q_{k+1}) - gap(y), y = r + gamma P values, Q_{k+1} = argmin of Eq. 2 with that y. values [S]: any.
    """
    beta = empirical_policy(counts)
    logged = _logged(mdp, beta)
    seen = logged.any(-1)
    y = np.where(logged, bellman_backup(mdp, values, gamma), 0.0)
    mu = np.where(logged, mu, 0.0)
    updated = y - alpha_half * (np.divide(mu, beta, out=np.zeros_like(beta), where=logged) - logged)

    def gap(q):
        return ((beta - mu) * q).sum(-1)

    return Equality(*(np.where(seen, x, np.nan) for x in (gap(updated) - gap(y), alpha_half * penalty(counts, mu))))


# ------------------------------------------------------------------------------------------- invariants of CQL(H)


@dataclass(frozen=True, eq=False)
class Invariants:
    """What every stationary point of CQL(H) satisfies in every state with data, both [S]."""

    under_beta: Equality
    under_softmax: Equality


def invariants(mdp: TabularMDP, counts, q, alpha_half, gamma) -> Invariants:
    """E_beta[Q - y] = 0 and E_p[Q - y] = -alpha_half chi^2(p || beta), with p over the logged actions.

    Args:
        q: [S, A], a CQL(H) fixed point of `cql_fixed_point` (-inf on pairs without data).
    """
    beta = empirical_policy(counts)
    logged = _logged(mdp, beta)
    return stationary_moments(np.where(logged, q, -np.inf), _residual(mdp, logged, q, gamma),
                              np.where(logged.any(-1, keepdims=True), counts, 0), alpha_half)


def stationary_moments(q, residual, counts, alpha_half) -> Invariants:
    """The invariants with p the softmax over *all* actions, as a network has it:

        E_beta[Q - y] = alpha_half p_out,    sum_logged p (Q - y) = alpha_half (sum_logged p - sum_logged p^2 / beta),

    p_out being the mass of p on actions never logged in the state. With Q = -inf there, p_out = 0.

    Args:
        q: [S, A], finite on logged pairs; residual: Q - y on the logged pairs [S, A]; counts: [S, A].
    """
    beta = empirical_policy(counts)
    logged = beta > 0
    seen, p = logged.any(-1), softmax(q)
    residual = np.where(logged, residual, 0.0)
    inside = np.where(logged, p, 0.0)
    squares = np.divide(np.square(p), beta, out=np.zeros_like(beta), where=logged).sum(-1)
    outside = np.where(logged, 0.0, p).sum(-1)
    pairs = [((beta * residual).sum(-1), alpha_half * outside),
             ((inside * residual).sum(-1), alpha_half * (inside.sum(-1) - squares))]
    return Invariants(*(Equality(*(np.where(seen, side, np.nan) for side in pair)) for pair in pairs))


def softmax(q) -> np.ndarray:
    """p = exp Q / sum exp Q over the last axis; actions at -inf get 0, a state with no others is uniform."""
    q = np.asarray(q, dtype=np.float64)
    q = np.where(np.isneginf(q).all(-1, keepdims=True), 0.0, q)
    e = np.exp(q - q.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _logged(mdp, beta):
    return (beta > 0) & ~mdp.terminal[:, None]


def _residual(mdp, logged, q, gamma):
    """Q - y on the logged pairs, y from V = max_a Q, [S, A]; 0 elsewhere."""
    values = np.where(logged.any(-1), state_value(np.where(logged, q, -np.inf)), 0.0)
    return np.where(logged, np.where(logged, q, 0.0) - bellman_backup(mdp, values, gamma), 0.0)


# ---------------------------------------------------------------------------------------------------- the command


def models_of(dataset, true_mdp: TabularMDP):
    """(empirical model, counts [S, A]) of a data set of this environment. Raises ConfigError, one sentence."""
    try:
        return empirical_mdp(dataset, true_mdp.num_states, true_mdp.num_actions, true_mdp.hazard, true_mdp.goal,
                             true_mdp.start, true_mdp.terminal)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def true_model_of(dataset) -> TabularMDP:
    """The environment of a data set as a table. Raises ConfigError where it has none, or no start."""
    model = exact_model(environment_of(dataset))
    if model is None:
        raise ConfigError("the data name no environment with a transition table: nothing exact can be computed.")
    if model.start is None:
        raise ConfigError("the environment names no start: values at the start cannot be computed.")
    return model


def add_arguments(parser: argparse.ArgumentParser, default_alphas) -> None:
    """The options that commands on exact values share: those of the data, --alpha and --gamma."""
    settings.add_arguments(parser, groups=("environment and data",))
    parser.add_argument("--alpha", type=float, nargs="+", metavar="A", default=argparse.SUPPRESS,
                        help="alpha(s) of the default loss, twice alpha_half (default "
                             f"{' '.join(format(a, 'g') for a in default_alphas)})")
    parser.add_argument("--gamma", type=float, metavar="X", default=argparse.SUPPRESS,
                        help="discount factor, below 1 (default 0.99)")


def config_of(arguments: argparse.Namespace, default_alphas) -> Config:
    """Raises ConfigError, one sentence."""
    config = Config(**{"alpha": tuple(default_alphas), **settings.given(arguments)})
    if config.gamma == 1:
        raise ConfigError("--gamma must be below 1: the fixed point rests on the contraction.")
    return config


def report(true_mdp: TabularMDP, dataset, alphas, gamma) -> str:
    """The theorems on one data set as text: both sides at the start, and the largest difference over all states."""
    mdp, counts = models_of(dataset, true_mdp)
    counts = np.where(true_mdp.terminal[:, None], 0, counts)
    start, beta = start_distribution(true_mdp), empirical_policy(counts)
    seen = beta.any(-1)
    lines = [f"{seen.sum()} states with data, {(counts > 0).sum()} logged pairs, "
             f"{(seen & ((counts > 0).sum(-1) == 1)).sum()} states with a single logged action; gamma {gamma:g}",
             "left and right: expected over the start; difference: the largest over all states with data"]
    solution = cql_fixed_point(mdp, counts, alphas, gamma)
    for n, alpha in enumerate(solution.alphas):
        lines += ["", *_report_alpha(true_mdp, mdp, counts, solution.q[n], float(alpha), gamma, start)]
    return "\n".join(lines)


def _report_alpha(true_mdp, mdp, counts, q, alpha, gamma, start):
    beta, half = empirical_policy(counts), float(half_square_alpha(alpha, "mse"))
    seen = beta.any(-1)
    uniform = np.full_like(beta, 1 / beta.shape[1])
    p = softmax(q)
    greedy, behaviour = greedy_policy(q), np.where(seen[:, None], beta, uniform)
    exact = covered(true_mdp, counts)
    # without sampling error CQL(H) has another fixed point: that of the true dynamics
    unerring = cql_fixed_point(exact, counts, [alpha], gamma).q[0]
    rng = np.random.default_rng(0)
    errors = {name: sampling_error(true_mdp, mdp, counts, policy, half, gamma)
              for name, policy in [("greedy", greedy), ("softmax", p), ("beta", behaviour)]}
    rows = []
    for name, model, fixed in [("true dynamics", exact, unerring), ("empirical model", mdp, q)]:
        policy = greedy_policy(fixed)
        both = invariants(model, counts, fixed, half, gamma)
        rows += [("3.1  Q^ (Eq. 1, mu = p) of the greedy action", name,
                  theorem_3_1(model, counts, softmax(fixed), policy, half, gamma), policy),
                 ("3.2  V^ - V (Eq. 2, mu = greedy)", name, theorem_3_2(model, counts, policy, half, gamma), None),
                 ("3.3  E_greedy[Q - y] at CQL(H)", name,
                  theorem_3_3(model, counts, fixed, policy, half, gamma).equality, None),
                 ("3.4  gap widened, mu = p, V random", name,
                  theorem_3_4(model, counts, softmax(fixed), rng.normal(scale=10, size=len(beta)), half, gamma), None),
                 ("     E_beta[Q - y] = 0 at CQL(H)", name, both.under_beta, None),
                 ("     E_p[Q - y] = -alpha_half chi2(p||beta)", name, both.under_softmax, None)]
    rows.insert(8, ("3.2  V^(alpha) = V^(0) - alpha_half U", "empirical model", errors["greedy"].equality, None))
    lines = [f"alpha {alpha:g} (alpha_half {half:g})",
             f"  {'':45}{'model':17}{'left':>13}{'right':>13}{'difference':>13}"]
    for name, model, equality, policy in rows:
        sides = [_at_start(side, start, policy) for side in (equality.left, equality.right)]
        lines.append(f"  {name:45}{model:17}{sides[0]:13.6f}{sides[1]:13.6f}{equality.largest:13.1e}")
    step = theorem_3_3(mdp, counts, q, greedy, half, gamma)
    lines += [f"  3.3: CQL(H) raises its greedy action (p(a*) < beta(a*)) in {step.overestimates.sum()} of {seen.sum()} "
              f"states; the paper's sufficient condition holds in {step.paper_condition.sum()}",
              "  alpha_half that makes V^ of Eq. 2 (empirical model) a lower bound of the true value:",
              f"  {'policy':9}{'at start':>10}{'everywhere':>12}{'beyond repair':>15}{'the rest':>10}"
              f"{'paper, smallest C':>27}{'paper, Hoeffding C':>28}"]
    outcomes = int((true_mdp.probability > 0).sum(-1).max())
    for name, policy in [("greedy", greedy), ("softmax", p), ("beta", behaviour)]:
        found = errors[name]
        cs = (smallest_c(true_mdp, mdp, counts, policy, gamma), hoeffding_c(mdp, counts, gamma, outcomes))
        paper = [paper_constant(mdp, counts, policy, gamma, c) for c in cs]
        begin = _needed_at_start(found, start)
        lines.append(f"  {name:9}{begin:10.3g}{found.smallest_alpha:12.3g}{found.beyond_repair:15d}"
                     f"{found.smallest_alpha_of_the_rest:10.3g}"
                     + "".join(f"{f'{x.alpha_half:.3g} ({x.alpha_half_of_the_rest:.3g}; C {x.c:.2g})':>{width}}"
                               for x, width in zip(paper, (27, 28))))
    free = int((seen & (penalty(counts, greedy) <= ROUNDING)).sum())
    return [*lines, f"  in brackets: over the states with D > 0 alone; the greedy policy has D = 0 in {free} states, and "
            "one such state makes the paper's constant infinite"]


def _at_start(side, start, policy):
    if policy is not None:
        side = np.nansum(policy * side, axis=-1)
    return round(float(np.nansum(start * side)), 6) + 0.0        # no -0.000000


def _needed_at_start(found, start):
    """The alpha_half that repairs the expected value over the start."""
    excess, pushed = (float(np.nansum(start * x)) for x in (found.excess, found.conservatism))
    if excess <= ROUNDING:
        return 0.0
    return excess / pushed if pushed > ROUNDING else np.inf


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql.exact.theorems", description=(
        "Theorems 3.1 to 3.4 of the CQL paper on a map and a data draw, both sides computed."))
    add_arguments(parser, (6.0,))
    arguments = parser.parse_args(argv)
    try:
        config = config_of(arguments, (6.0,))
        datasets = datasets_for(config, settings.given(arguments))
        true_mdp = true_model_of(datasets[0])
        for data_seed, dataset in zip(config.data_seeds, datasets):
            print(f"data {data_seed if config.dataset is None else config.dataset}: "
                  f"{report(true_mdp, dataset, config.alpha, config.gamma)}\n")
    except (ConfigError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
