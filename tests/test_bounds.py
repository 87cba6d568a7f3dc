"""Predicted minus true value: by hand, by iterating the updates, over resamples, and through the command."""

import numpy as np
import pytest
import torch

from cql.collect import datasets_for
from cql.commands import bounds as bounds_command
from cql.config import Config
from cql.dataset import ARRAYS
from cql.exact import (
    TabularMDP,
    alpha_zero_limit,
    bellman_backup,
    cql_fixed_point,
    evaluate_policies,
    greedy_policy,
    policy_evaluation,
    state_value,
)
from cql.exact.bounds import (
    estimate,
    estimates,
    greedy_estimate,
    minimum,
    penalised_estimates,
    resampled_q,
    trained_estimates,
)
from cql.exact.theorems import chi_square, covered
from cql.members import all_members
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    dataset = datasets_for(Config(episodes=100), {})[0]
    world = World.of(dataset)
    return world.mdp, dataset, *world.empirical(dataset)


def bandit(rewards, counts):
    """One state and the end behind it: (model, counts); the model is also the truth."""
    table = [[[(1.0, 1, r, True)] for r in rewards], [[(1.0, 1, 0.0, True)] for _ in rewards]]
    return TabularMDP.from_P(table, start=0), np.array([counts, [0] * len(counts)])


def test_a_bandit_by_hand():
    """Rewards 5 and 1, beta (1/4, 3/4), alpha_half 2, greedy action 0: Eq. 1 takes 2 * 4 and Eq. 2 takes 2 * 3."""
    mdp, counts = bandit([5.0, 1.0], [1, 3])
    rows = penalised_estimates(mdp, mdp, counts, [4.0], 0.9)
    assert rows["Eq. 1, alpha 4"].at_start == pytest.approx(-8)
    assert rows["Eq. 2, alpha 4"].at_start == pytest.approx(-6)
    found = rows["CQL(H), alpha 4"]
    q = cql_fixed_point(mdp, counts, [4.0], 0.9).q[0, 0]
    p = np.exp(q[0]) / np.exp(q).sum()
    assert found.true_at_start == 5 and found.predicted[0] == q[0]
    assert found.at_start == found.mean == pytest.approx(2 * (1 - p / 0.25), abs=1e-12)
    assert found.share_above == 0 and found.hazard is None


def test_a_rewardless_bandit_is_overestimated_at_any_alpha():
    """All rewards 0, beta (1/4, 3/4): CQL(H) predicts more than nothing for every alpha > 0, more the larger it is."""
    mdp, counts = bandit([0.0, 0.0], [1, 3])
    found = [row.at_start for name, row in penalised_estimates(mdp, mdp, counts, [0.1, 1.0, 10.0, 1e6], 0.9).items()
             if name.startswith("CQL")]
    assert (np.diff([0.0, *found]) > 0).all()
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert found[-1] == pytest.approx(entropy + np.log(0.75), abs=1e-4)        # H - H_min


def test_raising_alpha_can_raise_the_hazard_probability():
    """The safe move stands in 1 % of the log: it is chosen up to alpha about 4, and the hazard from there on."""
    P = [[[(1.0, 1, -1.0, False)], [(1.0, 2, -100.0, True)]],
         [[(1.0, 1, 0.0, True)]] * 2, [[(1.0, 2, 0.0, True)]] * 2]
    true = TabularMDP.from_P(P, hazard=np.array([False, False, True]), start=0)
    counts = np.array([[1, 99], [0, 0], [0, 0]])
    rows = penalised_estimates(true, covered(true, counts), counts, [0.1, 3.9, 4.2, 100.0], 0.99)
    hazard = [row.hazard for name, row in rows.items() if name.startswith("CQL")]
    assert hazard == [0, 0, 1, 1]
    flip = 4 * 99 / (1 / 0.01 - 1 / 0.99)              # the gain 99 = alpha / 4 (1/beta_1 - 1/beta_2)
    assert 3.9 < flip < 4.2


def test_infinite_alpha_is_not_the_most_pessimistic(data):
    """At the start of the grid: far below the truth at moderate alpha, above the behaviour policy at the end."""
    _, _, mdp, counts = data
    q = cql_fixed_point(mdp, counts, [6.0, 1e5], 0.99).q
    seen = counts.any(-1)
    beta = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    value, _ = policy_evaluation(mdp, np.where(seen[:, None], beta, 0.25), 0.99)
    assert (state_value(q[1])[seen] >= value[seen] - 1e-3).all() and (state_value(q[1])[seen] > value[seen] + 0.1).any()
    assert (state_value(q[1])[seen] > state_value(q[0])[seen]).any()


