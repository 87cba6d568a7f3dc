"""``python -m cql data``: a table of logged decisions as a data set, and a card that says what a data set holds."""

import argparse
from pathlib import Path

import numpy as np

from cql import config as settings
from cql.analysis.data_card import card
from cql.collect import datasets_for, findings
from cql.config import DATA, Config
from cql.data_table import dataset_of_table
from cql.errors import ConfigError, reports_errors
from cql.text import counted
from cql.world import World

IMPORT = (
    "Writes a data set from a table with one row for each decision. The rows of an episode may stand anywhere: they "
    "are sorted by --step, and the next observation is the observation of the next row. An episode ends with its last "
    "row. Where --terminal says that it did not, it was cut off: its last row then only gives the observation that "
    "follows the row before, and its action and reward may be empty. Any other missing value is refused.")
COLUMNS = {"episode": "the episode's name or number", "step": "the place in the episode: a number or a time",
           "action": "the action taken: a number or a label", "reward": "the reward for it",
           "state": "in place of --features: a label or number of the state",
           "terminal": "1 or true in the row with which an episode ended by itself (default: every last row)"}
GENERATION = ("episodes", "epsilon", "data_seed", "num_datasets", "dataset")  # settings of data that are not given
CHECK = ("Prints what a data set holds, what may be wrong with it, how long training takes and the command to train. "
         "Settings are those that train.py would get. The exit status is 1 where something may be wrong.")


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m cql data", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("import", help="a data set from a table", description=IMPORT)
    table.add_argument("path", metavar="FILE", help="a .csv, separated by commas, or a .parquet")
    table.add_argument("--to", required=True, metavar="FILE.npz", help="the data set to write")
    for name, text in COLUMNS.items():
        table.add_argument(f"--{name}", required=name not in ("state", "terminal"), metavar="COLUMN", help=text)
    table.add_argument("--features", nargs="+", default=(), metavar="COLUMN", help="the numbers that a policy sees")
    table.add_argument("--horizon", type=int, metavar="N", help="steps after which an episode is cut off, if known")
    table.add_argument("--irregular", action="store_true", help="take steps that are not evenly spaced")
    check = commands.add_parser("check", help="what a data set holds", description=CHECK)
    check.add_argument("path", metavar="FILE.npz", help="the data set, as in docs/own_problem.md")
    settings.add_arguments(check, groups=(DATA,), without=GENERATION)
    return parser.parse_args(argv)


@reports_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.command == "import":
        if not arguments.to.endswith(".npz"):
            raise ConfigError(f"--to {arguments.to} must end in .npz.")
        if not (folder := Path(arguments.to).parent).is_dir():
            raise ConfigError(f"--to {arguments.to}: there is no folder {folder}.")
        dataset = dataset_of_table(**{
            name: value for name, value in vars(arguments).items() if name not in ("command", "to")})
        dataset.save(arguments.to)
        print(f"{arguments.to}: {len(dataset):,} transitions, {counted(len(dataset.episode_starts), 'episode')}, "
              f"{dataset.truncations.sum():,} of them cut off (python -m cql data check {arguments.to})")
        return 0
    given = {**settings.given(arguments), "dataset": arguments.path}
    config = Config(**given)
    [dataset] = datasets_for(config, given)
    found = [*filter(None, (dataset.breaks_in_words(), World.of(dataset).misfit(dataset))), *findings(dataset)]
    with np.load(arguments.path) as archive:
        print(card(dataset, config, archive["observations"]))
    print("\n".join(f"found: {sentence}" for sentence in found) or "nothing was found to be wrong")
    return int(bool(found))
