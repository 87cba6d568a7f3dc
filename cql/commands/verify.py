"""``python -m cql verify RUN``: holds every file of a run folder against its manifest."""

import argparse

from cql.errors import reports_errors
from cql.run_folder import RunFolder


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cql verify", description="Checks a run folder against its manifest.")
    parser.add_argument("run", metavar="RUN")
    run = RunFolder.open(parser.parse_args(argv).run)
    problems = run.verify()
    for problem in problems:
        print(problem)
    print(f"{run.path}: {f'{len(problems)} problem(s) in' if problems else 'sound,'} {len(run.files())} files")
    return 1 if problems else 0
