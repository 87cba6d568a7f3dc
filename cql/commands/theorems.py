"""``python -m cql theorems``: both sides of Theorems 3.1 to 3.4 of the CQL paper, on a map and a data set."""

import argparse

import numpy as np

from cql import config as settings
from cql.collect import datasets_for, with_module
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, reports_errors
from cql.exact import cql_fixed_point, empirical_policy, greedy_policy, softmax, start_distribution, theorems
from cql.world import World


def add_arguments(parser: argparse.ArgumentParser, default_alphas) -> None:
    """Adds the options that commands on exact values share: those of the data, --alpha and --gamma."""
    settings.add_arguments(parser, groups=(settings.DATA,), also=("gamma",))
    parser.add_argument("--alpha", type=float, nargs="+", metavar="A", default=argparse.SUPPRESS,
                        help="alpha(s) of the default loss, twice alpha_half (default "
                             f"{' '.join(format(a, 'g') for a in default_alphas)})")


def config_of(arguments: argparse.Namespace, default_alphas) -> Config:
    """The Config of these options. Raises ConfigError, one sentence."""
    config = Config(**{"alpha": tuple(default_alphas), **settings.given(arguments)})
    if config.gamma == 1:
        raise ConfigError("--gamma must be below 1: the fixed point rests on the contraction.")
    return config


def print_misfit(world: World, dataset: OfflineDataset, config: Config) -> None:
    """Prints a note if given data can hardly come from the model of their environment."""
    if (misfit := world.misfit_of_given(dataset, config)) is not None:
        print(f"note: {misfit}")


def report(true_mdp, mdp, counts, alphas, gamma) -> str:
    """The theorems on one data set as text: both sides at the start, and the largest difference over all states."""
    counts = np.where(true_mdp.terminal[:, None], 0, counts)
    logged = counts > 0
    lines = [f"{logged.any(-1).sum()} states with data, {logged.sum()} logged pairs, "
             f"{(logged.sum(-1) == 1).sum()} states with a single logged action; gamma {gamma:g}",
             "left and right: expected over the start; difference: the largest over all states with data"]
    for alpha, q in zip(alphas, cql_fixed_point(mdp, counts, alphas, gamma).q):
        lines += ["", f"alpha {alpha:g} (alpha_half {alpha / 2:g})",
                  *_equalities(true_mdp, mdp, counts, q, alpha, gamma),
                  *_conservatism(true_mdp, mdp, counts, q, alpha / 2, gamma)]
    return "\n".join(lines)


def _equalities(true_mdp, mdp, counts, q, alpha, gamma):
    """A table of both sides of each theorem, on the true dynamics of the logged pairs and on the empirical model."""
    half, start, rng = alpha / 2, start_distribution(true_mdp), np.random.default_rng(0)
    lines = [f"  {'':45}{'model':17}{'left':>13}{'right':>13}{'difference':>13}"]

    def add(label, name, equality, policy=None):
        sides = [equality.left, equality.right]
        if policy is not None:
            sides = [np.nansum(policy * side, axis=-1) for side in sides]
        left, right = (round(float(np.nansum(start * side)), 6) + 0.0 for side in sides)  # no -0.000000
        lines.append(f"  {name:45}{label:17}{left:13.6f}{right:13.6f}{equality.largest:13.1e}")

    covered = theorems.covered(true_mdp, counts)
    # without sampling error CQL(H) has another exact solution: that of the true dynamics
    for label, model, q_model in [("true dynamics", covered, cql_fixed_point(covered, counts, [alpha], gamma).q[0]),
                                  ("empirical model", mdp, q)]:
        policy, p = greedy_policy(q_model), softmax(q_model)
        add(label, "3.1  Q^ (Eq. 1, mu = p) of the greedy action",
            theorems.theorem_3_1(model, counts, p, policy, half, gamma), policy)
        add(label, "3.2  V^ - V (Eq. 2, mu = greedy)", theorems.theorem_3_2(model, counts, policy, half, gamma))
        if model is mdp:
            add(label, "3.2  V^(alpha) = V^(0) - alpha_half U",
                theorems.sampling_error(true_mdp, mdp, counts, policy, half, gamma).equality)
        add(label, "3.3  E_greedy[Q - y] at CQL(H)",
            theorems.theorem_3_3(model, counts, q_model, policy, half, gamma).equality)
        add(label, "3.4  gap widened, mu = p, V random",
            theorems.theorem_3_4(model, counts, p, rng.normal(scale=10, size=len(counts)), half, gamma))
        under_beta, under_softmax = theorems.invariants(model, counts, q_model, half, gamma)
        add(label, "     E_beta[Q - y] = 0 at CQL(H)", under_beta)
        add(label, "     E_p[Q - y] = -alpha_half chi2(p||beta)", under_softmax)
    return lines


