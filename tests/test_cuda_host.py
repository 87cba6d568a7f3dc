"""What a CUDA device asks of a block of updates, tested without one.

A graph replays kernels on memory that stays where it is. So nothing in a block may ask the device for a number, use a
tensor of the host, or depend on a Python number that changes from block to block.
"""

from functools import partial
from types import SimpleNamespace

import gymnasium
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import envs
from cql import algorithm
from cql.algorithm import Settings, initial_state
from cql.collect import generate_offline_episodes
from cql.diagnostics import Diagnostics, population_outputs
from cql.engine.capture import Graphs
from cql.engine.cohort import Cohort
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions
from cql.world import World

pytestmark = pytest.mark.slow

FULL, LINEAR, COORDINATES = dict(batch_size="full"), dict(hidden=()), dict(observation="coordinates")
DOUBLE, HALF, LEARNED = dict(double_q=True), dict(td_loss="half_mse"), dict(learn_alpha=True)
CASES = {"minibatch": {}, "full": FULL, "linear": LINEAR, "linear full": LINEAR | FULL, "coordinates": COORDINATES,
         "coordinates full": COORDINATES | FULL, "linear coordinates": LINEAR | COORDINATES, "half": HALF,
         "double": DOUBLE, "double full": DOUBLE | FULL, "double coordinates": DOUBLE | COORDINATES,
         "learned": LEARNED, "learned full": LEARNED | FULL, "learned double half": LEARNED | DOUBLE | HALF,
         "values of the batch alone": COORDINATES | dict(target_interval=1)}


