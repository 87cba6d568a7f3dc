"""Prints how often data are told apart from another variant of their environment: python -m benchmarks.misfit

Data sets of the behaviour policy are judged by the model of slip 0.05, which is that of the first row. Printed is the
share of them that ``cql.world.World.misfit`` would complain about, and quantiles of the p-value.
"""

import argparse

import numpy as np

from cql.collect import datasets_for, environment_spec, make_environment
from cql.config import Config
from cql.world import MISFIT_LEVEL, World, goodness_of_fit

SLIPS = (0.05, 0.06, 0.07, 0.10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.misfit", description=__doc__.splitlines()[0])
    parser.add_argument("--num-datasets", type=int, default=200, metavar="N")
    parser.add_argument("--episodes", type=int, default=500, metavar="N", help="of each data set")
    parser.add_argument("--slip", type=float, nargs="+", default=SLIPS, metavar="X")
    arguments = parser.parse_args()
    world = World.around(make_environment(environment_spec(Config())))
    print(f"{arguments.num_datasets} data sets of {arguments.episodes} episodes each, judged by the model of slip 0.05")
    print(f"{'slip':>5}{f'p < {MISFIT_LEVEL:g}':>12}{'p < 0.05':>10}   p-value: median, 5 % and 95 % quantile")
    for slip in arguments.slip:
        config = Config(slip=slip, episodes=arguments.episodes, num_datasets=arguments.num_datasets)
        p = np.array([goodness_of_fit(world.mdp, *world.empirical(data)) for data in datasets_for(config, {})])
        print(f"{slip:5.2f}{np.mean(p < MISFIT_LEVEL):12.1%}{np.mean(p < 0.05):10.1%}   {np.median(p):.2g}   "
              f"{np.quantile(p, 0.05):.2g}   {np.quantile(p, 0.95):.2g}", flush=True)


if __name__ == "__main__":
    main()
