"""Prints CQL against BC, both solved exactly, over many data sets: python -m benchmarks.exact_draws [--num-datasets 64]

Nothing is trained: CQL is the fixed point of its objective on each data set (cql.exact.fixed_point), BC the most
frequent logged action. With --out FILE.png the distributions of return and hazard probability are drawn too.
"""

import argparse

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from cql.analysis.figures.style import BLACK, BLUE, DPI, ORANGE, STYLE, WIDTH, heading
from cql.collect import datasets_for
from cql.config import Config
from cql.exact import cql_fixed_point, deterministic_policies, evaluate_policies
from cql.world import World


def outcomes(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(return, hazard probability) for every data set: arrays ``[D, alphas + 1]``, CQL by alphas, then BC."""
    datasets = datasets_for(config, {})
    world, actions = World.of(datasets[0]).known(), []
    for dataset in datasets:
        empirical, counts = world.empirical(dataset)
        q = cql_fixed_point(empirical, counts, config.alpha, config.gamma).q  # [alphas, S, A]
        actions += [*np.where(np.isfinite(q), q, -1e300).argmax(-1), counts.argmax(-1)]
    result = evaluate_policies(world.mdp, deterministic_policies(np.array(actions), world.mdp.num_actions),
                               horizon=world.horizon)
    shape = (len(datasets), len(config.alpha) + 1)
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
            ax.set(xlabel=label, ylabel="share of data sets at or below", ylim=(0, 1.02))
            ax.grid(True)
        axes[0].legend(loc="upper left")
        axes[1].plot([], [], color=BLACK, linestyle="--", linewidth=1, label="mean")
        axes[1].legend(loc="lower right")
        heading(figure, "The worth of a policy depends on its data set, that of CQL much less than that of BC", about)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_draws", description=__doc__.splitlines()[0])
    parser.add_argument("--num-datasets", type=int, default=64, metavar="N")
    parser.add_argument("--alpha", type=float, default=6.0, metavar="X")
    parser.add_argument("--out", metavar="FILE.png", help="draw the distributions")
    arguments = parser.parse_args()
    config = Config(num_datasets=arguments.num_datasets, alpha=(arguments.alpha,))
    returns, hazards = outcomes(config)
    count = len(returns)
    for name, column in (("CQL", 0), ("BC", 1)):
        print(f"{name:3}  return {returns[:, column].mean():7.2f} ± {returns[:, column].std(ddof=1):5.2f}   "
              f"hazard probability {hazards[:, column].mean():.4f} ± {hazards[:, column].std(ddof=1):.4f}")
    better = int((returns[:, 0] > returns[:, 1]).sum())
    print(f"CQL better on {better} of {count} data sets ({better / count:.0%}); hazard "
          f"{hazards[:, 0].mean() / hazards[:, 1].mean():.2f} of BC's; return "
          f"{(returns[:, 0] - returns[:, 1]).mean():+.2f}")
    if arguments.out:
        draw(returns, hazards, f"α = {arguments.alpha:g}, {count} data sets from seed {config.data_seed} on, map "
             f"{config.map}; nothing is trained: both are solved exactly on the same data", arguments.out)


if __name__ == "__main__":
    main()
