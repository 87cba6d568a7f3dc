"""A model file in the place of an environment, and masks of the actions that exist, against hand-computed numbers."""

import json

import gymnasium
import numpy as np
import pytest
import torch

import evaluate
import train
from cql.action_weights import action_weights, existing_actions
from cql.algorithm import State, next_values
from cql.collect import make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.explanation import Explainer
from cql.deploy.export import export, torch_runner
from cql.deploy.store import Registry
from cql.errors import ConfigError, DatasetError, RunError
from cql.exact import TabularMDP, backward_induction, evaluate_policies, value_iteration
from cql.losses import Objective, bc_loss, cql_gradient, cql_loss
from cql.model_file import KnownModel
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World

pytestmark = pytest.mark.slow
TINY = ["--steps", "40", "--bc-steps", "20", "--log-every", "20", "--hidden", "8"]
EXIST = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool)  # action 2 does not exist in state 0


def model_arrays(**changes) -> dict:
    """States 0 and 1, a bad end 2 and a good end 3. In state 0 action 0 waits or goes on, action 1 risks the bad end,
    action 2 would win and does not exist. A step costs 1; the good end gives 10, the bad end takes 10."""
    P, R = np.zeros((4, 3, 4)), np.full((4, 3, 4), -1.0)
    P[0] = [.5, .5, 0, 0], [0, .2, .8, 0], [0, 0, 0, 1]
    P[1] = [0, 0, .1, .9], [1, 0, 0, 0], [0, 1, 0, 0]
    R[:, :, 2], R[:, :, 3] = -10, 10
    arrays = {"P": P, "R": R, "start": np.array([1.0, 0, 0, 0]), "terminal": np.array([0, 0, 1, 1], bool),
              "hazard": np.array([0, 0, 1, 0], bool), "goal": np.array([0, 0, 0, 1], bool), "admissible": EXIST,
              "metadata": np.array('{"horizon": 30}')}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def model_at(path, **changes) -> str:
    np.savez(path, **model_arrays(**changes))
    return str(path)


def logged(episodes=60, seed=0, **changes) -> dict:
    """Columns of episodes that the uniform policy over the actions that exist takes in that model."""
    random, model, rows = np.random.default_rng(seed), model_arrays(), []
    for episode in range(episodes):
        state = 0
        for step in range(30):
            action = int(random.choice(np.flatnonzero(EXIST[state])))
            following = int(random.choice(4, p=model["P"][state, action]))
            rows.append((state, action, model["R"][state, action, following], following, following >= 2,
                         step == 29 and following < 2, episode))
            state = following
            if state >= 2:
                break
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids")
    return {**dict(zip(names, map(np.array, zip(*rows)))), **changes}


def data_at(path, **changes) -> str:
    np.savez(path, **logged(**changes))
    return str(path)


# -------------------------------------------------------------------------------------------------------- model files


def test_values_of_a_model_by_hand(tmp_path):
    model = KnownModel.load(model_at(tmp_path / "m.npz"))
    assert model.horizon == 30 and model.spec["max_episode_steps"] == 30
    best = value_iteration(model.mdp, 1.0).max(-1)
    assert best == pytest.approx([6, 8, 0, 0])  # V(1) = .9 · 10 − .1 · 10; V(0) = −1 + .5 V(0) + .5 · 8
    assert value_iteration(model.mdp, 1.0)[0] == pytest.approx([6, .2 * 7 + .8 * -10, 6])  # action 2 as the first one
    risky = evaluate_policies(model.mdp, np.eye(3)[[1, 0, 0, 0]], horizon=2)
    assert (risky.hazard_probability, risky.goal_probability) == (pytest.approx(.82), pytest.approx(.18))
    assert risky.returns == pytest.approx(.8 * -10 + .2 * (-1 + 8))


