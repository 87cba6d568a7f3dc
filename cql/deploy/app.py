"""The service as an application: what the registry has promoted, asked over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from cql.deploy import api
from cql.deploy.bodies import MAX_BATCH, asked, read_object
from cql.deploy.decision_log import AuditLog
from cql.deploy.door import Door
from cql.deploy.map_picture import map_picture
from cql.deploy.model import POLICY
from cql.deploy.page import PAGE, PAGE_HEADERS
from cql.deploy.promoted import InService
from cql.deploy.served_model import Decision, Decisions, ObservationError
from cql.deploy.service_metrics import Measures
from cql.deploy.store import Registry
from cql.errors import RunError

WAITING = 32  # explanations and pictures that may wait: they are made one after the other
PICTURE: dict = {200: {"content": {"image/png": {}}, "description": "The header X-Model has the ID of the entry."}}


def create_app(registry: Registry, token: str | None = None, audit: AuditLog | None = None,
               hosts: Collection[str] | None = None) -> FastAPI:
    """The service over a registry.

    Args:
        token: what requests must carry as ``Authorization: Bearer …``; None: nothing. Open: page, /healthz, /readyz.
        audit: where decisions are recorded before they are answered; None: nowhere. It is closed with the application.
        hosts: what requests may name as ``Host``, beside a port, in lower case; None: anything.
    """
    service = InService(registry)
    measures = Measures(service, audit)
    explaining, places = ThreadPoolExecutor(1, "explanation"), asyncio.Semaphore(WAITING)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.check)
        following = asyncio.create_task(service.follow())
        try:
            yield
        finally:
            following.cancel()
            explaining.shutdown()
            if audit is not None:
                audit.close()

    # no pages of documentation: they load from elsewhere
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Door, token=token, hosts=hosts, measures=measures)
    document = lru_cache(1)(lambda decisions: api.document(app, decisions, token is not None))
    app.openapi = lambda: document(service.current)

    def in_service() -> Decisions:
        if service.current is None:
            raise HTTPException(503, "no model is in service.")
        return service.current

    async def in_turn(function, *arguments):
        """What a slow function returns, called in the one thread that explains and draws."""
        if places.locked():
            raise HTTPException(503, f"{WAITING} explanations or pictures are waiting already.", {"Retry-After": "1"})
        async with places:
            try:
                return await asyncio.get_running_loop().run_in_executor(explaining, function, *arguments)
            except RunError as error:
                raise HTTPException(422, str(error)) from None

    @app.exception_handler(ObservationError)
    async def refused(_: Request, error: ObservationError) -> Response:
        return _json({"detail": str(error)}, 422)

    @app.post("/v1/act", response_model=api.ActAnswer, responses=api.errors(400, 408, 413, 415, 422, 503))
    async def act(request: Request) -> Response:
        """What the policy does at an observation, or at each of several."""
        body = await read_object(request)
        decisions = in_service()
        observations = [decisions.observation(value) for value in _observations(body)]
        decided = decisions.decide(observations)
        if audit is not None:
            try:
                audit.append(_lines(request, decisions, observations, decided))
            except OSError as error:
                reason = f"the decision cannot be recorded ({error.strerror}), so it is not given."
                raise HTTPException(503, reason) from None
        measures.decided(decided)
        return _json({"model": decisions.id, "decisions": [decision._asdict() for decision in decided]})

    @app.post("/v1/explain", response_model=api.ExplainAnswer, responses=api.errors(400, 408, 413, 415, 422, 503))
    async def explain(request: Request) -> Response:
        """Why an action is chosen, or another is not. An explanation is no decision: it is not recorded."""
        body = asked(await read_object(request), {"observation"}, {"action"})
        decisions = in_service()
        observation = decisions.observation(body["observation"])
        action = decisions.action(body["action"]) if "action" in body else None
        explained = await in_turn(decisions.explain, observation, action)
        return _json({"model": decisions.id, **explained})

    @app.get("/v1/models", response_model=api.ModelsAnswer, responses=api.errors(503))
    async def models() -> Response:
        """The entries of the registry, and which of them answers."""
        try:
            cards = await asyncio.to_thread(registry.entries)
        except (RunError, OSError) as error:
            raise HTTPException(503, f"the registry cannot be read: {error}") from None
        return _json({"in_service": service.current and service.current.id, "problem": service.problem,
                      "models": [{"id": card["id"], "member": card["member"], "registered": card["registered"],
                                  "sha256": card["files"][POLICY]} for card in cards]})

    @app.get("/v1/map", response_model=api.MapAnswer, responses=api.errors(503))
    async def map() -> Response:
        """The environment of the model in service as a map, with its policy and its data, where it has one."""
        return _json(in_service().map)

    @app.get("/v1/map.png", response_class=Response, responses=api.errors(422, 503) | PICTURE)
    async def map_png(observation: Annotated[list[float], Query(min_length=1)], action: int | None = None) -> Response:
        """A picture of the map: an observation's position (a vector repeats the name), what the policy does there."""
        decisions = in_service()
        picture = await in_turn(map_picture, decisions.model, observation, action)
        return Response(picture, media_type="image/png", headers={"X-Model": decisions.id})

    @app.get("/healthz", response_model=api.Alive)
    async def healthz() -> Response:
        """Whether the process answers at all."""
        return _json({"alive": True})

    @app.get("/readyz", response_model=api.Ready,
             responses={503: {"model": api.Ready, "description": "Nothing is in service."}})
    async def readyz() -> Response:
        """Whether a model answers; /v1/models says what is wrong where none does, or another than the promoted one."""
        current = service.current
        return _json({"ready": current is not None, "model": current and current.id, "sound": service.problem is None},
                     200 if current is not None else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        text, kind = measures.text()
        return Response(text, media_type=kind)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    return app


def _observations(body: dict) -> list:
    """What the body asks about. Raises HTTPException 422."""
    if body.keys() == {"observation"}:
        return [body["observation"]]
    if body.keys() != {"observations"} or type(body["observations"]) is not list:
        raise HTTPException(422, 'the body must hold either "observation" or a list "observations", and nothing else.')
    if not 1 <= len(body["observations"]) <= MAX_BATCH:
        raise HTTPException(422, f"a batch holds 1 to {MAX_BATCH} observations.")
    return body["observations"]


def _lines(request: Request, decisions: Decisions, observations: list, decided: list[Decision]) -> bytes:
    """Of the audit log."""
    facts = {"time": datetime.now(UTC).isoformat(), "request": request.scope["request_id"],
             "client": request.client and request.client.host, "model": decisions.digest}
    return b"".join(
        _dumped(facts | {"observation": seen, "action": decision.action, "supported": decision.supported}) + b"\n"
        for seen, decision in zip(observations, decided))


def _dumped(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _json(value, status: int = 200) -> Response:
    return Response(_dumped(value), status, media_type="application/json")
