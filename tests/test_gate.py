"""The gate: exact measures are the evaluation's, limits from episodes hold, a miss is said with by how much."""

import math

import gymnasium
import numpy as np
import pytest
import scipy
import torch

from cql.analysis.statistics import binomial_cdf, clopper_pearson, cluster_rate, hoeffding
from cql.collect import make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.gate import TEST_SEED, Limits, judge, table
from cql.deploy.model import Model
from cql.errors import RunError
from cql.members import Member
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World
from tests.test_evaluation import policy_of

pytestmark = pytest.mark.slow
ANY = Limits(max_hazard=1, min_return=-1e9, max_unsupported=1)


class Unknown(gymnasium.Env):
    """The GridWorld without its table: what a simulator shows, and nothing more."""

    def __init__(self, **arguments):
        grid = make_environment({"id": "SafetyCriticalGridWorld-v0", "arguments": arguments, "max_episode_steps": 80})
        self._grid = grid.unwrapped
        self.observation_space, self.action_space = self._grid.observation_space, self._grid.action_space

    def reset(self, *, seed=None, options=None):
        return self._grid.reset(seed=seed, options=options)

    def step(self, action):
        return self._grid.step(action)


@pytest.fixture(scope="module", autouse=True)
def unknown():
    gymnasium.register("Unknown-v0", entry_point=Unknown, max_episode_steps=80)
    yield
    del gymnasium.registry["Unknown-v0"]


def model_of(deployable, name, **changes) -> Model:
    """A member of the run, with another environment or policy if so asked."""
    model = Model.of_run(deployable, name)
    return Model(**{**{field: getattr(model, field) for field in Model.__dataclass_fields__}, **changes})


def without_table(model: Model) -> Model:
    environment = make_environment({"id": "Unknown-v0", "max_episode_steps": 80,
                                    "arguments": dict(model.dataset.metadata["environment"]["arguments"])})
    assert World.around(environment).mdp is None
    return Model(**{**{f: getattr(model, f) for f in Model.__dataclass_fields__}, "world": World.around(environment)})


def measures(gate) -> dict:
    return {measure["name"]: measure for measure in gate["measures"]}


# ---------------------------------------------------------------------------------------------------- where it is exact


@pytest.mark.parametrize("name", ["bc-s42-d42", "cql-a6-s42-d42"])
def test_exact_measures_are_those_of_the_evaluation(deployable, name):
    found = judge(Model.of_run(deployable, name), ANY)
    [entry] = [e for e in RunFolder(deployable).read_json("evaluation.json")["members"] if Member(
        e["algorithm"], e["alpha"], e["seed"], e["data_seed"]).name == name]
    assert found["exact"] and found["passed"] and found["reasons"] == []
    for measure, value in (("hazard_probability", entry["exact"]["hazard_probability"]),
                           ("return", entry["exact"]["return"]),
                           ("unsupported_action_rate", entry["exact_unsupported_action_rate"])):
        m = measures(found)[measure]
        assert m["value"] == m["low"] == m["high"] == value and m["passed"] and m["missed_by"] == 0


def test_a_limit_is_missed_by_what_lies_between(deployable):
    model = Model.of_run(deployable, "cql-a6-s42-d42")
    value = {name: m["value"] for name, m in measures(judge(model, ANY)).items()}
    hazard, returns = value["hazard_probability"], value["return"]
    at = judge(model, Limits(max_hazard=hazard, min_return=returns, max_unsupported=1))
    assert at["passed"]  # a limit that is just met is met
    found = judge(model, Limits(max_hazard=hazard / 2, min_return=returns + 3, max_unsupported=1))
    assert not found["passed"] and [m["passed"] for m in found["measures"]] == [False, False, True]
    assert measures(found)["hazard_probability"]["missed_by"] == pytest.approx(hazard / 2)
    assert measures(found)["return"]["missed_by"] == pytest.approx(3)
    assert found["reasons"] == [
        f"the hazard probability is {hazard:.4g}: above the most allowed, {hazard / 2:.4g}, by {hazard / 2:.4g}.",
        f"the return is {returns:.4g}: below the least allowed, {returns + 3:.4g}, by 3."]
    assert table(found).count("MISSED") == 2 and table(found).count("passed") == 1


