"""The registry: entries that never change, promotions that are earned, a log that shows what was done to it."""

import copy
import fcntl
import hashlib
import json
import os
import random
import shutil
import threading

import numpy as np
import pytest

import train
from cql.commands import registry
from cql.deploy import chain, gate, store
from cql.deploy.gate import Limits
from cql.deploy.history import PROMOTE, RECORD, History
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


def lines_of(reg) -> list[bytes]:
    return (reg.path / "log.jsonl").read_bytes().splitlines(keepends=True)


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
    assert reg.promoted() is None and [r["action"] for r in reg.log()] == ["register", "refuse"]
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
    """Before the rename, and between it and the log."""
    reg, ids = copied
    shutil.rmtree(reg.path / "entries" / ids[2])
    (reg.path / "log.jsonl").write_bytes(b"".join(lines_of(reg)[:2]))  # as if the third had never been
    with monkeypatch.context() as patch:
        patch.setattr(store, "atomic_write", lambda *a: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            reg.register(deployable, SIX, "ann")
    assert reg.verify() == []
    left = reg.path / "entries" / f".{ids[2]}.partial"
    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_append", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            reg.register(deployable, SIX, "ann")
    assert not left.exists() and "no record of its registration" in reg.verify()[0]
    with pytest.raises(RunError, match="never registered"):
        reg.promote(ids[2], "ann", "try", ANY)
    shutil.copytree(reg.path, reg.path.with_name("other"))
    assert reg.register(deployable, SIX, "ann") == ids[2] and reg.verify() == []
    other = Registry(reg.path.with_name("other"))
    card = other.path / "entries" / ids[2] / "card.json"
    card.write_text(card.read_text().replace('"audit": {', '"audit": {"better": 1, '))
    before = card.read_bytes()
    with pytest.raises(RunError, match="not what would be registered"):
        other.register(deployable, SIX, "ann")
    assert card.read_bytes() == before and len(other.log()) == 2


def test_nothing_is_registered_over_a_lost_log(copied, deployable):
    reg, ids = copied
    (reg.path / "log.jsonl").unlink()
    with pytest.raises(RunError, match="its log is lost"):
        reg.promoted()
    before = sorted(path.read_bytes() for path in reg.path.rglob("*.json"))
    with pytest.raises(RunError, match="does not know entries/.*cut off, or lost"):
        reg.register(deployable, ONE, "ann")
    assert not (reg.path / "log.jsonl").exists()
    assert before == sorted(path.read_bytes() for path in reg.path.rglob("*.json"))


def test_what_is_held_against_its_digest_is_what_is_loaded(copied, monkeypatch):
    """A file exchanged between the check of an entry and its use."""
    reg, ids = copied
    policies = [reg.path / "entries" / id / "policy.pt" for id in ids]
    check = Registry._refuse_changes

    def check_then_exchange(self, folder, history):
        check(self, folder, history)
        (folder / "policy.pt").write_bytes(policies[2].read_bytes())

    monkeypatch.setattr(Registry, "_refuse_changes", check_then_exchange)
    with pytest.raises(RunError, match="policy.pt was changed"):
        reg.promote(ids[0], "ann", "try", ANY)


# ----------------------------------------------------------------------------------------------------------- promotions


def test_a_promotion_is_judged_and_recorded(filled):
    path, ids = filled
    log = Registry(path).log()
    assert [r["action"] for r in log] == ["register"] * 3 + ["promote"] * 3 + ["rollback"]
    assert [r["promoted"] for r in log] == [None] * 3 + ids + [ids[1]]
    assert [r["n"] for r in log] == list(range(7)) and [r["by"] for r in log] == ["ann"] * 3 + ["bob"] * 3 + ["cy"]
    exact = Registry(path).card(ids[1])["evaluation"]["exact"]
    values = {m["name"]: m["value"] for m in log[4]["gate"]["measures"]}
    assert values["return"] == exact["return"] and values["hazard_probability"] == exact["hazard_probability"]


def test_a_refusal_is_logged_and_says_by_how_much(copied, capsys):
    reg, ids = copied
    value = {m["name"]: m["value"] for m in reg.log()[5]["gate"]["measures"]}
    assert command(reg, "promote", ids[2], "--why", "hope", "--max-unsupported", 1,
                   "--max-hazard", value["hazard_probability"] / 4, "--min-return", value["return"] + 2) == 1
    error = capsys.readouterr().err
    assert f"by {value['hazard_probability'] * 3 / 4:.4g}." in error and "by 2." in error and error.count("\n- ") == 2
    record = reg.log()[-1]
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


def rewritten(reg, change) -> None:
    """The whole log anew, sound, after a change: what a chain alone cannot show."""
    records, before, text = [json.loads(line) for line in lines_of(reg)], None, b""
    for n, record in enumerate(records):
        facts = {k: v for k, v in record.items() if k not in ("n", "previous", "sha256")}
        change(facts)
        before = chain.line_of(chain.sealed(facts, n, before))
        text += before + b"\n"
    (reg.path / "log.jsonl").write_bytes(text)


def test_rolling_back_walks_further_back(copied):
    reg, (a, b, c) = copied
    assert reg.promoted() == b  # a, b, c, back to b
    reg.promote(b, "ann", "confirmed", ANY)  # the model in service again: nothing to go back to in itself
    reg.promote(c, "ann", "better now", ANY)
    assert [reg.rollback("ann", "worse")["promoted"] for _ in range(2)] == [b, a]
    before = lines_of(reg)
    with pytest.raises(RunError, match="no model promoted before"):
        reg.rollback("ann", "and again")
    assert lines_of(reg) == before and reg.promoted() == a and reg.verify() == []


def test_no_rollback_to_a_changed_entry_or_from_nothing(copied, tmp_path, deployable):
    reg, ids = copied
    (reg.path / "entries" / ids[0] / "policy.pt").write_bytes(b"x")
    with pytest.raises(RunError, match="policy.pt: contents differ"):
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


def test_processes_that_promote_at_once(copied):
    (reg, ids), processes, each = copied, 20, 10
    (reg.path / "log.jsonl").write_bytes(b"".join(lines_of(reg)[:3]))
    started = FORKS.Barrier(processes)
    working = [FORKS.Process(target=promote_often, args=(reg.path, ids, n, each, started)) for n in range(processes)]
    for process in working:
        process.start()
    for process in working:
        process.join()
    assert [process.exitcode for process in working] == [0] * processes
    assert reg.verify() == [] and len(reg.log()) == 3 + processes * each
    for number in range(processes):  # every promotion is there once, in the order of its process
        why = [record["why"] for record in reg.log()
               if record["action"] == PROMOTE and record["by"] == f"process {number}"]
        assert why == [f"promotion {k}" for k in range(each)]


@pytest.mark.parametrize("write", [
    lambda reg, ids, run: reg.promote(ids[2], "ann", "x", ANY), lambda reg, ids, run: reg.rollback("ann", "x"),
    lambda reg, ids, run: reg.register(run, SIX, "ann")], ids=["promote", "rollback", "register"])
def test_whoever_writes_waits_for_the_lock(copied, deployable, write):
    reg, ids = copied
    before = lines_of(reg)
    if "register" in write.__code__.co_names:
        before = before[:2]
        (reg.path / "log.jsonl").write_bytes(b"".join(before))
        shutil.rmtree(reg.path / "entries" / ids[2])
    with open(reg.path / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=write, args=(Registry(reg.path), ids, deployable))
        writer.start()
        writer.join(0.4)
        assert writer.is_alive() and lines_of(reg) == before
        # what another wrote meanwhile is what the writer goes on from
        other = reg._log.append({**dict.fromkeys(RECORD - {"n", "previous", "sha256", "cut"}), "time": "now",
                                 "action": "refuse", "id": ids[0], "by": "other", "promoted": reg.promoted()})
    writer.join()
    log = reg.log()
    assert len(log) == len(before) + 2 and log[-2] == other and reg.verify() == []


def test_a_gate_is_judged_without_the_lock(copied, monkeypatch):
    reg, ids = copied

    def judged(model, limits):
        with open(reg.path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it
        return {"passed": True, "reasons": [], "measures": []}
    monkeypatch.setattr(gate, "judge", judged)
    assert reg.promote(ids[2], "ann", "x", ANY)["promoted"] == ids[2]


def test_an_entry_changed_while_it_is_judged_is_not_promoted(copied, monkeypatch):
    reg, ids = copied

    def judged(model, limits):
        (reg.path / "entries" / ids[2] / "policy.pt").write_bytes(b"another")
        return {"passed": True, "reasons": [], "measures": []}
    monkeypatch.setattr(gate, "judge", judged)
    with pytest.raises(RunError, match="policy.pt: contents differ"):
        reg.promote(ids[2], "ann", "x", ANY)
    assert reg.promoted() == ids[1]


# ---------------------------------------------------------------------------------------------------- what verify finds


def test_all_is_sound_and_the_head_is_said(filled, capsys):
    path, ids = filled
    reg = Registry(path)
    assert reg.verify() == [] and command(path, "verify") == 0
    head = json.loads(lines_of(reg)[-1])["sha256"]
    assert reg.head() == head and f"sound, 3 entries, 7 records\nhead {head}" in capsys.readouterr().out
    for record in reg.log():  # every earlier head is still there
        assert reg.verify(record["sha256"]) == []


@pytest.mark.parametrize("name", ["policy.pt", "data.npz", "config.json", "card.json"])
def test_a_flipped_bit_of_an_entry_is_found(copied, name, capsys):
    reg, ids = copied
    path = reg.path / "entries" / ids[1] / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    [problem] = reg.verify()
    assert problem.startswith(f"entries/{ids[1]}/{name}: ")
    assert command(reg, "verify") == 1 and problem in capsys.readouterr().out
    with pytest.raises(RunError, match=f"{name}"):
        reg.promote(ids[1], "ann", "x", ANY)
    with pytest.raises(RunError, match=f"{name}"):
        reg.model(ids[1])


def test_what_is_missing_or_more_is_found(copied):
    reg, ids = copied
    entries = reg.path / "entries"
    shutil.rmtree(entries / ids[0])
    (entries / ids[1] / "data.npz").unlink()
    (entries / ids[2] / "notes.txt").write_text("x")
    shutil.copytree(entries / ids[2], entries / ("0" * 16))
    (entries / "stray").write_text("x")
    said = "\n".join(reg.verify())
    for words in (f"entries/{ids[0]}: missing", f"entries/{ids[1]}/data.npz: missing",
                  f"entries/{ids[2]}/notes.txt: no file of", "entries/stray: no entry",
                  f"entries/{'0' * 16}: the log has no record",
                  f"entries/{'0' * 16}: the files on its card do not make"):
        assert words in said, words


def edited(lines):
    return [*lines[:3], lines[3].replace(b"bob", b"eve"), *lines[4:]]


@pytest.mark.parametrize("change, line", [
    (edited, 4), (lambda x: [*x[:2], *x[3:]], 3), (lambda x: [*x[:4], x[5], x[4], x[6]], 5),
    (lambda x: [*x[:3], x[2], *x[3:]], 4), (lambda x: x[1:], 1), (lambda x: [*x[:6], x[6][:40] + b"\n"], 7),
    (lambda x: [*x, b"\n"], 8), (lambda x: [*x, b'{"n":NaN}\n'], 8), (lambda x: [*x, b"[" * 60_000 + b"\n"], 8),
    (lambda x: [*x, b"\xff\xfe\x00\n"], 8), (lambda x: [*x, b'"' + b"x" * 300_000 + b'"\n'], 8),
    (lambda x: [*x, b"[]\n"], 8), (lambda x: [x[0].replace(b":", b": ", 1), *x[1:]], 1)])
def test_a_changed_log_is_found_and_nothing_is_built_on_it(copied, change, line, capsys):
    reg, ids = copied
    assert len(reg.log()) == 7  # found sound before: no reason to believe it again
    text = b"".join(change(lines_of(reg)))
    (reg.path / "log.jsonl").write_bytes(text)
    assert reg.verify()[0].startswith(f"log.jsonl: line {line} ")
    with pytest.raises(RunError, match=f"broken: line {line} "):
        reg.log()
    capsys.readouterr()
    for attempt in (("list",), ("show", ids[0]), ("promote", ids[0], "--why", "x"), ("rollback", "--why", "x")):
        assert command(reg, *attempt) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "broken" in error and len(error) < 500
    assert (reg.path / "log.jsonl").read_bytes() == text


def test_a_torn_last_line_counts_for_nothing_and_is_cut_off(copied):
    reg, ids = copied
    whole = lines_of(reg)
    torn = whole[5][:-1]  # all of a record but its end: a promotion of the third
    with open(reg.path / "log.jsonl", "ab") as file:
        file.write(torn)
    assert reg.promoted() == ids[1] and len(reg.log()) == 7
    assert reg.verify() == ["log.jsonl: line 8 has no end: its writer was stopped, and the next record cuts it off."]
    record = reg.rollback("ann", "on we go")
    assert record["cut"] == hashlib.sha256(torn).hexdigest()
    assert record["previous"] == hashlib.sha256(whole[6][:-1]).hexdigest()
    assert lines_of(reg)[:7] == whole and len(lines_of(reg)) == 8 and reg.verify() == [] and reg.promoted() == ids[0]


def test_what_a_chain_cannot_show_its_head_does(copied, capsys):
    reg, ids = copied
    head, whole = reg.head(), lines_of(reg)
    (reg.path / "log.jsonl").write_bytes(b"".join(whole[:-1]))
    assert reg.verify() == [] and reg.promoted() == ids[2]  # the rollback was cut off without a trace
    assert "cut off or written anew" in reg.verify(head)[0] and command(reg, "verify", "--head", head) == 1
    (reg.path / "log.jsonl").write_bytes(b"".join(whole))
    rewritten(reg, lambda facts: facts.update(by="eve"))
    assert reg.verify() == [] and len(reg.verify(head)) == 1
    with pytest.raises(RunError, match="64 digits"):
        reg.verify("abc")


def test_a_sound_chain_that_says_what_cannot_be(copied):
    reg, ids = copied
    whole = lines_of(reg)
    for change, words in (({"promoted": ids[0]}, "in service, where the log so far has"),
                          ({"id": ids[2]}, "goes back to"), ({"action": "delete"}, "no record of a registry"),
                          ({"id": [1]}, "no record of a registry"), ({"id": "f" * 16}, "never registered"),
                          ({"action": "register"}, "registered already"),
                          ({"action": "promote", "gate": {"passed": False}}, "had not passed")):
        (reg.path / "log.jsonl").write_bytes(b"".join(whole))
        rewritten(reg, lambda facts, change=change: facts["action"] == "rollback" and facts.update(change))
        [problem] = reg.verify()
        assert problem.startswith("log.jsonl: line 7 ") and words in problem
        with pytest.raises(RunError, match="broken"):
            reg.rollback("ann", "x")


def test_random_damage_is_found(copied, times):
    """A bit of an entry or of the log is flipped, or a line of the log is removed, doubled or swapped with the next."""
    reg, _ = copied
    chosen, log = random.Random(1), reg.path / "log.jsonl"
    files = [log, *sorted(p for p in (reg.path / "entries").rglob("*") if p.is_file())]
    for _ in range(times or 40):
        file = chosen.choice(files)
        before = file.read_bytes()
        lines, place, bit = before.splitlines(keepends=True), chosen.randrange(len(before)), 1 << chosen.randrange(8)
        after, kind = before[:place] + bytes([before[place] ^ bit]) + before[place + 1 :], "bit"
        if file == log and chosen.random() < 0.75:
            n, kind = chosen.randrange(len(lines) - 1), chosen.choice(["removed", "doubled", "exchanged"])
            this, following = lines[n : n + 2]
            lines[n : n + 2] = {"removed": [following],  # any but the last: that one only the head betrays
                                "doubled": [this, this, following], "exchanged": [following, this]}[kind]
            after = b"".join(lines)
        file.write_bytes(after)
        assert reg.verify(), f"{kind} in {file.name}"
        file.write_bytes(before)
    assert reg.verify() == []


# -------------------------------------------------------------------------------------------------------- hostile input


@pytest.mark.parametrize("id", ["../x", "..", "", "abc", "g" * 16, "a" * 17, "ABCD", "entries", ".", "0000", None, 5])
def test_what_is_no_id_is_refused(filled, id):
    for ask in (Registry(filled[0]).folder, Registry(filled[0]).card, Registry(filled[0]).model):
        with pytest.raises(RunError, match=r"^[^\n]*\.$"):
            ask(id)


@pytest.mark.parametrize("place", ["log.jsonl", "lock", "entries", "policy.pt", "card.json"])
def test_links_are_refused(copied, place, capsys):
    reg, ids = copied
    path = reg.path / place if place in ("log.jsonl", "lock", "entries") else reg.path / "entries" / ids[0] / place
    path.rename(reg.path.parent / "elsewhere")
    path.symlink_to(reg.path.parent / "elsewhere")
    assert command(reg, "promote", ids[0], "--why", "x", "--max-hazard", 1, "--min-return", -1000, "--max-unsupported",
                   1) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "link" in error and error.count("\n") == 1
    assert command(reg, "verify") in (1, 2)
    out, error = capsys.readouterr()
    assert "link" in out + error


def test_a_pipe_in_place_of_the_log_does_not_block(copied):
    reg, _ = copied
    (reg.path / "log.jsonl").unlink()
    os.mkfifo(reg.path / "log.jsonl")
    with pytest.raises(RunError, match="plain file"):
        reg.promoted()


def test_a_model_made_to_meet_the_id_of_another_is_found(copied, deployable, monkeypatch):
    reg, ids = copied
    shutil.copy(reg.path / "entries" / ids[1] / "policy.pt", reg.path / "entries" / ids[2] / "policy.pt")
    monkeypatch.setattr(store, "id_of", lambda digests: ids[2])  # 16 digits that say nothing
    assert f"entries/{ids[2]}/policy.pt: contents differ from those registered." in reg.verify()
    with pytest.raises(RunError, match="policy.pt: contents differ"):
        reg.promote(ids[2], "eve", "x", ANY)
    shutil.copy(deployable / "policies" / f"{SIX}.pt", reg.path / "entries" / ids[2] / "policy.pt")
    monkeypatch.setattr("cql.deploy.model_card.id_of", lambda digests: ids[2])
    with pytest.raises(RunError, match="another model has the ID"):
        reg.register(deployable, BC, "eve")


def test_a_full_disk_adds_nothing(copied, monkeypatch):
    reg, ids = copied
    before = lines_of(reg)

    def full(number):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(chain.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            reg.promote(ids[2], "ann", "x", ANY)
    assert lines_of(reg) == before and reg.promoted() == ids[1]
    assert reg.promote(ids[2], "ann", "x", ANY)["n"] == len(before)


def test_an_evaluation_of_other_kinds_is_refused(deployable, tmp_path):
    shutil.copytree(deployable, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    path = tmp_path / "run" / "evaluation.json"
    whole = path.read_text()
    for spoil in (lambda e: [], lambda e: {**e, "members": 5}, lambda e: {**e, "members": [1]},
                  lambda e: {**e, "members": []},
                  lambda e: {**e, "members": [{**m, "exact": [1]} for m in e["members"]]},
                  lambda e: {**e, "members": [{**m, "exact": {"return": "\x1b[2J"}} for m in e["members"]]},
                  lambda e: {**e, "members": [{**m, "exact": {"return": 10**400}} for m in e["members"]]},
                  lambda e: {**e, "members": [{**m, "final_alpha": True} for m in e["members"]]},
                  lambda e: {**e, "members": [{k: m[k] for k in m.keys() - {"final_alpha"}} for m in e["members"]]},
                  lambda e: {k: v for k, v in e.items() if k != "references"}):
        path.write_text(json.dumps(spoil(json.loads(whole))))
        with pytest.raises(RunError, match="no sound entry of cql-a6-s42-d42: evaluate the run first"):
            Registry(tmp_path / "reg").register(tmp_path / "run", SIX, "ann")


@pytest.mark.parametrize("text", ["[]", "{}", "{\"files\": [1]}", "nan", "[" * 100_000])
def test_a_card_of_another_kind(copied, text, capsys):
    """Found by its digest; and where the log vouches for it, by its form."""
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
    before = lines_of(reg)
    assert command(reg, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and lines_of(reg) == before


def test_a_folder_that_is_no_registry(tmp_path, deployable, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for attempt in (("list",), ("verify",), ("rollback", "--why", "x"), ("register", deployable, "--member", SIX)):
        assert command(tmp_path / "full", *attempt) == 2
        assert "no registry" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    assert Registry(tmp_path / "not there").promoted() is None


def test_promoted_reads_again_only_when_the_log_changed(copied, monkeypatch):
    reg, ids = copied
    assert reg.promoted() == ids[1]
    opened, calls = chain.opened, []
    monkeypatch.setattr(chain, "opened", lambda line: calls.append(line) or opened(line))
    assert reg.promoted() == ids[1] and calls == []
    other = Registry(reg.path)
    other.promote(ids[0], "ann", "x", ANY)
    calls.clear()
    assert reg.promoted() == ids[0] and len(calls) == 1


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
    assert "SafetyCriticalGridWorld-v0, observation index, slip_probability 0.1, 80 steps" in shown
    assert SIX in shown and f"by bob: try {ids[2]}" in shown and f"{exact['return']:.6g}" in shown and max(
        map(len, shown.splitlines())) < 180
    assert command(reg, "show", ids[2], "--json") == 0
    assert json.loads(capsys.readouterr().out) == reg.card(ids[2])


def test_the_history_by_hand():
    """Who is in service after A, B, back, C, back; a promotion of the one in service leaves no step."""
    a, b, c = (letter * 16 for letter in "abc")
    base = dict.fromkeys(RECORD) | {"gate": {"passed": True}, "card": "0" * 64}
    records, served = [], [("register", x, None) for x in (a, b, c)] + [
        ("promote", a, a), ("promote", b, b), ("promote", b, b), ("rollback", a, a), ("promote", c, c),
        ("refuse", b, c), ("rollback", a, a)]
    for action, id, now in served:
        records.append(base | {"action": action, "id": id, "promoted": now})
    found = History.of(records)
    assert found.problems == [] and found.served == [a] and set(found.cards) == {a, b, c}
    wrong = copy.deepcopy(records)
    wrong[6]["promoted"] = b
    assert History.of(wrong).problems[0].startswith("log.jsonl: line 7 has")
