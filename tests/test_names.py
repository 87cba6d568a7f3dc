"""The names that the metadata of a data set give to actions, states and features, wherever these are shown."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

import evaluate
import train
from cql.commands import data as data_command
from cql.commands import explain as explain_command
from cql.commands import export as export_command
from cql.commands import phase as phase_command
from cql.commands import registry as registry_command
from cql.dataset import OfflineDataset
from cql.deploy.explanation import Explainer
from cql.deploy.model import Model
from cql.world import World
from tests import browser
from tests.test_explain import small_model

pytestmark = pytest.mark.slow

LAKE = {"id": "FrozenLake-v1", "arguments": {"is_slippery": False}, "max_episode_steps": 30}
WINDS = ["west", "south", "east", "north"]


def named(model: Model, **names) -> Model:
    """The model with these metadata."""
    dataset = replace(model.dataset, metadata={**model.dataset.metadata, **names})
    return replace(model, dataset=dataset, world=World.of(dataset))


def table(**names) -> Model:
    """Three states and three actions without an environment; Q of state 0: 1, 3, 2."""
    return named(small_model([[1, 3, 2], [0, 1, 0], [0, 0, 1]]), **names)


# ------------------------------------------------------------------------------------------------- where they come from


@pytest.mark.parametrize("names, actions", [
    ({}, ["action 0", "action 1", "action 2"]), ({"first_action": 1}, ["action 1", "action 2", "action 3"]),
    ({"action_names": ["none", "low", "high"]}, ["none", "low", "high"]),
    ({"action_names": ["0", "2.5", "10"], "first_action": 1}, ["action 0", "action 2.5", "action 10"]),
])
def test_the_names_of_actions(names, actions):
    assert table(**names).actions == actions


@pytest.mark.parametrize("names, text, index", [
    ({}, "1", 1), ({"first_action": 1}, "1", 0), ({"action_names": ["none", "low", "high"]}, "LOW", 1),
    ({"action_names": ["none", "low", "high"]}, "2", 2), ({"action_names": ["0", "2.5", "10"]}, "10", 2),
])
def test_an_action_is_asked_about_by_what_it_is_called(names, text, index):
    assert explain_command.chosen_action(table(**names), text) == index


@pytest.mark.parametrize("names, text, sentence", [
    ({"action_names": ["none", "low", "high"]}, "3", "give a number from 0 to 2, or none, low, high."),
    ({"action_names": ["0", "2.5", "10"]}, "2", "there is no action '2': give 0, 2.5, 10."),  # not the third of them
    ({"first_action": 1}, "0", "there is no action '0': give 1, 2, 3."),
])
def test_what_is_called_otherwise_is_refused(names, text, sentence):
    from cql.errors import RunError

    with pytest.raises(RunError, match=sentence):
        explain_command.chosen_action(table(**names), text)


def test_a_grid_has_the_words_of_its_moves_unless_the_metadata_have_others():
    seen = {"environment": LAKE, "num_states": 16, "num_actions": 4}
    world, other = (World.of(OfflineDataset.from_arrays([0], [2], [0.0], [1], [0], metadata=metadata))
                    for metadata in (seen, {**seen, "action_names": WINDS}))
    assert world.action_names == ["←", "↓", "→", "↑"] and world.state_names[5] == "(1,1)"
    assert other.action_names == WINDS and other.state_names[5] == "(1,1)"


# ---------------------------------------------------------------------------------------------- explanation and service


def test_an_explanation_says_the_names_and_keeps_the_numbers():
    found = Explainer(table(action_names=["none", "low", "high"], state_names=["well", "ill", "gone"])).explain(0, 0)
    assert found["chosen"] == {"index": 1, "name": "low"} and found["action"] == {"index": 0, "name": "none"}
    assert found["observation"] == 0 and found["state_name"] == "well"
    assert found["text"].startswith("In state well, taking none is worse than taking low, which the model chooses.")
    assert "low once" in found["text"]
    plain = Explainer(table()).explain(0, 0)["text"]
    assert plain.startswith("In state 0, taking action 0 is worse than taking action 1, which")


def test_the_service_answers_with_names_beside_the_numbers():
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from cql.deploy.served_model import ServedModel

    served = ServedModel("id", "digest", table(action_names=["none", "low", "high"]))
    assert [(d.action, d.name) for d in served.decide([0, 2])] == [(1, "low"), (2, "high")]
    assert served.map.actions == ["none", "low", "high"] and served.map.features is None


# -------------------------------------------------------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on FrozenLake without slips, whose data name the actions; d.npz beside it."""
    folder, random, rows = tmp_path_factory.mktemp("names"), np.random.default_rng(0), []
    lake = gymnasium.make("FrozenLake-v1", is_slippery=False, max_episode_steps=30)
    for episode in range(60):
        seen, _ = lake.reset(seed=episode)
        ended = cut = False
        while not (ended or cut):
            action = int(random.choice(4, p=[.1, .4, .4, .1]))  # mostly towards the goal
            following, reward, ended, cut, _ = lake.step(action)
            rows.append((seen, action, reward, following, ended, cut and not ended, episode))
            seen = following
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids")
    np.savez(folder / "d.npz", **dict(zip(names, map(np.array, zip(*rows)))),
             metadata=json.dumps({"environment": LAKE, "num_states": 16, "action_names": WINDS}))
    assert train.main(["--dataset", str(folder / "d.npz"), "--steps", "40", "--bc-steps", "20", "--log-every", "20",
                       "--hidden", "0", "--snapshots", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_exact_curve_and_the_audit_say_the_names(run, tmp_path, capsys):
    assert phase_command.main(["--dataset", str(run.parent / "d.npz"), "--alpha", "0.001", "0.01", "0.1", "--out",
                               str(tmp_path / "phase")]) == 0
    flips = capsys.readouterr().out.partition("state, action before > after):")[2]
    assert any(f"{a}>{b}" in flips for a in WINDS for b in WINDS)
    assert evaluate.main([str(run), "--audit"]) == 0
    assert json.loads((run / "audit.json").read_text())["action_names"] == WINDS


def test_data_of_another_model_are_said_so_by_name(run, tmp_path, capsys):
    with np.load(run.parent / "d.npz") as archive:
        arrays = {name: archive[name].copy() for name in archive.files}
    arrays["rewards"][0] = 7
    np.savez(tmp_path / "other.npz", **arrays)
    assert data_command.main(["check", str(tmp_path / "other.npz")]) == 1
    assert f"action {WINDS[arrays['actions'][0]]} in state 0 cannot lead to state" in capsys.readouterr().out


@browser.needed
def test_the_reports_page_says_the_names(run):
    assert evaluate.main([str(run), "--report"]) == 0
    document = browser.dumped((run / "report.html").as_uri())
    heads = document.partition('id="snapshot-cell"')[2].partition("</thead>")[0]
    assert all(f">{wind}</th>" in heads for wind in WINDS) and "← left" not in heads


def test_export_and_the_card_say_the_names(run, tmp_path, capsys):
    assert export_command.main([str(run), str(tmp_path / "out")]) == 0
    import torch

    extra = {"metadata.json": ""}
    torch.export.load(str(tmp_path / "out/cql-a6-s42-d42.pt2"), extra_files=extra)
    assert json.loads(extra["metadata.json"])["actions"] == WINDS
    registry = str(tmp_path / "reg")
    capsys.readouterr()
    assert registry_command.main([registry, "register", str(run)]) == 0
    id = capsys.readouterr().out.split()[0]
    assert registry_command.main([registry, "show", id]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["actions", "west, south, east, north"] in lines
