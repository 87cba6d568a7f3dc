"""Predicted minus true value, exactly: the CQL paper's table of lower bounds, without training or rollouts.

Kumar et al. 2020 (arXiv 2006.04779) compare the value that a learned Q function predicts of its policy with the true
value, for Eq. 1, CQL(H) and ensembles. Here both numbers are computed: the prediction is an exact solution on the
empirical model of the data, the true value that of the same policy in the environment, discounted, with no step limit.

    CQL(H)              V^ = max_a Q^, its greedy policy
    Eq. 2, Eq. 1        V^ = E_pi[Q^] with mu = pi, pi the greedy policy of CQL(H) at the same alpha
    Q-learning          CQL(H) at alpha -> 0+: Q-learning restricted to logged actions
    minimum of B        Q-learning on B bootstrap resamples of the episodes, Q^ = min over those that logged the pair
    trained, alpha = 0  (with RUN) networks of a run of train.py: each seed, and the minimum over the seeds

Double Q-learning has no row: its exact solution is that of Q-learning. A trained run with --double-q gives it one.

Axes: S state, A action, N resample or seed. float64.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from cql.exact.dynamic_programming import greedy_policy, hitting_probability, policy_evaluation, state_value
from cql.exact.fixed_point import alpha_zero_limit, cql_fixed_point, eq1_fixed_point, half_square_alpha, logged_pairs
from cql.exact.mdp import TabularMDP, empirical_mdp, start_distribution
from cql.exact.theorems import eq2_value

ALPHAS = (0.1, 1.0, 6.0, 20.0, 100.0)
RESAMPLES = 10


@dataclass(frozen=True, eq=False)
class Estimate:
    """The predicted and the true value of a policy."""

    predicted: np.ndarray    # V^ [S]
    true: np.ndarray         # V [S] of the same policy
    seen: np.ndarray         # [S] bool, the states with data
    start: np.ndarray        # [S], the start distribution
    hazard: float | None     # P(the policy ever enters a hazard), without a step limit; None without hazards

    @property
    def at_start(self) -> float:
        """Predicted minus true value, expected over the start."""
        return float(self.start @ (self.predicted - self.true))

    @property
    def mean(self) -> float:
        """Predicted minus true value, averaged over the states with data."""
        return float((self.predicted - self.true)[self.seen].mean())

    @property
    def share_above(self) -> float:
        """Share of the states with data whose value is overestimated (by more than rounding)."""
        return float(((self.predicted - self.true)[self.seen] > 1e-9).mean())

    @property
    def true_at_start(self) -> float:
        return float(self.start @ self.true)


def estimate(true_mdp: TabularMDP, counts, predicted, policy, gamma) -> Estimate:
    """`predicted` [S] beside the true value of `policy` [S, A]; counts [S, A] of the data."""
    truth, _ = policy_evaluation(true_mdp, policy, gamma)
    start = start_distribution(true_mdp)
    hazard = None if true_mdp.hazard is None else float(start @ hitting_probability(true_mdp, policy, true_mdp.hazard))
    seen = logged_pairs(true_mdp, counts).any(-1)
    return Estimate(np.asarray(predicted, dtype=np.float64), truth, seen, start, hazard)


def greedy_estimate(true_mdp: TabularMDP, counts, q, gamma) -> Estimate:
    """max_a Q beside the true value of its greedy policy. q [S, A], -inf where an action must not be taken."""
    return estimate(true_mdp, counts, state_value(q), greedy_policy(q), gamma)


def estimates(true_mdp: TabularMDP, dataset, alphas, gamma) -> dict[str, Estimate]:
    """Every row that needs no training, of one data set, by name."""
    mdp, counts = _model(dataset, true_mdp)
    rows = penalised_estimates(true_mdp, mdp, counts, alphas, gamma)
    rows["Q-learning (alpha -> 0+)"] = greedy_estimate(true_mdp, counts, alpha_zero_limit(mdp, counts, gamma), gamma)
    rows[f"minimum of {RESAMPLES} resamples"] = greedy_estimate(
        true_mdp, counts, minimum(resampled_q(true_mdp, dataset, gamma)), gamma)
    return rows


def penalised_estimates(true_mdp: TabularMDP, mdp: TabularMDP, counts, alphas, gamma) -> dict[str, Estimate]:
    """CQL(H), Eq. 2 and Eq. 1 at each alpha (of the default loss), by name. mdp, counts: of the data."""
    rows = {}
    for alpha, q in zip(alphas, cql_fixed_point(mdp, counts, alphas, gamma).q):
        policy, half = greedy_policy(q), float(half_square_alpha(alpha, "mse"))
        eq1 = eq1_fixed_point(mdp, counts, policy, policy, half, gamma)
        for name, value in [("CQL(H)", state_value(q)), ("Eq. 2", eq2_value(mdp, counts, policy, half, gamma)),
                            ("Eq. 1", (policy * np.where(np.isneginf(eq1), 0.0, eq1)).sum(-1))]:
            rows[f"{name}, alpha {alpha:g}"] = estimate(true_mdp, counts, value, policy, gamma)
    return rows


def trained_estimates(true_mdp: TabularMDP, dataset, qs, gamma) -> dict[str, list[Estimate]]:
    """Networks without a penalty, one per seed: the estimate of each, and of their minimum. qs [N, S, A], finite."""
    _, counts = _model(dataset, true_mdp)
    return {"trained, alpha 0, each seed": [greedy_estimate(true_mdp, counts, q, gamma) for q in qs],
            f"trained, alpha 0, min of {len(qs)}": [greedy_estimate(true_mdp, counts, np.min(qs, axis=0), gamma)]}


def resampled_q(true_mdp: TabularMDP, dataset, gamma, resamples=RESAMPLES, seed=0) -> np.ndarray:
    """Support-restricted Q-learning on bootstrap resamples of a data set's episodes, Q [N, S, A].

    An episode drawn m times counts m times; all its steps go together.
    """
    rng = np.random.default_rng(seed)
    episodes, rows = np.unique(dataset.episode_ids, return_inverse=True)
    qs = []
    for _ in range(resamples):
        times = rng.multinomial(len(episodes), np.full(len(episodes), 1 / len(episodes)))[rows.reshape(-1)]   # [D]
        drawn = times > 0
        columns = ("observations", "actions", "rewards", "next_observations", "terminations")
        sample = SimpleNamespace(**{name: getattr(dataset, name)[drawn] for name in columns}, counts=times[drawn])
        mdp, counts = _model(sample, true_mdp)
        qs.append(alpha_zero_limit(mdp, counts, gamma))
    return np.stack(qs)


def minimum(qs) -> np.ndarray:
    """min over an ensemble [N, S, A] -> [S, A], over the members with a finite Q of the pair; -inf where none has."""
    least = np.where(np.isneginf(qs), np.inf, qs).min(0)
    return np.where(np.isposinf(least), -np.inf, least)


def _model(dataset, true_mdp):
    """`empirical_mdp` of a data set, with the masks and the start of the true model."""
    true = true_mdp
    return empirical_mdp(dataset, true.num_states, true.num_actions, true.hazard, true.goal, true.start, true.terminal)