class OnDevice(TorchDispatchMode):
    """Refuses tensors of the host, and counts operations. On the meta device whoever asks for a number raises."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{func} with a tensor of the host"
        self.operations += not func.is_view
        return result


class Recording(TorchDispatchMode):
    """The operations of a function, each with the memory that it read and wrote, to be done again there."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a block asks the device for a number"
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, recorded in self.operations:
            for old, new in zip(tree_leaves(recorded), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(new, torch.Tensor) and new is not old:
                    old.copy_(new)


def record(cohort, function):
    """A CUDA graph on the CPU: what is recorded has not happened, and everything that it wrote is undone."""
    kept = [tensor for tensor in tree_leaves((cohort.state, cohort.terms, cohort.values, cohort.q_history,
                                              vars(cohort).get("targets"), vars(cohort).get("variance")))
            if isinstance(tensor, torch.Tensor)]
    before = [tensor.clone() for tensor in kept]
    recording = Recording()
    with recording:
        function()
    for tensor, old in zip(kept, before):
        tensor.copy_(old)
    return recording.replay


@pytest.fixture(scope="module")
def datasets():
    found = {}
    for observation in ("index", "coordinates"):
        env = gymnasium.make(envs.ENV_ID, desc=["S....", "..H..", ".H...", "....G"], slip_probability=0.2,
                             observation=observation, max_episode_steps=30)
        found[observation] = [generate_offline_episodes(env, episodes, 0.5, seed)
                              for episodes, seed in ((12, 1), (7, 2))]
    return found


def cohort_on(device, datasets, name, batch_size=16, hidden=(12, 8), observation="index", double_q=False,
              td_loss="mse", learn_alpha=False, target_interval=12):
    """A cohort as it is on a CUDA device, on another one."""
    device = torch.device(device)
    network = PopulationMLP(20 if observation == "index" else 2, 4, hidden, observation == "index")
    transitions = Transitions(datasets[observation], device, compress=batch_size == "full")
    settings = Settings(batch_size, 3e-3, 300, target_interval, learn_alpha, 1.1)
    state = initial_state(network, [1, 2, 3], [1.0, 6.0, 0.5], device)
    rates = torch.linspace(3e-3, 1e-3, 300, device=device)
    terms = [torch.zeros(3, device=device) for _ in range(3 if name == "cql" else 1)]
    draws, seeds = torch.tensor([0, 1, 1], device=device), torch.tensor([1, 2, 3], device=device)
    cohort = Cohort(network, transitions, state, draws, seeds, name, Objective(td_loss=td_loss, double_q=double_q),
                    settings, terms, rates)
    if batch_size != "full":
        cohort.batches.counted = False
    return cohort


def blocks(interval, length=5, end=26):
    """Start and end of blocks of several lengths, over several target copies."""
    start = 0
    while start < end:
        stop = min(start + length, (start // interval + 1) * interval, end)
        yield start, stop
        start = stop


def fake_adam(parameters, gradients, first, second, largest, numbers, *, lr, **rest):
    """In the place of ``torch._fused_adam_``, which the meta device lacks."""
    for tensor in (*parameters, *gradients, *first, *second, *numbers, lr):
        tensor.add_(0)


@pytest.mark.parametrize("name", ["cql", "bc"])
@pytest.mark.parametrize("case", CASES)
def test_a_block_never_leaves_the_device(datasets, case, name, monkeypatch):
    monkeypatch.setattr(torch, "_fused_adam_", fake_adam)
    cohort = cohort_on("meta", datasets, name, **CASES[case])
    with OnDevice() as mode:
        for start, end in blocks(cohort.settings.target_interval, end=14):
            cohort.block_of_updates(start, end)
    assert mode.operations > 14 * 5  # it was the device that worked
    assert all(tensor.is_meta for tensor in tree_leaves((cohort.state, cohort.terms)))


@pytest.mark.parametrize("name", ["cql", "bc"])
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_block_is_the_block(datasets, case, name):
    plain, recorded = (cohort_on("cpu", datasets, name, **CASES[case]) for _ in range(2))
    seen_from_outside = [tree_leaves((cohort.state, cohort.terms)) for cohort in (plain, recorded)]
    recorded.graphs = Graphs(partial(record, recorded))
    for start, end in blocks(plain.settings.target_interval):
        plain.block_of_updates(start, end)
        recorded.block_of_updates(start, end)
    assert len(recorded.graphs.graphs) >= 1
    assert all(map(torch.equal, *seen_from_outside)) and all(tensor.any() for tensor in seen_from_outside[0])
    assert not torch.equal(plain.state.parameters[-1], algorithm.initial_state(
        plain.network, [1, 2, 3], [0.0] * 3, torch.device("cpu")).parameters[-1])


@pytest.mark.parametrize("name", ["cql", "bc"])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_measurements_are_read_at_the_end_alone(datasets, observation, name, monkeypatch):
    """Numbers leave the device as a column of every member, or the greedy actions, and nothing comes from the host."""
    data = datasets[observation]
    diagnostics = Diagnostics(Transitions(data, torch.device("cpu"), True), data, World.of(data[0]), 0.9)
    for attribute, value in vars(diagnostics).items():
        if isinstance(value, torch.Tensor):
            setattr(diagnostics, attribute, value.to("meta"))
    read = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(tuple(self.shape)) or [0.0] * len(self))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read.append(tuple(self.shape)) or
                        SimpleNamespace(numpy=lambda: None))
    network = PopulationMLP(20 if observation == "index" else 2, 4, (12, 8), observation == "index")
    parameters = [torch.empty(3, *shape, device="meta") for shape in network.shapes.values()]
    with OnDevice():
        columns, _ = diagnostics.read(network, parameters, torch.tensor([0, 1, 1], device="meta"), name,
                                      torch.zeros(3, 2, device="meta"))
    assert read == [(3,)] * len(columns) + [(3, 20)] and len(columns) >= 3


def test_networks_read_many_observations_in_parts(monkeypatch):
    network = PopulationMLP(5, 3, (8,), False)
    parameters, inputs = network.initial([1, 2]), torch.rand(37, 5)
    whole = population_outputs(network, parameters, inputs)
    monkeypatch.setattr("cql.diagnostics.AT_ONCE", 16)  # 8 rows of 2 members
    largest = []
    original = PopulationMLP.q_values
    monkeypatch.setattr(PopulationMLP, "q_values", lambda self, parameters, observations: (
        largest.append(observations.shape[:2].numel()) or original(self, parameters, observations)))
    torch.testing.assert_close(population_outputs(network, parameters, inputs), whole)
    assert max(largest) == 16 and len(largest) == 5
