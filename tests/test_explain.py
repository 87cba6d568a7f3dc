"""Explanations: the gap's parts by hand and at the fixed point, hazards by simulation, words, command, hook."""

import json
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from cql.commands import explain as command
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.explanation import UNSAFE, Explainer
from cql.deploy.explanation_text import number, odds, percent, times
from cql.deploy.language_model import KEY, AskError, ask
from cql.deploy.model import Model
from cql.errors import RunError
from cql.exact import cql_fixed_point
from cql.members import Member
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.world import World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(deployable):
    return Model.open(deployable, "cql-a6-s42-d42")


def explain(model, observation, action=None):
    return Explainer(model).explain(observation, action)


def table_policy(q, algorithm="cql", alpha=6.0):
    """A network that is the table q [S, A]."""
    q = torch.tensor(q, dtype=torch.float32)
    return Policy(PopulationMLP(*q.shape, (), True), [q[None]], algorithm, alpha, 42, 42)


def small_model(q, td_loss="mse", algorithm="cql", alpha=4.0, gamma=0.5):
    """No environment; state 0 logged 3 times with action 0, once with action 1; state 2 never."""
    dataset = OfflineDataset.from_arrays(
        observations=np.array([0, 0, 0, 0, 1]), actions=np.array([0, 0, 0, 1, 0]), rewards=np.array([1.0, 1, 4, 0, 7]),
        next_observations=np.array([1, 1, 1, 1, 2]), terminations=np.array([False, False, True, False, True]),
        metadata={"num_states": 3, "num_actions": 3})
    policy = table_policy(q, algorithm, alpha if algorithm == "cql" else None)
    member = Member(algorithm, policy.alpha, 42, 42)
    return Model(member, policy, dataset, Config(td_loss=td_loss, gamma=gamma), policy.alpha, World.around(None))


# ------------------------------------------------------------------------------------------------------ the gap's parts


def test_the_gap_by_hand():
    """y(0, 0) = (1 + 3 + 1 + 3 + 4) / 3 = 4, y(0, 1) = 3 with max Q(1, .) = 6; p = (1, 1, 2) / 4; beta = 3/4, 1/4."""
    q = [[np.log(1.0), np.log(1.0), np.log(2.0)], [6.0, 0, 0], [0, 0, 0]]
    explainer = Explainer(small_model(q))
    assert explainer.targets[0, :2].tolist() == pytest.approx([4, 3]) and np.isnan(explainer.targets[0, 2])
    found = explainer.explain(0, 1)
    assert found["chosen"]["index"] == 2 and found["gap"]["difference"] == pytest.approx(np.log(2))
    assert found["gap"]["td"] is found["gap"]["penalty"] is found["gap"]["residual"] is None  # 2 was never taken
    # with action 0 chosen instead: p = (2, 1, 1) / 4, penalties 2 (1 - p / beta) = 2/3 and 0
    q[0] = [np.log(2.0), 0, 0]
    gap = Explainer(small_model(q)).explain(0, 1)["gap"]
    assert gap["td"] == pytest.approx(1) and gap["penalty"] == pytest.approx(2 / 3, abs=1e-6)
    assert gap["residual"] == pytest.approx(np.log(2) - 5 / 3, abs=1e-6)
    half = Explainer(small_model(q, "half_mse")).explain(0, 1)["gap"]
    assert half["penalty"] == pytest.approx(4 / 3, abs=1e-6)  # alpha counts twice
    huber = Explainer(small_model(q, "huber")).explain(0, 1)["gap"]
    assert huber["residual"] is None and huber["td"] + huber["penalty"] == pytest.approx(huber["difference"], abs=1e-12)


@pytest.mark.parametrize("td_loss", ["mse", "half_mse"])
def test_at_the_exact_fixed_point_nothing_is_left_unfitted(model, td_loss):
    """The oracle's Q as a network: the penalty is the whole rest of the gap, on every pair of logged actions."""
    empirical, counts = model.world.empirical(model.dataset)
    config = replace(model.config, td_loss=td_loss)
    q = cql_fixed_point(empirical, counts, [6.0], config.gamma, td_loss).q[0]
    q = np.where(np.isfinite(q), q, -1e4)
    q[~counts.any(-1)] = 0
    explainer = Explainer(replace(model, policy=table_policy(q), config=config))
    compared, penalties = 0, []
    for s, a in np.argwhere(counts > 0):
        gap = explainer.explain(int(s), int(a))["gap"]
        assert gap["residual"] == pytest.approx(0, abs=2e-4)  # float32 of Q, and p / beta of it
        penalties.append(abs(gap["penalty"]))
        compared += 1
    assert compared > 20 and max(penalties) > 1