def test_estimates_agree_with_an_evaluation_of_their_own(data):
    true, dataset, mdp, counts = data
    rows, seen = estimates(true, dataset, [0.1, 6.0], 0.99), counts.any(-1) & ~true.terminal
    assert list(rows) == [*(f"{name}, alpha {a}" for a in ("0.1", "6") for name in ("CQL(H)", "Eq. 2", "Eq. 1")),
                          "Q-learning (alpha -> 0+)", "minimum of 10 resamples"]
    q = cql_fixed_point(mdp, counts, [6.0], 0.99).q[0]
    truth = policy_evaluation(true, greedy_policy(q), 0.99)[0]
    found = rows["CQL(H), alpha 6"]
    np.testing.assert_allclose(found.true, truth)
    assert found.at_start == pytest.approx(state_value(q)[true.start] - truth[true.start])
    assert found.mean == pytest.approx((state_value(q) - truth)[seen].mean())
    # of episodes without a step limit; few last longer than 2000 steps under a policy that reaches an end
    hazard = evaluate_policies(true, greedy_policy(q), horizon=2000).hazard_probability
    assert found.hazard == pytest.approx(hazard, abs=1e-3)
    for alpha in ("0.1", "6"):       # Eq. 1 pushes further down than Eq. 2, everywhere
        one, two = (rows[f"{name}, alpha {alpha}"] for name in ("Eq. 1", "Eq. 2"))
        assert (one.predicted[seen] < two.predicted[seen]).all() and one.hazard == two.hazard


def test_equation_2_is_no_bound_where_it_has_no_penalty():
    """A state with one logged action has D = 0: a lucky sample is predicted in full, at any alpha."""
    true = TabularMDP.from_P([[[(0.5, 0, 10.0, True), (0.5, 0, -10.0, True)]] * 2], start=0)
    lucky = TabularMDP.from_P([[[(1.0, 0, 10.0, True)]] * 2], start=0)
    counts = np.array([[1, 0]])
    rows = penalised_estimates(true, covered(lucky, counts), counts, [100.0], 0.9)
    assert chi_square(counts, np.array([[1.0, 0.0]])) == 0
    assert rows["Eq. 2, alpha 100"].at_start == pytest.approx(10)
    assert rows["CQL(H), alpha 100"].at_start == pytest.approx(10)
    assert rows["Eq. 1, alpha 100"].at_start == pytest.approx(10 - 50)


def test_double_q_learning_has_the_fixed_point_of_q_learning(data):
    """Choose with the online Q, value with a target copied every 3 updates: it ends at Q-learning's fixed point."""
    _, _, mdp, counts = data
    logged, terminal = counts > 0, mdp.terminal
    rng = np.random.default_rng(0)
    online = np.where(logged, rng.normal(scale=50, size=counts.shape), -np.inf)
    target = np.where(logged, rng.normal(scale=50, size=counts.shape), -np.inf)
    for step in range(3000):
        chosen = np.take_along_axis(target, online.argmax(-1)[:, None], -1)[:, 0]
        values = np.where(logged.any(-1) & ~terminal, chosen, 0.0)
        online = np.where(logged, bellman_backup(mdp, values, 0.9), -np.inf)
        if step % 3 == 0:
            target = online
    np.testing.assert_allclose(online[logged], alpha_zero_limit(mdp, counts, 0.9)[logged], atol=1e-8)


def test_the_minimum_is_over_members_with_the_pair():
    qs = np.array([[[1.0, -np.inf, -np.inf]], [[0.5, 3.0, -np.inf]]])
    np.testing.assert_array_equal(minimum(qs), [[0.5, 3.0, -np.inf]])


