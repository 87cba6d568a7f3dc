"""The service as an application: what the registry has promoted, asked over HTTP."""

import asyncio
import hmac
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cql.deploy import api
from cql.deploy.decision_log import DecisionLog
from cql.deploy.map_picture import map_picture
from cql.deploy.middleware import RequestMiddleware
from cql.deploy.model import POLICY
from cql.deploy.page import PAGE, PAGE_HEADERS
from cql.deploy.promoted import Promoted
from cql.deploy.served_model import ServedModel
from cql.deploy.service_metrics import ServiceMetrics
from cql.deploy.store import Registry
from cql.errors import RunError

ABOUT = """A policy that was trained offline and promoted in a registry, with the data behind its decisions.
What an observation and an action may be is that of the model in service now."""
PICTURE: dict = {200: {"content": {"image/png": {}}, "description": "The header X-Model has the ID of the entry."}}


def create_app(registry: Registry, token: str | None = None, log: DecisionLog | None = None,
               hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The service over a registry.

    Args:
        token: what requests must carry as ``Authorization: Bearer …``; None: nothing. Open: page, /healthz, /readyz.
        log: where decisions are recorded before they are answered; None: nowhere. It is closed with the application.
        hosts: what requests may name as ``Host``. A foreign page whose name was made to lead here (DNS rebinding)
            names another.
    """
    service = Promoted(registry)
    metrics = ServiceMetrics(service, log)
    one_at_a_time = threading.Lock()  # what is explained or drawn: tables are made once, and matplotlib needs it

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.check)
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()
        if log is not None:
            log.close()

    # no pages of documentation: they load from elsewhere
    app = FastAPI(title="glassbox-cql", version="1", description=ABOUT, lifespan=lifespan, docs_url=None,
                  redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=api.MAX_BODY)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(RequestMiddleware, metrics=metrics)  # the one added last is the first to see a request
    app.add_exception_handler(RequestValidationError, _malformed)
    secured = APIRouter(responses={} if token is None else api.refusals(401),
                        dependencies=[] if token is None else [Depends(_bearer(token))])
    app.add_exception_handler(RunError, lambda _, error: JSONResponse({"detail": str(error)}, 422))

    def in_service() -> ServedModel:
        if service.current is None:
            raise HTTPException(503, "no model is in service.")
        return service.current

    @secured.post("/v1/act", responses=api.refusals(400, 413, 422, 503))
    async def act(asked: api.ActRequest, request: Request) -> api.ActAnswer:
        """What the policy does at an observation, or at each of several."""
        decisions = in_service()
        values, masks = asked.asked()
        observations = [decisions.model.observation(value) for value in values]
        decided = decisions.decide(observations, masks)
        if log is not None:
            try:
                log.append(_lines(request, decisions, observations, masks, decided))
            except OSError as error:
                reason = f"the decision cannot be recorded ({error.strerror}), so it is not given."
                raise HTTPException(503, reason) from None
        metrics.decided(decided)
        return api.ActAnswer(model=decisions.id, decisions=decided)

    @secured.post("/v1/explain", responses=api.refusals(400, 413, 422, 503))
    def explain(asked: api.ExplainRequest) -> api.ExplainAnswer:
        """Why an action is chosen, or another is not. An explanation is no decision: it is not recorded."""
        decisions = in_service()
        with one_at_a_time:
            explained = decisions.explainer.explain(asked.observation, asked.action, asked.mask)
        return api.ExplainAnswer(model=decisions.id, **explained)

    @secured.get("/v1/models", responses=api.refusals(503))
    def models() -> api.ModelsAnswer:
        """The entries of the registry, and which of them answers."""
        try:
            cards = registry.entries()
        except (RunError, OSError) as error:
            raise HTTPException(503, f"the registry cannot be read: {error}") from None
        return api.ModelsAnswer(
            in_service=service.current and service.current.id, problem=service.problem,
            models=[api.ModelAnswer(id=card["id"], member=card["member"], registered=card["registered"],
                                    sha256=card["files"][POLICY]) for card in cards])

    @secured.get("/v1/map", responses=api.refusals(503))
    async def map() -> api.MapAnswer:
        """The environment of the model in service as a map, with its policy and its data, where it has one."""
        return in_service().map

    @secured.get("/v1/map.png", response_class=Response, responses=PICTURE | api.refusals(422, 503))
    def map_png(observation: Annotated[list[float], Query(min_length=1)], action: int | None = None) -> Response:
        """A picture of the map: an observation's position (a vector repeats the name), what the policy does there."""
        decisions = in_service()
        with one_at_a_time:
            picture = map_picture(decisions.model, observation, action)
        return Response(picture, media_type="image/png", headers={"X-Model": decisions.id})

    @secured.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """For Prometheus."""
        return PlainTextResponse(metrics.text())

    @secured.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict:
        document, served = app.openapi(), service.current
        return document if served is None else api.with_limits(
            document, served.schema, len(served.model.actions), served.model.policy.masked)

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        """Whether the process answers at all."""
        return {"alive": True}

    @app.get("/readyz", responses={503: {"model": api.Ready, "description": "Nothing is in service."}})
    async def readyz(response: Response) -> api.Ready:
        """Whether a model answers; /v1/models says what is wrong where none does, or another than the promoted one."""
        model = service.current
        response.status_code = 503 if model is None else 200
        return api.Ready(ready=model is not None, model=model and model.id, sound=service.problem is None)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    app.include_router(secured)
    return app


def _bearer(token: str):
    """The dependency of a route that needs the token."""

    async def known(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]):
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "a valid token is needed: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})

    return known


async def _malformed(_: Request, error: RequestValidationError) -> Response:
    """The first thing that is wrong with a body, in a sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:100].encode("ascii", "backslashreplace").decode()
    no_object = first["type"] == "model_attributes_type"
    what = "a JSON object sent as application/json is needed" if no_object else first["msg"]
    return JSONResponse({"detail": f"{where}: {what}."}, 422)


def _lines(request: Request, decisions: ServedModel, observations: list, masks: list | None,
           decided: list[api.Decision]) -> str:
    """Of the decision log."""
    facts = {"time": datetime.now(UTC).isoformat(), "request": request.scope["request_id"],
             "client": request.client and request.client.host, "model": decisions.digest}
    given = [{}] * len(decided) if masks is None else [{"mask": mask} for mask in masks]
    return "\n".join(json.dumps(facts | {"observation": seen, **mask, "action": decision.action,
                                         "supported": decision.supported}, separators=(",", ":"))
                     for seen, mask, decision in zip(observations, given, decided))
