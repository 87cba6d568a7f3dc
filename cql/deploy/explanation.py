"""Why a model acts as it does in a state: the numbers of an explanation, from network, data and exact model.

On logged pairs the Q-values of the chosen action c and of the action a asked about split into parts that add up:

    Q(c) - Q(a) = [y(c) - y(a)] td + [k(c) - k(a)] penalty + [e(c) - e(a)] residual.

Here y is the mean TD target of the pair's transitions by the final network itself (without double Q),
k = alpha_half (1 - p / beta) the effect of the penalty where training has converged (docs/math.md, section 2), and
e = Q - y - k what the network has not fitted; p is the network's softmax, beta the data's frequencies in that state.

Axes: S state, A action, D transition, U distinct logged observation.
"""

import numpy as np

from cql.dataset import number_rows
from cql.deploy.explanation_text import paragraph
from cql.deploy.model import Model
from cql.errors import RunError
from cql.exact import ROUNDING, deterministic_policies, empirical_policy, evaluate_first_actions, half_square_alpha
from cql.world import refuse_unknown

# An action is unsafe if it adds this much to the probability of meeting a hazard. One more step beside a hazard adds
# 0.05 / 4 = 0.0125 at the default slip: an action that costs such a step is called unsafe, a longer safe way is not.
UNSAFE = 0.01


class Explainer:
    """Explains one model. The tables that every explanation reads are computed once.

    Raises:
        RunError: values of the network are not finite, or the exact solution of its objective is not that of CQL(H).
    """

    def __init__(self, model: Model):
        self.model, self.cql, mdp = model, model.policy.algorithm == "cql", model.world.mdp
        self.beta = empirical_policy(model.support.counts)  # [U, A]
        self.alpha_half = None  # in the formula of k; the Huber loss has none, because it knows no mean target
        if self.cql:
            refuse_unknown(model.config.objective)
            self.targets = mean_targets(model)  # [U, A]
            if model.config.td_loss != "huber" and model.final_alpha is not None:
                self.alpha_half = float(half_square_alpha(model.final_alpha, model.config.td_loss))
                self.alpha_half *= model.config.reward_scale  # in the units of the data
        self.steps = None if mdp is None else int(model.world.horizon)
        if mdp is not None:
            greedy = deterministic_policies(model.policy.act(model.world.inputs)[None], mdp.num_actions)[0]
            self.following = evaluate_first_actions(mdp, greedy, self.steps)  # arrays [S, A]
            self.next_step = evaluate_first_actions(mdp, greedy, 1).hazard_probability

    def explain(self, observation, action: int | None = None, mask=None) -> dict:
        """The explanation of one action (without ``action``: of the chosen one), as JSON without NaN.

        Keys beside "member", "algorithm", "observation", "features" (their names, or null), "state", "state_name" (or
        null), "cell" [row, column] from 0, "actions" (words), "possible" [A] (whether the policy may take each there;
        null stands in "q" and "by_action" where not), "action" and "chosen" {"index", "name"}, "q" and "probabilities"
        (over actions; q null for BC), "text":

            support: {"count", "state_count", "share" of the state's log, "counts" [A], "supported": null where it is
                not known, "by_state": whether it is by these counts, else by BC of the data}
            gap: {"q_chosen", "q_action", "difference", "td", "penalty", "residual"}, null for BC; the last three null
                where one of the two pairs has no data. For the Huber loss only the residual is null, a part of
                "penalty".
            hazard: {"action", "chosen", "by_action" [A]: probability of meeting one within "steps", if this action is
                the first and the model chooses the others; "action_next", "chosen_next": at the very next step;
                "margin": UNSAFE}; null without a model, in observations of no state, and where there are no hazards
            return: {"action", "chosen"}: expected total reward over these steps; null without a model
            model_known: whether the environment's exact model is
            verdict: "terminal" | "unsafe" (adds more than UNSAFE to the chosen action's hazard probability) |
                "unsupported" (not in the data) | "chosen" | "as good" (equal Q, or total reward not lower) | "worse"

        Args:
            mask: the actions that exist there, ``[A]``, for observations that are vectors.

        Raises:
            RunError: the model has no such observation, or no such action there.
        """
        model, mdp, grid = self.model, self.model.world.mdp, self.model.world.grid
        observation = np.asarray(model.observation(observation), model.dataset.observations.dtype)
        possible = model.possible(observation, mask)
        chosen = model.policy.act(observation, mask)
        action = chosen if action is None else model.action(action, possible)
        p = model.policy.probabilities(observation, mask).astype(np.float64)
        q = model.policy.q_values(observation, mask).astype(np.float64) if self.cql else None
        if not np.isfinite((p if q is None else q)[possible]).all():
            raise RunError(f"the outputs of {model.member.name} are not finite there: nothing can be explained.")
        row, counts, state = model.support.row_of(observation), model.counts(observation), model.state(observation)
        total, count = int(counts.sum()), int(counts[action])
        names, number = model.world.named_states, observation.tolist() if model.dataset.discrete else state
        found = {"member": model.member.name, "algorithm": model.policy.algorithm, "observation": observation.tolist(),
                 "features": model.features, "state": state,
                 "state_name": None if names is None or number is None else names[number],
                 "cell": None if state is None or grid is None else list(divmod(state, grid.shape[1])),
                 "actions": model.actions, "possible": possible.tolist(), "model_known": mdp is not None,
                 "steps": self.steps,
                 "action": {"index": action, "name": model.actions[action]},
                 "chosen": {"index": chosen, "name": model.actions[chosen]},
                 "support": {"count": count, "state_count": total, "share": count / total if total else None,
                             "supported": model.support.supported(observation, action, mask),
                             "counts": counts.tolist(), "by_state": model.support.by_state},
                 "q": None if q is None else of_possible(q, possible), "probabilities": p.tolist(),
                 "gap": None if q is None else self._gap(q, p, row, counts, chosen, action),
                 "hazard": None, "return": None}
        if state is not None:
            returns, hazard = self.following.returns[state], self.following.hazard_probability
            found["return"] = {"action": float(returns[action]), "chosen": float(returns[chosen])}
            if hazard is not None and mdp.hazard.any():
                soon = self.next_step[state]
                found["hazard"] = {"action": float(hazard[state, action]), "chosen": float(hazard[state, chosen]),
                                   "by_action": of_possible(hazard[state], possible),
                                   "action_next": float(soon[action]), "chosen_next": float(soon[chosen]),
                                   "margin": UNSAFE}
        found["verdict"] = "terminal" if state is not None and mdp.terminal[state] else _verdict(found)
        found["text"] = paragraph(found)
        return found

    def _gap(self, q, p, row, counts, chosen, action) -> dict:
        difference, pair, td, penalty, residual = float(q[chosen] - q[action]), [chosen, action], None, None, None
        if counts[pair].all():
            y = self.targets[row, pair]
            td = float(y[0] - y[1])
            penalty = difference - td
            if self.alpha_half is not None:
                k = self.alpha_half * (1 - p[pair] / self.beta[row, pair])
                penalty = float(k[0] - k[1])
                residual = difference - td - penalty
        return {"q_chosen": float(q[chosen]), "q_action": float(q[action]), "difference": difference, "td": td,
                "penalty": penalty, "residual": residual}


