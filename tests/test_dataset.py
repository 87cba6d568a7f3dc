"""The data set: validated once, saved byte for byte, compressed without loss; collection with exact propensities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import envs
from cql.collect import (
    datasets_for,
    environment_spec,
    generate_offline_episodes,
    make_environment,
    summary,
)
from cql.config import Config
from cql.dataset import OfflineDataset, number_rows
from cql.errors import ConfigError, DatasetError
from cql.exact import TabularMDP, evaluate_policies
from cql.world import World, pair_counts


def arrays(**changes):
    base = dict(observations=[0, 1, 2, 0], actions=[1, 0, 2, 1], rewards=[-1.0, -1.0, 50.0, -1.0],
                next_observations=[1, 2, 3, 1], terminations=[False, False, True, False],
                truncations=[False, False, False, True])
    return {name: np.array(value) if value is not None else None for name, value in {**base, **changes}.items()}


def collected(n_episodes=60, seed=42, **settings):
    return generate_offline_episodes(make_environment(environment_spec(Config(**settings))), n_episodes, 0.22, seed)


@pytest.fixture(scope="module")
def many():
    return collected(800)


def test_plain_arrays_get_their_episodes_and_sizes():
    data = OfflineDataset.from_arrays(**arrays())
    assert data.episode_ids.tolist() == [0, 0, 0, 1]
    assert (data.num_actions, data.num_states, data.discrete, len(data)) == (3, 4, True, 4)
    assert data.observations.dtype == np.int32 and data.rewards.dtype == np.float32
    assert data.episode_returns().tolist() == [48.0, -1.0]


@pytest.mark.parametrize("changes, sentence", [
    (dict(rewards=[-1, np.nan, 50, -1]), "rewards holds NaN"),
    (dict(rewards=[-1, np.inf, 50, -1]), "rewards holds NaN or infinite"),
    (dict(rewards=["a", "b", "c", "d"]), "rewards must be numbers"),
    (dict(actions=[1, 0, 2]), "actions has 3 entries, observations has 4"),
    (dict(actions=[1, 0, -2, 0]), "actions must lie between 0"),
    (dict(actions=[1.5, 0, 2, 0]), "actions must be integers"),
    (dict(observations=[0, 1, 2, -1]), "observations must lie between 0"),
    (dict(observations=[0.5, 1, 2, 3]), "one number per transition but no integer"),
    (dict(observations=np.zeros((4, 2, 2))), "flatten each observation"),
    (dict(observations=np.zeros((4, 2))), "differ in shape or kind"),
    (dict(observations=np.zeros((4, 0)), next_observations=np.zeros((4, 0))), "length 0"),
    (dict(observations=np.full((4, 1), np.nan), next_observations=np.zeros((4, 1))), "observations holds NaN"),
    (dict(terminations=[0, 0, 2, 0]), "terminations must be true or false"),
    (dict(truncations=[False, False, True, False]), "transition 2 is both terminated and truncated"),
    (dict(truncations=[False, False, True]), "truncations has 3 entries"),
    (dict(episode_ids=[0, 1, 0, 1]), "an episode_id comes back"),
    (dict(behavior_probabilities=[0.5, 0.0, 1, 1]), r"behavior_probabilities must lie in \(0, 1\]"),
    (dict(metadata={"num_actions": 2}), "actions go from 0 to 2, outside 0 … 1"),
    (dict(metadata={"num_states": 3}), "next_observations go from 1 to 3, outside 0 … 2"),
    (dict(metadata={"num_states": "many"}), "lack the number of states"),
    ({name: [] for name in arrays()}, "no transitions"),
])
def test_what_cannot_be_used_is_refused_in_one_sentence(changes, sentence):
    changes = {k: (v if k == "metadata" else np.array(v)) for k, v in changes.items()}
    with pytest.raises(DatasetError, match=sentence):
        OfflineDataset.from_arrays(**{**arrays(), **changes})


def test_saved_and_loaded_is_the_same_byte_for_byte(tmp_path):
    data = collected()
    data.save(tmp_path / "a.npz")
    again = OfflineDataset.load(tmp_path / "a.npz")
    assert again.metadata == data.metadata and again.to_bytes() == data.to_bytes() == (tmp_path / "a.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:  # any NumPy can read it
        np.testing.assert_array_equal(archive["rewards"], data.rewards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]


@pytest.mark.parametrize("damage, sentence", [
    (lambda raw: raw[: len(raw) // 2], "cannot be read as a data set"),
    (lambda raw: b"", "cannot be read as a data set"),
    (lambda raw: raw[:2000] + bytes([raw[2000] ^ 255]) + raw[2001:], "cannot be read as a data set"),
    (lambda raw: b"not an archive", "cannot be read as a data set"),
])
def test_damaged_files_are_refused(tmp_path, damage, sentence):
    path = tmp_path / "a.npz"
    path.write_bytes(damage(collected(20).to_bytes()))
    with pytest.raises(DatasetError, match=sentence):
        OfflineDataset.load(path)


def test_missing_files_and_arrays_are_named(tmp_path):
    with pytest.raises(DatasetError, match="there is no data set at"):
        OfflineDataset.load(tmp_path / "nothing.npz")
    np.savez(tmp_path / "half.npz", observations=[0], actions=[0])
    with pytest.raises(DatasetError, match="lacks the arrays rewards, next_observations, terminations"):
        OfflineDataset.load(tmp_path / "half.npz")
    np.savez(tmp_path / "objects.npz", **{**arrays(), "rewards": np.array([{}] * 4, dtype=object)})
    with pytest.raises(DatasetError, match="cannot be read"):  # an object array would have to be unpickled
        OfflineDataset.load(tmp_path / "objects.npz")


def test_a_small_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", **{**arrays(), "rewards": np.zeros(10**6)})
    monkeypatch.setattr("cql.dataset.MAX_BYTES", 10**6)
    with pytest.raises(DatasetError, match="more than this machine's memory"):
        OfflineDataset.load(tmp_path / "bomb.npz")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), vectors=st.booleans())
def test_compression_loses_nothing_but_the_order(seed, vectors):
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 200))
    observations, following = random.integers(0, 4, (2, size))
    if vectors:
        table = random.normal(size=(4, 3)).astype(np.float32)
        observations, following = table[observations], table[following]
    ends = random.integers(0, 3, size)
    data = OfflineDataset.from_arrays(observations, random.integers(0, 3, size), random.choice([-1.0, 0.1, 50.0], size),
                                      following, ends == 1, ends == 2)
    small = data.compress()
    columns = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")

    def rows(source, repeats):
        stacked = np.column_stack([getattr(source, name).reshape(len(source), -1).astype(float) for name in columns])
        stacked = np.repeat(stacked, repeats, axis=0)
        return stacked[np.lexsort(stacked.T)]

    np.testing.assert_array_equal(rows(small, small.counts), rows(data, 1))
    assert len(np.unique(rows(small, 1), axis=0)) == len(small)
    assert small.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("largest_table", [1, 30, 2**22])  # numbers sorted, sorted and counted, counted
@pytest.mark.parametrize("rows", [
    np.random.default_rng(0).integers(0, 5, (300, 3)).astype(np.float32),  # many rows equal
    np.random.default_rng(1).normal(size=(300, 40)).astype(np.float32),  # all differ: more combinations than 2^62
    np.random.default_rng(2).normal(size=(300, 40)).round(0).astype(np.float32)[np.arange(300) // 2],  # and in pairs
    np.random.default_rng(3).integers(0, 2**31, 300).astype(np.int32),
    np.array([7, 7, 7], np.int32), np.array([[0.0], [-0.0]], np.float32)])
def test_rows_are_numbered_in_order(monkeypatch, rows, largest_table):
    monkeypatch.setattr("cql.dataset._counted", lambda key: largest_table)
    distinct, number = number_rows(rows)
    expected, expected_number = np.unique(rows, axis=0, return_inverse=True)
    np.testing.assert_array_equal(distinct, expected)
    np.testing.assert_array_equal(number, expected_number.reshape(-1))


def test_collection_logs_the_exact_propensities(many):
    data, env = many, make_environment(environment_spec(Config()))
    policy = envs.safe_behavior_policy(env, 0.22)
    np.testing.assert_array_equal(data.behavior_probabilities, policy[data.observations, data.actions])
    counts = pair_counts(data, np.arange(data.num_states))
    visited = counts.sum(1) > 50
    expected = policy[visited] * counts[visited].sum(1, keepdims=True)
    seen = expected > 0
    chi2 = ((counts[visited] - expected)[seen] ** 2 / expected[seen]).sum()
    freedom = seen.sum() - visited.sum()
    assert stats.chi2.sf(chi2, freedom) > 1e-4


def test_collection_follows_the_model_and_slips_are_independent_of_actions(many):
    """Moves match P, action by action: a slip tied to the policy's own draw would show here."""
    data = many
    model = TabularMDP.from_env(make_environment(environment_spec(Config())))
    intended = model.next_state[data.observations, data.actions,
                                model.probability[data.observations, data.actions].argmax(-1)]
    slipped = data.next_observations != intended
    for action in range(4):
        chosen = data.actions == action
        # away from walls three of four slips show; at walls fewer do, so a band rather than a point
        assert 0.02 < slipped[chosen].mean() < 0.045
    greedy = data.behavior_probabilities > 0.3  # whether the policy took its usual move must say nothing of slips
    p = stats.fisher_exact([[slipped[greedy].sum(), (~slipped[greedy]).sum()],
                            [slipped[~greedy].sum(), (~slipped[~greedy]).sum()]]).pvalue
    assert p > 1e-3


