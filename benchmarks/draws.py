"""Prints CQL against BC, and against the exact solution, over the data sets of a run: python -m benchmarks.draws RUN

Reads the run's evaluation, data and policies. All values are exact, so that all spread shown is between data sets.
Each trained CQL member is compared with the exact CQL solution of its own data (cql.exact.fixed_point).
"""

import sys

import numpy as np

from cql.exact import deterministic_policies, evaluate_policies
from cql.members import Member
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World, exact_solution

NAMES = ("return", "of BC", "hazard", "of BC", "Δ return", "Δ V(start)", "mean |ΔQ|")


def main(path: str) -> None:
    run = RunFolder.open(path)
    run.check_manifest()
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    world = World.of(datasets[config.data_seed]).known()
    entries = run.read_json("evaluation.json")["members"]
    bc = {(e["data_seed"], e["seed"]): e["exact"] for e in entries if e["algorithm"] == "bc"}
    print("Δ: trained minus the exact CQL solution of the same data")
    print("data   alpha" + "".join(f"{name:>12}" for name in NAMES))
    rows = []
    for entry in (e for e in entries if e["algorithm"] == "cql" and e["exact"] is not None):
        exact = entry["exact"]
        empirical, counts = world.empirical(datasets[entry["data_seed"]])
        q = exact_solution(config.objective, empirical, counts, [entry["final_alpha"]]).q[0]  # [S, A]
        greedy = np.where(np.isfinite(q), q, -1e300).argmax(-1)
        solved = evaluate_policies(world.mdp, deterministic_policies(greedy[None], world.mdp.num_actions),
                                   horizon=world.horizon)
        member = Member(*(entry[name] for name in ("algorithm", "alpha", "seed", "data_seed")))
        learned = Policy.load(run.policy_path(member.name)).q_values(world.inputs)
        other = bc.get((entry["data_seed"], entry["seed"]), {"return": np.nan, "hazard_probability": np.nan})
        rows.append((exact["return"], other["return"], exact["hazard_probability"], other["hazard_probability"],
                     exact["return"] - solved.returns[0], entry["value_estimate"] - q[world.mdp.start].max(),
                     np.abs(learned - q)[counts > 0].mean()))
        print(f"{entry['data_seed']:4}  {entry['alpha']:6g}" + _cells(rows[-1]))
    rows = np.array(rows)
    print("mean        " + _cells(rows.mean(0)))
    print("largest |.| " + " " * 48 + _cells(np.abs(rows).max(0))[48:])
    ours, theirs, hazard, hazard_of_bc = rows.mean(0)[:4]
    if not bc:
        return
    print(f"CQL better than BC on {(rows[:, 0] > rows[:, 1]).sum()} of {len(rows)}; mean return {ours - theirs:+.2f}; "
          f"mean hazard probability {hazard / hazard_of_bc:.2f} of BC's")


def _cells(row) -> str:
    """Returns and probabilities to four places, the two smallest differences by their order of magnitude."""
    return "".join(f"{value:12.4f}" for value in row[:5]) + "".join(f"{value:12.1e}" for value in row[5:])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
