"""The Telegram bot as a process, between a stand-in of the Bot API and one of the service."""

import asyncio
import email
import email.policy
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("telegram")

from cql.commands import bot as bot_command
from cql.deploy import telegram_bot as bot
from cql.deploy.map_picture import map_picture  # here, before pictures are blank
from cql.deploy.telegram_bot import Field, NoAnswer, Service, understood
from tests.faults import Child

pytestmark = pytest.mark.slow
TOKEN = "12345:STAND-IN_of-a-token"
SERVICE_TOKEN = "stand-in-of-the-service-token"
ROOT = Path(__file__).parent.parent
MAP = {  # S . / . H / . G, three rows and two columns; actions down and right
    "model": "ab12", "member": "cql-a6-s42-d42", "actions": ["down", "right"],
    "observations": {"type": "integer", "minimum": 0, "maximum": 5},
    "board": {"rows": 3, "columns": 2, "moves": [[1, 0], [0, 1]], "hazard": [3], "goal": [5], "terminal": [3, 5],
              "start": [0], "cells": [0, 1, 2, 3, 4, 5], "greedy": [0, 0, 0, 0, 1, 0],
              "counts": [[5, 2], [0, 4], [3, 0], [0, 0], [0, 0], [0, 0]]}}
FIELD = Field(MAP)
STATES = Field(MAP | {"board": None})
VECTORS = Field(MAP | {"board": None, "actions": ["action 0", "action 1"],
                       "observations": {"type": "array", "minItems": 2, "maxItems": 2}})
COORDINATES = Field(MAP | {"board": MAP["board"] | {"cells": [[x, y] for x in (-1, 0, 1) for y in (-1, 1)]}})


@pytest.mark.parametrize("field, text, observation, action", [
    (FIELD, "2 1", 5, None), (FIELD, "(2,0)", 4, None), (FIELD, "/cell 2 0", 4, None), (FIELD, "4", 4, None),
    (FIELD, "/cell@some_bot 1, 0 right", 2, 1), (FIELD, "Row 1, column 0: DOWN!", 2, 0), (FIELD, "state 4 Right", 4, 1),
    (FIELD, "\n 0\t1 \n", 1, None), (FIELD, "1 1.", 3, None), (COORDINATES, "1 0", [0, -1], None),
    (COORDINATES, "5 right", [1, 1], 1), (STATES, "4 right", 4, 1), (STATES, "/cell 4", 4, None),
    (VECTORS, "0.5 -1.25", [0.5, -1.25], None), (VECTORS, "(3, 0.5) Action 1", [3.0, 0.5], 1),
    (VECTORS, "0.5 −1.25", [0.5, -1.25], None), (VECTORS, ".5 -.5", [0.5, -0.5], None),
    (VECTORS, "1e-3 2.", [0.001, 2.0], None), (VECTORS, "-2.5E+2 +1 action 1?", [-250.0, 1.0], 1),
])
def test_what_a_message_asks(field, text, observation, action):
    asked = understood(text, field)
    assert asked == {"observation": observation} | ({} if action is None else {"action": action})


@pytest.mark.parametrize("field, text, sentence", [
    (FIELD, "hello",
     "Send a cell as row and column, such as “1 1”: rows go from 0 to 2, columns from 0 to 1, counted from "),
    (FIELD, "", "Send a cell"), (FIELD, "1 1 1", "Send a cell"),
    (FIELD, "0.5 1", "Send a cell"), (FIELD, "3 0", "There is no row 3: they go from 0 to 2."),
    (FIELD, "0 -1", "There is no column -1: they go from 0 to 1."),
    (FIELD, "6", "There is no state 6: they go from 0 to 5."),
    (FIELD, "-1", "There is no state -1: they go from 0 to 5."),
    (FIELD, "9" * 4000, "There is no state 99999999999999999999: they go from 0 to 5."),
    (FIELD, "1 0 up", "There is no action “up”: they are down, right."),
    (FIELD, "1 0 " + "x" * 99, "There is no action “xxxxxxxxxxxxxxxxxxxx”: they are down, right."),
    (STATES, "1 1", "Send the number of a state, from 0 to 5."),
    (STATES, "6", "There is no state 6: they go from 0 to 5."),
    (VECTORS, "1", "Send the 2 numbers of an observation, such as “0.5 0.5”."),
    (VECTORS, "2 -1e999", "Send the 2 numbers"), (FIELD, "1 −1", "There is no column -1: they go from 0 to 1."),
    (FIELD, "1e0 1", "Send a cell"),
])
def test_what_is_unclear_gets_one_sentence(field, text, sentence):
    with pytest.raises(NoAnswer) as caught:
        understood(text, field)
    assert str(caught.value).startswith(sentence) and str(caught.value).count(". ") == 0


