"""FQE with networks against hand-computed values, support of vectors, and the table of runs on given data."""

import json
import math

import numpy as np
import pytest
import torch

from cql.analysis import evaluation, fqe, judging
from cql.analysis.judging import Worths, doubt, verdict
from cql.dataset import OfflineDataset
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.world import World

pytestmark = pytest.mark.slow


def linear_policy(weight, bias, algorithm="cql") -> Policy:
    """The policy whose outputs are ``weight @ observation + bias``."""
    weight, bias = torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)
    network = PopulationMLP(weight.shape[1], len(bias), (), discrete=False)
    return Policy(network, [weight[None], bias[None, None]], algorithm, None if algorithm == "bc" else 1.0, 42, 42)


def chain(episodes: int = 60, seed: int = 0) -> OfflineDataset:
    """Three states as unit vectors: action 1 goes on for reward 1, from the last one to an end; action 0 pays 0 and
    stays."""
    random, rows = np.random.default_rng(seed), []
    for episode in range(episodes):
        state, done = 0, False
        while not done:
            action = int(random.random() < 0.5)
            following = state + action
            done = following == 3
            rows.append((np.eye(3)[state], action, float(action), np.eye(3)[min(following, 2)], done, False, episode))
            state = following
    return OfflineDataset.from_arrays(*map(np.array, zip(*rows)))


def test_fqe_gives_the_exact_values_of_a_chain_within_two_hundredths():
    always, until_two = linear_policy(np.zeros((2, 3)), [0.0, 1.0]), linear_policy([[0, 0, 2], [1, 1, 0]], [0.0, 0.0])
    data = chain()
    found = fqe.fitted_values(data, [always, until_two], 0.9, None, resamples=2, updates=700)
    # on and on: 1 + 0.9 + 0.81; on twice, then for ever at reward 0: 1 + 0.9
    assert found.values == pytest.approx(np.array([[2.71] * 3, [1.9] * 3]), abs=0.02)
    assert found.clipped.tolist() == [0.0, 0.0]
    assert found.logged[0] == pytest.approx(fqe.discounted_returns(data, 0.9).mean(), abs=0.25)


def test_what_was_logged_is_estimated_beyond_the_cut():
    """Each action at random: V(2) = 0.5 + 0.45 V(2) = 0.909, and so back V(1) = 1.653, V(0) = 2.262."""
    whole = chain(400)
    kept = np.concatenate([np.arange(start, min(start + 2, end)) for start, end in zip(
        whole.episode_starts, [*whole.episode_starts[1:], len(whole)])])
    arrays = {name: getattr(whole, name)[kept] for name in (
        "observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids")}
    arrays["truncations"] = ~arrays["terminations"] & np.append(np.diff(arrays["episode_ids"]) > 0, True)
    # two steps of each episode never show the last state's actions: 40 whole episodes do
    some = {name: np.concatenate([column, getattr(whole, name)[: whole.episode_starts[40]]])
            for name, column in arrays.items()}
    some["episode_ids"][len(kept):] += 400
    found = fqe.fitted_values(OfflineDataset.from_arrays(**some), [linear_policy(np.zeros((2, 3)), [0.0, 1.0])], 0.9,
                              None, with_logged=True, resamples=2, updates=700)
    assert found.values[0] == pytest.approx(np.full(3, 2.71), abs=0.02)
    assert found.values[1] == pytest.approx(np.full(3, 2.262), abs=0.15) and found.logged[0] < 1.3


def test_the_values_that_rewards_allow():
    assert fqe.allowed_values(np.array([-1.0]), 0.5, 2) == (-1.5, -1.0)
    assert fqe.allowed_values(np.array([-1.0, 3.0]), 0.5, None) == (-2.0, 6.0)
    assert fqe.allowed_values(np.array([0.0, 1.0]), 1.0, 200) == (0.0, 200.0)


