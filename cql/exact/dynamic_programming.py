"""Exact dynamic programming on a finite MDP: optimal values, and values, visits and probabilities of policies.

Axes: S state, A action, K outcome of one (state, action), N policy, H step, E edge (see `Edges`). float64.

Policies are probabilities [N, S, A], or [S, A]: then the results have no axis N. Every function raises ValueError for a
policy, start, gamma or horizon that this MDP cannot have, and for gamma = 1 (total reward until the episode ends) where
an episode never ends from some state.
"""

from dataclasses import dataclass, replace

import numpy as np

from cql.exact.mdp import TabularMDP, check_gamma, start_distribution, state_mask

DENSE_STATES = 1000  # up to this many states I - gamma P is factorised; beyond, iteration on the sparse edges is faster
DENSE_CHUNK = 2**24  # matrix entries factorised in one call: 128 MiB
ROUNDING = 1e-10  # differences of Q below this times 1 + max |Q| count as ties (equal counts and targets must tie)


def bellman_backup(mdp: TabularMDP, values, gamma):
    """r(s, a) + gamma E[(1 - terminated) V(s')]: values [..., S] -> [..., S, A]."""
    return mdp.expected_reward + gamma * (mdp.continuing * np.asarray(values)[..., mdp.next_state]).sum(-1)


def state_value(q):
    """max_a Q(s, a), and 0 where a state has no action at all (all -inf): [..., S, A] -> [..., S]."""
    best = np.max(q, axis=-1)
    return np.where(np.isneginf(best), 0.0, best)


def greedy_actions(q, tolerance=0.0):
    """The best action, ties (within `tolerance`) to the lowest index: [..., A] -> [...] int."""
    q = np.asarray(q)
    return np.argmax(q >= np.max(q, axis=-1, keepdims=True) - tolerance, axis=-1)


def greedy_policy(q):
    """The greedy policy as probabilities, uniform where a state has no action at all: [..., S, A] -> [..., S, A]."""
    q = np.asarray(q)
    greedy = deterministic_policies(greedy_actions(q), q.shape[-1])
    return np.where(np.isneginf(q).all(-1, keepdims=True), 1 / q.shape[-1], greedy)


def maximal_actions(q):
    """Whether the Q of an action is the maximum of its state up to rounding, and finite: [..., S, A] -> bool."""
    finite = np.isfinite(q)
    scale = 1 + np.abs(np.where(finite, q, 0.0)).max((-1, -2), keepdims=True)
    return finite & (q >= np.max(q, axis=-1, keepdims=True) - ROUNDING * scale)


def settled_actions(q):
    """`greedy_actions` [..., S] of q [..., S, A], with differences within rounding as ties."""
    return greedy_actions(np.where(maximal_actions(q), 1.0, -np.inf))


def settled_policy(q):
    """`greedy_policy` [..., S, A], with differences within rounding as ties."""
    return greedy_policy(np.where(maximal_actions(q), 1.0, -np.inf))


def deterministic_policies(actions, num_actions):
    """Policies that always take these actions, as probabilities: [..., S] int -> [..., S, A]."""
    return (np.asarray(actions)[..., None] == np.arange(num_actions)).astype(np.float64)


def value_iteration(mdp: TabularMDP, gamma, support=None, max_iterations=200_000):
    """The optimal Q [S, A]: iterated from V = 0 until max |T Q - Q| <= 1e-12 max(1, max |Q|).

    For gamma < 1 the distance to the optimum is then at most gamma / (1 - gamma) times as large. Only the actions of
    `support` [S, A] bool are allowed, by default all that have a model: Q is -inf on the others, and a state without
    any allowed action has value 0. ValueError if the iteration does not converge.
    """
    check_gamma(gamma)
    allowed = mdp.modelled if support is None else support & mdp.modelled
    if gamma == 1:
        stuck = ~_ends(mdp, np.where(allowed.any(-1, keepdims=True), allowed, True)[None])[0]
        if stuck.any():
            raise ValueError(f"gamma = 1 needs a policy that ends the episode from every state, and from "
                             f"{stuck.sum()} states (first: {np.argmax(stuck)}) none does; take gamma < 1.")
    q = np.where(allowed, mdp.expected_reward, -np.inf)                      # T applied to V = 0
    for _ in range(max_iterations):
        previous, q = q, np.where(allowed, bellman_backup(mdp, state_value(q), gamma), -np.inf)
        change = np.abs(q[allowed] - previous[allowed]).max(initial=0)
        if change <= 1e-12 * max(1, np.abs(q[allowed]).max(initial=0)):
            return q
    raise ValueError(f"Value iteration did not converge in {max_iterations} steps (last change {change:.3g})"
                     + ("; with gamma = 1 a cycle that earns for ever has no finite value." if gamma == 1 else "."))


