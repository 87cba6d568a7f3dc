"""Masks of actions on vectors, and masked policies in act, export, registry, service and explanation.

The toy: at place 1 all three actions exist, at place 0 action 2 does not, though the network's Q of it is the largest.
"""

import json

import gymnasium
import numpy as np
import pytest
import torch

import evaluate
import train
from cql.action_weights import action_weights, existing_actions
from cql.algorithm import State, next_values
from cql.analysis import fqe
from cql.analysis.evaluation import ClonedSupport, Rollouts
from cql.cloned import cloned_transitions
from cql.commands import explain as explain_command
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.deploy.explanation import Explainer
from cql.deploy.export import FORMATS, export, largest_difference, program
from cql.deploy.gate import Limits
from cql.deploy.model import Model
from cql.deploy.store import Registry
from cql.diagnostics import Diagnostics
from cql.errors import ConfigError, DatasetError, RunError
from cql.files import load_archive
from cql.losses import Objective, cql_loss, td_target
from cql.members import Member
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.sampling import Transitions
from cql.scales import Scales, resolved
from cql.world import World

pytestmark = pytest.mark.slow

EXIST = np.array([[1, 1, 0], [1, 1, 1]], bool)  # by place
ANY = Limits(max_hazard=1.0, min_return=-1e9, max_unsupported=1.0, episodes=30)


class Places(gymnasium.Env):
    """Two steps: at place 1, then at place 0. Action 1 earns 1; action 2 earns 5, and must not be taken at place 0."""

    observation_space, action_space = gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(3)

    def __init__(self, says=True):
        self.says, self.mask = says, np.zeros(3, np.int8)

    def seen(self):
        self.mask[:] = EXIST[self.place]  # the same array at every step
        return np.eye(2, dtype=np.float32)[self.place], {"action_mask": self.mask} if self.says else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 1
        return self.seen()

    def step(self, action):
        assert EXIST[self.place, action], "an action that does not exist"
        ended, self.place = self.place == 0, 0
        seen, info = self.seen()
        return seen, float([0, 1, 5][action]), ended, False, info


gymnasium.register("Places-v0", Places, max_episode_steps=4)


def columns(**changes) -> dict:
    """Each of the six pairs of actions, four times over."""
    pairs = [(first, second) for first in range(3) for second in range(2)] * 4
    actions = np.array(pairs).ravel()
    place = np.tile([1, 0], len(pairs))
    found = dict(observations=np.eye(2)[place], actions=actions, rewards=np.array([0.0, 1, 5])[actions],
                 next_observations=np.eye(2)[np.zeros(len(place), int)], terminations=place == 0,
                 action_masks=EXIST[place], next_action_masks=EXIST[np.zeros(len(place), int)])
    return {**found, **changes}


def toy(**changes) -> OfflineDataset:
    return OfflineDataset.from_arrays(**columns(**changes))


def linear_policy(weight, masked=True, algorithm="cql", scales=None) -> Policy:
    """Q(s, a) = weight[a] · s."""
    network = PopulationMLP(2, 3, (), False)
    return Policy(network, [torch.tensor([weight], dtype=torch.float32), torch.zeros(1, 1, 3)], algorithm,
                  1.0 if algorithm == "cql" else None, 42, 42, scales=scales, masked=masked)


WEIGHT = [[1, 2], [3, 4], [9, 8]]  # Q at place 0: 1, 3, 9; at place 1: 2, 4, 8


# ------------------------------------------------------------------------------------------------------------- the data


def test_masks_belong_to_the_distinct_vectors(tmp_path):
    dataset = toy()
    assert dataset.masked and dataset.rows[0].tolist() == [[0, 1], [1, 0]]
    assert dataset.admissible.tolist() == EXIST[[1, 0]].tolist()
    assert dataset.masks_of(np.float32([[1, 0], [0, 1], [.5, .5], [1, 0]])).tolist() == [
        *EXIST.tolist(), [True] * 3, EXIST[0].tolist()]  # all where the data do not say
    dataset.save(tmp_path / "d.npz")
    assert (OfflineDataset.load(tmp_path / "d.npz").admissible == dataset.admissible).all()
    numbered = toy(observations=columns()["observations"].argmax(1), next_observations=np.zeros(48, int))
    assert not numbered.masked and numbered.masks_of(numbered.observations) is None
    assert not toy(action_masks=None, next_action_masks=None).masked


