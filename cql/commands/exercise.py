"""``python -m cql exercise``: marks a file of one's own functions, or writes the templates to begin with."""

import argparse
import os
from contextlib import redirect_stdout

from cql.errors import reports_errors
from cql.exercises.catalogue import EXERCISES, notebook
from cql.exercises.marking import mark, read
from cql.files import atomic_write, new_folder


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql exercise", description=(
        "Trains small cases with the functions of FILE in place of the project's of the same names, and says what the "
        "exact solution says. Exit status 0: passed, 1: not yet, 2: it cannot be marked."))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", metavar="FILE", nargs="?", help="Python file, which is run; what it prints is not shown")
    what.add_argument("--write", metavar="DIR", help="folder to make, for the eight templates, also as a notebook, and "
                      "their solutions")
    arguments = parser.parse_args(argv)
    if arguments.write is not None:
        folder = new_folder(arguments.write)
        (folder / "solutions").mkdir()
        for exercise in EXERCISES:
            atomic_write(folder / f"{exercise.name}.py", exercise.template.encode())
            atomic_write(folder / "solutions" / f"{exercise.name}.py", exercise.solution.encode())
        atomic_write(folder / "exercises.ipynb", notebook().encode())
        print(f"eight exercises in {folder}, their solutions in {folder / 'solutions'}")
        return 0
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # FILE's functions run thousands of times
        passed, words = mark(read(arguments.file), arguments.file)
    print(words)
    return 0 if passed else 1
