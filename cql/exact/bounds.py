"""Predicted minus true value, exactly: the CQL paper's table of lower bounds, redone without training or rollouts.

Kumar et al. 2020 (arXiv 2006.04779) compare what a learned Q function predicts of its policy with what the policy is
worth, for Eq. 1, CQL(H) and ensembles. Here both numbers are computed: the prediction is a fixed point on the data's
empirical model, the true value that of the same policy in the environment, discounted, without a step limit.

    CQL(H)              V^ = max_a Q^, its greedy policy
    Eq. 2, Eq. 1        V^ = E_pi[Q^] with mu = pi, pi the greedy policy of CQL(H) at the same alpha
    Q-learning          CQL(H) at alpha -> 0+: Q-learning restricted to logged actions
    minimum of B        Q-learning on B bootstrap resamples of the episodes, Q^ = min over those that logged the pair
    trained, alpha = 0  (with RUN) networks of a run of train.py: each seed, and the minimum over the seeds

Double Q-learning with a target network has no row: where the two networks agree, as at a fixed point, so do their
greedy actions, and its fixed point is Q-learning's. A trained run with --double-q gives it one.

Axes: S state, A action, N data draw. float64.
"""

import argparse
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from cql import config as settings
from cql.collect import datasets_for, environment_of
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.exact.oracle import alpha_zero_limit, cql_fixed_point, eq1_fixed_point, half_square_alpha
from cql.exact.tabular import (
    TabularMDP,
    greedy_policy,
    hitting_probability,
    policy_evaluation,
    start_distribution,
    state_value,
)
from cql.exact.theorems import add_arguments, config_of, eq2_value, models_of, true_model_of

ALPHAS = (0.1, 1.0, 6.0, 20.0, 100.0)
RESAMPLES = 10
SMALL = 1e-9      # a difference up to this counts as none


@dataclass(frozen=True, eq=False)
class Estimate:
    """What was predicted of a policy, and what is true of it.

    Args:
        predicted, true: V^ and V of the same policy [S].
        seen: [S] bool, the states with data.
        start: [S], the start distribution.
        hazard: probability that the policy, from the start and without a step limit, ever enters a hazard; None where
            the environment knows of none.
    """

    predicted: np.ndarray
    true: np.ndarray
    seen: np.ndarray
    start: np.ndarray
    hazard: float | None

    @property
    def at_start(self) -> float:
        """Predicted minus true value, expected over the start."""
        return float(self.start @ (self.predicted - self.true))

    @property
    def mean(self) -> float:
        """Predicted minus true value, averaged over the states with data, each counted once."""
        return float((self.predicted - self.true)[self.seen].mean())

    @property
    def share_above(self) -> float:
        """Share of the states with data whose value is overestimated."""
        return float(((self.predicted - self.true)[self.seen] > SMALL).mean())

    @property
    def true_at_start(self) -> float:
        return float(self.start @ self.true)


def estimate(true_mdp: TabularMDP, counts, predicted, policy, gamma) -> Estimate:
    """`predicted` [S] beside the true value of `policy` [S, A]."""
    seen = np.asarray(counts).any(-1) & ~true_mdp.terminal
    truth, _ = policy_evaluation(true_mdp, policy, gamma)
    start = start_distribution(true_mdp)
    hazard = None if true_mdp.hazard is None else float(start @ hitting_probability(true_mdp, policy, true_mdp.hazard))
    return Estimate(np.asarray(predicted, dtype=np.float64), truth, seen, start, hazard)


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


def greedy_estimate(true_mdp: TabularMDP, counts, q, gamma) -> Estimate:
    """max_a Q beside the true value of its greedy policy. q [S, A], -inf where an action is not to be taken."""
    return estimate(true_mdp, counts, state_value(q), greedy_policy(q), gamma)


def minimum(qs) -> np.ndarray:
    """min over an ensemble [N, S, A] -> [S, A], over those members that know the pair; -inf where none does."""
    qs = np.asarray(qs, dtype=np.float64)
    least = np.where(np.isneginf(qs), np.inf, qs).min(0)
    return np.where(np.isposinf(least), -np.inf, least)


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
        qs.append(alpha_zero_limit(*models_of(sample, true_mdp), gamma))
    return np.stack(qs)


def estimates(true_mdp: TabularMDP, dataset, alphas, gamma) -> dict[str, Estimate]:
    """Every row that needs no training, of one data set, by name."""
    mdp, counts = models_of(dataset, true_mdp)
    rows = penalised_estimates(true_mdp, mdp, counts, alphas, gamma)
    rows["Q-learning (alpha -> 0+)"] = greedy_estimate(true_mdp, counts, alpha_zero_limit(mdp, counts, gamma), gamma)
    rows[f"minimum of {RESAMPLES} resamples"] = greedy_estimate(
        true_mdp, counts, minimum(resampled_q(true_mdp, dataset, gamma)), gamma)
    return rows


