"""Theorems 3.1 to 3.4 of the CQL paper as equalities, both sides computed.

Kumar et al. 2020 (arXiv 2006.04779) state inequalities that hold with high probability for a large enough alpha. On a
finite, known MDP both sides can be computed, and without sampling error each bound is an equality.

Axes: S state, A action. float64. `alpha_half` is alpha in front of a *half* square, the paper's; alpha of this
project's default loss is twice that. counts [S, A] are those of the data, or any weights; beta = counts / row sums is
the data's policy, p = softmax Q(s,.) over the logged actions, y = r + gamma P V, D(s) = sum_a policy^2 / beta - 1.
A policy [S, A], and mu likewise, has weight only on logged actions where a state has data; ValueError otherwise.
Nothing is claimed of pairs without data: an `Equality` is NaN there.
"""

from dataclasses import dataclass, replace

import numpy as np

from cql.exact.dynamic_programming import bellman_backup, policy_evaluation, solve_bellman, state_value
from cql.exact.fixed_point import empirical_policy, eq1_fixed_point, eq2_fixed_point, logged_pairs, softmax
from cql.exact.mdp import TabularMDP

NEGLIGIBLE = 1e-9  # an excess or a penalty below this counts as none


@dataclass(frozen=True, eq=False)
class Equality:
    """Two sides that should agree, [S] or [S, A]; NaN where nothing is claimed."""

    left: np.ndarray
    right: np.ndarray

    @classmethod
    def where(cls, claimed, left, right) -> "Equality":
        """The sides where `claimed`, a bool mask, and NaN elsewhere."""
        return cls(np.where(claimed, left, np.nan), np.where(claimed, right, np.nan))

    @property
    def largest(self) -> float:
        """max |left - right|, 0 if nothing is claimed anywhere."""
        return float(np.nanmax(np.abs(self.left - self.right), initial=0.0))


def covered(mdp: TabularMDP, counts) -> TabularMDP:
    """`mdp` without the outcomes of pairs that have no data: the true dynamics of the logged pairs.

    In a data set's model an episode ends, for nothing, in a state without data. The true MDP cut in the same way
    differs from that model by sampling error alone. An empirical model is returned unchanged.
    """
    logged = (np.asarray(counts) > 0) | mdp.terminal[:, None]
    return replace(mdp, probability=np.where(logged[..., None], mdp.probability, 0.0))


# --------------------------------------------------------------------------------------------- Theorems 3.1 and 3.2


def theorem_3_1(mdp: TabularMDP, counts, mu, policy, alpha_half, gamma) -> Equality:
    """Eq. 1 lowers each Q value: Q^ = Q^policy - alpha_half (I - gamma P^policy)^-1 (mu / beta), [S, A].

    Left: the exact solution of Eq. 1, with the penalty in its reward. Right: the value of the policy and the discounted
    sum of the penalty, solved for apart. `mdp` is the empirical model, or the true one (which is `covered` here) for
    the statement without sampling error.
    """
    model, logged = covered(mdp, counts), logged_pairs(mdp, counts)
    _, q = policy_evaluation(model, policy, gamma)
    ratio = _over_beta(mu, empirical_policy(counts), logged)                                         # [S, A]
    value = solve_bellman(model, policy, (policy * ratio).sum(-1), gamma)                            # [S]
    penalties = ratio + bellman_backup(model, value, gamma) - model.expected_reward                  # [S, A]
    return Equality.where(logged, eq1_fixed_point(model, counts, mu, policy, alpha_half, gamma),
                          q - alpha_half * penalties)


def theorem_3_2(mdp: TabularMDP, counts, policy, alpha_half, gamma) -> Equality:
    """Eq. 2 with mu = policy lowers its value: V^ - V^policy = -alpha_half (I - gamma P^policy)^-1 D, [S].

    Single Q values may lie above Q^policy: where policy < beta they are raised. `mdp` as for `theorem_3_1`.
    """
    model = covered(mdp, counts)
    left = eq2_value(model, counts, policy, alpha_half, gamma) - policy_evaluation(model, policy, gamma)[0]
    return Equality.where(logged_pairs(mdp, counts).any(-1), left,
                          -alpha_half * conservatism(model, counts, policy, gamma))


def eq2_value(mdp: TabularMDP, counts, policy, alpha_half, gamma) -> np.ndarray:
    """V^ = E_policy[Q^] of Eq. 2 with mu = policy, [S]; 0 in states without data."""
    q = eq2_fixed_point(mdp, counts, policy, policy, alpha_half, gamma)
    return (policy * np.where(np.isneginf(q), 0.0, q)).sum(-1)


def chi_square(counts, policy) -> np.ndarray:
    """D(s) = sum_a policy^2 / beta - 1, the chi-square distance of policy from beta, [S]; 0 in states without data."""
    beta = empirical_policy(counts)
    return np.where(beta.any(-1), _over_beta(np.square(policy), beta, beta > 0).sum(-1) - 1, 0.0)


