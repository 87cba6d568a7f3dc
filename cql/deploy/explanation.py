"""Why a model acts as it does in a state: the numbers of an explanation, from network, data and exact model.

On logged pairs the Q-values of the chosen action c and of the action a asked about split into parts that add up:

    Q(c) - Q(a) = [y(c) - y(a)] td + [k(c) - k(a)] penalty + [e(c) - e(a)] residual,

with y the mean TD target of the pair's transitions, k = alpha_half (1 - p / beta) what the conservative penalty makes
of it where training has come to rest (docs/math.md, section 2), and e = Q - y - k what the network has not fitted.
Targets are computed from the final network itself: at the end of training the target network is close to it, and then
double Q-learning's choice of the maximum is the same; what they differ by is in the residual. p is the network's
softmax over all actions, beta the data's frequencies in that state.

Axes: S state, A action, D transition, U distinct logged observation.
"""

from functools import lru_cache

import numpy as np

from cql.dataset import number_rows, observation_keys
from cql.deploy.explanation_text import paragraph
from cql.deploy.model import Model
from cql.errors import RunError
from cql.exact import (
    ROUNDING,
    deterministic_policies,
    empirical_policy,
    evaluate_first_actions,
    half_square_alpha,
)
from cql.world import refuse_unknown

# An action is unsafe if it adds this much to the probability of meeting a hazard. One more step beside a hazard adds
# 0.05 / 4 = 0.0125 at the default slip: an action that costs such a step is called unsafe, a longer safe way is not.
UNSAFE = 0.01


class Explainer:
    """A model with the tables that every explanation of it reads: made once.

    Raises:
        RunError: values of the network are not finite, or nothing exact is known of what it minimised.
    """

    def __init__(self, model: Model):
        self.model = model
        self.cql = model.policy.algorithm == "cql"
        self.targets = mean_targets(model) if self.cql else None  # [U, A]
        self.beta = empirical_policy(model.support.counts)  # [U, A]
        if self.cql:
            refuse_unknown(model.config.objective)
        self.alpha_half = None  # of the formula; there is none for the Huber loss, which knows no mean target
        if self.cql and model.config.td_loss != "huber" and model.final_alpha is not None:
            self.alpha_half = float(half_square_alpha(model.final_alpha, model.config.td_loss))
        self.steps = self.following = self.next_step = None
        if model.world.mdp is not None:
            self.steps = int(model.world.horizon)
            greedy = deterministic_policies(model.policy.act(model.world.inputs)[None], model.world.mdp.num_actions)[0]
            self.following = evaluate_first_actions(model.world.mdp, greedy, self.steps)  # arrays [S, A]
            self.next_step = evaluate_first_actions(model.world.mdp, greedy, 1).hazard_probability
            keys = observation_keys(model.world.inputs, model.dataset.observations.dtype)
            self._state_of = {key: state for state, key in enumerate(keys)}

    def explain(self, observation, action: int | None = None) -> dict:
        """The explanation of one action (without ``action``: of the chosen one), as JSON without NaN.

        Keys beside "member", "algorithm", "observation", "state", "cell" [row, column] from 0, "actions" (words),
        "action" and "chosen" {"index", "name"}, "q" and "probabilities" (over actions; q null for BC), "text":

            support: {"count", "state_count", "share" of the state's log, "supported", "counts" [A]}
            gap: {"q_chosen", "q_action", "difference", "td", "penalty", "residual"}, null for BC; the last three null
                where one of the two pairs has no data. Without a formula (Huber) the residual alone is null, and in
                "penalty".
            hazard: {"action", "chosen", "by_action" [A]: of meeting one within "steps", the action being the first of
                them and the model choosing the others; "action_next", "chosen_next": at the very next step; "margin":
                UNSAFE}; null without a model, in observations of no state, and where the environment has no hazards
            return: {"action", "chosen"}: expected total reward over these steps; null without a model
            model_known: whether the environment's exact model is
            verdict: "terminal" | "unsafe" (adds more than UNSAFE to the chosen action's hazard probability) |
                "unsupported" (not in the data) | "chosen" | "as good" (equal Q, or total reward not lower) | "worse"

        Raises:
            RunError: the observation or the action is none of this model's.
        """
        model = self.model
        observation = checked_observation(model, observation)
        num_actions = model.dataset.num_actions
        if action is not None and (isinstance(action, bool) or not isinstance(action, (int, np.integer))
                                   or not 0 <= action < num_actions):
            raise RunError(f"an action is a number from 0 to {num_actions - 1}, not {action!r}.")
        chosen = model.policy.act(observation)
        action = chosen if action is None else int(action)
        p = model.policy.probabilities(observation).astype(np.float64)
        q = model.policy.q_values(observation).astype(np.float64) if self.cql else None
        if not np.isfinite(p if q is None else q).all():
            raise RunError(f"the outputs of {model.member.name} are not finite there: nothing can be explained.")
        row, counts = model.support.row_of(observation), model.counts(observation)
        [key] = observation_keys([observation], observation.dtype)
        state = None if model.world.mdp is None else self._state_of.get(key)
        cell = None
        if state is not None and model.world.grid is not None:
            cell = list(divmod(state, model.world.grid.shape[1]))
        found = {"member": model.member.name, "algorithm": model.policy.algorithm, "observation": observation.tolist(),
                 "state": state, "cell": cell, "actions": model.actions, "model_known": model.world.mdp is not None,
                 "steps": self.steps, "action": {"index": action, "name": model.actions[action]},
                 "chosen": {"index": chosen, "name": model.actions[chosen]}, "support": _support(counts, action),
                 "q": None if q is None else q.tolist(), "probabilities": p.tolist(),
                 "gap": None if q is None else self._gap(q, p, row, counts, chosen, action),
                 "hazard": None, "return": None}
        if state is not None:
            returns, hazard = self.following.returns[state], self.following.hazard_probability
            found["return"] = {"action": float(returns[action]), "chosen": float(returns[chosen])}
            if hazard is not None and model.world.mdp.hazard.any():
                soon = self.next_step[state]
                found["hazard"] = {"action": float(hazard[state, action]), "chosen": float(hazard[state, chosen]),
                                   "by_action": hazard[state].tolist(), "action_next": float(soon[action]),
                                   "chosen_next": float(soon[chosen]), "margin": UNSAFE}
        terminal = state is not None and bool(model.world.mdp.terminal[state])
        found["verdict"] = "terminal" if terminal else _verdict(found)
        found["text"] = paragraph(found)
        return found

    def _gap(self, q, p, row, counts, chosen, action) -> dict:
        difference = float(q[chosen] - q[action])
        td = penalty = residual = None
        if counts[chosen] and counts[action]:
            pair = [chosen, action]
            y, p, beta = self.targets[row, pair], p[pair], self.beta[row, pair]
            td = float(y[0] - y[1])
            if self.alpha_half is None:
                penalty = difference - td
            else:
                k = predicted_penalty(p, beta, self.alpha_half)
                penalty = float(k[0] - k[1])
                residual = difference - td - penalty
        return {"q_chosen": float(q[chosen]), "q_action": float(q[action]), "difference": difference, "td": td,
                "penalty": penalty, "residual": residual}