def test_discounted_returns_start_anew_in_every_episode():
    data = OfflineDataset.from_arrays(np.zeros((3, 1)), [0, 0, 1], [1.0, 2.0, 4.0], np.zeros((3, 1)),
                                      [False, True, True])
    assert fqe.discounted_returns(data, 0.5).tolist() == [2.0, 4.0]


def test_a_target_out_of_reach_withholds_the_estimate():
    steady = np.concatenate([[10.0], np.linspace(9, 11, 20)])
    assert doubt(steady, 0.0, 10.0) == ""
    assert "targets" in doubt(steady, 0.02, 10.0)
    assert "resamples" in doubt(np.concatenate([[56177.0], steady[1:]]), 0.0, 56177.0)
    assert "moved" in doubt(steady, 0.0, 12.0)


@pytest.mark.parametrize("difference, word", [
    ([2.0, 0.5, 3.5], "better"), ([2.0, -0.5, 4.5], "cannot tell"), ([-2.0, -3.0, -1.0], "not better"),
    ([0.0, 0.0, 0.0], "not better"), ([2.0, None, None], "cannot tell"), (None, "cannot tell")])
def test_verdicts(difference, word):
    assert verdict(difference) == word


def test_rollouts_against_what_was_logged_by_hand():
    rollouts = np.array([[9.0, 10, 11, 9, 10, 11], [10.0, 10, 10, 10, 10, 10]])
    worths = Worths("rollouts", rollouts, np.array([4.0, 5, 6, 4, 5, 6]))
    mean, low, high = worths.cell([0], to_logged=True)
    # two means of six values with variance 0.8: standard error sqrt(2 * 0.8 / 6) = 0.5164, Student's t(5) = 2.571
    assert (mean, low, high) == pytest.approx((5, 5 - 1.3275, 5 + 1.3275), abs=0.01)
    assert worths.of_logged() == pytest.approx([5, 5 - 0.9387, 5 + 0.9387], abs=0.01)
    assert worths.cell([0], [1])[0] == 0
    few = Worths("rollouts", rollouts[:, :3], np.array([4.0, 5, 6]))
    assert few.cell([0]) == [10.0, None, None] and verdict(few.cell([0], to_logged=True)) == "cannot tell"


def test_from_six_networks_on_an_interval_covers_training():
    returns = np.array([[1.0], [2], [3], [4], [5], [6]])
    mean, low, high = Worths("exact", returns, None).cell(list(range(6)))
    assert (mean, low, high) == pytest.approx((3.5, 3.5 - 1.963, 3.5 + 1.963), abs=0.01)  # t(5) sqrt(3.5 / 6)
    assert Worths("exact", returns, None).cell([0, 1]) == [1.5, 1.5, 1.5]
    assert Worths("exact", np.array([[math.nan]]), None).cell([0]) is None
    same = Worths("exact", np.array([[-200 + 9e-14], [-200.0]]), None).cell([0], [1])
    assert same == [0, 0, 0] and verdict(same) == "not better"  # they act alike, and sums round


def test_estimates_without_belief_have_no_cell_and_no_verdict():
    values = np.array([np.linspace(9, 11, 21), np.linspace(9, 11, 21)])
    worths = Worths("networks", values, np.zeros(21), [None, None], ["", "too bad"])
    assert worths.cell([0], to_logged=True)[1] > 0 and worths.cell([0, 1]) is None and worths.why([1]) == ["too bad"]
    cut = Worths("networks", values, np.zeros(21), [None, None], ["", ""], "cut off")
    assert cut.cell([0], to_logged=True) is None


def test_a_table_without_intervals_and_shares_does_not_speak_of_them():
    judged = {"rows": [{"value": None, "alpha": None, "why": ["1 episode, fewer than 12"]}], "estimates": [],
              "logged_episodes": 1, "source": "networks", "cut": None, "logged_estimated": False,
              "bc": "BC", "misfit": None}
    assert judging.notes(judged) == ["No estimate for BC: 1 episode, fewer than 12.",
                                     "These are estimates from the log alone: nothing was tried out."]