def test_the_parts_add_up_and_the_json_is_plain(model):
    explainer, split = Explainer(model), 0
    for s, a in np.ndindex(model.world.mdp.num_states, 4):
        found = explainer.explain(s, a)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        gap = found["gap"]
        assert (gap["td"] is None) == (0 in [found["support"]["counts"][i] for i in (a, found["chosen"]["index"])])
        if gap["td"] is not None:
            split += 1
            assert gap["td"] + gap["penalty"] + gap["residual"] == pytest.approx(gap["difference"], abs=1e-12)
    assert split > 20


# ---------------------------------------------------------------------------------------------------------- the hazard


def test_hazard_and_return_by_simulation(model):
    state, action, episodes = 1, 1, 4000  # straight at the hazard below
    found = explain(model, state, action)
    env, rng = model.world.environment.unwrapped, np.random.default_rng(0)
    hazards, returns = 0, []
    for _ in range(episodes):
        s, a, total = state, action, 0.0
        for _ in range(model.world.horizon):
            outcomes = env.P[s][a]
            _, s, reward, end = outcomes[rng.choice(len(outcomes), p=[o[0] for o in outcomes])]
            total += reward
            if end:
                hazards += env.hazards[s]
                break
            a = model.policy.act(s)
        returns.append(total)
    p = found["hazard"]["action"]
    assert abs(hazards / episodes - p) < 4 * np.sqrt(p * (1 - p) / episodes)
    assert abs(np.mean(returns) - found["return"]["action"]) < 4 * np.std(returns) / np.sqrt(episodes)
    assert found["hazard"]["action_next"] == pytest.approx(0.9 + 0.1 / 4)
    assert found["hazard"]["by_action"][found["chosen"]["index"]] == found["hazard"]["chosen"]


