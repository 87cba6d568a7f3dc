"""A registry of trained members in a folder: what is kept, who promoted which, when and why.

    entries/ID/  policy.pt  data.npz  config.json  card.json       registry.db

The files of an entry never change. Its ID is the first 16 digits of the SHA-256 of its files' digests; ``card.json``
says what it is and what it was worth. All that is said of entries is in the database (`cql.deploy.events`), with the
digest of each card. ``by`` is what the caller says: nothing is signed.
"""

import hashlib
import json
import os
import re
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from sqlite3 import Connection

from cql.deploy import events, gate
from cql.deploy.events import DATABASE, PROMOTE, REFUSE, REGISTER, ROLLBACK, History
from cql.deploy.gate import Limits
from cql.deploy.model import CARD, FILES, MODEL, Model, RecordedFile
from cql.deploy.model_card import CARD_KEYS, NAMES, entry_of, id_of
from cql.errors import RunError
from cql.files import atomic_write, sync_folder, utc_now

ENTRIES, OLD_LOG = "entries", "log.jsonl"


class Refused(RunError):
    """A promotion that the gate refused. ``record`` is what the registry says of it, with the gate's measures."""

    def __init__(self, record: dict):
        self.record = record
        super().__init__(" ".join(record["gate"]["reasons"]))


