"""The exact solution of a run's own objective: the one place that asks ``cql.exact`` for it, or refuses."""

from cql.exact.oracle import Solution, cql_fixed_point
from cql.exact.tabular import TabularMDP
from cql.losses import Objective
from cql.runs import RunError


def exact_solution(objective: Objective, mdp: TabularMDP, counts, alphas, **options) -> Solution:
    """The exact solution of a run's own objective, as ``cql_fixed_point`` gives it.

    Args:
        mdp, counts, alphas, options: as for ``cql_fixed_point``.

    Raises:
        RunError: no exact solution of this objective is known.
    """
    refuse_unknown(objective)
    return cql_fixed_point(mdp, counts, alphas, objective.gamma, objective.td_loss, **options)


def exact_curve_solution(objective: Objective, mdp: TabularMDP, counts, alphas, **options) -> Solution:
    """``exact_solution``; raises RunError for the Huber loss too, whose solution need not be unique."""
    if objective.td_loss == "huber":
        raise RunError("a curve over alpha needs a squared error (mse or half_mse): the exact solution of huber "
                       "need not be unique.")
    return exact_solution(objective, mdp, counts, alphas, **options)


def refuse_unknown(objective: Objective) -> None:
    """Raises RunError, one sentence, if no exact solution of the objective is known.

    A comparison with the solution of another objective would be wrong without anyone noticing.
    """
    if not objective.is_cql_h:
        known = Objective()._asdict()
        further = [f"{name} {value!r}" for name, value in objective._asdict().items()
                   if name not in ("td_loss", "double_q", "gamma") and value != known[name]]
        raise RunError(f"no exact solution is known of an objective with {', '.join(further)}: only that of CQL(H) is.")
