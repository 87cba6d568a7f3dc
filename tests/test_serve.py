"""The service: its answers are the model's, bad requests are told why, promotions followed, decisions recorded."""

import base64
import errno
import hashlib
import html
import http.client
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from cql.commands import serve
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.api import MAX_BATCH, MAX_BODY
from cql.deploy.app import create_app
from cql.deploy.decision_log import DecisionLog
from cql.deploy.explanation import Explainer
from cql.deploy.gate import Limits
from cql.deploy.model import LARGEST, Model
from cql.deploy.page import PAGE
from cql.deploy.served_model import ServedModel
from cql.deploy.store import Registry
from cql.errors import RunError
from cql.files import sha256
from cql.members import Member
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.world import World
from tests import browser
from tests.faults import MALFORMED, Child, malformed

pytestmark = pytest.mark.slow
BC, ONE, SIX = "bc-s42-d42", "cql-a1-s42-d42", "cql-a6-s42-d42"
TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def filled(deployable, tmp_path_factory):
    """(folder, {member: ID}): three entries, of which none is promoted."""
    path = tmp_path_factory.mktemp("served") / "reg"
    registry = Registry(path)
    return path, {name: registry.register(deployable, name, "ann") for name in (BC, ONE, SIX)}


@pytest.fixture
def copied(filled, tmp_path):
    """A registry of one's own, and its IDs."""
    shutil.copytree(filled[0], tmp_path / "reg")
    return Registry(tmp_path / "reg"), filled[1]


@pytest.fixture(scope="module")
def models(deployable):
    return {name: Model.open(deployable, name) for name in (BC, ONE, SIX)}


