"""CQL against BC, both solved exactly, over many data draws: python -m benchmarks.exact_draws [--num-datasets 64] [--alpha 6]

No training: CQL is the fixed point of its objective on each draw's data (cql.exact.oracle), BC the most frequent logged
action. Prints the comparison and draws the distribution into --out FILE.png.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from cql import config as settings
from cql.analysis.look import BLACK, BLUE, DPI, ORANGE, STYLE, WIDTH, heading
from cql.analysis.logged import known_model, logged_model
from cql.collect import datasets_for, environment_of
from cql.config import ConfigError
from cql.diagnostics import greedy_policies
from cql.dataset import DatasetError
from cql.exact.oracle import CertificateError, cql_fixed_point
from cql.exact.tabular import evaluate_policies
from cql.runs import RunError


def outcomes(config, given: dict, alphas: list[float], gamma: float):
    """(return, hazard probability) for every draw: two arrays ``[draws, alphas + 1]``, CQL by ``alphas``, then BC."""
    datasets = datasets_for(config, given)
    environment = environment_of(datasets[0])
    model, actions = known_model(environment), []
    for dataset in datasets:
        empirical, counts = logged_model(dataset, environment, model)
        q = cql_fixed_point(empirical, counts, alphas, gamma).q                                       # [N, S, A]
        actions += [*np.where(np.isfinite(q), q, -1e300).argmax(-1), counts.argmax(-1)]
    result = evaluate_policies(model, greedy_policies(np.array(actions), model.num_actions),
                               horizon=environment.spec.max_episode_steps)
    shape = (len(datasets), len(alphas) + 1)
    return result.returns.reshape(shape), result.hazard_probability.reshape(shape)


def draw(returns: np.ndarray, hazards: np.ndarray, about: str, path: str) -> None:
    with style.context(["default", STYLE]):
        figure = Figure((WIDTH, 4.2), layout="constrained")
        axes = figure.subplots(1, 2)
        for ax, values, label in ((axes[0], returns, "exact return"), (axes[1], hazards, "exact hazard probability")):
            shares = (np.arange(len(values)) + 1) / len(values)
            for column, name, colour in ((1, "BC by counts", ORANGE), (0, "CQL, exact", BLUE)):
                ax.step(np.sort(values[:, column]), shares, where="post", color=colour, label=name)
                ax.axvline(values[:, column].mean(), color=colour, linestyle="--", linewidth=1)
            ax.set(xlabel=label, ylabel="share of draws at or below", ylim=(0, 1.02))
            ax.grid(True)
        axes[0].legend(loc="upper left")
        axes[1].plot([], [], color=BLACK, linestyle="--", linewidth=1, label="mean")
        axes[1].legend(loc="lower right")
        heading(figure, "Data draws decide, and CQL much less than BC", about)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_draws", description=__doc__.partition(":")[0])
    settings.add_arguments(parser, groups=("environment and data",))
    parser.add_argument("--alpha", type=float, default=6.0, metavar="X")
    parser.add_argument("--gamma", type=float, default=0.99, metavar="X")
    parser.add_argument("--out", metavar="FILE.png", help="draw the distribution")
    arguments = parser.parse_args(argv)
    given = {name: value for name, value in settings.given(arguments).items() if name not in ("alpha", "gamma")}
    try:
        if arguments.out and not (arguments.out.endswith(".png") and Path(arguments.out).parent.is_dir()):
            raise ConfigError(f"--out {arguments.out} must be a .png in a folder that exists.")
        if "dataset" in given:
            raise ConfigError("many draws are generated, so --dataset has no part here.")
        config = settings.Config(**{"num_datasets": 64} | given, alpha=(arguments.alpha,), gamma=arguments.gamma)
        returns, hazards = outcomes(config, given, [arguments.alpha], arguments.gamma)
        if len(returns) < 2:
            raise ConfigError("one draw has no distribution: --num-datasets must be at least 2.")
    except (ConfigError, DatasetError, RunError, CertificateError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = len(returns)
    for name, column in (("CQL", 0), ("BC", 1)):
        print(f"{name:3}  return {returns[:, column].mean():7.2f} ± {returns[:, column].std(ddof=1):5.2f}   "
              f"hazard probability {hazards[:, column].mean():.4f} ± {hazards[:, column].std(ddof=1):.4f}")
    better = int((returns[:, 0] > returns[:, 1]).sum())
    print(f"CQL better on {better} of {count} draws ({better / count:.0%}); hazard {hazards[:, 0].mean() / hazards[:, 1].mean():.2f} "
          f"of BC's; return {(returns[:, 0] - returns[:, 1]).mean():+.2f}")
    if arguments.out:
        draw(returns, hazards, f"α = {arguments.alpha:g}, {count} draws from data seed {config.data_seed} on, map {config.map}; "
             "nothing trained, both solved on each draw's data", arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
