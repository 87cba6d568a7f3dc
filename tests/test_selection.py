"""The rules that choose alpha, and what their choice is worth: by hand, and on small runs."""

import json
import shutil
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import scipy

import train
from cql.analysis import ope, selection
from cql.analysis.evaluation import load_policy
from cql.analysis.selection import Evidence, judge, picks, ranks, referee, regret, spearman
from cql.collect import generate_offline_episodes
from cql.dataset import ARRAYS
from cql.errors import RunError
from cql.members import Member
from cql.run_folder import RunFolder
from cql.world import World, states_of

pytestmark = pytest.mark.slow
ALPHAS = (0.1, 1.0, 20.0)


def test_rank_correlation_is_that_of_scipy_with_ties_and_gaps():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, (2, 12)).astype(float)
        assert ranks(x) == pytest.approx(scipy.stats.rankdata(x))
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        gaps = x.copy()
        gaps[[2, 5]] = np.nan
        wanted = scipy.stats.spearmanr(np.delete(x, [2, 5]), np.delete(y, [2, 5])).statistic
        assert spearman(gaps, y) == pytest.approx(wanted)
    for x in ([1.0, np.nan, np.nan], [1.0, 1.0, 1.0], [np.nan] * 3):
        assert np.isnan(spearman(np.array(x), np.arange(3.0)))


def test_equal_scores_share_the_pick_and_its_regret():
    scores = np.array([[1, 5, 5, np.nan], [np.nan] * 4, [0, 0, 0, 0]])
    shares = picks(scores)
    assert shares.tolist() == [[0, 0.5, 0.5, 0], [0] * 4, [0.25] * 4]
    worth = np.array([[9, 4, 8, 10], [1, 2, 3, 4], [0, 2, 4, 6]], dtype=float)
    lost = regret(shares, worth)
    assert lost[0] == 10 - 6 and np.isnan(lost[1]) and lost[2] == 3
    assert np.isnan(regret(shares[:1], np.full((1, 4), np.nan))).all()
    assert regret(shares[:1], np.array([[np.nan, 4, 8, np.nan]]))[0] == 2


def test_curves_that_rise_and_fall():
    assert selection.rises_then_falls([5, 10, 8])
    assert not selection.rises_then_falls([5, 10, 9.5])  # falls by 5 % of the range
    assert not selection.rises_then_falls([-3, -8, -13])  # never rose
    assert not selection.rises_then_falls([5, 10, 20]) and not selection.rises_then_falls([])
    assert selection.rises_then_falls([-10, -2, -9]) is False  # its peak is the start
    assert selection.rises_then_falls([30, 20, np.nan])  # what is not finite is left out


def test_underfitting_needs_both():
    floor, ceiling = 0.8, 1.2
    td, penalty = np.array([10, 25, 25, np.nan]), np.array([1.1, 1.1, 0.9, 1.1])
    assert selection.underfits(td, penalty, 10, floor, ceiling).tolist() == [False, True, False, False]


