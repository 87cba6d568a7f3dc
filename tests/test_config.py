"""Settings: documented flags, one-sentence refusals, a config file that reads back as it was written."""

import argparse
import json

import pytest

from cql.config import Config, add_arguments, from_arguments, given, long_bc
from cql.errors import ConfigError
from cql.members import Member, all_members, members, slices


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_every_flag_of_the_contract_is_there_and_documented():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings if action.help}
    for flag in """--env --map --slip --observation --episodes --epsilon --data-seed --dataset --alpha --seed
                   --num-seeds --num-datasets --bc-steps --steps --batch-size --lr --trainer --gamma --hidden
                   --target-interval --td-loss --double-q --penalty-threshold --slice-size --max-episode-steps --device
                   --log-every --checkpoint-every""".split():
        assert flag in flags


def test_defaults_are_the_missions():
    config = from_arguments(parsed())
    assert (config.alpha, config.bc_steps, config.steps) == ((6.0,), 25_000, 80_000)
    assert (config.episodes, config.epsilon, config.gamma, config.data_seed) == (500, 0.22, 0.99, 42)
    assert given(parsed()) == {} and given(parsed("--slip", "0.05")) == {"slip": 0.05}


def test_arguments_become_settings():
    config = from_arguments(parsed("--alpha", "0", "1", "6", "--num-seeds", "2", "--batch-size", "full", "--hidden",
                                   "0", "--double-q", "--num-datasets", "2"))
    assert config.alpha == (0.0, 1.0, 6.0) and config.full_batch and config.hidden == () and config.double_q
    assert (config.seeds, config.data_seeds) == ([42, 43], [42, 43])


def test_config_reads_back():
    config = Config(alpha=(0.1, 6.0), hidden=(), batch_size="full", map="blocks", double_q=True, max_episode_steps=90,
                    penalty_threshold=1.2)
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("setting, sentence", [
    (dict(alpha=(-1.0,)), r"--alpha must lie in \[0, 1e\+18\]"),
    (dict(alpha=(float("nan"),)), "--alpha must be a finite number"),
    (dict(alpha=(float("inf"),)), "--alpha must be a finite number"),
    (dict(alpha=()), "--alpha needs at least one value"),
    (dict(alpha=(1.0, 1.0)), "--alpha names a value twice"),
    (dict(penalty_threshold=float("inf")), "--penalty-threshold must be a finite number"),
    (dict(penalty_threshold=1.0, alpha=(0.0, 6.0)), "give --alpha of at least 1e-18"),
    (dict(slip=1.5), r"--slip must lie in \[0, 1\]"),
    (dict(slip=float("nan")), "--slip must be a finite number"),
    (dict(epsilon=-0.1), "--epsilon must lie in"),
    (dict(gamma=1.01), "--gamma must lie in"),
    (dict(lr=0.0), "--lr must be positive"),
    (dict(lr=float("inf")), "--lr must be a finite number"),
    (dict(batch_size=0), "--batch-size must be at least 1, not 0"),
    (dict(episodes=0), "--episodes must be at least 1"),
    (dict(num_seeds=0), "--num-seeds must be at least 1"),
    (dict(steps=0, bc_steps=0), "leave nothing to train"),
    (dict(steps=-1), "--steps must be at least 0"),
    (dict(hidden=(8, 0)), "--hidden takes widths of at least 1"),
    (dict(trainer="slow"), "--trainer must be one of fast, plain"),
    (dict(td_loss="mae"), "--td-loss must be one of"),
    (dict(observation="pixels"), "--observation must be one of index, coordinates"),
    (dict(seed=-1), "--seed must lie in"),
    (dict(dataset="a.npz", num_datasets=2), "does not go with --num-datasets"),
])
def test_settings_that_cannot_be_used(setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config(**setting)


@pytest.mark.parametrize("change, sentence", [
    (lambda c: "{", "no JSON"), (lambda c: "[]", "no JSON object"),
    (lambda c: json.dumps(c | {"colour": 1}), "unknown entries"),
    (lambda c: json.dumps(c | {"lr": "fast"}), "lr is 'fast'"),
    (lambda c: json.dumps(c | {"steps": 1.5}), "steps is 1.5"),
    (lambda c: json.dumps(c | {"steps": True}), "steps is True"),
    (lambda c: json.dumps(c | {"alpha": 6}), "alpha is 6"), (lambda c: json.dumps(c | {"alpha": ["x"]}), "alpha is"),
    (lambda c: json.dumps(c | {"penalty_threshold": "1"}), "penalty_threshold is '1'"),
    (lambda c: json.dumps(c | {"double_q": 0}), "double_q is 0"),
    (lambda c: json.dumps(c | {"dataset": 3}), "dataset is 3"),
    (lambda c: json.dumps(c | {"lr": -1}), "--lr must be positive"),
])
def test_config_files_that_cannot_be_used(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config.from_json(change(json.loads(Config().to_json())))


def test_a_setting_that_a_config_is_too_old_to_hold_has_its_default():
    contents = json.loads(Config(steps=7, bc_top=0.5).to_json())
    del contents["bc_top"]
    assert Config.from_json(json.dumps(contents)) == Config(steps=7)


def test_population_is_the_factorial_design():
    config = Config(alpha=(0.0, 6.0), num_seeds=2, num_datasets=3)
    assert len(members(config, "cql")) == 12 and len(members(config, "bc")) == 6
    assert len({member.name for member in all_members(config)}) == 18
    assert members(Config(bc_steps=0), "bc") == [] and members(Config(steps=0), "cql") == []


def test_names_tell_every_alpha_apart():
    assert Member("cql", 6.0, 42, 43).name == "cql-a6-s42-d43" and Member("bc", None, 1, 2).name == "bc-s1-d2"
    assert Member("cql", 0.1, 0, 0).name == "cql-a0.1-s0-d0"
    assert Member("cql", 1.23456789, 0, 0).name == "cql-a1.23456789-s0-d0"


def test_slices_hold_one_algorithm_and_keep_the_order():
    config = Config(alpha=(0.0, 1.0, 6.0), num_seeds=3, slice_size=4)
    groups = slices(config)
    assert [len(group) for group in groups] == [3, 4, 4, 1]
    assert [member for group in groups for member in group] == all_members(config)


@pytest.mark.parametrize("flags, share", [
    ("--steps 4000", "86%"), ("--steps 4000 --alpha 0 1 6 10 20 50 200", None), ("--steps 4000 --bc-steps 25000", None),
    ("", None), ("--steps 0", None), ("--steps 8000 --num-seeds 4 --num-datasets 3", "76%")])
def test_shorter_cql_says_what_cloning_takes(flags, share):
    """25,000 of 29,000 updates, and of 33,000; seven alphas take 28,000."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(flags.split())
    note = long_bc(from_arguments(arguments), given(arguments))
    assert (note is None) if share is None else (share in note and "--bc-steps shortens it" in note)
