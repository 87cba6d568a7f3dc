"""What one loaded model answers: decisions, explanations, its map. Knows nothing of HTTP.

Axes: N observations, A action.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from cql.deploy.explanation import Explainer
from cql.deploy.model import POLICY, Model
from cql.deploy.store import Registry

MASKS = ("hazard", "goal", "terminal", "start")  # of a board
LARGEST_BOARD = 10_000  # cells that are still drawn
LARGEST = 1e18  # number of an observation: far from where float32 ends, so that the network's sums stay below it


class ObservationError(ValueError):
    """An observation or an action that the model does not have; the message is one sentence."""


class Decision(NamedTuple):
    """What the model does at one observation.

    Attributes:
        action: the greedy one. q: ``[A]``, None for Behaviour Cloning. probabilities: ``[A]``, softmax of the outputs.
        supported: whether the data ever took this action there. count: how often.
    """

    action: int
    name: str
    q: list[float] | None
    probabilities: list[float]
    supported: bool
    count: int


class Outputs(NamedTuple):
    """Of the policy, and what the data did: actions ``[N]``; q or None, probabilities and counts, all ``[N, A]``."""

    actions: np.ndarray
    q: np.ndarray | None
    probabilities: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_states(cls, model: Model) -> "Outputs":
        """At every index that the policy reads."""
        states = model.policy.network.inputs
        counts = np.zeros((states, model.dataset.num_actions), dtype=np.int64)
        counts[model.support.observations] = model.support.counts
        return cls(*_outputs(model, np.arange(states)), counts)

    @classmethod
    def of_vectors(cls, model: Model, observations: list[list[float]]) -> "Outputs":
        vectors = np.asarray(observations, dtype=np.float32)
        return cls(*_outputs(model, vectors), np.stack([model.counts(vector) for vector in vectors]))


class Decisions:
    """A model in use; safe to ask from several threads.

    Args:
        id: of its entry. digest: SHA-256 of its ``policy.pt``.
    """

    def __init__(self, id: str, digest: str, model: Model):
        self.id, self.digest, self.model = id, digest, model
        self.discrete, self.size = model.policy.network.discrete, model.policy.network.inputs
        self._states = Outputs.of_states(model) if self.discrete else None

    @classmethod
    def load(cls, registry: Registry, id: str) -> "Decisions":
        """Raises RunError if the entry's files do not have their digests or do not fit each other."""
        return cls(id, registry.card(id)["files"][POLICY], registry.model(id))

    def observation(self, value) -> int | list[float]:
        """An observation as JSON has it. Raises ObservationError if it is none of this model's."""
        if self.discrete:
            return _index(value, self.size, "an observation")
        if type(value) is not list or len(value) != self.size:
            raise ObservationError(f"an observation is a list of {self.size} numbers.")
        if not all(type(x) in (int, float) and -LARGEST <= x <= LARGEST for x in value):
            raise ObservationError(f"the numbers of an observation must lie within {LARGEST:g} of 0.")
        return [float(x) + 0.0 for x in value]  # -0.0 is 0.0

    def action(self, value) -> int:
        """An action as JSON has it. Raises ObservationError if it is none of this model's."""
        return _index(value, self.model.dataset.num_actions, "an action")

    def decide(self, observations: list) -> list[Decision]:
        """One for each of the observations, of which there is at least one; each as ``observation`` returns it.

        Raises:
            ObservationError: the network's outputs are not finite there.
        """
        found, rows = self._states, observations
        if found is None:
            found, rows = Outputs.of_vectors(self.model, observations), list(range(len(observations)))
        decided = []
        for row in rows:
            action = int(found.actions[row])
            count, q = int(found.counts[row, action]), None if found.q is None else found.q[row].tolist()
            decided.append(Decision(action, self.model.actions[action], q, found.probabilities[row].tolist(), count > 0,
                                    count))
        return decided

    def explain(self, observation, action: int | None) -> dict:
        """As `cql.deploy.explanation` has it; the first makes its tables. Raises RunError where outputs are not
        finite."""
        return self._explainer.explain(observation, action)

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.model)

    @property
    def observations(self) -> dict:
        """What an observation is, as JSON schema."""
        if self.discrete:
            return {"type": "integer", "minimum": 0, "maximum": self.size - 1}
        return {"type": "array", "items": {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
                "minItems": self.size, "maxItems": self.size}

    @cached_property
    def map(self) -> dict:
        """What the page draws. ``board`` is None where states are not the cells of one grid, or too many to draw:
        else for each cell its observation, the greedy action, and how often the data took each action there."""
        board = self.model.world.grid
        drawn = board is not None and len(board.terminal) <= LARGEST_BOARD
        return {"model": self.id, "member": self.model.member.name, "actions": self.model.actions,
                "observations": self.observations, "board": self._board() if drawn else None}

    def _board(self) -> dict:
        board, inputs = self.model.world.grid, self.model.world.inputs
        found = self._states or Outputs.of_vectors(self.model, inputs.tolist())
        return {"rows": board.shape[0], "columns": board.shape[1], "moves": board.moves.astype(int).tolist(),
                **{mask: np.flatnonzero(getattr(board, mask)).tolist() for mask in MASKS},
                "cells": inputs.tolist(), "greedy": found.actions.tolist(), "counts": found.counts.tolist()}


def _outputs(model: Model, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    policy = model.policy
    q = policy.q_values(observations) if policy.algorithm == "cql" else None
    probabilities = policy.probabilities(observations)
    if not np.isfinite(probabilities if q is None else q).all():
        raise ObservationError(f"the outputs of {model.member.name} are not finite there.")
    return policy.act(observations), q, probabilities


def _index(value, size: int, what: str) -> int:
    """JSON has one kind of number: 3.0 is the integer 3."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < size:
        raise ObservationError(f"{what} is an integer from 0 to {size - 1}.")
    return value
