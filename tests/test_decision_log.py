"""The audit log: nothing lost, nothing torn, no more files than it may have."""

import errno
import os
import shutil
import threading
import time

import pytest

from cql.deploy import decision_log
from cql.deploy.decision_log import AuditLog
from cql.errors import RunError

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(tmp_path):
    """Makes logs in one folder, and closes the last one."""
    logs = []

    def make(**settings) -> AuditLog:
        logs.append(AuditLog(tmp_path / "audit", **settings))
        return logs[-1]

    yield make
    if logs:
        logs[-1].close()


def files(log) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(log.folder.glob("*.jsonl"))]


def failing(monkeypatch, name: str, code: int, times: int, before=lambda *_: None) -> list:
    """Lets an os function fail so many times, after ``before`` was done."""
    real, calls = getattr(os, name), []

    def fails(*arguments, **keywords):
        if len(calls) < times:
            calls.append(arguments)
            before(real, *arguments)
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    monkeypatch.setattr(f"cql.deploy.decision_log.os.{name}", fails)
    return calls


def test_a_line_is_in_the_file_when_append_returns(opened):
    log = opened()
    log.append(b"a\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\n")]
    log.append(b"b\nc\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\nb\nc\n")]


def test_a_full_file_is_followed_by_another_and_no_line_is_lost_or_split(opened):
    log = opened(size=10, files=100)
    for n in range(9):
        log.append(b"%03d\n" % n)  # two of them fit
    log.append(b"x" * 11 + b"\n")  # longer than a file: one of its own
    log.append(b"end\n")
    assert [text for _, text in files(log)] == [b"000\n001\n", b"002\n003\n", b"004\n005\n", b"006\n007\n", b"008\n",
                                                b"x" * 11 + b"\n", b"end\n"]


def test_the_newest_files_are_kept(opened):
    log = opened(size=4, files=3)
    for n in range(10):
        log.append(b"%03d\n" % n)
        assert len(files(log)) <= 3
    assert files(log) == [(f"decisions-{n + 1:08d}.jsonl", b"%03d\n" % n) for n in (7, 8, 9)]


def test_it_goes_on_where_it_ended_and_cuts_off_a_torn_line(opened):
    log = opened()
    log.append(b"a\nb\n")
    log.close()
    with open(log.folder / "decisions-00000001.jsonl", "ab") as file:
        file.write(b'{"time": ')  # as of a process that died while it wrote
    log = opened()
    log.append(b"c\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\nb\nc\n")]


def test_one_process_writes_it(opened):
    log = opened()
    with pytest.raises(RunError, match="another process is writing"):
        AuditLog(log.folder)
    log.close()
    log = opened()


def test_a_folder_that_cannot_be_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        AuditLog(tmp_path / "file")


def test_a_full_disk_leaves_whole_lines_only_and_later_lines_follow(opened, monkeypatch):
    log = opened()
    log.append(b"a\n")
    calls = failing(monkeypatch, "write", errno.ENOSPC, 1, before=lambda write, file, data: write(file, data[:3]))
    with pytest.raises(OSError):
        log.append(b"bbbbbb\n")
    assert len(calls) == 1
    log.append(b"c\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\nc\n")]


def test_a_short_write_is_gone_on_with(opened, monkeypatch):
    log, real = opened(), os.write
    monkeypatch.setattr("cql.deploy.decision_log.os.write", lambda file, data: real(file, data[:2]))
    log.append(b"abcdefg\n")
    assert files(log)[0][1] == b"abcdefg\n"


def test_after_a_failed_flush_another_file_is_begun(opened, monkeypatch):
    log = opened()
    log.append(b"a\n")
    failing(monkeypatch, "fsync", errno.EIO, 1)
    log._flush()
    log.append(b"b\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\n"), ("decisions-00000002.jsonl", b"b\n")]


def test_flushes_that_fail_on_and_on_begin_one_file_and_cost_no_line(opened, monkeypatch):
    log = opened(files=2)
    log.append(b"a\n")
    failing(monkeypatch, "fsync", errno.EIO, 1000)
    for n in range(10):
        log._flush()
        log.append(b"%d\n" % n)
    assert files(log) == [("decisions-00000001.jsonl", b"a\n"),
                          ("decisions-00000002.jsonl", b"".join(b"%d\n" % n for n in range(10)))]
    assert "Input/output error" in log.problem
    monkeypatch.undo()
    log._flush()
    assert log.problem is None
    # it fails anew: one more, and the oldest stays although two may be kept
    failing(monkeypatch, "fsync", errno.EIO, 1)
    log._flush()
    log.append(b"b\n")
    assert [text for _, text in files(log)][::2] == [b"a\n", b"b\n"] and len(files(log)) == 3


