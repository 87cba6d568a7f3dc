"""Off-policy estimates: what policies are worth, judged from logged episodes alone.

Finite horizon and undiscounted, as the truth they are held against (`cql.exact.tabular.evaluate_policies`), for two targets:
the return, and the probability of entering a hazard (reward 1 on the first entry). Four estimators:

- fqe: fitted Q evaluation. With one value per (state, action, steps left) the regression has an exact minimiser: backward
  induction on the relative frequencies of the data. A pair without data is worth 0, as a table says that nobody ever
  updated; ``unlogged`` says how much of a policy's episodes, in that model, come to such a pair.
- wis: weighted importance sampling of whole trajectories, sum_i w_i G_i / sum_i w_i with w_i = prod_t pi(a|s) / beta(a|s).
- pdis: its per-decision form: the reward of step t is weighed by the product of the ratios up to t, normalised at every t.
- dr: weighted doubly robust (Jiang & Li 2016, arXiv 1511.03722; Thomas & Brunskill 2016, arXiv 1604.00923) with the fqe
  table as control variate. Their sum, grouped by step, is

      mean_i V_H(s_0) + sum_t sum_i w_t^i (r_t - Q_{H-t}(s_t, a_t) + V_{H-t-1}(s_{t+1})),     w_t normalised over i:

  fqe, corrected by the weighted errors of its own backups. At steps that no trajectory reaches with a weight nothing
  corrects it, so where importance sampling has no estimate, dr is fqe with the first few steps corrected.

An ended trajectory keeps its weight, with reward 0, to the horizon. One that is cut short by neither an end nor the
horizon (a fragment) says nothing of the steps after it: it leaves the averages of wis altogether and those of pdis from
there on; dr lets the fqe table go on from its last state. Steps beyond the horizon are left out of the weights.

Axes: D transition, E episode, N policy, S state, A action, R bootstrap column (the first: the data as they are). float64.
"""

from dataclasses import dataclass

import numpy as np

ESTIMATORS = ("fqe", "wis", "pdis", "dr")
TARGETS = ("return", "hazard_probability")
CONFIDENCE = 0.95
CHUNK = 2 ** 18  # entries of a model worked on at once


