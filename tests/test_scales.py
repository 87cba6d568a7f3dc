"""Scales of observations and rewards: by hand, and against runs on data scaled by hand."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import cql
import train
from cql.analysis.audit import ExactTables, audit_cql
from cql.collect import generate_offline_episodes, make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.export import FORMATS, program
from cql.diagnostics import Diagnostics, RewardRange, value_bounds
from cql.errors import ConfigError
from cql.exact import TabularMDP, cql_fixed_point, empirical_mdp, soft_fixed_point
from cql.losses import Objective
from cql.metrics import read_metrics
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.sampling import Transitions
from cql.scales import Scales, automatic_reward_scale, column_scales, resolved
from cql.world import World, exact_solution
from tests.mdps import random_policies, random_table, roll
from tests.test_training import after_each_yield


def vectors(rows: int = 60, factor=1.0, offset=0.0, reward: float = 1.0, seed: int = 0) -> OfflineDataset:
    """Ten-step episodes of random observations of three features, the third of them binary."""
    random = np.random.default_rng(seed)
    seen = random.normal(size=(rows + 1, 3))
    seen[:, 2] = random.integers(2, size=rows + 1)
    seen = seen.astype(np.float32).astype(np.float64) * factor + offset
    ends = np.arange(1, rows + 1) % 10 == 0
    return OfflineDataset.from_arrays(seen[:-1], random.integers(2, size=rows), reward * random.normal(size=rows),
                                      seen[1:], ends)


def test_mean_and_scale_of_columns_by_hand():
    columns = np.array([[1.0, 5.0, 0.0, 7.0], [3.0, 5.0, 1.0, 7.0], [5.0, 5.0, 1.0, 9.0], [7.0, 5.0, 0.0, 9.0]])
    mean, scale = column_scales(columns)
    assert mean.tolist() == [4.0, 5.0, 0.0, 8.0]  # a binary column is left alone, a constant one centred
    assert scale.tolist() == [5**0.5, 1.0, 1.0, 1.0] and mean.dtype == scale.dtype == np.float64
    read = Scales(mean, scale).inputs(columns)
    assert read.dtype == np.float32 and read[:, 1].tolist() == [0.0] * 4 and read[:, 2].tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(read[:, 0], np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-6)


def test_timestamps_survive_from_the_arrays_through_the_file_to_the_network(tmp_path):
    """float32 holds every 128th second only: 1.7e9 … 1.7e9 + 9 would be one number."""
    seen = np.stack([1.7e9 + np.arange(11.0), np.arange(11.0)], 1)
    data = OfflineDataset.from_arrays(seen[:-1], [0, 1] * 5, [1.0] * 10, seen[1:], [False] * 9 + [True])
    assert data.observations.dtype == np.float64
    data.save(tmp_path / "data.npz")
    again = OfflineDataset.load(tmp_path / "data.npz")
    assert again.to_bytes() == data.to_bytes() and (again.next_observations == seen[1:]).all()
    scales = Scales.of(Config(observation_scale="standard"), again)
    assert scales.mean[0] == 1.7e9 + 4.5 and scales.scale[0] == pytest.approx(8.25**0.5, rel=1e-12)
    read = scales.scaled(again).observations
    assert read.dtype == np.float32 and len(np.unique(read[:, 0])) == 10
    np.testing.assert_array_equal(read[:, 0], read[:, 1])
    unscaled = Scales().scaled(again)
    assert unscaled.observations.dtype == np.float32 and len(np.unique(unscaled.observations[:, 0])) == 1


@pytest.mark.parametrize("column, kept", [
    (1e3 + 0.1 * np.arange(10), np.float32),  # moved by 0.00003 at most, where the deviation is 0.29
    (1e4 + 0.1 * np.arange(10), np.float64),  # by 0.0005
    (np.arange(10) / 7, np.float32), (2.0**24 + np.arange(10), np.float64)])  # made equal in pairs
def test_float64_is_kept_where_float32_loses_something(column, kept):
    seen = np.stack([column, np.arange(10.0)], 1)
    data = OfflineDataset.from_arrays(seen, [0] * 10, [0.0] * 10, seen, [True] * 10)
    assert data.observations.dtype == kept == data.next_observations.dtype


def test_what_is_left_open_goes_by_the_data_and_explicit_settings_win():
    data = vectors()
    config = resolved(Config(dataset="x"), data, {})
    assert (config.observation_scale, config.batch_size) == ("standard", "full")
    assert config.reward_scale == automatic_reward_scale(data, 0.99) and len(config.chosen) == 3
    assert Config.from_json(config.to_json()) == config and json.loads(config.to_json())["chosen"]
    given = {"observation_scale": "none", "reward_scale": 2.0, "batch_size": 32}
    config = resolved(Config(dataset="x", **given), data, given)
    assert (config.observation_scale, config.reward_scale, config.batch_size, config.chosen) == ("none", 2.0, 32, ())
    assert resolved(Config(dataset="x"), vectors(5000), {}).batch_size == 256
    few = resolved(Config(dataset="x", steps=900), data, {})
    assert "copied 9 times" in few.chosen[-1] and "= 100 steps" in few.chosen[-1]


def test_state_numbers_and_the_gridworld_stay_as_they_are():
    states = OfflineDataset.from_arrays([0, 1], [0, 1], [5.0, 1.0], [1, 1], [False, True])
    assert resolved(Config(), states, {}) == Config()
    with pytest.raises(ConfigError, match="--observation-scale standard is for vectors"):
        resolved(Config(observation_scale="standard"), states, {"observation_scale": "standard"})
    grid = replace(vectors(), metadata={**vectors().metadata, "environment": {"id": "SafetyCriticalGridWorld-v0"}})
    assert resolved(Config(), grid, {}) == Config()
    asked = {"reward_scale": "auto", "batch_size": "auto"}
    config = resolved(Config(**asked), grid, asked)
    assert (config.reward_scale, config.batch_size, config.observation_scale) == (1.0, "full", "none")
    assert Scales().scaled(grid) is grid


def test_the_automatic_reward_scale_by_hand():
    """Discounted at 1/2, the episodes are worth 8 + 4 / 2 = 10 and -30: a tenth of 30 is 3."""
    data = OfflineDataset.from_arrays([0, 1, 0], [0] * 3, [8.0, 4.0, -30.0], [1, 0, 1], [False, True, True])
    assert automatic_reward_scale(data, 0.5) == 3.0
    assert automatic_reward_scale(replace(data, rewards=data.rewards * np.float32(1e6)), 0.5) == 3e6
    assert automatic_reward_scale(replace(data, rewards=0 * data.rewards), 0.5) == 1.0


def test_the_sentence_on_the_reward_scale_gives_the_return_that_comes_out():
    """0 stays 0; 8e-20 is divided by the smallest C, 1e-12."""
    asked = {"reward_scale": "auto"}
    for reward, words in ((0.0, "scale 1: the largest discounted return of an episode is then 0 in"),
                          (8e-20, "scale 1e-12: the largest discounted return of an episode is then 8e-08 in"),
                          (41.26, "scale 4.13: the largest discounted return of an episode is then 10 in")):
        data = OfflineDataset.from_arrays([0, 1], [0, 1], [reward, 0.0], [1, 1], [False, True])
        assert words in resolved(Config(**asked), data, asked).chosen[0]


TINY = ["--steps", "40", "--bc-steps", "20", "--log-every", "20", "--hidden", "8", "--alpha", "2", "--device", "cpu"]


def run_of(folder, data: OfflineDataset, *flags: str):
    folder.mkdir()
    data.save(folder / "data.npz")
    assert train.main([*TINY, "--dataset", str(folder / "data.npz"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


def test_a_reward_scale_is_the_policy_of_divided_rewards_and_reports_in_units_of_the_data(tmp_path):
    """C = 8 divides without rounding, so that the parameters agree bit for bit."""
    data = vectors()
    divided = replace(data, rewards=data.rewards / np.float32(8))
    ours = run_of(tmp_path / "ours", data, "--reward-scale", "8")
    by_hand = run_of(tmp_path / "by hand", divided, "--reward-scale", "1")
    for name in ("cql-a2-s42-d42", "bc-s42-d42"):
        policy, other = (Policy.load(run / f"policies/{name}.pt") for run in (ours, by_hand))
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters, other.parameters, strict=True))
        factor = 8 if policy.algorithm == "cql" else 1
        np.testing.assert_array_equal(policy.outputs(data.observations), factor * other.outputs(data.observations))
        np.testing.assert_allclose(policy.probabilities(data.observations), other.probabilities(data.observations),
                                   rtol=1e-6)
    log, other = (read_metrics(run / "metrics.csv") for run in (ours, by_hand))
    assert log.keys() == other.keys()
    for (member, metric), (_, values) in log.items():
        factor = {"losses/td": 64, "losses/total": 64}.get(metric, 8 if metric.startswith("q/") else 1)
        assert values == [factor * value for value in other[member, metric][1]], metric
    entries = [json.loads((run / "evaluation.json").read_text())["members"][1] for run in (ours, by_hand)]
    assert entries[0]["value_estimate"] == pytest.approx(8 * entries[1]["value_estimate"])
    assert entries[0]["value_estimate"] == pytest.approx(log["cql-a2-s42-d42", "q/start"][1][-1], rel=1e-5)


def test_features_in_other_units_train_the_same_network(tmp_path):
    """A factor that is a power of two and no offset standardise to the same numbers, bit for bit."""
    runs = [run_of(tmp_path / str(factor), vectors(factor=np.array([factor, 1 / factor, 1.0])))
            for factor in (1.0, 2.0**20)]
    first, second = (Policy.load(run / "policies/cql-a2-s42-d42.pt") for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
    assert first.act(np.array([1.0, 1.0, 0.0])) == second.act(np.array([2.0**20, 2.0**-20, 0.0]))
    assert json.loads((runs[0] / "config.json").read_text())["observation_scale"] == "standard"


def test_scales_stand_in_a_policy_and_come_back(tmp_path):
    network = PopulationMLP(2, 3, (4,), False)
    scales = Scales(np.array([1.7e9, 0.0]), np.array([8.25**0.5, 1.0]), 20.0)
    policy = Policy(network, network.initial([1]), "cql", 6.0, 1, 1, scales=scales)
    policy.save(tmp_path / "p.pt")
    again = Policy.load(tmp_path / "p.pt")
    seen = np.stack([1.7e9 + np.arange(5.0), np.arange(5.0)], 1)
    np.testing.assert_array_equal(again.q_values(seen), policy.q_values(seen))
    plain = Policy(network, network.initial([1]), "cql", 6.0, 1, 1)
    standard = ((seen - scales.mean) / scales.scale).astype(np.float32)
    np.testing.assert_array_equal(again.q_values(seen), np.float32(20) * plain.q_values(standard))
    plain.save(tmp_path / "plain.pt")
    assert (torch.load(tmp_path / "plain.pt", weights_only=True)["contents"].keys()
            == torch.load(tmp_path / "p.pt", weights_only=True)["contents"].keys() - {"scales"})


@pytest.mark.slow
def test_an_export_reads_observations_and_answers_in_units_of_the_data():
    network = PopulationMLP(2, 3, (4,), False)
    scales = Scales(np.array([1.7e9, 0.0]), np.array([8.25**0.5, 1.0]), 20.0)
    policy = Policy(network, network.initial([1]), "cql", 6.0, 1, 1, scales=scales)
    _, make, runner_of = FORMATS["torch"]
    seen = np.stack([1.7e9 + np.arange(5.0), np.arange(5.0)], 1)
    outputs, actions = runner_of(make(program(policy), "{}"))(seen)
    np.testing.assert_allclose(outputs, policy.q_values(seen), rtol=1e-6)
    assert actions.tolist() == policy.act(seen).tolist() and len(np.unique(outputs[:, 0])) == 5


def test_a_reward_scale_is_alpha_times_c_at_temperature_c():
    """Both problems have the same exact solution in the units of the data."""
    random = np.random.default_rng(3)
    mdp, counts = TabularMDP.from_P(random_table(random), start=0), random.integers(0, 4, size=(8, 3))
    ours = exact_solution(Objective(gamma=0.9, reward_scale=5.0), mdp, counts, [0.4]).q[0]
    same = soft_fixed_point(mdp, counts, [0.4 * 5.0], 0.9, temperature=5.0).q[0]
    other = cql_fixed_point(mdp, counts, [0.4], 0.9).q[0]
    logged = counts > 0
    np.testing.assert_allclose(ours[logged], same[logged], rtol=1e-8, atol=1e-8)
    assert np.abs(ours[logged] - other[logged]).max() > 0.01


def test_an_audit_in_units_of_the_data(grid):
    """With rewards and Q multiplied by 4, everything with a unit is: the softmax, alpha_half and shares stay."""
    data, world = grid
    alpha = 6.0
    larger = replace(data, rewards=data.rewards * np.float32(4))
    worlds = world, World(world.environment, replace(world.mdp, reward=world.mdp.reward * 4))
    plain, scaled = (ExactTables(*pair, Objective(reward_scale=scale), [alpha])
                     for pair, scale in zip(((data, worlds[0]), (larger, worlds[1])), (1.0, 4.0)))
    solved = np.where(plain.logged, plain.solutions[alpha], -60.0)
    q = solved + np.random.default_rng(0).normal(size=solved.shape)
    first, second = (audit_cql(tables, factor * q, alpha)[0] for tables, factor in ((plain, 1), (scaled, 4)))
    for path in (("distance", "mean"), ("start", "oracle_value"), ("start", "value_estimate"), ("start", "true_value"),
                 ("overestimates", "largest")):
        a, b = first, second
        for name in path:
            a, b = a[name], b[name]
        assert b == pytest.approx(4 * a, rel=1e-5), path
    for name in ("ood_mass", "p_below_beta", "greedy_as_oracle"):
        assert first[name] == pytest.approx(second[name]), name
    needed = [[state["needed_share"] for state in found["hazard"]["states"]] for found in (first, second)]
    assert needed[0] == pytest.approx(needed[1], rel=1e-4)


@pytest.fixture(scope="module")
def grid():
    environment = make_environment({"id": "SafetyCriticalGridWorld-v0", "max_episode_steps": 30,
                                    "arguments": {"desc": ["S..", ".H.", "..G"], "slip_probability": 0.2}})
    data = generate_offline_episodes(environment, 60, 0.5, 1)
    return data, World.of(data)


# ------------------------------------------------------------------------------------------------------- divergence


def drawn(seed: int, scale: float = 5.0) -> OfflineDataset:
    random = np.random.default_rng(seed)
    rolled = roll(random_table(random, scale=scale), random_policies(random, 8, 3), 0, 20, 30, random)
    return OfflineDataset.from_arrays(**vars(rolled))


@pytest.mark.parametrize("td_loss", ["mse", "half_mse", "huber"])
@pytest.mark.parametrize("seed, shift", [(0, 0.0), (1, -20.0), (2, 20.0)])
def test_every_exact_solution_lies_within_the_bounds(td_loss, seed, shift):
    data = drawn(seed)
    data = replace(data, rewards=data.rewards + np.float32(shift))
    mdp, counts = empirical_mdp(data, 8, 3)
    rewards, alphas = RewardRange.of(data, data.observations), [0.1, 0.9, 1.5, 6.0, 40.0]
    values = cql_fixed_point(mdp, counts, alphas, 0.9, td_loss, strict=False).q.max(-1)[:, counts.any(-1)]
    for alpha, value in zip(alphas, values):
        low, high = value_bounds(rewards, alpha, Objective(td_loss=td_loss, gamma=0.9))
        assert low <= value.min() and value.max() <= high < np.inf


def test_the_range_of_rewards_by_hand():
    data = OfflineDataset.from_arrays([0] * 5 + [1], [0, 0, 0, 0, 1, 1], [1, 2, 3, -4, 5, 6.0], [0] * 6,
                                      [False] * 4 + [True, True])
    assert RewardRange.of(data, data.observations) == ((5, 6), (-4, 3), np.log(4))
    low, high = value_bounds(RewardRange.of(data, data.observations), 2.0, Objective(td_loss="huber", gamma=0.9))
    assert low == pytest.approx(1.05 * -40 - 1) and high == pytest.approx(1.05 * (3 + np.log(4)) / 0.1 + 1)


def measured(data: OfflineDataset, outputs, objective: Objective, alpha: float = 2.0) -> float:
    """``health/diverged`` of a linear network on one feature, which has these outputs everywhere."""
    transitions = Transitions([data], torch.device("cpu"), False)
    diagnostics = Diagnostics(transitions, [data], World.around(None), objective.gamma)
    network, member = PopulationMLP(data.observations.shape[1], data.num_actions, (), False), torch.tensor([0])
    parameters = [torch.zeros(1, data.num_actions, data.observations.shape[1]), torch.tensor([[outputs]])]
    bounds = diagnostics.bounds(member, [alpha], objective)
    return diagnostics.read(network, parameters, member, "cql", bounds)[0]["health/diverged"][0]


@pytest.mark.parametrize("objective", [Objective(), Objective(td_loss="huber"), Objective(double_q=True),
                                       Objective(td_loss="huber", double_q=True)])
@pytest.mark.parametrize("outputs, diverged", [
    ([56_177.0, 0.0], 1.0), ([-3.8e6, -3.9e6], 1.0), ([-99.0, -120.0], 0.0), ([0.5, -3.0], 0.0),
    ([0.9, -3.8e6], 0.0)])  # an OOD action may be worth as little as you like
def test_blow_ups_on_vectors_are_seen_with_every_loss_and_good_values_are_not(objective, outputs, diverged):
    """Rewards of -1 as in MountainCar: values lie between -100 and 0, and with alpha 2 or Huber's 1 at 0."""
    seen = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    data = OfflineDataset.from_arrays(seen, np.arange(200) % 2, [-1.0] * 200, seen, np.arange(200) % 50 == 49)
    assert measured(data, outputs, objective) == diverged


