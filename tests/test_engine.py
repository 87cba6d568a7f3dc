"""The contract: whatever the engine trains, it trains as ``cql.algorithm`` does, to rounding.

Twenty-one updates, sixty where blocks and starts are tested, with a target copy every ten: beyond some 300, near-ties
of a maximum part any two implementations.
"""

import itertools
from functools import partial

import gymnasium
import pytest
import torch

import envs
from cql import algorithm, engine
from cql.algorithm import Settings, State, initial_state
from cql.collect import generate_offline_episodes
from cql.device import torch_settings
from cql.engine import batches, cohort, trainer
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions

DEVICES = ["cpu",
           pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]
ALPHA = [6.0, 0.5, 50.0] * 3  # of the first M members
SEEDS = [42, 43, 44, 42, 42, 45, 46, 47, 48]
DRAWS = [0, 1, 0, 1, 0, 1, 1, 0, 0]


@pytest.fixture(autouse=True)
def settings_of_training():
    with torch_settings(torch.device("cpu")):
        yield


@pytest.fixture(scope="module")
def datasets():
    """Two data sets of unequal length, per observation."""
    found = {}
    for observation in ("index", "coordinates"):
        env = gymnasium.make(envs.ENV_ID, desc=["S....", "..H..", ".H...", "....G"], slip_probability=0.2,
                             observation=observation, max_episode_steps=30)
        found[observation] = [generate_offline_episodes(env, episodes, 0.5, seed)
                              for episodes, seed in ((12, 1), (7, 2))]
    return found


class Case:
    """One setting, ready to be trained by either trainer from the same start."""

    def __init__(self, datasets, name="cql", objective=None, batch_size=16, observation="index", hidden=(12, 8),
                 device="cpu", **settings):
        self.device, data = torch.device(device), datasets[observation]
        self.name, self.objective = name, objective or Objective()
        self.network = PopulationMLP(20 if observation == "index" else 2, 4, hidden, observation == "index")
        self.transitions = Transitions(data, self.device, compress=batch_size == "full")
        defaults = dict(batch_size=batch_size, learning_rate=3e-3, steps=60, target_interval=10)
        self.settings = Settings(**defaults | settings)

    def start(self, members):
        return initial_state(self.network, SEEDS[:members], ALPHA[:members], self.device)

    def train(self, updates, state, start, stop):
        """The state after ``stop`` updates, the loss terms summed over ``start … stop − 1``, the number of yields."""
        draws, seeds = (torch.tensor(x[: len(state.alpha)], device=self.device) for x in (DRAWS, SEEDS))
        yielded = [(step, state, torch.stack([term.double() for term in terms])) for step, state, terms in updates(
            self.network, self.transitions, state, draws, seeds, self.name, self.objective, self.settings, start, stop)]
        assert yielded[-1][0] == stop
        return yielded[-1][1], sum(terms for *_, terms in yielded), len(yielded)

    def assert_they_agree(self, *populations, start=0, stop=21):
        """Asserts that the engine trains populations of so many members as the algorithm trains the largest of them.

        Members never touch each other, so the algorithm's first ones are the smaller population. The state at ``start``
        is the algorithm's.
        """
        populations = populations or (3,)
        expected = self.start(max(populations))
        if start:
            self.train(algorithm.updates, expected, 0, start)
        begun = [State(*([tensor[:members].clone() for tensor in field] if isinstance(field, list)
                         else field[:members].clone() for field in expected)) for members in populations]
        expected, expected_terms, every = self.train(algorithm.updates, expected, start, stop)
        assert every == stop - start
        for members, state in zip(populations, begun):
            state, terms, yields = self.train(engine.updates, state, start, stop)
            assert yields < every / 2  # blocks: it was the engine that trained
            compare = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
            compare(state.parameters, [tensor[:members] for tensor in expected.parameters])
            compare(state.target, [tensor[:members] for tensor in expected.target])
            compare(state.alpha, expected.alpha[:members])
            compare(terms, expected_terms[:, :members])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden", [(), (12, 8)])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
@pytest.mark.parametrize("batch_size", [16, "full"])
def test_the_engine_is_the_algorithm(datasets, batch_size, observation, hidden, device):
    common = dict(batch_size=batch_size, observation=observation, hidden=hidden, device=device)
    Case(datasets, "bc", **common).assert_they_agree(1, 3)
    for td_loss, double_q, learn_alpha in itertools.product(("mse", "half_mse"), (False, True), (False, True)):
        objective = Objective(td_loss=td_loss, double_q=double_q, gamma=0.9)
        assert engine.serves("cql", objective)
        case = Case(datasets, objective=objective, learn_alpha=learn_alpha, penalty_threshold=1.1, **common)
        case.assert_they_agree(1, 3)


@pytest.mark.parametrize("name", ["cql", "bc"])
def test_the_algorithm_trains_one_member_as_among_others(datasets, name):
    for batch_size in (16, "full"):
        case = Case(datasets, name, Objective(double_q=True), batch_size, learn_alpha=True, penalty_threshold=1.1)
        alone, terms, _ = case.train(algorithm.updates, case.start(1), 0, 30)
        among, all_terms, _ = case.train(algorithm.updates, case.start(3), 0, 30)
        torch.testing.assert_close(alone.parameters, [tensor[:1] for tensor in among.parameters], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close((alone.alpha, terms), (among.alpha[:1], all_terms[:, :1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [16, "full"])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_cohorts_workers_and_a_start_in_the_middle(datasets, batch_size, observation, monkeypatch):
    monkeypatch.setattr(trainer, "cohort_size", lambda *arguments: 3)
    for name in ("cql", "bc"):
        case = Case(datasets, name, batch_size=batch_size, observation=observation, threads=2)
        case.assert_they_agree(9, start=37, stop=59)


@pytest.mark.parametrize("change", [dict(target_interval=7, yield_every=(9, 4)), dict(target_interval=1000, steps=500)])
@pytest.mark.parametrize("batch_size", [16, "full"])
def test_intervals(datasets, batch_size, change):
    Case(datasets, batch_size=batch_size, **change).assert_they_agree(stop=53)


@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_minibatches_whose_rows_are_not_counted(datasets, observation, monkeypatch):
    """Minibatches as a CUDA device has them, here on the CPU."""
    original = batches.Minibatches.__init__

    def uncounted(self, *arguments):
        original(self, *arguments)
        self.counted = False

    monkeypatch.setattr(batches.Minibatches, "__init__", uncounted)
    Case(datasets, "bc", observation=observation).assert_they_agree()
    for double_q, learn_alpha in itertools.product((False, True), (False, True)):
        case = Case(datasets, objective=Objective(double_q=double_q), observation=observation, learn_alpha=learn_alpha,
                    penalty_threshold=1.1)
        case.assert_they_agree()


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
