"""Prints CQL against BC, and against the exact solution, over the data sets of a run: python -m benchmarks.draws RUN

Reads the run's evaluation, data and policies. All values are exact, so that all spread shown is between data sets.
Each trained CQL member is compared with the exact CQL solution of its own data (cql.exact.fixed_point).
"""

import sys

import numpy as np

from cql.analysis.figures.data import member_of
from cql.exact import evaluate_policies, greedy_policy
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.text import aligned
from cql.world import World, exact_solution

NAMES = ("return", "of BC", "hazard", "of BC", "Δ return", "Δ V(start)", "mean |ΔQ|")
FORMS = (".4f",) * 5 + (".1e",) * 2


def main(path: str) -> None:
    run = RunFolder.open(path)
    run.check_manifest()
    config, entries = run.config(), run.read_json("evaluation.json")["members"]
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    world = World.of(datasets[config.data_seed]).known()
    bc = {(e["data_seed"], e["seed"]): e["exact"] for e in entries if e["algorithm"] == "bc"}
    nothing = {"return": np.nan, "hazard_probability": np.nan}
    members = [entry for entry in entries if entry["algorithm"] == "cql" and entry["exact"] is not None]
    rows = []
    for entry in members:
        exact, other = entry["exact"], bc.get((entry["data_seed"], entry["seed"]), nothing)
        empirical, counts = world.empirical(datasets[entry["data_seed"]])
        q = exact_solution(config.objective, empirical, counts, [entry["final_alpha"]]).q[0]  # [S, A]
        solved = evaluate_policies(world.mdp, greedy_policy(np.where(np.isfinite(q), q, -1e300)), horizon=world.horizon)
        learned = Policy.load(run.policy_path(member_of(entry).name)).q_values(world.inputs)
        rows.append((exact["return"], other["return"], exact["hazard_probability"], other["hazard_probability"],
                     exact["return"] - solved.returns, entry["value_estimate"] - q[world.mdp.start].max(),
                     np.abs(learned - q)[counts > 0].mean()))
    names = [(str(entry["data_seed"]), f"{entry['alpha']:g}") for entry in members]
    shown = [*rows, np.mean(rows, axis=0), np.abs(rows).max(0)]
    cells = [[format(value, form) for value, form in zip(row, FORMS)] for row in shown]
    print("Δ: trained minus the exact CQL solution of the same data")
    print("\n".join(aligned([("data", "alpha", *NAMES), *([*name, *row] for name, row in zip(
        [*names, ("mean", ""), ("largest |.|", "")], cells))])))
    if bc:
        ours, theirs, hazard, hazard_of_bc = np.mean(rows, axis=0)[:4]
        better = sum(row[0] > row[1] for row in rows)
        print(f"CQL better than BC on {better} of {len(rows)}; mean return {ours - theirs:+.2f}; "
              f"mean hazard probability {hazard / hazard_of_bc:.2f} of BC's")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
