"""What one loaded model answers: decisions, explanations, its map. Knows nothing of HTTP."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cql.deploy.api import Decision, MapAnswer
from cql.deploy.explanation import Explainer
from cql.deploy.model import LARGEST, POLICY, Model
from cql.deploy.store import Registry
from cql.errors import RunError

MASKS = ("hazard", "goal", "terminal", "start")  # of a board


class ServedModel:
    """A model in use.

    Args:
        id: of its entry. digest: SHA-256 of its ``policy.pt``.
    """

    def __init__(self, id: str, digest: str, model: Model):
        self.id, self.digest, self.model = id, digest, model
        self.discrete, self.size = model.policy.network.discrete, model.policy.network.inputs
        self._states = self._decided(range(self.size)) if self.discrete else None

    @classmethod
    def load(cls, registry: Registry, id: str) -> "ServedModel":
        """Raises RunError if the entry's files do not have their digests or do not fit each other."""
        return cls(id, registry.card(id)["files"][POLICY], registry.model(id))

    @property
    def schema(self) -> dict:
        """What an observation is, as JSON schema."""
        if self.discrete:
            return {"type": "integer", "minimum": 0, "maximum": self.size - 1}
        return {"type": "array", "items": {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
                "minItems": self.size, "maxItems": self.size}

    def decide(self, observations: list) -> list[Decision]:
        """One for each of the observations, of which there is at least one; each as ``Model.observation`` returns it.

        Raises:
            RunError: the network's outputs are not finite there.
        """
        return self._decided(observations) if self._states is None else [self._states[n] for n in observations]

    @cached_property
    def explainer(self) -> Explainer:
        """For one explanation at a time."""
        return Explainer(self.model)

    @cached_property
    def map(self) -> MapAnswer:
        """What the page draws. ``board`` is None where states are not the cells of one grid, or too many to draw:
        else for each cell its observation, the greedy action, and how often the data took each action there."""
        model, board = self.model, None
        if model.has_map:
            grid, inputs = model.world.grid, model.world.inputs
            board = {"rows": grid.shape[0], "columns": grid.shape[1], "moves": grid.moves.astype(int).tolist(),
                     **{mask: np.flatnonzero(getattr(grid, mask)).tolist() for mask in MASKS},
                     "cells": inputs.tolist(), "greedy": model.policy.act(inputs).tolist(),
                     "counts": [model.counts(observation).tolist() for observation in inputs]}
        return MapAnswer(model=self.id, member=model.member.name, actions=model.actions,
                         observations=self.schema, board=board)

    def _decided(self, observations: Sequence) -> list[Decision]:
        model, policy = self.model, self.model.policy
        seen = np.asarray(observations, dtype=model.dataset.observations.dtype)
        actions, probabilities = policy.act(seen), policy.probabilities(seen)
        q = policy.q_values(seen) if policy.algorithm == "cql" else None
        if not np.isfinite(probabilities if q is None else q).all():
            raise RunError(f"the outputs of {model.member.name} are not finite there.")
        return [Decision(action=action, name=model.actions[action], q=None if q is None else q[n].tolist(),
                         probabilities=probabilities[n].tolist(), count=int(model.counts(seen[n])[action]),
                         supported=model.support.supported(seen[n], action))
                for n, action in enumerate(actions.tolist())]
