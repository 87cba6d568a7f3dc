"""What goes wrong, for several tests: commands that are killed, damaged files, requests that no service should take."""

import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch

import train
from cql import checkpoint
from cql.analysis.figures import plots

FORKS = multiprocessing.get_context("forkserver")  # its children start at once, with all imported
FORKS.set_forkserver_preload(["cql.deploy.store", "tests.faults"])


class Child:
    """A command's ``main`` in a fork of this process, with all imported, and without pictures: they take most of the
    time and hold no state. ``environment``: variables that it has besides."""

    def __init__(self, main, argv: list[str], folder: Path, **environment):
        self.printed, self.errors = folder / "printed.txt", folder / "errors.txt"
        self.process = multiprocessing.get_context("fork").Process(
            target=_run, args=(main, argv, self.printed, self.errors, environment))
        self.process.start()

    def wait(self, seconds: float | None = None) -> tuple[int | None, str]:
        """Its exit status, negative if it was killed by a signal, and what it wrote to stderr."""
        self.process.join(seconds)
        return self.process.exitcode, self.errors.read_text() if self.errors.exists() else ""

    def first_line(self) -> str:
        """The first line that it prints, as soon as it is there; nothing if it ends without one."""
        while self.process.is_alive() and not (self.printed.exists() and "\n" in self.printed.read_text()):
            time.sleep(0.01)
        return self.printed.read_text().partition("\n")[0]

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def _run(main, argv, printed: Path, errors: Path, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    plots.draw_all = lambda run: []
    os.environ.update(environment)
    logging.root.handlers.clear()  # those of pytest
    status = 70
    with (open(printed, "w", buffering=1) as out, open(errors, "w", buffering=1) as file,  # ranks share them
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(file)):
        try:
            status = main(argv)
        except SystemExit as error:
            status = error.code or 0
        except BaseException as error:  # what must never happen
            print(f"TRACEBACK {type(error).__name__}: {error}", file=file)
    sys.exit(status)


def launched(argv: list[str]) -> int:
    """torchrun's launcher as a command of ``Child``, with its options, a script and the arguments of train.py.

    Its ranks are forked, with all imported, instead of started as the script, which need not exist.
    """
    config, _, (_, _, *arguments) = torchrun.config_from_args(torchrun.parse_args(["--start-method", "fork", *argv]))
    logging.disable()  # the launcher's first line would import PyTorch's compiler
    if config.max_nodes > 1:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see cql.ranks.joined
    elastic_launch(config, _train_as_a_rank)(*arguments)
    return 0


def _train_as_a_rank(*argv: str) -> None:
    """train.py; it waits a second after each checkpoint while there is a file ``slow`` beside the run."""
    ctypes.CDLL(None).prctl(1, 0)  # no signal when the launcher dies: a rank that is a script gets none
    slow, save = Path(argv[argv.index("--out") + 1]).with_name("slow"), checkpoint.save

    def saved(*arguments):
        save(*arguments)
        time.sleep(slow.exists())
    checkpoint.save = saved
    if status := train.main(list(argv)):
        sys.exit(status)


def outcome(run: Path) -> dict[str, object]:
    """What must not differ: policies, data, config, metrics, evaluation by their bytes, TensorBoard by its scalars."""
    files = [*run.glob("policies/*"), *run.glob("datasets/*")]
    files += [run / name for name in ("metrics.csv", "evaluation.json", "config.json")]
    found = {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for folder in sorted(run.glob("tensorboard/*-s*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        found[folder.name] = {tag: [(s.step, s.value) for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found


def damaged(raw: bytes, other: bytes, chosen: random.Random) -> bytes:
    """Cut short, one bit flipped, some bytes replaced, all of them replaced, or exchanged for another file's."""
    kind, at, length = chosen.randrange(5), chosen.randrange(len(raw)), chosen.randrange(1, 64)
    return [raw[:at],
            raw[:at] + bytes([raw[at] ^ (1 << chosen.randrange(8))]) + raw[at + 1 :],
            raw[:at] + chosen.randbytes(length) + raw[at + length :],
            chosen.randbytes(chosen.randrange(2000)),
            other][kind]


# ----------------------------------------------------------------------------------------------------- malformed bodies


def malformed(chosen: random.Random) -> tuple[bytes, str]:
    """A body that no request may have, and the content type it is sent with."""
    others = ["text/plain", "", "application/xml", "a;b;c"]
    return chosen.choice(MALFORMED)(chosen), "application/json" if chosen.random() < 0.97 else chosen.choice(others)


def _nonsense(chosen: random.Random, depth: int = 3):
    """Some JSON value."""
    choices = [None, True, -1, 10**30, -0.5, 1e308, "31", "\ud800", "", 1 << 63, {}, []]
    if depth and chosen.random() < 0.5:
        return chosen.choice([[_nonsense(chosen, depth - 1)], {"observation": _nonsense(chosen, depth - 1)},
                              [_nonsense(chosen, depth - 1)] * chosen.randrange(4)])
    return chosen.choice(choices)


def _text(value) -> bytes:
    return json.dumps(value).encode()


MALFORMED = [  # a function of random.Random each
    lambda r: _text({r.choice(["observation", "observations", "action"]): _nonsense(r)}),
    lambda r: _text({"observation": 1, r.choice(["extra", "observations"]): _nonsense(r)}),
    lambda r: _text(_nonsense(r)) if r.random() < 0.9 else b"",
    lambda r: r.randbytes(r.randrange(1, 200)),
    lambda r: b'{"observation": 31}'[: r.randrange(18)],  # cut off
    lambda r: b'{"observation": "' + r.randbytes(20) + b'"}',
    lambda r: b'{"observation": %s}' % r.choice([b"NaN", b"-Infinity", b"1e999", b"9" * r.randrange(5, 9000)]),
    lambda r: b'{"observation": ' + r.choice([b"[", b'{"a":', b"[["]) * r.randrange(1, 60_000),
    lambda r: _text({"observations": [0] * r.randrange(1025, 3000)}),
    lambda r: _text({"observation": [0.1] * r.randrange(4)}),
    lambda r: _text({"observation": 10**6 + r.randrange(10**9)}),
    lambda r: '{"observation": 1}'.encode(r.choice(["utf-16", "utf-32"]))[:-3],
    lambda r: b" " * r.randrange(2**18, 2**19) + b'{"observation": 1}',  # too long
]