def test_returns_of_the_data_agree_with_the_exact_behaviour(many):
    data, env = many, make_environment(environment_spec(Config()))
    exact = evaluate_policies(TabularMDP.from_env(env), envs.safe_behavior_policy(env, 0.22)[None], horizon=80)
    returns = data.episode_returns()
    assert abs(returns.mean() - exact.returns[0]) < 4 * returns.std() / np.sqrt(len(returns))


def test_an_episode_that_ends_on_its_last_step_is_terminated_not_truncated():
    data = collected(300, max_episode_steps=28)  # the shortest way takes 28 steps: some arrive exactly then
    lengths = np.bincount(data.episode_ids)
    last = np.flatnonzero(np.diff(data.episode_ids, append=-1))
    at_limit = last[lengths == 28]
    assert data.terminations[at_limit].any() and data.truncations[at_limit].any()
    assert not (data.terminations & data.truncations).any()
    assert (data.terminations | data.truncations)[last].all()


def test_same_seed_same_bytes_other_seed_other_bytes():
    assert collected(30).to_bytes() == collected(30).to_bytes() != collected(30, seed=43).to_bytes()


def test_summary_counts():
    text = summary(OfflineDataset.from_arrays(**arrays()))
    assert "transitions 4" in text and "episodes 2" in text and "return 23.5" in text
    assert "visited states 3" in text and "state-action pairs 3 of 9" in text and "distinct transitions 4" in text


