"""``python -m cql COMMAND``: every command line but those of ``train.py`` and ``evaluate.py``."""

import argparse
import sys
from importlib import import_module

from cql.collect import with_module
from cql.errors import reports_errors

COMMANDS = {
    "data": "a data set from a table, and a card that says what a data set holds",
    "phase": "the exact solution over alpha, without training",
    "theorems": "both sides of the CQL paper's theorems",
    "bounds": "predicted minus true value of CQL and of what it is compared with",
    "compare": "runs side by side",
    "verify": "holds a run folder against its manifest",
    "registry": "registers, promotes and verifies trained members",
    "explore": "a page that solves CQL as you change world, data and alpha",
    "explain": "why a member acts as it does in a state",
    "serve": "the REST service over a registry",
    "bot": "a Telegram bot over the service",
    "export": "writes a policy as a torch.export program or ONNX",
    "exercise": "marks functions of your own by the exact solution",
}


@reports_errors
def main(argv: list[str] | None = None) -> int:
    name, *arguments = argv or ["--help"]
    if name == "--env" and arguments:  # of a run whose --env names a module
        with_module(argparse.Namespace(env=arguments[0]))
        name, *arguments = arguments[1:] or ["--help"]
    if name in COMMANDS:
        return import_module(f"cql.commands.{name}").main(arguments)
    if name not in ("-h", "--help"):
        print(f"error: there is no command {name}: give one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    print("usage: python -m cql [--env MODULE:ID] COMMAND …    (COMMAND --help says more)\n")
    print("\n".join(f"  {name:10}{about}" for name, about in COMMANDS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
