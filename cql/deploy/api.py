"""The service's interface as an OpenAPI document: what it answers, and what the model in service may be asked."""

from typing import Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from cql.deploy.bodies import MAX_BATCH, MAX_BODY
from cql.deploy.served_model import Decisions

TITLE, VERSION = "glassbox-cql", "1"
ABOUT = """A policy that was trained offline and promoted in a registry, with the data behind its decisions.
What an observation and an action may be is that of the model in service now."""


class Detail(BaseModel):
    detail: str = Field(description="What was wrong, one sentence.")


class DecisionAnswer(BaseModel):
    action: int = Field(description="The greedy action.")
    name: str
    q: list[float] | None = Field(description="Q-value of every action; null for Behaviour Cloning.")
    probabilities: list[float] = Field(description="Softmax of the network's outputs.")
    supported: bool = Field(description="Whether the data ever took this action there.")
    count: int = Field(description="How often.")


class ActAnswer(BaseModel):
    model: str = Field(description="ID of the entry that answered.")
    decisions: list[DecisionAnswer] = Field(description="One for each observation, in order.")


class Action(BaseModel):
    index: int
    name: str


class Support(BaseModel):
    count: int = Field(description="How often the data took this action there.")
    state_count: int = Field(description="How often they were there.")
    share: float | None
    supported: bool
    counts: list[int] = Field(description="How often each action was taken there.")


class ExplainAnswer(BaseModel):
    """`cql.deploy.explanation.Explainer` says what its members mean; there are more than these."""

    model: str = Field(description="ID of the entry that answered.")
    observation: int | list[float]
    cell: list[int] | None = Field(description="Row and column on a grid, from 0.")
    action: Action = Field(description="The one explained.")
    chosen: Action = Field(description="The one that the policy takes.")
    support: Support
    q: list[float] | None
    probabilities: list[float]
    gap: dict | None = Field(description="Q-value of the chosen action less this one's, in parts; null for BC.")
    hazard: dict | None = Field(description="Exact probability of meeting a hazard; null without a model.")
    verdict: Literal["chosen", "as good", "worse", "unsafe", "unsupported", "terminal"]
    text: str = Field(description="A paragraph in plain words.")


class ModelAnswer(BaseModel):
    id: str
    member: str
    registered: str
    sha256: str = Field(description="Of its policy.pt.")


class ModelsAnswer(BaseModel):
    in_service: str | None = Field(description="ID of the entry that answers now.")
    problem: str | None = Field(description="Why that is not what the registry has promoted, if so.")
    models: list[ModelAnswer]


class MapAnswer(BaseModel):
    model: str
    member: str
    actions: list[str]
    observations: dict = Field(description="JSON schema of an observation.")
    board: dict | None = Field(description="The environment as a grid; null where it is none.")


class Alive(BaseModel):
    alive: bool


class Ready(BaseModel):
    ready: bool
    model: str | None
    sound: bool = Field(description="Whether what answers is what the registry has promoted.")


ERRORS = {400: "No JSON in UTF-8, or not in the strict sense.", 408: "The body came too slowly.",
          413: f"A body longer than {MAX_BODY} bytes.", 415: "A body that is not application/json.",
          422: "An observation or an action that the model in service does not have, or a body of another form.",
          503: "No model is in service, or its decisions cannot be recorded."}


def errors(*statuses: int) -> dict:
    """The ``responses`` of a route that answers so."""
    return {status: {"model": Detail, "description": ERRORS[status]} for status in statuses}


def document(app: FastAPI, decisions: Decisions | None, guarded: bool) -> dict:
    """The document as it is with this model in service.

    Args:
        guarded: whether a token is asked for.
    """
    made = get_openapi(title=TITLE, version=VERSION, description=ABOUT, routes=app.routes)
    observation = {"type": ["integer", "array"]} if decisions is None else decisions.observations
    action = {"type": "integer", "minimum": 0}
    if decisions is not None:
        action["maximum"] = decisions.model.dataset.num_actions - 1
    batch = {"type": "array", "items": observation, "minItems": 1, "maxItems": MAX_BATCH}
    _body(made, "/v1/act", {"oneOf": [_object({"observation": observation}, ["observation"]),
                                      _object({"observations": batch}, ["observations"])]})
    _body(made, "/v1/explain", _object({"observation": observation, "action": action}, ["observation"]))
    if guarded:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        refusal = {"description": "No token, or a wrong one.",
                   "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Detail"}}}}
        for path, operations in made["paths"].items():
            if path.startswith("/v1/") or path == "/metrics":
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
                    operation["responses"]["401"] = refusal
    return made


def _object(properties: dict, required: list[str]) -> dict:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _body(made: dict, path: str, schema: dict) -> None:
    made["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