def one_other(row: int, mask) -> np.ndarray:
    masks = columns()["action_masks"]
    masks[row] = mask
    return masks


@pytest.mark.parametrize("changes, sentence", [
    ({"action_masks": one_other(3, [1, 1, 1])},
     "the masks contradict each other: action_masks of transition 3 are not those that another transition gives for "
     "observation [1.0, 0.0]."),
    ({"next_action_masks": EXIST[np.ones(48, int)]},
     "the masks contradict each other: next_action_masks of transition 0"),
    ({"action_masks": one_other(3, [0, 0, 0])},
     "action_masks of transition 3 leave no action in observation [1.0, 0.0]."),
    ({"actions": np.where(np.arange(48) == 1, 2, columns()["actions"]), "metadata": {"action_names": ["a", "b", "c"]}},
     "transition 1 takes action c in observation [1.0, 0.0], which its mask or the model says does not exist there."),
])
def test_broken_masks_of_vectors_get_one_sentence(changes, sentence):
    with pytest.raises(DatasetError) as refused:
        toy(**changes)
    assert sentence in str(refused.value)


def test_masks_that_differ_where_the_network_sees_no_difference_are_refused_before_training():
    """In float32 two vectors become one, of which the masks differ."""
    seen = np.zeros((4, 2))
    seen[:, 0] = [0, 1, 1 + 1e-12, 1e9]
    masks = np.array([[1, 1], [1, 0], [1, 1], [1, 1]])
    dataset = OfflineDataset.from_arrays(seen, [0, 0, 1, 1], [0.0, 1, 2, 3], seen, np.ones(4), action_masks=masks)
    with pytest.raises(DatasetError, match="the masks contradict each other"):
        resolved(Config(dataset="d.npz"), dataset, {})


# ---------------------------------------------------------------------------------------------------------- the trainer


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("double_q", [False, True])
def test_the_target_and_the_penalty_leave_the_masked_action_out_by_hand(full, double_q):
    dataset, objective = toy(), Objective(gamma=0.5, double_q=double_q)
    transitions = Transitions([dataset], torch.device("cpu"), full, action_weights(Config(), [dataset]))
    index = torch.tensor([0])
    batch = transitions.full_batch(index) if full else transitions.minibatch(index, index, 0, 64)
    place = batch.observations[0].argmax(-1)
    assert (batch.action_weights[0].bool().numpy() == EXIST[place]).all() and {*place.tolist()} == {0, 1}
    policy = linear_policy(WEIGHT)
    state = State(policy.parameters, policy.parameters, [], [], torch.tensor([1.0]))
    following = next_values(policy.network, state, batch.next_observations, objective, batch.next_action_weights)
    assert following.unique().tolist() == [3]  # always at place 0: 3, not 9
    target = td_target(batch.rewards, batch.terminations, following, 0.5)
    assert target[0].tolist() == (batch.rewards[0] + 1.5 * (place == 1)).tolist()
    q = policy.network.q_values(policy.parameters, batch.observations)
    for n in range(len(place)):
        one = [tensor[:, n : n + 1] for tensor in (q, batch.actions, target)]
        found = cql_loss(*one, torch.tensor([1.0]), action_weights=batch.action_weights[:, n : n + 1]).penalty.item()
        existing = [1, 3] if place[n] == 0 else [2, 4, 8]
        expected = np.log(np.exp(existing).sum()) - existing[int(batch.actions[0, n])]
        assert found == pytest.approx(expected, rel=1e-5)


def test_bc_of_a_part_of_the_episodes_has_the_masks_of_its_own_rows():
    """Its table lacks the vector that only the other episodes have: row numbers differ."""
    c = columns()
    c["observations"][c["terminations"] & (c["actions"] == 0)] = [.5, 0]  # seen in worse episodes only
    c["next_observations"][:-1] = np.where(c["terminations"][:-1, None], c["next_observations"][:-1],
                                           c["observations"][1:])
    dataset = OfflineDataset.from_arrays(**c)
    config, scales = Config(bc_top=0.1, dataset="d.npz"), Scales()
    every = Transitions([dataset], torch.device("cpu"), True, existing_actions([dataset]))
    cloned = cloned_transitions(config, [dataset], World(None, None), every, scales)
    assert (len(every.observations), len(cloned.observations)) == (3, 2)
    for part in (every, cloned):
        assert (part.penalty_weights[0].bool().numpy() == EXIST[part.observations[:, 1].long()]).all()


