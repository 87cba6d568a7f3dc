"""The contract: whatever the engine trains, it trains as ``cql.algorithm`` does, to rounding.

Sixty updates with a target copy every ten: beyond some 300, near-ties of a maximum part any two implementations.
"""

import itertools

import gymnasium
import pytest
import torch

import envs
from cql import algorithm, engine
from cql.algorithm import Settings, initial_state
from cql.collect import generate_offline_episodes
from cql.device import torch_settings
from cql.engine import batches, cohort, trainer
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]
ALPHA = {1: [6.0], 3: [0.5, 6.0, 50.0], 9: [0.5, 6.0, 50.0] * 3}
SEEDS = {1: [42], 3: [42, 43, 44], 9: [42, 43, 44, 42, 42, 45, 46, 47, 48]}
DRAWS = {1: [0], 3: [0, 1, 0], 9: [0, 1, 0, 1, 0, 1, 1, 0, 0]}


@pytest.fixture(autouse=True)
def settings_of_training():
    with torch_settings(torch.device("cpu")):
        yield


@pytest.fixture(scope="module")
def datasets():
    """Two data sets of unequal length, per observation."""
    found = {}
    for observation in ("index", "coordinates"):
        env = gymnasium.make(envs.ENV_ID, desc=["S....", "..H..", ".H...", "....G"], slip_probability=0.2, observation=observation,
                             max_episode_steps=30)
        found[observation] = [generate_offline_episodes(env, episodes, 0.5, seed) for episodes, seed in ((12, 1), (7, 2))]
    return found


class Case:
    """One setting, ready to be trained by either trainer from the same start."""

    def __init__(self, datasets, name="cql", objective=Objective(), batch_size=16, observation="index", hidden=(12, 8), members=3,
                 device="cpu", **settings):
        device = torch.device(device)
        data = datasets[observation]
        self.name, self.objective, self.members = name, objective, members
        self.network = PopulationMLP(20 if observation == "index" else 2, 4, hidden, observation == "index")
        self.transitions = Transitions(data, device, compress=batch_size == "full")
        self.settings = Settings(**dict(batch_size=batch_size, learning_rate=3e-3, steps=60, target_interval=10) | settings)
        self.draws, self.seeds = (torch.tensor(x[members], device=device) for x in (DRAWS, SEEDS))

    def start(self):
        return initial_state(self.network, SEEDS[self.members], ALPHA[self.members], self.draws.device)

    def train(self, updates, state, start=0, stop=60):
        """The state after ``stop`` updates, the loss terms summed over updates ``start … stop − 1``, the number of yields."""
        sums, yields = None, 0
        for step, state, terms in updates(self.network, self.transitions, state, self.draws, self.seeds, self.name, self.objective,
                                          self.settings, start, stop):
            terms = torch.stack([term.double() for term in terms])  # [terms, M]
            sums, yields = terms if sums is None else sums + terms, yields + 1
        assert step == stop
        return state, sums, yields

    def assert_they_agree(self, start=0, stop=60):
        """Asserts that both trainers agree; the state at ``start`` is the algorithm's page's."""
        begun, other = self.start(), self.start()
        if start:
            for state in (begun, other):
                self.train(algorithm.updates, state, 0, start)
        expected, expected_terms, every = self.train(algorithm.updates, begun, start, stop)
        state, terms, yields = self.train(engine.updates, other, start, stop)
        assert every == stop - start and yields < every / 2  # blocks: it was the engine that trained
        for field in ("parameters", "target", "alpha"):
            torch.testing.assert_close(getattr(state, field), getattr(expected, field), rtol=1e-5, atol=1e-6,
                                       msg=lambda text: f"{field}: {text}")
        torch.testing.assert_close(terms, expected_terms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("hidden", [(), (12, 8)])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
@pytest.mark.parametrize("batch_size", [16, "full"])
def test_the_engine_is_the_algorithm(datasets, batch_size, observation, hidden, members, device):
    common = dict(batch_size=batch_size, observation=observation, hidden=hidden, members=members, device=device)
    Case(datasets, "bc", **common).assert_they_agree()
    for td_loss, double_q, learn_alpha in itertools.product(("mse", "half_mse"), (False, True), (False, True)):
        objective = Objective(td_loss=td_loss, double_q=double_q, gamma=0.9)
        assert engine.serves("cql", objective)
        Case(datasets, objective=objective, learn_alpha=learn_alpha, penalty_threshold=1.1, **common).assert_they_agree()


@pytest.mark.parametrize("batch_size", [16, "full"])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_cohorts_workers_and_a_start_in_the_middle(datasets, batch_size, observation, monkeypatch):
    monkeypatch.setattr(trainer, "cohort_size", lambda *arguments: 3)
    for name in ("cql", "bc"):
        Case(datasets, name, members=9, batch_size=batch_size, observation=observation, threads=2).assert_they_agree(start=37, stop=59)


@pytest.mark.parametrize("change", [dict(target_interval=7), dict(target_interval=1000), dict(yield_every=(9, 4)), dict(steps=500)])
def test_intervals(datasets, change):
    for batch_size in (16, "full"):
        Case(datasets, batch_size=batch_size, **change).assert_they_agree(stop=53)


@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_a_batch_of_transitions(datasets, observation, learn_alpha, double_q, monkeypatch):
    """Minibatches as a CUDA device has them, here on the CPU."""
    monkeypatch.setattr(batches, "pairs_on", lambda device: False)
    Case(datasets, objective=Objective(double_q=double_q), observation=observation, learn_alpha=learn_alpha, penalty_threshold=1.1).assert_they_agree()
    Case(datasets, "bc", observation=observation).assert_they_agree()


def test_values_of_the_batch_alone(datasets, monkeypatch):
    """Where observations hardly repeat, target values are computed for those of the batch instead of for all."""
    original = cohort.Cohort.__init__

    def without_table(self, *arguments):
        original(self, *arguments)
        self.keeps_values = False

    monkeypatch.setattr(cohort.Cohort, "__init__", without_table)
    for observation in ("index", "coordinates"):
        Case(datasets, observation=observation).assert_they_agree()


def test_what_the_engine_serves():
    assert engine.serves("cql", Objective()) and engine.serves("bc", Objective(td_loss="huber"))
    assert not engine.serves("cql", Objective(td_loss="huber")) and not engine.serves("cql", Objective(penalty="mean"))