def test_frozen_lake_is_judged_by_its_table():
    lake = make_environment({"id": "FrozenLake-v1", "arguments": {"is_slippery": False}, "max_episode_steps": 20})
    path = [1, 2, 1, 0, 1, 0, 1, 0, 2, 1, 1, 0, 0, 2, 2, 0]  # from the start to the goal: no hole, return 1
    data = OfflineDataset.from_arrays([0, 4, 8, 9, 13, 14], [1, 1, 2, 1, 2, 2], [0, 0, 0, 0, 0, 1],
                                      [4, 8, 9, 13, 14, 15], [False] * 5 + [True],
                                      metadata={"num_states": 16, "num_actions": 4})
    safe, hole = ([*path[:4], 1, *path[5:]], [*path[:4], 2, *path[5:]])
    for actions, hazard, returned, share in ((safe, 0, 1, 0), (hole, 1, 0, 0.5)):  # down, then right into the hole
        model = Model(Member("bc", None, 0, 0), policy_of(np.array(actions)), data, Config(), None, World.around(lake))
        value = {name: m["value"] for name, m in measures(judge(model, ANY)).items()}
        assert value == {"hazard_probability": pytest.approx(hazard), "return": pytest.approx(returned),
                         "unsupported_action_rate": pytest.approx(share)}


# ------------------------------------------------------------------------------------------------------ where it is not


def test_limits_from_episodes_hold_the_exact_values(deployable):
    exact = Model.of_run(deployable, "bc-s42-d42")
    known, found = judge(exact, ANY), judge(without_table(exact), ANY)
    assert not found["exact"] and (found["episodes"], found["seed"], found["confidence"]) == (1000, TEST_SEED, 0.95)
    assert found == judge(without_table(exact), ANY)  # a fixed test set
    for name, m in measures(found).items():
        assert m["low"] <= measures(known)[name]["value"] <= m["high"] and m["low"] <= m["value"] <= m["high"], name
        assert m["high"] - m["low"] > 0
    assert 0.01 < measures(known)["hazard_probability"]["value"] < 0.99  # a case that could fail


def test_the_worse_end_must_meet_the_limit(deployable):
    model = without_table(Model.of_run(deployable, "bc-s42-d42"))
    found = measures(judge(model, ANY))
    hazard, returns = found["hazard_probability"], found["return"]
    between = Limits((hazard["value"] + hazard["high"]) / 2, (returns["value"] + returns["low"]) / 2, 1)
    verdict = judge(model, between)
    assert not verdict["passed"] and len(verdict["reasons"]) == 2
    assert measures(verdict)["hazard_probability"]["missed_by"] == pytest.approx(hazard["high"] - between.max_hazard)
    assert measures(verdict)["return"]["missed_by"] == pytest.approx(between.min_return - returns["low"])
    assert "its upper 95 % limit" in verdict["reasons"][0] and "its lower 95 % limit" in verdict["reasons"][1]
    assert judge(model, Limits(hazard["high"], returns["low"], 1))["passed"]


def cart_pole() -> Model:
    environment = make_environment({"id": "CartPole-v1", "arguments": {}, "max_episode_steps": 40})
    rows, (seen, _) = [], environment.reset(seed=0)
    for t in range(8):
        following, reward, ended, *_ = environment.step(t % 2)
        rows.append((seen, t % 2, reward, following, ended))
        seen = following
    data = OfflineDataset.from_arrays(*map(np.array, zip(*rows)))
    network = PopulationMLP(4, 2, (), discrete=False)
    parameters = [torch.tensor([[[0.0, 0, -1, -1], [0, 0, 1, 1]]]), torch.zeros(1, 1, 2)]
    policy = Policy(network, parameters, "bc", None, 0, 0)
    return Model(Member("bc", None, 0, 0), policy, data, Config(), None, World.around(environment))