def test_support_of_vectors_is_a_share_of_the_most_likely_action():
    data, cloned = chain(4), linear_policy([[math.log(0.31), 0, 0], [0, math.log(0.29), 0]], [0.0, 0.0], "bc")
    support = evaluation.supports_of(World.around(None), [data], [data, data], [cloned, linear_policy(
        np.zeros((2, 3)), [0, 1])])[1]
    assert support.supported([1.0, 0, 0], 0) and support.supported([1.0, 0, 0], 1)  # 0.31 of the most likely
    assert not support.supported([0, 1.0, 0], 1) and support.supported([0, 1.0, 0], 0)  # 0.29 of it
    assert support.unsupported(np.eye(3), np.array([0, 1, 1])).tolist() == [False, True, False]
    without = evaluation.supports_of(World.around(None), [data], [data], [linear_policy(np.zeros((2, 3)), [0, 1])])[0]
    assert without.supported([1.0, 0, 0], 0) is None and without.unsupported(np.eye(3), np.zeros(3, int)) is None


@pytest.fixture(scope="module")
def judged_chain(tmp_path_factory):
    """A run on the chain, which names no environment, and the table that it prints."""
    import train

    patch = pytest.MonkeyPatch()
    patch.setattr(fqe.fitted_values, "__defaults__", (False, fqe.RESAMPLES, 300, 0))
    folder = tmp_path_factory.mktemp("judged")
    chain(30).save(folder / "chain.npz")
    try:
        assert train.main(["--dataset", str(folder / "chain.npz"), "--alpha", "0.1", "--steps", "200", "--bc-steps",
                           "200", "--hidden", "16", "--gamma", "0.9", "--out", str(folder / "run")]) == 0
        yield folder / "run"
    finally:
        patch.undo()


def test_a_run_on_vectors_alone_is_judged_by_networks(judged_chain):
    judged = json.loads((judged_chain / "judging.json").read_text())
    assert judged["source"] == "networks" and judged["gamma"] == 0.9 and judged["cut"] is None
    logged, cloned, learned = judged["rows"]
    assert (logged["policy"], cloned["policy"], learned["alpha"]) == ("logged", "bc", 0.1)
    assert logged["value"][1] < logged["value"][0] < logged["value"][2]
    assert cloned["unsupported"] == 0.0 and cloned["minus_bc"] is None
    for row in (cloned, learned):
        assert row["than_logged"] in ("better", "not better", "cannot tell")
        assert (row["value"] is None) == bool(row["why"])
    text = judging.table(judged)
    assert text.startswith("Is it better than what was logged? (discounted return, FQE with networks")
    assert "nothing was tried out" in text and not any(set(line.split()) == {"–"} for line in text.splitlines())


def test_the_report_of_such_a_run_shows_the_table_and_no_column_of_dashes(judged_chain):
    import evaluate
    from cql.deploy import gate
    from cql.deploy.explanation import Explainer
    from cql.deploy.model import Model

    assert evaluate.main([str(judged_chain), "--report"]) == 0
    page = (judged_chain / "report.html").read_text()
    assert "Is it better than what was logged?" in page and "what was logged" in page
    assert "no statement about them" not in page and (judged_chain / "figures" / "report_judged.png").exists() == any(
        row["value"] for row in json.loads((judged_chain / "judging.json").read_text())["rows"] if row["alpha"])
    model = Model.of_run(judged_chain)
    found = Explainer(model).explain([1.0, 0.0, 0.0], 1)
    assert found["support"]["supported"] is True
    assert "Behaviour Cloning of the data finds this action likely" in found["text"]
    alone = Model(model.member, model.policy, model.dataset, model.config, model.final_alpha, model.world)
    assert Explainer(alone).explain([1.0, 0.0, 0.0], 1)["support"]["supported"] is None
    assert gate.judge(alone, gate.Limits())["passed"] is False
