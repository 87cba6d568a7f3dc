"""Load on the service from a process of its own: python -m benchmarks.serve_client '{"port": 8000, …}'

Single-observation POST /v1/act over keep-alive connections, by plain sockets. Each answer is read whole and held against what the
model that it names does there. With a rate, requests are due at fixed times whether or not earlier ones are answered, and a
request's time counts from when it was due (no coordinated omission); without, each connection asks again once answered.

Speaks the language of ``benchmarks.session``; imports nothing but the standard library.
"""

import asyncio
import json
import sys
import time
from collections import Counter, deque

from benchmarks.session import serve

LAST = 5.0  # seconds that are waited for the last answers
TICK = 0.001  # seconds between two looks at what is due


class Load:
    """One measurement.

    Args:
        actions: model ID -> the action it takes at every state. rate: requests per second, None: as many as are answered.
    """

    def __init__(self, actions: dict[str, list[int]], rate: float | None):
        self.actions, self.rate = actions, rate
        self.idle, self.due, self.issued, self.stopped = deque(), deque(), 0, False
        self.seconds, self.models, self.failures = [], Counter(), Counter()
        states = len(next(iter(actions.values())))
        bodies = [json.dumps({"observation": state}).encode() for state in range(states)]
        head = b"POST /v1/act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.requests = [head % len(body) + body for body in bodies]

    def free(self, connection: "Connection") -> None:
        if self.rate is None and not self.stopped:
            self._issue(connection, time.perf_counter())
        elif self.due:
            self._issue(connection, self.due.popleft())
        else:
            self.idle.append(connection)

    def tick(self, elapsed: float, start: float) -> None:
        """Makes due what is due by now."""
        while self.issued + len(self.due) < int(elapsed * self.rate):
            self.due.append(start + (self.issued + len(self.due)) / self.rate)
        while self.due and self.idle:
            self._issue(self.idle.popleft(), self.due.popleft())

    def _issue(self, connection: "Connection", due: float) -> None:
        state = self.issued % len(self.requests)
        self.issued += 1
        connection.ask(self.requests[state], state, due)

    def answered(self, state: int, due: float, status: int, body: bytes) -> None:
        if status != 200:
            self.failures[f"status {status}"] += 1
            return
        answer = json.loads(body)
        if self.actions[answer["model"]][state] != answer["decisions"][0]["action"]:
            self.failures["wrong action"] += 1
            return
        self.seconds.append(time.perf_counter() - due)
        self.models[answer["model"]] += 1

    @property
    def pending(self) -> int:
        return self.issued + len(self.due) - len(self.seconds) - self.failures.total()


class Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, load: Load):
        self.load, self.received, self.asked = load, b"", None

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.load.free(self)

    def ask(self, request: bytes, state: int, due: float) -> None:
        self.asked = state, due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) < length:
            return
        self.received, asked, self.asked = body[length:], self.asked, None
        self.load.answered(*asked, int(lines[0].split()[1]), body[:length])
        self.load.free(self)

    def connection_lost(self, error) -> None:
        if self.asked is not None:
            self.load.failures["connection lost"] += 1
        elif self in self.load.idle:
            self.load.idle.remove(self)


async def loaded(port: int, connections: int, actions: dict[str, list[int]], rate: float | None, seconds: float) -> dict:
    """What so many seconds of load came to."""
    load, loop = Load(actions, rate), asyncio.get_running_loop()
    start = time.perf_counter()
    opened = [await loop.create_connection(lambda: Connection(load), "127.0.0.1", port) for _ in range(connections)]
    while (elapsed := time.perf_counter() - start) < seconds:
        if rate is not None:
            load.tick(elapsed, start)
        await asyncio.sleep(TICK)
    load.stopped = True
    while load.pending and time.perf_counter() - start < seconds + LAST:
        await asyncio.sleep(TICK)
    took = time.perf_counter() - start
    load.failures["never answered"] = load.pending
    for transport, _ in opened:
        transport.close()
    times = sorted(load.seconds) or [float("inf")]
    at = {f"p{100 * share:g}": 1e3 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99, 0.999)}
    return {"rate": len(load.seconds) / took, "answered": len(load.seconds), "failures": dict(+load.failures),
            "models": load.models, "max": 1e3 * times[-1], **at}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve({}, lambda seconds: asyncio.run(loaded(**given, seconds=seconds)))
