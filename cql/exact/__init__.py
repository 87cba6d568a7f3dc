"""Exact solutions on finite MDPs: models, dynamic programming, and CQL's exact solutions. Imports nothing but NumPy.

Import the names below from here, and the modules ``curve``, ``theorems`` and ``bounds`` as such.
"""

from cql.exact.dynamic_programming import (
    DENSE_STATES,
    ROUNDING,
    backward_induction,
    bellman_backup,
    deterministic_policies,
    evaluate_first_actions,
    evaluate_policies,
    expected_visits,
    greedy_actions,
    greedy_policy,
    hitting_probability,
    policy_evaluation,
    settled_actions,
    settled_policy,
    state_value,
    value_iteration,
)
from cql.exact.family import soft_fixed_point
from cql.exact.fixed_point import (
    CertificateError,
    Solution,
    alpha_infinity_limit,
    alpha_zero_limit,
    certificate,
    cql_fixed_point,
    empirical_policy,
    eq1_fixed_point,
    eq2_fixed_point,
    half_square_alpha,
    softmax,
)
from cql.exact.mdp import TabularMDP, empirical_mdp, start_distribution