def test_resamples_are_those_of_episodes(data):
    true, dataset, mdp, counts = data
    first, again = (resampled_q(true, dataset, 0.99, resamples=3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, *counts.shape)
    assert not np.isfinite(first[:, (counts == 0) & ~true.terminal[:, None]]).any()
    assert np.isfinite(first).sum() < 3 * np.isfinite(alpha_zero_limit(mdp, counts, 0.99)).sum()
    assert len({q.tobytes() for q in first}) == 3


def test_every_network_and_their_minimum(data):
    true, dataset, _, counts = data
    qs = np.random.default_rng(0).normal(scale=30, size=(4, *counts.shape))
    rows = trained_estimates(true, dataset, qs, 0.99)
    each, least = rows["trained, alpha 0, each seed"], rows["trained, alpha 0, min of 4"]
    assert len(each) == 4 and len(least) == 1
    np.testing.assert_array_equal(least[0].predicted, qs.min(0).max(-1))
    assert least[0].mean < min(e.mean for e in each) + 200
    assert each[1].at_start == greedy_estimate(true, counts, qs[1], 0.99).at_start


def test_an_estimate_counts_states_with_data_only():
    true = TabularMDP.from_P([[[(1.0, s, 1.0, True)]] for s in range(3)], start=np.array([0.5, 0.5, 0.0]))
    found = estimate(true, np.array([[1], [0], [2]]), [2.0, 100.0, 0.0], np.ones((3, 1)), 0.9)
    assert found.mean == pytest.approx(0) and found.share_above == 0.5 and found.at_start == pytest.approx(50)


# ----------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_row_a_method(capsys):
    assert bounds_command.main(["--episodes", "60", "--num-datasets", "2", "--alpha", "6"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 data set(s), gamma 0.99") and text.count(" ± ") == 1 + 5 * 5
    assert bounds_command.main(["--episodes", "60", "--alpha", "6"]) == 0
    assert " ± " not in capsys.readouterr().out.split("\n", 1)[1]


def test_a_run_gives_rows_for_its_networks(tmp_path, capsys):
    """Two tables of numbers in place of trained networks."""
    config = Config(episodes=20, alpha=(0, 6), num_seeds=2, bc_steps=0, hidden=(0,))
    datasets = datasets_for(config, {})
    run = RunFolder.create(str(tmp_path / "run"), config, datasets)
    tables = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 225, 4)
    for member in all_members(config):
        parameters = [tables[member.seed - config.seed].clone()]
        Policy(PopulationMLP(225, 4, (), True), parameters, **vars(member)).save(run.policy_path(member.name))
    assert bounds_command.main([str(run.path), "--alpha", "6"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("trained")]
    true = policy_evaluation(World.of(datasets[0]).mdp, np.eye(4)[np.zeros(225, int)], 0.99)[0][0]   # always up
    assert [row[:4] for row in rows] == [["trained,", "alpha", "0,", "each"], ["trained,", "alpha", "0,", "min"]]
    assert float(rows[0][5]) == pytest.approx(2 - true, abs=0.006)
    assert float(rows[1][6]) == pytest.approx(1 - true, abs=0.006)
    assert bounds_command.main([str(run.path), "--slip", "0"]) == 2
    assert "RUN brings its own data" in capsys.readouterr().err


def test_a_run_without_alpha_zero_is_refused(tmp_path, capsys):
    config = Config(episodes=5)
    RunFolder.create(str(tmp_path / "run"), config, datasets_for(config, {}))
    assert bounds_command.main([str(tmp_path / "run")]) == 2
    assert "has no CQL member at alpha 0" in capsys.readouterr().err


@pytest.mark.parametrize("argv, sentence", [
    (["--gamma", "1"], "--gamma must be below 1"),
    (["--alpha", "6", "6"], "--alpha names a value twice"),
    (["/nowhere"], "is no run folder"),
    (["--env", "FrozenLake-v1"], "the behaviour policy knows SafetyCriticalGridWorld only"),
])
def test_bad_input_gets_one_sentence(argv, sentence, capsys):
    assert bounds_command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_a_run_of_the_huber_loss_is_refused(tmp_path, capsys):
    config = Config(episodes=20, alpha=(0,), bc_steps=0, hidden=(0,), td_loss="huber")
    run = RunFolder.create(str(tmp_path / "run"), config, datasets_for(config, {}))
    assert bounds_command.main([str(run.path), "--alpha", "6"]) == 2
    assert "minimised the Huber loss" in capsys.readouterr().err


def test_broken_episodes_are_refused_since_episodes_are_resampled(tmp_path, capsys):
    [whole] = datasets_for(Config(episodes=5), {})
    kept = np.delete(np.arange(len(whole)), 1)
    np.savez(tmp_path / "broken.npz", **{name: getattr(whole, name)[kept] for name in ARRAYS
                                      if getattr(whole, name) is not None})
    argv = ["--dataset", str(tmp_path / "broken.npz"), "--map", "islands"]
    assert bounds_command.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: episodes are broken in 1 place, first after transition 0")
    assert bounds_command.main([*argv, "--split-episodes"]) == 0
