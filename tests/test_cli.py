"""The two commands as a user meets them, in process: what they print, what they write, what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import train
from cql import __main__ as commands
from cql.commands import verify
from cql.run_folder import RunFolder
from tests.chain import chain_columns

pytestmark = pytest.mark.slow
TINY = ["--episodes", "20", "--hidden", "8", "--bc-steps", "20", "--steps", "30", "--batch-size", "8", "--log-every",
        "10", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    assert train.main([*TINY, "--out", str(out)]) == 0
    return out


def plain_arrays(path, vectors=False, **changes):
    random = np.random.default_rng(0)
    states, following = random.integers(0, 6, (2, 50))
    table = random.normal(size=(6, 3)).astype(np.float32)
    arrays = dict(observations=table[states] if vectors else states, actions=random.integers(0, 5, 50),
                  rewards=random.normal(size=50), next_observations=table[following] if vectors else following,
                  terminations=random.random(50) < 0.1)
    np.savez(path, **{**arrays, **changes})
    return str(path)


def test_a_run_folder_holds_everything(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"config.json", "checkpoint.pt", "metrics.csv", "evaluation.json", "manifest.json", "datasets/42.npz",
            "policies/bc-s42-d42.pt", "policies/cql-a6-s42-d42.pt"} <= names
    assert not [name for name in names if "partial" in name]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["device"] == "cpu" and manifest["versions"]["torch"] == torch.__version__
    assert verify.main([str(finished)]) == 0


def test_verify_names_what_differs(finished, tmp_path, capsys):
    import shutil
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "policies/bc-s42-d42.pt").write_bytes(b"x")
    (copy / "config.json").unlink()
    (copy / "config.json").write_text((finished / "config.json").read_text())
    (copy / "metrics.csv").unlink()
    (copy / "extra.txt").write_text("?")
    assert verify.main([str(copy)]) == 1
    printed = capsys.readouterr().out
    for line in ("metrics.csv: missing", "extra.txt: not in the manifest", "bc-s42-d42.pt: contents differ"):
        assert line in printed


def test_the_table_and_the_folder_are_printed(tmp_path, capsys):
    assert train.main([*TINY, "--out", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr().out
    for words in ("transitions", "hazard rate", "policy", "CQL", "optimal", "behavior",
                  f"run folder: {tmp_path / 'r'}"):
        assert words in printed


def test_without_out_a_fresh_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train.main([*TINY, "--bc-steps", "0"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_evaluate_again_with_more_episodes(finished, capsys):
    assert evaluate.main([str(finished), "--episodes", "3", "--seed", "7"]) == 0
    found = json.loads((finished / "evaluation.json").read_text())
    assert found["members"][0]["rollout"]["episodes"] == 3 and found["rollout_seed"] == 7
    assert verify.main([str(finished)]) == 0


@pytest.mark.parametrize("vectors", [False, True])
def test_plain_arrays_train_without_an_environment(tmp_path, capsys, vectors):
    data = plain_arrays(tmp_path / "plain.npz", vectors)
    assert train.main([*TINY[2:], "--dataset", data, "--out", str(tmp_path / "r")]) == 0
    found = json.loads((tmp_path / "r/evaluation.json").read_text())
    assert found["environment"] is None and found["references"]["optimal"]["exact"] is None
    assert [m["algorithm"] for m in found["members"]] == ["bc", "cql"]
    for member in found["members"]:
        assert member["exact"] is None and member["rollout"] is None and 0 <= member["action_mismatch_rate"] <= 1
    assert isinstance(found["members"][1]["value_estimate"], float)
    assert "These are estimates from the log alone: nothing was tried out." in capsys.readouterr().out
    assert evaluate.main([str(tmp_path / "r")]) == 0


def test_gymnasiums_own_tables_are_judged_too(tmp_path):
    """A data set of FrozenLake with its name: exact values and rollouts, without hazards or goals."""
    import gymnasium
    env, rows = gymnasium.make("FrozenLake-v1"), []
    random = np.random.default_rng(0)
    for episode in range(40):
        s, _ = env.reset(seed=episode)
        done = False
        while not done:
            a = int(random.integers(4))
            s2, r, terminated, truncated, _ = env.step(a)
            rows.append((s, a, r, s2, terminated, truncated and not terminated))
            s, done = s2, terminated or truncated
    columns = dict(zip(("observations", "actions", "rewards", "next_observations", "terminations", "truncations"),
                       map(np.array, zip(*rows))))
    np.savez(tmp_path / "lake.npz", **columns, metadata=json.dumps({"num_states": 16, "num_actions": 4}))
    assert train.main([*TINY[2:], "--dataset", str(tmp_path / "lake.npz"), "--env", "FrozenLake-v1",
                       "--max-episode-steps", "100", "--out", str(tmp_path / "r")]) == 0
    found = json.loads((tmp_path / "r/evaluation.json").read_text())
    assert 0.7 < found["references"]["optimal"]["exact"]["return"] < 0.8236  # 14/17 without a step limit
    exact, rollout = found["members"][0]["exact"], found["members"][0]["rollout"]
    for entry in (exact["hazard_probability"], rollout["hazard_rate"]):  # the lake's holes count as hazards
        assert 0 <= entry <= 1


def test_spaces_that_start_at_one_train_and_act(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("chain.npz", **chain_columns())
    argv = [*TINY[2:], "--env", "Chain-v0", "--hidden", "0", "--lr", "0.1", "--steps", "200", "--dataset"]
    assert train.main([*argv, "chain.npz", "--out", "r"]) == 0
    assert "states that the environment numbers from 1 are stored from 0" in capsys.readouterr().out
    found = json.loads(Path("r/evaluation.json").read_text())
    assert found["references"]["optimal"]["exact"]["return"] == 1
    for member in found["members"]:  # the environment is deterministic
        assert member["exact"]["return"] == member["rollout"]["return_mean"] == 1
        assert member["rollout"]["unsupported_action_rate"] == 0
    np.savez("zero.npz", **chain_columns(first=0))
    assert train.main([*argv, "zero.npz", "--out", "r2"]) == 2
    assert "must lie between 1 and" in capsys.readouterr().err and not Path("r2").exists()


def test_an_environment_without_a_table_is_rolled_out_only(tmp_path):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "pole.npz", observations=random.normal(size=(40, 4)), actions=random.integers(0, 2, 40),
             rewards=np.ones(40), next_observations=random.normal(size=(40, 4)), terminations=np.arange(40) % 10 == 9)
    assert train.main([*TINY[2:], "--dataset", str(tmp_path / "pole.npz"), "--env", "CartPole-v1", "--out",
                       str(tmp_path / "r")]) == 0
    found = json.loads((tmp_path / "r/evaluation.json").read_text())
    for member in found["members"]:
        assert member["exact"] is None and member["rollout"]["return_mean"] > 5
        assert member["rollout"]["goal_rate"] is None


BAD_COMMANDS = [
    (["--map", "nowhere"], "--map nowhere is neither"), (["--alpha", "-1"], "--alpha must lie in [0, 1e+18]"),
    (["--alpha", "nan"], "--alpha must be a finite number"), (["--batch-size", "0"], "--batch-size must be at least 1"),
    (["--device", "cuda:99"], "CUDA device"), (["--device", "tpu"], "--device tpu"),
    (["--dataset", "nothing.npz"], "there is no data set at nothing.npz"), (["--out", "."], "exists already"),
    (["--resume", "nothing"], "nothing is no run folder"), (["--map", "random:25"], "needs --max-episode-steps"),
    (["--out", "/proc/run"], "cannot be made"), (["--env", "CartPole-v1"], "SafetyCriticalGridWorld only"),
    (["--resume", ".", "--alpha", "1"], "give no others"), (["--batch-size", "1000000"], "is larger than the data set"),
    (["--penalty-threshold", "0.1"], "--penalty-threshold 0.1 must be above 0.66"),
    (["--penalty-threshold", "nan"], "finite number"),
    (["--penalty-threshold", "2", "--alpha", "0", "1"], "give --alpha of at least 1e-18 to start from"),
    (["--hidden", "10000000", "10000000"], "this population needs"), (["--map", "random:60000"], "at most 1000 cells"),
    (["--steps", "99999999999"], "out of any range"), (["--alpha", "1e30"], "must lie in [0, 1e+18]"),
    (["--env", "nosuch:Foo-v0", "--dataset", "PLAIN"], "--env nosuch:Foo-v0: the module cannot be imported (No module"),
    (["--env", "FrozenLake-v1", "--slip", "0.1", "--dataset", "PLAIN"], "--slip is a setting of"),
    (["--env", "CliffWalking-v1", "--dataset", "PLAIN"], "has no step limit"),
]


@pytest.mark.parametrize("argv, sentence", BAD_COMMANDS)
def test_bad_input_gets_one_sentence(tmp_path, tmp_path_factory, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    tiny = [] if "--resume" in argv else TINY[2:] if "--dataset" in argv else TINY
    plain = plain_arrays(tmp_path_factory.mktemp("plain") / "plain.npz")
    assert train.main([*tiny, *(plain if word == "PLAIN" else word for word in argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


METADATA = {"num_states": 6, "num_actions": 5}
GRID = {"id": "SafetyCriticalGridWorld-v0", "arguments": {}, "max_episode_steps": 80}


@pytest.mark.parametrize("metadata, sentence", [
    ([], "not a JSON object"), ({"environment": 3}, "in no known form"),
    ({"environment": GRID}, "does not fit the environment"),
    ({"environment": GRID | {"id": "evil:Foo-v0"}}, "names a module"),
    ({"num_states": 2**31 - 1}, "GiB and there are"),
    ({"num_actions": 2**31 - 1}, "the data have 6 states and 2,147,483,647 actions, by"),
    ({"environment": GRID | {"arguments": {"render_mode": "human"}}}, "not allowed for the environment"),
    ({"environment": GRID | {"max_episode_steps": -1}}, "max_episode_steps must be"),
    ({"environment": {"id": "CartPole-v1", "arguments": {}, "max_episode_steps": 9}}, "does not fit the environment"),
])
def test_hostile_metadata_get_one_sentence(tmp_path, monkeypatch, capsys, metadata, sentence):
    monkeypatch.chdir(tmp_path)
    data = plain_arrays(tmp_path / "bad.npz",
                        metadata=json.dumps(METADATA | metadata if isinstance(metadata, dict) else metadata))
    assert train.main([*TINY[2:], "--dataset", data]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


@pytest.mark.parametrize("changes, sentence", [
    (dict(rewards=np.float32(1)), "rewards is a single value"),
    (dict(terminations=np.array([True, *[False] * 49]), episode_ids=np.zeros(50, int)), "ends its episode, yet"),
    (dict(rewards=np.full(50, np.nan)), "rewards holds NaN"), (dict(actions=np.full(50, -1)), "actions must lie"),
    (dict(actions=np.zeros(49, int)), "actions has 49 entries"),
])
def test_bad_data_gets_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, changes, sentence):
    monkeypatch.chdir(tmp_path)
    data = plain_arrays(tmp_path / "bad.npz", **changes)
    assert train.main([*TINY[2:], "--dataset", data]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


def test_unknown_flags_and_wrong_types_are_argparses(capsys):
    for argv in (["--alpha", "six"], ["--steps", "1.5"], ["--batch-size", "half"], ["--colour", "red"],
                 ["--observation", "x"]):
        with pytest.raises(SystemExit) as stop:
            train.main(argv)
        assert stop.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_evaluate_refuses_in_one_sentence(finished, tmp_path, capsys):
    import shutil
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    cases = [([str(tmp_path / "nothing")], "no run folder"), ([str(copy), "--episodes", "0"], "--episodes")]
    for argv, sentence in cases:
        assert evaluate.main(argv) == 2 and sentence in capsys.readouterr().err
    for name in ("policies/bc-s42-d42.pt", "datasets/42.npz", "config.json"):
        kept = (copy / name).read_bytes()
        for damaged in (kept[: len(kept) // 2], b""):
            (copy / name).write_bytes(damaged)
            assert evaluate.main([str(copy)]) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1 and name.split("/")[-1] in error
        (copy / name).write_bytes(kept)
    assert evaluate.main([str(copy)]) == 0


def test_a_link_out_of_the_run_is_not_followed(finished, tmp_path, capsys):
    import shutil
    shutil.copytree(finished, tmp_path / "copy")
    shutil.move(tmp_path / "copy/policies", tmp_path / "elsewhere")
    (tmp_path / "copy/policies").symlink_to(tmp_path / "elsewhere")
    assert evaluate.main([str(tmp_path / "copy")]) == 2 and "symbolic link" in capsys.readouterr().err


def test_two_processes_never_write_one_run(finished, capsys):
    with RunFolder.open(finished).lock():
        assert evaluate.main([str(finished)]) == 2
    assert "another process is writing" in capsys.readouterr().err


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "(default 0.22)" in printed and "weight(s) of the conservative penalty" in printed
    assert "--penalty-threshold TAU" in printed and "constant Q has log A" in " ".join(printed.split())


def test_every_command_has_a_line_and_a_help(capsys):
    assert commands.main([]) == 0
    printed = capsys.readouterr().out
    for name in commands.COMMANDS:
        assert f"  {name} " in printed
        with pytest.raises(SystemExit) as stop:
            commands.main([name, "--help"])
        assert stop.value.code == 0 and f"usage: python -m cql {name}" in capsys.readouterr().out
    assert {path.stem for path in Path(verify.__file__).parent.glob("[a-z]*.py")} == set(commands.COMMANDS)
    assert commands.main(["phases"]) == 2 and capsys.readouterr().err.startswith("error: there is no command phases: ")