def test_a_flush_of_the_folder_or_of_a_full_file_that_fails_begins_no_file(opened, monkeypatch):
    log, real = opened(size=4), os.fsync
    log.append(b"abc\n")
    log.append(b"d\n")
    present = log._file

    def fsync(file):
        if file != present:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr("cql.deploy.decision_log.os.fsync", fsync)
    log._flush()
    assert "Input/output error" in log.problem
    log.append(b"e\n")
    assert [text for _, text in files(log)] == [b"abc\n", b"d\ne\n"]


def test_the_thread_goes_on_after_an_error_and_says_so_once(opened, monkeypatch, caplog):
    monkeypatch.setattr(decision_log, "FLUSH", 0.01)
    calls = failing(monkeypatch, "fsync", errno.EMFILE, 6)
    log, end = opened(), time.monotonic() + 10
    while len(calls) < 6 or log.problem is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert log._flusher.is_alive()
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        f"not flushed: [Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}.", "flushed again."]


def test_a_file_that_is_removed_or_replaced_is_followed_by_another(opened):
    log = opened()
    first, second = (log.folder / f"decisions-0000000{n}.jsonl" for n in (1, 2))
    log.append(b"a\n")
    first.unlink()
    log._flush()
    assert "No such file" in log.problem
    log.append(b"b\n")
    assert files(log) == [(second.name, b"b\n")]
    second.rename(log.folder / "elsewhere")
    second.write_bytes(b"not the log's\n")
    log._flush()
    assert "another file is in the place" in log.problem
    log.append(b"c\n")
    assert files(log) == [(second.name, b"not the log's\n"), ("decisions-00000003.jsonl", b"c\n")]


def test_without_its_folder_nothing_is_appended_and_closing_is_quiet(opened):
    log = opened()
    log.append(b"a\n")
    shutil.rmtree(log.folder)
    log._flush()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            log.append(b"b\n")
    log.folder.mkdir()  # another one: it holds no lock of this process
    with pytest.raises(FileNotFoundError):
        log.append(b"b\n")
    assert list(log.folder.iterdir()) == []


def test_a_moved_folder_is_written_where_it_is(opened, tmp_path):
    log = opened(size=2)
    log.append(b"a\n")
    log.folder.rename(tmp_path / "moved")
    log._flush()
    log.append(b"b\n")
    assert log.problem is None
    assert [path.read_bytes() for path in sorted((tmp_path / "moved").glob("*.jsonl"))] == [b"a\n", b"b\n"]


def test_files_of_other_names_and_files_that_cannot_be_removed_hold_nothing_up(opened, tmp_path, monkeypatch, caplog):
    (tmp_path / "audit").mkdir()
    odd = tmp_path / "audit" / "decisions-000000007.jsonl"  # a nought too many
    odd.write_bytes(b"odd\n")
    log = opened(size=2, files=1)
    failing(monkeypatch, "unlink", errno.EPERM, 1)
    for line in (b"a\n", b"b\n"):
        log.append(line)
    assert "decisions-00000001.jsonl stays" in caplog.text
    log.append(b"c\n")
    assert files(log) == [(odd.name, b"odd\n"), ("decisions-00000003.jsonl", b"c\n")]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="cannot be written"):
        AuditLog(tmp_path / "audit")
    assert not (tmp_path / "elsewhere").exists()


def test_many_threads_write_whole_lines(opened):
    log = opened(size=500, files=1000)
    wanted = {b"%d-%03d" % (thread, n) for thread in range(4) for n in range(200)}

    def write(thread: int) -> None:
        for n in range(200):
            log.append(b"%d-%03d\n" % (thread, n))

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [text for _, text in files(log)]
    lines = b"".join(texts).splitlines()
    assert len(lines) == 800 and set(lines) == wanted
    assert all(text.endswith(b"\n") and len(text) <= 500 for text in texts)