def conservatism(mdp: TabularMDP, counts, policy, gamma) -> np.ndarray:
    """U = (I - gamma P^policy)^-1 D, [S]: by how much one unit of alpha_half lowers the value of each state."""
    return solve_bellman(covered(mdp, counts), policy, chi_square(counts, policy), gamma)


@dataclass(frozen=True, eq=False)
class SamplingError:
    """Theorem 3.2 on an empirical model, compared with the true value. Arrays [S], NaN in states without data."""

    equality: Equality          # V^(alpha) against V^(0) - alpha_half U
    excess: np.ndarray          # V^(0) - V^policy: the overestimate of the data's model without any penalty
    conservatism: np.ndarray    # U
    needed: np.ndarray          # smallest alpha_half with V^ <= V^policy: 0 if excess <= 0, inf if excess > 0 and U = 0

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
    """The alpha that Theorem 3.2 needs on this very data set, max_s (V^(0) - V)_+ / U, with mdp, counts its model."""
    seen = logged_pairs(mdp, counts).any(-1)
    lowering = conservatism(mdp, counts, policy, gamma)
    unpenalised = eq2_value(mdp, counts, policy, 0.0, gamma)
    truth = policy_evaluation(true_mdp, policy, gamma)[0]
    excess = unpenalised - truth
    needed = np.divide(excess, lowering, out=np.full_like(excess, np.inf), where=lowering > NEGLIGIBLE)
    needed = np.where(excess <= NEGLIGIBLE * (1 + np.abs(truth).max()), 0.0, needed)
    left = eq2_value(mdp, counts, policy, alpha_half, gamma)
    return SamplingError(Equality.where(seen, left, unpenalised - alpha_half * lowering),
                         *(np.where(seen, x, np.nan) for x in (excess, lowering, needed)))


@dataclass(frozen=True)
class PaperConstant:
    """The sufficient alpha_half of the paper's form for Theorem 3.2 (see `paper_constant`)."""

    alpha_half: float                # over every state with data: inf as soon as one of them has D = 0
    alpha_half_of_the_rest: float    # over the states with D > 0: not sufficient for the others, printed for its size
    without_penalty: int             # how many states with data have D = 0


def paper_constant(mdp: TabularMDP, counts, policy, gamma, c) -> PaperConstant:
    """max_s  C R_max / (1 - gamma)  E_{a ~ policy}[1 / sqrt|D(s,a)|] / D(s).

    The paper assumes that the empirical backup errs by at most C R_max / ((1 - gamma) sqrt|D(s,a)|) in each pair, and
    asks that alpha D(s) outweigh that error in each state. It leaves C open (it depends on delta): `smallest_c` and
    `hoeffding_c` are two ends of its range. Its theorem writes max_s 1/sqrt|D(s)| for the expectation used here, which
    is the error of a *policy's* backup and never smaller than 1/sqrt|D(s)|.
    """
    factor = c * _largest_reward(mdp) / (1 - gamma)
    counts = np.asarray(counts, dtype=np.float64)
    seen = logged_pairs(mdp, counts).any(-1)
    error = (policy * np.divide(1, np.sqrt(counts), out=np.zeros_like(counts), where=counts > 0)).sum(-1)
    distance = chi_square(counts, policy)
    positive = seen & (distance > NEGLIGIBLE)
    rest = float((factor * error[positive] / distance[positive]).max(initial=0.0))
    without = int((seen & ~positive).sum())
    return PaperConstant(np.inf if without and c > 0 else rest, rest, without)


def backup_error(true_mdp: TabularMDP, mdp: TabularMDP, counts, policy, gamma) -> np.ndarray:
    """(B^ - B) V^policy on the logged pairs, [S, A]; 0 elsewhere. V counts as 0 in states without data, as in V^."""
    logged = logged_pairs(mdp, counts)
    truth = policy_evaluation(true_mdp, policy, gamma)[0]
    on_data = np.where(logged.any(-1), truth, 0.0)
    return np.where(logged, bellman_backup(mdp, on_data, gamma) - bellman_backup(true_mdp, truth, gamma), 0.0)


def smallest_c(true_mdp: TabularMDP, mdp: TabularMDP, counts, policy, gamma) -> float:
    """The smallest C with which the paper's assumption holds for V^policy on this data set. Needs the true MDP."""
    error = np.maximum(backup_error(true_mdp, mdp, counts, policy, gamma), 0.0)
    return float((error * np.sqrt(counts)).max() * (1 - gamma) / _largest_reward(mdp))


