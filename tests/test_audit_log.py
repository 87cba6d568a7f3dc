"""The audit log: nothing lost, nothing torn, no more files than it may have."""

import errno
import os
import threading

import pytest

from cql.deploy.audit_log import AuditLog
from cql.runs import RunError


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

    def fails(*arguments):
        if len(calls) < times:
            calls.append(arguments)
            before(real, *arguments)
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(f"cql.deploy.audit_log.os.{name}", fails)
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
    monkeypatch.setattr("cql.deploy.audit_log.os.write", lambda file, data: real(file, data[:2]))
    log.append(b"abcdefg\n")
    assert files(log)[0][1] == b"abcdefg\n"


def test_after_a_failed_flush_another_file_is_begun(opened, monkeypatch):
    log = opened()
    log.append(b"a\n")
    failing(monkeypatch, "fsync", errno.EIO, 1)
    log._flush()
    log.append(b"b\n")
    assert files(log) == [("decisions-00000001.jsonl", b"a\n"), ("decisions-00000002.jsonl", b"b\n")]


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
