"""Pictures of runs: which are drawn, that drawing is repeatable, and the numbers behind them by direct computation."""

import math
import struct
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import envs
import train
from cql import world
from cql.analysis.figures import data as figure_data
from cql.analysis.figures import maps, plots
from cql.analysis.figures.data import RunData
from cql.dataset import OfflineDataset
from cql.errors import RunError
from cql.exact import TabularMDP, evaluate_policies
from cql.members import Member
from cql.metrics import METRICS, MetricsLog
from cql.run_folder import RunFolder

pytestmark = pytest.mark.slow
TINY = ["--hidden", "8", "--steps", "20", "--bc-steps", "10", "--log-every", "10", "--device", "cpu"]
ALL = ["losses", "outcomes", "policy_map", "silent", "visitation"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Here there are."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two alphas, two seeds, on a small map that is not square and has corners the data hardly reach."""
    folder = tmp_path_factory.mktemp("plots")
    (folder / "map.txt").write_text("S..H.\n.H...\n....G\n")
    assert train.main([*TINY, "--map", str(folder / "map.txt"), "--episodes", "8", "--alpha", "0", "5",
                       "--num-seeds", "2", "--out", str(folder / "run")]) == 0
    return RunFolder.open(folder / "run")


@pytest.fixture(scope="module")
def run_data(run):
    return RunData.of(run)


def drawn(run):
    return {path.stem: path.read_bytes() for path in sorted((run.path / "figures").glob("*"))}


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[-12:-4] == b"\0\0\0\0IEND"
    return struct.unpack(">II", png[16:24])


def images(run):
    events = EventFileLoader(str(MetricsLog(run.path).event_path("figures"))).Load()
    return [value.tag for event in events for value in event.summary.value]


def test_a_run_is_drawn_when_it_ends(run):
    assert list(drawn(run)) == ALL
    for name, png in drawn(run).items():
        width, height = size(png)
        assert 1500 <= width <= 1800 and 400 <= height <= 2500, name
        assert b"Software" not in png


def test_drawing_again_changes_nothing(run):
    before, files = drawn(run), run.files()
    paths = plots.draw_all(run)
    assert sorted(path.stem for path in paths) == ALL
    assert drawn(run) == before and run.files() == files
    assert sorted(images(run)) == ALL


def test_tensorboard_has_the_means_over_the_members_of_each_group(run, run_data):
    """Each metric at each entry, by hand from the log of the two members; written a second time here."""
    groups = {"bc, mean of 2 members": "bc-s{}-d42", "alpha=0, mean of 2 members": "cql-a0-s{}-d42",
              "alpha=5, mean of 2 members": "cql-a5-s{}-d42"}
    stale = MetricsLog(run.path).event_path("alpha=5, mean of 3 members")  # of an earlier evaluation
    stale.parent.mkdir()
    stale.write_bytes(b"")
    MetricsLog(run.path).write_means(figure_data.means(run_data))
    assert {path.parent.name for path in run.path.glob("tensorboard/*, mean of */*")} == groups.keys()
    for name, member in groups.items():
        events = EventAccumulator(str(run.path / "tensorboard" / name))
        events.Reload()
        logged = {metric for who, metric in run_data.series if who == member.format(42)}
        assert set(events.Tags()["scalars"]) == logged
        for metric in logged:
            steps, values = zip(*(run_data.series[member.format(seed), metric] for seed in (42, 43)))
            assert [scalar.step for scalar in events.Scalars(metric)] == steps[0]
            np.testing.assert_allclose([scalar.value for scalar in events.Scalars(metric)],
                                       [(a + b) / 2 for a, b in zip(*values)], rtol=1e-6)
            assert events.summary_metadata[metric].summary_description == METRICS[metric][1]


def test_means_leave_out_members_that_are_not_finite_and_groups_of_one(run_data):
    """Of alpha 0 one member is left, which is no mean; BC and alpha 5 have two."""
    sound = [member for member in run_data.members if (member.alpha, member.seed) != (0.0, 43)]
    found = figure_data.means(replace(run_data, members=sound))
    assert list(found) == ["alpha=5, mean of 2 members", "bc, mean of 2 members"]
    assert list(found["alpha=5, mean of 2 members"]) == [10, 20]
    expected = np.mean([run_data.series[f"cql-a5-s{seed}-d42", "q/start"][1][1] for seed in (42, 43)])
    assert found["alpha=5, mean of 2 members"][20]["q/start"] == pytest.approx(expected, rel=1e-12)


def test_means_belong_to_no_checkpoint(run):
    """They are derived: a change of theirs does not stop an evaluation, and a resume deletes and draws them again."""
    files = run.files()
    (means,) = run.path.glob("tensorboard/bc, mean of 2 members/*")
    means.write_bytes(b"cut short")
    run.check_manifest(derived=False)
    with pytest.raises(RunError, match="is not what its manifest records"):
        run.check_manifest()
    assert train.main(["--resume", str(run.path)]) == 0
    run.check_manifest()
    assert run.files() == files and means.stat().st_size > 1000


@pytest.mark.parametrize("vectors, expected", [(False, ["losses", "silent", "visitation"]), (True, ["losses"])])
def test_plain_arrays_are_drawn_as_far_as_they_go(tmp_path, coarse, vectors, expected):
    random = np.random.default_rng(0)
    states, following = random.integers(0, 6, (2, 60))
    table = random.normal(size=(6, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", observations=table[states] if vectors else states,
             next_observations=table[following] if vectors else following, actions=random.integers(0, 3, 60),
             rewards=random.normal(size=60), terminations=random.random(60) < 0.1)
    assert train.main([*TINY, "--dataset", str(tmp_path / "data.npz"), "--out", str(tmp_path / "run")]) == 0
    assert list(drawn(RunFolder.open(tmp_path / "run"))) == expected


@pytest.mark.parametrize("options, expected", [
    (["--observation", "coordinates", "--steps", "0"], ["losses", "outcomes", "policy_map", "visitation"]),
    (["--bc-steps", "0", "--gamma", "1"], ALL)])
def test_one_algorithm_alone_is_drawn(tmp_path, coarse, options, expected):
    (tmp_path / "map.txt").write_text("SG\n..\n")
    assert train.main([*TINY, "--map", str(tmp_path / "map.txt"), "--episodes", "3", *options,
                       "--out", str(tmp_path / "run")]) == 0
    assert list(drawn(RunFolder.open(tmp_path / "run"))) == expected


def test_a_policy_is_drawn_without_a_run_folder(run_data):
    world, actions = run_data.world, np.arange(15) % 4
    bare, full = maps.draw_policy(world, actions), maps.draw_policy(world, actions, np.ones(15), run_data.dataset, "T")
    assert len(full.axes) == len(bare.axes) + 1 and full.texts[0].get_text() == "T"  # the colour bar of the values
    assert "state never visited" in {text.get_text() for text in full.legends[0].get_texts()}
    with pytest.raises(ValueError, match="no map"):
        maps.draw_policy(world.around(None), actions)


# ------------------------------------------------------------------------------------------ the numbers in the pictures


def test_ood_gap():
    q = np.array([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    counts = np.array([[1, 0, 4], [0, 3, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(figure_data.ood_gap(q, counts), [2 - 5, 5 - 2, np.nan, np.nan])


def test_cross_entropy_floor_is_the_entropy_of_the_data():
    dataset = OfflineDataset.from_arrays([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], np.zeros(6), [1] * 6, [False] * 6)
    expected = (4 * (-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) + 2 * 0) / 6
    assert dataset.action_entropy() == pytest.approx(expected, rel=1e-14)


def test_pair_counts_of_indices_and_of_vectors_agree():
    random = np.random.default_rng(1)
    states, actions = random.integers(0, 5, 40), random.integers(0, 3, 40)
    expected = np.zeros((5, 3), dtype=int)
    for s, a in zip(states, actions):
        expected[s, a] += 1
    inputs = random.permutation(10).reshape(5, 2).astype(np.float32)
    rest = np.zeros(40), [False] * 40
    index = OfflineDataset.from_arrays(states, actions, rest[0], states, rest[1])
    vector = OfflineDataset.from_arrays(inputs[states], actions, rest[0], inputs[states], rest[1])
    np.testing.assert_array_equal(world.pair_counts(index, np.arange(5)), expected)
    np.testing.assert_array_equal(world.pair_counts(vector, inputs), expected)
    foreign = world.states_of(np.array([[0.5, 0.5], inputs[3]], dtype=np.float32), inputs)
    assert foreign.tolist() == [-1, 3]


@pytest.mark.parametrize("name, moves", [
    ("FrozenLake-v1", [(0, -1), (1, 0), (0, 1), (-1, 0)]),  # left, down, right, up, and slippery
    ("CliffWalking-v1", [(-1, 0), (0, 1), (1, 0), (0, -1)]),  # up, right, down, left, with teleports off the cliff
    ("envs:SafetyCriticalGridWorld-v0", [(-1, 0), (1, 0), (0, -1), (0, 1)])])
def test_moves_are_read_off_the_transition_table(name, moves):
    try:
        environment = gymnasium.make(name)
    except gymnasium.error.Error as error:  # the version number of a toy-text environment differs between releases
        pytest.skip(str(error))
    mdp = TabularMDP.from_env(environment)
    shape = world.grid_shape(environment, mdp.num_states)
    assert shape[0] * shape[1] == mdp.num_states
    np.testing.assert_array_equal(world.action_moves(mdp, shape), moves)


def test_states_that_are_no_cells_have_no_board():
    taxi = SimpleNamespace(unwrapped=SimpleNamespace(desc=np.full((7, 11), b" ")))  # 500 states, of which a cell has 20
    assert world.grid_shape(taxi, 500) is None


def test_exact_values_at_the_start_are_the_evaluations(run_data):
    """Discounted: as evaluation.json has it. At gamma 1, where an episode may never end: over the horizon."""
    members = run_data.members
    actions = np.stack([run_data.policy(member).act(run_data.inputs) for member in members])
    entries = run_data.evaluation["members"]
    start, horizon = run_data.world.mdp.start, run_data.world.horizon
    values, q, _ = figure_data.exact_values(run_data.world.mdp, actions, run_data.config.gamma, horizon)
    evaluated = [entry["exact"]["discounted_value"] for entry in entries]
    np.testing.assert_allclose(values[:, start], evaluated, rtol=1e-10)
    logged = [run_data.series[member.name, "exact/discounted_value"][1][-1] for member in members]
    np.testing.assert_allclose(logged, evaluated, rtol=1e-10)
    np.testing.assert_allclose(np.take_along_axis(q, actions[..., None], -1)[..., 0], values, rtol=1e-9, atol=1e-9)
    endless = TabularMDP.from_P({0: {0: [(1.0, 0, -1.0, False)]}}, start=0)
    assert figure_data.exact_values(endless, np.zeros((1, 1), dtype=int), 1.0, 80)[0][0, 0] == -80


def test_the_shown_member_is_the_one_nearest_the_default_alpha():
    members = [Member("cql", alpha, *seeds) for seeds in ((3, 7), (4, 7), (3, 8)) for alpha in (0.0, 4.0, 8.0, 20.0)]
    assert figure_data.shown_member(members, "cql") == Member("cql", 4.0, 3, 7)
    assert figure_data.shown_member(members, "bc") is None


def test_curves_hold_every_member_of_a_group(run_data):
    updates, values = figure_data.curves(run_data, "losses/total")["cql", 5.0]
    assert updates.tolist() == [10, 20]
    expected = [run_data.series[f"cql-a5-s{seed}-d42", "losses/total"][1] for seed in (42, 43)]
    np.testing.assert_array_equal(values, expected)
    assert ("bc", None) not in figure_data.curves(run_data, "losses/total")


def test_outcomes_hold_members_references_and_errors(run_data):
    found = figure_data.outcomes(run_data, "hazard_probability")
    assert list(found) == [("behavior", None), ("bc", None), ("cql", 0.0), ("cql", 5.0), ("optimal", None)]
    mine = [e for e in run_data.evaluation["members"] if e["alpha"] == 5.0]
    assert found["cql", 5.0].exact == [e["exact"]["hazard_probability"] for e in mine]
    rates = [e["rollout"]["hazard_rate"] for e in mine]
    assert found["cql", 5.0].rollout == pytest.approx(np.mean(rates))
    assert found["cql", 5.0].error == pytest.approx(np.mean([np.std([1] * round(30 * r) + [0] * round(30 * (1 - r)),
                                                                   ddof=1) / 30**0.5 for r in rates]))
    policy = envs.safe_behavior_policy(run_data.world.environment, run_data.config.epsilon)
    exact = evaluate_policies(run_data.world.mdp, policy, horizon=run_data.world.horizon)
    assert found["behavior", None].exact == [pytest.approx(exact.hazard_probability)]
    dataset = run_data.dataset
    ended = dataset.rewards[dataset.terminations]
    assert found["behavior", None].rollout == pytest.approx((ended < 0).sum() / 8)
    returns = figure_data.outcomes(run_data, "return")["behavior", None]
    assert returns.rollout == pytest.approx(dataset.episode_returns().mean())


def test_standard_error_of_a_single_episode_is_unknown():
    assert figure_data.standard_error({"episodes": 1, "return_mean": 3.0, "return_std": None}, "return") is None