def test_the_log_measures_the_largest_q_among_actions_that_exist():
    dataset, policy = toy(), linear_policy(WEIGHT)
    transitions = Transitions([dataset], torch.device("cpu"), True, existing_actions([dataset]))
    diagnostics = Diagnostics(transitions, [dataset], World(None, None), 0.5)
    found, _ = diagnostics.read(policy.network, policy.parameters, torch.tensor([0]), "cql",
                                torch.tensor([[-99.0, 99.0]]))
    assert found["q/max_mean"] == [pytest.approx((3 + 8) / 2)] and found["q/max"] == [8] and found["q/start"] == [8]
    assert found["policy/ood_mass"] == [pytest.approx(0)]  # every action that exists was logged
    assert found["policy/action_mismatch_rate"] == [pytest.approx(1 - (1 / 2 + 1 / 3) / 2)]


# ----------------------------------------------------------------------------------------------------------- the policy


def test_a_masked_policy_acts_within_the_mask_alone(tmp_path):
    made, place = linear_policy(WEIGHT), np.eye(2)
    made.save(tmp_path / "p.pt")
    for policy in (made, Policy.load(tmp_path / "p.pt")):
        assert policy.masked
        assert policy.act(place[0], mask=[1, 1, 0]) == 1 and policy.act(place[0], mask=[1, 1, 1]) == 2
        assert policy.act(place, mask=EXIST).tolist() == [1, 2]
        assert policy.q_values(place, mask=EXIST).tolist() == [[1, 3, -np.inf], [2, 4, 8]]
        likely = 1 / (1 + np.e**-2)
        assert policy.probabilities(place[0], mask=EXIST[0]) == pytest.approx([1 - likely, likely, 0])
    scaled = linear_policy(WEIGHT, scales=Scales(np.array([1.0, 1]), np.array([2.0, 2]), 10.0))
    scaled.save(tmp_path / "s.pt")
    assert Policy.load(tmp_path / "s.pt").q_values([3, 1], [1, 1, 0]).tolist() == [10, 30, -np.inf]


@pytest.mark.parametrize("mask, sentence", [
    (None, "the policy was trained with masks: it needs one, which says of each of the 3 actions whether it exists"),
    ([1, 1], "a mask is 3 times true or false"), ([1, 2, 0], "a mask is 3 times true or false"),
    (["1", "1", "0"], "a mask is 3 times"), ([[1, 1, 0]], "a mask is 3 times"), ([[1], [1, 2]], "a mask is 3 times"),
    ([1, None, 0], "a mask is 3 times"), ([float("nan"), 1, 0], "a mask is 3 times"), ([0, 0, 0], "leaves no action"),
])
def test_what_is_no_mask_is_one_sentence(mask, sentence):
    for ask in ("act", "q_values", "probabilities", "outputs"):
        with pytest.raises(ValueError, match=sentence):
            getattr(linear_policy(WEIGHT), ask)([1, 0], mask)


def test_a_policy_without_masks_keeps_its_file_and_may_be_asked_within_one(tmp_path):
    policy = linear_policy(WEIGHT, masked=False)
    assert policy.act([1, 0]) == 2 and policy.act([1, 0], [1, 1, 0]) == 1
    policy.save(tmp_path / "p.pt")
    assert Policy.load(tmp_path / "p.pt").masked is False
    assert load_archive(tmp_path / "p.pt")["format"] == 3
    table = Policy(PopulationMLP(2, 3, (), True), [torch.zeros(1, 2, 3)], "cql", 1.0, 42, 42)
    with pytest.raises(ValueError, match="which actions exist in a state stands in the policy: a mask is for vectors."):
        table.act(0, [1, 1, 0])


# ------------------------------------------------------------------------------------- support, estimates and rollouts


