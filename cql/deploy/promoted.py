"""The model that answers now: what the registry has promoted, as soon as it is loaded."""

import asyncio
import logging
import time

from cql.deploy.served_model import Decisions
from cql.deploy.store import Registry

PERIOD = 0.2  # seconds between two looks at the registry
AGAIN = 5.0  # seconds after which what could not be taken is tried again

log = logging.getLogger("cql.deploy")


class InService:
    """Follows a registry. A model is swapped by one assignment: a request is answered by one model, and none waits.

    Attributes:
        current: what answers, or None. problem: a sentence, where the registry's promoted model is not what answers.
        taken: how many models have been taken so far.
    """

    def __init__(self, registry: Registry):
        self.registry = registry
        self.current: Decisions | None = None
        self.problem: str | None = None
        self.taken = 0
        self._refused: str | None = None  # what could not be taken
        self._again = 0.0  # when it is tried again

    def check(self) -> None:
        """Takes what is promoted, if it is not in service already. If it cannot be taken, only ``problem`` changes."""
        try:
            id = self.registry.promoted()
        except Exception as error:
            self._keep(None, f"the registry cannot be read: {error}")
            return
        if id is None:
            self._keep(None, "no model is promoted.")
        elif self.current is not None and id == self.current.id:
            self._refused = self.problem = None
        elif id != self._refused or time.monotonic() >= self._again:
            try:
                self.current = Decisions.load(self.registry, id)
            except Exception as error:  # whatever is wrong with it, the old one goes on
                self._again = time.monotonic() + AGAIN
                self._keep(id, f"{id} is promoted but cannot be taken: {error}")
                return
            self._refused, self.problem, self.taken = None, None, self.taken + 1
            log.info("in service: %s (%s)", id, self.current.model.member.name)

    async def follow(self) -> None:
        """Checks for ever, in a thread."""
        while True:
            await asyncio.sleep(PERIOD)
            await asyncio.to_thread(self.check)

    def _keep(self, refused: str | None, problem: str) -> None:
        self._refused = refused
        if problem != self.problem:
            serving = "Nothing" if self.current is None else self.current.id
            log.warning("%s In service: %s.", problem, serving)
        self.problem = problem
