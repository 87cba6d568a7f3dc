"""A registry of trained members over a plain folder: what is kept, who promoted which, when and why.

    entries/ID/  policy.pt  data.npz  config.json  card.json       log.jsonl  lock

An entry never changes. Its ID is the first 16 digits of the SHA-256 of its files' digests; ``card.json`` says what it
is and what it was worth, and the log's record of its registration holds the digest of the card. The log
(`cql.deploy.chain`) is append-only and hash-chained; each record says which entry is in service after it. Writers, in
any number of processes, take turns by a lock (flock: on a local disk, or a network file system that has it); readers
need none.

``Registry.verify`` finds whatever was changed, added or taken away by someone who does not make the log anew; what it
cannot know is said in `cql.deploy.chain`. ``by`` is what the caller says: nothing is signed.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cql.deploy import gate
from cql.deploy.chain import DIGEST, FIRST, ChainedLog, refuse_other_kinds, sync_folder
from cql.deploy.gate import Limits
from cql.deploy.history import ID, LOG, PROMOTE, REFUSE, REGISTER, ROLLBACK, History
from cql.deploy.model import CARD, Model
from cql.deploy.model_card import CARD_KEYS, FILES, entry_of, id_of
from cql.errors import RunError
from cql.files import atomic_write, sha256, utc_now
from cql.run_folder import RunFolder

ENTRIES, LOCK = "entries", "lock"
PREFIX = re.compile(r"[0-9a-f]{4,16}")  # of an ID
LONGEST = 1000  # characters of a name or a reason


class Refused(RunError):
    """A promotion that the gate refused. ``record`` is what the log says of it, with the gate's measures."""

    def __init__(self, record: dict):
        self.record, self.reasons = record, record["gate"]["reasons"]
        super().__init__(" ".join(self.reasons))


