"""What the service is asked and answers, as pydantic models, and the OpenAPI document made from them."""

from copy import deepcopy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

MAX_BODY = 2**18  # bytes
MAX_BATCH = 1024  # observations

# what an observation and an action may be is checked by the model in service, and the document names its limits
Observation = Annotated[Any, WithJsonSchema({"type": ["integer", "array"]})]
Action = Annotated[Any, WithJsonSchema({"type": ["integer", "null"]})]
Mask = Annotated[Any, WithJsonSchema({"type": ["array", "null"], "items": {"type": "boolean"}})]
MASK = "For vectors: whether each action exists there. A policy trained with masks of vectors needs it."


class ActRequest(BaseModel):
    """An observation, or a list of them; each with the mask of the actions that exist there, where one is needed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={
        "oneOf": [{"required": ["observation"]}, {"required": ["observations"]}]})

    observation: Observation = Field(default_factory=lambda: None)
    observations: list[Observation] = Field(default_factory=list, min_length=1, max_length=MAX_BATCH)
    mask: Mask = Field(None, description=MASK)
    masks: list[Mask] | None = Field(None, max_length=MAX_BATCH, description="As many as observations.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "ActRequest":
        if len(self.model_fields_set & {"observation", "observations"}) != 1:
            raise PydanticCustomError("one_of", 'either "observation" or a list "observations" is needed')
        if self.masks is not None and len(self.masks) != len(self.observations) or (
                self.mask is not None and self.observations):
            raise PydanticCustomError("masks", 'one "mask" goes with an "observation", as many "masks" with a list')
        return self

    def asked(self) -> tuple[list, list | None]:
        """The observations and, where they were given, their masks."""
        if self.observations:
            return self.observations, self.masks
        return [self.observation], None if self.mask is None else [self.mask]


class ExplainRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    observation: Observation
    action: Action = Field(None, description="The action to explain; without it, the one that the policy takes.")
    mask: Mask = Field(None, description=MASK)


class Decision(BaseModel):
    action: int = Field(description="The greedy action.")
    name: str
    q: list[float | None] | None = Field(description="Q-value of every action, null where the policy may not take it; "
                                                     "null for Behaviour Cloning.")
    probabilities: list[float] = Field(description="Softmax of the network's outputs.")
    supported: bool | None = Field(description="Whether the data ever took this action there; null: not known.")
    count: int = Field(description="How often.")


class ActAnswer(BaseModel):
    model: str = Field(description="ID of the entry that answered.")
    decisions: list[Decision] = Field(description="One for each observation, in order.")


class ExplainAnswer(BaseModel):
    """`cql.deploy.explanation.Explainer` says what its members mean; there are more than these."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="ID of the entry that answered.")
    observation: int | list[float]
    cell: list[int] | None = Field(description="Row and column on a grid, from 0.")
    action: dict = Field(description="Index and name of the action explained.")
    chosen: dict = Field(description="Index and name of the action that the policy takes.")
    support: dict = Field(description="How often the data were there, and took each action.")
    possible: list[bool] = Field(description="Whether the policy may take each action there.")
    q: list[float | None] | None
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
    features: list[str] | None = Field(description="Names of the numbers of an observation.")
    masked: bool = Field(description="Whether a mask is needed with every observation.")
    observations: dict = Field(description="JSON schema of an observation.")
    board: dict | None = Field(description="The environment as a grid; null where it is none.")


class Ready(BaseModel):
    ready: bool
    model: str | None
    sound: bool = Field(description="Whether what answers is what the registry has promoted.")


class Refusal(BaseModel):
    detail: str = Field(description="What was wrong, one sentence.")


REASONS = {400: "A body that cannot be read.", 401: "No token, or a wrong one.",
           413: f"A body longer than {MAX_BODY} bytes.",
           422: "A body of another form, or an observation or action that the model in service does not have.",
           503: "No model is in service, or its decisions cannot be recorded."}


def refusals(*statuses: int) -> dict:
    """The ``responses`` of a route that is refused with these statuses."""
    content = {"application/json": {"schema": Refusal.model_json_schema()}}
    return {status: {"description": REASONS[status], "content": content} for status in statuses}


def with_limits(document: dict, observation: dict, actions: int, masked: bool) -> dict:
    """The OpenAPI document with what may be asked of one model: the schema of its observations, its actions, and masks,
    which state numbers do not have and ``masked`` models need."""
    document = deepcopy(document)
    requests = [document["components"]["schemas"][name] for name in ("ActRequest", "ExplainRequest")]
    act, explain = (request["properties"] for request in requests)
    for properties, name in ((act, "mask"), (act, "masks"), (explain, "mask")):
        if observation["type"] == "integer":
            del properties[name]
        else:
            one = properties[name] if name == "mask" else properties[name]["anyOf"][0]["items"]
            one |= {"minItems": actions, "maxItems": actions}
    if masked:
        requests[0]["oneOf"] = [{"required": ["observation", "mask"]}, {"required": ["observations", "masks"]}]
        requests[1]["required"] = ["observation", "mask"]
    act["observation"] = act["observations"]["items"] = explain["observation"] = observation
    explain["action"] |= {"minimum": 0, "maximum": actions - 1}
    one = {"type": "array", "items": observation, "minItems": 1, "maxItems": 1}
    asked = {"observation": observation if observation["type"] == "array" else one, "action": explain["action"]}
    for parameter in document["paths"]["/v1/map.png"]["get"]["parameters"]:
        parameter["schema"] = asked[parameter["name"]]
    return document
