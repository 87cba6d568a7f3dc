"""What every request passes: the token, a number by which it can be found again, and the clock."""

import hashlib
import hmac
import itertools
import os
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cql.deploy.measures import Measures

OPEN = frozenset({"/", "/healthz", "/readyz"})  # paths that need no token: they say nothing of the model but its ID


class Door:
    """ASGI middleware. Puts ``request_id`` into the scope and the headers of the answer.

    Args:
        token: what requests must carry as ``Authorization: Bearer …`` beyond the open paths; None: nothing.
    """

    def __init__(self, app: ASGIApp, token: str | None, measures: Measures):
        self.app, self.measures = app, measures
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
            app = self.app if self._granted(scope) else _REFUSAL
            await app(scope, receive, passed_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never the path asked for: there are as many as one likes
            self.measures.request(route, status, time.perf_counter() - begun)

    def _granted(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN:
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_digest(given.strip(" ").encode("latin-1")), self._expected)


_REFUSAL = JSONResponse({"detail": "a valid token is needed: Authorization: Bearer …"}, 401,
                        {"WWW-Authenticate": "Bearer"})


def _digest(token: bytes) -> bytes:
    """Of one length whatever the token's: the comparison's time says nothing of that either."""
    return hashlib.sha256(token).digest()