def of_possible(values: np.ndarray, possible: np.ndarray) -> list[float | None]:
    """The values of the actions ``[A]`` as JSON has them: null for those that the policy may not take."""
    return [value if may else None for value, may in zip(values.tolist(), possible)]


def mean_targets(model: Model) -> np.ndarray:
    """``[U, A]``: mean of r + gamma (1 - terminated) max Q(s', .) over a logged pair's transitions, NaN elsewhere.

    Rows are those of ``model.support.observations``. Raises RunError where Q is not finite.
    """
    data, support = model.dataset, model.support
    seen, place = number_rows(data.next_observations)
    values = model.policy.q_values(seen, data.masks_of(seen)).max(-1).astype(np.float64)[place]  # [D]
    if not np.isfinite(values).all():
        raise RunError(f"the Q-values of {model.member.name} are not finite: nothing can be explained.")
    if model.config.supported:  # a state without data is worth 0 to the target
        values = np.where(np.isin(data.next_observations, data.observations), values, 0.0)
    targets = data.rewards.astype(np.float64) + model.config.gamma * np.where(data.terminations, 0.0, values)
    pairs = support.rows * data.num_actions + data.actions
    sums = np.bincount(pairs, weights=targets, minlength=support.counts.size).reshape(support.counts.shape)
    return np.divide(sums, support.counts, out=np.full(sums.shape, np.nan), where=support.counts > 0)


def _verdict(found: dict) -> str:
    hazard, outcome, gap = found["hazard"], found["return"], found["gap"]
    action, chosen = found["action"]["index"], found["chosen"]["index"]
    if hazard is not None and hazard["action"] > hazard["chosen"] + UNSAFE:
        return "unsafe"
    if found["support"]["supported"] is False:
        return "unsupported"
    if action == chosen:
        return "chosen"
    if outcome is not None and outcome["action"] >= outcome["chosen"] - ROUNDING * (1 + abs(outcome["chosen"])):
        return "as good"
    if gap is None:
        return "as good" if found["probabilities"][action] >= found["probabilities"][chosen] else "worse"
    rounding = 4 * np.finfo(np.float32).eps * (1 + abs(gap["q_chosen"]))  # the network is float32
    return "as good" if gap["difference"] <= rounding else "worse"