@pytest.mark.parametrize("text",
                         ["½", "1 ½", "1²", "①", "Ⅷ", "٣ ١", "１ １", "1 – 1", "7-3", "1/1", "1.2.3 1", "1 1\u200b",
                          "1 0 😀 down", "1_1", "--1 1", "1 -", "/1 0", "/cell1 0", "1,5 2,5", "1e 2 e", "r1c1",
                          "0x1 1", "1 \ud800", "1 1\nx", "1" * 4000 + "x", "1 " * 2000 + "x", "row" * 1300])
@pytest.mark.parametrize("field", [FIELD, VECTORS])
def test_what_is_not_quite_a_number_is_refused_whole(field, text):
    with pytest.raises(NoAnswer) as caught:
        understood(text, field)
    assert str(caught.value) in (field.usage, field.help) or "There is no action" in str(caught.value)


@pytest.mark.parametrize("field, example",
                         [(FIELD, "“1 1 down”"), (STATES, "“0 down”"), (VECTORS, "“0.5 0.5 action 0”")])
def test_the_example_in_the_help_is_understood(field, example):
    assert example in field.help and field.usage in field.help
    assert understood(example, field)["action"] == 0


def test_with_the_service_itself(deployable, tmp_path):
    for package in ("fastapi", "prometheus_client"):
        pytest.importorskip(package)
    import httpx

    from cql.deploy.app import create_app
    from cql.deploy.gate import Limits
    from cql.deploy.model import Model
    from cql.deploy.store import Registry

    registry = Registry(tmp_path / "registry")
    id = registry.register(deployable, "cql-a6-s42-d42", "tester")
    registry.promote(id, "tester", "to be asked", Limits(max_hazard=1.0, min_return=-1000.0, max_unsupported=1.0))
    model = Model.open(deployable, "cql-a6-s42-d42")

    async def talk(*texts):
        app = create_app(registry)
        async with app.router.lifespan_context(app), httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://service") as client:
            service = Service(client)
            field = await service.field()
            return field, [await service.answer(field, understood(text, field)) for text in texts]

    field, (free, asked, hazard) = asyncio.run(talk("0 1", "0 1 down", "1 1"))
    assert field.model == id and field.actions == ["up", "down", "left", "right"] and field.sizes == (3, 4)
    chosen = int(model.policy.act(1))
    counts = model.counts(1)
    name = field.actions[chosen].capitalize()
    line = f"{'↑↓←→'[chosen]} {name}: in the data, {counts[chosen]} of {counts.sum()} times here."
    assert free[0] == line and "row 0, column 1" in free[1] and free[2] == map_picture(model, [1.0])
    assert chosen != 1 and asked[0] == f"{line}\n↓ Down: unsafe."  # the hazard is below
    assert asked[2] == map_picture(model, [1.0], 1) != free[2]
    assert hazard[0] == "" and "ends" in hazard[1] and hazard[2] == map_picture(model, [5.0])


# ------------------------------------------------------------------------------------------------------ as a process


