"""The registry: entries that never change, promotions that are earned, records that show what was done to it."""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import train
from cql.commands import registry
from cql.deploy import events, gate, store
from cql.deploy.events import COLUMNS, SCHEMA, History, digest, transaction
from cql.deploy.gate import Limits
from cql.deploy.model import Model
from cql.deploy.store import Refused, Registry
from cql.errors import RunError
from cql.files import sha256
from cql.run_folder import RunFolder
from tests.faults import FORKS

pytestmark = pytest.mark.slow
ANY = Limits(max_hazard=1, min_return=-1e9, max_unsupported=1)
BC, ONE, SIX = "bc-s42-d42", "cql-a1-s42-d42", "cql-a6-s42-d42"


@pytest.fixture(scope="module")
def filled(deployable, tmp_path_factory):
    """(folder, IDs): three entries; promoted were the first, the second, the third, and then there was a rollback."""
    path = tmp_path_factory.mktemp("registry") / "reg"
    made = Registry(path)
    ids = [made.register(deployable, name, "ann") for name in (BC, ONE, SIX)]
    for id in ids:
        made.promote(id, "bob", f"try {id}", ANY)
    made.rollback("cy", "not yet")
    return path, ids


@pytest.fixture
def copied(filled, tmp_path):
    """The same, to do with as one likes."""
    shutil.copytree(filled[0], tmp_path / "reg")
    return Registry(tmp_path / "reg"), list(filled[1])


@contextlib.contextmanager
def attacked(reg):
    """The database open for whoever may write it, its triggers out of the way."""
    with contextlib.closing(sqlite3.connect(reg.path / "registry.db")) as database, database:
        for change in ("UPDATE", "DELETE"):
            database.execute(f"DROP TRIGGER no_{change}")
        yield database
        for trigger in SCHEMA[1:]:
            database.execute(trigger)


def put(database, rows) -> None:
    database.execute("DELETE FROM events")
    database.executemany(f"INSERT INTO events VALUES ({', '.join('?' * len(COLUMNS))})", rows)


def rewritten(reg, change, rows=None) -> None:
    """All records anew, with sound digests, after a change: what a chain alone cannot show."""
    with attacked(reg) as database:
        head, anew = events.FIRST, []
        for row in rows or database.execute("SELECT * FROM events ORDER BY n").fetchall():
            facts = dict(zip(COLUMNS[:-1], row))
            change(facts)
            head = digest(head, list(facts.values()))
            anew.append([*facts.values(), head])
        put(database, anew)


def cut(reg, n) -> None:
    """Removes all records after number n."""
    with attacked(reg) as database:
        database.execute("DELETE FROM events WHERE n > ?", [n])


def command(reg, *arguments) -> int:
    return registry.main([str(getattr(reg, "path", reg)), *map(str, arguments)])


# -------------------------------------------------------------------------------------------------------------- entries


def test_an_entry_is_the_member_as_the_run_has_it(filled, deployable):
    path, ids = filled
    made, run = Registry(path), RunFolder.open(deployable)
    assert [(card["member"], card["id"]) for card in made.entries()] == list(zip([BC, ONE, SIX], ids))
    folder, card = made.folder(ids[2]), made.card(ids[2][:4])
    sources = {"policy.pt": f"policies/{SIX}.pt", "data.npz": "datasets/42.npz", "config.json": "config.json"}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*sources, "card.json"])
    assert card["files"] == {name: sha256(run.path / source) for name, source in sources.items()}
    assert card["data_digest"] == card["files"]["data.npz"] and card["config"] == run.read_json("config.json")
    text = "\n".join(f"{name} {card['files'][name]}" for name in ("config.json", "data.npz", "policy.pt"))
    assert ids[2] == hashlib.sha256(text.encode()).hexdigest()[:16]
    evaluation, manifest = run.read_json("evaluation.json"), run.read_json("manifest.json")
    assert card["evaluation"]["references"] == evaluation["references"]
    assert evaluation["members"][2].items() <= card["evaluation"].items() and card["evaluation"]["alpha"] == 6
    assert card["versions"]["run"] == manifest["versions"] and card["commit"]["run"] == manifest["commit"]
    a, b = Model.of_entry(folder), Model.of_run(deployable, SIX)
    assert a.member == b.member and a.final_alpha == b.final_alpha == 6
    np.testing.assert_array_equal(a.policy.q_values(a.world.inputs), b.policy.q_values(b.world.inputs))


