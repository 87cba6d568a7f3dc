"""Whether data come from the model of their environment: by hand, by simulation, and as a user sees it."""

from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest

import evaluate
import train
from cql.collect import generate_offline_episodes
from cql.commands import bounds, phase, theorems
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.exact import TabularMDP
from cql.run_folder import RunFolder
from cql.world import World, goodness_of_fit
from tests.mdps import random_table


def frozen_lake(slippery: bool, episodes: int = 300) -> OfflineDataset:
    """Episodes of uniform actions; the data say that the lake is slippery."""
    env, rng, rows = gymnasium.make("FrozenLake-v1", is_slippery=slippery), np.random.default_rng(0), []
    for episode in range(episodes):
        state, _ = env.reset(seed=episode)
        done = False
        while not done:
            action = int(rng.integers(4))
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((state, action, reward, following, terminated, truncated and not terminated))
            state, done = following, terminated or truncated
    columns = [np.array(column) for column in zip(*rows)]
    spec = {"id": "FrozenLake-v1", "arguments": {"is_slippery": True}, "max_episode_steps": 100}
    return OfflineDataset.from_arrays(*columns, metadata={"environment": spec, "num_states": 16, "num_actions": 4})


def model(outcomes: list[tuple[float, int]]) -> TabularMDP:
    """One pair whose outcomes are (probability, next state)."""
    size = 1 + max(state for _, state in outcomes)
    nothing = np.zeros((size, 1, len(outcomes)))
    probability, next_state = nothing.copy(), nothing.astype(int)
    probability[0, 0], next_state[0, 0] = zip(*outcomes)
    return TabularMDP(probability, next_state, nothing, nothing > 0, None, None, np.arange(size) > 0, 0)


def test_a_coin_by_hand():
    """65 heads of 100: (65 - 50)^2 / 50 twice is 9; its mean is 1, its variance 2 - 2 / 100 (Haldane 1937: 2 (K - 1)
    + (sum 1 / p - K^2 - 2 K + 2) / n). Its gamma distribution says P(> 9) = 0.00262, the binomial one 0.0035."""
    coin = model([(0.5, 1), (0.5, 2)])
    counts = np.array([[100], [0], [0]])
    p = goodness_of_fit(coin, model([(0.65, 1), (0.35, 2)]), counts)
    assert p == pytest.approx(0.00262, abs=1e-5)
    assert goodness_of_fit(coin, coin, counts) == 1
    assert goodness_of_fit(model([(1.0, 1)]), model([(1.0, 1)]), counts[:2]) == 1  # nothing varies: nothing to judge


def test_p_values_of_the_right_model_are_uniform_even_where_pairs_are_logged_once_or_twice():
    rng = np.random.default_rng(1)
    mdp, below = TabularMDP.from_P(random_table(rng, 12, 3, 3)), []
    for _ in range(600):
        counts = rng.integers(0, 4, (12, 3))
        drawn = [rng.multinomial(n, p / p.sum()) for n, p in zip(counts.ravel(), mdp.probability.reshape(36, -1))]
        shares = np.reshape(drawn, mdp.probability.shape) / np.maximum(counts, 1)[..., None]
        below.append(goodness_of_fit(mdp, replace(mdp, probability=shares), counts))
    for level in (0.01, 0.05, 0.5):  # within four standard errors
        assert abs(np.mean(np.array(below) < level) - level) < 4 * np.sqrt(level * (1 - level) / 600)


def test_another_variant_of_the_environment_is_told_apart():
    world = World.of(frozen_lake(True, 1))
    assert world.misfit(frozen_lake(True)) is None
    words = world.misfit(frozen_lake(False))
    assert "hardly come from this FrozenLake-v1" in words and "were expected" in words
    assert "its model gives data that fit it as badly with probability below 1e-300 (limit 0.0001)" in words


@pytest.mark.parametrize("slip,fits", [(0.05, True), (0.1, False)])
def test_another_slip_is_told_apart(slip, fits):
    made, named = (gymnasium.make("envs:SafetyCriticalGridWorld-v0", map_name="blocks", slip_probability=p,
                                  max_episode_steps=80) for p in (slip, 0.05))
    assert (World.around(named).misfit(generate_offline_episodes(made, 250)) is None) == fits


def test_an_environment_without_a_model_is_not_judged():
    env = gymnasium.make("CartPole-v1")
    data = OfflineDataset.from_arrays(np.zeros((2, 4)), [0, 1], [1.0, 1.0], np.zeros((2, 4)), [False, True])
    assert World.around(env).misfit(data) is None


@pytest.mark.slow
def test_the_exact_commands_say_it(tmp_path, capsys):
    frozen_lake(False).save(tmp_path / "lake.npz")
    data = ["--dataset", str(tmp_path / "lake.npz")]
    for command in (partial(phase.main, [*data, "--points", "2", "--out", str(tmp_path / "p")]),
                    partial(theorems.main, data), partial(bounds.main, [*data, "--alpha", "1"])):
        assert command() == 0
        assert "\nnote: the data hardly come from this FrozenLake-v1" in capsys.readouterr().out


def test_generated_data_are_not_judged():
    world = World.of(frozen_lake(True, 1))
    assert world.misfit_of_given(frozen_lake(False), Config()) is None
    assert world.misfit_of_given(frozen_lake(False), Config(dataset="d.npz")) is not None


@pytest.mark.slow
def test_train_says_it_before_training(tmp_path, capsys):
    flags = f"--dataset {tmp_path}/lake.npz --bc-steps 5 --steps 5 --hidden 8 --out {tmp_path}/".split()
    frozen_lake(False).save(tmp_path / "lake.npz")
    assert train.main([*flags[:-1], f"{tmp_path}/a"]) == 0
    note = "note: the data hardly come from this FrozenLake-v1"
    before, after = capsys.readouterr().out.split("Is it better than what was logged?")
    assert note in before and note in after  # before the training, and under the table
    run = RunFolder.open(tmp_path / "a")
    assert f"note: {run.read_json('evaluation.json')['misfit']}" in after
    assert evaluate.main([str(run.path), "--episodes", "2", "--report"]) == 0
    assert note in capsys.readouterr().out
    page = (run.path / "report.html").read_text()
    assert "Note: the data hardly come from this FrozenLake-v1" in page and "dynamics are known" not in page
    assert "The environment is FrozenLake-v1, 100 steps" in page and "map islands" not in page
    impossible = frozen_lake(True)
    rewards = impossible.rewards.copy()
    rewards[0] = 7
    replace(impossible, rewards=rewards).save(tmp_path / "lake.npz")
    assert train.main([*flags[:-1], f"{tmp_path}/b"]) == 0
    assert "with reward 7 here" in capsys.readouterr().out
