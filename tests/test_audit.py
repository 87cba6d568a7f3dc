"""The audit: its parts add up, its formulas by hand, and a trained linear network meets the exact solution."""

import json
import shutil
from functools import partial

import gymnasium
import numpy as np
import pytest

import evaluate
import train
from cql.analysis import audit
from cql.collect import environment_spec, generate_offline_episodes, make_environment
from cql.commands import verify
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import DatasetError, RunError
from cql.exact import certificate, cql_fixed_point, curve, policy_evaluation
from cql.files import sha256
from cql.losses import Objective
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World

pytestmark = pytest.mark.slow
MAP = ("S..H", "..H.", "...G")
ALPHAS = (0.5, 3.0, 12.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    (folder / "map.txt").write_text("\n".join(MAP))
    return folder


def trained(folder, name, options):
    assert train.main([*f"--map {folder}/map.txt --device cpu --out {folder / name}".split(), *options.split()]) == 0
    return RunFolder.open(folder / name)


@pytest.fixture(scope="module")
def linear(folder):
    return trained(folder, "linear", "--hidden 0 --episodes 60 --lr 0.15 --target-interval 25 --steps 1800 "
                                     "--bc-steps 100 --log-every 900 --alpha 0.5 3 12")


@pytest.fixture(scope="module")
def linear_audit(linear):
    return audit.audit(linear)


@pytest.fixture(scope="module")
def coarse(folder):
    """Barely trained, with alpha = 0, two seeds and two data sets."""
    return trained(folder, "coarse", "--hidden 8 --episodes 15 --steps 30 --bc-steps 10 --log-every 30 --alpha 0 5 "
                                     "--num-seeds 2 --num-datasets 2 --observation coordinates")


def exact_of(run, number=0):
    config = run.config()
    dataset = run.datasets(config)[number]
    environment = make_environment(dataset.metadata["environment"])
    return audit.ExactTables(dataset, World.around(environment), config.objective, config.alpha)


def test_the_linear_network_reaches_the_exact_solution(linear, linear_audit):
    """Ordinary training on the full batch: below 1 % of the Q range at every alpha, and the same greedy actions."""
    exact = exact_of(linear)
    for entry in linear_audit["members"][1:]:
        assert entry["distance"]["max_share"] < 0.01, entry["alpha"]
        assert entry["greedy_as_oracle_where_clear"] == 1 and entry["clear_states"] > 0.7 * exact.seen.sum()
        assert entry["oracle"]["certified"] and entry["ood_mass"]["max"] < 0.05
        assert entry["start"]["value_estimate"] == pytest.approx(entry["start"]["oracle_value"], abs=0.1)
    assert [entry["alpha"] for entry in linear_audit["members"]] == [None, *ALPHAS]


def test_the_exact_solution_is_certified_from_outside(linear):
    exact = exact_of(linear)
    for alpha, q in exact.solutions.items():
        td_loss = exact.objective.td_loss
        residual, *_ = certificate(exact.empirical, exact.counts, q[None], [alpha], exact.gamma, td_loss)
        assert residual[0] < 1e-9 * (1 + alpha)


@pytest.mark.parametrize("number", [0, 1])
def test_the_parts_add_up_on_logged_pairs(coarse, number):
    exact = exact_of(coarse, number)
    inputs = exact.world.inputs
    assert inputs.shape == (12, 2)  # the networks see coordinates
    for alpha in (0.0, 5.0):
        policy = Policy.load(coarse.policy_path(f"cql-a{alpha:g}-s43-d{42 + number}"))
        q = policy.q_values(inputs).astype(np.float64)
        summary, states = audit.audit_cql(exact, q, alpha)
        logged = exact.logged
        parts = audit.decomposition(q[logged], exact.solutions[alpha][logged], exact.support_data[logged],
                                    exact.support_true[logged], states["q_true"][logged])
        np.testing.assert_allclose(sum(parts.values()), (q - states["q_true"])[logged], atol=1e-9, rtol=0)
        found = summary["decomposition"]
        assert sum(found[name]["mean"] for name in audit.TERMS) == pytest.approx(found["total"]["mean"], abs=1e-9)
        assert (np.abs(parts["conservatism"]).max() == 0) == (alpha == 0)
        start = summary["start"]
        if start["decomposition"] is not None:
            error = start["value_estimate"] - start["true_value"]
            assert sum(start["decomposition"].values()) == pytest.approx(error, abs=1e-9)


def test_true_values_are_those_of_the_greedy_policy(coarse):
    """By the evaluation, which knows nothing of the audit; and by the definition, pair by pair."""
    found, evaluation = audit.audit(coarse), coarse.read_json("evaluation.json")
    for entry, other in zip(found["members"], evaluation["members"]):
        assert all(entry[name] == other[name] for name in ("algorithm", "alpha", "seed"))
        assert entry["network"]["return"] == pytest.approx(other["exact"]["return"])
        if entry["algorithm"] == "cql":
            assert entry["start"]["true_value"] == pytest.approx(other["exact"]["discounted_value"])
            assert entry["start"]["value_estimate"] == pytest.approx(other["value_estimate"], rel=1e-5)
    states = next(entry["states"] for entry in found["members"] if entry["algorithm"] == "cql")
    exact = exact_of(coarse)
    policy = (np.array(states["action"])[:, None] == np.arange(4)).astype(float)
    value, q = policy_evaluation(exact.mdp, policy, exact.gamma)
    np.testing.assert_allclose(states["q_true"], q, rtol=1e-6)
    np.testing.assert_allclose(states["true_value"], value, rtol=1e-6)
    assert (np.array(found["draws"]["42"]["states"]["optimal_value"]) >= value - 1e-5).all()


def test_the_parts_by_hand():
    parts = audit.decomposition(np.array(10.0), np.array(7.0), np.array(9.0), np.array(8.0), np.array(5.0))
    assert {name: float(x) for name, x in parts.items()} == {
        "optimisation": 3, "conservatism": -2, "sampling": 1, "policy": 3}


def test_needed_share_against_a_hazard():
    """About 2.9 % at alpha_half = 6 and 1.5 % at 3 for a gain of 100; at that share both sides are equal."""
    np.testing.assert_allclose(audit.needed_share(100, [6, 3]), [0.0291, 0.0148], atol=1e-4)
    for gain, alpha_half in ((100, 6), (0.5, 40), (-3, 2)):
        share = audit.needed_share(gain, alpha_half)
        assert alpha_half / 2 * (1 / share - 1 / (1 - share)) == pytest.approx(gain)
    assert audit.needed_share(5, 0) == 0 and audit.needed_share(0, 5) == 0.5


def crossing(hazard_logs, safe_logs):
    """State 0 has a hazard on its right and a way down; below it, the goal is on the right. No slips.

    The way's target is -1 + 0.99 * 50 = 48.5 at every alpha (one logged action below), the hazard's -100.
    """
    environment = make_environment({"id": "SafetyCriticalGridWorld-v0", "max_episode_steps": 10, "arguments": {
        "desc": ["SH", ".G"], "slip_probability": 0.0}})
    rows = [(0, 3, -100.0, 1, True)] * hazard_logs + [(0, 1, -1.0, 2, False)] * safe_logs + [(2, 3, 50.0, 3, True)] * 5
    metadata = {"num_states": 4, "num_actions": 4}
    return OfflineDataset.from_arrays(*map(np.array, zip(*rows)), metadata=metadata), environment


@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_the_hazard_certificate_where_the_formula_is_exact(alpha):
    """Safe share 1 %: the hazard is preferred from alpha_half = 2 * 148.5 / (100 - 1 / 0.99) = 3.0003 on."""
    dataset, environment = crossing(99, 1)
    exact = audit.ExactTables(dataset, World.around(environment), Objective(), [alpha])
    down_everywhere = np.tile([0.0, 1.0, 0.0, 0.0], (4, 1))
    found = audit.audit_cql(exact, down_everywhere, alpha)[0]["hazard"]
    assert found["states_with_logged_hazard_action"] == 1 and found["states_by_network"] == 0
    chosen = alpha / 2 > 2 * 148.5 / (100 - 1 / 0.99)
    assert found["states_by_oracle"] == chosen
    needed = float(audit.needed_share(148.5, alpha / 2))
    assert chosen == (0.01 < needed)
    if chosen:
        assert found["states"] == [
            {"state": 0, "hazard_action": 3, "by_oracle": True, "by_network": False, "safe_action": 1,
             "safe_share": pytest.approx(0.01), "needed_share": pytest.approx(needed)}]
    solve = partial(cql_fixed_point, exact.empirical, exact.counts, gamma=0.99)
    flip = curve.flip_points(curve.alpha_curve(exact.mdp, exact.counts, solve, [1.0, 100.0], 0.99, 10), solve)
    assert [(f.state, f.before, f.after) for f in flip] == [(0, 1, 3)]
    assert flip[0].alpha == pytest.approx(4 * 148.5 / (100 - 1 / 0.99), rel=1e-4)


def test_a_network_that_walks_into_a_hazard_is_certified_too():
    dataset, environment = crossing(1, 99)
    exact = audit.ExactTables(dataset, World.around(environment), Objective(), [1.0])
    summary, _ = audit.audit_cql(exact, np.tile([0.0, 1.0, 0.0, 5.0], (4, 1)), 1.0)
    assert [(s["state"], s["by_oracle"], s["by_network"]) for s in summary["hazard"]["states"]] == [(0, False, True)]
    assert summary["network"] == {"return": -100, "hazard_probability": 1}
    assert summary["greedy_as_oracle"] == 0.5  # right where below it is right too
    start = summary["start"]
    assert (start["value_estimate"], start["true_value"], start["optimal_value"]) == (5, -100, pytest.approx(48.5))
    assert start["decomposition"]["policy"] == pytest.approx(0)  # Q of the logged hazard is what it is
    assert summary["generalisation"]["states_choosing_unlogged"] == 0
    assert summary["generalisation"]["pairs"]["number"] == 2 + 3


def test_cloning_is_measured_against_the_counts():
    dataset, environment = crossing(1, 3)
    exact = audit.ExactTables(dataset, World.around(environment), Objective(), [])
    p = np.array([[0, 0.75, 0, 0.25], [0.25] * 4, [0, 0, 0, 1.0], [0.25] * 4])
    found = audit.audit_bc(exact, p, exact.counts)
    assert found["kl_mean"] == 0 and found["total_variation_max"] == 0 and found["greedy_as_counts"] == 1
    p[0] = [0.25, 0.25, 0.25, 0.25]
    found = audit.audit_bc(exact, p, exact.counts)
    assert found["kl_mean"] == pytest.approx(4 / 9 * (0.75 * np.log(3) + 0.25 * np.log(1)))
    assert found["total_variation_max"] == pytest.approx(0.5) and found["ood_mass"] == pytest.approx(4 / 9 * 0.5)


def test_evaluate_writes_prints_and_draws(coarse, capsys, rendered):
    assert evaluate.main([str(coarse.path), "--audit"]) == 0
    printed = capsys.readouterr().out
    for words in ("AUDIT", "1. The value at the start", "2. How far", "3. Every", "4. Hazard", "BC against"):
        assert words in printed
    assert max(map(len, printed.partition("AUDIT")[2].splitlines())) <= 130
    found = coarse.read_json("audit.json")
    assert [entry["algorithm"] for entry in found["members"]] == ["bc"] * 4 + ["cql"] * 8
    detailed = [entry for entry in found["members"] if entry.get("states") is not None]
    assert len(detailed) == audit.MAX_DETAILED and np.shape(detailed[0]["states"]["q"]) == (12, 4)
    for name in ("audit_values", "audit_decomposition"):
        assert (coarse.path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert verify.main([str(coarse.path)]) == 0


def changed(run, target, **settings):
    shutil.copytree(run.path, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    (target / "manifest.json").unlink()  # which would tell that files were changed
    return RunFolder.open(target)


def refused(run, capsys, sentence):
    """One sentence, exit status 2, and no file touched."""
    before = {name: sha256(run.path / name) for name in run.files()}
    capsys.readouterr()
    assert evaluate.main([str(run.path), "--audit"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert {name: sha256(run.path / name) for name in run.files()} == before


def test_gamma_one_has_no_fixed_point(linear, tmp_path, capsys):
    refused(changed(linear, tmp_path / "copy", gamma=1.0), capsys, "gamma below 1")


def test_data_without_an_environment(linear, tmp_path, capsys):
    run = changed(linear, tmp_path / "copy")
    dataset = run.datasets(run.config())[0]
    metadata = {k: v for k, v in dataset.metadata.items() if k != "environment"}
    run.dataset_path(42).unlink()
    OfflineDataset.from_arrays(dataset.observations, dataset.actions, dataset.rewards, dataset.next_observations,
                               dataset.terminations, metadata=metadata).save(run.dataset_path(42))
    refused(run, capsys, "name no environment")


def test_data_of_another_environment():
    config = Config(episodes=5)
    islands, blocks = (make_environment(environment_spec(Config(map=name))) for name in ("islands", "blocks"))
    dataset = generate_offline_episodes(islands, config.episodes * 10)
    with pytest.raises(DatasetError, match="of another environment"):
        World.around(blocks).empirical(dataset)
    lake = gymnasium.make("FrozenLake-v1", map_name="8x8")
    with pytest.raises(DatasetError, match="does not fit: .* data set of another environment"):
        World.around(lake).empirical(dataset)


def test_vectors_that_are_no_states():
    environment = make_environment(environment_spec(Config(observation="coordinates")))
    random = np.random.default_rng(0)
    before, after = random.normal(size=(2, 6, 2)).astype(np.float32)
    dataset = OfflineDataset.from_arrays(before, [0, 1, 2, 3, 0, 1], np.zeros(6), after, [False] * 6)
    with pytest.raises(DatasetError, match="none of the environment's states"):
        World.around(environment).empirical(dataset)
    indices = make_environment(environment_spec(Config()))
    with pytest.raises(DatasetError, match="not of the kind"):
        World.around(indices).empirical(dataset)


def test_an_environment_without_a_table():
    with pytest.raises(RunError, match="no transition table P"):
        World.around(gymnasium.make("CartPole-v1")).known()