def trained_estimates(true_mdp: TabularMDP, dataset, qs, gamma) -> dict[str, list[Estimate]]:
    """Networks without a penalty, one per seed: each, and the minimum over them. qs [N, S, A], every action known."""
    _, counts = models_of(dataset, true_mdp)
    return {"trained, alpha 0, each seed": [greedy_estimate(true_mdp, counts, q, gamma) for q in qs],
            f"trained, alpha 0, min of {len(qs)}": [greedy_estimate(true_mdp, counts, np.min(qs, axis=0), gamma)]}


# ---------------------------------------------------------------------------------------------------- the command


def table(rows: dict[str, list[Estimate]]) -> str:
    """A row a method; mean ± standard deviation over the estimates of each (over data draws)."""
    heading = ["predicted - true", "at start", "mean over states", "states above", "true V at start", "hazard, ever"]
    lines = [heading]
    for name, found in rows.items():
        columns = [[e.at_start for e in found], [e.mean for e in found], [e.share_above for e in found],
                   [e.true_at_start for e in found], [e.hazard for e in found]]
        lines.append([name, *(_spread(x, form) for x, form in zip(columns, (".2f", ".2f", ".3f", ".2f", ".3f")))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) if n else cell.ljust(width)
                               for n, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def _spread(values, form):
    if None in values:
        return "–"
    text = format(float(np.mean(values)) + 0.0, form)
    return text if len(values) == 1 else f"{text} ± {format(float(np.std(values, ddof=1)), form)}"


def read_run(path):
    """(config, datasets, one list of Q functions of its alpha = 0 members per data set) of a run of train.py.

    Raises:
        RunError: no run, a damaged file, no CQL member at alpha = 0, or an objective of which nothing exact is known.
    """
    from cql.members import all_members
    from cql.policy import Policy  # here, so that what is exact knows of networks nowhere else
    from cql.runs import RunError, RunFolder
    from cql.world import refuse_unknown

    run = RunFolder.open(path)
    config = run.config()
    refuse_unknown(config.objective)
    if config.td_loss == "huber":
        raise RunError(f"{path} minimised the Huber loss: the other rows of the table are solutions of a squared error.")
    members = [m for m in all_members(config) if m.algorithm == "cql" and m.alpha == 0]
    if not members:
        raise RunError(f"{path} has no CQL member at alpha 0: train one with --alpha 0 --num-seeds N.")
    datasets = run.datasets(config)
    policies = {seed: [Policy.load(run.policy_path(m.name)) for m in members if m.data_seed == seed]
                for seed in config.data_seeds}
    return config, datasets, list(policies.values())


def all_q_values(dataset, policies) -> np.ndarray:
    """Q of trained policies in every state of the data set's environment, [N, S, A]."""
    from cql.diagnostics import state_inputs

    inputs = state_inputs(environment_of(dataset)).numpy()
    return np.stack([policy.q_values(inputs) for policy in policies]).astype(np.float64)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql.exact.bounds", description=(
        "Predicted minus true value of CQL(H), Eq. 1, Eq. 2 and Q-learning, exactly, over data draws."))
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run of train.py with --alpha 0 and several seeds: its "
                        "data, and rows for its networks and the minimum over its seeds")
    add_arguments(parser, ALPHAS)
    arguments = parser.parse_args(argv)
    from cql.runs import RunError

    try:
        given = settings.given(arguments)
        if arguments.run is None:
            config, trained = config_of(arguments, ALPHAS), None
            datasets, gamma = datasets_for(config, given), config.gamma
        else:
            if given.keys() - {"alpha"}:
                raise ConfigError("RUN brings its own data and gamma: beside it, give --alpha only.")
            config = config_of(arguments, ALPHAS)
            recorded, datasets, trained = read_run(arguments.run)
            gamma = recorded.gamma
            if gamma == 1:
                raise ConfigError("the run has gamma 1: the fixed points need gamma below 1.")
        true_mdp, rows = true_model_of(datasets[0]), {}
        for n, dataset in enumerate(datasets):
            found = {name: [row] for name, row in estimates(true_mdp, dataset, config.alpha, gamma).items()}
            if trained is not None:
                found |= trained_estimates(true_mdp, dataset, all_q_values(dataset, trained[n]), gamma)
            for name, row in found.items():
                rows.setdefault(name, []).extend(row)
    except (ConfigError, DatasetError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(datasets)} data draw(s), gamma {gamma:g}; mean ± standard deviation over the draws; alpha of the "
          "default loss, twice the paper's")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