def hoeffding_c(counts, gamma, num_outcomes, delta=0.05) -> float:
    """A C that needs no true MDP, for all logged pairs at once with probability 1 - delta.

    Hoeffding for the reward, |r^ - r| <= R_max sqrt(2 log(2/d) / n); Weissman et al. for the next state,
    |P^ - P|_1 <= sqrt(2 (K log 2 + log(1/d)) / n); d = delta / (2 pairs); |V| <= R_max / (1 - gamma). K is
    `num_outcomes`, how many next states a pair may have.
    """
    share = delta / (2 * np.count_nonzero(counts))
    reward = (1 - gamma) * np.sqrt(2 * np.log(2 / share))
    transition = gamma * np.sqrt(2 * (num_outcomes * np.log(2) + np.log(1 / share)))
    return float(reward + transition)


# --------------------------------------------------------------------------------------------- Theorems 3.3 and 3.4


@dataclass(frozen=True, eq=False)
class OneStep:
    """Theorem 3.3 for CQL(H), one step: how the penalty changes the value of a policy, state by state. Arrays [S]."""

    equality: Equality             # E_policy[Q - y] against alpha_half (1 - ratio)
    ratio: np.ndarray              # sum_a policy p / beta; NaN in states without data
    overestimates: np.ndarray      # bool, ratio < 1: the penalty *raises* the value of the policy here
    paper_condition: np.ndarray    # bool, the paper's sufficient condition D(p, beta) >= max_a (p/beta) TV(policy, p)


def theorem_3_3(mdp: TabularMDP, counts, q, policy, alpha_half, gamma) -> OneStep:
    """E_policy[Q - y] <= 0 iff sum_a policy p / beta >= 1; for the greedy policy, iff p(a*) >= beta(a*).

    q [S, A] is an exact solution of CQL(H) on `mdp`, -inf on pairs without data.
    """
    logged = logged_pairs(mdp, counts)
    seen, p, weight = logged.any(-1), np.where(logged, softmax(q), 0.0), np.where(logged, policy, 0.0)
    ratio = _over_beta(p, empirical_policy(counts), logged)
    change = np.where(seen, (weight * ratio).sum(-1), np.nan)
    distance = np.abs(weight - p).sum(-1) / 2
    left = (weight * _td_error(mdp, logged, q, gamma)).sum(-1)
    return OneStep(Equality.where(seen, left, alpha_half * (1 - change)), change, seen & (change < 1 - 1e-12),
                   seen & (chi_square(counts, p) >= ratio.max(-1) * distance))


def theorem_3_4(mdp: TabularMDP, counts, mu, values, alpha_half, gamma) -> Equality:
    """One update of Eq. 2 widens the gap E_beta Q - E_mu Q by alpha_half chi^2(mu || beta), [S].

    Left: gap(Q_{k+1}) - gap(y), y = r + gamma P values, Q_{k+1} = argmin of Eq. 2 with that y. values [S]: any.
    """
    beta, logged = empirical_policy(counts), logged_pairs(mdp, counts)
    y, mu = np.where(logged, bellman_backup(mdp, values, gamma), 0.0), np.where(logged, mu, 0.0)
    updated = y - alpha_half * (_over_beta(mu, beta, logged) - logged)
    left = ((beta - mu) * updated).sum(-1) - ((beta - mu) * y).sum(-1)
    return Equality.where(logged.any(-1), left, alpha_half * chi_square(counts, mu))


# ------------------------------------------------------------------------------------------- invariants of CQL(H)


def invariants(mdp: TabularMDP, counts, q, alpha_half, gamma) -> tuple[Equality, Equality]:
    """E_beta[Q - y] = 0 and E_p[Q - y] = -alpha_half chi^2(p || beta), [S], at a solution q [S, A] of CQL(H)."""
    beta, logged = empirical_policy(counts), logged_pairs(mdp, counts)
    seen, p, error = logged.any(-1), np.where(logged, softmax(q), 0.0), _td_error(mdp, logged, q, gamma)
    chi_square = _over_beta(np.square(p), beta, logged).sum(-1) - p.sum(-1)
    return (Equality.where(seen, (beta * error).sum(-1), 0.0),
            Equality.where(seen, (p * error).sum(-1), -alpha_half * chi_square))


def _over_beta(x, beta, logged):
    """x / beta on the logged pairs, 0 elsewhere. [S, A]"""
    return np.divide(x, beta, out=np.zeros_like(beta), where=logged)


def _td_error(mdp, logged, q, gamma):
    """Q - y on the logged pairs, y from V = max_a Q, [S, A]; 0 elsewhere."""
    values = np.where(logged.any(-1), state_value(np.where(logged, q, -np.inf)), 0.0)
    return np.where(logged, np.where(logged, q, 0.0) - bellman_backup(mdp, values, gamma), 0.0)


def _largest_reward(mdp):
    return max(float(np.abs(mdp.reward[mdp.probability > 0]).max(initial=0.0)), np.finfo(float).tiny)
