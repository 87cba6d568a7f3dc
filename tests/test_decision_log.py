"""The decision log: no line lost or torn, nothing deleted unless that is asked for."""

import errno
import os
import threading
import time

import pytest

from cql.deploy.decision_log import DecisionLog
from cql.errors import RunError

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(tmp_path):
    """Makes logs in one folder, and closes the last one."""
    logs = []

    def make(**settings) -> DecisionLog:
        logs.append(DecisionLog(tmp_path / "decisions", **settings))
        return logs[-1]

    yield make
    if logs:
        logs[-1].close()


def files(log) -> list[str]:
    """What the files hold, oldest first."""
    return [path.read_text() for path in (*sorted(log.folder.glob("decisions-*")), log.folder / "decisions.jsonl")]


def fill_disk(log, written: str) -> None:
    """Lets the file take only so much of the next line."""
    real = log.stream

    class Full:
        def write(self, _):
            real.write(written)
            real.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(real, name)

    log.stream = Full()


def test_a_line_is_in_the_file_when_append_returns(opened):
    log = opened()
    log.append("a")
    assert files(log) == ["a\n"]
    log.append("b\nc")
    assert files(log) == ["a\nb\nc\n"]


def test_full_files_get_numbers_and_no_line_is_lost_or_split(opened):
    log = opened(size=10)
    for n in range(9):
        log.append(f"{n:03d}")  # two of them fit
    log.append("x" * 11 + "\nx")  # more than a file: one of its own
    log.append("end")
    assert files(log) == ["000\n001\n", "002\n003\n", "004\n005\n", "006\n007\n", "008\n", "x" * 11 + "\nx\n", "end\n"]
    assert (log.folder / "decisions-00000001.jsonl").read_text() == "000\n001\n"


def test_only_keep_deletes(opened):
    log = opened(size=4, keep=3)
    for n in range(10):
        log.append(f"{n:03d}")
    assert files(log) == ["006\n", "007\n", "008\n", "009\n"]
    assert [path.name for path in sorted(log.folder.glob("*-*"))] == [f"decisions-0000000{n}.jsonl" for n in (7, 8, 9)]


def test_a_new_log_begins_a_file_so_that_a_torn_line_spoils_no_other(opened):
    log = opened()
    log.append("a")
    log.close()
    with open(log.folder / "decisions.jsonl", "a") as file:
        file.write('{"time": ')  # as of a machine that lost its power
    log = opened()
    log.append("b")
    assert files(log) == ['a\n{"time": \n', "b\n"]
    log.close()
    opened().close()
    assert files(opened()) == ['a\n{"time": \n', "b\n", ""]  # a file without lines is used again


def test_a_full_disk_raises_and_a_later_line_stands_by_itself(opened):
    log = opened()
    log.append("a")
    fill_disk(log, "bb")
    with pytest.raises(OSError, match="No space left"):
        log.append("bbbb")
    log.append("c")
    assert files(log) == ["a\nbb\n", "c\n"]


def test_one_process_writes_it(opened):
    log = opened()
    with pytest.raises(RunError, match="another process is writing"):
        DecisionLog(log.folder)
    log.close()
    opened().append("a")


def test_a_folder_that_cannot_be_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        DecisionLog(tmp_path / "file")


def test_a_flush_that_fails_is_told_once_and_the_thread_goes_on(opened, monkeypatch, caplog):
    log, flushed = opened(size=4), []

    def fsync(file):
        if len(flushed) < 2:
            flushed.append(None)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flushed.append(os.readlink(f"/proc/self/fd/{file if type(file) is int else file.fileno()}"))

    log.append("abc")
    monkeypatch.setattr("cql.deploy.decision_log.os.fsync", fsync)
    for _ in range(2):
        log._flush()
        assert "Input/output error" in log.problem
    log._flush()
    assert log.problem is None and log._flusher.is_alive()
    assert flushed[2:] == [f"{log.folder}/decisions.jsonl", str(log.folder)]
    log.append("d")  # the file is full: it is flushed before it gets its number
    assert flushed[4:] == [f"{log.folder}/decisions.jsonl"]
    assert [record.getMessage() for record in caplog.records] == [
        "decision log: [Errno 5] Input/output error", "decision log: flushed again"]


def test_a_file_that_is_taken_away_is_followed_by_another(opened):
    log = opened()
    log.append("a")
    (log.folder / "decisions.jsonl").rename(log.folder / "elsewhere")
    log._flush()
    assert "No such file" in log.problem
    log.append("b")
    assert files(log)[-1] == "b\n" and (log.folder / "elsewhere").read_text() == "a\n"
    log._flush()
    assert log.problem is None


def test_without_its_folder_nothing_is_appended_and_closing_is_quiet(opened):
    log = opened()
    (log.folder / "decisions.jsonl").unlink()
    log.folder.rmdir()
    log._flush()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            log.append("b")
    log.close()


def test_many_threads_write_whole_lines(opened):
    log = opened(size=500)
    wanted = {f"{thread}-{n:03d}" for thread in range(4) for n in range(200)}

    def write(thread: int) -> None:
        for n in range(200):
            log.append(f"{thread}-{n:03d}")

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = files(log)
    lines = "".join(texts).splitlines()
    assert len(lines) == 800 and set(lines) == wanted
    assert all(text.endswith("\n") and len(text) <= 500 for text in texts)


def test_the_thread_flushes_by_itself(opened):
    log = opened()
    (log.folder / "decisions.jsonl").unlink()
    end = time.monotonic() + 10
    while log.problem is None:
        assert time.monotonic() < end
        time.sleep(0.01)