class Registry:
    """The registry in a folder; the first registration makes it. Methods raise RunError, one sentence."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def folder(self, id: str, history: History | None = None) -> Path:
        """Of the entry with this ID, or with the only one that begins with these 4 to 16 digits."""
        if not isinstance(id, str) or not re.fullmatch("[0-9a-f]{4,16}", id):
            raise RunError(f"{id!r} is no ID of an entry: give 4 to 16 of its digits.")
        found = [name for name in (history or self.history()).cards if name.startswith(id)]
        if len(found) != 1:
            raise RunError(f"{self.path} has {'several entries' if found else 'no entry'} whose ID begins with {id}.")
        return self.path / ENTRIES / found[0]

    def card(self, id: str, history: History | None = None) -> dict:
        """What an entry is; only if it has the digest that was recorded."""
        history = history or self.history()
        folder = self.folder(id, history)
        file = RecordedFile(folder / CARD, history.cards[folder.name])
        try:
            card = json.load(file)
            if card.keys() - NAMES == CARD_KEYS and card["id"] == folder.name == id_of(card["files"]):
                return card
        except (AttributeError, RecursionError, TypeError, ValueError):
            pass
        raise RunError(f"{folder / CARD} is no card of this entry.")

    def entries(self) -> list[dict]:
        """Every card, in the order of registration."""
        history = self.history()
        return [self.card(id, history) for id in history.cards]

    def model(self, id: str) -> Model:
        """An entry ready to act, of files with the digests that were recorded."""
        card = self.card(id)
        return Model.of_entry(self.path / ENTRIES / card["id"], card)

    def history(self) -> History:
        """Every record, and what they amount to. Raises RunError if one is not sound."""
        with self._transaction() as database:
            return History().read(database)

    def promoted(self) -> str | None:
        """The ID in service, by the last record alone: cheap enough to be asked several times a second."""
        with self._transaction() as database:
            row = database.execute("SELECT promoted FROM events ORDER BY n DESC LIMIT 1").fetchone()
        return row and row[0]

    def verify(self, head: str | None = None) -> list[str]:
        """What is wrong with the database, the records and each entry, a sentence each; empty if all is sound.

        A ``head`` of an earlier time must still be the digest of a record.
        """
        if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
            raise RunError(f"{head!r} is no digest of a record: it has 64 digits.")
        self._refuse_others()
        problems, history = [], History()
        names = sorted(path.name for path in (self.path / ENTRIES).glob("*"))
        try:
            with self._transaction(os.access(self.path, os.W_OK)) as database:  # whoever registers has recorded it then
                problems = [f"{DATABASE}: {' '.join(said.split())}." for said, in database.execute(
                    "PRAGMA integrity_check") if said != "ok"]
                history.read(database)
        except RunError as error:
            problems.append(str(error))
        if head not in {None, events.FIRST, *(record["sha256"] for record in history.records)}:
            problems.append(f"no record has the digest {head}: records were removed, or all made anew.")
        problems += [f"{ENTRIES}/{name}: no sound record names it." for name in names if name not in history.cards]
        for id in history.cards:
            try:
                self._refuse_changes(id, history)
            except RunError as error:
                problems.append(str(error))
        return problems

    def register(self, run: str | Path, member: str | None, by: str) -> str:
        """The ID of ``registered``."""
        return self.registered(run, member, by)[0]

    def registered(self, run: str | Path, member: str | None, by: str) -> tuple[str, bool]:
        """Takes a member of a finished and evaluated run in, whole or not at all: its ID, and whether it is new.

        The same files registered again change nothing.
        """
        _refuse_text(by=by)
        contents, card = entry_of(run, member)
        id, text = card["id"], json.dumps({**card, "registered": utc_now()}, indent=2, allow_nan=False).encode()
        self._refuse_others(unless_new=True)
        if not os.path.lexists(self.path / DATABASE):
            (self.path / ENTRIES).mkdir(parents=True, exist_ok=True)
            events.make(self.path / DATABASE)
        with self._transaction(write=True) as database:
            history = History().read(database)
            if id in history.cards:
                self._refuse_changes(id, history)
                if self.card(id, history)["files"] != card["files"]:
                    raise RunError(f"another model has the ID {id} already.")
                return id, False
            self._put(self.path / ENTRIES / id, contents | {CARD: text}, card["files"])
            history.append(database, action=REGISTER, id=id, by=by, card=hashlib.sha256(text).hexdigest())
        return id, True

    def promote(self, id: str, by: str, why: str, limits: Limits) -> dict:
        """The record of putting an entry into service, if it meets the limits, judged anew from its own files.

        Raises:
            Refused: limits were missed: which, and by how much; a record says so too.
        """
        _refuse_text(by=by, why=why)
        id = self.folder(id).name
        judged = gate.judge(self.model(id), limits)
        with self._transaction(write=True) as database:
            history = History().read(database)
            self._refuse_changes(id, history)
            action = PROMOTE if judged["passed"] else REFUSE
            record = history.append(database, action=action, id=id, by=by, why=why, gate=judged)
        if action == REFUSE:
            raise Refused(record)
        return record

    def rollback(self, by: str, why: str) -> dict:
        """The record of putting the entry promoted before the present one back into service.

        Promotions form a stack: A, B, C, back to B, D, back to B, back to A. Digests are checked, limits are not.
        """
        _refuse_text(by=by, why=why)
        with self._transaction(write=True) as database:
            history = History().read(database)
            if len(history.served) < 2:
                raise RunError(f"{self.path} has no model in service that was promoted after another.")
            self._refuse_changes(history.served[-2], history)
            return history.append(database, action=ROLLBACK, id=history.served[-2], by=by, why=why)

    def _transaction(self, write: bool = False) -> AbstractContextManager[Connection]:
        self._refuse_others()
        return events.transaction(self.path / DATABASE, write)

    def _refuse_others(self, unless_new: bool = False) -> None:
        """Raises RunError where the folder is no registry, or with ``unless_new`` none and not empty."""
        database, entries = self.path / DATABASE, self.path / ENTRIES
        if os.path.lexists(database):
            if entries.is_symlink() or database.is_symlink() or not database.is_file():
                raise RunError(f"{self.path}: {DATABASE} or {ENTRIES} is a link or another thing than a plain file.")
        elif (self.path / OLD_LOG).exists():
            raise RunError(f"{self.path} was made by an earlier version: register its members again, in a new folder.")
        elif any(entries.glob("*")):
            raise RunError(f"{self.path} holds entries but no record of them: its {DATABASE} is lost.")
        elif not unless_new or {path.name for path in self.path.glob("[!.]*")} - {ENTRIES}:
            raise RunError(f"{self.path} is no registry: it has no {DATABASE}.")

    def _refuse_changes(self, id: str, history: History) -> None:
        """Raises RunError if an entry is not what was registered."""
        _refuse_other_files(self.folder(id, history), self.card(id, history)["files"])

    def _put(self, folder: Path, contents: dict[str, bytes], digests: dict[str, str]) -> None:
        """Renames an entry into its place. One left there by a writer killed before its record gets the new card."""
        if os.path.lexists(folder):
            _refuse_other_files(folder, digests)
            return atomic_write(folder / CARD, contents[CARD])
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            for name, data in contents.items():
                atomic_write(partial / name, data)
            sync_folder(partial)
            partial.rename(folder)
        sync_folder(folder.parent)


def _refuse_other_files(folder: Path, digests: dict[str, str]) -> None:
    """Raises RunError if a folder holds other files than those with these digests and a card."""
    for path in folder.glob("*"):
        if path.name not in {CARD, *FILES, *digests}:
            raise RunError(f"{path} is no file of an entry.")
    for name in {*FILES, *digests} & {*FILES, MODEL}:
        RecordedFile(folder / name, digests.get(name))


def _refuse_text(**texts: str) -> None:
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > 1000:
            raise RunError(f"--{name} must be one line of 1 to 1000 printable characters.")