def _conservatism(true_mdp, mdp, counts, q, half, gamma):
    """Where CQL(H) raises its greedy action, and the alpha_half that three policies need for a lower bound."""
    beta, start = empirical_policy(counts), start_distribution(true_mdp)
    seen = beta.any(-1)
    policies = {"greedy": greedy_policy(q), "softmax": softmax(q),
                "beta": np.where(seen[:, None], beta, 1 / beta.shape[1])}
    step = theorems.theorem_3_3(mdp, counts, q, policies["greedy"], half, gamma)
    lines = [f"  3.3: CQL(H) raises its greedy action (p(a*) < beta(a*)) in {step.overestimates.sum()} of {seen.sum()} "
             f"states; the paper's sufficient condition holds in {step.paper_condition.sum()}",
             "  alpha_half that makes V^ of Eq. 2 (empirical model) a lower bound of the true value:",
             f"  {'policy':9}{'at start':>10}{'everywhere':>12}{'beyond repair':>15}{'the rest':>10}"
             f"{'paper, smallest C':>27}{'paper, Hoeffding C':>28}"]
    outcomes = int((true_mdp.probability > 0).sum(-1).max())
    for name, policy in policies.items():
        error = theorems.sampling_error(true_mdp, mdp, counts, policy, half, gamma)
        excess, lowering = (float(np.nansum(start * x)) for x in (error.excess, error.conservatism))
        at_start = np.inf if lowering <= theorems.NEGLIGIBLE else excess / lowering
        if excess <= theorems.NEGLIGIBLE:
            at_start = 0.0
        line = (f"  {name:9}{at_start:10.3g}{error.smallest_alpha:12.3g}{error.beyond_repair:15d}"
                f"{error.smallest_alpha_of_the_rest:10.3g}")
        for c, width in [(theorems.smallest_c(true_mdp, mdp, counts, policy, gamma), 27),
                         (theorems.hoeffding_c(counts, gamma, outcomes), 28)]:
            paper = theorems.paper_constant(mdp, counts, policy, gamma, c)
            line += f"{f'{paper.alpha_half:.3g} ({paper.alpha_half_of_the_rest:.3g}; C {c:.2g})':>{width}}"
        lines.append(line)
    free = (seen & (theorems.chi_square(counts, policies["greedy"]) <= theorems.NEGLIGIBLE)).sum()
    return [*lines, "  in brackets: over the states with D > 0 alone; the greedy policy has D = 0 in "
            f"{free} states, and one such state makes the paper's constant infinite"]


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql theorems", description=(
        "Theorems 3.1 to 3.4 of the CQL paper on a map and a data set, both sides computed."))
    add_arguments(parser, (6.0,))
    arguments = with_module(parser.parse_args(argv))
    config = config_of(arguments, (6.0,))
    datasets = datasets_for(config, settings.given(arguments))
    world = World.of(datasets[0]).known()
    for data_seed, dataset in zip(config.data_seeds, datasets):
        print(f"data {data_seed if config.dataset is None else config.dataset}: "
              f"{report(world.mdp, *world.empirical(dataset), config.alpha, config.gamma)}\n")
    print_misfit(world, datasets[0], config)
    return 0