def test_an_environment_that_names_no_hazard_leaves_it_unknown():
    found = judge(cart_pole(), Limits(max_hazard=0.99, min_return=1, max_unsupported=1, episodes=30))
    hazard, returns, unsupported = found["measures"]
    assert (hazard["value"], hazard["low"], hazard["high"], hazard["passed"]) == (None, 0, 1, False)
    assert hazard["missed_by"] == pytest.approx(0.01)
    assert found["reasons"] == [
        "the hazard probability is not known here and could be 1: above the most allowed, 0.99, by 0.01."]
    assert returns["passed"] and 1 < returns["value"] <= 40  # one point a step
    assert unsupported["value"] == 0  # BC's own actions are those that BC of the data finds likely
    assert judge(cart_pole(), Limits(1, 1, 1, episodes=30))["passed"]


def test_without_an_environment_there_is_one_reason(deployable):
    found = judge(model_of(deployable, "bc-s42-d42", world=World(None, None)), ANY)
    assert not found["passed"] and found["measures"] == [] and len(found["reasons"]) == 1
    assert "name no environment" in found["reasons"][0] and table(found) == "nothing was measured"


# ------------------------------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize("met, n", [(0, 30), (1, 30), (7, 100), (99, 100), (100, 100), (500, 1000), (3, 20_000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_clopper_pearson_is_scipys(met, n, level):
    expected = scipy.stats.binomtest(met, n).proportion_ci(level, "exact")
    np.testing.assert_allclose(clopper_pearson(met, n, level), expected, atol=1e-9, rtol=1e-7)


def test_the_binomial_tail_by_hand_and_by_scipy():
    assert binomial_cdf(1, 3, 0.5) == pytest.approx(0.5) and binomial_cdf(0, 2, 0.1) == pytest.approx(0.81)
    assert binomial_cdf(480, 1000, 0.5) == pytest.approx(scipy.stats.binom.cdf(480, 1000, 0.5), rel=1e-9)


def test_hoeffdings_limits_by_hand():
    """Of a mean of 0, KL(0 || m) = -ln(1 - m), so that the upper limit is 1 - (error / 2)^(1/n); and mirrored at 1."""
    low, high = hoeffding(0.0, 100, 0.95)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** 0.01)
    assert hoeffding(1.0, 100, 0.95) == (pytest.approx(0.025 ** 0.01), 1)
    low, high = hoeffding(0.3, 200, 0.9)
    for m in (low, high):
        assert 200 * (0.3 * math.log(0.3 / m) + 0.7 * math.log(0.7 / (1 - m))) == pytest.approx(math.log(20))
    assert low < 0.3 < high


def test_the_rate_of_a_cluster_by_hand():
    """Each mean at an error of 2.5 %, 1.25 % to a side; a mean at the end of its range has the limit 0.0125^(1/n)."""
    end = 0.0125 ** 0.01
    assert cluster_rate(np.zeros(100), np.full(100, 8), 8, 0.95) == (0, pytest.approx((1 - end) / end))
    assert cluster_rate(np.full(100, 8), np.full(100, 8), 8, 0.95) == (pytest.approx(end), 1)


def test_the_rate_of_a_cluster_is_covered():
    """Episodes that are unsupported from their first step to their last, or not at all, long ones more often."""
    random, level, most = np.random.default_rng(0), 0.8, 50
    true = (0.02 * 10 + 0.10 * 50) / 60  # lengths 10 and 50 with equal chance
    outside, naive = 0, 0
    for _ in range(300):
        long = random.random(200) < 0.5
        whole = np.where(long, 50, 10)
        part = whole * (random.random(200) < np.where(long, 0.1, 0.02))
        low, high = cluster_rate(part, whole, most, level)
        outside += not low <= true <= high
        steps = scipy.stats.binomtest(int(part.sum()), int(whole.sum())).proportion_ci(level, "exact")
        naive += not steps.low <= true <= steps.high
    assert outside <= 300 * 0.2 < naive  # what takes steps for independent promises too much


@pytest.mark.parametrize("wrong", [
    {"max_hazard": math.nan}, {"max_hazard": -0.1}, {"max_hazard": 1.1}, {"max_hazard": True}, {"max_hazard": "0"},
    {"min_return": math.inf}, {"min_return": None}, {"max_unsupported": 2}, {"confidence": 1}, {"confidence": 0},
    {"episodes": 29}, {"episodes": 30.5}, {"episodes": 10**9}])
def test_limits_out_of_range_are_refused(wrong):
    [name] = wrong
    with pytest.raises(RunError, match=rf"^{name} must [^\n]*\.$"):
        Limits(**wrong)
