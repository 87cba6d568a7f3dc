"""The model that answers now: what the registry has promoted, as soon as it is loaded."""

import asyncio
import logging

from cql.deploy.served_model import ServedModel
from cql.deploy.store import Registry
from cql.errors import RunError

PERIOD, AFTER_A_PROBLEM = 0.2, 1.0  # seconds until the next look at the registry

log = logging.getLogger("cql.deploy")


class Promoted:
    """Follows a registry. A model is swapped by one assignment: a request is answered by one model, and none waits.

    Attributes:
        current: what answers, or None. problem: a sentence, where the registry's promoted model is not what answers.
        taken: how many models have been taken so far.
    """

    def __init__(self, registry: Registry):
        self.registry, self.taken = registry, 0
        self.current: ServedModel | None = None
        self.problem: str | None = None

    def check(self) -> None:
        """Takes what is promoted, if it is not in service already. If it cannot be taken, only ``problem`` changes."""
        problem = None
        try:
            id = self.registry.promoted()
            if id is None:
                raise RunError("no model is promoted.")
            if self.current is None or id != self.current.id:
                self.current, self.taken = ServedModel.load(self.registry, id), self.taken + 1
                log.info("in service: %s (%s)", id, self.current.model.member.name)
        except Exception as error:  # whatever is wrong with it, the old one goes on
            problem = str(error)
            if problem != self.problem:
                log.warning("%s In service: %s.", problem, "nothing" if self.current is None else self.current.id)
        self.problem = problem

    async def follow(self) -> None:
        """Checks for ever, in a thread."""
        while True:
            await asyncio.sleep(PERIOD if self.problem is None else AFTER_A_PROBLEM)
            await asyncio.to_thread(self.check)