@contextmanager
def serving(answer):
    """An HTTP server on a free port: ``answer(method, path, headers, body)`` -> status, body and headers, if any.
    Yields its address."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, contents, *headers = answer(self.command, self.path, self.headers, body)
            contents = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
            self.send_response(status)
            for name, value in [("Content-Length", str(len(contents))), *headers]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(contents)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Telegram:
    """A stand-in of the Bot API: hands out updates, records what the bot sends."""

    def __init__(self):
        self.updates, self.sent, self.methods, self.number = queue.Queue(), queue.Queue(), set(), 0

    def __call__(self, _, path, headers, body):
        token, _, method = path.removeprefix("/bot").partition("/")
        self.methods.add(method)
        if token != TOKEN:
            return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}
        return 200, {"ok": True, "result": self.result(method, fields_of(headers, body))}

    def result(self, method, fields):
        if method == "getMe":
            return {"id": 12345, "is_bot": True, "first_name": "Stand-in", "username": "standin_bot"}
        if method == "getUpdates":
            assert json.loads(fields["allowed_updates"]) == ["message"]
            try:
                return [self.updates.get(timeout=0.2)]
            except queue.Empty:
                return []
        if method in ("sendMessage", "sendPhoto"):
            self.sent.put((method, fields))
            return {"message_id": 1, "date": 1, "chat": {"id": int(fields["chat_id"]), "type": "private"}}
        return True

    def ask(self, text, answers=1, chat=7, **more):
        """The ``(method, fields)`` that the bot sends when someone writes this."""
        self.number += 1
        message = {"message_id": self.number, "date": 1, "chat": {"id": chat, "type": "private", "first_name": "A"},
                   **more}
        if text is not None:
            command = {"type": "bot_command", "offset": 0, "length": len(text.partition(" ")[0])}
            message |= {"text": text, "entities": [command] if text.startswith("/") else []}
        self.updates.put({"update_id": self.number, "message": message})
        got = [self.sent.get(timeout=60) for _ in range(answers)]
        assert all(fields["chat_id"] == str(chat) for _, fields in got) and self.sent.empty()
        return got[0] if answers == 1 else got

    def says(self, text, **more):
        method, fields = self.ask(text, **more)
        assert method == "sendMessage"
        return fields["text"]


def fields_of(headers, body):
    kind = headers.get("Content-Type", "")
    if kind.startswith("multipart/"):
        message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
        return {part.get_param("name", header="content-disposition"):
                part.get_payload(decode=True) if part.get_filename() else part.get_payload(decode=True).decode()
                for part in message.iter_parts()}
    return dict(urllib.parse.parse_qsl(body.decode()))


class StandInService:
    """What the service answers on MAP; ``faults`` are answers instead, by path."""

    def __init__(self):
        self.faults, self.asked = {}, []

    def __call__(self, method, path, headers, body):
        if headers["Authorization"] != f"Bearer {SERVICE_TOKEN}":
            return 401, {"detail": "a valid token is needed."}
        body = json.loads(body or b"null")
        self.asked.append((method, path, body))
        path, _, query = path.partition("?")
        if path in self.faults:
            return self.faults[path]
        if path == "/v1/map":
            return 200, MAP
        if path == "/v1/map.png":
            return 200, f"picture of {query}".encode(), ("X-Model", "ab12")
        state = body["observation"]
        action, counts = MAP["board"]["greedy"][state], MAP["board"]["counts"][state]
        if path == "/v1/act":
            return 200, {"model": "ab12", "decisions": [{"action": action, "name": MAP["actions"][action], "q": [1, 0],
                                                         "count": counts[action], "supported": counts[action] > 0}]}
        asked = body.get("action", action)
        return 200, {"model": "ab12", "text": f"Because of {asked}.", "support": {"state_count": sum(counts)},
                     "action": {"index": asked, "name": MAP["actions"][asked]},
                     "verdict": "terminal" if state in (3, 5) else "chosen" if asked == action else "worse"}


@contextmanager
def running(service, telegram, *arguments):
    """The bot as a process of its own, which it yields."""
    environment = os.environ | {"TELEGRAM_BOT_TOKEN": TOKEN, "GLASSBOX_TOKEN": SERVICE_TOKEN, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cql", "bot", service, "--api-base", f"{telegram}/bot", *arguments]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def forked(folder, service, telegram, token=TOKEN):
    """The bot as a fork of this process, which it yields."""
    child = Child(bot_command.main, [service, "--api-base", f"{telegram}/bot"], folder, TELEGRAM_BOT_TOKEN=token,
                  GLASSBOX_TOKEN=SERVICE_TOKEN)
    try:
        yield child
    finally:
        child.process.kill()
        child.wait()


@pytest.fixture(scope="module")
def talking():
    """``(telegram, service)`` with the bot between them. In the end it must stop, its tokens nowhere in its output."""
    telegram, service = Telegram(), StandInService()
    with (serving(telegram) as api, serving(service) as address,
          running(address, api, "--chats", "7", "-1008") as process):
        yield telegram, service
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "answering as @standin_bot\n"
    assert "INFO" in err and "WARNING" in err and "Traceback" not in err
    assert not any(secret in out + err for secret in (TOKEN, "STAND-IN_of", SERVICE_TOKEN))
    assert {"getMe", "deleteWebhook", "getUpdates"} <= telegram.methods


@pytest.fixture
def faults(talking):
    faults = talking[1].faults
    yield faults
    faults.clear()


@pytest.mark.parametrize("command", ["/start", "/help", "/help@standin_bot"])
def test_start_and_help_say_what_to_send(talking, command):
    assert talking[0].says(command) == FIELD.help
    assert "“1 1”" in FIELD.help and "“1 1 down”" in FIELD.help and "down, right" in FIELD.help


@pytest.mark.parametrize("text, caption, asked", [
    ("0 0", "↓ Down: in the data, 5 of 7 times here.\n\nBecause of 0.", {"observation": 0}),
    ("0 0 right", "↓ Down: in the data, 5 of 7 times here.\n→ Right: worse.\n\nBecause of 1.",
     {"observation": 0, "action": 1}),
    ("/cell 0 1", "↓ Down: never in the data, which were here 4 times.\n\nBecause of 0.", {"observation": 1}),
    ("4", "→ Right: the data were never here.\n\nBecause of 1.", {"observation": 4}),
    ("1 1", "Because of 0.", {"observation": 3}),  # a hazard: nothing to decide
])
def test_a_position_gets_action_support_explanation_and_map(talking, text, caption, asked):
    telegram, service = talking
    service.asked.clear()
    method, fields = telegram.ask(text)
    assert method == "sendPhoto" and fields["caption"] == caption
    query = urllib.parse.urlencode(asked)
    assert fields["photo"] == f"picture of {query}".encode()
    assert sorted(service.asked, key=str) == sorted([
        ("GET", "/v1/map", None), ("POST", "/v1/act", {"observation": asked["observation"]}),
        ("POST", "/v1/explain", asked), ("GET", f"/v1/map.png?{query}", None)], key=str)


@pytest.mark.parametrize("text, sentence",
                         [("where am I?", FIELD.usage), ("9 9", "There is no row 9: they go from 0 to 2."),
                          ("1 0 fly", "There is no action “fly”: they are down, right.")])
def test_wrong_input_gets_one_sentence_and_the_service_no_question(talking, text, sentence):
    telegram, service = talking
    service.asked.clear()
    assert telegram.says(text) == sentence
    assert service.asked == [("GET", "/v1/map", None)]


def test_a_message_without_text_gets_the_usage(talking):
    assert talking[0].says(None, location={"latitude": 1.0, "longitude": 2.0}) == FIELD.usage


@pytest.mark.parametrize("path, fault, sentence", [
    ("/v1/map", (503, {"detail": "no model is in service."}), "The service cannot answer: no model is in service."),
    ("/v1/act", (422, {"detail": "an observation is odd."}), "The service refuses: an observation is odd."),
    ("/v1/explain", (500, {}), "The service cannot answer: status 500."),
    ("/v1/explain", (200, b"<html>"), "The service answers in a form that this bot does not know."),
    ("/v1/map.png", (503, {"detail": "32 pictures wait."}), "The service cannot answer: 32 pictures wait."),
    ("/v1/map.png", (200, b"", ("X-Model", "cd34")), "Another model was put into service just now: ask again."),
    ("/v1/map.png", (200, b""), "The service answers in a form that this bot does not know."),
    ("/v1/act", (200, {"model": "ab12"}), "The service answers in a form that this bot does not know."),
    ("/v1/map", (200, [1]), "The service answers in a form that this bot does not know."),
    ("/v1/explain", (200, {"model": "cd34", "text": "", "support": {}}),
     "Another model was put into service just now: ask again."),
])
def test_a_service_that_fails_gets_one_sentence(talking, faults, path, fault, sentence):
    faults[path] = fault
    assert talking[0].says("0 0") == sentence
    if path == "/v1/map":
        assert talking[0].says("/help") == sentence


def test_without_a_grid_there_is_no_picture(talking, faults):
    faults["/v1/map"] = (200, MAP | {"board": None})
    assert talking[0].says("0") == "↓ Down: in the data, 5 of 7 times here.\n\nBecause of 0."


def test_long_explanations_follow_the_picture_in_parts(talking, faults):
    long = " ".join(f"word{n}" for n in range(1000))
    faults["/v1/explain"] = (200,
                             {"model": "ab12", "text": long, "support": {"state_count": 7},
                              "action": {"index": 0, "name": "down"}, "verdict": "chosen"})
    (first, photo), *rest = talking[0].ask("0 0", answers=3)
    assert first == "sendPhoto" and photo["caption"] == "↓ Down: in the data, 5 of 7 times here."
    assert " ".join(fields["text"] for _, fields in rest) == long


def test_other_chats_are_refused(talking):
    telegram, service = talking
    service.asked.clear()
    for text in ("0 0", "/start"):
        assert telegram.says(text, chat=8) == "This bot does not answer in this chat, whose ID is 8."
    assert service.asked == [] and telegram.ask("0 0", chat=-1008)[0] == "sendPhoto"


def test_a_service_that_is_down_gets_one_sentence_and_no_chats_means_all(tmp_path):
    telegram = Telegram()
    with serving(telegram) as api, forked(tmp_path, "http://127.0.0.1:9", api) as child:
        assert telegram.says("0 0", chat=99) == "The service cannot be reached: try again later."
        child.send_signal(signal.SIGINT)
        status, err = child.wait(60)
    assert status == 0 and child.printed.read_text() == "answering as @standin_bot, in every chat\n"
    assert "Traceback" not in err


def test_a_failure_of_the_bot_itself_is_told_and_logged(tmp_path):
    telegram, service = Telegram(), StandInService()
    service.faults["/v1/map"] = (200, MAP | {"board": MAP["board"] | {"cells": [0]}})  # fewer than it has
    with serving(telegram) as api, serving(service) as address, forked(tmp_path, address, api) as child:
        assert telegram.says("0 1 down") == "Something went wrong here: ask again later."
        service.faults.clear()
        assert telegram.ask("0 0 down")[0] == "sendPhoto"
        child.send_signal(signal.SIGTERM)
        err = child.wait(60)[1]
    assert err.count("a message was not answered") == err.count("Traceback") == 1
    assert not (TOKEN in err or SERVICE_TOKEN in err)


def test_an_interrupt_before_the_bot_runs_ends_it_without_a_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", TOKEN)
    monkeypatch.setattr(bot, "application", interrupted)
    assert bot_command.main(["http://x"]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_refused_token_is_not_shown(tmp_path):
    wrong = "999:WRONG-token"
    with serving(Telegram()) as api, forked(tmp_path, "http://127.0.0.1:9", api, token=wrong) as child:
        status, err = child.wait(60)
    assert status == 2
    last = "error: the Bot API cannot be used (The token `<token>` was rejected by the server.)."
    assert err.splitlines()[-1] == last
    assert "WRONG" not in child.printed.read_text() + err and "Traceback" not in err


def test_records_are_written_without_tokens_in_tracebacks_too():
    from telegram.error import NetworkError

    def written(error):
        try:
            raise error
        except Exception:
            address = f"http://host/bot{TOKEN}/getMe"
            record = logging.LogRecord("x", logging.ERROR, "file", 1, "asked %s", (address,), sys.exc_info())
        return bot.Discreet([TOKEN, ""]).format(record)

    text = written(ValueError(f"of {TOKEN}"))
    assert TOKEN not in text and "asked http://host/bot<token>/getMe\nTraceback" in text
    assert text.endswith("ValueError: of <token>")
    assert written(NetworkError(f"at {TOKEN}")).endswith("getMe\nNetworkError: at <token>")


@pytest.mark.parametrize("arguments, token, sentence", [
    (["http://x"], "",
     "error: the environment variable TELEGRAM_BOT_TOKEN must hold the bot's token, as 123456:ABC….\n"),
    (["http://x"], "no token", "error: the environment variable TELEGRAM_BOT_TOKEN must hold"),
    (["ftp://x"], TOKEN, "error: ftp://x is no address: give one that begins with http:// or https://.\n"),
    (["http://x", "--api-base", "here"], TOKEN, "error: here is no address"),
])
def test_bad_settings_are_refused_in_one_sentence(monkeypatch, capsys, arguments, token, sentence):
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", token)
    assert bot_command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_without_the_extra_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "telegram.error", None)
    assert bot_command.main(["http://x"]) == 2
    assert "error: the bot needs the extra telegram: pip install 'glassbox-cql[telegram]'" in capsys.readouterr().err