@contextmanager
def client_of(registry, promoted=None, **settings):
    if promoted is not None:
        promote(registry, promoted)
    with TestClient(create_app(registry, **settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(filled, tmp_path_factory):
    """Of a service that serves cql-a6; nothing is promoted under it."""
    path = tmp_path_factory.mktemp("client") / "reg"
    shutil.copytree(filled[0], path)
    with client_of(Registry(path), filled[1][SIX]) as client:
        yield client


def promote(registry, id):
    registry.promote(id, "bob", "a test", Limits(max_hazard=1.0, min_return=-1e9, max_unsupported=1.0))


def waited_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def raising(error: Exception):
    """A function that raises it, whatever it is given."""
    def fails(*_):
        raise error
    return fails


def act(client, observation, **headers):
    return client.post("/v1/act", json={"observation": observation}, headers=headers)


def counted(client, name: str) -> float:
    """A metric's value; 0 if it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


# -------------------------------------------------------------------------------------------------------------- answers


def test_a_decision_is_the_policys_with_the_datas_count(client, filled, models):
    model = models[SIX]
    for state in range(12):
        answer = act(client, state)
        assert answer.status_code == 200 and answer.json()["model"] == filled[1][SIX]
        decision, = answer.json()["decisions"]
        action = model.policy.act(state)
        count = int(((model.dataset.observations == state) & (model.dataset.actions == action)).sum())
        assert decision.keys() == {"action", "name", "q", "probabilities", "supported", "count"}
        assert (decision["action"], decision["name"]) == (action, ["up", "down", "left", "right"][action])
        assert (decision["count"], decision["supported"]) == (count, count > 0)
        np.testing.assert_allclose(decision["q"], model.policy.q_values(state), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(decision["probabilities"], model.policy.probabilities(state), rtol=1e-4, atol=1e-6)


def test_a_batch_is_its_observations_in_order(client):
    states = [3, 0, 11, 3]
    batch = client.post("/v1/act", json={"observations": states}).json()["decisions"]
    assert batch == [act(client, state).json()["decisions"][0] for state in states]
    assert len(client.post("/v1/act", json={"observations": [0] * MAX_BATCH}).json()["decisions"]) == MAX_BATCH


def test_three_point_nought_is_three_as_in_json(client):
    assert client.post("/v1/act", content=b'{"observation": 3.0}',
                       headers={"Content-Type": "application/json; charset=utf-8"}
                       ).json() == act(client, 3).json()


def test_behaviour_cloning_has_no_q_values(copied, models):
    registry, ids = copied
    with client_of(registry, ids[BC]) as client:
        decision, = act(client, 5).json()["decisions"]
        assert decision["q"] is None and decision["action"] == int(np.argmax(decision["probabilities"]))
        np.testing.assert_allclose(decision["probabilities"], models[BC].policy.probabilities(5), rtol=1e-5)
        assert client.post("/v1/explain", json={"observation": 5}).json()["q"] is None


def test_an_explanation_is_that_of_the_model(client, filled, models):
    for asked in ({"observation": 4}, {"observation": 4, "action": 2}):
        answer = client.post("/v1/explain", json=asked).json()
        assert answer == {"model": filled[1][SIX], **Explainer(models[SIX]).explain(*asked.values())}


def test_the_map_holds_what_the_page_draws(client, models):
    found, model = client.get("/v1/map").json(), models[SIX]
    board = found["board"]
    assert (board["rows"], board["columns"], board["hazard"], board["goal"], board["start"]) == (3, 4, [5], [11], [0])
    assert board["moves"] == [[-1, 0], [1, 0], [0, -1], [0, 1]] and board["cells"] == list(range(12))
    assert board["greedy"] == model.policy.act(np.arange(12)).tolist()
    assert np.array_equal(board["counts"], [model.counts(state) for state in range(12)])
    assert found["observations"] == {"type": "integer", "minimum": 0, "maximum": 11}


def test_the_registrys_entries_are_listed(client, filled, deployable):
    found = client.get("/v1/models").json()
    assert (found["in_service"], found["problem"]) == (filled[1][SIX], None)
    assert [(model["id"], model["member"])
            for model in found["models"]] == [(id, name) for name, id in filled[1].items()]
    assert found["models"][2]["sha256"] == sha256(deployable / "policies" / f"{SIX}.pt")


def test_the_page_loads_nothing_and_its_policy_lets_it_load_nothing(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        text, = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert len(text) > 1000 and base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert not re.search(r'(?:src|href)="(?!#|data:,)', page.text) and " style=" not in page.text
    assert re.findall(r"https?://[^\"]*", page.text) == ["http://www.w3.org/2000/svg"]


# --------------------------------------------------------------------------------------------------------- bad requests

JSON = "application/json"


@pytest.mark.parametrize("path, body, kind, status, words", [
    ("act", b"", JSON, 422, "body: Field required"),
    ("act", b"{", JSON, 422, "body.1: JSON decode error"),
    ("act", b'{"observation": NaN}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": -Infinity}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": ' + b"[" * 100_000, JSON, 400, "error parsing the body"),
    ("act", b'{"observation": ' + b"9" * 5000 + b"}", JSON, 400, "error parsing the body"),
    ("act", b'{"observation": "\xff"}', JSON, 400, "error parsing the body"),
    ("act", b'{"observation": 1, "\\ud800": 1}', JSON, 422, "body"),
    ("act", b'{"observation": 1}', "text/plain", 422, "a JSON object sent as application/json"),
    ("act", b'{"observation": 1}', "", 422, "a JSON object sent as application/json"),
    ("act", b"[1]", JSON, 422, "a JSON object"),
    ("act", b"{}", JSON, 422, 'either "observation" or'),
    ("act", b'{"observation": 1, "observations": [1]}', JSON, 422, 'either "observation" or'),
    ("act", b'{"observation": 1, "extra": 1}', JSON, 422, "body.extra: Extra inputs are not permitted."),
    ("act", b'{"observation": 12}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": -1}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": 1.5}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": 1e999}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": true}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": "1"}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": null}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observation": [1]}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b'{"observations": 1}', JSON, 422, "body.observations: Input should be a valid list."),
    ("act", b'{"observations": null}', JSON, 422, "body.observations: Input should be a valid list."),
    ("act", b'{"observations": []}', JSON, 422, "at least 1 item"),
    ("act", b'{"observations": [' + b"0," * MAX_BATCH + b"0]}", JSON, 422, "at most 1024 items"),
    ("act", b'{"observations": [0, 12]}', JSON, 422, "an observation of this model is an integer from 0 to 11"),
    ("act", b" " * MAX_BODY + b"{}", JSON, 413, "the body is longer than 262144 bytes."),
    ("explain", b'{"action": 1}', JSON, 422, "body.observation: Field required."),
    ("explain", b'{"observation": 1, "action": 4}', JSON, 422, "an action of this model is an integer from 0 to 3"),
    ("explain", b'{"observation": 1, "action": false}', JSON, 422, "an action of this model is an integer from 0 to 3"),
])
def test_a_bad_request_is_told_why(client, path, body, kind, status, words):
    answer = client.post(f"/v1/{path}", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json().keys() == {"detail"} and words in answer.json()["detail"]
    assert answer.headers["x-request-id"] and answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_is_bounded_while_it_comes_whatever_its_headers_say(client):
    answer = client.post("/v1/act", content=iter([b" " * 2**16] * 5), headers={"Content-Type": JSON})
    assert answer.status_code == 413 and answer.json() == {"detail": "the body is longer than 262144 bytes."}
    whole = client.post("/v1/act", content=iter([b'{"obser', b'vation": 3}']), headers={"Content-Type": JSON})
    assert whole.json() == act(client, 3).json()


def test_malformed_bodies_of_every_kind_are_never_a_5xx(client):
    draw, statuses = random.Random(1), Counter()
    for kind in MALFORMED:
        statuses[client.post("/v1/act", content=kind(draw), headers={"Content-Type": JSON}).status_code] += 1
    for _ in range(300):
        body, kind = malformed(draw)
        path = draw.choice(["/v1/act", "/v1/explain"])
        statuses[client.post(path, content=body, headers={"Content-Type": kind}).status_code] += 1
    assert statuses.total() == 300 + len(MALFORMED) and set(statuses) == {400, 413, 422}


def test_other_paths_and_methods(client):
    assert client.get("/v1/nothing").status_code == 404 and client.get("/docs").status_code == 404
    answer = client.get("/v1/act")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert client.post("/v1/act/", json={"observation": 1}).status_code == 404


# ------------------------------------------------------------------------------------------------------------ the token


def test_a_token_guards_all_that_speaks_of_the_model(copied):
    registry, ids = copied
    with client_of(registry, ids[SIX], token=TOKEN) as client:
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/v1/models", "/v1/map", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        assert client.post("/v1/explain", json={"observation": 1}).status_code == 401
        for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN,
                      b"Bearer \xff\xfe"):
            answer = client.post("/v1/act", json={"observation": 1}, headers={"Authorization": wrong})
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json() == {"detail": "a valid token is needed: Authorization: Bearer …"}
        assert act(client, 1, Authorization=f"Bearer {TOKEN}").status_code == 200


def test_without_a_token_only_a_request_that_names_this_machine_is_answered(copied):
    registry, ids = copied
    with client_of(registry, ids[SIX], hosts=serve._hosts("Some-Name")) as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "some-name:1"):
            assert client.get("/", headers={"Host": host}).status_code == 200, host
        for host in ("", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
                     "localhost:x", "evil.example:127.0.0.1", "user@localhost", "[::2]:8000", "::1"):
            for path in ("/", "/healthz", "/readyz", "/v1/map", "/metrics", "/nothing"):
                answer = client.get(path, headers={"Host": host})
                assert answer.status_code == 400, (host, path)
                assert answer.json() == {"detail": "the Host header does not name this machine."}
    assert set(serve._hosts("::1")) == {"127.0.0.1", "localhost", "[::1]"}


# ----------------------------------------------------------------------------------------------------------- promotions


def test_nothing_is_answered_until_a_model_is_promoted_and_then_each_promotion_is_followed(copied):
    registry, ids = copied
    with client_of(registry) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/readyz").json() == {"ready": False, "model": None, "sound": False}
        for answer in (act(client, 1), client.post("/v1/explain", json={"observation": 1}), client.get("/v1/map")):
            assert answer.status_code == 503 and answer.json() == {"detail": "no model is in service."}
        assert client.get("/v1/models").json()["problem"] == "no model is promoted."
        assert client.get("/openapi.json").status_code == 200
        for name in (ONE, SIX):
            promote(registry, ids[name])
            ready = {"ready": True, "model": ids[name], "sound": True}
            waited_for(lambda ready=ready: client.get("/readyz").json() == ready)
            assert act(client, 1).json()["model"] == ids[name]
        registry.rollback("cy", "a test")
        waited_for(lambda: act(client, 1).json()["model"] == ids[ONE])
        assert counted(client, "glassbox_models_taken_total") == 3


def test_a_promoted_model_that_cannot_be_loaded_is_not_taken_and_tried_again(copied, monkeypatch):
    registry, ids = copied
    with client_of(registry, ids[ONE]) as client:
        assert counted(client, "glassbox_model_problem") == 0
        with monkeypatch.context() as damaged:
            damaged.setattr(ServedModel, "load", raising(RunError("policy.pt was changed.")))
            promote(registry, ids[SIX])
            waited_for(lambda: client.get("/readyz").json() == {"ready": True, "model": ids[ONE], "sound": False})
            assert act(client, 1).json()["model"] == ids[ONE] and counted(client, "glassbox_model_problem") == 1
            assert "policy.pt was changed" in client.get("/v1/models").json()["problem"]
        waited_for(lambda: client.get("/readyz").json() == {"ready": True, "model": ids[SIX], "sound": True})
        assert counted(client, "glassbox_model_problem") == 0


def test_a_registry_that_cannot_be_read_changes_nothing(copied, monkeypatch):
    registry, ids = copied
    with client_of(registry, ids[ONE]) as client:
        for name in ("promoted", "entries"):
            monkeypatch.setattr(registry, name, raising(RunError("damaged.")))
        waited_for(lambda: client.get("/readyz").json() == {"ready": True, "model": ids[ONE], "sound": False})
        assert act(client, 1).json()["model"] == ids[ONE]
        assert client.get("/v1/models").json() == {"detail": "the registry cannot be read: damaged."}


# ----------------------------------------------------------------------------------------- what is counted and recorded


def test_requests_and_decisions_are_counted(copied, models):
    registry, ids = copied
    never = [state for state in range(12) if models[SIX].counts(state)[models[SIX].policy.act(state)] == 0]
    with client_of(registry, ids[SIX]) as client:
        assert client.post("/v1/act", json={"observations": list(range(12))}).status_code == 200
        for observation in (0, 12, "a"):
            act(client, observation)
        client.get("/a"), client.get("/b")
        assert counted(client, 'glassbox_decisions_total{supported="false"}') == len(never)
        assert counted(client, 'glassbox_decisions_total{supported="true"}') == 12 - len(never) + (0 not in never)
        assert counted(client, 'glassbox_requests_total{route="/v1/act",status="200"}') == 2
        assert counted(client, 'glassbox_requests_total{route="/v1/act",status="422"}') == 2
        assert counted(client, 'glassbox_requests_total{route="other",status="404"}') == 2
        assert counted(client, 'glassbox_request_seconds_count{route="/v1/act"}') == 4
        digest = registry.card(ids[SIX])["files"]["policy.pt"]
        assert counted(client, f'glassbox_model_in_service{{id="{ids[SIX]}",member="{SIX}",sha256="{digest}"}}') == 1


def test_every_decision_is_recorded(copied, tmp_path, models):
    registry, ids = copied
    with client_of(registry, ids[SIX], log=DecisionLog(tmp_path / "decisions")) as client:
        first = act(client, 3)
        act(client, 99)
        client.post("/v1/explain", json={"observation": 3})
        second = client.post("/v1/act", json={"observations": [4, 5]})
    lines = [json.loads(line) for line in (tmp_path / "decisions" / "decisions.jsonl").read_text().splitlines()]
    assert [line["observation"] for line in lines] == [3, 4, 5]
    assert [line["request"] for line in lines] == [first.headers["x-request-id"]] + 2 * [second.headers["x-request-id"]]
    decided = [*first.json()["decisions"], *second.json()["decisions"]]
    assert [(line["action"], line["supported"]) for line in lines] == [(d["action"], d["supported"]) for d in decided]
    assert {line["model"] for line in lines} == {registry.card(ids[SIX])["files"]["policy.pt"]}
    assert all(line["client"] == "testclient" and line["time"].endswith("+00:00") for line in lines)


def test_a_decision_that_cannot_be_recorded_is_not_given(copied, tmp_path, monkeypatch):
    registry, ids = copied
    log = DecisionLog(tmp_path / "decisions")
    with client_of(registry, ids[SIX], log=log) as client:
        with monkeypatch.context() as full:
            full.setattr(log, "append", raising(OSError(errno.ENOSPC, "No space left on device")))
            answer = act(client, 3)
            detail = "the decision cannot be recorded (No space left on device), so it is not given."
            assert answer.status_code == 503 and answer.json() == {"detail": detail}
            assert counted(client, 'glassbox_decisions_total{supported="true"}') == 0
        assert act(client, 3).status_code == 200
        assert counted(client, "glassbox_decisions_unflushed") == 0
        shutil.rmtree(log.folder)
        waited_for(lambda: counted(client, "glassbox_decisions_unflushed") == 1)
        assert act(client, 3).status_code == 503


# ------------------------------------------------------------------------------------------------- the OpenAPI document


def test_the_document_says_what_the_model_in_service_may_be_asked(client, copied):
    document = client.get("/openapi.json").json()
    asked, explained = (document["components"]["schemas"][name] for name in ("ActRequest", "ExplainRequest"))
    states = {"type": "integer", "minimum": 0, "maximum": 11}
    assert asked["properties"]["observation"] == explained["properties"]["observation"] == states
    assert asked["properties"]["observations"] == {"items": states, "maxItems": MAX_BATCH, "minItems": 1,
                                                   "title": "Observations", "type": "array"}
    assert asked["oneOf"] == [{"required": ["observation"]}, {"required": ["observations"]}]
    assert asked["additionalProperties"] is explained["additionalProperties"] is False
    assert explained["properties"]["action"]["maximum"] == 3 and explained["required"] == ["observation"]
    assert set(document["paths"]["/v1/explain"]["post"]["responses"]) == {"200", "400", "413", "422", "503"}
    assert "securitySchemes" not in document["components"]
    registry, ids = copied
    with client_of(registry, ids[SIX], token=TOKEN) as guarded:
        document = guarded.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert document["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/v1/act"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "401" in document["paths"]["/metrics"]["get"]["responses"]
    assert "security" not in document["paths"]["/readyz"]["get"]


# ---------------------------------------------------------------------------------------------- observations as vectors


def vector_model(weight=((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))) -> Model:
    """Q(x) = (x0, x1, 0), without an environment; the data hold action 0 at [1, 0] twice and at [0, 2] once."""
    observations = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    dataset = OfflineDataset.from_arrays(observations, np.array([0, 0, 0]), np.ones(3), observations,
                                         np.array([False, False, True]), metadata={"num_actions": 3})
    parameters = [torch.tensor(weight)[None], torch.zeros(1, 1, 3)]
    policy = Policy(PopulationMLP(2, 3, (), False), parameters, "cql", 6.0, 42, 42)
    return Model(Member("cql", 6.0, 42, 42), policy, dataset, Config(), 6.0, World(None, None))


def test_vectors_by_hand():
    decisions = ServedModel("id", "digest", vector_model())
    found = decisions.decide([decisions.model.observation(x) for x in ([1, -0.0], [0.0, 2.0], [-1.0, -3])])
    assert [(d.action, d.name, d.count, d.supported) for d in found] == [
        (0, "action 0", 2, None), (1, "action 1", 0, None), (2, "action 2", 0, None)]  # no BC says what is supported
    assert [d.q for d in found] == [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.0, -3.0, 0.0]]
    assert found[1].probabilities[1] == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    assert decisions.map.board is None and decisions.schema["minItems"] == 2


@pytest.mark.parametrize("value",
                         [1, [1], [1, 2, 3], [1, "2"], [1, None], [1, True], [1, float("inf")], [1, float("nan")],
                                   [1, 10**400], [[1, 2]], {"0": 1}, None, "12"])
def test_what_is_no_vector_is_refused(value):
    with pytest.raises(RunError):
        vector_model().observation(value)


def test_outputs_that_are_not_finite_are_no_decision():
    decisions = ServedModel("id", "digest", vector_model(weight=((1e30, 0.0), (0.0, 1.0), (0.0, 0.0))))
    with pytest.raises(RunError, match="not finite"):
        decisions.decide([[LARGEST, 0.0]])


# --------------------------------------------------------------------------------------------------- the process itself


@contextmanager
def forked(registry, folder, *options):
    """The port of a service in a fork of this process, which is stopped at the end, and the fork.

    Its decisions are recorded in ``folder / "decisions"``.
    """
    child = Child(serve.main, [str(registry), "--port", "0", "--decisions", str(folder / "decisions"), *options],
                  folder)
    try:
        port = int(re.search(r"http://\S+:(\d+)", child.first_line())[1])
        waited_for(lambda: answers(port))
        yield port, child
    finally:
        child.process.terminate()
        child.wait()


def answers(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200


def malformed_statuses(port: int, number: int) -> Counter:
    """How so many malformed bodies are answered, by status."""
    chosen, found = random.Random(3), Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(number):
        body, kind = malformed(chosen)
        chunked, path = chosen.random() < 0.2, chosen.choice(["/v1/act", "/v1/explain"])
        connection.request("POST", path, iter([body[:100], body[100:]]) if chunked else body, {"Content-Type": kind})
        response = connection.getresponse()
        assert isinstance(json.loads(response.read())["detail"], str), body[:100]
        found[response.status] += 1
    connection.close()
    return found


def test_a_running_service_answers_across_promotions_and_stops_with_every_decision_recorded(copied, models, times):
    registry, ids = copied
    promote(registry, ids[ONE])
    actions = {ids[name]: models[name].policy.act(np.arange(12)).tolist() for name in (ONE, SIX)}
    folder = registry.path.with_name("decisions")
    with forked(registry.path, folder.parent, "--keep", "3") as (port, child):
        found, stop = Counter(), threading.Event()

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            while not stop.is_set():
                state = found["asked"] % 12
                found["asked"] += 1
                connection.request("POST", "/v1/act", json.dumps({"observation": state}), {"Content-Type": JSON})
                response = connection.getresponse()
                answer = json.loads(response.read())
                right = response.status == 200 and answer["decisions"][0]["action"] == actions[answer["model"]][state]
                found[answer["model"] if right else "wrong"] += 1
            connection.close()

        asking = threading.Thread(target=ask)
        asking.start()
        for name in (SIX, ONE, SIX):
            id, enough = ids[name], found[ids[name]] + 10
            promote(registry, id)
            waited_for(lambda id=id, enough=enough: found[id] > enough)
        stop.set()
        asking.join()
        assert found["wrong"] == 0 and found["asked"] == found[ids[ONE]] + found[ids[SIX]]
        statuses = malformed_statuses(port, times or 100)
        print(f"malformed bodies by the status that answers them: {dict(statuses)}")
        assert set(statuses) <= {400, 413, 422}
        with socket.create_connection(("127.0.0.1", port)):  # a connection that only waits does not hold it up
            child.send_signal(signal.SIGTERM)
            assert child.wait(20)[0] == 0
    lines = (folder / "decisions.jsonl").read_bytes().splitlines()
    assert len(lines) == found["asked"]
    names = {registry.card(ids[name])["files"]["policy.pt"]: ids[name] for name in (ONE, SIX)}
    assert Counter(names[json.loads(line)["model"]] for line in lines) == {id: found[id] for id in names.values()}


def test_an_interrupt_ends_it_as_a_termination_does(copied, tmp_path):
    """By the command line itself; the services of the other tests are forked."""
    registry, ids = copied
    promote(registry, ids[SIX])
    process = subprocess.Popen([sys.executable, "-m", "cql", "serve", str(registry.path), "--port", "0", "--decisions",
                                str(tmp_path / "decisions")], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE,
                               text=True)
    port = int(re.search(r"http://\S+:(\d+)", process.stdout.readline())[1])
    waited_for(lambda: answers(port))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_running_service_holds_its_decision_log_and_flushes_it(copied, tmp_path):
    registry, ids = copied
    promote(registry, ids[SIX])
    folder = tmp_path / "decisions"
    with forked(registry.path, tmp_path) as (port, _):
        with pytest.raises(RunError, match="another process is writing it"):
            DecisionLog(folder)
        shutil.rmtree(folder)
        waited_for(lambda: decision_status(port) == 503)  # the next flush finds that the file is gone


def decision_status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/act", b'{"observation": 1}', {"Content-Type": JSON})
    with closing(connection):
        return connection.getresponse().status


def test_every_decision_that_was_answered_is_recorded_after_a_kill(copied, tmp_path):
    registry, ids = copied
    promote(registry, ids[SIX])
    answered = []

    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with suppress(OSError, http.client.HTTPException):  # of the kill
            while True:
                connection.request("POST", "/v1/act", json.dumps({"observations": [1, 2]}), {"Content-Type": JSON})
                response = connection.getresponse()
                json.loads(response.read())
                answered.append(response.headers["x-request-id"])

    with forked(registry.path, tmp_path) as (port, child):
        asking = [threading.Thread(target=ask, args=(port,)) for _ in range(4)]
        for thread in asking:
            thread.start()
        waited_for(lambda: len(answered) > 200)
        child.process.kill()
        for thread in asking:
            thread.join()
    lines = (tmp_path / "decisions" / "decisions.jsonl").read_text().split("\n")[:-1]  # the last may be cut short
    recorded = Counter(json.loads(line)["request"] for line in lines)
    assert len(answered) > 200 and all(recorded[request] == 2 for request in answered)


@browser.needed
def test_the_page_shows_a_browser_what_the_service_answers(copied, models, tmp_path):
    registry, ids = copied
    promote(registry, ids[SIX])
    model, cell, action = models[SIX], 1, 1  # beside the hazard, and into it
    with forked(registry.path, tmp_path) as (port, _):
        document = browser.dumped(f"http://127.0.0.1:{port}/#cell={cell}&action={action}")
    found = Explainer(model).explain(cell, action)
    assert f"<code>{ids[SIX]}</code>" in document and found["verdict"] == "unsafe" and ">Unsafe.</p>" in document
    assert html.unescape(re.search(r'<p id="text">(.*?)</p>', document)[1]) == found["text"]
    rows = re.findall(r"<tr.*?</tr>", re.search(r'<tbody id="actions">(.*?)</tbody>', document, re.S)[1], re.S)
    assert [" ".join(html.unescape(re.sub("<.*?>", " ", row)).split()) for row in rows] == [
        " ".join([name, f"{q:.2f}".replace("-", "−"), f"{count}×" if count else "never",
                  f"{p:.3f}" if p >= 0.001 else "< 0.001", f"{100 * hazard:.2f}"])
        for name, q, count, p, hazard in zip(model.actions, found["q"], found["support"]["counts"],
                                             found["probabilities"], found["hazard"]["by_action"])]
    board = re.search(r'<svg id="map".*?</svg>', document, re.S)[0]
    turns = re.findall(r'class="arrow".*?rotate\((-?\d+)\)|class="(hazard|goal)"', board)
    turn = {0: "-90", 1: "90", 2: "180", 3: "0"}  # degrees of an arrow that points right
    assert ["".join(parts) for parts in turns] == [
        "hazard" if model.world.mdp.hazard[s] else "goal" if model.world.mdp.goal[s] else turn[int(a)]
        for s, a in enumerate(model.policy.act(np.arange(12)))]


SCENE = """
const pending = [], seen = {}, pause = () => new Promise(done => setTimeout(done, 5));
let tick;
window.setInterval = look => { tick = look; };
window.fetch = path => new Promise(give => pending.push({ path, give: async (answer, status = 200) => {
  give(new Response(typeof answer === "string" ? answer : JSON.stringify(answer), { status }));
  await pause();
} }));
const asked = path => {  // the oldest such request
  const found = pending.findIndex(request => request.path === path);
  return pending.splice(found, 1)[0];
};
const give = (path, ...answer) => asked(path).give(...answer);
const go = async hash => { location.hash = hash; await pause(); };
const ready = model => ({ ready: true, model, sound: true });
const note = name => {
  const text = id => document.getElementById(id).textContent, hidden = id => document.getElementById(id).hidden;
  seen[name] = { model: text("model"), trouble: text("trouble"), hint: text("hint"),
                 text: hidden("numbers") ? "" : text("text"),
                 waiting: document.getElementById("answer").className, asked: !hidden("asked") };
};
addEventListener("load", async () => {
  await give("/readyz", "Service Unavailable", 503);
  note("overload");
  tick();
  await give("/readyz", { ready: false, model: null, sound: true }, 503);
  note("empty");
  const look = async model => {
    await give("/readyz", ready(model));
    await give("/v1/map", { ...MAP, model });
    await give("/v1/models", MODELS);
  };
  tick();
  await look("A");
  await give("/v1/explain", { ...ANSWER, model: "A", text: "of A" });
  note("A");
  await go("#cell=1");
  note("pending");
  await go(`#cell=${MAP.board.terminal[0]}`);
  note("terminal");
  await give("/v1/explain", { ...ANSWER, model: "A", text: "late" });
  note("late");
  await go("#cell=1");
  await give("/v1/explain", { ...ANSWER, model: "B", text: "of B" });
  note("B under A's map");
  await look("B");
  await give("/v1/explain", { ...ANSWER, model: "B", text: "of B" });
  note("B");
  tick();
  tick();
  await give("/readyz", ready("C"));
  const older = [asked("/v1/map"), asked("/v1/models")];
  await look("D");
  await give("/v1/explain", { ...ANSWER, model: "D", text: "of D" });
  await older[0].give({ ...MAP, model: "C" });
  await older[1].give(MODELS);
  note("D");
  seen.left = pending.map(request => request.path);
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
});
"""


@browser.needed
def test_the_page_shows_one_models_answers_under_its_own_map_whatever_comes_when(client, tmp_path):
    given = {"MAP": client.get("/v1/map").json(), "MODELS": client.get("/v1/models").json(),
             "ANSWER": client.post("/v1/explain", json={"observation": 1}).json()}
    script = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items()) + SCENE
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("<script>", f"<script>{script}</script>\n<script>", 1), encoding="utf-8")
    document = browser.dumped(page.as_uri())
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', document, re.S)[1]))
    assert seen.pop("left") == []
    assert seen["overload"]["trouble"] == "The service cannot answer: status 503."
    assert "No model" not in seen["overload"]["model"]
    assert seen["empty"]["model"].startswith("No model is in service yet.") and seen["empty"]["trouble"] == ""
    assert [name for name in seen if seen[name]["waiting"]] == ["pending"]
    assert [name for name in seen if not seen[name]["asked"]] == ["overload", "empty"]
    assert {name: shown["text"] for name, shown in seen.items() if shown["text"]} == {
        "A": "of A", "pending": "of A", "B": "of B", "D": "of D"}
    assert seen["late"] == seen["terminal"] and seen["terminal"]["hint"].startswith("An episode ends here")
    assert seen["B under A's map"]["hint"] == "Another model was put into service just now: ask again."
    assert all(seen[name]["model"].startswith(f"Model {name}:") for name in "ABD")


@pytest.mark.parametrize("options, words", [
    (["--host", "0.0.0.0"], "give a token"),
    (["--host", "::"], "give a token"),
    (["--token-env", "NOT_THERE"], "must hold a token"),
    (["--token-env", "SHORT"], "at least 16"),
    (["--port", "70000"], "from 0 to 65535"),
    (["--host", "no such host"], "cannot be listened at"),
    (["--keep", "0"], "--keep must be at least 1"),
    (["--decisions", "/dev/null/x"], "cannot be written"),
])
def test_bad_settings_are_refused_in_a_sentence(filled, options, words, capsys, monkeypatch):
    monkeypatch.setenv("SHORT", "short")
    assert serve.main([str(filled[0]), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_what_is_no_registry_is_refused(tmp_path, capsys):
    assert serve.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_port_in_use_is_refused(filled, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([str(filled[0]), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened at" in capsys.readouterr().err
