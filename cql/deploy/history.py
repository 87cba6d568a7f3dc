"""What a registry's log amounts to: its records replayed, one after the other."""

import re
from dataclasses import dataclass, field

from cql.deploy.chain import DIGEST

LOG = "log.jsonl"
REGISTER, PROMOTE, REFUSE, ROLLBACK = ACTIONS = ("register", "promote", "refuse", "rollback")
RECORD = {"n", "time", "action", "id", "by", "why", "gate", "card", "promoted", "cut", "previous", "sha256"}
ID = re.compile(r"[0-9a-f]{16}")


@dataclass
class History:
    """What the records of a log amount to.

    Attributes:
        cards: ID -> SHA-256 of its card, of all entries registered.
        served: the entries that a rollback can go back through, the one in service last.
        problems: what the records say that cannot be, a sentence each.
    """

    cards: dict[str, str] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, records: list[dict]) -> "History":
        history = cls()
        for n, record in enumerate(records):
            if problem := history._add(record):
                history.problems.append(f"{LOG}: line {n + 1} {problem}.")
        return history

    @property
    def promoted(self) -> str | None:
        return self.served[-1] if self.served else None

    def _add(self, record: dict) -> str | None:
        if record.keys() != RECORD or record["action"] not in ACTIONS or not isinstance(record["id"], str):
            return "is no record of a registry"
        action, id = record["action"], record["id"]
        if action == REGISTER:
            if id in self.cards or not ID.fullmatch(id) or not DIGEST.fullmatch(str(record["card"])):
                return f"registers {id!r}, which is registered already or no entry"
            self.cards[id] = record["card"]
        elif id not in self.cards:
            return f"is about {id!r}, which was never registered"
        elif action == ROLLBACK:
            if self.served[-2:-1] != [id]:
                return f"goes back to {id}, which was not promoted before the one in service"
            self.served.pop()
        elif action == PROMOTE:
            if not isinstance(record["gate"], dict) or record["gate"].get("passed") is not True:
                return f"promotes {id}, which had not passed the gate"
            if self.promoted != id:  # promoted again, it only confirms itself
                self.served.append(id)
        if record["promoted"] != self.promoted:
            return f"has {record['promoted']!r} in service, where the log so far has {self.promoted!r}"
        return None
