"""``python -m cql compare RUN RUN``: settings that differ, statistics of each run, differences to the first run."""

import argparse
from pathlib import Path

from cql.analysis.compare import comparison, text
from cql.errors import ConfigError, reports_errors
from cql.files import write_json
from cql.run_folder import RunFolder


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cql compare", description=(
        "Runs side by side: settings that differ, return and hazard with intervals, differences to the first run."))
    parser.add_argument("runs", metavar="RUN", nargs="+", help="evaluated run folders, at least two")
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="of the intervals (default %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N",
                        help="of the bootstrap (default %(default)s)")
    parser.add_argument("--out", metavar="FILE.json", help="write the comparison here too")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        raise ConfigError("a comparison needs at least two run folders.")
    if not 0.5 <= arguments.level <= 0.999 or not 2 <= arguments.resamples <= 100_000:
        raise ConfigError("--level must lie between 0.5 and 0.999, and --resamples between 2 and 100,000.")
    if arguments.out is not None and not Path(arguments.out).absolute().parent.is_dir():
        raise ConfigError(f"--out {arguments.out} is in no folder that exists.")
    runs = [RunFolder.open(path) for path in arguments.runs]
    for run in runs:
        if arguments.out is not None and run.path.resolve() in Path(arguments.out).resolve().parents:
            raise ConfigError(f"--out {arguments.out} lies in the run {run.path}, which is read only.")
    result = comparison(runs, arguments.resamples, arguments.level)
    if arguments.out is not None:
        write_json(arguments.out, result)
    print(text(result))
    return 0
