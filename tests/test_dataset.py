"""The data set: validated once, saved byte for byte, compressed without loss; collection with exact propensities."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from cql.analysis.evaluation import Rollouts, Support
from cql.collect import (
    datasets_for,
    environment_spec,
    generate_offline_episodes,
    make_environment,
    summary,
)
from cql.config import Config
from cql.dataset import OfflineDataset, number_rows, observation_keys
from cql.errors import ConfigError, DatasetError
from cql.exact import TabularMDP, evaluate_policies
from cql.world import World, pair_counts, states_of
from tests.chain import chain_columns


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
    (dict(truncations=[False, False, True]), r"truncations have the shape \(3,\), terminations \(4,\)"),
    (dict(episode_ids=[0, 1, 0, 1]), "an episode_id comes back"),
    (dict(behavior_probabilities=[0.5, 0.0, 1, 1]), r"behavior_probabilities must lie in \(0, 1\]"),
    (dict(metadata={"num_actions": 2}), "actions go from 0 to 2, outside 0 … 1"),
    (dict(metadata={"num_states": 3}), "next_observations go from 1 to 3, outside 0 … 2"),
    (dict(metadata={"num_states": "many"}), "num_states in the metadata must be an integer from 1 to 2147483647"),
    (dict(metadata={"num_actions": True}), "num_actions in the metadata must be an integer from 1"),
    (dict(metadata={"terminated_and_truncated": 2}), "terminated_and_truncated in the metadata must be .* from 0 to 1"),
    (dict(metadata={"first_action": None}), "first_action in the metadata must be an integer"),
    (dict(truncations=np.zeros((4, 1))), r"truncations have the shape \(4, 1\), terminations \(4,\)"),
    (dict(actions=np.array([1, 0, 2, 1], "timedelta64[s]")), "actions must be integers"),
    (dict(rewards=np.array([1, 0, 2, 1], "timedelta64[s]")), "rewards must be numbers"),
    (dict(terminations=np.array([0, 0, 1, 0], complex)), "terminations must be true or false"),
    (dict(rewards=[-1, 3e38, 50, -1]), "rewards must lie between -1e[+]30 and 1e[+]30"),
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


@pytest.mark.parametrize("rows", [
    np.random.default_rng(0).integers(0, 5, (300, 3)).astype(np.float32),  # many rows equal
    np.random.default_rng(1).normal(size=(300, 40)).astype(np.float32),  # all differ: more combinations than 2^62
    np.random.default_rng(2).normal(size=(300, 40)).round(0).astype(np.float32)[np.arange(300) // 2],  # and in pairs
    np.random.default_rng(3).integers(0, 2**31, 300).astype(np.int32),
    np.array([7, 7, 7], np.int32), np.array([[0.0], [-0.0]], np.float32),
    np.array([[1, 0], [0, 0x9E3779B97F4A7C15 ^ 0x9E3779B9]], np.uint64).view(np.int64)])  # these share a hash
def test_rows_are_numbered_in_order(rows):
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
    assert scipy.stats.chi2.sf(chi2, freedom) > 1e-4


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
    p = scipy.stats.fisher_exact([[slipped[greedy].sum(), (~slipped[greedy]).sum()],
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
                                            ("S.X\n..G", "X"), ("", "A map is"), ("héé", "cannot be read as text")])
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


# ------------------------------------------------------------------------------------------- data that need a word


def test_a_step_with_both_flags_is_a_termination_and_the_summary_counts_it(tmp_path):
    data = OfflineDataset.from_arrays([0, 1, 0], [0] * 3, [1.0] * 3, [1, 2, 1], [0, 1, 0], [0, 1, 1])
    assert data.terminations.tolist() == [False, True, False] and data.truncations.tolist() == [False, False, True]
    assert data.metadata["terminated_and_truncated"] == 1
    data.save(tmp_path / "a.npz")
    again = OfflineDataset.load(tmp_path / "a.npz")  # with its digest, and the count
    assert again.to_bytes() == data.to_bytes()
    assert "terminated and truncated at once 1: taken as terminated" in summary(again)
    assert "at once" not in summary(OfflineDataset.from_arrays(**arrays()))
    with pytest.raises(DatasetError, match="transition 1 is both terminated and truncated"):
        replace(data, truncations=data.terminations)


CHAIN = {"environment": {"id": "Chain-v0", "arguments": {}, "max_episode_steps": None}}


@pytest.mark.parametrize("name", ["Chain-v0", "ChainTableFromZero-v0"])  # P may count as the spaces do, or from 0
def test_spaces_that_start_at_one_are_counted_from_zero(tmp_path, name):
    np.savez(tmp_path / "chain.npz", **chain_columns())
    config = Config(env=name, dataset=str(tmp_path / "chain.npz"))
    [data] = datasets_for(config, {"env": name})
    expected = chain_columns(first=0)
    for column in expected:
        np.testing.assert_array_equal(getattr(data, column), expected[column])
    assert (data.num_states, data.num_actions) == (4, 2)
    assert "states that the environment numbers from 1 are stored from 0\nactions that" in summary(data)
    data.save(tmp_path / "stored.npz")
    assert OfflineDataset.load(tmp_path / "stored.npz").to_bytes() == data.to_bytes()  # not shifted again
    world = World.of(data)
    _, counts = world.empirical(data)  # every logged step is possible in the model
    assert counts.tolist() == [[1, 3], [1, 3], [1, 2], [0, 0]] and world.mdp.start == 0
    for actions, steps, worth in (([1, 1, 1, 1], 3, 1.0), ([1, 0, 1, 1], 20, 0.0)):
        episodes = Rollouts(world, 2, 0).of(Table(actions))
        assert episodes.returns.tolist() == [worth] * 2 and episodes.lengths.tolist() == [steps] * 2
    made = OfflineDataset.from_arrays(**chain_columns(), first_state=1, first_action=1, metadata={
        "environment": CHAIN["environment"] | {"id": name}, "num_states": 4, "num_actions": 2})
    assert made.to_bytes() == data.to_bytes()


class Table:
    """A policy by a table of actions."""

    masked = False

    def __init__(self, actions):
        self.actions = np.array(actions)

    def act(self, observations):
        return self.actions[observations]


@pytest.mark.parametrize("changes, metadata, first, sentence", [
    ({}, CHAIN, {}, "numbers its states from 1 and its actions from 1, the data set from 0 and 0: make it with"),
    (chain_columns(first=0), CHAIN, {}, "numbers its states from 1 and its actions from 1, the data set from 0 and 0"),
    ({}, CHAIN, dict(first_state=1), "numbers its states from 1 and its actions from 1, the data set from 1 and 0"),
    (dict(observations=np.zeros(11, int)), CHAIN, dict(first_state=1, first_action=1), "must lie between 1 and"),
    (dict(next_observations=np.full(11, 5)), CHAIN, dict(first_state=1, first_action=1), "does not fit"),
])
def test_data_in_other_numbers_than_their_environment_are_refused(changes, metadata, first, sentence):
    sizes = {"num_states": 4, "num_actions": 2} if "actions" in changes else {}
    with pytest.raises((ConfigError, DatasetError), match=sentence):
        World.of(OfflineDataset.from_arrays(**{**chain_columns(), **changes}, metadata=metadata | sizes, **first))


def test_numbers_below_zero_are_counted_from_the_first():
    data = OfflineDataset.from_arrays(**chain_columns(first=-3), first_state=-3, first_action=-3)
    np.testing.assert_array_equal(data.observations, chain_columns(first=0)["observations"])
    assert (data.num_states, data.num_actions) == (4, 2)


def test_a_transition_table_of_other_sizes_than_the_spaces_is_refused():
    environment = make_environment(CHAIN["environment"] | {"id": "ChainOfFive-v0"})
    with pytest.raises(ConfigError, match="P of ChainOfFive-v0 has 5 states and 2 actions, its spaces are Discrete.4"):
        World.around(environment)
    environment.unwrapped.P = {0: "nothing"}
    with pytest.raises(ConfigError, match="the transition table P of ChainOfFive-v0 cannot be used"):
        World.around(environment)


def test_negative_zero_is_zero():
    plus, minus = np.array([[0.0, 1.0]], np.float32), np.array([[-0.0, 1.0]], np.float32)
    two = np.concatenate([minus, plus])
    data = OfflineDataset.from_arrays(two, [0, 1], [-0.0, 0.0], two, [True, True])
    assert not np.signbit(data.observations).any() and not np.signbit(data.next_observations).any()
    assert not np.signbit(data.rewards).any() and not data.breaks.size
    built = replace(data, observations=two, next_observations=two)  # as its caller gives it
    for support in (Support(data), Support(built)):
        assert [support.supported(seen, a) for seen in (plus[0], minus[0]) for a in (0, 1)] == [True] * 4
        assert len(support.observations) == 1
    assert len(replace(built, actions=np.zeros(2, np.int32)).compress()) == 1
    assert states_of(minus, plus).tolist() == states_of(plus, minus).tolist() == [0]
    minus_zero, zero, one = observation_keys([-0.0, 0.0, 1.0], np.float32)
    assert minus_zero == zero != one


def test_no_other_key_is_made_of_the_bytes_of_floats():
    root = Path(envs.__file__).parent.parent
    found = {path.relative_to(root).as_posix(): path.read_text().count("tobytes(")
             for part in ("cql", "envs") for path in (root / part).rglob("*.py")}
    assert {name: n for name, n in found.items() if n} == {"cql/dataset.py": 1, "cql/files.py": 1}  # a key; a digest


BROKEN = dict(observations=[0, 5, 6], actions=[0] * 3, rewards=[0.0, 1.0, 2.0], next_observations=[1, 6, 7],
              terminations=[False, False, True])


@pytest.mark.parametrize("vectors", [False, True])
def test_episodes_that_do_not_hang_together_are_counted_and_can_be_split(vectors):
    columns = dict(BROKEN)
    if vectors:
        columns |= {name: np.stack([BROKEN[name], np.zeros(3)], 1) for name in ("observations", "next_observations")}
    data = OfflineDataset.from_arrays(**columns)
    assert data.breaks.tolist() == [0] and data.episode_starts.tolist() == [0]
    text = summary(data)
    assert "episodes –   return –\nterminated –   truncated –" in text
    assert "episodes are broken in 1 place, first after transition 0" in text and "--split-episodes" in text
    with pytest.raises(DatasetError, match="broken in 1 place"):
        data.episode_returns()
    split = data.split_at_breaks()
    assert split.episode_ids.tolist() == [0, 1, 1] and split.episode_returns().tolist() == [0.0, 3.0]
    assert not split.breaks.size and "broken" not in summary(split)
    assert split.split_at_breaks().to_bytes() == split.to_bytes()
    assert "episodes begun at breaks 1: they start in the middle" in summary(split)
    assert "neither terminated nor truncated 1" in summary(split)  # the first of the two stops where it was broken


def test_whole_episodes_have_no_breaks(many):
    assert not many.breaks.size and not collected(20, observation="coordinates").breaks.size
    shuffled = np.random.default_rng(0).permutation(len(many))
    columns = {name: getattr(many, name)[shuffled] for name in ("observations", "actions", "rewards",
                                                                "next_observations", "terminations")}
    assert f"{len(many) - 1:,}" > f"{len(OfflineDataset.from_arrays(**columns).breaks):,}" > "0"


def test_broken_episodes_are_split_where_the_user_says_so(tmp_path):
    np.savez(tmp_path / "d.npz", **BROKEN)
    config = Config(dataset=str(tmp_path / "d.npz"))
    assert datasets_for(config, {})[0].breaks.size == 1
    assert datasets_for(replace(config, split_episodes=True), {})[0].episode_ids.tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match="--split-episodes splits those of --dataset"):
        Config(split_episodes=True)


def propensities(observations, actions, probabilities):
    size = len(actions)
    return OfflineDataset.from_arrays(observations, actions, [0.0] * size, observations, [True] * size,
                                      behavior_probabilities=probabilities)


@pytest.mark.parametrize("observations, actions, probabilities, sentence", [
    ([0, 0], [0, 1], [1.0, 1.0], "of one policy: the smallest of each action logged in state 0 sum to 2, above"),
    ([0, 0, 0, 0], [0, 0, 1, 1], [0.95] * 4, "one policy: .* sum to 1.9, above 1"),  # those of a policy that changed
    ([7, 3, 3, 3], [0, 0, 1, 2], [1.0, 0.5, 0.5, 0.001], "logged in state 3 sum to 1.001, above 1"),
    ([3, 3, 3], [0, 1, 0], [0.9, 0.2, 0.85], "state 3 sum to 1.05"),  # 0.85 is the smallest of action 0
    ([[0.5, -0.0], [0.5, 0.0]], [0, 1], [1.0, 0.5], r"state \[0.5, 0.0\] sum to 1.5"),
    ([0], [0], [1.0001], r"must lie in \(0, 1\]"),
])
def test_propensities_that_contradict_themselves_are_refused(observations, actions, probabilities, sentence):
    with pytest.raises(DatasetError, match=sentence):
        propensities(observations, actions, probabilities)


def test_propensities_of_some_policy_are_taken(many):
    several = propensities([0, 0, 0], [0, 1, 0], [0.9, 0.6, 0.4])  # of one action in one state
    assert several.behavior_probabilities.tolist() == [0.9, 0.6, 0.4]
    propensities([0, 1], [0, 1], [1.0, 1.0])
    propensities([0, 0, 1], [0, 1, 2], [0.2, 0.3, 0.1])  # action 2 was not logged in state 0
    thirds = np.full(3, 1 / 3, np.float32)
    propensities([0, 0, 0], [0, 1, 2], thirds)
    rounded = propensities([0], [0], np.array([1.0000001], np.float32))
    assert rounded.behavior_probabilities.tolist() == [1.0]


def test_integer_observations_in_a_column_are_state_numbers():
    column = OfflineDataset.from_arrays([[0], [1]], [0, 1], [0.0, 1.0], [[1], [2]], [False, True])
    flat = OfflineDataset.from_arrays([0, 1], [0, 1], [0.0, 1.0], [1, 2], [False, True])
    assert column.discrete and column.num_states == 3 and column.to_bytes() == flat.to_bytes()
    assert not OfflineDataset.from_arrays([[0.0], [1.0]], [0, 1], [0.0, 1.0], [[1.0], [2.0]], [False, True]).discrete
    assert not OfflineDataset.from_arrays([[0, 1]], [0], [0.0], [[1, 2]], [True]).discrete


@pytest.mark.parametrize("ids", [
    [2**60, 2**60, -5, 2**62], np.array([2**63, 2**63, 2**64 - 1, 0], np.uint64), [-1, -1, -2, -3], [7.0, 7.0, 3, 1],
    [2**32, 2**32, 2 * 2**32, 0]])  # equal in 32 bits
def test_episode_ids_may_be_any_integers(ids):
    data = OfflineDataset.from_arrays([0, 1, 0, 0], [0] * 4, [1.0, 2.0, 4.0, 8.0], [1, 2, 1, 1], [0, 1, 0, 0],
                                      episode_ids=ids)
    assert data.episode_ids.tolist() == [0, 0, 1, 2] and data.episode_returns().tolist() == [3, 4, 8]


@pytest.mark.parametrize("ids, sentence", [
    ([2**60, -5, -5, 2**60], "an episode_id comes back"), ([0.5, 1, 2, 3], "episode_ids must be integers"),
    ([np.inf, np.inf, 0, 1], "episode_ids must be integers"), ([[0], [0], [1], [1]], "must be one int32 per"),
    ([0, 0], "episode_ids has 2 entries")])
def test_episode_ids_that_are_refused(ids, sentence):
    with pytest.raises(DatasetError, match=sentence):
        OfflineDataset.from_arrays(**arrays(), episode_ids=ids)


def test_the_largest_numbers_of_states_and_actions_are_named():
    largest = 2**31 - 2
    assert OfflineDataset.from_arrays([largest], [largest], [0.0], [0], [True]).num_states == 2**31 - 1
    for columns in (dict(observations=[largest + 1]), dict(actions=[2**40]), dict(next_observations=[2**63])):
        with pytest.raises(DatasetError, match=f"{next(iter(columns))} must lie between 0 and {largest}"):
            OfflineDataset.from_arrays(**{**dict(observations=[0], actions=[0], rewards=[0.0], next_observations=[0],
                                                 terminations=[True]), **columns})


def test_arrays_of_other_names_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(), truncated=np.zeros(4), behaviour_probabilities=np.ones(4))
    with pytest.raises(DatasetError, match="has behaviour_probabilities, truncated: the arrays of a data set are "):
        OfflineDataset.load(tmp_path / "d.npz")


@pytest.mark.parametrize("step, dtype, kept", [
    (1e-9, np.float64, np.float64), (1, np.int64, np.float64), (1e-3, np.float64, np.float32)])
def test_observations_that_float32_merges_are_kept_in_float64(step, dtype, kept):
    """From 2^25 on float32 holds every fourth integer: 5 in a row would become 2 (ties to even)."""
    column = np.arange(5) * step + (2**25 if dtype == np.int64 else 1)
    seen = np.stack([column, 0 * column], 1).astype(dtype)
    data = OfflineDataset.from_arrays(seen, [0] * 5, [0.0] * 5, seen, [True] * 5)
    assert data.observations.dtype == kept and len(np.unique(data.observations, axis=0)) == 5


def test_episodes_that_end_with_neither_flag_are_counted():
    data = OfflineDataset.from_arrays(**arrays(terminations=[0, 0, 0, 0]), episode_ids=[0, 0, 1, 2])
    assert "episodes that end neither terminated nor truncated 2" in summary(data)
    assert "neither" not in summary(OfflineDataset.from_arrays(**arrays()))


@pytest.mark.parametrize("first", ["1", 1.0, None, True, 2**31, float("nan"), np.array([1])])
def test_first_numbers_of_other_kinds_are_refused(first):
    for name in ("first_state", "first_action"):
        with pytest.raises(DatasetError, match=f"{name} must be an integer from -2147483648 to 2147483647"):
            OfflineDataset.from_arrays(**chain_columns(), **{name: first})


def test_numpy_integers_are_integers_and_other_metadata_are_refused_when_saved(tmp_path):
    data = OfflineDataset.from_arrays(**chain_columns(), first_state=np.uint8(1), first_action=np.int64(1),
                                      metadata={"num_states": np.int64(4)})
    assert data.metadata == {"num_states": 4, "num_actions": 2, "first_state": 1, "first_action": 1}
    data.save(tmp_path / "d.npz")
    for value in ({1, 2}, np.zeros(2), b"x", {(1, 2): 3}):
        with pytest.raises(DatasetError, match="the metadata cannot be written as JSON"):
            OfflineDataset.from_arrays(**chain_columns(), metadata={"x": value}).save(tmp_path / "e.npz")
    assert not (tmp_path / "e.npz").exists()


def test_plain_arrays_are_shifted_by_the_first_numbers_of_their_metadata(tmp_path):
    np.savez(tmp_path / "d.npz", **chain_columns(), metadata='{"first_state": 1, "first_action": 1}')
    data = OfflineDataset.load(tmp_path / "d.npz")
    assert data.observations.tolist() == chain_columns(first=0)["observations"].tolist()
    assert "states that the environment numbers from 1 are stored from 0" in summary(data)
    np.savez(tmp_path / "d.npz", **chain_columns(first=0), metadata='{"first_state": 1}')  # nothing to shift
    with pytest.raises(DatasetError, match="d.npz: observations must lie between 1 and"):
        OfflineDataset.load(tmp_path / "d.npz")


def test_data_not_in_the_numbers_of_the_environment_named_are_refused_with_file_and_cause(tmp_path):
    np.savez(tmp_path / "d.npz", **chain_columns(first=0))
    with pytest.raises(DatasetError, match="d.npz is not in the numbers of Chain-v0, whose first state is 1 and whose "
                                           "first action is 1: observations must lie between 1 and"):
        datasets_for(Config(env="Chain-v0", dataset=str(tmp_path / "d.npz")), {"env": "Chain-v0"})


@pytest.mark.parametrize("arguments", [{"reward_schedule": [1]}, {"desc": 7}, {"desc": []}, {"success_rate": "x"},
                                       {"entry_point": "os:system"}, {"map_name": "nowhere"}])
def test_environment_arguments_may_fail_in_any_way(arguments):
    with pytest.raises(ConfigError, match="FrozenLake-v1 cannot be made: "):
        make_environment({"id": "FrozenLake-v1", "arguments": arguments, "max_episode_steps": 9})


def test_whatever_an_environment_raises_is_one_sentence():
    for error in (IndexError("why"), AssertionError("why"), RecursionError("why"), ZeroDivisionError("why")):
        def fails(error=error):
            raise error
        gymnasium.register("Fails-v0", fails)
        try:
            with pytest.raises(ConfigError, match="the environment Fails-v0 cannot be made: why"):
                make_environment({"id": "Fails-v0", "arguments": {}, "max_episode_steps": 9})
        finally:
            del gymnasium.registry["Fails-v0"]


@pytest.mark.parametrize("steps", [0, -1, 1_000_001, 10**30, "x", 3.5, True])
def test_step_limits_from_files_are_bounded(steps):
    with pytest.raises(ConfigError, match="max_episode_steps must be an integer from 1 to 1,000,000, not"):
        make_environment({"id": "FrozenLake-v1", "arguments": {}, "max_episode_steps": steps})
