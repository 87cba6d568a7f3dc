"""Prints updates per second on the CPU, of this project and of its peers: python -m benchmarks.throughput

Every case trains as ``train.py`` does, in a process of its own, for a few seconds in each of several rounds. "of bmm"
is the share of ``torch.bmm``'s rate that the matrix products of the training reach: products of every transition of
the batch are counted, but equal observations are read once, so that shares above 1 are possible. Shown are medians
over the rounds with the smallest and largest; ratios are taken round by round.

Peers are measured in the same rounds by interpreters that have them, given as --peer d3rlpy=PATH/bin/python and
--peer jax=PATH/bin/python.
"""

import argparse
import os
import tempfile

import torch

from benchmarks.case import command, data_file
from benchmarks.measuring import Command, in_turns, rates, ratios, spread

CASES = [("cql", 1, 64), ("bc", 1, 64), ("cql", 32, 64), ("cql", 32, "full")]  # algorithm, members, batch
PEERS = {  # name -> label -> settings, and the members of the cases that it stands against
    "d3rlpy": {"d3rlpy DiscreteCQL": ({"algorithm": "cql", "threads": None}, (1, 32)),
               "d3rlpy DiscreteCQL, 1 thread": ({"algorithm": "cql", "threads": 1}, (1, 32)),
               "d3rlpy DiscreteBC": ({"algorithm": "bc", "threads": None}, (1,)),
               "d3rlpy DiscreteBC, 1 thread": ({"algorithm": "bc", "threads": 1}, (1,))},
    "jax": {"JAX scan CQL": ({"algorithm": "cql", "members": 1}, (1,)),
            "JAX scan BC": ({"algorithm": "bc", "members": 1}, (1,)),
            "JAX vmap 32 CQL": ({"algorithm": "cql", "members": 32}, (32,))}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that it works")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON",
                        help="d3rlpy= or jax= and an interpreter")
    arguments = parser.parse_args()
    interpreters = dict(text.partition("=")[::2] for text in arguments.peer)
    for name, interpreter in interpreters.items():
        if name not in PEERS or not os.access(interpreter, os.X_OK):
            parser.error(f"--peer {name}={interpreter} must be d3rlpy= or jax= and an interpreter.")
    with tempfile.TemporaryDirectory() as folder:
        data = {observation: data_file(folder, observation) for observation in ("coordinates", "index")}
        shared = {"data": data["coordinates"], "batch": 64, "width": 256}
        ours = {(observation, *case): command(path, *case, bmm=True)
                for observation, path in data.items() for case in CASES}
        theirs = {label: Command(os.path.abspath(interpreter), f"benchmarks.peer_{name}", shared | settings)
                  for name, interpreter in interpreters.items() for label, (settings, _) in PEERS[name].items()}
        found = in_turns(ours | theirs, *((2, 0.3) if arguments.quick else (5, 2.0)))
    print(f"torch {torch.__version__}, {os.cpu_count()} cores")
    print(f"{'':<46}{'member-updates/s':<24}of bmm")
    for observation, algorithm, members, batch in ours:
        answers = found[observation, algorithm, members, batch]
        name = f"{algorithm.upper()} {observation} M={members} B={batch}"
        print(f"{name:<46}{rates(answers):<24}{spread([answer['of bmm'] for answer in answers])}")
    for label in theirs:
        print(f"{label:<46}{rates(found[label])}")
    for observation, algorithm, members, batch in ours:
        for label, (settings, against) in (pair for name in interpreters for pair in PEERS[name].items()):
            if batch == 64 and algorithm == settings["algorithm"] and members in against:
                ratio = ratios(found[observation, algorithm, members, batch], found[label])
                name = f"{algorithm.upper()} {observation} M={members} B={batch}"
                print(f"{name:<46}{ratio} times {label}")


if __name__ == "__main__":
    main()
