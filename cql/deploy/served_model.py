"""What one loaded model answers: decisions, explanations, its map. Knows nothing of HTTP.

Axes: N observations, A action.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from cql.deploy.api import Decision, MapAnswer
from cql.deploy.explanation import Explainer
from cql.deploy.model import POLICY, Model
from cql.deploy.store import Registry

MASKS = ("hazard", "goal", "terminal", "start")  # of a board
LARGEST_BOARD = 10_000  # cells that are still drawn
LARGEST = 1e18  # number of an observation: far from where float32 ends, so that the network's sums stay below it


class ObservationError(ValueError):
    """An observation or an action that the model does not have; the message is one sentence."""


class Outputs(NamedTuple):
    """Of the policy, and what the data did: actions ``[N]``; q or None, probabilities and counts, all ``[N, A]``."""

    actions: np.ndarray
    q: np.ndarray | None
    probabilities: np.ndarray
    counts: np.ndarray


class ServedModel:
    """A model in use.

    Args:
        id: of its entry. digest: SHA-256 of its ``policy.pt``.
    """

    def __init__(self, id: str, digest: str, model: Model):
        self.id, self.digest, self.model = id, digest, model
        self.discrete, self.size = model.policy.network.discrete, model.policy.network.inputs
        self.num_actions = model.dataset.num_actions
        self._states = self._outputs(np.arange(self.size)) if self.discrete else None

    @classmethod
    def load(cls, registry: Registry, id: str) -> "ServedModel":
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
        return _index(value, self.num_actions, "an action")

    @property
    def schema(self) -> dict:
        """What an observation is, as JSON schema."""
        if self.discrete:
            return {"type": "integer", "minimum": 0, "maximum": self.size - 1}
        return {"type": "array", "items": {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
                "minItems": self.size, "maxItems": self.size}

    def decide(self, observations: list) -> list[Decision]:
        """One for each of the observations, of which there is at least one; each as ``observation`` returns it.

        Raises:
            ObservationError: the network's outputs are not finite there.
        """
        found = self._states or self._outputs(np.asarray(observations, self.model.dataset.observations.dtype))
        decided, support = [], self.model.support
        for n, row in enumerate(observations if self.discrete else range(len(observations))):
            action = int(found.actions[row])
            count, q = int(found.counts[row, action]), None if found.q is None else found.q[row].tolist()
            supported = count > 0 if support.by_state else support.supported(observations[n], action)
            decided.append(Decision(action=action, name=self.model.actions[action], q=q, count=count,
                                    probabilities=found.probabilities[row].tolist(), supported=supported))
        return decided

    def explain(self, observation, action: int | None) -> dict:
        """As `cql.deploy.explanation` has it; one at a time. Raises RunError where outputs are not finite."""
        return self._explainer.explain(observation, action)

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self.model)

    @cached_property
    def map(self) -> MapAnswer:
        """What the page draws. ``board`` is None where states are not the cells of one grid, or too many to draw:
        else for each cell its observation, the greedy action, and how often the data took each action there."""
        grid, inputs, board = self.model.world.grid, self.model.world.inputs, None
        if grid is not None and len(grid.terminal) <= LARGEST_BOARD:
            found = self._states or self._outputs(np.asarray(inputs, dtype=np.float32))
            board = {"rows": grid.shape[0], "columns": grid.shape[1], "moves": grid.moves.astype(int).tolist(),
                     **{mask: np.flatnonzero(getattr(grid, mask)).tolist() for mask in MASKS},
                     "cells": inputs.tolist(), "greedy": found.actions.tolist(), "counts": found.counts.tolist()}
        return MapAnswer(model=self.id, member=self.model.member.name, actions=self.model.actions,
                         observations=self.schema, board=board)

    def _outputs(self, observations: np.ndarray) -> Outputs:
        policy = self.model.policy
        q = policy.q_values(observations) if policy.algorithm == "cql" else None
        probabilities = policy.probabilities(observations)
        if not np.isfinite(probabilities if q is None else q).all():
            raise ObservationError(f"the outputs of {self.model.member.name} are not finite there.")
        counts = np.stack([self.model.counts(observation) for observation in observations])
        return Outputs(policy.act(observations), q, probabilities, counts)


def _index(value, size: int, what: str) -> int:
    """JSON has one kind of number: 3.0 is the integer 3."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < size:
        raise ObservationError(f"{what} is an integer from 0 to {size - 1}.")
    return value
