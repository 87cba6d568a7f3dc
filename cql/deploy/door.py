"""What every connection and request passes: bounds on waiting, the host asked for, the token, a number, the clock."""

import hashlib
import hmac
import itertools
import os
import re
import time
from collections.abc import Collection

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cql.deploy.service_metrics import Measures

OPEN = frozenset({"/", "/healthz", "/readyz"})  # paths that need no token: they say nothing of the model but its ID
WAIT = 20.0  # seconds that a request's headers, or the rest of a body answered already, may take; at most twice that
DRAIN = 2**24  # bytes of a body that is answered already: after more of them the connection is closed
BURST = 100  # connections beyond the server's limit_concurrency, which get 503; any more are closed at once


class Connection(H11Protocol):
    """Uvicorn's, closed where a client keeps it without a request in hand."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._seen: object = self
        self._passed_over: tuple[object, int] = (None, 0)  # a request that is answered, bytes of its body since then
        self._look = self.loop.call_later(WAIT, self._look_after)
        if len(self.connections) > (self.limit_concurrency or 0) + BURST:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            cycle, length = self._passed_over
            self._passed_over = self.cycle, len(data) + length * (cycle is self.cycle)
            if self._passed_over[1] > DRAIN:
                self.transport.abort()
                return
        super().data_received(data)

    def _look_after(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._seen is self.cycle:  # as at the last look: no request has come in between
            self.transport.abort()
            return
        self._seen = self.cycle if waiting else self
        self._look = self.loop.call_later(WAIT, self._look_after)


class Door:
    """ASGI middleware. Puts ``request_id`` into the scope and the headers of the answer.

    Args:
        token: what requests must carry as ``Authorization: Bearer …`` beyond the open paths; None: nothing.
        hosts: what they may name as ``Host``, beside a port; None: anything. A foreign page whose name was made to lead
            here (DNS rebinding) names another.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] | None, measures: Measures):
        self.app, self.hosts, self.measures = app, hosts, measures
        self._expected = None if token is None else _digest(token.encode())
        self._prefix, self._numbers = os.urandom(6).hex(), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        scope["request_id"] = f"{self._prefix}-{next(self._numbers)}"

        async def passed_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = scope["request_id"]
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, passed_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path asked for: there is no end of these
            self.measures.request(route, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            return _TWO_LENGTHS
        if self.hosts is not None and _PORT.sub("", headers.get("host", "")).lower() not in self.hosts:
            return _ELSEWHERE
        if self._expected is None or scope["path"] in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip(" ").encode("latin-1"))
        granted = scheme.lower() == "bearer" and hmac.compare_digest(digest, self._expected)
        return None if granted else _NO_TOKEN


_PORT = re.compile(r":\d*$")
_TWO_LENGTHS = JSONResponse({"detail": "a request has either Transfer-Encoding or Content-Length."}, 400,
                            {"Connection": "close"})
_ELSEWHERE = JSONResponse(
    {"detail": "without a token the service answers only requests whose Host names this machine."}, 421)
_NO_TOKEN = JSONResponse({"detail": "a valid token is needed: Authorization: Bearer …"}, 401,
                         {"WWW-Authenticate": "Bearer"})


def _digest(token: bytes) -> bytes:
    """Of one length whatever the token's: the comparison's time says nothing of that either."""
    return hashlib.sha256(token).digest()