def test_rewards_by_pair_and_outcomes_give_the_same_model(tmp_path):
    plain = KnownModel.load(model_at(tmp_path / "a.npz")).mdp
    mean = (model_arrays()["P"] * model_arrays()["R"]).sum(-1)
    by_pair = KnownModel.load(model_at(tmp_path / "b.npz", R=mean)).mdp
    assert by_pair.expected_reward == pytest.approx(plain.expected_reward)
    outcomes = {name: getattr(plain, name) for name in ("probability", "next_state", "reward", "terminated")}
    np.savez(tmp_path / "c.npz", **outcomes, start=0, terminal=plain.terminal, admissible=EXIST)
    again = KnownModel.load(tmp_path / "c.npz", max_episode_steps=5)
    assert again.horizon == 5 and (again.mdp.probability == plain.probability).all() and again.mdp.start == 0


def test_a_model_file_has_the_values_of_the_environment_with_the_same_table():
    lake = gymnasium.make("FrozenLake-v1").unwrapped
    expected, (S, A) = TabularMDP.from_env(lake), (16, 4)
    P, R = np.zeros((S, A, S)), np.zeros((S, A, S))
    for s in range(S):
        for a in range(A):
            for p, following, reward, _ in lake.P[s][a]:
                P[s, a, following] += p
                R[s, a, following] = reward
    R[expected.terminal] = 0
    states = np.broadcast_to(np.arange(S), P.shape)
    made = TabularMDP.from_outcomes(P, states, R, np.zeros(P.shape, bool), lake.initial_state_distrib,
                                    expected.terminal, expected.hazard, expected.goal)
    for horizon in (1, 100):
        ours, theirs = (backward_induction(mdp, horizon).evaluation for mdp in (made, expected))
        assert ours.returns == pytest.approx(theirs.returns, abs=1e-14)
    policies = np.random.default_rng(0).dirichlet(np.ones(A), (3, S))
    ours, theirs = (evaluate_policies(mdp, policies, horizon=50) for mdp in (made, expected))
    assert ours.hazard_probability == pytest.approx(theirs.hazard_probability, abs=1e-14)


@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_a_policy_may_be_undefined_in_terminal_states_alone(tmp_path, nothing):
    model = KnownModel.load(model_at(tmp_path / "m.npz")).mdp
    policy = np.eye(3)[[0, 0, 0, 0]]
    whole = evaluate_policies(model, policy, horizon=30).returns
    policy[2:] = nothing
    assert evaluate_policies(model, policy, horizon=30).returns == whole
    policy[1] = nothing
    with pytest.raises(ValueError, match="no distribution over actions in state 1"):
        evaluate_policies(model, policy, horizon=30)


def test_episodes_drawn_from_a_model_have_its_expectations(tmp_path):
    environment = KnownModel.load(model_at(tmp_path / "m.npz")).environment
    ends = []
    for seed in range(2000):
        state, _ = environment.reset(seed=seed)
        state, reward, terminated, _, _ = environment.step(1)
        ends.append((state, reward, terminated))
    assert {end[:2] for end in ends} == {(1, -1.0), (2, -10.0)}
    assert np.mean([terminated for *_, terminated in ends]) == pytest.approx(.8, abs=4 * np.sqrt(.16 / 2000))


