"""``python -m cql export RUN OUT``: a policy as a file that needs nothing of this package."""

import argparse

from cql.deploy.export import FORMATS, export
from cql.errors import reports_errors


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql export", description=(
        "A policy as a file that needs nothing of this package: a torch.export program (.pt2) or ONNX."))
    parser.add_argument("path", metavar="RUN|ENTRY", help="a run folder, or an entry's folder in a registry")
    parser.add_argument("out", metavar="OUT", help="folder for the files, which are named after the member")
    parser.add_argument("--member", metavar="NAME", help="of the run, cql-a6-s42-d42 (default: its only CQL member)")
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="torch", help="(default %(default)s)")
    arguments = parser.parse_args(argv)
    formats = tuple(FORMATS) if arguments.format == "all" else (arguments.format,)
    print("\n".join(export(arguments.path, arguments.out, arguments.member, formats)))
    return 0