@dataclass(frozen=True)
class EpisodeLog:
    """Logged episodes over numbered states.

    Args:
        states, actions, next_states: ``[D]`` int; an episode's transitions stand together, in order.
        rewards: ``[D]``; terminations: ``[D]`` bool.
        starts: ``[E]``, index of the first transition of each episode.
        num_states, num_actions: S and A.
        behavior: ``[D]``, the probability with which the logged action was taken; None: its relative frequency in its state.
        hazard: ``[S]`` bool, or None where the data's user knows no hazards.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_states: np.ndarray
    terminations: np.ndarray
    starts: np.ndarray
    num_states: int
    num_actions: int
    behavior: np.ndarray | None = None
    hazard: np.ndarray | None = None

    @property
    def pairs(self) -> np.ndarray:
        """Number of each transition's (state, action), ``[D]``."""
        return self.states * self.num_actions + self.actions

    @property
    def episodes(self) -> np.ndarray:
        """Number of each transition's episode, ``[D]``."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.states)))

    @property
    def steps(self) -> np.ndarray:
        """Place of each transition in its episode, ``[D]``, from 0."""
        return np.arange(len(self.states)) - self.starts[self.episodes]

    def propensities(self) -> np.ndarray:
        """``[D]``: the logged probability of each action, or its relative frequency where none was logged."""
        if self.behavior is not None:
            return np.asarray(self.behavior, dtype=np.float64)
        return np.bincount(self.pairs)[self.pairs] / np.bincount(self.states)[self.states]


@dataclass(frozen=True)
class Estimates:
    """What the data say of N policies.

    Args:
        values: estimator -> target -> ``[N, 3]``: estimate, and the ends of its 95 % interval; NaN where there is none.
            A target is missing if nothing is known of it (no hazards).
        effective_sample_size: ``[N]``, (sum w)^2 / sum w^2 (Kish) over the whole-trajectory weights; 0 if none matches.
        unlogged: ``[N]``, probability in the data's model that an episode comes to a pair without data.
        behavior: "logged" or "counts", where the denominators of the weights come from.
    """

    values: dict[str, dict[str, np.ndarray]]
    effective_sample_size: np.ndarray
    unlogged: np.ndarray
    behavior: str


def estimate(log: EpisodeLog, policies, horizon: int, resamples: int = 200, seed: int = 0) -> Estimates:
    """All estimates of all policies, with percentile bootstrap intervals over episodes.

    Every policy and estimator sees the same resamples, and each resample has its own fqe model. Propensities that were
    counted are not counted anew. A resample without an estimate is left out of the interval.

    Args:
        policies: ``[N, S]`` int, deterministic, or ``[N, S, A]`` probabilities.
        horizon: steps of an episode; resamples: 0 for estimates without intervals.

    Raises:
        ValueError: policies of another shape, or no distributions over actions.
    """
    tables = _probabilities(policies, log)
    tables[:, np.bincount(log.states, minlength=log.num_states) == 0] = np.arange(log.num_actions) == 0  # no data, no matter
    _, first, which = np.unique(tables.reshape(len(tables), -1), axis=0, return_index=True, return_inverse=True)
    tables, which = tables[first], which.reshape(-1)
    counts = _resampled_counts(len(log.starts), resamples, seed)  # [E, R]
    weights = [trajectory_weights(log, table, horizon) for table in tables]  # each [E, H]
    values = {name: {} for name in ESTIMATORS}
    for target, signal in _signals(log).items():
        fqe, correction = fitted_q(log, signal, tables, counts, horizon, weights)  # each [N, R]
        wis, pdis = np.stack([weighted_sampling(log, signal, w, counts) for w in weights], axis=1)
        for name, replicates in zip(ESTIMATORS, (fqe, wis, pdis, fqe + correction)):
            values[name][target] = _intervals(replicates)[which]
    complete = _complete(log, horizon)
    sizes = np.array([effective_sample_size(w[complete, -1]) for w in weights])
    lost = Signal(np.zeros(len(log.states)), ~log.terminations, missing=1.0)
    unlogged = fitted_q(log, lost, tables, counts[:, :1], horizon)[0][:, 0]
    return Estimates(values, sizes[which], unlogged[which], "counts" if log.behavior is None else "logged")


@dataclass(frozen=True)
class Signal:
    """What an estimate adds up over an episode.

    Args:
        rewards: ``[D]``; goes_on: ``[D]`` bool, whether anything can follow a transition.
        missing: worth of a pair without data.
        open: ``[D]`` bool, whether the sum is still on when a transition begins; None: always.
    """

    rewards: np.ndarray
    goes_on: np.ndarray
    missing: float = 0.0
    open: np.ndarray | None = None


def _signals(log) -> dict[str, Signal]:
    found = {"return": Signal(np.asarray(log.rewards, dtype=np.float64), ~log.terminations)}
    if log.hazard is not None:  # 1 on the first entry; where that does not end the episode, the rest of it adds nothing
        enters = log.hazard[log.next_states]
        before = np.cumsum(enters) - enters  # entries before each transition, in this episode and those above it
        found["hazard_probability"] = Signal(enters.astype(np.float64), ~log.terminations & ~enters,
                                             open=before == before[log.starts][log.episodes])
    return found


# ------------------------------------------------------------------------------------------------- importance sampling


def trajectory_weights(log: EpisodeLog, policy, horizon: int) -> np.ndarray:
    """Products of pi(a|s) / beta(a|s) up to each step, ``[E, horizon]``, those of an ended episode repeated to the end.

    Each step's column is divided by its largest entry, which no normalised weight sees: products of many ratios would
    leave the range of floating point. A column in which no trajectory has a weight is 0.

    Args:
        policy: ``[S, A]`` probabilities.
    """
    steps, within = log.steps, log.steps < horizon
    with np.errstate(divide="ignore"):
        ratios = np.log(policy[log.states, log.actions] / log.propensities())
    logs = np.zeros((len(log.starts), horizon))
    logs[log.episodes[within], steps[within]] = ratios[within]
    logs = logs.cumsum(-1)
    largest = logs.max(0)
    return np.exp(logs - np.where(np.isneginf(largest), 0.0, largest))


def effective_sample_size(weights) -> float:
    """(sum w)^2 / sum w^2 (Kish 1965): how many equally weighted trajectories would be as good; 0 without weight."""
    total, square = np.sum(weights), np.sum(np.square(weights))
    return float(total ** 2 / square) if square > 0 else 0.0


def weighted_sampling(log: EpisodeLog, signal: Signal, weights, counts) -> tuple[np.ndarray, np.ndarray]:
    """(wis, pdis) of one policy, each ``[R]``, NaN where a step has no trajectory with a weight.

    Args:
        weights: ``[E, H]`` of ``trajectory_weights``; counts: ``[E, R]``, how often each episode counts.
    """
    horizon, steps = weights.shape[1], log.steps
    within = steps < horizon if signal.open is None else (steps < horizon) & signal.open
    rewards = np.zeros(weights.shape)
    rewards[log.episodes[within], steps[within]] = signal.rewards[within]
    complete = _complete(log, horizon)
    lengths = np.diff(log.starts, append=len(log.states))
    known = complete[:, None] | (np.arange(horizon) < lengths[:, None])  # [E, H]
    last = weights[:, -1] * complete
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = (last * rewards.sum(-1)) @ counts / (last @ counts)
        stepwise = ((weights * rewards).T @ counts / ((weights * known).T @ counts)).sum(0)
    return whole, stepwise


# ------------------------------------------------------------------------------------------------- fitted Q evaluation


def fitted_q(log: EpisodeLog, signal: Signal, policies, counts, horizon: int, weights=None) -> tuple[np.ndarray, np.ndarray]:
    """The fqe value at the first states of the episodes, and its doubly robust correction: each ``[N, R]``.

    Args:
        policies: ``[N, S, A]``; counts: ``[E, R]``, how often each episode counts.
        weights: N of ``[E, H]``, of ``trajectory_weights``; without them the correction is 0.
    """
    value, correction = np.zeros((2, len(policies), counts.shape[1]))
    model = _Model(log, signal)
    size = max(1, CHUNK // max(len(model.pair), log.num_states))
    for start in range(0, counts.shape[1], size):
        columns = slice(start, start + size)
        part = counts[:, columns]  # [E, R']
        mean, follows = model.fit(part)
        for n, policy in enumerate(policies):
            added = None if weights is None else _Correction(log, signal, weights[n], part)
            v = _backward(model, policy, mean, follows, horizon, added)
            value[n, columns] = (v[log.states[log.starts]] * part).sum(0) / part.sum(0)
            if added is not None:
                correction[n, columns] = added.total
    return value, correction


class _Model:
    """The data as relative frequencies: pairs with their mean reward, and the states after which the sum goes on.

    Those of a pair stand in slots: ``target [K, S A]``, padded.
    """

    def __init__(self, log, signal):
        self.log, self.signal, self.pairs, self.episodes = log, signal, log.pairs, log.episodes
        self.on = np.flatnonzero(signal.goes_on)
        edges, edge = np.unique(self.pairs[self.on] * log.num_states + log.next_states[self.on], return_inverse=True)
        self.edge = edge.reshape(-1)
        self.pair, following = np.divmod(edges, log.num_states)  # [U]
        self.slot = np.arange(len(edges)) - np.searchsorted(self.pair, self.pair)
        self.target = np.zeros((self.slot.max(initial=0) + 1, log.num_states * log.num_actions), dtype=np.intp)
        self.target[self.slot, self.pair] = following

    def fit(self, counts):
        """Mean rewards ``[S A, R]`` and probabilities of the targets ``[K, S A, R]``, of episode counts ``[E, R]``."""
        size = self.target.shape[1], counts.shape[1]
        seen, rewarded, follows = np.empty(size), np.empty(size), np.zeros((len(self.target), *size))
        for r in range(size[1]):
            weight = counts[self.episodes, r]
            seen[:, r] = np.bincount(self.pairs, weight, size[0])
            rewarded[:, r] = np.bincount(self.pairs, weight * self.signal.rewards, size[0])
            follows[self.slot, self.pair, r] = np.bincount(self.edge, weight[self.on], len(self.pair))
        mean = np.divide(rewarded, seen, out=np.full(size, self.signal.missing), where=seen > 0)
        return mean, follows / np.maximum(seen, 1)


def _backward(model, policy, mean, follows, horizon, added) -> np.ndarray:
    """V with the whole horizon left, ``[S, R]``, by backward induction over the B most likely actions of every state,
    B being as many as the policy has anywhere (1 if it is deterministic). ``added``: a _Correction, or None."""
    num_states, num_actions = policy.shape
    most = (policy > 0).sum(-1).max()
    actions = np.argsort(-policy, axis=-1, kind="stable")[:, :most].T  # [B, S]
    share = np.take_along_axis(policy, actions.T, axis=-1).T[..., None]
    pairs = np.arange(num_states) * num_actions + actions
    row = np.zeros(policy.size, dtype=np.intp)  # of each pair in [B S, R]
    row[pairs.ravel()] = np.arange(pairs.size)
    target, follows, mean = model.target[:, pairs], follows[:, pairs], mean[pairs]
    v = np.zeros((num_states, mean.shape[-1]))
    for step in reversed(range(horizon)):
        following = v
        q = mean + np.einsum("kbsr,kbsr->bsr", following[target], follows)  # [B, S, R]
        v = (share * q).sum(0)
        if added is not None:
            added.at(step, q.reshape(-1, q.shape[-1]), row, following)
    return v


class _Correction:
    """What the weighted errors of the fqe backups add up to, ``total [R]``, step by step."""

    def __init__(self, log, signal, weights, counts):
        self.log, self.signal, self.weights, self.counts = log, signal, weights, counts
        self.pairs, self.episodes = log.pairs, log.episodes
        within = (log.steps < weights.shape[1]) & (True if signal.open is None else signal.open)
        within[within] = weights[self.episodes[within], log.steps[within]] > 0
        rows = np.flatnonzero(within)
        rows = rows[np.argsort(log.steps[rows], kind="stable")]
        self.rows = np.split(rows, np.searchsorted(log.steps[rows], np.arange(1, weights.shape[1])))  # by step
        self.total = np.zeros(counts.shape[1])

    def at(self, step, q, row, following) -> None:
        """Adds the errors r - Q + V' of one step: Q of a pair is ``q[row[pair]]``, V' is ``following [S, R]``."""
        rows = self.rows[step]
        if not rows.size:
            return
        episodes, next_states = self.episodes[rows], self.log.next_states[rows]
        error = self.signal.rewards[rows, None] - q[row[self.pairs[rows]]]
        error += np.where(self.signal.goes_on[rows, None], following[next_states], 0.0)
        error *= self.counts[episodes] * self.weights[episodes, step, None]
        weight = self.weights[:, step] @ self.counts  # of all episodes, ended ones too
        self.total += np.divide(error.sum(0), weight, out=np.zeros_like(weight), where=weight > 0)


# ------------------------------------------------------------------------------------------------------ the machinery


def _intervals(replicates) -> np.ndarray:
    """``[N, R] -> [N, 3]``: the first column, and the ends of the percentile interval of the others."""
    out = np.full((len(replicates), 3), np.nan)
    out[:, 0] = replicates[:, 0]
    tail = (1 - CONFIDENCE) / 2
    for n, row in enumerate(replicates[:, 1:]):
        known = row[np.isfinite(row)]
        if known.size and np.isfinite(out[n, 0]):
            out[n, 1:] = np.quantile(known, [tail, 1 - tail])
    return out


def _resampled_counts(episodes: int, resamples: int, seed: int) -> np.ndarray:
    """``[E, 1 + resamples]``: once each, then how often each resample drew each episode."""
    drawn = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    return np.concatenate([np.ones((1, episodes)), drawn]).T.copy()


def _complete(log, horizon) -> np.ndarray:
    """``[E]`` bool: the episodes that are known to the horizon, since they ended or reached it."""
    last = np.append(log.starts[1:], len(log.states)) - 1
    return log.terminations[last] | (log.steps[last] + 1 >= horizon)


def _probabilities(policies, log) -> np.ndarray:
    policies = np.asarray(policies)
    if policies.ndim == 2 and np.issubdtype(policies.dtype, np.integer) and policies.shape[1] == log.num_states:
        if policies.size and not 0 <= policies.min() <= policies.max() < log.num_actions:
            raise ValueError(f"actions must lie in 0..{log.num_actions - 1}.")
        return (policies[..., None] == np.arange(log.num_actions)).astype(np.float64)
    if policies.ndim != 3 or policies.shape[1:] != (log.num_states, log.num_actions):
        raise ValueError(f"policies must be [N, {log.num_states}] actions or [N, {log.num_states}, {log.num_actions}] "
                         f"probabilities, got {policies.dtype} {policies.shape}.")
    if (policies < 0).any() or (np.abs(policies.sum(-1) - 1) > 1e-6).any():
        raise ValueError("policies are no distributions over actions.")
    return policies.astype(np.float64)