def explain(model: Model, observation, action: int | None = None) -> dict:
    """``Explainer.explain`` of a model, whose tables are kept for the models used last."""
    return _explainer(model).explain(observation, action)


_explainer = lru_cache(maxsize=8)(Explainer)


def mean_targets(model: Model) -> np.ndarray:
    """``[U, A]``: mean of r + gamma (1 - terminated) max Q(s', .) over a logged pair's transitions, NaN elsewhere.

    Rows are those of ``model.support.observations``. Raises RunError where Q is not finite.
    """
    data, support = model.dataset, model.support
    seen, place = number_rows(data.next_observations)
    values = model.policy.q_values(seen).max(-1).astype(np.float64)[place]  # [D]
    if not np.isfinite(values).all():
        raise RunError(f"the Q-values of {model.member.name} are not finite: nothing can be explained.")
    targets = data.rewards.astype(np.float64) + model.config.gamma * np.where(data.terminations, 0.0, values)
    pairs = support.rows * data.num_actions + data.actions
    sums = np.bincount(pairs, weights=targets, minlength=support.counts.size).reshape(support.counts.shape)
    return np.divide(sums, support.counts, out=np.full(sums.shape, np.nan), where=support.counts > 0)


def predicted_penalty(p, beta, alpha_half):
    """Q - y where the squared loss is stationary: alpha_half (1 - p / beta), for beta > 0 (docs/math.md, section 2)."""
    return alpha_half * (1 - p / beta)


def checked_observation(model: Model, observation) -> np.ndarray:
    """As the data hold it, a scalar or ``[n]``. Raises RunError for anything but one observation of this model."""
    try:
        array = np.asarray(observation)
        if array.ndim != (0 if model.dataset.discrete else 1):
            raise ValueError("one observation is asked for.")
        model.policy.act(array)  # refuses what is of another kind, out of range or not finite
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if "inhomogeneous" not in str(error) else "it is ragged."
        raise RunError(f"this is no observation of {model.member.name}: {reason}") from None
    return array.astype(model.dataset.observations.dtype) + 0  # -0.0 is 0.0


def _support(counts, action) -> dict:
    total = int(counts.sum())
    return {"count": int(counts[action]), "state_count": total, "share": int(counts[action]) / total if total else None,
            "supported": bool(counts[action] > 0), "counts": counts.tolist()}


def _verdict(found: dict) -> str:
    hazard, outcome, gap = found["hazard"], found["return"], found["gap"]
    if hazard is not None and hazard["action"] > hazard["chosen"] + UNSAFE:
        return "unsafe"
    if not found["support"]["supported"]:
        return "unsupported"
    action, chosen = found["action"]["index"], found["chosen"]["index"]
    if action == chosen:
        return "chosen"
    if outcome is not None and outcome["action"] >= outcome["chosen"] - ROUNDING * (1 + abs(outcome["chosen"])):
        return "as good"
    scores = found["probabilities"] if gap is None else found["q"]
    # the network is float32: what differs by less than its rounding is equal
    rounding = 0.0 if gap is None else 4 * np.finfo(np.float32).eps * (1 + abs(scores[chosen]))
    equal = scores[chosen] - scores[action] <= rounding
    return "as good" if equal else "worse"