def test_a_run_with_a_model_is_exact_and_keeps_it(tmp_path, capsys):
    run, data = tmp_path / "run", data_at(tmp_path / "d.npz")
    model = model_at(tmp_path / "m.npz")
    assert train.main([*TINY, "--dataset", data, "--model", model, "--out", str(run)]) == 0
    assert "exact return of an episode" in capsys.readouterr().out
    (tmp_path / "m.npz").unlink()  # the run has its own copy
    assert evaluate.main([str(run), "--audit"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["references"]["optimal"]["exact"]["return"] == pytest.approx(6, abs=1e-6)
    assert found["environment"]["id"] == "model.npz" and found["misfit"] is None
    for entry in found["members"]:
        policy = Policy.load(run / "policies" / f"{'bc' if entry['alpha'] is None else 'cql-a6'}-s42-d42.pt")
        assert (policy.allowed.numpy() == EXIST).all()  # of BC too
        world = World.of(RunFolder.open(run).datasets(RunFolder.open(run).config())[0])
        tables = np.eye(3)[policy.act(np.arange(4))]
        assert entry["exact"]["return"] == pytest.approx(evaluate_policies(world.mdp, tables, horizon=30).returns)
    assert json.loads((run / "audit.json").read_text())["environment"]["id"] == "model.npz"
    assert "model.npz" in json.loads((run / "manifest.json").read_text())["files"]
    (run / "model.npz").write_bytes(b"other")
    assert evaluate.main([str(run)]) == 2
    assert "model.npz: contents differ from the manifest" in capsys.readouterr().err


def changed(place, value):
    """Arrays of the model with one entry changed: ``{name: array}``."""
    array = model_arrays()[place[0]].copy()
    array[place[1:]] = value
    return {place[0]: array}


TERMINAL_REWARD = {"P": changed(("P", 2, 0, 2), 1)["P"], "R": model_arrays()["R"]}


@pytest.mark.parametrize("changes, sentence", [
    (changed(("P", 1, 0, 3), 0.5), "probabilities must sum to 1: those of state 1, action 0 sum to 0.6."),
    (changed(("P", 1, 0), [0, 0, -.1, 1.1]), "action 0 in state 1 has a negative or non-finite probability."),
    (changed(("P", 1, 0, 0), np.nan), "action 0 in state 1 has a negative or non-finite probability."),
    (changed(("R", 1, 0, 3), np.inf), "action 0 in state 1 has a reward that is not finite."),
    (changed(("R", 1, 0, 3), 1e31), "rewards must lie between -1e+30 and 1e+30."),
    (changed(("P", 2, 1, 0), 1), "action 1 in state 2 leaves a terminal state."),
    (TERMINAL_REWARD, "action 0 in state 2 has a reward in a terminal state."),
    (changed(("start", 1), 0.5), "start must be a distribution over 4 states."),
    (changed(("admissible", 1), False), "state 1 has no admissible action."),
    ({"terminal": np.array([0, 0, 1, 1])}, "terminal must be a bool mask over 4 states, got int64 (4,)."),
    ({"terminal": np.ones(4, bool)}, "every state is terminal."),
    ({"R": np.zeros(4)}, "R must be [S, A] or [S, A, S] for the P of [4, 3, 4], got [4]."),
    ({"P": np.zeros((4, 4))}, "P must be [S, A, S], got [4, 4]."),
    ({"hazard": np.zeros(3, bool)}, "hazard must be a bool mask over 4 states, got bool (3,)."),
    ({"admissible": np.ones((4, 2), bool)}, "admissible must be bool (4, 3), got bool (4, 2)."),
    ({"start": None}, "lacks the array start of a model file."),
    ({"reward": np.zeros(3)}, "has reward: the arrays of a model file are P, R, start"),
    ({"P": np.array(["x"])}, "P must be numbers."),
    ({"P": np.array([{}], dtype=object)}, "cannot be read as a model file"),
    ({"metadata": None}, "does not say after how many steps an episode is cut: give --max-episode-steps."),
    ({"metadata": np.array('{"horizon": 0}')}, "the horizon of a model must be an integer from 1 to"),
    ({"metadata": np.array("[1]")}, "its metadata are not a JSON object."),
])
def test_a_broken_model_gets_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, changes, sentence):
    monkeypatch.chdir(tmp_path)
    data_at("d.npz")
    model_at("m.npz", **changes)
    assert train.main([*TINY, "--dataset", "d.npz", "--model", "m.npz"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"d.npz", "m.npz"}


@pytest.mark.parametrize("columns, arguments, sentence", [
    ({}, ["--env", "FrozenLake-v1"], "--env says what the environment is: it does not go with --model."),
    ({"metadata": json.dumps({"environment": {"id": "FrozenLake-v1", "arguments": {}, "max_episode_steps": 9}})}, [],
     "the data name an environment"),
    ({"observations": np.ones((len(logged()["actions"]), 2)),
      "next_observations": np.ones((len(logged()["actions"]), 2))}, [], "the data have vectors"),
    ({"metadata": json.dumps({"num_states": 5})}, [], "the data have 5 states, the model file 4."),
    ({"actions": np.where(np.arange(len(logged()["actions"])) == 0, 2, logged()["actions"])}, [],
     "transition 0 takes action 2 in state 0, which its mask or the model says does not exist there."),
])
def test_data_that_do_not_go_with_a_model(tmp_path, monkeypatch, capsys, columns, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    data_at("d.npz", **columns)
    model_at("m.npz")
    assert train.main([*TINY, "--dataset", "d.npz", "--model", "m.npz", *arguments]) == 2
    assert sentence in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"d.npz", "m.npz"}


def test_a_missing_model_and_a_model_without_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dataset", data_at("d.npz"), "--model", "no.npz"]) == 2
    assert train.main(["--model", "no.npz"]) == 2
    assert capsys.readouterr().err == ("error: there is no model file at no.npz.\n"
                                       "error: --model is the true model of given data: give --dataset too.\n")


def test_data_of_another_model_get_a_note(tmp_path):
    columns = logged()
    columns["rewards"] = columns["rewards"] + (columns["rewards"] > 0)
    dataset = KnownModel.load(model_at(tmp_path / "m.npz")).known_for(OfflineDataset.from_arrays(**columns))
    assert "cannot lead to state 3 with reward 11 here" in World.of(dataset).misfit(dataset)


# -------------------------------------------------------------------------------------------------------------- masks


def masks_of(columns: dict) -> dict:
    return {"action_masks": EXIST[columns["observations"]], "next_action_masks": EXIST[columns["next_observations"]]}


def test_masks_are_one_table_kept_on_disk(tmp_path):
    columns = logged()
    dataset = OfflineDataset.from_arrays(**columns, **masks_of(columns))
    assert (dataset.admissible == EXIST).all() and dataset.num_actions == 3
    dataset.save(tmp_path / "d.npz")
    again = OfflineDataset.load(tmp_path / "d.npz")
    assert (again.action_masks == dataset.action_masks).all() and (again.admissible == EXIST).all()
    assert OfflineDataset.from_arrays(**columns).admissible is None


def test_a_next_mask_alone_says_what_exists_in_states_that_are_entered():
    columns = logged()
    masks = EXIST[columns["next_observations"]]
    masks[columns["terminations"]] = False  # of a terminated step it is not read
    table = OfflineDataset.from_arrays(**columns, next_action_masks=masks).admissible
    assert (table == EXIST).all()


def broken(name, change):
    columns = logged()
    masks = masks_of(columns)
    return {name: change(masks[name].copy(), columns)}


def with_row(value):
    def change(masks, columns):
        masks[np.flatnonzero(columns["observations"] == 0)[1]] = value
        return masks
    return change


@pytest.mark.parametrize("columns, sentence", [
    (broken("action_masks", with_row([1, 1, 1])), "the masks contradict each other: action_masks of transition"),
    (broken("action_masks", with_row([0, 0, 0])), "leave no action in state 0."),
    (broken("action_masks", lambda masks, columns: masks[:-1]), "action_masks has "),
    (broken("action_masks", lambda masks, columns: masks[:, :2]), "action_masks must be one bool per transition and"),
    (broken("action_masks", lambda masks, columns: masks[:, 0]), "action_masks must be one bool per transition and"),
    (broken("action_masks", lambda masks, columns: masks * 2), "action_masks must be true or false (0 or 1)."),
    (broken("action_masks", lambda masks, columns: masks & (np.arange(3) != columns["actions"][:, None])),
     "the masks contradict each other"),
    ({"action_masks": np.tile([False, True, True], (len(logged()["actions"]), 1))}, "takes action 0 in state "),
])
def test_broken_masks_get_one_sentence(tmp_path, monkeypatch, capsys, columns, sentence):
    monkeypatch.chdir(tmp_path)
    data_at("d.npz", **columns)
    assert train.main([*TINY, "--dataset", "d.npz"]) == 2
    assert sentence in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_masks_that_the_model_contradicts(tmp_path):
    columns = logged()
    model = KnownModel.load(model_at(tmp_path / "m.npz"))
    wider = OfflineDataset.from_arrays(**columns, action_masks=np.ones((len(columns["actions"]), 3)))
    with pytest.raises(DatasetError, match="not those that another transition or the model gives for state 0"):
        model.known_for(wider)


def table_state(network, table) -> State:
    parameters = [torch.tensor(table, dtype=torch.float32).reshape(shape) if 4 in shape else torch.zeros(shape)
                  for shape in ((1, *shape) for shape in network.shapes.values())]
    return State(parameters, parameters, [], [], torch.tensor([1.0]))


@pytest.mark.parametrize("double_q", [False, True])
def test_a_mask_in_the_targets_max_by_hand(double_q):
    network = PopulationMLP(4, 3, (), True)
    state = table_state(network, [[1, 2, 9], [4, 5, 6], [0, 0, 0], [0, 0, 0]])
    observations = torch.tensor([[0, 1]])
    masks = torch.from_numpy(EXIST[[0, 1]]).float()[None]
    objective = Objective(double_q=double_q)
    assert next_values(network, state, observations, objective).tolist() == [[9, 6]]
    assert next_values(network, state, observations, objective, masks).tolist() == [[2, 6]]


def test_a_mask_in_the_penalty_by_hand_and_its_gradient_is_autograds():
    q = torch.tensor([[[0.0, np.log(3), 50.0]]], dtype=torch.float64, requires_grad=True)
    masks, target = (torch.tensor(values, dtype=torch.float64) for values in ([[[1, 1, 0]]], [[0.5]]))
    action = torch.tensor([[0]])
    terms = cql_loss(q, action, target, torch.tensor([2.0]).double(), action_weights=masks)
    assert terms.penalty.item() == pytest.approx(np.log(4))  # log(1 + 3) - 0
    terms.total.sum().backward()
    assert q.grad.tolist() == [[pytest.approx([-1 + 2 * (.25 - 1), 2 * .75, 0])]]  # 2 (Q - y) + alpha (p - 1)
    by_formula = cql_gradient(q.detach(), action, target, torch.tensor([2.0]).double(), action_weights=masks)
    assert torch.allclose(by_formula, q.grad)
    logits = q.detach().clone().requires_grad_()
    loss = bc_loss(logits.masked_fill(masks == 0, -torch.inf), action)  # as ``updates`` masks them
    loss.sum().backward()
    assert loss.item() == pytest.approx(np.log(4)) and logits.grad.tolist() == [[pytest.approx([-.75, .75, 0])]]


@pytest.mark.parametrize("settings, penalty, target, allowed", [
    ({}, EXIST[0], EXIST[0], EXIST[0]), ({"penalty": "previous"}, EXIST[0], EXIST[0], EXIST[0]),
    ({"penalty": "rho"}, [.25, .75, 0], EXIST[0], EXIST[0]),
    ({"penalty": "rho", "supported": True}, [.25, .75, 0], EXIST[0], EXIST[0]),
    ({"supported": True}, EXIST[0], EXIST[0], EXIST[0]),
    ({"penalty": "mu", "target_policy": "behavior"}, [.25, .75, 0], [.25, .75, 0], EXIST[0]),
])
def test_masks_are_the_weights_of_every_objective(settings, penalty, target, allowed):
    dataset = OfflineDataset.from_arrays([0, 0, 0, 0], [0, 1, 1, 1], np.zeros(4), [1, 1, 1, 1], [0, 0, 0, 0],
                                         np.ones(4), action_masks=EXIST[[0] * 4], metadata={"num_states": 4})
    weights = action_weights(Config(**settings), [dataset])
    for table, expected in zip(weights, (penalty, target, allowed)):
        assert table[0, 0].tolist() == np.asarray(expected, float).tolist()
    nowhere = weights.allowed[0, 1]  # a state without data or masks
    assert nowhere.tolist() == [1, 1, 1]
    assert existing_actions([dataset]).penalty[0].tolist() == EXIST.astype(float).tolist()


def test_trained_with_masks_nothing_bad_is_chosen_though_it_pays(tmp_path, capsys):
    """Action 2 of state 0 would have the largest output: nothing trains it down."""
    columns = logged()
    data = data_at(tmp_path / "d.npz", **masks_of(columns))
    assert train.main([*TINY, "--dataset", data, "--alpha", "0", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "note: masks: 2.8 of 3 actions exist in a state, on average; cql/algorithm.py trains all members" in out
    for name in ("cql-a0-s42-d42", "bc-s42-d42"):
        policy = Policy.load(tmp_path / "run/policies" / f"{name}.pt")
        assert policy.outputs(0)[2] == -np.inf and policy.probabilities(0)[2] == 0
        assert np.isfinite(policy.outputs(1)).all()


def test_bc_ends_at_the_frequencies_among_the_actions_that_exist(tmp_path):
    columns = logged()
    data = data_at(tmp_path / "d.npz", **masks_of(columns))
    assert train.main(["--steps", "0", "--bc-steps", "400", "--lr", "0.1", "--hidden", "0", "--dataset", data, "--out",
                       str(tmp_path / "run")]) == 0
    policy = Policy.load(tmp_path / "run/policies/bc-s42-d42.pt")
    for state in (0, 1):
        counts = np.bincount(columns["actions"][columns["observations"] == state], minlength=3)
        assert policy.probabilities(state) == pytest.approx(counts / counts.sum(), abs=1e-3)


def test_a_masked_policy_is_exported_with_its_masks(tmp_path):
    columns = logged()
    data, run = data_at(tmp_path / "d.npz", **masks_of(columns)), tmp_path / "run"
    assert train.main([*TINY, "--dataset", data, "--out", str(run)]) == 0
    assert export(run, tmp_path / "out", "bc-s42-d42")[0]
    policy = Policy.load(run / "policies/bc-s42-d42.pt")
    outputs, actions = torch_runner((tmp_path / "out/bc-s42-d42.pt2").read_bytes())(np.arange(4))
    assert (outputs == policy.outputs(np.arange(4))).all() and np.isneginf(outputs[0, 2])
    assert EXIST[np.arange(4), actions].all()


def test_an_entry_of_a_registry_holds_the_model_file(tmp_path):
    run, data = tmp_path / "run", data_at(tmp_path / "d.npz")
    model = model_at(tmp_path / "m.npz")
    assert train.main([*TINY, "--dataset", data, "--model", model, "--out", str(run)]) == 0
    registry = Registry(tmp_path / "registry")
    name = registry.register(run, None, "ann")
    assert registry.model(name).world.mdp.num_states == 4 and registry.card(name)["files"].keys() >= {"model.npz"}
    assert registry.card(name)["audit"] is not None  # its own Q of action 2 in state 0 is minus infinity
    found = Explainer(registry.model(name)).explain(0)
    assert found["hazard"]["by_action"][2] is None and "action 2" not in found["text"]
    assert found["hazard"]["by_action"][1] >= .8  # the bad end at once
    assert registry.verify() == []
    (registry.folder(name) / "model.npz").write_bytes(b"other")
    with pytest.raises(RunError, match="model.npz"):
        registry.model(name)


# ------------------------------------------------------------------------------------------------------- environments


MODULE = """
import gymnasium
import numpy as np

class Sums(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"level": gymnasium.spaces.Discrete(3),
                                               "place": gymnasium.spaces.Box(-1, 1, (2, 2))})
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, reward=1.0): self.reward = reward
    def seen(self): return {"level": 1, "place": np.full((2, 2), 0.5, np.float32)}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}
    def step(self, action): return self.seen(), self.reward * action, False, False, {}

gymnasium.register("Sums-v0", entry_point=Sums, max_episode_steps=4)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a new module that registers Sums-v0."""
    name = f"sums_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield name
    gymnasium.registry.pop("Sums-v0", None)


def flat_data(path) -> str:
    rows = np.tile(np.float32([0, 1, 0, .5, .5, .5, .5]), (8, 1))
    np.savez(path, observations=rows, actions=np.arange(8) % 2, rewards=np.arange(8) % 2, next_observations=rows,
             terminations=np.zeros(8), truncations=np.arange(8) % 4 == 3)
    return str(path)


def test_an_environment_of_a_module_with_arguments_and_a_dictionary(module, capsys):
    data, env = flat_data("d.npz"), f"{module}:Sums-v0"
    assert train.main([*TINY, "--dataset", data, "--env", env, "--env-args", '{"reward": 3}', "--out", "run"]) == 0
    found = json.loads(open("run/evaluation.json").read())
    assert found["environment"] == {"id": "Sums-v0", "arguments": {"reward": 3}, "max_episode_steps": None}
    assert {entry["rollout"]["return_mean"] for entry in found["members"]} <= {0.0, 12.0}  # 4 steps of 0 or 3
    gymnasium.registry.pop("Sums-v0")  # as in a new process
    assert evaluate.main(["run"]) == 2
    assert "name that on the command line (--env MODULE:Sums-v0): no file can." in capsys.readouterr().err


def test_a_run_is_evaluated_again_where_the_command_line_names_the_module(module, monkeypatch):
    data, env = flat_data("d.npz"), f"{module}:Sums-v0"
    assert train.main([*TINY, "--dataset", data, "--env", env, "--out", "run"]) == 0
    gymnasium.registry.pop("Sums-v0")
    monkeypatch.delitem(__import__("sys").modules, module)
    assert evaluate.main(["run", "--env", env]) == 0
    assert train.main(["--resume", "run", "--env", env]) == 0


@pytest.mark.parametrize("arguments, sentence", [
    (["--env", "FrozenLake-v1", "--env-args", "{"], "--env-args { is no JSON object"),
    (["--env", "FrozenLake-v1", "--env-args", '{"is_slippery": NaN}'], "has an argument that is not finite."),
    (["--env", "Taxi-v3"], "Please use `Taxi-v4` instead.\n"),
    (["--env", "FrozenLake-v1", "--env-args", "[1]"], "--env-args [1] is no JSON object"),
    (["--env", "FrozenLake-v1", "--env-args", '{"wings": 2}'], "the environment FrozenLake-v1 cannot be made"),
    (["--env", "FrozenLake-v1", "--env-args", '{"render_mode": "human"}'], "arguments that are not allowed"),
    (["--env-args", "{}"], "--env-args are those of another --env"),
])
def test_arguments_of_an_environment(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert train.main([*TINY, "--dataset", data_at("d.npz"), *arguments]) == 2
    assert sentence in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("space, shape, sentence", [
    (gymnasium.spaces.MultiDiscrete([2, 3]), (5,), None), (gymnasium.spaces.Box(0, 1, (2, 3)), (6,), None),
    (gymnasium.spaces.Box(0, 1, ()), (1,), None), (gymnasium.spaces.Box(0, 255, (9,), np.uint8), (9,), None),
    (gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(4, start=3), gymnasium.spaces.Box(0, 1, (2,))]), (6,), None),
    (gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), None, "shows images"),
    (gymnasium.spaces.Dict({"camera": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)}), None, "shows images"),
    (gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)), None, "no vectors of one length"),
])
def test_observation_spaces(space, shape, sentence):
    made = type("Shows", (gymnasium.Env,), {
        "observation_space": space, "action_space": gymnasium.spaces.Discrete(2),
        "reset": lambda self, *, seed=None, options=None: (space.sample(), {})})
    gymnasium.register("Shows-v0", entry_point=made, max_episode_steps=3)
    spec = {"id": "Shows-v0", "arguments": {}, "max_episode_steps": None}
    try:
        if sentence is not None:
            with pytest.raises(ConfigError, match=sentence):
                make_environment(spec)
        else:
            environment = make_environment(spec)
            assert environment.observation_space.shape == shape and environment.reset()[0].shape == shape
    finally:
        gymnasium.registry.pop("Shows-v0")