# ---------------------------------------------------------------------------------------- policies, discounted or total


def policy_evaluation(mdp: TabularMDP, policy, gamma):
    """(V [N, S], Q [N, S, A]) of policies: V solves V = r^pi + gamma P^pi V (see `solve_bellman`), Q is its backup."""
    policies, single = checked_policies(mdp, policy)
    v = solve_bellman(mdp, policies, (policies * mdp.expected_reward).sum(-1), gamma)
    q = bellman_backup(mdp, v, gamma)
    return (v[0], q[0]) if single else (v, q)


def solve_bellman(mdp: TabularMDP, policy, reward, gamma):
    """(I - gamma P^pi)^-1 reward: the value of a reward per *state*, reward [N, S] or [S] -> [N, S], or [S].

    One factorisation per policy up to `DENSE_STATES` states; beyond, the Bellman recursion, until its residual is at
    most 1e-12 max(1, max |V|).
    """
    check_gamma(gamma)
    policies, single = checked_policies(mdp, policy)
    if gamma == 1:
        stuck = ~_ends(mdp, policies)
        if stuck.any():
            n, s = np.argwhere(stuck)[0]
            raise ValueError(f"gamma = 1 needs a policy that ends the episode from every state: policy {n} never does "
                             f"from state {s} ({stuck[n].sum()} states in all); take gamma < 1.")
    reward = np.broadcast_to(np.asarray(reward, dtype=np.float64), policies.shape[:2])
    v = solve_linear(mdp.edges, gamma * mdp.edges.under(policies), reward.T).T
    return v[0] if single else v


def hitting_probability(mdp: TabularMDP, policy, mask, horizon=None):
    """P(an episode from s ever enters the masked states), or within `horizon` steps: [N, S], or [S] for one policy.

    Entering is a transition out of s, so a terminal state has 0, masked or not. Without a horizon this is the least
    solution of h = P(enter) + P h: states that cannot reach the mask have 0 and are left out of the system.
    """
    policies, single = checked_policies(mdp, policy)
    mdp, enters = _until_entered(mdp, state_mask(mask, mdp.num_states, "mask"))
    direct = np.einsum("sa,nsa->sn", enters, policies)                                                # [S, N]
    edges, weight = mdp.edges, mdp.edges.under(policies)
    if horizon is not None:
        h = _total(edges, weight, direct, _check_horizon(horizon))
    else:
        h = solve_linear(edges, weight * _reaches(edges, weight, direct > 0)[edges.source], direct)
    return h[:, 0] if single else h.T


# ------------------------------------------------------------------------------------- a finite horizon, undiscounted


@dataclass(frozen=True)
class EpisodeEvaluation:
    """Exact expectations over one episode of at most `horizon` undiscounted steps. Arrays [N], or floats.

    hazard_probability and goal_probability (of entering one at least once) are None where the MDP has no such mask.
    """

    returns: np.ndarray
    hazard_probability: np.ndarray | None
    goal_probability: np.ndarray | None
    length: np.ndarray


def evaluate_policies(mdp: TabularMDP, policies, start=None, horizon=None) -> EpisodeEvaluation:
    """The expected return, hazard, goal and length of stationary policies over one episode.

    Args:
        start: a state or a distribution [S]; default `mdp.start`.
        horizon: steps after which an episode is cut, as by Gymnasium's TimeLimit.
    """
    policies, single = checked_policies(mdp, policies)
    start, horizon = start_distribution(mdp, start), _check_horizon(horizon)
    return _evaluation(mdp, lambda mdp: _visits(mdp, policies, start, horizon),
                       lambda visits, per_pair: np.einsum("ns,nsa,sa->n", visits, policies, per_pair), single)