def test_one_observation_above_the_bound_is_no_divergence_where_a_network_generalises():
    """q/max is 40, above the bound of 1; the mean of max Q is below 0."""
    seen = np.zeros((200, 1), np.float32)
    seen[7] = 1.0
    data = OfflineDataset.from_arrays(seen, np.arange(200) % 2, [-1.0] * 200, seen, np.arange(200) % 50 == 49)
    transitions = Transitions([data], torch.device("cpu"), False)
    diagnostics = Diagnostics(transitions, [data], World.around(None), 0.99)
    member, parameters = torch.tensor([0]), [torch.full((1, 2, 1), 90.0), torch.full((1, 1, 2), -50.0)]
    found, _ = diagnostics.read(PopulationMLP(1, 2, (), False), parameters, member, "cql",
                                diagnostics.bounds(member, [0.0], Objective()))
    assert found["q/max"] == [40.0] and found["q/max_mean"][0] < -49 and found["health/diverged"] == [0.0]


@pytest.mark.parametrize("flags", [[], ["--td-loss", "huber", "--double-q"]])
@pytest.mark.parametrize("added", [0, 300, -300])
def test_runs_on_vectors_are_judged_in_units_of_the_data(tmp_path, monkeypatch, flags, added, capsys):
    """300 is added to the outputs after every block of updates; rewards are divided by 100."""
    after_each_yield(monkeypatch, lambda name, step, state: state.parameters[-1].add_(added * (name == "cql")))
    data = vectors(reward=100.0)
    run = run_of(tmp_path / "run", data, "--reward-scale", "100", "--gamma", "0.9", *flags)
    [entry] = [e for e in json.loads((run / "evaluation.json").read_text())["members"] if e["algorithm"] == "cql"]
    assert (entry["diverged"] is not None) == (added != 0)
    if added:
        low, high = re.search(r"exact solutions lie in \[(.+), (.+)\]", capsys.readouterr().err).groups()
        range_ = RewardRange.of(Scales(reward=100.0).scaled(data), np.arange(60))
        bounds = value_bounds(range_, 2.0, Objective(td_loss="huber" if flags else "mse", gamma=0.9))
        assert [float(low), float(high)] == pytest.approx([100 * bound for bound in bounds], rel=1e-3)


def test_fit_takes_the_scales_too():
    data = vectors()
    plain = cql.fit(data, steps=3, observation_scale="none", reward_scale=8, batch_size=16)
    assert plain.config.reward_scale == 8 and plain.config.observation_scale == "none" and not plain.config.chosen
