"""Judges the policies of a run: seeded rollouts, and the exact expectation where the model is known."""

import argparse
import sys

from cql.analysis import audit, evaluation, judging, report, selection, statistics
from cql.analysis.figures import curve as audit_figures
from cql.analysis.figures import plots
from cql.collect import with_module
from cql.errors import ConfigError, reports_errors
from cql.run_folder import RunFolder


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder of train.py")
    parser.add_argument("--episodes", type=int, default=evaluation.DEFAULT_EPISODES, metavar="N",
                        help="rollouts of each policy (default %(default)s)")
    parser.add_argument("--seed", type=int, default=evaluation.DEFAULT_SEED, metavar="N",
                        help="environment seed of the first rollout; further ones count up (default %(default)s)")
    parser.add_argument("--env", metavar="MODULE:ID", help="of a run whose --env names a module: it is imported again, "
                        "because this command line says so; no file of a run can")
    parser.add_argument("--audit", action="store_true",
                        help="compare every network with the exact solution of its loss, state by state (audit.json)")
    parser.add_argument("--report", action="store_true",
                        help="write the whole run as one page, report.html, with its statistics and pictures")
    return with_module(parser.parse_args(argv))


@reports_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.episodes < 1 or arguments.seed < 0:
        raise ConfigError("--episodes must be at least 1 and --seed not negative.")
    run = RunFolder.open(arguments.run)
    try:
        with run.lock():
            run.check_manifest(derived=False)
            audited = audit.audit(run) if arguments.audit else None  # refused before anything is written
            table = judging.write(run, arguments.episodes, arguments.seed)
            plots.draw_all(run)
            drawn = {}
            if audited is not None:
                run.write_json("audit.json", audited)
                drawn = audit_figures.draw_audit(run, audited)
            page = report.write_report(run, audited, drawn) if arguments.report else None
            run.write_manifest()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: evaluate the run again before it is used.") from None
    print(table)
    if audited is not None:
        print(f"\n{audit.text(audited)}")
    if page is not None:
        summary = run.read_json("statistics.json")
        if run.config().dataset is None or any(group["metrics"]["return"] for group in summary["groups"]):
            print(f"\n{statistics.table(summary)}")
        if (run.path / "selection.json").exists():
            print(f"\n{selection.text(run.read_json('selection.json'))}")
        print(f"\nreport: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
