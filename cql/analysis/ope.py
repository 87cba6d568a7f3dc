"""Off-policy estimates: the worth of policies, from logged episodes alone.

Finite horizon and undiscounted, as `cql.exact.evaluate_policies`, for two targets: the return, and the probability of
entering a hazard (reward 1 on the first entry). Four estimators:

- fqe: fitted Q evaluation. With one value per (state, action, steps left) the regression has an exact minimiser:
  backward induction on the relative frequencies of the data. An OOD action is worth 0; ``ood_probability`` says how
  often a policy's episodes, in that model, come to one.
- wis: weighted importance sampling of trajectories, sum_i w_i G_i / sum_i w_i with w_i = prod_t pi(a|s) / beta(a|s).
- pdis: its per-decision form: the ratios up to t weigh the reward of step t, normalised at every t.
- dr: weighted doubly robust (Jiang & Li 2016, arXiv 1511.03722; Thomas & Brunskill 2016, arXiv 1604.00923) with the fqe
  table as control variate. Grouped by step, this is fqe plus the weighted errors of its own backups:

      mean_i V_H(s_0) + sum_t sum_i w_t^i (r_t - Q_{H-t}(s_t, a_t) + V_{H-t-1}(s_{t+1})),     w_t normalised over i.

An ended trajectory keeps its weight, with reward 0, to the horizon. A fragment, which stops before an end and before
the horizon, says nothing of the steps after it: it leaves the averages of wis altogether and those of pdis from there
on; dr goes on with the fqe table from its last state. Weights leave out steps beyond the horizon.

**No estimate** by wis, pdis and dr is given for a policy with an effective sample size below FEWEST: the weighted mean
is then that of a few episodes, and its interval, over resamples of the same few, has no meaning. Nor is an interval
given where nothing varies. FEWEST is where ``python -m benchmarks.estimate_coverage`` found intervals of wis and pdis
to be of use: the share of 95 % intervals that contain the exact return, over 40 data sets of 500 episodes and 26
policies each:

    effective sample size    below 5   5-20   20-50   50-100   100-200   above 200
    wis                       64 %     62 %    75 %     83 %      88 %        95 %
    pdis                      84 %     80 %    84 %     85 %      88 %        95 %

Intervals of dr contain it in 32 to 55 % at any size, since dr refits fqe to resamples that lack pairs of the data.

Axes: D transition, E episode, N policy, S state, A action, R bootstrap column (the first: the data as they are).
float64.
"""

from dataclasses import dataclass

import numpy as np

from cql.analysis.statistics import ROUNDING
from cql.dataset import OfflineDataset
from cql.world import World, states_of

ESTIMATORS = ("fqe", "wis", "pdis", "dr")
TARGETS = ("return", "hazard_probability")
CONFIDENCE = 0.95
FEWEST = 100  # episodes of effective sample size below which weighting them gives no estimate
MAX_WORK = 2_000_000  # states, or episodes, times steps: beyond, there are no estimates (minutes per member)
CHUNK = 2 ** 18  # entries of a model in one computation


