"""The episodes that Behaviour Cloning clones: chosen by hand-computed returns, trained, judged and refused."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import cql
import evaluate
import train
from cql.cloned import cloned_episodes, cloned_transitions
from cql.collect import environment_spec, generate_offline_episodes, make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import DatasetError
from cql.exact import evaluate_policies
from cql.exact.curve import cloned_policy
from cql.members import Member
from cql.policy import Policy
from cql.sampling import Transitions
from cql.scales import Scales
from cql.world import World, pair_counts

pytestmark = pytest.mark.slow

NOWHERE = World(None, None)
TINY = ["--map", "random:6:1", "--episodes", "60", "--hidden", "0", "--lr", "0.05", "--bc-steps", "600", "--steps",
        "40", "--log-every", "20", "--device", "cpu"]


@pytest.fixture(scope="module")
def data():
    return generate_offline_episodes(make_environment(environment_spec(Config(map="random:6:1"))), 60, 0.5, 42)


def by_hand():
    """Five episodes with the returns 3, 5, 5, 1 and 5; the first has two steps, the fourth three."""
    ids = [0, 0, 1, 2, 3, 3, 3, 4]
    return OfflineDataset.from_arrays([0, 1, 0, 0, 0, 1, 2, 0], [0, 0, 1, 0, 1, 1, 1, 2],
                                      [1.0, 2.0, 5.0, 5.0, 1.0, -4.0, 4.0, 5.0], [1, 3, 3, 3, 1, 2, 3, 3],
                                      [False, True, True, True, False, False, True, True], episode_ids=ids)


@pytest.mark.parametrize("share, kept", [(0.1, [1]), (0.2, [1]), (0.21, [1, 2]), (0.4, [1, 2]), (0.6, [1, 2, 4]),
                                         (0.8, [0, 1, 2, 4]), (1.0, [0, 1, 2, 3, 4])])
def test_the_best_episodes_by_hand_and_of_equal_ones_the_earlier(share, kept):
    """ceil(5 F) episodes: 5, 5, 5, 3, 1."""
    dataset = by_hand()
    cloned = cloned_episodes(Config(bc_top=share), dataset, NOWHERE)
    assert np.unique(cloned.episode_ids).tolist() == kept
    assert cloned.actions.tolist() == dataset.actions[np.isin(dataset.episode_ids, kept)].tolist()
    assert cloned.episode_returns().tolist() == [[3.0, 5.0, 5.0, 1.0, 5.0][n] for n in kept]


def test_a_share_that_is_a_whole_number_of_episodes_is_not_rounded_up():
    dataset = OfflineDataset.from_arrays([0] * 100, [0, 1] * 50, np.arange(100.0), [1] * 100, [True] * 100)
    assert 0.07 * 100 > 7
    assert len(cloned_episodes(Config(bc_top=0.07), dataset, NOWHERE)) == 7
    assert len(cloned_episodes(Config(bc_top=1e-6), dataset, NOWHERE)) == 1


def test_safe_episodes_are_those_that_end_in_no_hazard_and_the_best_are_chosen_among_them(data):
    """On this map a hazard ends the episode with a reward of −100, and nothing else costs as much."""
    world, returns = World.of(data), data.episode_returns()
    safe = np.flatnonzero(np.bincount(data.episode_ids, data.rewards <= -100) == 0)
    assert 0 < len(safe) < 60
    config = Config(bc_safe=True)
    assert np.unique(cloned_episodes(config, data, world).episode_ids).tolist() == safe.tolist()
    best = sorted(safe, key=lambda n: (-returns[n], n))[: -(-len(safe) // 4)]
    assert np.unique(cloned_episodes(replace(config, bc_top=0.25), data, world).episode_ids).tolist() == sorted(best)


def test_everything_is_cloned_by_default_and_no_count_of_the_whole_is_left_in_a_part():
    dataset = replace(by_hand(), metadata={**by_hand().metadata, "terminated_and_truncated": 5, "first_state": 1})
    assert cloned_episodes(Config(), dataset, NOWHERE) is dataset
    assert cloned_episodes(Config(bc_top=0.4), dataset, NOWHERE).metadata == {
        "num_actions": 3, "num_states": 4, "first_state": 1}


@pytest.mark.parametrize("batch_size", ["full", 16])
def test_only_bc_has_its_own_transitions(batch_size):
    config, dataset = Config(bc_top=0.4, batch_size=batch_size), by_hand()
    every = Transitions([dataset], torch.device("cpu"), config.full_batch)
    cloned = cloned_transitions(config, [dataset], NOWHERE, every, Scales())
    assert cloned.lengths.tolist() == [2] and sorted(cloned.actions.tolist()) == [0, 1]
    assert cloned_transitions(Config(), [dataset], NOWHERE, every, Scales()) is every


@pytest.mark.parametrize("trainer", ["fast", "plain"])
@pytest.mark.parametrize("batch_size, tolerance", [("full", 0.003), (64, 0.04)])
def test_trained_bc_is_the_exact_bc_of_the_episodes_it_clones(data, batch_size, tolerance, trainer):
    """Its probabilities are the frequencies of what it clones; those of all episodes are far from them."""
    fit = cql.fit(data, algorithm="bc", bc_top=0.2, hidden=(0,), lr=0.2, steps=1000, log_every=500,
                  batch_size=batch_size, trainer=trainer)
    counts = pair_counts(cloned_episodes(fit.config, data, fit.world), fit.world.inputs)
    assert fit.config.bc_name == "BC of the best 20 % of episodes" and 0 < counts.sum() < len(data) / 2
    p, seen = fit.policies[0].probabilities(fit.world.inputs), counts.any(-1)

    def distance(table):
        frequencies = table / np.maximum(table.sum(-1, keepdims=True), 1)
        return (np.abs(p - frequencies).sum(-1) / 2 * counts.sum(-1)).sum() / counts.sum()

    assert distance(counts) < tolerance < 0.1 < distance(pair_counts(data, fit.world.inputs))
    if batch_size == "full":
        clear = seen & (np.sort(counts)[:, -1] > np.sort(counts)[:, -2])
        assert (p.argmax(-1) == counts.argmax(-1))[clear].all()
        assert fit.log["losses/cross_entropy"][0, -1] == pytest.approx(
            cloned_episodes(fit.config, data, fit.world).action_entropy(), abs=0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloned")
    assert train.main([*TINY, "--epsilon", "0.5", "--bc-top", "0.1", "--bc-safe", "--out", str(folder / "run")]) == 0
    return folder / "run"


NAME = "BC of the best 10 % of the episodes without a hazard"


@pytest.mark.slow
def test_a_run_says_what_bc_clones_wherever_it_is_judged(run, capsys):
    assert evaluate.main([str(run), "--audit", "--report"]) == 0
    printed = capsys.readouterr().out
    assert f"BC clones {NAME[6:]}. Mismatch and unsupported count the actions of all episodes." in printed
    assert f"{NAME} against its own optimum" in printed
    assert f"Behaviour Cloning (BC){NAME[2:]}, 600 updates each" in (run / "report.html").read_text()
    rows = list(csv.DictReader((run / "results.csv").open()))
    assert [(row["bc_top"], row["bc_safe"]) for row in rows] == [("0.1", "True")] * 2
    evaluation, audit = (json.loads((run / f"{name}.json").read_text()) for name in ("evaluation", "audit"))
    assert evaluation["bc"] == audit["bc"] == NAME
    config, data = Config.from_json((run / "config.json").read_text()), OfflineDataset.load(run / "datasets/42.npz")
    world = World.of(data)
    cloned = cloned_episodes(config, data, world)
    assert len(cloned) < len(data) and evaluation["members"][0]["convergence"] == {
        "measure": "excess", "converged": True,
        "value": pytest.approx(audit["members"][0]["kl_mean"], abs=0.01)}  # against the entropy of what is cloned
    counts, entry = pair_counts(cloned, world.inputs), audit["members"][0]
    assert entry["of"] == counts.any(-1).sum() < pair_counts(data, world.inputs).any(-1).sum()
    exact = evaluate_policies(world.mdp, cloned_policy(counts)[None], horizon=world.horizon)
    assert entry["by_counts"]["return"] == pytest.approx(exact.returns[0], abs=1e-9)
    assert 0 <= entry["unseen_visits"] < 1


@pytest.mark.slow
def test_the_exact_curve_of_a_run_has_its_bc(run, capsys):
    from cql.commands import phase
    assert phase.main(["--run", str(run), "--points", "3", "--out", str(run.parent / "phase")]) == 0
    assert f"BC clones {NAME[6:]}." in capsys.readouterr().out
    found = json.loads((run.parent / "phase/phase.json").read_text())
    config, data = Config.from_json((run / "config.json").read_text()), OfflineDataset.load(run / "datasets/42.npz")
    world = World.of(data)
    counts = pair_counts(cloned_episodes(config, data, world), world.inputs)
    exact = evaluate_policies(world.mdp, cloned_policy(counts)[None], horizon=world.horizon)
    assert found["references"]["bc"]["return"] == pytest.approx(exact.returns[0], abs=1e-9)


@pytest.mark.slow
def test_cql_is_that_of_all_episodes_and_bc_is_another(run, tmp_path, capsys):
    assert train.main([*TINY, "--epsilon", "0.5", "--out", str(tmp_path / "all")]) == 0
    name = f"policies/{Member('cql', 6.0, 42, 42).name}.pt"
    assert (tmp_path / "all" / name).read_bytes() == (run / name).read_bytes()
    bc = [Policy.load(folder / f"policies/{Member('bc', None, 42, 42).name}.pt").outputs(np.arange(36))
          for folder in (tmp_path / "all", run)]
    assert np.abs(bc[0] - bc[1]).max() > 0.1
    assert "BC clones" not in capsys.readouterr().out


def plain(path, broken=False, ids=None):
    """Three episodes of two steps without an environment."""
    states, following = [0, 1] * 3, [1, 2] * 3
    if broken:
        following[2] = 2
    np.savez(path, observations=states, actions=[0, 1] * 3, rewards=[0.0, 1.0, 0.0, 2.0, 0.0, 3.0],
             next_observations=following, terminations=[False, True] * 3 if ids is None else [False] * 6,
             **({} if ids is None else {"episode_ids": ids}))
    return str(path)


@pytest.mark.parametrize("flags, sentence", [
    ("--bc-top 0", "--bc-top must lie in [1e-06, 1], not 0.0"), ("--bc-top 1.5", "1], not 1.5"),
    ("--bc-top 1e-300", "1], not 1e-300"),
    ("--bc-top nan", "finite number"), ("--bc-top 0.5 --bc-steps 0", "they do not go with --bc-steps 0"),
    ("--bc-safe --bc-steps 0", "they do not go with --bc-steps 0"),
    ("--bc-top 0.05 --batch-size 200", "transitions that BC clones")])
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, capsys, flags, sentence):
    assert train.main([*TINY, *flags.split(), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, data, sentence", [
    ("--bc-top 0.5", dict(broken=True), "BC of the best 50 % of episodes needs whole episodes: episodes are broken"),
    ("--bc-safe", dict(broken=True), "BC of the episodes without a hazard needs whole episodes"),
    ("--bc-top 0.5", dict(ids=[7] * 6), "needs whole episodes"),
    ("--bc-safe", dict(), "--bc-safe needs data that name an environment whose model has hazards"),
    ("--bc-safe --env CliffWalking-v1 --max-episode-steps 50", dict(), "whose model has hazards")])
def test_data_that_do_not_tell_are_refused_before_anything_is_written(tmp_path, capsys, flags, data, sentence):
    argv = ["--dataset", plain(tmp_path / "plain.npz", **data), "--steps", "5", "--bc-steps", "5", "--hidden", "4",
            "--device", "cpu", *flags.split(), "--out", str(tmp_path / "run")]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_one_episode_or_none_without_a_hazard_leaves_nothing_to_choose(data):
    single = data.of_episodes([0])
    with pytest.raises(DatasetError, match="needs several episodes: the data set is a single one"):
        cloned_episodes(Config(bc_top=0.5), single, World.of(data))
    met = data.of_episodes(data.episode_ids[data.rewards <= -100])
    with pytest.raises(DatasetError, match="every episode of the data met a hazard"):
        cql.fit(met, algorithm="bc", bc_safe=True, steps=5)
    fit = cql.fit(data.of_episodes([0, 1, 2]), algorithm="bc", bc_top=0.1, steps=5, hidden=(0,))
    assert fit.config.bc_top == 0.1 and len(fit.policies) == 1
