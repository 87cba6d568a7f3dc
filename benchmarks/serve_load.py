"""The service under load, while models are promoted under it: python -m benchmarks.serve_load [RUN]

Starts the service on a fresh registry of a run's first CQL and first BC member (without RUN: one that is trained first), then, the
load coming from a second process (``benchmarks.serve_client`` says how), and this one promoting the two in turns once a second:

- as many requests as are answered, over 16 connections; then at a fixed rate, with the quantiles of the time to the answer;
- malformed bodies of all kinds, counted by the status they are answered with;
- a stop by SIGTERM, after which the audit log must hold every decision that was answered.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import train
from benchmarks.session import ROOT, Session
from cql.analysis.statistics import aligned
from cql.deploy.gate import Limits
from cql.deploy.store import Registry
from cql.members import all_members
from cql.runs import RunFolder

ANYTHING = Limits(max_hazard=1.0, min_return=-1e9, max_unsupported=1.0)


@contextmanager
def service(registry: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """A running one: its port and its process, which is stopped at the end if it still runs."""
    process = subprocess.Popen([sys.executable, "-m", "cql.deploy.serve", str(registry), "--port", "0", *options], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://\S+:(\d+)", process.stdout.readline())
        if found is None:
            raise SystemExit("error: the service did not start.")
        port = int(found[1])
        while _status(port, "/readyz") != 200:
            time.sleep(0.05)
        yield port, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        process.stdout.close()


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def malformed(random: random.Random) -> tuple[bytes, str]:
    """A body that no request may have, and the content type it is sent with."""
    body = random.choice(KINDS)(random)
    return body, "application/json" if random.random() < 0.97 else random.choice(["text/plain", "", "application/xml", "a;b;c"])


def _text(value) -> bytes:
    return json.dumps(value).encode()


def _nonsense(random: random.Random, depth: int = 3):
    """Some JSON value."""
    choices = [None, True, -1, 10**30, -0.5, 1e308, "31", "\ud800", "", 1 << 63, {}, []]
    if depth and random.random() < 0.5:
        return random.choice([[_nonsense(random, depth - 1)], {"observation": _nonsense(random, depth - 1)},
                              [_nonsense(random, depth - 1)] * random.randrange(4)])
    return random.choice(choices)


def _wrong(random: random.Random) -> bytes:
    """The right members with wrong values, or others beside them."""
    name = random.choice(["observation", "observations", "action"])
    return _text({name: _nonsense(random), **({"extra": 1} if random.random() < 0.3 else {})})


KINDS: list[Callable[[random.Random], bytes]] = [
    _wrong,
    lambda random: _text(_nonsense(random)) if random.random() < 0.9 else b"",
    lambda random: random.randbytes(random.randrange(1, 200)),
    lambda random: b'{"observation": 31}'[: random.randrange(18)],  # cut off
    lambda random: b'{"observation": "' + random.randbytes(20) + b'"}',
    lambda random: b'{"observation": %s}' % random.choice([b"NaN", b"-Infinity", b"1e999", b"9" * random.randrange(5, 9000)]),
    lambda random: b'{"observation": ' + random.choice([b"[", b'{"a":', b"[["]) * random.randrange(1, 60_000),
    lambda random: b'{"observation": 1, "observation": %d}' % random.randrange(5),
    lambda random: _text({"observations": [0] * random.randrange(1025, 3000)}),
    lambda random: _text({"observation": [0.1] * random.randrange(4)}),
    lambda random: _text({"observation": 10**6 + random.randrange(10**9)}),
    lambda random: '{"observation": 1}'.encode(random.choice(["utf-16", "utf-32", "utf-8-sig"])),
    lambda random: b" " * random.randrange(2**18, 2**19) + b'{"observation": 1}',  # too long
]


def malformed_statuses(port: int, number: int, seed: int = 0) -> Counter:
    """How so many malformed bodies are answered, by status; a lost connection counts as 0."""
    draw, found = random.Random(seed), Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(number):
        body, kind = malformed(draw)
        chunked, path = draw.random() < 0.2, draw.choice(["/v1/act", "/v1/explain"])
        try:
            connection.request("POST", path, iter([body[:100], body[100:]]) if chunked else body, {"Content-Type": kind})
            response = connection.getresponse()
            if not isinstance(json.loads(response.read())["detail"], str):
                raise SystemExit(f"error: {body[:100]} was answered without a sentence.")
            found[response.status] += 1
        except OSError:
            connection.close()
            found[0] += 1
    connection.close()
    return found


@contextmanager
def promotions(registry: Registry, ids: list[str], period: float) -> Iterator[list[str]]:
    """Promotes the entries in turns, one every period, until the end; gives the list of those promoted."""
    done, stop = [], threading.Event()

    def promote() -> None:
        while not stop.wait(period):
            done.append(ids[(len(done) + 1) % len(ids)])
            registry.promote(done[-1], "serve_load", "load test", ANYTHING)

    thread = threading.Thread(target=promote)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", nargs="?", help="a finished run with CQL and BC members (default: trained first)")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1500, help="requests per second of the second load (default %(default)s)")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--malformed", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run = arguments.run
        if run is None:
            run = folder / "run"
            train.main(["--steps", "3000", "--bc-steps", "1000", "--device", "cpu", "--out", str(run)])
        names = [member.name for member in all_members(RunFolder.open(run).config())]
        registry = Registry(folder / "registry")
        chosen = [next(name for name in names if name.startswith(kind)) for kind in ("cql", "bc")]
        ids = [registry.register(run, name, "serve_load") for name in chosen]
        models = {id: registry.model(id) for id in ids}
        actions = {id: model.policy.act(model.inputs).tolist() for id, model in models.items()}
        registry.promote(ids[0], "serve_load", "first", ANYTHING)
        _measure(folder, registry, actions, arguments)
    return 0


def _measure(folder: Path, registry: Registry, actions: dict[str, list[int]], arguments: argparse.Namespace) -> None:
    ids = list(actions)
    rows = [("load", "answered", "per second", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "failed", "by each model", "promotions",
             "load average")]
    answered = failed = 0
    with service(registry.path, "--audit", str(folder / "audit")) as (port, process):
        for rate in (None, arguments.rate):
            settings = {"port": port, "connections": arguments.connections, "actions": actions, "rate": rate}
            client = Session(sys.executable, "benchmarks.serve_client", settings)
            for _ in range(arguments.repeats):
                before = os.getloadavg()[0]
                with promotions(registry, ids, 1.0) as promoted:
                    found = client.measure(arguments.seconds)
                answered, failed = answered + found["answered"], failed + sum(found["failures"].values())
                rows.append(("all it takes" if rate is None else f"{rate:g} per second", f"{found['answered']:,}",
                             f"{found['rate']:,.0f}", *(f"{found[name]:.2f}" for name in ("p50", "p99", "p99.9", "max")),
                             ", ".join(f"{count} {kind}" for kind, count in found["failures"].items()) or "0",
                             " + ".join(f"{count:,}" for count in found["models"].values()), str(len(promoted)),
                             f"{before:.1f}"))
            client.close()
        print("\n".join(aligned(rows)), flush=True)
        begun = time.perf_counter()
        statuses = malformed_statuses(port, arguments.malformed)
        print(f"\n{arguments.malformed:,} malformed bodies in {time.perf_counter() - begun:.0f} s: " +
              ", ".join(f"{count:,} times {status or 'lost'}" for status, count in sorted(statuses.items())))
        process.send_signal(signal.SIGTERM)
        status = process.wait()
    lines = sum(path.read_bytes().count(b"\n") for path in (folder / "audit").glob("*.jsonl"))
    print(f"stopped by SIGTERM with status {status}; decisions answered {answered:,}, failed {failed:,}, recorded {lines:,}")


if __name__ == "__main__":
    sys.exit(main())
