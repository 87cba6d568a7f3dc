"""Prints updates per second on the CPU, of this project and of its peers: python -m benchmarks.throughput

Every case trains as ``train.py`` does, in a process of its own, for two seconds in each of five rounds. Peers are
measured in the same rounds by interpreters that have them, given as --peer d3rlpy=PATH/bin/python and
--peer jax=PATH/bin/python. Shown are medians over the rounds with the smallest and largest; ratios are taken round by
round.
"""

import argparse
import os
import sys
import tempfile

import torch

from benchmarks.case import data_file
from benchmarks.measuring import Command, in_turns, rates, ratios

OURS = {f"{algorithm.upper()} M={members} B={batch}": {"algorithm": algorithm, "members": members, "batch": batch}
        for algorithm, members, batch in (("cql", 1, 64), ("bc", 1, 64), ("cql", 32, 64), ("cql", 32, "full"))}
PEERS = {  # name -> label -> settings
    "d3rlpy": {"d3rlpy DiscreteCQL": {"algorithm": "cql"}, "d3rlpy DiscreteBC": {"algorithm": "bc"}},
    "jax": {"JAX scan CQL": {"algorithm": "cql", "members": 1}, "JAX scan BC": {"algorithm": "bc", "members": 1},
            "JAX vmap 32 CQL": {"algorithm": "cql", "members": 32}}}
AGAINST = {"CQL M=1 B=64": ("d3rlpy DiscreteCQL", "JAX scan CQL"), "BC M=1 B=64": ("d3rlpy DiscreteBC", "JAX scan BC"),
           "CQL M=32 B=64": ("d3rlpy DiscreteCQL", "JAX vmap 32 CQL")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON",
                        help="d3rlpy= or jax= and an interpreter")
    arguments = parser.parse_args()
    commands = {name: (sys.executable, "benchmarks.case", settings) for name, settings in OURS.items()}
    for name, _, interpreter in (text.partition("=") for text in arguments.peer):
        if name not in PEERS or not os.access(interpreter, os.X_OK):
            parser.error(f"--peer {name}={interpreter} must be d3rlpy= or jax= and an interpreter.")
        commands |= {label: (os.path.abspath(interpreter), f"benchmarks.peer_{name}", {"batch": 64} | settings)
                     for label, settings in PEERS[name].items()}
    with tempfile.TemporaryDirectory() as folder:
        data = {"data": data_file(folder, "coordinates")}
        found = in_turns({name: Command(interpreter, module, settings | data)
                          for name, (interpreter, module, settings) in commands.items()}, rounds=5, seconds=2.0)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores; member-updates per second")
    for name, answers in found.items():
        print(f"{name:<22}{rates(answers)}")
    for ours, labels in AGAINST.items():
        for label in filter(found.__contains__, labels):
            print(f"{ours:<22}{ratios(found[ours], found[label])} times {label}")


if __name__ == "__main__":
    main()