def evaluate_first_actions(mdp: TabularMDP, policy, horizon) -> EpisodeEvaluation:
    """Evaluations [S, A] of each action taken once and the policy [S, A] followed after it, over `horizon` > 0 steps.

    0 in terminal states. The mean under the policy is `evaluate_policies` from that state.
    """
    policies, _ = checked_policies(mdp, policy)

    def expected(mdp, per_pair):                                                                      # [S, A]
        per_step = (policies[0] * per_pair).sum(-1)[:, None]
        rest = _total(mdp.edges, mdp.edges.under(policies), per_step, horizon - 1)[:, 0]
        return per_pair + (mdp.continuing * rest[mdp.next_state]).sum(-1)

    return _evaluation(mdp, lambda mdp: mdp, expected, False)


def expected_visits(mdp: TabularMDP, policies, start=None, horizon=None):
    """Expected number of steps taken from each state in one episode of at most `horizon` steps: [N, S], or [S]."""
    policies, single = checked_policies(mdp, policies)
    visits = _visits(mdp, policies, start_distribution(mdp, start), _check_horizon(horizon))
    visits = np.where(mdp.terminal, 0.0, visits)
    return visits[0] if single else visits


def _visits(mdp, policies, start, horizon):
    """[N, S]: expected visits of each state while the episode goes on; its last state does not count."""
    edges, weight = mdp.edges, mdp.edges.under(policies)
    mass = np.repeat(start[:, None], len(policies), axis=1)
    total = np.zeros_like(mass)
    for _ in range(horizon):
        total += mass
        mass = edges.forward(weight, mass)
    return total.T


def evaluate_time_dependent(mdp: TabularMDP, policies, start=None) -> EpisodeEvaluation:
    """As `evaluate_policies`, for one policy [H, S, A] that depends on the step."""
    policies, _ = checked_policies(mdp, policies)
    start = start_distribution(mdp, start)

    def visits(mdp):                                                                                  # [H, S]
        weight = mdp.edges.under(policies)                                                            # [E, H]
        mass, total = start[:, None], np.zeros(policies.shape[:2])
        for step in range(len(policies)):
            total[step] = mass[:, 0]
            mass = mdp.edges.forward(weight[:, step:step + 1], mass)
        return total

    return _evaluation(mdp, visits, lambda visits, per_pair: np.einsum("hs,hsa,sa->", visits, policies, per_pair)[None],
                       True)


@dataclass(frozen=True, eq=False)
class OptimalHorizon:
    """The optimum over H steps of an episode."""

    values: np.ndarray              # [H + 1, S], the best return of the last H - h steps; values[H] = 0
    actions: np.ndarray             # [H, S] int, the greedy action at step h, ties to the lowest index
    evaluation: EpisodeEvaluation    # of that policy from the start of the MDP


def backward_induction(mdp: TabularMDP, horizon) -> OptimalHorizon:
    """The optimal undiscounted return over `horizon` steps, with the time-dependent policy that reaches it.

    Values within 1e-12 max(1, max |Q|) count as ties, so that rounding does not choose the policy.
    """
    horizon = _check_horizon(horizon)
    values, actions = np.zeros((horizon + 1, mdp.num_states)), np.zeros((horizon, mdp.num_states), dtype=np.intp)
    for step in reversed(range(horizon)):
        q = np.where(mdp.modelled, bellman_backup(mdp, values[step + 1], 1.0), -np.inf)               # [S, A]
        values[step] = state_value(q)
        actions[step] = greedy_actions(q, 1e-12 * max(1, np.abs(values[step]).max()))
    policies = deterministic_policies(actions, mdp.num_actions)
    return OptimalHorizon(values, actions, evaluate_time_dependent(mdp, policies))


def _evaluation(mdp, visits, expected, single):
    """EpisodeEvaluation from `visits(mdp)` and `expected(visits, per_pair [S, A]) -> [N]`, or [1] if `single`."""
    here = visits(mdp)
    results = [expected(here, mdp.expected_reward)]
    for mask in (mdp.hazard, mdp.goal):
        if mask is None:
            results.append(None)
        else:
            stopped, enters = _until_entered(mdp, mask)
            results.append(expected(here if stopped is mdp else visits(stopped), enters))
    results.append(expected(here, (~mdp.terminal[:, None] & mdp.modelled).astype(np.float64)))
    return EpisodeEvaluation(*(x if x is None or not single else float(x[0]) for x in results))