@pytest.mark.parametrize("setting, sentence", [
    (dict(map="nowhere"), "neither a known map"),
    (dict(map="random:1"), "is not random:SIZE"),
    (dict(map="random:x"), "is not random:SIZE"),
    (dict(map="random:30"), "needs --max-episode-steps"),
    (dict(env="NoSuchEnv-v0"), "cannot be made"),
])
def test_environments_that_cannot_be_made(setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_environment(environment_spec(Config(**setting)))


@pytest.mark.parametrize("text, sentence", [("S..\n..\n..G", "row"), ("S..\n...\n...", "G"), ("SHG\nHHH", "reach"),
                                            ("S.X\n..G", "X"), ("", "map"), ("héé", "cannot be read as text")])
def test_map_files_that_are_no_map(tmp_path, text, sentence):
    (tmp_path / "map.txt").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=sentence):
        make_environment(environment_spec(Config(map=str(tmp_path / "map.txt"))))


def test_a_map_file_works(tmp_path):
    (tmp_path / "map.txt").write_text("S.H\n...\n..G\n")
    data = collected(5, map=str(tmp_path / "map.txt"))
    assert data.num_states == 9 and World.of(data).environment.unwrapped.desc == ("S.H", "...", "..G")


def test_a_data_set_of_another_environment_is_refused(tmp_path):
    data = collected(5)
    data.save(tmp_path / "d.npz")
    assert datasets_for(Config(dataset=str(tmp_path / "d.npz")), {})[0].to_bytes() == data.to_bytes()
    for asked, sentence in ((dict(map="blocks"), "--map contradicts"), (dict(slip=0.1), "--slip contradicts"),
                            (dict(observation="coordinates"), "--observation contradicts"),
                            (dict(max_episode_steps=90), "--max-episode-steps contradicts"),
                            (dict(episodes=7), "does not go with --dataset"), (dict(epsilon=0.1), "does not go with")):
        with pytest.raises(ConfigError, match=sentence):
            datasets_for(Config(dataset=str(tmp_path / "d.npz"), **asked), asked)
    lying = OfflineDataset.from_arrays(**arrays(), metadata={"environment": data.metadata["environment"]})
    with pytest.raises(ConfigError, match="does not fit the environment"):
        World.of(lying)


def test_plain_arrays_may_be_told_their_environment(tmp_path):
    data = collected(5)
    plain = {name: getattr(data, name) for name in ("observations", "actions", "rewards", "next_observations",
                                                    "terminations", "truncations")}
    np.savez(tmp_path / "plain.npz", **plain, metadata='{"num_states": 225, "num_actions": 4}')
    config = Config(dataset=str(tmp_path / "plain.npz"))
    assert World.of(datasets_for(config, {})[0]).environment is None
    assert World.of(datasets_for(config, {"map": "islands"})[0]).environment.unwrapped.num_states == 225