def test_the_audit_of_a_card_is_that_of_the_run(filled, deployable):
    from cql.analysis.audit import audit
    for card, entry in zip(Registry(filled[0]).entries(), audit(RunFolder.open(deployable))["members"]):
        assert card["no_audit"] is None and "states" not in card["audit"]
        summary = {k: v for k, v in entry.items() if k not in ("algorithm", "alpha", "seed", "data_seed", "states")}
        assert card["audit"] == json.loads(json.dumps(summary))


def test_the_same_member_again_changes_nothing(copied, deployable, capsys):
    reg, ids = copied
    before = {p: (sha256(p), p.stat().st_mtime_ns) for p in reg.path.rglob("*") if p.is_file()}
    assert command(reg, "register", deployable, "--member", SIX, "--by", "dan") == 0
    assert f"{ids[2]}  {SIX}  is registered already" in capsys.readouterr().out
    assert {p: (sha256(p), p.stat().st_mtime_ns) for p in reg.path.rglob("*") if p.is_file()} == before


def test_data_without_an_environment_have_no_audit_and_no_promotion(tmp_path, capsys):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "plain.npz", observations=random.integers(0, 5, 40), actions=random.integers(0, 3, 40),
             rewards=np.ones(40), next_observations=random.integers(0, 5, 40), terminations=random.random(40) < 0.2)
    assert train.main(["--dataset", str(tmp_path / "plain.npz"), "--steps", "4", "--bc-steps", "4", "--log-every", "2",
                       "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    reg = Registry(tmp_path / "reg")
    id = reg.register(tmp_path / "run", None, "ann")
    assert reg.card(id)["audit"] is None and "name no environment" in reg.card(id)["no_audit"]
    with pytest.raises(Refused, match="name no environment"):
        reg.promote(id, "ann", "try", ANY)
    assert reg.promoted() is None and [r["action"] for r in reg.history().records] == ["register", "refuse"]
    capsys.readouterr()
    assert command(reg, "list") == 0 and "None is in service" in capsys.readouterr().out


def test_only_a_sound_and_evaluated_run_is_taken(deployable, tmp_path):
    for change, sentence in (("policies/" + SIX + ".pt", "not what its manifest records"),
                             ("evaluation.json", "not what its manifest records")):
        shutil.copytree(deployable, tmp_path / "run")
        with open(tmp_path / "run" / change, "ab") as file:
            file.write(b" ")
        with pytest.raises(RunError, match=sentence):
            Registry(tmp_path / "reg").register(tmp_path / "run", SIX, "ann")
        shutil.rmtree(tmp_path / "run")
    shutil.copytree(deployable, tmp_path / "run")
    for name in ("manifest.json", "evaluation.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(RunError, match="evaluate the run first"):
        Registry(tmp_path / "reg").register(tmp_path / "run", SIX, "ann")
    assert not (tmp_path / "reg").exists()


def test_a_registration_that_was_killed_leaves_no_entry(copied, deployable, monkeypatch):
    """Before the rename, and between it and the record; the folder is then taken for what it is, or refused."""
    reg, ids = copied
    folder = reg.path / "entries" / ids[2]
    shutil.rmtree(folder)
    cut(reg, 2)  # as if the third had never been
    with monkeypatch.context() as patch:
        patch.setattr(store, "atomic_write", lambda *a: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            reg.register(deployable, SIX, "ann")
    assert reg.verify() == []
    left = folder.with_name(".left")  # where a writer was killed
    left.mkdir()
    assert reg.verify() == ["entries/.left: no sound record names it."]
    with monkeypatch.context() as patch:
        patch.setattr(History, "append", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            reg.register(deployable, SIX, "ann")
    left.rmdir()
    assert reg.verify() == [f"entries/{ids[2]}: no sound record names it."]
    with pytest.raises(RunError, match="no entry whose ID"):
        reg.promote(ids[2], "ann", "try", ANY)
    policy, sound = folder / "policy.pt", (folder / "policy.pt").read_bytes()
    policy.write_bytes(sound + b" ")
    (folder / "card.json").write_text("{}")  # made anew in any case
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.register(deployable, SIX, "ann")
    policy.write_bytes(sound)
    assert reg.register(deployable, SIX, "ann") == ids[2] and reg.verify() == [] and reg.card(ids[2])["member"] == SIX


def register_at_once(path, run, started, answers):
    started.wait()
    answers.put(Registry(path).registered(run, SIX, "ann"))


def test_processes_that_make_a_registry_at_once(tmp_path, deployable):
    started, answers = FORKS.Barrier(4), FORKS.Queue()
    working = [FORKS.Process(target=register_at_once, args=(tmp_path / "reg", deployable, started, answers))
               for _ in range(4)]
    for process in working:
        process.start()
    found = [answers.get() for _ in working]
    for process in working:
        process.join()
    assert len({id for id, _ in found}) == 1 and sorted(new for _, new in found) == [False] * 3 + [True]
    assert Registry(tmp_path / "reg").verify() == []
    assert sorted(path.name for path in (tmp_path / "reg").iterdir()) == ["entries", "registry.db"]


def test_what_is_held_against_its_digest_is_what_is_loaded(copied, monkeypatch):
    """A file exchanged between the check of an entry's card and the use of its files."""
    (reg, ids), card = copied, Registry.card
    monkeypatch.setattr(Registry, "card", lambda self, id, history=None: (
        card(self, id, history), (reg.path / "entries" / ids[0] / "policy.pt").write_bytes(b"another"))[0])
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.model(ids[0])


# ----------------------------------------------------------------------------------------------------------- promotions


def test_a_promotion_is_judged_and_recorded(filled):
    path, ids = filled
    log = Registry(path).history().records
    assert [r["action"] for r in log] == ["register"] * 3 + ["promote"] * 3 + ["rollback"]
    assert [r["promoted"] for r in log] == [None] * 3 + ids + [ids[1]]
    assert [r["n"] for r in log] == list(range(1, 8)) and [r["by"] for r in log] == ["ann"] * 3 + ["bob"] * 3 + ["cy"]
    exact = Registry(path).card(ids[1])["evaluation"]["exact"]
    values = {m["name"]: m["value"] for m in log[4]["gate"]["measures"]}
    assert values["return"] == exact["return"] and values["hazard_probability"] == exact["hazard_probability"]


def test_a_refusal_is_logged_and_says_by_how_much(copied, capsys):
    reg, ids = copied
    value = {m["name"]: m["value"] for m in reg.history().records[5]["gate"]["measures"]}
    assert command(reg, "promote", ids[2], "--why", "hope", "--max-unsupported", 1,
                   "--max-hazard", value["hazard_probability"] / 4, "--min-return", value["return"] + 2) == 1
    error = capsys.readouterr().err
    assert f"by {value['hazard_probability'] * 3 / 4:.4g}." in error and "by 2." in error and error.count("\n- ") == 2
    record = reg.history().records[-1]
    assert [record[key] for key in ("action", "id", "promoted")] == ["refuse", ids[2], ids[1]]
    assert not record["gate"]["passed"]
    assert reg.promoted() == ids[1] and reg.verify() == []


def test_the_gate_reads_the_entry_and_not_its_card(copied):
    """A card that promises more, in a registry whose log vouches for it, moves nothing."""
    reg, ids = copied
    path = reg.path / "entries" / ids[0] / "card.json"
    card = json.loads(path.read_text())
    true = card["evaluation"]["exact"]["return"]
    card["evaluation"]["exact"]["return"] = 1000.0
    path.write_text(json.dumps(card))
    rewritten(reg, lambda facts: facts.update(card=sha256(path)) if facts["card"] and facts["id"] == ids[0] else None)
    assert reg.verify() == [] and reg.card(ids[0])["evaluation"]["exact"]["return"] == 1000
    with pytest.raises(Refused) as refused:
        reg.promote(ids[0], "eve", "trust me", Limits(1, 100, 1))
    assert refused.value.record["gate"]["measures"][1]["missed_by"] == pytest.approx(100 - true)


def test_rolling_back_walks_further_back(copied):
    reg, (a, b, c) = copied
    assert reg.promoted() == b  # a, b, c, back to b
    reg.promote(b, "ann", "confirmed", ANY)  # the model in service again: nothing to go back to in itself
    reg.promote(c, "ann", "better now", ANY)
    assert [reg.rollback("ann", "worse")["promoted"] for _ in range(2)] == [b, a]
    before = reg.history().records
    with pytest.raises(RunError, match="no model in service that was promoted after another"):
        reg.rollback("ann", "and again")
    assert reg.history().records == before and reg.promoted() == a and reg.verify() == []


def test_no_rollback_to_a_changed_entry_or_from_nothing(copied, tmp_path, deployable):
    reg, ids = copied
    (reg.path / "entries" / ids[0] / "policy.pt").write_bytes(b"x")
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.rollback("ann", "worse")
    assert reg.promoted() == ids[1]
    fresh = Registry(tmp_path / "fresh")
    with pytest.raises(RunError, match="no registry"):
        fresh.rollback("ann", "x")
    fresh.register(deployable, SIX, "ann")
    with pytest.raises(RunError, match="no model in service"):
        fresh.rollback("ann", "x")


def promote_often(path, ids, number, each, started):
    started.wait()
    for k in range(each):
        Registry(path).promote(ids[(number + k) % len(ids)], f"process {number}", f"promotion {k}", ANY)


def test_processes_that_promote_at_once(copied, times):
    """Four processes (with ``--times`` 20) promote five times each (ten), while this one asks what is in service."""
    (reg, ids), answers = copied, []
    processes, each = (20, 10) if times else (4, 5)
    cut(reg, 3)
    started = FORKS.Barrier(processes)
    working = [FORKS.Process(target=promote_often, args=(reg.path, ids, n, each, started)) for n in range(processes)]
    for process in working:
        process.start()
    while any(process.is_alive() for process in working):
        answers.append(reg.promoted())
        time.sleep(0.005)
    for process in working:
        process.join()
    assert [process.exitcode for process in working] == [0] * processes
    assert set(answers) <= {None, *ids} and answers[-1] == reg.promoted()
    log = reg.history().records
    print(f"\n{len(log) - 3} promotions, {len(answers)} answers meanwhile, verify: {reg.verify()}")
    assert reg.verify() == [] and len(log) == 3 + processes * each
    for number in range(processes):  # every promotion is there once, in the order of its process
        assert [record["why"] for record in log if record["action"] == "promote" and record["by"] == f"process {number}"
                ] == [f"promotion {k}" for k in range(each)]


PASSED = {"passed": True, "reasons": [], "measures": []}


def promote_for_ever(path, ids, done):
    gate.judge, Registry.model = lambda model, limits: PASSED, lambda self, id: None  # leaves the database
    for k in range(10**9):
        Registry(path).promote(ids[k % 2], "ann", f"promotion {k}", ANY)
        done.send_bytes(b"1")


def test_a_killed_writer_leaves_the_state_before_or_after(copied, times):
    """Killed at random moments of promoting: every promotion that returned is there, and at most one more."""
    (reg, ids), chosen, further = copied, random.Random(1), 0
    for _ in range(min(times or 5, 50)):
        before = reg.history().records
        receive, send = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=promote_for_ever, args=(reg.path, ids, send))
        process.start()
        send.close()
        receive.recv_bytes()
        time.sleep(chosen.uniform(0, 0.1))
        process.kill()
        process.join()
        returned = 1
        with contextlib.suppress(EOFError):
            while receive.recv_bytes():
                returned += 1
        log = reg.history().records
        new = log[len(before):]
        assert log[:len(before)] == before and [record["why"] for record in new] == [
            f"promotion {k}" for k in range(len(new))]
        assert returned <= len(new) <= returned + 1 and reg.promoted() == new[-1]["promoted"] == ids[(len(new) - 1) % 2]
        assert reg.verify(before[-1]["sha256"]) == []
        further += len(new) - returned
    print(f"\n{further} of the killed promotions were there, {len(log) - 7} in all")


def by_hand(database, reg, id) -> dict:
    """A refusal, as another process would record it."""
    return History().read(database).append(database, action="refuse", id=id, by="other")


@pytest.mark.parametrize("write", [
    lambda reg, ids, run: reg.promote(ids[2], "ann", "x", ANY), lambda reg, ids, run: reg.rollback("ann", "x"),
    lambda reg, ids, run: reg.register(run, SIX, "ann")], ids=["promote", "rollback", "register"])
def test_whoever_writes_waits_for_the_others(copied, deployable, write):
    reg, ids = copied
    if "register" in write.__code__.co_names:
        cut(reg, 2)
        shutil.rmtree(reg.path / "entries" / ids[2])
    before = reg.history().records
    with transaction(reg.path / "registry.db", write=True) as database:
        writer = threading.Thread(target=write, args=(Registry(reg.path), ids, deployable))
        writer.start()
        writer.join(0.4)
        assert writer.is_alive() and reg.history().records == before and reg.promoted() == before[-1]["promoted"]
        other = by_hand(database, reg, ids[0])  # what the writer goes on from
    writer.join()
    log = reg.history().records
    assert len(log) == len(before) + 2 and log[-2] == other and reg.verify() == []


def test_a_gate_is_judged_while_others_write(copied, monkeypatch):
    reg, ids = copied

    def judged(model, limits):
        with transaction(reg.path / "registry.db", write=True) as database:
            by_hand(database, reg, ids[0])
        return PASSED
    monkeypatch.setattr(gate, "judge", judged)
    record = reg.promote(ids[2], "ann", "x", ANY)
    assert record["promoted"] == ids[2] and record["n"] == 9 and reg.verify() == []


def test_an_entry_changed_while_it_is_judged_is_not_promoted(copied, monkeypatch):
    reg, ids = copied
    monkeypatch.setattr(gate, "judge", lambda model, limits: PASSED | {
        "written": (reg.path / "entries" / ids[2] / "policy.pt").write_bytes(b"another")})
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.promote(ids[2], "ann", "x", ANY)
    assert reg.promoted() == ids[1]


# ---------------------------------------------------------------------------------------------------- what verify finds


def test_all_is_sound_and_the_head_is_said(filled, capsys):
    path, ids = filled
    reg = Registry(path)
    assert reg.verify() == [] and command(path, "verify") == 0
    head = reg.history().records[-1]["sha256"]
    assert reg.history().head == head and f"sound, 3 entries, 7 records\nhead {head}" in capsys.readouterr().out
    for record in reg.history().records:  # every earlier head is still there
        assert reg.verify(record["sha256"]) == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path):
    elsewhere = path.parents[1].with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("spoil, words", [
    (flip, "was changed: it does not have the digest that was recorded."), (Path.unlink, "is missing, or a link"),
    (link, "is missing, or a link"), (lambda path: path.with_name("notes.txt").touch(), "notes.txt is no file of")])
@pytest.mark.parametrize("name", ["policy.pt", "data.npz", "config.json", "card.json"])
def test_a_changed_entry_is_found_and_not_promoted(copied, name, spoil, words, capsys):
    reg, ids = copied
    folder = reg.path / "entries" / ids[1]
    spoil(folder / name)
    assert command(reg, "verify") == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}/") and words in out and out.endswith(f"\n{reg.path}: 1 problem(s)\n")
    with pytest.raises(RunError, match=words):
        reg.promote(ids[1], "ann", "x", ANY)
    assert reg.promoted() == ids[1] and len(reg.history().records) == 7


def test_folders_that_are_missing_or_more_are_found(copied):
    reg, ids = copied
    entries = reg.path / "entries"
    shutil.rmtree(entries / ids[0])
    shutil.copytree(entries / ids[2], entries / ("0" * 16))
    (entries / "stray").write_text("x")
    assert reg.verify() == [
        f"entries/{'0' * 16}: no sound record names it.", "entries/stray: no sound record names it.",
        f"{entries / ids[0]}/card.json is missing, or a link or another thing than a plain file."]


def nth(n, /, **changes):
    """A statement that edits record n."""
    return f"UPDATE events SET {', '.join(f'[{name}] = {value}' for name, value in changes.items())} WHERE n = {n}"


@pytest.mark.parametrize("statement, n", [
    (nth(4, by="'eve'"), 4), (nth(4, by="CAST(\"by\" AS BLOB)"), 4), (nth(4, why="NULL"), 4),
    (nth(7, promoted="NULL"), 7),
    (nth(5, gate="replace(gate, ':', ' :')"), 5), (nth(5, gate="'{'"), 5), (nth(5, gate="zeroblob(10)"), 5),
    (nth(5, gate=f"'{'[' * 60_000}'"), 5), (nth(6, why="CAST(x'fffe00' AS TEXT)"), 6), (nth(7, sha256="lower(id)"), 7),
    ("DELETE FROM events WHERE n = 3", 3), (nth(7, n=8), 7), (nth(1, n=0), 1), (nth(1, n=-1), 1),
    (f"{nth(5, n=99)}; {nth(6, n=5)}; {nth(99, n=6)}", 5),
    ("INSERT INTO events SELECT 8, " + ", ".join(f'"{name}"' for name in COLUMNS[1:]) + " FROM events WHERE n = 7", 8),
    ("DELETE FROM events WHERE n = 3; UPDATE events SET n = n - 1 WHERE n > 3", 3)])
def test_a_changed_record_is_found_and_nothing_is_built_on_it(copied, statement, n, capsys):
    reg, ids = copied
    with attacked(reg) as database:
        for each in statement.split("; "):
            database.execute(each)
    before = (reg.path / "registry.db").read_bytes()
    assert f"record {n} " in reg.verify()[0] or "UTF-8" in reg.verify()[0]
    for attempt in (("list",), ("show", ids[0]), ("promote", ids[0], "--why", "x"), ("rollback", "--why", "x")):
        assert command(reg, *attempt) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "registry.db" in error and len(error) < 500
    assert (reg.path / "registry.db").read_bytes() == before


def test_what_a_chain_cannot_show_its_head_does(copied, capsys):
    reg, ids = copied
    head = reg.history().head
    shutil.copytree(reg.path, reg.path.with_name("other"))
    cut(reg, 6)
    assert reg.verify() == [] and reg.promoted() == ids[2]  # the rollback was removed without a trace
    assert "were removed, or all made anew" in reg.verify(head)[0] and command(reg, "verify", "--head", head) == 1
    reg = Registry(reg.path.with_name("other"))
    rewritten(reg, lambda facts: facts.update(by="eve"))
    assert reg.verify() == [] and len(reg.verify(head)) == 1
    with pytest.raises(RunError, match="64 digits"):
        reg.verify("abc")


def test_a_sound_chain_that_says_what_cannot_be(copied):
    reg, ids = copied
    with transaction(reg.path / "registry.db") as database:
        rows = database.execute("SELECT * FROM events ORDER BY n").fetchall()
    for change in ({"promoted": ids[0]}, {"id": ids[2]}, {"action": "delete"}, {"id": "f" * 16}, {"action": "register"},
                   {"action": "promote", "gate": '{"passed": false}'}):
        rewritten(reg, lambda facts, change=change: facts["action"] == "rollback" and facts.update(change), rows)
        [problem] = reg.verify()
        assert problem.startswith("registry.db is broken: record 7 does not follow")
        with pytest.raises(RunError, match="broken"):
            reg.rollback("ann", "x")


def answers(reg):
    """All that can be read from a registry."""
    return reg.history().records, reg.entries(), reg.promoted(), reg.history().head


def changed_by_sql(database, chosen) -> str:
    """A record edited, removed, doubled or exchanged with the next; never the last: only a head shows its removal."""
    rows = database.execute("SELECT * FROM events ORDER BY n").fetchall()
    kind, k = chosen.choice(["edited", "removed", "doubled", "exchanged"]), chosen.randrange(len(rows) - 1)
    if kind == "edited":
        column = chosen.randrange(1, len(COLUMNS))
        other = chosen.choice([None, "x", 1, *(row[column] for row in rows if row[column] != rows[k][column])])
        if other == rows[k][column]:
            other = "y"
        rows[k] = (*rows[k][:column], other, *rows[k][column + 1:])
    elif kind == "exchanged":
        rows[k: k + 2] = rows[k + 1], rows[k]
    else:
        rows[k: k + 1] = [] if kind == "removed" else [rows[k]] * 2
    if chosen.random() < 0.5 or kind in ("doubled", "exchanged"):  # and numbered so that none is missing
        rows = [(n, *row[1:]) for n, row in enumerate(rows, 1)]
    put(database, rows)
    return kind


def test_random_damage_is_found_or_without_effect(copied, times):
    """A bit of a file or of the database is flipped, or a record is changed by SQL."""
    reg, ids = copied
    with transaction(reg.path / "registry.db", write=True) as database:
        for _ in range(60):
            by_hand(database, reg, ids[0])  # enough for a tree of pages
    chosen, whole, database = random.Random(1), answers(reg), reg.path / "registry.db"
    files = sorted(path for path in (reg.path / "entries").rglob("*") if path.is_file())
    counts = {}
    for _ in range(times or 40):
        file = database if chosen.random() < 0.7 else chosen.choice(files)
        before = file.read_bytes()
        if file == database and chosen.random() < 0.5:
            with attacked(reg) as opened:
                kind = f"record {changed_by_sql(opened, chosen)}"
        else:
            damaged, kind = bytearray(before), f"bit of {'the database' if file == database else 'an entry'}"
            damaged[chosen.randrange(len(before))] ^= 1 << chosen.randrange(8)
            file.write_bytes(damaged)
        found = bool(reg.verify())
        assert found or answers(reg) == whole and kind == "bit of the database", kind
        counts[kind, found] = counts.get((kind, found), 0) + 1
        for left in reg.path.glob("registry.db-*"):
            left.unlink()
        file.write_bytes(before)
    print(*(f"\n{kind}: {count} {'found' if found else 'without effect'}"
            for (kind, found), count in sorted(counts.items())))
    assert reg.verify() == [] and answers(reg) == whole


# -------------------------------------------------------------------------------------------------------- hostile input


@pytest.mark.parametrize("id", ["../x", "..", "", "abc", "g" * 16, "a" * 17, "ABCD", "entries", ".", "0000", None, 5])
def test_what_is_no_id_is_refused(filled, id):
    for ask in (Registry(filled[0]).folder, Registry(filled[0]).card, Registry(filled[0]).model):
        with pytest.raises(RunError, match=r"^[^\n]*\.$"):
            ask(id)


def another_database(path, whole):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE events (n INTEGER PRIMARY KEY, promoted TEXT)")


@pytest.mark.parametrize("spoil", [
    lambda path, whole: os.mkfifo(path), lambda path, whole: path.mkdir(), another_database,
    lambda path, whole: path.symlink_to(path.with_name("elsewhere")),
    lambda path, whole: (path.write_bytes(whole), link(path.with_name("entries"))),
    lambda path, whole: path.write_bytes(b"x" * 9000), lambda path, whole: path.write_bytes(whole[:16] + bytes(5000)),
    *(lambda path, whole, n=n: path.write_bytes(whole[:n]) for n in (0, 10, 100, 4096, 5000, 8191))])
def test_another_thing_than_the_database_is_one_sentence(copied, spoil, deployable, capsys):
    (reg, ids), path = copied, copied[0].path / "registry.db"
    whole = path.read_bytes()
    path.unlink()
    spoil(path, whole)
    for attempt in (("list",), ("show", ids[0]), ("promote", ids[0], "--why", "x"), ("rollback", "--why", "x"),
                    ("register", deployable, "--member", SIX), ("verify",)):
        assert command(reg, *attempt) in ((1, 2) if attempt == ("verify",) else (2,))
        out, error = capsys.readouterr()
        assert "registry.db" in out + error and error.count("\n") <= 1


def look_only(path, id):
    reg = Registry(path)
    reg.model(id)  # imports all that it needs
    if os.getuid() == 0:
        os.setuid(65534)  # root may write everywhere
    assert not os.access(path, os.W_OK) and reg.promoted() == id and len(reg.entries()) == 3
    assert reg.verify() == [] and reg.model(id).member.name == ONE
    for write in (lambda: reg.rollback("ann", "x"), lambda: reg.promote(id, "ann", "x", ANY)):
        with pytest.raises(RunError, match="cannot be used: attempt to write a readonly database"):
            write()


def test_whoever_may_only_read_reads(copied):
    """Alone, and, as root tries it, while another process writes."""
    (reg, ids), folder = copied, tempfile.mkdtemp()
    path = Path(folder) / "reg"
    shutil.copytree(reg.path, path)
    os.chmod(folder, 0o755)
    os.chmod(path, 0o555)
    writing = transaction(path / "registry.db", write=True)
    for others in [contextlib.nullcontext(), writing][: 2 if os.getuid() == 0 else 1]:
        with others as database:
            if database is not None:
                by_hand(database, reg, ids[0])
            process = FORKS.Process(target=look_only, args=(path, ids[1]))
            process.start()
            process.join()
            assert process.exitcode == 0
    os.chmod(path, 0o755)
    shutil.rmtree(folder)


def test_a_model_made_to_meet_the_id_of_another_is_found(copied, deployable, monkeypatch):
    reg, ids = copied
    shutil.copy(reg.path / "entries" / ids[1] / "policy.pt", reg.path / "entries" / ids[2] / "policy.pt")
    monkeypatch.setattr(store, "id_of", lambda digests: ids[2])  # 16 digits that say nothing
    assert f"{reg.path}/entries/{ids[2]}/policy.pt was changed" in reg.verify()[-1]
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.promote(ids[2], "eve", "x", ANY)
    shutil.copy(deployable / "policies" / f"{SIX}.pt", reg.path / "entries" / ids[2] / "policy.pt")
    monkeypatch.setattr("cql.deploy.model_card.id_of", lambda digests: ids[2])
    with pytest.raises(RunError, match="another model has the ID"):
        reg.register(deployable, BC, "eve")


def promote_on_a_full_disk(path, id, most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    with pytest.raises(RunError, match="cannot be used: (disk I/O error|database or disk is full)"):
        Registry(path).promote(id, "ann", "x", ANY)


@pytest.mark.parametrize("most", [0, 1000, 4000])
def test_a_full_disk_adds_nothing(copied, most):
    reg, ids = copied
    before = reg.history().records
    with contextlib.closing(sqlite3.connect(reg.path / "registry.db")) as database:
        database.execute("SELECT * FROM events").fetchone()  # a reader, so that the log is not folded into the file
        process = FORKS.Process(target=promote_on_a_full_disk, args=(reg.path, ids[2], most))
        process.start()
        process.join()
    assert process.exitcode == 0 and reg.history().records == before and reg.promoted() == ids[1] and reg.verify() == []
    assert reg.promote(ids[2], "ann", "x", ANY)["n"] == len(before) + 1


def test_an_evaluation_of_other_kinds_is_refused(deployable, tmp_path):
    shutil.copytree(deployable, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    path = tmp_path / "run" / "evaluation.json"
    whole = path.read_text()
    for spoil in (lambda e: [], lambda e: {**e, "members": 5}, lambda e: {**e, "members": [1]},
                  lambda e: {**e, "members": []}, lambda e: {k: v for k, v in e.items() if k != "references"}):
        path.write_text(json.dumps(spoil(json.loads(whole))))
        with pytest.raises(RunError, match="no sound entry of cql-a6-s42-d42: evaluate the run first"):
            Registry(tmp_path / "reg").register(tmp_path / "run", SIX, "ann")


@pytest.mark.parametrize("text", ["[]", "{}", "{\"files\": [1]}", "nan", "[" * 100_000])
def test_a_card_of_another_kind(copied, text, capsys):
    """Found by its digest; and where a record vouches for it, by its form."""
    reg, ids = copied
    path = reg.path / "entries" / ids[0] / "card.json"
    path.write_text(text)
    for words in ("does not have the digest", "card.json"):
        capsys.readouterr()
        assert command(reg, "list") == 2 and command(reg, "show", ids[0]) == 2
        for line in capsys.readouterr().err.splitlines():
            assert line.startswith("error: ") and words in line
        rewritten(reg, lambda facts: facts["id"] == ids[0] and facts["card"] and facts.update(card=sha256(path)))


@pytest.mark.parametrize("arguments", [
    ("promote", "0000", "--why", "x"), ("rollback", "--why", " "), ("rollback", "--why", "two\nlines"),
    ("rollback", "--why", "x" * 1001), ("rollback", "--why", "x", "--by", "\x1b[2J"),
    ("promote", "abcd", "--why", "x", "--max-hazard", "nan"),
    ("promote", "abcd", "--why", "x", "--max-unsupported", "-1"),
    ("promote", "abcd", "--why", "x", "--min-return", "inf"), ("register", "/nowhere"), ("verify", "--head", "12")])
def test_wrong_use_is_one_sentence(copied, arguments, capsys):
    reg, _ = copied
    before = reg.history().records
    assert command(reg, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reg.history().records == before


@pytest.mark.parametrize("names, words", [
    (["thesis.tex"], "is no registry: it has no registry.db."),
    (["entries/0123456789abcdef"], "its registry.db is lost."),
    (["log.jsonl", "entries"], "was made by an earlier version: register its members again, in a new folder.")])
def test_a_folder_that_is_no_registry(tmp_path, deployable, names, words, capsys):
    for name in names:
        (tmp_path / "full" / name).mkdir(parents=True)
    for attempt in (("list",), ("verify",), ("rollback", "--why", "x"), ("register", deployable, "--member", SIX)):
        assert command(tmp_path / "full", *attempt) == 2
        assert capsys.readouterr().err.endswith(f"{words}\n")
    assert sorted(str(path.relative_to(tmp_path / "full")) for path in (tmp_path / "full").glob("**/*")) == sorted(
        {*names, *(name.split("/")[0] for name in names)})
    for folder in (tmp_path / "full", tmp_path / "not there"):
        with pytest.raises(RunError):
            Registry(folder).promoted()


# ---------------------------------------------------------------------------------------------------------- as it reads


def test_list_and_show(copied, capsys):
    reg, ids = copied
    assert command(reg, "list") == 0
    head, *rows = capsys.readouterr().out.splitlines()[:4]
    assert head.split() == ["id", "member", "registered", "return", "hazard", "unsupported"]
    assert len({row.index("+00:00") for row in rows}) == 1 and [row[0] == "*" for row in rows] == [False, True, False]
    exact = reg.card(ids[2])["evaluation"]["exact"]
    assert rows[2].split()[:2] == [ids[2], SIX] and f"{exact['return']:.2f}" in rows[2]
    assert command(reg, "show", ids[2][:6]) == 0
    shown = capsys.readouterr().out
    rows = dict(line.split("  ", 1) for line in shown.splitlines())
    assert [rows[f"environment {name}"].strip() for name in ("id", "arguments slip probability", "max episode steps")
            ] == ["SafetyCriticalGridWorld-v0", "0.1", "80"]
    assert SIX in shown and f"by bob: try {ids[2]}" in shown and f"{exact['return']:.6g}" in shown and max(
        map(len, shown.splitlines())) < 180
    assert command(reg, "show", ids[2], "--json") == 0
    assert json.loads(capsys.readouterr().out) == reg.card(ids[2])


def test_the_history_by_hand():
    """Who is in service after A, B, back, C, back; a promotion of the one in service leaves no step."""
    a, b, c = (letter * 16 for letter in "abc")
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute(SCHEMA[0])
        history = History()
        for action, id, now in [("register", x, None) for x in (a, b, c)] + [
                ("promote", a, a), ("promote", b, b), ("promote", b, b), ("rollback", a, a), ("promote", c, c),
                ("refuse", b, c), ("rollback", a, a)]:
            assert history.append(database, action=action, id=id, gate=PASSED, card="0" * 64)["promoted"] == now
        assert history.served == [a] and set(history.cards) == {a, b, c}
        assert History().read(database) == history
        values = [*database.execute("SELECT * FROM events WHERE n = 2").fetchone()]
        text = history.records[0]["sha256"] + json.dumps(values[:-1])  # the whole of the chain
        assert history.records[1]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