def test_the_training_curve_takes_the_smallest_alpha_with_the_fewest_signs():
    over, under = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]], bool), np.array([[0, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    assert selection.workflow_scores(over, under).argmin(-1).tolist() == [1, 2, 0]


def evidence(returns, hazards, fqe=None, flagged=None, over=None):
    """Members [X, Y, Z] with these exact values; FQE estimates of the return with intervals of +-1."""
    returns = np.asarray(returns, dtype=float)
    datasets, seeds, _ = returns.shape
    config = SimpleNamespace(data_seeds=range(datasets), seeds=range(seeds), num_datasets=datasets, num_seeds=seeds)
    columns = {"return": returns, "hazard_probability": np.asarray(hazards, dtype=float)}
    results = SimpleNamespace(config=config, alphas=list(ALPHAS), values=lambda metric, group: columns.get(
        metric, np.full(returns.shape, np.nan))[..., ALPHAS.index(group[1])])
    none = np.full((*returns.shape, 3), np.nan)
    estimates = {(name, target): none for name in ope.ESTIMATORS for target in ope.TARGETS}
    if fqe is not None:
        estimates["fqe", "return"] = np.asarray(fqe, dtype=float)[..., None] + [0, -1, 1]
    no = np.zeros(returns.shape, dtype=bool)
    return Evidence(results, 80, "logged", estimates, np.full(returns.shape, 2.0), np.zeros(returns.shape),
                 no if over is None else np.array(over), no, no if flagged is None else np.array(flagged),
                 np.isfinite(returns))


def entry(result, name):
    return next(e for e in result["rules"] if e["name"] == name)


RETURNS = [[[1, 5, 3], [2, 6, 4]], [[1, 2, 9], [0, 5, 3]]]
HAZARDS = [[[0.9, 0.1, 0.2], [0.9, 0.1, 0.2]], [[0.9, 0.8, 0.1], [0.9, 0.2, 0.3]]]


def test_the_exact_return_as_a_score_loses_nothing_and_its_opposite_the_most():
    right = entry(judge(evidence(RETURNS, HAZARDS, RETURNS), 0), "fqe_return")
    for target in ope.TARGETS:
        assert right["rank_correlation"][target][0] == pytest.approx(1) and right["regret"][target][0] == 0
    assert right["coverage"] == {"return": 1.0, "hazard_probability": None} and right["within_one_point"] == 1
    assert right["picks"] == [[1.0, 3.0], [20.0, 1.0]] and right["available"] == right["of"] == 12
    wrong = entry(judge(evidence(RETURNS, HAZARDS, -np.array(RETURNS)), 0), "fqe_return")
    assert wrong["rank_correlation"]["return"][0] == pytest.approx(-1)
    assert wrong["coverage"]["return"] == 1 / 12  # the 0
    assert wrong["regret"]["return"][0] == pytest.approx(((5 - 1 + 6 - 2) / 2 + (9 - 1 + 5 - 0) / 2) / 2)
    assert wrong["regret"]["hazard_probability"][0] == pytest.approx((0.8 + (0.8 + 0.7) / 2) / 2)
    assert wrong["within_one_point"] == 0


def test_the_baselines_know_nothing():
    result = judge(evidence(RETURNS, HAZARDS), 0)
    random, default = entry(result, "random"), entry(result, "default")
    assert random["regret"]["return"][0] == pytest.approx(np.mean([5 - 3, 6 - 4, 9 - 4, 5 - 8 / 3]))
    assert random["rank_correlation"]["return"] is None and [times for _, times in random["picks"]] == [1.3333] * 3
    assert default["label"] == "always alpha = 1"
    assert default["regret"]["return"][0] == pytest.approx((0 + 0 + 7 + 0) / 4)
    assert result["verdict"]["return"]["baselines"] == {"default": default["regret"]["return"][0],
                                                        "random": random["regret"]["return"][0]}


def test_a_runaway_member_is_not_picked_but_stays_the_measure():
    flagged = np.zeros((2, 2, 3), dtype=bool)
    flagged[0, 0, 1] = True  # the best of its data set and seed
    result = judge(evidence(RETURNS, HAZARDS, np.array(RETURNS) + 5.0 * flagged, flagged), 0)
    right = entry(result, "fqe_return")
    assert right["coverage"]["return"] == 11 / 12  # where the estimator is judged, not the choice, it counts
    assert result["candidates"] == 11 and result["signs"][1]["diverged"] == 1 and right["available"] == 12
    assert right["regret"]["return"][0] == pytest.approx((5 - 3) / 4) and right["picks"] == [[1.0, 2.0], [20.0, 2.0]]


def test_a_member_without_a_policy_has_no_score():
    returns = np.array(RETURNS, dtype=float)
    returns[1, 0, 2] = np.nan
    flagged = np.isnan(returns)
    result = judge(evidence(returns, np.where(flagged, np.nan, HAZARDS), returns, flagged), 0)
    right = entry(result, "fqe_return")
    assert right["available"] == 11 and right["regret"]["return"][0] == 0
    assert sum(times for _, times in entry(result, "workflow")["picks"]) == 4


def test_signs_count_the_members_and_turn_the_rule():
    over = np.zeros((2, 2, 3), dtype=bool)
    over[..., 0] = True
    over[0, 0] = True
    result = judge(evidence(RETURNS, HAZARDS, over=over), 0)
    assert [s["overfitting"] for s in result["signs"]] == [4, 1, 1] and result["signs"][0]["of"] == 4
    assert entry(result, "workflow")["picks"] == [[0.1, 1.0], [1.0, 3.0]]


def test_a_rule_that_cannot_always_choose_wins_no_verdict():
    fqe = np.array(RETURNS, dtype=float)
    fqe[0, 0] = np.nan
    result = judge(evidence(RETURNS, HAZARDS, fqe), 0)
    assert entry(result, "fqe_return")["regret"]["return"][0] == 0
    assert "fqe_return" not in result["verdict"]["return"]["rules"]


def test_a_single_data_set_has_no_interval_over_data_sets():
    right = entry(judge(evidence(RETURNS[:1], HAZARDS[:1], RETURNS[:1]), 0), "fqe_return")
    assert right["regret"]["return"] == [0, None, None]


def test_with_one_candidate_there_is_nothing_to_choose():
    """A single alpha, or several of which all but one ran away: no rule is named as the best of a choice of one."""
    flagged = np.zeros((2, 2, 3), dtype=bool)
    flagged[..., :2] = True
    for changed, words in ((evidence(RETURNS, HAZARDS, RETURNS, flagged), "two members that did not diverge"),
                           (single(), "the run has a single alpha")):
        result = judge(changed, 0)
        assert result["choices"] == 0 and result["verdict"] == {"return": None, "hazard_probability": None}
        text = selection.text(result)
        assert "There is nothing to choose: " in text and words in text and "FQE" not in text and "lost" not in text
    flagged[0, 0, 1] = False
    result = judge(evidence(RETURNS, HAZARDS, RETURNS, flagged), 0)
    assert result["choices"] == 1 and selection.nothing_to_choose(result) is None and result["verdict"]["return"]


def single():
    """The evidence of alpha 1 alone."""
    found = evidence(RETURNS, HAZARDS, RETURNS)
    kept = {name: value[:, :, 1:2] for name, value in vars(found).items() if isinstance(value, np.ndarray)}
    values = found.results.values
    results = SimpleNamespace(config=found.results.config, alphas=[1.0], values=values)
    estimates = {key: value[:, :, 1:2] for key, value in found.estimates.items()}
    return Evidence(**{**vars(found), **kept, "results": results, "estimates": estimates})


def test_of_many_rules_that_tie_the_number_and_few_names():
    assert [selection.listed(list("abcde"[:n])) for n in (1, 2, 3, 5)] == [
        "a", "a and b", "a, b and c", "5 rules that tie (a, b, …)"]
    equal = np.zeros((2, 2, 3))
    found = evidence(equal, equal, equal)
    found.estimates.update({(name, "return"): found.estimates["fqe", "return"] for name in ("pdis", "dr")})
    assert "Least return lost: 5 rules that tie (FQE (return), weighted PDIS (return), …)" in selection.text(
        judge(found, 0))


def test_rules_without_a_score_stand_apart_with_the_reason():
    """Only the FQE of the return has scores: the others go with the reason that is theirs, and all are named once."""
    result = judge(evidence(RETURNS, HAZARDS, RETURNS), 0)
    reasons = dict(selection.unscored(result))
    assert reasons["the hazard states are not known"] == [
        "FQE (hazard)", "WIS (hazard)", "weighted PDIS (hazard)", "weighted DR (hazard)", "FQE (hazard or OOD)"]
    assert reasons["too few logged episodes take the actions of the policies"] == [
        "WIS (return)", "weighted PDIS (return)", "weighted DR (return)"]
    assert reasons["no member has a number that it needs"] == [
        "agreement with data", "conservative penalty", "TD loss", "value estimate"]
    rows = [line.strip() for line in selection.text(result).splitlines()]
    for label in (label for labels in reasons.values() for label in labels):
        assert not any(row.startswith(f"{label}  ") for row in rows)
    assert any(row.startswith("FQE (return)  ") for row in rows)
    none = dict(selection.unscored(judge(evidence(RETURNS, HAZARDS), 0)))
    assert "WIS (return)" in none["no off-policy estimates are made of these data"]


def test_few_data_sets_name_no_rule_without_saying_so():
    words = "On other data another rule may lose less: an interval takes 6 data sets, and the run has {}."
    assert words.format(2) in selection.text(judge(evidence(RETURNS, HAZARDS, RETURNS), 0))
    many = judge(evidence(np.tile(RETURNS, (3, 1, 1)), np.tile(HAZARDS, (3, 1, 1)), np.tile(RETURNS, (3, 1, 1))), 0)
    assert "On other data" not in selection.text(many)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "run"
    assert train.main("--episodes 30 --steps 60 --bc-steps 20 --log-every 20 --hidden 8 --alpha 1 20 --num-seeds 2 "
                      f"--num-datasets 2 --observation coordinates --out {path}".split()) == 0
    return RunFolder.open(path)


def checked(result):
    """Through JSON without NaN, and its page."""
    again = json.loads(json.dumps(result, allow_nan=False))
    assert selection.text(again) == selection.text(result)
    return again


def test_the_rules_of_a_run(run):
    result = checked(referee(run, resamples=20))
    assert (result["members"], result["draws"], result["seeds"], result["horizon"]) == (8, 2, 2, 80)
    assert result["behavior"] == "logged" and len(result["estimates"]) == 8
    assert {e["name"] for e in result["rules"]} >= {f"{n}_{w}" for n in ope.ESTIMATORS for w in ("return", "hazard")}
    assert all(sum(times for _, times in e["picks"]) == pytest.approx(e["picked"], abs=1e-3) for e in result["rules"])
    estimate = next(e for e in result["estimates"] if (e["alpha"], e["seed"], e["data_seed"]) == (20.0, 43, 43))
    data = run.datasets(run.config())[1]
    policy = load_policy(run, Member("cql", 20.0, 43, 43), data)
    inputs = World.of(data).inputs  # states by their own numbers, not by the distinct observations
    log = ope.EpisodeLog(states_of(data.observations, inputs), data.actions.astype(int), data.rewards,
                         states_of(data.next_observations, inputs), data.terminations, data.episode_starts, 225, 4,
                         data.behavior_probabilities)
    wanted = ope.estimate(log, policy.act(inputs)[None], 80, resamples=20)
    assert estimate["fqe_return"] == pytest.approx(wanted.values["fqe"]["return"][0].tolist())
    assert estimate["unlogged"] == pytest.approx(wanted.ood_probability[0])
    exact = {(e["alpha"], e["seed"], e["data_seed"]): e["exact"]["return"]
             for e in run.read_json("evaluation.json")["members"]}
    lost = [max(exact[1.0, s, d], exact[20.0, s, d]) - exact[1.0, s, d] for s in (42, 43) for d in (42, 43)]
    assert entry(result, "default")["regret"]["return"][0] == pytest.approx(np.mean(lost))


def test_coordinates_say_the_same_as_indices():
    logs = []
    for observation in ("index", "coordinates"):
        environment = gymnasium.make("envs:SafetyCriticalGridWorld-v0", observation=observation)
        logs.append(selection.ope.episode_log(generate_offline_episodes(environment, 40), World.around(environment))[0])
    assert logs[0].hazard.sum() == logs[1].hazard.sum() > 0
    down = np.ones((1, logs[0].num_states), dtype=int)  # the same action everywhere, however states are numbered
    index, coordinates = (ope.estimate(log, down, 80, resamples=10) for log in logs)
    assert index.ood_probability == pytest.approx(coordinates.ood_probability)
    for target in ope.TARGETS:
        assert index.values["fqe"][target] == pytest.approx(coordinates.values["fqe"][target], nan_ok=True)


def test_without_a_model_rules_pick_and_nothing_is_judged(tmp_path):
    rng = np.random.default_rng(0)
    states = rng.integers(0, 3, 41)
    np.savez(tmp_path / "data.npz", observations=states[:-1], actions=rng.integers(0, 2, 40), rewards=np.ones(40),
             next_observations=states[1:], terminations=np.zeros(40, bool))  # endless
    out = tmp_path / "run"
    assert train.main(f"--dataset {tmp_path}/data.npz --steps 4 --bc-steps 0 --alpha 1 6 --out {out}".split()) == 0
    result = checked(referee(RunFolder.open(out), resamples=5))
    assert result["behavior"] == "counts" and result["horizon"] == 40 and result["verdict"]["return"] is None
    fqe = entry(result, "fqe_return")
    assert fqe["available"] == 2 and fqe["picked"] == 1 and fqe["regret"]["return"] is None
    assert entry(result, "fqe_hazard")["available"] == 0 and "no rule can be judged" in selection.text(result)


def test_frozen_lake_data_of_ones_own(tmp_path):
    environment, rng, rows = gymnasium.make("FrozenLake-v1"), np.random.default_rng(0), []
    for episode in range(60):
        state, _ = environment.reset(seed=episode)
        done = False
        while not done:
            action = int(rng.integers(4))
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((state, action, reward, following, terminated, truncated and not terminated))
            state, done = following, terminated or truncated
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    np.savez(tmp_path / "lake.npz", **{name: np.array(column) for name, column in zip(names, zip(*rows))})
    out = tmp_path / "run"
    assert train.main(f"--env FrozenLake-v1 --dataset {tmp_path}/lake.npz --steps 30 --bc-steps 0 --alpha 1 20 "
                      f"--hidden 8 --out {out}".split()) == 0
    result = checked(referee(RunFolder.open(out), resamples=20))
    assert result["horizon"] == 100 and result["behavior"] == "counts"
    assert entry(result, "fqe_hazard")["coverage"]["hazard_probability"] is not None
    assert entry(result, "random")["regret"]["hazard_probability"] is not None


def test_broken_episodes_have_no_estimates_unless_they_are_split(tmp_path):
    source = generate_offline_episodes(gymnasium.make("envs:SafetyCriticalGridWorld-v0"), 20)
    columns = {name: np.delete(getattr(source, name), 1, axis=0) for name in ARRAYS  # one step is lost
               if getattr(source, name) is not None}
    np.savez(tmp_path / "data.npz", **columns)
    for flags, available in (([], 0), (["--split-episodes"], 2)):
        out = str(tmp_path / f"run{available}")
        assert train.main(["--dataset", str(tmp_path / "data.npz"), "--map", "islands", "--alpha", "1", "6", "--steps",
                           "20", "--bc-steps", "0", "--hidden", "8", *flags, "--out", out]) == 0
        result = checked(referee(RunFolder.open(out), 10))
        assert [entry(result, name)["available"] for name in ("fqe_return", "fqe_hazard", "support")] == [available] * 3
        assert entry(result, "td")["available"] == 2  # needs no episodes
        assert bool(result["withheld"]) != bool(available)
        split = "Episodes split at breaks: 1 episode of the data starts in the middle of a logged one"
        assert (split in selection.text(result)) == bool(available)
    assert "No off-policy estimates: episodes are broken in 1 place, first after transition 0" in selection.text(
        referee(RunFolder.open(tmp_path / "run0"), 10))


def test_cloning_alone_has_no_alpha_to_choose(run, tmp_path):
    alone = shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((alone / "config.json").read_text())
    (alone / "config.json").write_text(json.dumps(config | {"steps": 0}))
    with pytest.raises(RunError, match="no alpha to choose"):
        referee(RunFolder.open(alone))


def test_beyond_so_many_observations_there_are_no_estimates_but_other_rules(run, monkeypatch):
    monkeypatch.setattr(selection.ope, "MAX_WORK", 10)
    result = checked(referee(run, resamples=5))
    assert entry(result, "dr_return")["available"] == 0 and entry(result, "support")["regret"]["return"] is None
    assert entry(result, "penalty")["available"] == 8 and entry(result, "penalty")["regret"]["return"] is not None