def test_verdicts_are_what_the_numbers_say(model):
    explainer, seen = Explainer(model), set()
    for s, a in np.ndindex(model.world.mdp.num_states, 4):
        found = explainer.explain(s, a)
        verdict, hazard = found["verdict"], found["hazard"]
        seen.add(verdict)
        if model.world.mdp.terminal[s]:
            assert verdict == "terminal" and "nothing to decide" in found["text"]
            continue
        assert (verdict == "unsafe") == (hazard["action"] > hazard["chosen"] + UNSAFE)
        assert f"row {s // 4}, column {s % 4} " in found["text"] and found["cell"] == [s // 4, s % 4]
        assert found["action"]["name"] in found["text"] and 3 <= found["text"].count(". ") + 1 <= 7
        if verdict == "worse":
            assert found["support"]["supported"] and found["gap"]["difference"] > 0
            assert found["return"]["action"] < found["return"]["chosen"]
        if verdict == "chosen":
            assert a == model.policy.act(s) and found["gap"]["difference"] == 0
    assert {"terminal", "unsafe", "worse", "chosen"} <= seen


# ----------------------------------------------------------------------------------------------------------- the words


def test_words_without_a_model():
    q = [[3.0, 2.0, 1.0], [6.0, 0, 0], [0, 0, 1.0]]
    model = small_model(q)
    worse = explain(model, 0, 1)
    assert worse["verdict"] == "worse" and worse["hazard"] is worse["return"] is worse["cell"] is None
    assert worse["text"].startswith(
        "In state 0, taking action 1 is worse than taking action 0, which the model chooses. "
        "The data were here 4 times and took this action once (25 %), action 0 3 times.")
    assert worse["text"].endswith("How safe it is cannot be said: no exact model of the environment is known.")
    never = explain(model, 0, 2)
    assert never["verdict"] == "unsupported" and never["support"]["share"] == 0
    assert "never took this action; what they took was action 0 3 times and action 1 once." in never["text"]
    assert "With no data behind it, that rating is a guess" in never["text"]
    alone = explain(model, 1)
    assert alone["verdict"] == "chosen" and "The data were here once and took this action that time." in alone["text"]
    nowhere = explain(model, 2)
    assert nowhere["verdict"] == "unsupported" and nowhere["support"]["share"] is None
    assert ("is what the model chooses, but nothing in its data supports that. The data never came here"
            in nowhere["text"])
    tie = explain(small_model([[3.0, 3.0, 1.0], [6.0, 0, 0], [0, 0, 0]]), 0, 1)
    assert tie["verdict"] == "as good" and "no different from action 0" in tie["text"]


def test_words_on_a_grid(model):
    unsafe = explain(model, 1, 1)["text"]
    for words in ("moving down is unsafe", "The model chooses to move ", "with a probability of 9"):
        assert words in unsafe
    copy = replace(model, policy=table_policy(np.tile([0.0, 9.0, 0.0, 1.0], (12, 1))))  # everywhere down
    assert "would be safer, at" in explain(copy, 1)["text"]
    corner = explain(replace(model, policy=table_policy(np.tile([1.0, 0.0, 0.5, 0.0], (12, 1)))), 0, 2)
    assert corner["support"]["supported"] and corner["verdict"] == "as good"  # both stay in the corner
    assert "moving left is as good as the model's choice, moving up, though the model rates it lower." in corner["text"]


def test_behaviour_cloning_has_no_ratings(deployable):
    found = explain(Model.open(deployable, "bc-s42-d42"), 0, 0)
    assert found["q"] is None and found["gap"] is None and sum(found["probabilities"]) == pytest.approx(1)
    assert "The model imitates the data and gives it a probability" in found["text"] and "rates" not in found["text"]


def test_numbers_as_people_write_them():
    assert [percent(p) for p in (0, 1e-9, 0.0021, 0.041, 0.38, 0.9962, 0.99999, 1)] == [
        "0 %", "below 0.01 %", "0.21 %", "4.1 %", "38 %", "99.62 %", "99.99 %", "100 %"]
    assert [odds(p) for p in (1 / 480, 0.0946, 0.5)] == ["0.21 % (1 in 480)", "9.5 %", "50 %"]
    assert [number(x) for x in (-0.001, -1.239, 12345.6)] == ["0.00", "−1.24", "12,346"]
    assert [times(n) for n in (0, 1, 2, 3, 1000)] == ["never", "once", "twice", "3 times", "1,000 times"]


# --------------------------------------------------------------------------------------------------------- the command


def run(capsys, *arguments):
    try:
        status = command.main([str(x) for x in arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_the_command(deployable, capsys):
    here = deployable, "--member", "cql-a6-s42-d42"
    status, out, err = run(capsys, *here, "--state", 1, "--action", "Down")
    assert (status, err) == (0, "") and "moving down is unsafe" in out and "row 0, column 1" in out
    assert run(capsys, *here, "--cell", 0, 1, "--action", 1)[1] == out
    status, out, _ = run(capsys, *here, "--state", 1, "--action", 1, "--json")
    found = json.loads(out)
    assert status == 0 and found["action"] == {"index": 1, "name": "down"} and "language_model" not in found


@pytest.mark.parametrize("arguments, message", [
    (["--state", "12"], "an observation of this model is an integer from 0 to 11"),
    (["--cell", "3", "0"], "the grid has rows 0 to 2 and columns 0 to 3"),
    (["--state", "0", "--action", "4"], "there is no action '4': give a number from 0 to 3, or up, down, left, right"),
    (["--state", "0", "--action", "dwn"], "there is no action 'dwn'"),
    (["--observation", "0.5"], "the observations of this model are states"),
    (["--state", "0", "--member", "cql-a7"], "has no member cql-a7"),
    (["--state", "0", "--cell", "0", "0"], "not allowed with"),
    (["--state", "0", "--ask", "http://localhost"], "--ask and --model go together"),
])
def test_bad_input_gets_one_sentence(deployable, capsys, arguments, message):
    member = [] if "--member" in arguments else ["--member", "cql-a6-s42-d42"]
    status, out, err = run(capsys, deployable, *member, *arguments)
    assert (status, out) == (2, "") and message in err


@pytest.mark.parametrize("observation, action",
                         [(True, 0), (1.5, 0), ([1], 0), ("1", 0), (10**30, 0), (0, 4), (0, -1), (0, True)])
def test_what_is_no_observation_or_action(model, observation, action):
    with pytest.raises(RunError):
        explain(model, observation, action)


# ------------------------------------------------------------------------------------------------------------ the hook


@pytest.fixture
def server(monkeypatch):
    """A stand-in: `server.reply(handler)` answers, `server.seen` has (path, headers, body) of every request."""
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):  # the library's own: they must go nowhere
        monkeypatch.setenv(name, "another-secret")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            stand_in.seen.append((self.path, self.headers, json.loads(body)))
            try:
                stand_in.reply(self)
            except OSError:  # the client has gone
                pass

        def do_GET(self):
            stand_in.seen.append((self.path, self.headers, None))

        def log_message(self, *_):
            pass

    stand_in = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.daemon_threads, stand_in.seen = True, []
    stand_in.url = f"http://127.0.0.1:{stand_in.server_address[1]}/v1"
    threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield stand_in
    stand_in.shutdown()
    stand_in.server_close()


JSON = ("Content-Type", "application/json")


def replying(status, body, *headers):
    def reply(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
    return reply


def completion(text):
    return replying(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode(), JSON)


def asking(capsys, deployable, server, *more):
    return run(capsys, deployable, "--member", "cql-a6-s42-d42", "--state", 1, "--action", 1, "--ask", server.url + "/",
               "--model", "tiny", *more)


def test_the_language_model_gets_the_numbers_and_its_words_are_marked(deployable, capsys, server, monkeypatch, model):
    monkeypatch.setenv(KEY, "secret-key")
    server.reply = completion("Do \x1b[31mnot.\nReally.")
    status, out, err = asking(capsys, deployable, server)
    assert (status, err) == (0, "") and out.endswith("which may err:\nDo [31mnot.\nReally.\n")
    (path, headers, body), = server.seen
    assert path == "/v1/chat/completions" and body["model"] == "tiny"
    assert headers.get_all("Authorization") == ["Bearer secret-key"] and "another-secret" not in str(headers)
    assert json.loads(body["messages"][1]["content"]) == explain(model, 1, 1)
    for name in (KEY, "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name)
    status, out, _ = asking(capsys, deployable, server, "--json")
    assert json.loads(out)["language_model"] == {"name": "tiny", "text": "Do [31mnot.\nReally."}
    assert "Authorization" not in server.seen[1][1] and "secret" not in out + str(server.seen[1][1])


@pytest.mark.parametrize("reply, message", [
    (replying(500, b"secret-key"), "no chat completion (500)"),
    (replying(429, b"{}", JSON, ("Retry-After", "0")), "no chat completion (429)"),  # asked once: it may cost
    (replying(200, b"\xff{garbage", JSON), "no chat completion ("),
    (replying(200, b'{"choices": []}', JSON), "no chat completion (IndexError)"),
    (replying(200, b"[" * 100_000, JSON), "no chat completion ("),
    (completion(" "), "answer is empty"), (completion(3), "no chat completion (AttributeError)"),
    (lambda handler: time.sleep(2), "did not answer within 0.3 seconds"),
])
def test_its_failure_never_hides_the_numbers(deployable, capsys, server, monkeypatch, reply, message):
    monkeypatch.setenv(KEY, "secret-key")
    server.reply = reply
    status, out, err = asking(capsys, deployable, server, "--timeout", "0.3" if "0.3" in message else "30")
    assert status == command.ASK_FAILED == 3 and "moving down is unsafe" in out and len(server.seen) <= 1
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and "secret" not in out + err


def test_drop_by_drop_is_too_late(server):
    def drops(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
    server.reply = drops
    with pytest.raises(AskError, match="within 0.4 seconds"):
        ask(server.url, "tiny", {}, 0.4)


@pytest.mark.parametrize("status", [302, 307])
def test_the_key_follows_no_redirect(server, monkeypatch, status):
    monkeypatch.setenv(KEY, "secret-key")
    server.reply = replying(status, b"", ("Location", server.url + "/elsewhere"))
    with pytest.raises(AskError, match=f"({status})"):
        ask(server.url, "tiny", {})
    assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost", "http://", "http://[::1", "http://127.0.0.1:9/"])
def test_addresses_where_nothing_answers(url):
    pytest.importorskip("openai")
    with pytest.raises(AskError, match="no chat completion"):
        ask(url, "tiny", {})


@pytest.mark.parametrize("key", ["secret\nkey", "secret…key"])
def test_a_key_that_is_no_header_is_not_shown(server, monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(AskError, match=f"{KEY} must hold printable ASCII") as error:
        ask(server.url, "tiny", {})
    assert "secret" not in str(error.value) and not server.seen


def test_without_the_extra_it_says_so(deployable, capsys, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    status, out, err = asking(capsys, deployable, server)
    assert status == 3 and "moving down is unsafe" in out
    assert err.startswith("error: --ask needs the extra llm: pip install 'glassbox-cql[llm]'")
