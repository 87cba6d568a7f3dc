"""What one loaded model answers: decisions, explanations, its map. Knows nothing of HTTP."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cql.deploy.api import Decision, MapAnswer
from cql.deploy.explanation import Explainer, of_possible
from cql.deploy.model import LARGEST, POLICY, Model
from cql.deploy.store import Registry
from cql.errors import RunError

PLACES = ("hazard", "goal", "terminal", "start")  # of a board


class ServedModel:
    """A model in use.

    Args:
        id: of its entry. digest: SHA-256 of its ``policy.pt``.
    """

    def __init__(self, id: str, digest: str, model: Model):
        self.id, self.digest, self.model = id, digest, model
        self.discrete, self.size = model.policy.network.discrete, model.policy.network.inputs
        self._states = self._decided(range(self.size), None) if self.discrete else None

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

    def decide(self, observations: list, masks: list | None = None) -> list[Decision]:
        """One for each of the observations, of which there is at least one; each as ``Model.observation`` returns it.

        Args:
            masks: for vectors, of every observation the actions that exist there.

        Raises:
            RunError: the network's outputs are not finite there, or a mask is missing or none of this model's.
        """
        if self._states is None or masks is not None:
            return self._decided(observations, masks)
        return [self._states[n] for n in observations]

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
                     **{name: np.flatnonzero(getattr(grid, name)).tolist() for name in PLACES},
                     "cells": inputs.tolist(), "greedy": model.policy.act(inputs).tolist(),
                     "counts": [model.counts(observation).tolist() for observation in inputs]}
        return MapAnswer(model=self.id, member=model.member.name, actions=model.actions, features=model.features,
                         masked=model.policy.masked, observations=self.schema, board=board)

    def _decided(self, observations: Sequence, masks: list | None) -> list[Decision]:
        model, policy = self.model, self.model.policy
        seen = np.asarray(observations, dtype=model.dataset.observations.dtype)
        possible = model.possible(seen, masks)
        actions, probabilities = policy.act(seen, masks), policy.probabilities(seen, masks)
        q = policy.q_values(seen, masks) if policy.algorithm == "cql" else None
        if not np.isfinite((probabilities if q is None else q)[possible]).all():
            raise RunError(f"the outputs of {model.member.name} are not finite there.")
        return [Decision(action=action, name=model.actions[action],
                         q=None if q is None else of_possible(q[n], possible[n]),
                         probabilities=probabilities[n].tolist(), count=int(model.counts(seen[n])[action]),
                         supported=model.support.supported(seen[n], action, None if masks is None else masks[n]))
                for n, action in enumerate(actions.tolist())]