def _until_entered(mdp, mask):
    """(MDP that also ends episodes on entering `mask`, P(enter | s, a) [S, A]), to count first entries only."""
    enters = mask[mdp.next_state] & ~mdp.terminal[:, None, None]                                      # [S, A, K]
    probability = np.where(enters, mdp.probability, 0.0).sum(-1)
    if (enters & (mdp.continuing > 0)).any():
        mdp = replace(mdp, terminated=mdp.terminated | enters)
    return mdp, probability


# ------------------------------------------------------------------------------------------- checks and linear systems


def checked_policies(mdp, policy):
    """([N, S, A] float64 with rows summing to 1, whether N was missing), checked against the MDP.

    In a terminal state, where no action matters, a row of zeros or NaN counts as uniform.
    """
    policies = np.asarray(policy, dtype=np.float64)
    single = policies.ndim == 2
    policies = policies[None] if single else policies
    if policies.ndim != 3 or policies.shape[1:] != mdp.modelled.shape:
        raise ValueError(f"A policy must be [N, S, A] or [S, A] = {mdp.modelled.shape}, got {np.shape(policy)}.")
    undefined = mdp.terminal & ~(policies > 0).any(-1) & ~(policies < 0).any(-1)                      # [N, S]
    policies = np.where(undefined[..., None], 1 / policies.shape[-1], policies)
    total = policies.sum(-1, keepdims=True)
    valid = (policies >= 0).all(-1) & (np.abs(total[..., 0] - 1) <= 1e-5)                             # [N, S]
    if not valid.all():
        n, s = np.argwhere(~valid)[0]
        raise ValueError(f"Policy {n} is no distribution over actions in state {s}: {policies[n, s]}.")
    unknown = (policies > 0) & ~mdp.modelled & mdp.modelled.any(-1, keepdims=True)
    if unknown.any():
        n, s, a = np.argwhere(unknown)[0]
        raise ValueError(f"Policy {n} takes action {a} in state {s}, of which this (empirical) model knows nothing.")
    return policies / total, single


def _check_horizon(horizon):
    if horizon is None or int(horizon) != horizon or horizon < 0:
        raise ValueError(f"horizon must be a whole number of steps, got {horizon}.")
    return int(horizon)


def _total(edges, weight, per_step, horizon):
    """[S, N]: the expected sum of `per_step` [S, N] over `horizon` steps."""
    x = np.zeros_like(per_step)
    for _ in range(horizon):
        x = per_step + edges.backward(weight, x)
    return x


def _reaches(edges, weight, reached):
    """[S, N] bool: states from which positive weights lead to a state of `reached` [S, N]."""
    size = -1
    while reached.sum() > size:
        size = reached.sum()
        reached = reached | edges.backward(weight > 0, reached, np.logical_or)
    return reached


def _ends(mdp, policies):
    """[N, S] bool: whether an episode from s can end under the policy (for all s: ends with probability 1)."""
    stops = ((mdp.terminated & (mdp.probability > 0)).any(-1) | ~mdp.modelled)                        # [S, A]
    directly = (stops & (policies > 0)).any(-1)                                                       # [N, S]
    return _reaches(mdp.edges, mdp.edges.under(policies), directly.T).T


def solve_linear(edges, weight, right, tolerance=1e-12, dense_states=None):
    """x = right + W x for the sparse W of `weight` [E, N]; right, x [S, N].

    Factorised up to `dense_states` states (default `DENSE_STATES`), else iterated to a relative `tolerance`.
    """
    num_states, num = right.shape
    if num_states <= (DENSE_STATES if dense_states is None else dense_states):
        x = np.empty((num, num_states))
        chunk = max(1, DENSE_CHUNK // num_states ** 2)
        for n in range(0, num, chunk):
            part = slice(n, n + chunk)
            matrix = np.zeros((len(x[part]), num_states, num_states))
            matrix[:, edges.source, edges.target] = -weight.T[part]
            matrix[:, np.arange(num_states), np.arange(num_states)] += 1
            x[part] = np.linalg.solve(matrix, right.T[part, :, None])[..., 0]
        return x.T
    x = right
    for _ in range(1_000_000):
        previous, x = x, right + edges.backward(weight, x)
        if (np.abs(x - previous).max(0) <= tolerance * np.maximum(1, np.abs(x).max(0))).all():
            return x
    raise ValueError("Policy evaluation did not converge in 1,000,000 steps: the episodes hardly ever end.")