@dataclass(eq=False)
class EpisodeLog:
    """Logged episodes over numbered states.

    Args:
        states, actions, next_states: ``[D]`` int, one episode after the other. rewards, terminations: ``[D]``.
        starts: ``[E]``, index of the first transition of each episode.
        behavior: ``[D]``, the probability of the logged action; None: its relative frequency in its state.
        hazard: ``[S]`` bool, or None where hazards are unknown.

    Attributes:
        lengths: ``[E]``. episodes, steps, pairs: of each transition, the number of its episode, its number in the
            episode from 0, and the number of its (state, action), ``[D]``.
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

    def __post_init__(self) -> None:
        self.lengths = np.diff(self.starts, append=len(self.states))
        self.episodes = np.repeat(np.arange(len(self.starts)), self.lengths)
        self.steps = np.arange(len(self.states)) - self.starts[self.episodes]
        self.pairs = self.states * self.num_actions + self.actions

    def propensities(self) -> np.ndarray:
        """The probability of each logged action, ``[D]``, or its relative frequency where none was logged."""
        if self.behavior is not None:
            return np.asarray(self.behavior, dtype=np.float64)
        return np.bincount(self.pairs)[self.pairs] / np.bincount(self.states)[self.states]

    def complete(self, horizon: int) -> np.ndarray:
        """``[E]`` bool: whether an episode ended or reached the horizon."""
        return self.terminations[self.starts + self.lengths - 1] | (self.lengths >= horizon)


def episode_log(dataset: OfflineDataset, world: World) -> tuple[EpisodeLog, np.ndarray]:
    """The episodes of a data set over numbered states, and the observation of each state, ``[S]`` or ``[S, n]``.

    Hazards are known if the environment's model shows these observations.
    """
    both = np.concatenate([dataset.observations, dataset.next_observations])
    observations, rows = np.unique(both, axis=0, return_inverse=True)
    rows, hazard = rows.reshape(-1), None
    if world.mdp is not None and world.mdp.hazard is not None:
        states = states_of(observations, world.inputs)
        hazard = world.mdp.hazard[states] if (states >= 0).all() else None
    return EpisodeLog(rows[:len(dataset)], dataset.actions.astype(np.intp), dataset.rewards.astype(np.float64),
                          rows[len(dataset):], dataset.terminations, dataset.episode_starts, len(observations),
                          dataset.num_actions, dataset.behavior_probabilities, hazard), observations


@dataclass(frozen=True)
class Estimates:
    """Estimates of N policies.

    Args:
        values: estimator -> known target -> ``[N, 3]``: estimate and 95 % interval; NaN where there is none.
        effective_sample_size: ``[N]``, (sum w)^2 / sum w^2 (Kish 1965) of the trajectory weights; 0 without weight.
        ood_probability: ``[N]``, probability in the data's model that an episode comes to an OOD action.
    """

    values: dict[str, dict[str, np.ndarray]]
    effective_sample_size: np.ndarray
    ood_probability: np.ndarray


def estimate(log: EpisodeLog, policies, horizon: int, resamples: int = 200, seed: int = 0) -> Estimates:
    """All estimates of all policies, with percentile bootstrap intervals over episodes.

    All policies and estimators share the resamples; each refits fqe; counted propensities stay those of the data. A
    resample without an estimate is left out of the interval.

    Args:
        policies: ``[N, S]`` int, deterministic, or ``[N, S, A]`` probabilities.
        horizon: steps of an episode; resamples: 0 for estimates without intervals.
    """
    tables = np.array(policies)
    if tables.ndim == 2:
        tables = (tables[..., None] == np.arange(log.num_actions)).astype(np.float64)
    without_data = np.bincount(log.states, minlength=log.num_states) == 0
    tables[:, without_data] = np.arange(log.num_actions) == 0  # policies that differ there alone have equal estimates
    _, first, which = np.unique(tables.reshape(len(tables), -1), axis=0, return_index=True, return_inverse=True)
    tables, which = tables[first], which.reshape(-1)
    size = len(log.starts)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    counts = np.concatenate([np.ones((1, size)), drawn]).T.copy()  # [E, R]: each episode once, then of each resample
    weights = [trajectory_weights(log, table, horizon) for table in tables]  # each [E, H]
    values: dict[str, dict] = {name: {} for name in ESTIMATORS}
    for target, signal in signals(log).items():
        fqe, correction = fitted_q(log, signal, tables, counts, horizon, weights)  # each [N, R]
        wis, pdis = np.stack([weighted_sampling(log, signal, w, counts) for w in weights], axis=1)
        for name, replicates in zip(ESTIMATORS, (fqe, wis, pdis, fqe + correction)):
            values[name][target] = _intervals(replicates)[which]
    last = np.array([w[log.complete(horizon), -1] for w in weights])
    total, square = last.sum(-1), np.square(last).sum(-1)
    sizes = np.divide(total ** 2, square, out=np.zeros(len(last)), where=square > 0)
    for name in ("wis", "pdis", "dr"):
        for estimates in values[name].values():
            estimates[(sizes < FEWEST)[which]] = np.nan
    ood = Signal(np.zeros(len(log.states)), ~log.terminations, ood_worth=1.0)
    ood_probability = fitted_q(log, ood, tables, counts[:, :1], horizon)[0][:, 0]
    return Estimates(values, sizes[which], ood_probability[which])


@dataclass(frozen=True)
class Signal:
    """The terms that an estimate sums over an episode.

    Args:
        rewards: ``[D]``; goes_on: ``[D]`` bool, whether anything can follow a transition.
        ood_worth: of an OOD action; open: ``[D]`` bool, False once the sum is over; None: never over.
    """

    rewards: np.ndarray
    goes_on: np.ndarray
    ood_worth: float = 0.0
    open: np.ndarray | None = None


def signals(log: EpisodeLog) -> dict[str, Signal]:
    """The signal of every target that is known."""
    by_target = {"return": Signal(np.asarray(log.rewards, dtype=np.float64), ~log.terminations)}
    if log.hazard is not None:  # 1 on the first entry, which ends the sum even where it does not end the episode
        enters = log.hazard[log.next_states]
        before = np.cumsum(enters) - enters  # entries before each transition, in this episode and those above it
        by_target["hazard_probability"] = Signal(enters.astype(np.float64), ~log.terminations & ~enters,
                                                 open=before == before[log.starts][log.episodes])
    return by_target


def trajectory_weights(log: EpisodeLog, policy, horizon: int) -> np.ndarray:
    """Products of pi(a|s) / beta(a|s) up to each step, ``[E, horizon]``; the last one is repeated after an end.

    Every column is divided by its largest entry, which normalisation undoes: products of many ratios would leave the
    range of floating point. A column without weight is 0. The policy is ``[S, A]`` probabilities.
    """
    steps, within = log.steps, log.steps < horizon
    with np.errstate(divide="ignore"):
        ratios = np.log(policy[log.states, log.actions] / log.propensities())
    logs = np.zeros((len(log.starts), horizon))
    logs[log.episodes[within], steps[within]] = ratios[within]
    logs = logs.cumsum(-1)
    largest = logs.max(0)
    return np.exp(logs - np.where(np.isneginf(largest), 0.0, largest))


def weighted_sampling(log: EpisodeLog, signal: Signal, weights, counts) -> tuple[np.ndarray, np.ndarray]:
    """(wis, pdis) of one policy, each ``[R]``, NaN where a step has no trajectory with a weight.

    Args:
        weights: ``[E, H]`` of ``trajectory_weights``; counts: ``[E, R]``, how often each episode counts.
    """
    horizon, steps = weights.shape[1], log.steps
    within = steps < horizon if signal.open is None else (steps < horizon) & signal.open
    rewards = np.zeros(weights.shape)
    rewards[log.episodes[within], steps[within]] = signal.rewards[within]
    complete = log.complete(horizon)
    known = complete[:, None] | (np.arange(horizon) < log.lengths[:, None])  # [E, H]
    last = weights[:, -1] * complete
    with np.errstate(invalid="ignore", divide="ignore"):
        wis = (last * rewards.sum(-1)) @ counts / (last @ counts)
        pdis = ((weights * rewards).T @ counts / ((weights * known).T @ counts)).sum(0)
    return wis, pdis


def fitted_q(log: EpisodeLog, signal: Signal, policies, counts, horizon: int,
             weights=None) -> tuple[np.ndarray, np.ndarray]:
    """The fqe value at the first states of the episodes, and its doubly robust correction: each ``[N, R]``.

    Args:
        policies: ``[N, S, A]``; counts: ``[E, R]``, how often each episode counts.
        weights: N of ``[E, H]``, of ``trajectory_weights``; without them the correction is 0.
    """
    value, total = np.zeros((2, len(policies), counts.shape[1]))
    model = _Model(log, signal)
    size = max(1, CHUNK // max(len(model.pair), log.num_states))
    for start in range(0, counts.shape[1], size):
        columns = slice(start, start + size)
        part = counts[:, columns]  # [E, R']
        mean, probability = model.fit(part)
        for n, policy in enumerate(policies):
            correction = None if weights is None else _Correction(log, signal, weights[n], part)
            v = _backward(model, policy, mean, probability, horizon, correction)
            value[n, columns] = (v[log.states[log.starts]] * part).sum(0) / part.sum(0)
            if correction is not None:
                total[n, columns] = correction.total
    return value, total


class _Model:
    """The data as relative frequencies: the mean reward of a pair, and the states after which the sum goes on.

    The K states after a pair are ``target [K, S A]``, padded.
    """

    def __init__(self, log, signal):
        self.signal, self.pairs, self.episodes = signal, log.pairs, log.episodes
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
        visits, rewards, follows = np.empty(size), np.empty(size), np.zeros((len(self.target), *size))
        for r in range(size[1]):
            weight = counts[self.episodes, r]
            visits[:, r] = np.bincount(self.pairs, weight, size[0])
            rewards[:, r] = np.bincount(self.pairs, weight * self.signal.rewards, size[0])
            follows[self.slot, self.pair, r] = np.bincount(self.edge, weight[self.on], len(self.pair))
        mean = np.divide(rewards, visits, out=np.full(size, self.signal.ood_worth), where=visits > 0)
        return mean, follows / np.maximum(visits, 1)


def _backward(model, policy, mean, probability, horizon, correction) -> np.ndarray:
    """V with all steps left, ``[S, R]``, by backward induction.

    Only the B most likely actions of every state take part, B being the most that the policy takes in any state.
    """
    num_states, num_actions = policy.shape
    most = (policy > 0).sum(-1).max()
    actions = np.argsort(-policy, axis=-1, kind="stable")[:, :most].T  # [B, S]
    share = np.take_along_axis(policy, actions.T, axis=-1).T[..., None]
    pairs = np.arange(num_states) * num_actions + actions
    row = np.zeros(policy.size, dtype=np.intp)  # of each pair in [B S, R]
    row[pairs.ravel()] = np.arange(pairs.size)
    target, probability, mean = model.target[:, pairs], probability[:, pairs], mean[pairs]
    v = np.zeros((num_states, mean.shape[-1]))
    for step in reversed(range(horizon)):
        following = v
        q = mean + np.einsum("kbsr,kbsr->bsr", following[target], probability)  # [B, S, R]
        v = (share * q).sum(0)
        if correction is not None:
            correction.add(step, q.reshape(-1, q.shape[-1]), row, following)
    return v


class _Correction:
    """The sum of the weighted errors of the fqe backups, ``total [R]``."""

    def __init__(self, log, signal, weights, counts):
        self.log, self.signal, self.weights, self.counts = log, signal, weights, counts
        self.pairs, self.episodes = log.pairs, log.episodes
        within = (log.steps < weights.shape[1]) & (True if signal.open is None else signal.open)
        within[within] = weights[self.episodes[within], log.steps[within]] > 0
        rows = np.flatnonzero(within)
        rows = rows[np.argsort(log.steps[rows], kind="stable")]
        self.rows = np.split(rows, np.searchsorted(log.steps[rows], np.arange(1, weights.shape[1])))  # by step
        self.total = np.zeros(counts.shape[1])

    def add(self, step, q, row, following) -> None:
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


def _intervals(replicates) -> np.ndarray:
    """``[N, R] -> [N, 3]``: the first column, and the ends of the percentile interval of the others, if they vary."""
    out = np.full((len(replicates), 3), np.nan)
    out[:, 0] = replicates[:, 0]
    tail = (1 - CONFIDENCE) / 2
    for n, row in enumerate(replicates[:, 1:]):
        finite = row[np.isfinite(row)]
        if finite.size and np.isfinite(out[n, 0]) and np.ptp(finite) > ROUNDING * np.abs(finite).max():
            out[n, 1:] = np.quantile(finite, [tail, 1 - tail])
    return out
