"""What was done to a registry: records in a table of SQLite, only ever added, each with a digest over all before it.

The digest of a record is the SHA-256 of the digest before it and of the record's own values. Whoever edits, removes,
adds or reorders records without making all later ones anew breaks this chain. The chain alone cannot show that the last
records were removed, or that all were made anew: against both, keep the head, the last digest, in another place.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cql.errors import RunError
from cql.files import sync_folder, utc_now

DATABASE = "registry.db"
REGISTER, PROMOTE, REFUSE, ROLLBACK = "register", "promote", "refuse", "rollback"
COLUMNS = "n", "time", "action", "id", "by", "why", "gate", "card", "promoted", "sha256"
SCHEMA = ["CREATE TABLE events (n INTEGER PRIMARY KEY, {} TEXT)".format(" TEXT, ".join(f'"{c}"' for c in COLUMNS[1:])),
          *(f"CREATE TRIGGER no_{change} BEFORE {change} ON events BEGIN SELECT RAISE(ABORT, 'only ever added'); END"
            for change in ("UPDATE", "DELETE"))]
WAIT = 60  # seconds that a writer waits for the others
FIRST = "0" * 64  # the digest before the first record


def make(path: Path) -> None:
    """An empty database, whole or not at all. One that another process made meanwhile stays."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder, reported(path), suppress(FileExistsError):
        with closing(sqlite3.connect(f"{folder}/{path.name}")) as database:
            for statement in ("PRAGMA journal_mode=WAL", *SCHEMA):
                database.execute(statement)
        os.link(f"{folder}/{path.name}", path)
        sync_folder(path.parent)


@contextmanager
def transaction(path: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to one state of the database; with ``write`` alone among writers, and it adds all or nothing.

    It is closed at the end, because a process that forks must hold no open one. SQLite's readers make a file that they
    share. A process that may not write the folder cannot make it; while nobody else writes, it therefore opens the
    database as one that never changes. Errors of SQLite are RunErrors.
    """
    alone = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=rw{'&immutable=1' * alone}"
    with reported(path), closing(sqlite3.connect(uri, WAIT, isolation_level=None, uri=True)) as database:
        database.execute("PRAGMA synchronous=FULL")
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        with database:
            if [sql for sql, in database.execute("SELECT sql FROM sqlite_schema")] != SCHEMA:
                raise RunError(f"{path} is damaged, or the database of something else.")
            yield database


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """SQLite's errors within it become RunErrors."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}.") from None


def digest(before: str, values: Sequence) -> str:
    """Of a record with these values, all columns but the last, after the record with the digest ``before``."""
    return hashlib.sha256((before + json.dumps(values)).encode()).hexdigest()


@dataclass
class History:
    """The records of a database, held against their digests and against what the records before them allow.

    Attributes:
        records: a dictionary each. cards: ID -> SHA-256 of its card, of all entries registered.
        served: the stack of promotions, what is in service last: promote pushes, rollback pops.
    """

    records: list[dict] = field(default_factory=list)
    cards: dict[str, str] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.records[-1]["sha256"] if self.records else FIRST

    def read(self, database: sqlite3.Connection) -> "History":
        """This history, with all records taken in. Raises RunError at the first that is not sound."""
        for n, row in enumerate(database.execute("SELECT * FROM events ORDER BY n"), 1):
            try:
                record = dict(zip(COLUMNS, row, strict=True))
                sound = record["n"] == n and record["sha256"] == digest(self.head, row[:-1])
                record["gate"] = record["gate"] and json.loads(record["gate"])
                sound = sound and record["promoted"] == self._promoted_after(record)
            except (KeyError, RecursionError, TypeError, ValueError):  # bytes, no JSON, or an action that cannot be
                sound = False
            if not sound:
                raise RunError(f"{DATABASE} is broken: record {n} does not follow from those before it; it, or one of "
                               "them, was changed, removed, added or moved.")
            self.records.append(record)
        return self

    def append(self, database: sqlite3.Connection, **facts) -> dict:
        """Adds a record of these facts, and returns it; a column that is not named stays empty."""
        record = dict.fromkeys(COLUMNS) | facts | {"n": len(self.records) + 1, "time": utc_now()}
        record["promoted"] = self._promoted_after(record)
        values = [json.dumps(value) if name == "gate" and value else value for name, value in record.items()][:-1]
        record["sha256"] = digest(self.head, values)
        database.execute(f"INSERT INTO events VALUES ({', '.join('?' * len(COLUMNS))})", [*values, record["sha256"]])
        self.records.append(record)
        return record

    def _promoted_after(self, record: dict) -> str | None:
        """What is in service after a record. Raises ValueError, KeyError or TypeError if there can be none such."""
        action, id = record["action"], record["id"]
        if action == REGISTER and id not in self.cards:
            self.cards[id] = record["card"]
        elif action == PROMOTE and id in self.cards and record["gate"]["passed"] is True:
            self.served += [id] * (self.served[-1:] != [id])  # promoted again, it stays where it is
        elif action == ROLLBACK and self.served[-2:-1] == [id]:
            self.served.pop()
        elif action != REFUSE or id not in self.cards:
            raise ValueError(action)
        return self.served[-1] if self.served else None
