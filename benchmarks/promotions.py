"""Many processes at one registry, then damage: python -m benchmarks.promotions RUN [--processes 20] [--each 10] [--damages 200]

Registers every member of a finished run in a new registry that is thrown away. All processes then promote at once, each so many
times: is every promotion in the log, once, in the order of its process, and does the log verify? After that, one bit of the
entries or the log is flipped, or one line of the log removed, doubled or moved, time after time: does ``verify`` find each?
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cql.deploy.gate import Limits
from cql.deploy.history import LOG, PROMOTE
from cql.deploy.store import ENTRIES, Registry
from cql.members import all_members
from cql.runs import RunError, RunFolder

ANY = Limits(max_hazard=1, min_return=-1e9, max_unsupported=1)


def promote_at_once(path: Path, ids: list[str], processes: int, each: int) -> list[str]:
    """Promotes by so many processes, ``each`` times apiece; what is wrong with the log afterwards, a sentence each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cql.deploy.store"])
    started = context.Barrier(processes)
    working = [context.Process(target=_promote, args=(path, ids, number, each, started)) for number in range(processes)]
    for process in working:
        process.start()
    for process in working:
        process.join()
    registry = Registry(path)
    problems = registry.verify()
    problems += [f"process {n} ended with {p.exitcode}." for n, p in enumerate(working) if p.exitcode]
    promotions = [record for record in registry.log() if record["action"] == PROMOTE]
    for number in range(processes):
        if [r["why"] for r in promotions if r["by"] == f"process {number}"] != [f"promotion {k}" for k in range(each)]:
            problems.append(f"the promotions of process {number} are not in the log once, in their order.")
    if len(promotions) != processes * each:
        problems.append(f"the log holds {len(promotions)} promotions, not {processes * each}.")
    return problems


def _promote(path: Path, ids: list[str], number: int, each: int, started) -> None:
    registry = Registry(path)
    started.wait()
    for k in range(each):
        registry.promote(ids[(number + k) % len(ids)], f"process {number}", f"promotion {k}", ANY)


def damage(path: Path, chosen: random.Random) -> tuple[str, Callable[[], None]]:
    """Damages one file of a registry; returns what was done and how to undo it."""
    file = chosen.choice([path / LOG, *sorted(p for p in (path / ENTRIES).rglob("*") if p.is_file())])
    before = file.read_bytes()
    after, kind = bytearray(before), "bit flipped"
    if file.name == LOG and chosen.random() < 0.75:
        lines = before.splitlines(keepends=True)
        kind, place = chosen.choice(["line removed", "line doubled", "lines swapped"]), chosen.randrange(len(lines) - 1)
        if kind == "line removed":  # any but the last: that one only the head betrays
            del lines[place]
        elif kind == "line doubled":
            lines.insert(place, lines[place])
        else:
            lines[place : place + 2] = lines[place + 1], lines[place]
        after = b"".join(lines)
    else:
        after[chosen.randrange(len(after))] ^= 1 << chosen.randrange(8)
    file.write_bytes(after)
    return f"{kind} in {file.name}", lambda: file.write_bytes(before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotions", description=__doc__.partition(":")[0])
    parser.add_argument("run", metavar="RUN")
    for flag, number in (("processes", 20), ("each", 10), ("damages", 200)):
        parser.add_argument(f"--{flag}", type=int, default=number, metavar="N", help="(default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or arguments.each < 1 or arguments.damages < 0:
        parser.error("--processes and --each must be at least 1, --damages not negative")
    try:
        members = all_members(RunFolder.open(arguments.run).config())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "registry"
            ids = [Registry(path).register(arguments.run, member.name, "benchmark") for member in members]
            began = time.perf_counter()
            problems = promote_at_once(path, ids, arguments.processes, arguments.each)
            print(f"{arguments.processes} processes, {arguments.each} promotions each of {len(ids)} entries: "
                  f"{time.perf_counter() - began:.1f} s, {len(Registry(path).log())} records, {len(problems)} problem(s)")
            chosen, missed = random.Random(0), []
            for _ in range(arguments.damages):
                what, undo = damage(path, chosen)
                if not Registry(path).verify():
                    missed.append(what)
                undo()
            print(f"{arguments.damages} damages: {arguments.damages - len(missed)} found by verify")
            problems += [f"not found: {what}." for what in missed] + Registry(path).verify()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
