"""Evaluation: rollouts agree with the exact values, support and mismatch by hand, the file's form."""

import numpy as np
import pytest
import torch

from cql.analysis.evaluation import Rollouts, Support, evaluate, table
from cql.collect import environment_spec, generate_offline_episodes, make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import deterministic_policies
from cql.exact import TabularMDP, evaluate_policies
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.world import World
from tests.test_training import run_of

pytestmark = pytest.mark.slow


def policy_of(actions, num_actions=4, algorithm="bc") -> Policy:
    """A table policy that takes these actions, ``[S]``."""
    network = PopulationMLP(len(actions), num_actions, (), discrete=True)
    table = torch.nn.functional.one_hot(torch.as_tensor(actions), num_actions).float()[None]
    return Policy(network, [table], algorithm, None, 0, 0)


def test_rollouts_agree_with_the_exact_values_within_their_error():
    environment = make_environment(environment_spec(Config(slip=0.2)))
    data = generate_offline_episodes(environment, 20, 0.22, 1)
    actions = np.where(np.arange(225) % 15 < 14, 3, 1)  # right, then down: walks the top row and the right column
    actions[np.random.default_rng(0).random(225) < 0.2] = 1
    episodes = 3000
    model = TabularMDP.from_env(environment)
    found = Rollouts(World(environment, model), episodes, 5).summary(policy_of(actions), Support(data))
    exact = evaluate_policies(model, deterministic_policies(actions[None], 4), horizon=80)
    assert abs(found["return_mean"] - exact.returns[0]) < 4 * found["return_std"] / np.sqrt(episodes)
    for rate, probability in ((found["hazard_rate"], exact.hazard_probability[0]),
                              (found["goal_rate"], exact.goal_probability[0])):
        assert 0.01 < probability < 0.99  # a case that could fail
        assert abs(rate - probability) < 4 * np.sqrt(probability * (1 - probability) / episodes)


def test_rollouts_of_equal_policies_are_equal_and_seeded():
    environment = make_environment(environment_spec(Config()))
    support = Support(generate_offline_episodes(environment, 20, 0.22, 1))
    actions = np.full(225, 3)
    first, second = (Rollouts(World.around(environment), 10, 5) for _ in range(2))
    assert first.summary(policy_of(actions), support) == second.summary(policy_of(actions), support)
    assert first.summary(policy_of(actions), support) == second.summary(policy_of(actions), support)


def test_support_and_mismatch_by_hand():
    data = OfflineDataset.from_arrays([0, 0, 1], [1, 2, 0], [0.0] * 3, [0, 1, 2], [False, False, True],
                                      metadata={"num_states": 3, "num_actions": 4})
    support = Support(data)
    assert [support.supported(0, a) for a in range(4)] == [False, True, True, False]
    assert not any(support.supported(2, a) for a in range(4))  # visited only as s'
    assert support.mismatch_rate(policy_of([1, 0, 0])) == pytest.approx(1 / 3)
    assert support.mismatch_rate(policy_of([3, 3, 3])) == 1.0


def test_support_of_vector_observations():
    seen = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    data = OfflineDataset.from_arrays(seen, [0, 1], [0.0, 0.0], seen, [True, True])
    assert Support(data).supported(np.array([0.5, 0.5]), 1) and not Support(data).supported([0.5, 0.5], 0)


@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_the_file_has_the_stated_form(tmp_path, observation):
    run = run_of(tmp_path / "r", observation=observation, alpha=(0.0, 6.0), gamma=0.95)
    found = evaluate(run, episodes=5)
    assert found == evaluate(run, episodes=5)
    assert found["environment"]["id"] == "SafetyCriticalGridWorld-v0"
    assert set(found["references"]) == {"optimal", "behavior"}
    optimal = found["references"]["optimal"]["exact"]
    assert set(optimal) == {"return", "hazard_probability", "goal_probability"}
    assert optimal["return"] == pytest.approx(21.55, abs=0.01)
    assert [(m["algorithm"], m["alpha"]) for m in found["members"]] == [("bc", None), ("cql", 0.0), ("cql", 6.0)]
    environment = make_environment(environment_spec(run.config()))
    model = TabularMDP.from_env(environment)
    for member in found["members"]:
        assert set(member["rollout"]) == {"episodes", "return_mean", "return_std", "hazard_rate", "goal_rate",
                                          "action_mismatch_rate", "unsupported_action_rate"}
        assert set(member["exact"]) == {"return", "hazard_probability", "goal_probability", "discounted_value"}
        assert member["exact"]["return"] <= optimal["return"] + 1e-9
        assert (member["value_estimate"] is None) == (member["algorithm"] == "bc")
    cql = Policy.load(run.policy_path("cql-a6-s42-d42"))
    states = np.asarray(environment.unwrapped.observe(np.arange(225)))
    assert found["members"][2]["value_estimate"] == pytest.approx(cql.q_values(states[0]).max(), rel=1e-6)
    # the discounted value, by its own long way round: iterate the policy's Bellman equation
    greedy, value = cql.act(states), np.zeros(225)
    for _ in range(1000):
        outcome = model.reward + 0.95 * ~model.terminated * value[model.next_state]
        value = (model.probability * outcome).sum(-1)[np.arange(225), greedy]
    assert found["members"][2]["exact"]["discounted_value"] == pytest.approx(value[0], abs=1e-6)


def test_the_last_log_entry_is_the_evaluation(tmp_path):
    from cql.metrics import read_metrics
    run = run_of(tmp_path / "r")
    found, series = evaluate(run, episodes=2), read_metrics(run.path / "metrics.csv")
    for member, name in zip(found["members"], ("bc-s42-d42", "cql-a6-s42-d42")):
        assert series[name, "exact/return"][1][-1] == pytest.approx(member["exact"]["return"], abs=1e-9)
        assert series[name, "policy/action_mismatch_rate"][1][-1] == pytest.approx(
            member["rollout"]["action_mismatch_rate"], abs=1e-6)
    assert series["cql-a6-s42-d42", "q/start"][1][-1] == pytest.approx(found["members"][1]["value_estimate"], rel=1e-5)


def test_the_table_shows_every_member_and_reference(tmp_path):
    text = table(evaluate(run_of(tmp_path / "r", alpha=(0.0, 6.0)), episodes=2))
    lines = text.splitlines()
    assert len(lines) == 2 + 3 + 2 and lines[2].startswith("BC") and lines[-1].startswith("behavior")
    width = lines[1].index("unsupported") + len("unsupported")  # words on a member may follow
    assert all(len(line[:width].rstrip()) == width for line in lines[2:5])
