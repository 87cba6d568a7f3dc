"""What every request passes: a number, headers of its answer, its status and time for the metrics."""

import itertools
import os
import time

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cql.deploy.api import MAX_BODY
from cql.deploy.service_metrics import ServiceMetrics

# what Starlette's own middleware refuses in words of its own
REFUSALS = {400: "the Host header does not name this machine.", 413: f"the body is longer than {MAX_BODY} bytes."}


class RequestMiddleware:
    """Puts ``request_id`` into the scope; every answer has it as X-Request-Id.

    Plain ASGI: Starlette's ``@app.middleware("http")`` costs several times the CPU.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics):
        self.app, self.metrics = app, metrics
        self._prefix, self._numbers = os.urandom(6).hex(), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, reworded = time.perf_counter(), 500, False
        scope["request_id"] = f"{self._prefix}-{next(self._numbers)}"

        async def send_on(message: Message) -> None:
            nonlocal status, reworded
            if reworded:
                return
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(scope=message)
                if status == 413 or status == 400 and headers["content-type"].startswith("text/plain"):
                    await JSONResponse({"detail": REFUSALS[status]}, status, _extra(scope))(scope, receive, send)
                    reworded = True
                    return
                headers.update({name: value for name, value in _extra(scope).items() if name not in headers})
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path asked for: there is no end of these
            self.metrics.request(route, status, time.perf_counter() - begun)


def _extra(scope: Scope) -> dict[str, str]:
    return {"X-Request-Id": scope["request_id"], "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
