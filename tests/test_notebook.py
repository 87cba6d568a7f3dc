"""fit, solve and evaluate against the commands and the exact solution."""

import json
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import cql
import evaluate
import train
from cql.errors import ConfigError, RunError

pytestmark = pytest.mark.slow
TINY = dict(hidden=(8,), lr=1e-3, log_every=10)


@pytest.fixture(scope="module")
def data():
    return cql.generate_offline_episodes(gymnasium.make("envs:SafetyCriticalGridWorld-v0", map_name="blocks"), 20)


def test_it_trains_as_the_command_does(data, tmp_path):
    fit = cql.fit(data, alpha=[0, 6], seeds=2, steps=30, **TINY)
    flags = ("--map blocks --episodes 20 --alpha 0 6 --num-seeds 2 --steps 30 --bc-steps 0 --hidden 8 --lr 1e-3 "
             "--log-every 10")
    assert train.main([*flags.split(), "--out", str(tmp_path / "r")]) == 0
    for member, policy, q in zip(fit.members, fit.policies, fit.q):
        theirs = cql.Policy.load(tmp_path / f"r/policies/{member.name}.pt")
        np.testing.assert_array_equal(policy.outputs(fit.world.inputs), theirs.outputs(fit.world.inputs))
        np.testing.assert_array_equal(q, theirs.outputs(fit.world.inputs))
    saved = fit.save(tmp_path / "saved")
    assert (saved / "metrics.csv").read_bytes() == (tmp_path / "r/metrics.csv").read_bytes()
    assert (saved / "config.json").read_bytes() == (tmp_path / "r/config.json").read_bytes()
    mine, theirs = (json.loads((folder / "evaluation.json").read_text()) for folder in (saved, tmp_path / "r"))
    assert mine["members"] == theirs["members"] and mine["references"] == theirs["references"]
    assert evaluate.main([str(saved), "--audit"]) == 0


def test_a_state_number_too_large_for_the_memory_is_named():
    data = cql.OfflineDataset.from_arrays([2**31 - 2], [0], [0.0], [0], [True])
    with pytest.raises(RunError, match="the data have 2,147,483,647 states and 1 actions, by their largest numbers"):
        cql.fit(data, steps=10, hidden=[64, 64])


def test_the_log_and_the_snapshots_end_at_the_result(data):
    fit = cql.fit(data, alpha=6, steps=25, snapshots=True, **TINY)
    assert fit.updates.tolist() == [10, 20, 25] and fit.snapshots.shape == (3, 1, 225, 4)
    np.testing.assert_allclose(fit.snapshots[-1], fit.q, rtol=1e-5, atol=1e-6)
    assert fit.log["q/max"].shape == (1, 3) and fit.log["optimiser/alpha"].tolist() == [[6, 6, 6]]


def test_behaviour_cloning(data):
    fit = cql.fit(data, algorithm="bc", steps=20, **TINY)
    assert fit.members[0].name == "bc-s42-d42" and fit.log["losses/cross_entropy"].shape == (1, 2)
    [found] = cql.evaluate(fit.policies, data, episodes=2)
    assert found["value_estimate"] is None and found["rollout"]["episodes"] == 2


def test_the_exact_solution_is_that_of_the_world(data):
    exact = cql.solve(data, [1.0, 6.0])
    expected = cql.World.of(data)
    assert exact.certified.all() and exact.q.shape == (2, expected.mdp.num_states, 4)


def test_arrays_without_an_environment(tmp_path):
    arrays = dict(observations=np.arange(6), actions=np.arange(6) % 2, rewards=np.ones(6),
                  next_observations=np.arange(6) + 1, terminations=[False] * 5 + [True])
    data = cql.OfflineDataset.from_arrays(**arrays)
    fit = cql.fit(data, alpha=1, steps=5, hidden=(4,))
    assert fit.q.shape == (1, 7, 2) and fit.world.mdp is None
    [found] = cql.evaluate(fit.policies, data)
    assert found["exact"] is None and found["rollout"] is None
    assert (fit.save(tmp_path / "run") / "evaluation.json").exists()
    with pytest.raises(RunError, match="name no environment"):
        cql.solve(data)


@pytest.mark.parametrize("settings, sentence", [
    ({"colour": 1}, "colour is no setting of fit"), ({"episodes": 3}, "episodes is no setting of fit"),
    ({"alpha": -1}, "--alpha must lie"), ({"algorithm": "dqn"}, "algorithm must be cql or bc"),
    ({"steps": 0}, "nothing to train"), ({"seeds": 0}, "--num-seeds must be"),
    ({"batch_size": 10**6}, "larger than the data set"), ({"td_loss": "mae"}, "--td-loss must be one of"),
    ({"bc_steps": 3}, "bc_steps is no setting"), ({"hidden": "wide"}, "--hidden cannot be"),
    ({"seeds": [1, 2]}, "--num-seeds cannot be"), ({"batch_size": "64"}, "--batch-size cannot be"),
])
def test_settings_that_cannot_be_used(data, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        cql.fit(data, **settings)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, cql.exact; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'gymnasium')))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(cql.__all__) <= set(dir(cql)) and cql.fit is not None
    with pytest.raises(AttributeError, match="no attribute 'trainers'"):
        _ = cql.trainers


def test_a_member_without_a_policy_has_no_numbers(data):
    [found] = cql.evaluate([None], data)
    assert set(found.values()) == {None}


def test_what_is_saved_is_whole_or_not_there(data, tmp_path, monkeypatch):
    fit = cql.fit(data, steps=5, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr("cql.analysis.evaluation.evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    fit.save(tmp_path / "run")
    with pytest.raises(RunError, match="exists already"):
        fit.save(tmp_path / "run")


def test_numbers_of_numpy_are_numbers(data):
    fit = cql.fit(data, alpha=np.array([0, 6]), seeds=np.int64(1), steps=np.int64(5), hidden=np.array([4]),
                  lr=np.float32(1e-3))
    assert fit.config.hidden == (4,) and fit.config.to_json() and len(fit.members) == 2


def test_a_part_of_generated_data_is_given_data(data):
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids")
    part = cql.OfflineDataset.from_arrays(**{name: getattr(data, name)[:100] for name in names}, metadata=data.metadata)
    assert cql.fit(part, steps=5, **TINY).config.dataset == "data.npz"
    assert cql.fit(data, steps=5, **TINY).config.dataset is None


@pytest.mark.parametrize("change, sentence", [
    (dict(actions=np.zeros(3, int)), "actions must be one integer from 0 to 3 for each of 225 states"),
    (dict(actions=np.full(225, 4)), "actions must be"), (dict(actions=np.zeros(225)), "actions must be"),
    (dict(values=np.zeros((15, 15))), "values must be one number for each of 225 states"),
])
def test_arrays_that_do_not_fit_the_map(data, change, sentence):
    arguments = dict(actions=np.zeros(225, int), values=np.zeros(225)) | change
    with pytest.raises(ValueError, match=sentence):
        cql.draw_policy(cql.World.of(data), **arguments)