def test_support_and_fqe_read_the_masks_of_the_data():
    dataset, cloned = toy(), linear_policy([[2, 0], [2.5, 0], [9, 0]], algorithm="bc")
    support = ClonedSupport(dataset, cloned)
    assert support.supported([1, 0], 0, [1, 1, 0])  # e^-0.5 of the likeliest that exists, e^-7 of the masked one
    assert support.unsupported(np.eye(2)[[0, 0]], [0, 1], EXIST[[0, 0]]).tolist() == [False, False]
    assert support.mismatch_rate(linear_policy(WEIGHT)) == pytest.approx(1 - (1 / 2 + 1 / 3) / 2)
    found = fqe.fitted_values(dataset, [linear_policy(WEIGHT), linear_policy([[3, 0], [0, 0], [9, 8]])], 0.5, 2,
                              resamples=1, updates=600)
    assert found.values[:, 0] == pytest.approx([5 + .5 * 1, 5], abs=.05)  # the second takes 0 at place 0, not 2


def test_rollouts_take_the_mask_that_the_environment_gives():
    environment = gymnasium.make("Places-v0")
    episodes = Rollouts(World(environment, None), 3, 0).of(linear_policy(WEIGHT))
    assert episodes.returns.tolist() == [6, 6, 6] and [action for _, action in episodes.steps] == [2, 1] * 3
    assert np.array(episodes.masks).tolist() == EXIST[[1, 0] * 3].tolist()
    assert episodes.unsupported(ClonedSupport(toy(), linear_policy(WEIGHT, algorithm="bc"))).tolist() == [0, 0, 0]
    silent = gymnasium.make("Places-v0", says=False)
    with pytest.raises(RunError, match='Places-v0 must say which actions exist, in info."action_mask". of every reset'):
        Rollouts(World(silent, None), 1, 0).of(linear_policy(WEIGHT))


def test_an_environment_without_masks_or_with_known_states_is_refused_before_training():
    spec = {"id": "Places-v0", "arguments": {"says": False}, "max_episode_steps": 4}
    with pytest.raises(ConfigError, match='the data have masks, and Places-v0 gives no info."action_mask".'):
        World.of(toy(metadata={"environment": spec}))
    grid = {"id": "SafetyCriticalGridWorld-v0", "max_episode_steps": 9,
            "arguments": {"desc": ["S.", ".G"], "observation": "coordinates"}}
    c = columns(metadata={"environment": grid, "num_actions": 4})
    for name in ("action_masks", "next_action_masks"):
        c[name] = np.pad(c[name], ((0, 0), (0, 1)), constant_values=True)
    with pytest.raises(ConfigError, match="masks do not go with vectors of SafetyCriticalGridWorld-v0, whose"):
        World.of(OfflineDataset.from_arrays(**c))


# -------------------------------------------------------------------------------------------------------- a run with it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the toy: linear networks, whose Q of the masked action is carried over from place 1."""
    folder = tmp_path_factory.mktemp("masks")
    np.savez(folder / "d.npz", **columns(), metadata=json.dumps(
        {"action_names": ["none", "low", "high"], "feature_names": ["zero", "one"]}))
    assert train.main(["--dataset", str(folder / "d.npz"), "--env", "Places-v0", "--alpha", "0", "--hidden", "0",
                       "--lr", "0.1", "--steps", "400", "--bc-steps", "50", "--target-interval", "20", "--log-every",
                       "200", "--reward-scale", "1", "--out", str(folder / "run")]) == 0
    return folder / "run"


CQL, BC = "cql-a0-s42-d42", "bc-s42-d42"


