"""Prints what the service answers under load, while models are promoted under it: python -m benchmarks.serve_load RUN

Starts the service on a fresh registry of the run's first CQL and first BC member. A second process loads it over 16
connections with POST /v1/act, first with as many requests as are answered, then at a fixed rate, while this one
promotes the two members in turns once a second. At the end the service is stopped by SIGTERM, and its decision log must
hold every decision that was answered.

Each answer is held against what the model that it names does there. At a fixed rate requests are due at fixed times
whether or not earlier ones are answered, and a request's time counts from when it was due.
"""

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measuring import ROOT
from cql.deploy.gate import Limits
from cql.deploy.store import Registry
from cql.members import all_members
from cql.run_folder import RunFolder
from cql.text import aligned

CONNECTIONS, RATE = 16, 1000  # requests per second of the second load
SECONDS, REPEATS = 6, 2  # of each load
ANYTHING = Limits(max_hazard=1.0, min_return=-1e9, max_unsupported=1.0)
HEAD = b"POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def loaded(port: int, actions: dict[str, list[int]], rate: float | None, seconds: float):
    """The seconds until the last answer, those of each right answer, and how often each model and each failure came.

    Args:
        actions: model ID -> the action it takes at every state.
        rate: requests per second, None: as many as are answered.
    """
    states = len(next(iter(actions.values())))
    bodies = [b'{"observation": %d}' % state for state in range(states)]
    requests = [HEAD % len(body) + body for body in bodies]
    start, numbers, times, found = time.perf_counter(), itertools.count(), [], Counter()

    async def ask_again_and_again() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due = time.perf_counter() if rate is None else start + number / rate
            if due >= start + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            state = number % states
            writer.write(requests[state])
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))
            answer = json.loads(body)
            if head.split()[1] != b"200":
                found[f"status {head.split()[1].decode()}"] += 1
            elif actions[answer["model"]][state] != answer["decisions"][0]["action"]:
                found["wrong action"] += 1
            else:
                times.append(time.perf_counter() - due)
                found[answer["model"]] += 1
        writer.close()

    for error in await asyncio.gather(*(ask_again_and_again() for _ in range(CONNECTIONS)), return_exceptions=True):
        if error is not None:
            found[f"connection lost: {error}"] += 1
    return time.perf_counter() - start, sorted(times), found


def load(*arguments):
    return asyncio.run(loaded(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a finished run with CQL and BC members")
    arguments = parser.parse_args()
    names = [member.name for member in all_members(RunFolder.open(arguments.run).config())]
    rows = [("load", "answered", "per second", "p50 ms", "p99 ms", "max ms", "failed", "by each model", "promotions")]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        registry, decisions = Registry(Path(folder) / "registry"), Path(folder) / "decisions"
        chosen = [next(name for name in names if name.startswith(kind)) for kind in ("cql", "bc")]
        ids = [registry.register(arguments.run, name, "serve_load") for name in chosen]
        models = [registry.model(id) for id in ids]
        actions = {id: model.policy.act(model.world.inputs).tolist() for id, model in zip(ids, models)}
        registry.promote(ids[0], "serve_load", "first", ANYTHING)
        pool.submit(time.sleep, 0).result()  # the process is there and has imported what it needs
        argv = ["cql", "serve", str(registry.path), "--port", "0", "--decisions", str(decisions)]
        service = subprocess.Popen([sys.executable, "-m", *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            port = int(re.search(r"http://\S+:(\d+)", service.stdout.readline())[1])
            answered = len(pool.submit(load, port, actions, None, 0.1).result()[1])  # it answers once it has started
            for rate in [None] * REPEATS + [RATE] * REPEATS:
                loading, promotions = pool.submit(load, port, actions, rate, SECONDS), 0
                while not wait([loading], timeout=1).done:
                    promotions += 1
                    registry.promote(ids[promotions % 2], "serve_load", "load test", ANYTHING)
                took, times, found = loading.result()
                answered += len(times)
                failures = {kind: count for kind, count in found.items() if kind not in ids}
                rows.append(("all it takes" if rate is None else f"{rate} per second", f"{len(times):,}",
                             f"{len(times) / took:,.0f}",
                             *(f"{1e3 * times[int(share * (len(times) - 1))]:.2f}" for share in (0.5, 0.99, 1)),
                             ", ".join(f"{count} {kind}" for kind, count in failures.items()) or "0",
                             " + ".join(f"{found[id]:,}" for id in ids), str(promotions)))
        finally:
            service.terminate()
            status = service.wait()
        print("\n".join(aligned(rows)))
        recorded = sum(path.read_bytes().count(b"\n") for path in decisions.glob("*.jsonl"))
        print(f"stopped by SIGTERM with status {status}; decisions answered {answered:,}, recorded {recorded:,}")


if __name__ == "__main__":
    main()