class Registry:
    """The registry in a folder; the first registration makes it. Methods raise RunError, one sentence."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._log = ChainedLog(self.path / LOG)

    # ------------------------------------------------------------------------------------------------------ reading

    def folder(self, id: str) -> Path:
        """Of the entry with this ID, or with the only one that begins with these 4 to 16 digits."""
        if not isinstance(id, str) or not PREFIX.fullmatch(id):
            raise RunError(f"{id!r} is no ID of an entry: give 4 to 16 of its digits.")
        found = [name for name in self._names() if name.startswith(id)]
        if len(found) != 1:
            raise RunError(f"{self.path} has {'several entries' if found else 'no entry'} whose ID begins with {id}.")
        return self.path / ENTRIES / found[0]

    def card(self, id: str) -> dict:
        """What an entry is; only if it has the digest that the log recorded."""
        return self._card(self.folder(id), self._history())

    def entries(self) -> list[dict]:
        """Every card, in the order of registration."""
        history = self._history()
        return [self._card(self.path / ENTRIES / id, history) for id in history.cards]

    def model(self, id: str) -> Model:
        """An entry ready to act, its files held against their digests first."""
        folder = self.folder(id)
        history = self._history()
        self._refuse_changes(folder, history)
        return Model.of_entry(folder, self._card(folder, history))

    def log(self) -> list[dict]:
        """Every record. Raises RunError if the chain is broken."""
        self._names()  # no registry at all?
        return self._log.records()

    def promoted(self) -> str | None:
        """The ID in service. Cheap: of the log only the end is read, and only if the log has changed."""
        record = self._log.last()
        if record is None and any((self.path / ENTRIES).glob("[0-9a-f]*")):
            raise RunError(f"{self.path} holds entries but no record of them: its log is lost.")
        id = None if record is None else record.get("promoted")
        if id is not None and not (isinstance(id, str) and ID.fullmatch(id)):
            raise RunError(f"{self._log.path} is broken: its last record does not say what is in service.")
        return id

    def head(self) -> str:
        """The digest of the last record, to be kept elsewhere; zeros where there is none."""
        record = self._log.last()
        return FIRST if record is None else record["sha256"]

    def verify(self, head: str | None = None) -> list[str]:
        """Whatever is wrong with the entries and the log, a sentence each; empty if all is sound.

        Args:
            head: what ``head`` was at an earlier time: is it still in the chain?
        """
        if head is not None and not DIGEST.fullmatch(head):
            raise RunError(f"{head!r} is no digest of a record: it has 64 digits.")
        self._names()  # no registry at all?
        with self._locked(shared=True):
            problems = self._log.problems(head)
            try:
                history = History.of(self._log.records())
            except RunError:  # said above
                history = None
            names = self._names()
            for path in sorted((self.path / ENTRIES).iterdir()):
                if path.name not in names:
                    problems.append(f"{ENTRIES}/{path.name}: no entry.")
            if history is None:
                return problems + [p for name in names for p in self._problems(name, None)]
            problems += history.problems
            problems += [f"{ENTRIES}/{id}: missing." for id in history.cards if id not in names]
            for name in names:
                problems += self._problems(name, history.cards.get(name, ""))
        return problems

    # ------------------------------------------------------------------------------------------------------ writing

    def register(self, run: str | Path, member: str | None, by: str) -> str:
        """Takes a member of a finished and evaluated run in, whole or not at all.

        Returns:
            its ID; that of the same files registered before, in which case nothing changes.
        """
        return self.registered(run, member, by)[0]

    def registered(self, run: str | Path, member: str | None, by: str) -> tuple[str, bool]:
        """``register``, and whether the entry is new."""
        _refuse_text("by", by)
        contents, card = entry_of(run, member)
        self._make()
        with self._locked():
            history = self._history()
            folder = self.path / ENTRIES / card["id"]
            if card["id"] in history.cards:
                self._refuse_changes(folder, history)
                if self._card(folder, history)["files"] != card["files"]:
                    raise RunError(f"another model has the ID {card['id']} already: two that meet were made to.")
                return card["id"], False
            for left in (self.path / ENTRIES).glob(".*.partial"):  # of a killed process: whoever writes has the lock
                shutil.rmtree(left)
            unrecorded = set(self._names()) - history.cards.keys()
            if folder.name in unrecorded and unrecorded == {folder.name}:  # its writer was stopped before recording it
                recorded = self._adopted(folder, card)
            elif unrecorded:
                raise RunError(f"the log of {self.path} does not know {ENTRIES}/{min(unrecorded)}: it was cut off, or "
                               "lost (see verify).")
            else:
                recorded = self._put(folder, contents, card)
            self._append(REGISTER, card["id"], by, None, history.promoted, card=recorded)
        return card["id"], True

    def _put(self, folder: Path, contents: dict[str, bytes], card: dict) -> str:
        """Makes an entry, whole or not at all; returns the digest of its card."""
        partial = folder.with_name(f".{card['id']}.partial")
        partial.mkdir()
        try:
            for name, data in contents.items():
                atomic_write(partial / name, data)
            RunFolder(partial).write_json(CARD, {**card, "registered": utc_now()})
            recorded = sha256(partial / CARD)
            sync_folder(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(folder.parent)
        return recorded

    def _adopted(self, folder: Path, card: dict) -> str:
        """The digest of the card of an entry that no record names, if it is what would be registered."""
        refuse_other_kinds(folder / CARD)
        data = (folder / CARD).read_bytes() if (folder / CARD).exists() else b""
        digest = hashlib.sha256(data).hexdigest()
        if self._problems(folder.name, digest) or {**_card_of(data, folder / CARD), "registered": None} != card:
            raise RunError(f"{folder} is in no record and not what would be registered: look at it, and move it away.")
        return digest

    def promote(self, id: str, by: str, why: str, limits: Limits) -> dict:
        """Puts an entry into service if it meets the limits, judged anew from its own files.

        Returns:
            the log's record.

        Raises:
            Refused: limits were missed: which, and by how much; the log says so too.
        """
        _refuse_text("by", by)
        _refuse_text("why", why)
        model, folder = self.model(id), self.folder(id)
        judged = gate.judge(model, limits)
        with self._locked():
            history = self._history()
            self._refuse_changes(folder, history)
            action = PROMOTE if judged["passed"] else REFUSE
            promoted = folder.name if judged["passed"] else history.promoted
            record = self._append(action, folder.name, by, why, promoted, judged=judged)
        if action == REFUSE:
            raise Refused(record)
        return record

    def rollback(self, by: str, why: str) -> dict:
        """Puts the entry promoted before the present one back into service; the present one is then no longer among
        those gone through, so that rolling back again walks on to the one before that: A, B, C, back to B, D, back to
        B, back to A.

        Returns:
            the log's record. The entry is not judged again, but must have its digests.
        """
        _refuse_text("by", by)
        _refuse_text("why", why)
        self._names()
        with self._locked():
            history = self._history()
            if len(history.served) < 2:
                raise RunError(f"{self.path} has no model promoted before the one in service." if history.served else
                               f"{self.path} has no model in service.")
            id = history.served[-2]
            self._refuse_changes(self.path / ENTRIES / id, history)
            return self._append(ROLLBACK, id, by, why, id)

    # ------------------------------------------------------------------------------------------------------- within

    def _append(self, action: str, id: str, by: str, why: str | None, promoted: str | None, judged: dict | None = None,
                card: str | None = None) -> dict:
        return self._log.append({"time": utc_now(), "action": action, "id": id, "by": by, "why": why, "gate": judged,
                                 "card": card, "promoted": promoted})

    def _history(self) -> History:
        history = History.of(self.log())
        if history.problems:
            raise RunError(f"{self.path} is broken: {history.problems[0]}")
        return history

    def _names(self) -> list[str]:
        """Of the folders that could be entries, sorted."""
        self._refuse_links()
        if not (self.path / ENTRIES).is_dir():
            raise RunError(f"{self.path} is no registry: it has no folder {ENTRIES}.")
        return sorted(path.name for path in (self.path / ENTRIES).iterdir()
                      if ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

    def _refuse_links(self) -> None:
        if (self.path / ENTRIES).is_symlink():
            raise RunError(f"{self.path / ENTRIES} is a symbolic link: a registry holds none.")
        for name in (LOG, LOCK):
            refuse_other_kinds(self.path / name)

    def _make(self) -> None:
        self._refuse_links()
        if (self.path / ENTRIES).is_dir():
            return
        if self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir()):
            raise RunError(f"{self.path} is no registry and not empty: give a folder of its own.")
        (self.path / ENTRIES).mkdir(parents=True, exist_ok=True)
        sync_folder(self.path)

    @contextmanager
    def _locked(self, shared: bool = False) -> Iterator[None]:
        """Alone among writers, or with other readers that want no writer beside them."""
        refuse_other_kinds(self.path / LOCK)
        if shared and not (self.path / LOCK).exists():  # nobody has written yet, and perhaps nobody may
            yield
            return
        number = os.open(self.path / LOCK, (os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT) | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)  # which gives the lock back

    def _card(self, folder: Path, history: History) -> dict:
        path, recorded = folder / CARD, history.cards.get(folder.name)
        if recorded is None:
            raise RunError(f"{folder} was never registered: the log does not know it.")
        refuse_other_kinds(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}).") from None
        if hashlib.sha256(data).hexdigest() != recorded:
            raise RunError(f"{path} was changed: it does not have the digest that the log recorded.")
        return _card_of(data, path)

    def _refuse_changes(self, folder: Path, history: History) -> None:
        """Raises RunError if an entry is not what it was registered as."""
        if folder.name not in history.cards:
            raise RunError(f"{folder} was never registered: the log does not know it.")
        if folder.is_symlink() or not folder.is_dir():
            raise RunError(f"{folder} is missing, or a link.")
        if problems := self._problems(folder.name, history.cards[folder.name]):
            raise RunError(f"the entry was changed: {problems[0]}")

    def _problems(self, id: str, card: str | None) -> list[str]:
        """What is wrong with an entry, a sentence each.

        Args:
            card: the digest of its card: "" if the log does not know the entry, None if the log itself is broken.
        """
        folder, found, problems = self.path / ENTRIES / id, {}, []
        for path in sorted(folder.iterdir()):
            name = f"{ENTRIES}/{id}/{path.name}"
            if path.name not in (*FILES, CARD):
                problems.append(f"{name}: no file of an entry.")
            elif path.is_symlink() or not path.is_file():
                problems.append(f"{name}: a link or another thing than a plain file.")
            else:
                found[path.name] = sha256(path)
        problems += [f"{ENTRIES}/{id}/{name}: missing." for name in (*FILES, CARD)
                     if name not in found and not os.path.lexists(folder / name)]
        if card == "":
            problems.append(f"{ENTRIES}/{id}: the log has no record of its registration.")
        elif card is not None and CARD in found and found[CARD] != card:
            problems.append(f"{ENTRIES}/{id}/{CARD}: does not have the digest that the log recorded.")
        # the card has the digests in full: 16 digits of an ID could be met by two models made for it
        registered = self._registered_digests(folder) if CARD in found else None
        for name in FILES:
            if registered is not None and name in found and found[name] != registered[name]:
                problems.append(f"{ENTRIES}/{id}/{name}: contents differ from those registered.")
        if registered is not None and id_of(registered) != id:
            problems.append(f"{ENTRIES}/{id}: the files on its card do not make this ID.")
        elif registered is None and found.get(CARD) == card:  # else said above
            problems.append(f"{ENTRIES}/{id}/{CARD}: is no card of an entry.")
        return problems

    @staticmethod
    def _registered_digests(folder: Path) -> dict[str, str] | None:
        """Those on an entry's card; None where that cannot be read."""
        try:
            digests = RunFolder(folder).read_json(CARD)["files"]
            return digests if digests.keys() == set(FILES) else None
        except (RunError, KeyError, TypeError, AttributeError):
            return None


def _card_of(data: bytes, path: Path) -> dict:
    try:
        card = json.loads(data)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.keys() != CARD_KEYS:
        raise RunError(f"{path} is no card of an entry.")
    return card


def _refuse_text(name: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > LONGEST:
        raise RunError(f"--{name} must be one line of 1 to {LONGEST} printable characters.")
