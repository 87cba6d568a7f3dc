"""What the report shows of a run's snapshots: Q, policy and distance from the exact solution over the updates.

Axes: T log entry, S state, A action.
"""

from dataclasses import dataclass

import numpy as np

from cql import snapshots
from cql.analysis.figures.data import RunData, shown_member
from cql.analysis.report.alpha_maps import ExactSolutions
from cql.members import Member
from cql.world import pair_counts

CELLS = 250_000  # numbers of Q that the page may hold: of more entries, evenly spaced ones are shown
NOTICED = 0.05  # of the range of the returns: by so much must a better one have been passed to be named


@dataclass(frozen=True, eq=False)
class Way:
    """One member on its way.

    Attributes:
        updates: ``[T]``; q: ``[T, S, A]``, -inf where the policy may not act; counts: ``[S, A]``, of its data.
        distance: ``[T, S]``, largest ``|Q - exact Q|`` of a logged action, NaN in states without data; None where the
            exact solution is not known.
        mean: ``[T]``, of the distances, weighted by the data; None likewise.
        returns: ``[T]``, the exact return of the greedy policy; None where no model is known.
    """

    member: Member
    updates: np.ndarray
    q: np.ndarray
    counts: np.ndarray
    distance: np.ndarray | None
    mean: np.ndarray | None
    returns: np.ndarray | None

    @property
    def passed(self) -> int | None:
        """The entry of the best return, where training ended at one that is worse by ``NOTICED``."""
        if self.returns is None or not np.isfinite(self.returns).all():
            return None
        best = int(self.returns.argmax())
        return best if self.returns[best] - self.returns[-1] > NOTICED * np.ptp(self.returns) > 0 else None


def way(run_data: RunData, exact: dict[int, ExactSolutions]) -> Way | None:
    """That of the CQL member on the maps; None where no snapshots were kept.

    Args:
        exact: the exact solutions by data seed.
    """
    member = shown_member(run_data.members, "cql")
    loaded = None if member is None else snapshots.load(run_data.run, run_data.config, member)
    if loaded is None or run_data.inputs is None:
        return None
    updates, q = loaded
    dataset = run_data.datasets[member.data_seed]
    counts, exist = pair_counts(dataset, run_data.inputs), dataset.admissible
    distance = mean = None
    if (solution := exact.get(member.data_seed)) is not None:
        right = solution.q[solution.at(member.alpha)]
        logged = (counts > 0) & np.isfinite(right) & ~run_data.world.mdp.terminal[:, None]
        error = np.where(logged, np.abs(q - np.where(logged, right, 0.0)), np.nan)
        mean = error[:, logged] @ counts[logged] / counts[logged].sum()
        distance = np.where(logged.any(-1), np.where(logged, error, -np.inf).max(-1), np.nan)
    steps, returns = run_data.series.get((member.name, "exact/return"), ([], []))
    by_step = dict(zip(steps, returns))
    known = all(int(update) in by_step for update in updates)
    allowed = (counts > 0) | ~counts.any(-1, keepdims=True) | (not run_data.config.supported)
    allowed = allowed if exist is None else allowed & exist
    return Way(member, updates, np.where(allowed, q, -np.inf), counts, distance, mean,
               np.array([by_step[int(update)] for update in updates]) if known else None)


def thinned(found: Way) -> np.ndarray:
    """The entries that the page shows: all, or evenly spaced ones, the last among them."""
    number = max(2, min(len(found.updates), CELLS // found.q[0].size))
    return np.unique(np.linspace(0, len(found.updates) - 1, number).round().astype(int))
