"""CQL against BC over the data draws of a run: python -m benchmarks.draws RUN

Reads the run's evaluation, data and policies; exact values, so that all spread shown is between draws. Beside each
trained CQL member stands the exact CQL solution of its own data (cql.exact.oracle).
"""

import sys

import numpy as np

from cql.analysis.logged import logged_model
from cql.collect import environment_of, exact_model
from cql.config import ConfigError
from cql.dataset import DatasetError
from cql.diagnostics import greedy_policies, state_inputs
from cql.exact.tabular import evaluate_policies
from cql.policy import Policy
from cql.members import Member
from cql.runs import RunError, RunFolder
from cql.world import exact_solution

NAMES = ("return", "of BC", "hazard", "of BC", "Δ return", "Δ V(start)", "mean |ΔQ|")


def main(path: str) -> None:
    run = RunFolder.open(path)
    run.refuse_changes()
    config = run.config()
    datasets = dict(zip(config.data_seeds, run.datasets(config)))
    environment = environment_of(datasets[config.data_seed])
    model, inputs = exact_model(environment), state_inputs(environment).numpy()
    horizon = environment.spec.max_episode_steps
    entries = run.read_json("evaluation.json")["members"]
    bc = {(e["data_seed"], e["seed"]): e["exact"] for e in entries if e["algorithm"] == "bc"}
    print("Δ: trained minus the exact CQL solution of the same data")
    print("draw   alpha" + "".join(f"{name:>12}" for name in NAMES))
    rows = []
    for entry in (e for e in entries if e["algorithm"] == "cql" and e["exact"] is not None):
        exact = entry["exact"]
        empirical, counts = logged_model(datasets[entry["data_seed"]], environment, model)
        q = exact_solution(config.objective, empirical, counts, [entry["final_alpha"]]).q[0]  # [S, A]
        greedy = np.where(np.isfinite(q), q, -1e300).argmax(-1)
        solved = evaluate_policies(model, greedy_policies(greedy[None], model.num_actions), horizon=horizon)
        member = Member(*(entry[name] for name in ("algorithm", "alpha", "seed", "data_seed")))
        learned = Policy.load(run.policy_path(member.name)).q_values(inputs)
        other = bc.get((entry["data_seed"], entry["seed"]), {"return": np.nan, "hazard_probability": np.nan})
        rows.append((exact["return"], other["return"], exact["hazard_probability"], other["hazard_probability"],
                     exact["return"] - solved.returns[0], entry["value_estimate"] - q[model.start].max(),
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
    try:
        main(sys.argv[1])
    except (ConfigError, DatasetError, RunError) as error:
        sys.exit(f"error: {error}")