def test_a_run_with_masks_of_vectors_never_takes_what_does_not_exist(run):
    policy, place = Policy.load(run / "policies" / f"{CQL}.pt"), np.eye(2)
    assert policy.masked and policy.outputs(place[0], [1, 1, 1]).argmax() == 2  # it has the largest Q …
    assert policy.act(place, EXIST).tolist() == [1, 2]  # … and is not taken
    assert policy.q_values(place[1], EXIST[1])[2] == pytest.approx(5 + .99 * 1, abs=1e-3)  # nor does it enter a target
    evaluation = json.loads((run / "evaluation.json").read_text())
    [entry] = [entry for entry in evaluation["members"] if entry["algorithm"] == "cql"]
    assert entry["rollout"]["return_mean"] == 6 and entry["value_estimate"] == pytest.approx(5.99, abs=1e-3)
    assert entry["diverged"] is None
    judged = json.loads((run / "judging.json").read_text())
    assert judged["source"] == "rollouts" and judged["rows"][-1]["than_logged"] == "better"
    assert evaluate.main([str(run)]) == 0


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_exported_masked_policy_takes_the_mask_as_its_second_input(run, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime").set_default_logger_severity(4)
    ending, _, runner_of = FORMATS[form]
    assert "acts as the policy on all of 2 observations" in export(run, tmp_path, CQL, (form,))[0]
    answer = runner_of((tmp_path / f"{CQL}{ending}").read_bytes())
    place = np.eye(2)  # float64: the observations are standardised
    outputs, actions = answer(place, EXIST)
    assert actions.tolist() == [1, 2] and np.isneginf(outputs[0, 2]) and np.isfinite(outputs[1]).all()
    assert answer(place, np.ones((2, 3), bool))[1].tolist() == [2, 2]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_export_that_ignores_the_mask_is_not_kept():
    policy = linear_policy(WEIGHT)
    module = program(policy).module()
    def deaf(observations, _):
        return [tensor.numpy() for tensor in module(torch.from_numpy(observations),
                                                    torch.ones(len(observations), 3, dtype=torch.bool))]
    with pytest.raises(RunError, match="acts otherwise on 1 of 2 observations"):
        largest_difference(deaf, policy, np.eye(2, dtype=np.float32), EXIST)


def test_an_explanation_stays_within_the_mask(run):
    explainer = Explainer(Model.open(run, CQL))
    found = explainer.explain([1, 0], mask=[1, 1, 0])
    assert found["possible"] == [True, True, False] and found["q"][2] is None and found["probabilities"][2] == 0
    assert found["chosen"] == {"index": 1, "name": "low"} and "next comes none with" in found["text"]
    assert found["text"].startswith("At the observation (zero 1, one 0), taking low is what the model chooses")
    assert "high" not in found["text"]
    json.dumps(found, allow_nan=False)
    assert explainer.explain([0, 1], mask=[1, 1, 1])["chosen"]["name"] == "high"
    for mask, action, sentence in (
            ([1, 1, 0], 2, "high is none of the actions that this policy may take there: none, low"),
            (None, None, "the policy was trained with masks"), ([1, 1], None, "a mask is 3 times")):
        with pytest.raises(RunError, match=sentence):
            explainer.explain([1, 0], action, mask)
    alone = explainer.explain([1, 0], mask=[1, 0, 0])
    assert alone["chosen"]["index"] == 0 and "there is no other action" in alone["text"]


def test_the_commands_explanation_takes_a_mask(run, capsys):
    where = [str(run), "--member", CQL, "--observation", "1", "0"]
    assert explain_command.main([*where, "--mask", "1", "1", "0", "--action", "none"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[4].split() == ["high", "0", "–", "0", "%"] and "taking none is worse than taking low" in out
    assert explain_command.main(where) == 2 and "was trained with masks" in capsys.readouterr().err


def test_a_masked_policy_of_vectors_is_registered_judged_and_served(run, tmp_path):
    pytest.importorskip("httpx")
    pytest.importorskip("prometheus_client")
    app = pytest.importorskip("cql.deploy.app")
    from fastapi.testclient import TestClient

    from cql.deploy.decision_log import DecisionLog

    registry = Registry(tmp_path / "reg")
    id = registry.register(run, CQL, "ann")
    record = registry.promote(id, "ann", "a test", ANY)
    assert {m["name"]: m["value"] for m in record["gate"]["measures"]}["return"] == 6
    with TestClient(app.create_app(registry, log=DecisionLog(tmp_path / "log"))) as client:
        one = client.post("/v1/act", json={"observation": [1, 0], "mask": [True, True, False]}).json()
        answer = one["decisions"][0]
        assert (answer["action"], answer["name"], answer["q"][2], answer["probabilities"][2]) == (1, "low", None, 0)
        two = client.post("/v1/act", json={"observations": [[1, 0], [0, 1]], "masks": EXIST.tolist()}).json()
        assert [decision["action"] for decision in two["decisions"]] == [1, 2]
        why = client.post("/v1/explain", json={"observation": [1, 0], "mask": [True, True, False], "action": 0}).json()
        assert why["verdict"] == "worse" and why["possible"] == [True, True, False]
        for path, asked, sentence in (
                ("act", {"observation": [1, 0]}, "the policy was trained with masks"),
                ("act", {"observation": [1, 0], "mask": [False] * 3}, "a mask leaves no action."),
                ("act", {"observation": [1, 0], "mask": [1, 1]}, "a mask is 3 times"),
                ("act", {"observation": [1, 0], "masks": [[1, 1, 0]]}, "as many \"masks\" with a list"),
                ("act", {"observations": [[1, 0]], "mask": [1, 1, 0]}, "one \"mask\" goes with an \"observation\""),
                ("act", {"observations": [[1, 0]], "masks": []}, "as many \"masks\" with a list"),
                ("explain", {"observation": [1, 0], "mask": [1, 1, 0], "action": 2}, "high is none of the actions")):
            refused = client.post(f"/v1/{path}", json=asked)
            assert refused.status_code == 422 and sentence in refused.json()["detail"], asked
        described = client.get("/v1/map").json()
        assert described["masked"] and described["features"] == ["zero", "one"] and described["actions"][2] == "high"
        schema = client.get("/openapi.json").json()["components"]["schemas"]["ExplainRequest"]
        assert schema["required"] == ["observation", "mask"] and schema["properties"]["mask"]["maxItems"] == 3
    lines = [json.loads(line) for line in (tmp_path / "log/decisions.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == [[True, True, False], *EXIST.tolist()]


# ------------------------------------------------------------------------------------------------------- state numbers


def numbered_run(folder, *settings, **changes):
    """The run on the toy with places as state numbers."""
    c = columns()
    c |= {name: c[name].argmax(1) for name in ("observations", "next_observations")}
    np.savez(folder / "d.npz", **{name: value for name, value in {**c, **changes}.items() if value is not None})
    assert train.main(["--dataset", str(folder / "d.npz"), "--alpha", "1", "--hidden", "0", "--lr", "0.1", "--steps",
                       "400", "--bc-steps", "20", "--target-interval", "20", "--log-every", "200", *settings,
                       "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_masked_policy_of_state_numbers_is_served_and_explained(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from cql.deploy.served_model import ServedModel

    model = Model.open(numbered_run(tmp_path, metadata='{"action_names": ["none", "low", "high"]}'))
    assert model.policy.allowed.numpy().tolist() == EXIST.tolist()
    served = ServedModel("id", "digest", model)
    first, second = served.decide([0, 1])
    assert (first.name, first.q[2], first.probabilities[2], second.name) == ("low", None, 0, "high")
    with pytest.raises(RunError, match="a mask is for vectors"):
        served.decide([0], [[True] * 3])
    found = Explainer(model).explain(0, 0)
    assert found["verdict"] == "worse" and found["possible"] == [True, True, False] and "high" not in found["text"]
    with pytest.raises(RunError, match="high is none of the actions that this policy may take there: none, low."):
        Explainer(model).explain(0, 2)
    id = Registry(tmp_path / "reg").register(tmp_path / "run", None, "ann")
    again = Registry(tmp_path / "reg").model(id)
    assert again.policy.act(np.arange(2)).tolist() == [1, 2]


def test_a_supported_policy_is_explained_with_targets_that_are_0_where_nothing_was_logged(tmp_path):
    """State 2 is entered and never acted in: its Q is a guess, and the target has 0 there."""
    last = columns()["terminations"]
    run = numbered_run(tmp_path, "--supported", next_observations=np.where(last, 2, 0), terminations=np.zeros(48),
                       truncations=last, action_masks=None, next_action_masks=None)
    explainer = Explainer(Model.open(run))
    assert explainer.targets[0, :2].tolist() == [0, 1]  # the rewards alone
    assert explainer.explain(2)["support"]["state_count"] == 0


def test_a_policy_of_other_masks_does_not_fit_its_data(run):
    from cql.analysis.evaluation import refuse_misfit

    with pytest.raises(RunError, match="other observations, actions or masks"):
        refuse_misfit(linear_policy(WEIGHT, masked=False), toy(), "p.pt")
    assert Member("cql", 0.0, 42, 42).name == CQL
