"""What the report shows, as arrays and plain values: the run, its statistics, its exact solutions. Nothing is drawn.

Axes: S state, A action, D data set.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cql.analysis import judging
from cql.analysis.convergence import FAR, OOD_MASS
from cql.analysis.figures.data import RunData
from cql.analysis.report import alpha_maps
from cql.analysis.report.alpha_maps import ExactSolutions
from cql.analysis.report.snapshots import Way, way
from cql.analysis.results import Group, Results
from cql.errors import ConfigError, DatasetError, RunError
from cql.exact import curve
from cql.members import Member
from cql.run_folder import RunFolder
from cql.world import pair_counts

Shown = tuple[np.ndarray, np.ndarray] | None  # greedy actions and true values of a policy, [S]; None: there is none


@dataclass(frozen=True)
class ReportData:
    """A run with everything its report needs.

    Args:
        statistics: content of ``statistics.json``; selection: of ``selection.json``, None without CQL members.
        audit: of ``audit.json``, None if the page is not to show it. judged: of ``judging.json``, None without it.
        exact: the exact solutions by data seed; empty where there are none, and then `unsolved` says why.
    """

    run_data: RunData
    results: Results
    statistics: dict
    selection: dict | None
    audit: dict | None
    exact: dict[int, ExactSolutions]
    unsolved: str | None
    judged: dict | None = None

    @classmethod
    def of(cls, run: RunFolder, statistics: dict, selection: dict | None, audit: dict | None = None) -> "ReportData":
        run_data, results = RunData.of(run), Results.of(run)
        exact, unsolved = {}, None
        try:
            exact = exact_solutions(run_data, results.alphas)
        except (RunError, DatasetError, ConfigError, ValueError) as error:
            unsolved = str(error)
        judged = run.read_json(judging.FILE) if (run.path / judging.FILE).is_file() else None
        return cls(run_data, results, statistics, selection, audit, exact, unsolved, judged)

    @cached_property
    def q(self) -> dict[Member, np.ndarray]:
        """Of every CQL member that has a policy, Q in every state, ``[S, A]``; empty where states cannot be listed."""
        if self.run_data.inputs is None:
            return {}
        return {member: self.run_data.q_values(member) for member in self.run_data.members if member.algorithm == "cql"}

    @cached_property
    def way(self) -> Way | None:
        """What the snapshots of one CQL member show; None where none were kept."""
        return way(self.run_data, self.exact)

    @cached_property
    def distances(self) -> dict[float, np.ndarray]:
        """By alpha: mean over the data of ``|Q - exact Q|``, ``[D, seeds]``, NaN where not known; as in the audit."""
        config = self.run_data.config
        by_alpha = {alpha: np.full((config.num_datasets, config.num_seeds), np.nan) for alpha in self.results.alphas}
        for member, q in self.q.items():
            if (exact := self.exact.get(member.data_seed)) is not None:
                logged = (exact.counts > 0) & ~self.run_data.world.mdp.terminal[:, None]
                weights, error = exact.counts[logged], np.abs(q[logged] - exact.q[exact.at(member.alpha)][logged])
                by_alpha[member.alpha][config.data_seeds.index(member.data_seed), config.seeds.index(member.seed)] = (
                    error @ weights / weights.sum())
        return by_alpha

    @cached_property
    def causes(self) -> dict[str, int]:
        """How many CQL members have diverged, and why others end farther from the exact solution than ``FAR``.

        converging: not converged; unjudged: the log does not tell; ood: converged, with softmax mass above
        ``OOD_MASS`` on OOD actions; other: the rest, with little OOD mass.
        """
        counts = dict.fromkeys(("diverged", "converging", "unjudged", "ood", "other"), 0)
        for alpha, distance in self.distances.items():
            diverged, converged = (read(("cql", alpha)) for read in (self.results.diverged, self.results.converged))
            ranges = np.array([[np.ptp(q[np.isfinite(q) & ~self.run_data.world.mdp.terminal[:, None]])]
                               for q in (exact.q[exact.at(alpha)] for exact in self.exact.values())])     # [D, 1]
            far = (distance > FAR * ranges) & ~diverged
            ood_mass = self.results.values("ood_mass", ("cql", alpha)) > OOD_MASS
            converging = far & (converged == 0)
            unjudged = far & np.isnan(converged) & ood_mass
            ood = far & (converged == 1) & ood_mass
            other = far & ~converging & ~ood_mass
            for name, mask in zip(counts, (diverged, converging, unjudged, ood, other)):
                counts[name] += int(mask.sum())
        return counts

    def exact_mean(self, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The exact curve of a metric, ``(alphas [N], mean over the data sets [N])``."""
        curves = [exact.metrics[metric] for exact in self.exact.values()]
        if not curves or curves[0] is None:
            return None
        return next(iter(self.exact.values())).alphas, np.mean(curves, axis=0)

    def entry(self, group: Group) -> dict | None:
        """What the statistics say of a group."""
        return next((e for e in self.statistics["groups"] if (e["algorithm"], e["alpha"]) == group), None)

    def mean(self, group: Group, metric: str) -> list | None:
        """[mean, low, high] of a group, low and high None where there is no interval; None where it is not known."""
        entry = self.entry(group)
        return entry["metrics"][metric] and entry["metrics"][metric]["mean"] if entry else None

    def levels(self, metric: str) -> dict[str, float]:
        """What a metric is compared with: optimal, behavior, floor -> value, where known."""
        run_data = self.run_data
        references = {name: run_data.evaluation["references"][name]["exact"] for name in ("optimal", "behavior")}
        levels = {name: exact[metric] for name, exact in references.items() if exact and exact.get(metric) is not None}
        behavior = run_data.world.behavior_policy(run_data.config)
        if metric == "action_mismatch_rate" and behavior is not None and self.exact:
            levels["behavior"] = float(np.mean([1 - (behavior * exact.counts).sum() / exact.counts.sum()
                                                for exact in self.exact.values()]))
        if metric == "penalty" and run_data.inputs is not None and run_data.config.objective.is_cql_h:
            levels["floor"] = run_data.action_entropy("cql")
        return levels

    def shown_policies(self) -> list[tuple[Group, Shown, Shown]]:
        """BC and every alpha, first data set and seed: the trained policy and the exact one (BC: by counts)."""
        run_data, config = self.run_data, self.run_data.config
        first = {(member.algorithm, member.alpha): member for member in run_data.members
                 if (member.seed, member.data_seed) == (config.seed, config.data_seed)}
        solutions, shown = self.exact.get(config.data_seed), []

        def valued(actions) -> Shown:
            return actions, run_data.true_values(actions[None])[0][0]

        for group in self.results.groups:
            exact = trained = None
            if group in first:
                trained = valued(run_data.policy(first[group]).act(run_data.inputs))
            if solutions is not None and group[1] is None:
                counts = pair_counts(run_data.cloned(run_data.dataset), run_data.inputs)
                exact = valued(curve.cloned_policy(counts).argmax(-1))
            elif solutions is not None:
                n = solutions.at(group[1])
                exact = solutions.policies[n].argmax(-1), solutions.true[n]
            shown.append((group, trained, exact))
        return shown


def exact_solutions(run_data: RunData, alphas) -> dict[int, ExactSolutions]:
    """The exact solutions of every data set of a run at the alphas trained and between them, by data seed.

    Raises:
        RunError, DatasetError, ConfigError, ValueError: why nothing exact can be said.
    """
    config, world = run_data.config, run_data.world.known()
    if config.penalty_threshold is not None:
        raise RunError("its members learned alpha, and each has a solution of its own: evaluate.py --audit compares "
                       "it with that.")
    grid, solutions = alpha_maps.grid(alphas, world.mdp.num_states), {}
    for data_seed, dataset in run_data.datasets.items():
        empirical, counts = world.empirical(dataset)
        solutions[data_seed] = alpha_maps.solve(config.objective, world.mdp, empirical, counts, grid, world.horizon)
    return solutions
