"""The loop: members keep to themselves, cadences change nothing, runs repeat bit for bit and resume bit for bit."""

import gc
import json
import os
import shutil
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as command
from cql import device, diagnostics, losses, training
from cql.collect import datasets_for
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.device import resolve_device
from cql.diagnostics import Diagnostics
from cql.engine import cohort, trainer
from cql.errors import RunError
from cql.exact import TabularMDP
from cql.files import archive_bytes, atomic_write, load_archive
from cql.members import all_members, largest_slice
from cql.metrics import METRICS, MetricsLog, read_metrics
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.sampling import Transitions
from cql.training import Interrupted, train
from cql.world import World

pytestmark = pytest.mark.slow
SMALL = dict(episodes=30, hidden=(16,), bc_steps=60, steps=90, batch_size=16, target_interval=25, log_every=30,
             checkpoint_every=40, lr=1e-2, device="cpu")

LEARNED = dict(penalty_threshold=1.2)


def run_of(path, **changes) -> RunFolder:
    config = Config(**{**SMALL, **changes})
    datasets = datasets_for(config, {})
    run = RunFolder.create(str(path), config, datasets)
    train(run, config, datasets, World.of(datasets[0]))
    return run


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """By its settings a run in which nobody writes, trained once."""
    made = {}

    def run(**changes) -> RunFolder:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = run_of(tmp_path_factory.mktemp("untouched") / "run", **changes)
        return made[key]
    return run


def parameters(run: RunFolder, name: str) -> list[torch.Tensor]:
    return Policy.load(run.policy_path(name)).parameters


def copied(run: RunFolder, path) -> RunFolder:
    shutil.copytree(run.path, path)
    return RunFolder.open(path)


def policy_bytes(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.path / "policies").iterdir())}


@pytest.mark.parametrize("batch_size", [16, "full"])
@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_a_member_among_others_is_the_member_alone(tmp_path, batch_size, observation):
    common = dict(batch_size=batch_size, observation=observation)
    among = run_of(tmp_path / "among", alpha=(0.0, 6.0, 50.0), num_seeds=2, num_datasets=2, **common)
    alone = run_of(tmp_path / "alone", alpha=(6.0,), seed=43, data_seed=43, **common)
    for name in ("cql-a6-s43-d43", "bc-s43-d43"):
        for a, b in zip(parameters(among, name), parameters(alone, name)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_slices_change_nothing_beyond_rounding(tmp_path):
    runs = [run_of(tmp_path / str(size), alpha=(0.0, 1.0, 6.0), num_seeds=2, slice_size=size) for size in (4, 64)]
    for member in all_members(runs[0].config()):
        for a, b in zip(*(parameters(run, member.name) for run in runs)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_threads_and_cohorts_change_nothing(tmp_path, monkeypatch):
    """Cohorts of one member or of several, one thread or three: bit for bit in threads, within rounding in cohorts."""
    settings = dict(alpha=(0.1, 1.0, 6.0), num_seeds=3, batch_size="full", num_datasets=2, bc_steps=0, **LEARNED)
    runs = []
    for threads, size in ((3, 2**22), (1, 2**22), (3, 1)):
        monkeypatch.setattr(trainer, "COHORT_BYTES", size)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        runs.append(run_of(tmp_path / f"{threads}-{size}", **settings))
    assert policy_bytes(runs[0]) == policy_bytes(runs[1])
    assert (runs[0].path / "metrics.csv").read_bytes() == (runs[1].path / "metrics.csv").read_bytes()
    for member in all_members(runs[0].config()):
        for a, b in zip(parameters(runs[0], member.name), parameters(runs[2], member.name)):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_members_that_do_not_fit_the_memory_are_trained_in_smaller_slices(monkeypatch):
    config = Config(**SMALL, alpha=(1.0, 6.0), num_seeds=20)
    data, cpu = datasets_for(config, {})[0], torch.device("cpu")
    assert device.config_for(cpu, config, data) == (config, None)  # 40 members need a few MB
    needed = device.memory_needed(config, data)
    monkeypatch.setattr(device, "_memory", lambda device: needed // 3)
    smaller, sentence = device.config_for(cpu, config, data)
    assert smaller.slice_size == 10 and device.memory_needed(smaller, data) <= needed // 3
    assert sentence == "slices of 10 members instead of 40, to fit the memory"
    monkeypatch.setattr(device, "_memory", lambda device: 1000)
    with pytest.raises(RunError, match="a member of this population needs"):
        device.config_for(cpu, config, data)


class Card:
    """A CUDA device in the eyes of ``resolve_device``, whose first operation raises ``error``."""

    def __init__(self, monkeypatch, error):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        self.error, original = error, torch.ones
        monkeypatch.setattr(torch, "ones", lambda *size, device=None: self.used() if device else original(*size))

    def used(self):
        if self.error:
            raise self.error
        return torch.zeros(1)


def test_auto_takes_a_device_that_can_be_used_and_records_it(monkeypatch, capsys):
    card = Card(monkeypatch, RuntimeError("no kernel image is available for execution on the device\nCompile with …"))
    assert device.resolve_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ("note: training on the CPU: cuda:0 cannot be used: no kernel image is "
                                       "available for execution on the device\n")
    with pytest.raises(RunError, match="--device cuda:0 cannot be used: no kernel image"):
        device.resolve_device("cuda")
    card.error = None
    assert device.resolve_device("auto", local_rank=0) == torch.device("cuda:0")
    monkeypatch.setattr(device, "_memory", lambda device: 2**40)
    data = datasets_for(Config(**SMALL), {})[0]
    config, _ = device.config_for(torch.device("cuda:0"), Config(**SMALL | {"device": "auto"}), data)
    assert config.device == "cuda" and largest_slice(replace(config, num_seeds=2000)) == 1024
    assert device.config_for(torch.device("cpu"), Config(**SMALL | {"device": "auto"}), data)[0].device == "cpu"


def test_a_full_memory_is_one_sentence():
    cpu = torch.device("cpu")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nSee documentation"),
                  RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory")):
        with pytest.raises(RunError, match="the memory of cpu is full: give a smaller --slice-size, ") as found:
            with device.torch_settings(cpu):
                raise error
        assert "\n" not in str(found.value)
    with pytest.raises(RuntimeError, match="another"), device.torch_settings(cpu):
        raise RuntimeError("another fault, of memory of other things")


def test_the_memory_that_a_card_needs_counts_the_tables():
    """Of minibatches: a number for every state, member and update of a block, several times over."""
    needed = partial(trainer.memory_needed, transitions=10**5, full_batch=False, rows=64, members=1024, steps=80_000,
                     on_cuda=True)
    table, vectors = (needed(PopulationMLP(10_000, 4, (64, 64), discrete)) for discrete in (True, False))
    lines = cohort.block_length(1024 * 64 * 4, 1024 * 10_000, torch.device("cuda")) * 1024 * 10_000
    assert lines <= cohort.CUDA_BLOCK_VALUES and table > vectors - 6 * 4 * 1024 * 64 * 10_000 + 40 * lines
    assert cohort.block_length(1024 * 64 * 4, 1024 * 10_000, torch.device("cuda")) < cohort.block_length(
        1024 * 64 * 4, 1024 * 225, torch.device("cuda")) == 100


def test_log_entries_are_written_in_order_beside_the_training(tmp_path, monkeypatch):
    """As on a CUDA device: the log of a run whose entries a thread writes is that of a run that waits for them."""
    runs = [run_of(tmp_path / name, alpha=(1.0, 6.0), log_every=5, checkpoint_every=15) for name in "a"]
    monkeypatch.setattr(Config, "on_cuda", True)
    monkeypatch.setattr(device, "_memory", lambda device: 2**40)
    runs += [run_of(tmp_path / name, alpha=(1.0, 6.0), log_every=5, checkpoint_every=15) for name in "b"]
    assert (runs[0].path / "metrics.csv").read_bytes() == (runs[1].path / "metrics.csv").read_bytes()
    assert policy_bytes(runs[0]) == policy_bytes(runs[1])


def test_what_is_written_beside_the_training_raises_where_it_is_waited_for(tmp_path):
    log, done = MetricsLog(tmp_path, beside=True), []
    log.later(partial(done.append, 1))
    log.later(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.later(partial(done.append, 2))
    assert log.sizes() and done == [1]


def test_members_that_share_a_seed_are_paired(tmp_path):
    """The same seed and data and alpha 0 twice: as a member of its own and beside another alpha, equal at each step."""
    run = run_of(tmp_path / "r", alpha=(0.0, 1e-12), bc_steps=0)
    for a, b in zip(parameters(run, "cql-a0-s42-d42"), parameters(run, "cql-a1e-12-s42-d42")):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_same_run_twice_is_bit_identical(tmp_path, untouched):
    first, second = untouched(alpha=(1.0, 6.0)), run_of(tmp_path / "b", alpha=(1.0, 6.0))
    assert policy_bytes(first) == policy_bytes(second)
    assert (first.path / "metrics.csv").read_bytes() == (second.path / "metrics.csv").read_bytes()
    assert (first.path / "datasets/42.npz").read_bytes() == (second.path / "datasets/42.npz").read_bytes()
    assert policy_bytes(run_of(tmp_path / "c", alpha=(1.0, 6.0), seed=43)).keys() != policy_bytes(first).keys()


@pytest.mark.parametrize("settings", [dict(), LEARNED])
@pytest.mark.parametrize("change", [dict(log_every=7), dict(log_every=90), dict(checkpoint_every=11)])
def test_cadences_change_no_result(tmp_path, untouched, change, settings):
    assert policy_bytes(untouched(**settings)) == policy_bytes(run_of(tmp_path / "b", **settings, **change))


@pytest.mark.parametrize("change",
                         [dict(), dict(batch_size="full"), dict(double_q=True), LEARNED,
                          LEARNED | dict(batch_size="full")])
def test_block_length_changes_no_result(tmp_path, untouched, monkeypatch, change):
    whole = policy_bytes(untouched(**change))
    monkeypatch.setattr(cohort, "BLOCK", 1)
    assert policy_bytes(run_of(tmp_path / "b", **change)) == whole


def test_log_holds_every_metric_of_the_table_and_tensorboard_the_same(untouched):
    run = untouched(alpha=(1.0, 6.0))
    series = read_metrics(run.path / "metrics.csv")
    for member in all_members(run.config()):
        expected = {name for name, (algorithms, _) in METRICS.items() if member.algorithm in algorithms.split()}
        assert {metric for name, metric in series if name == member.name} == expected
        events = EventAccumulator(str(run.path / "tensorboard" / member.name))
        events.Reload()
        assert expected <= set(events.Tags()["scalars"])
        trial = events.summary_metadata["_hparams_/session_start_info"].plugin_data
        assert trial.plugin_name == "hparams"
        for metric in expected:
            steps, values = series[member.name, metric]
            scalars = [s for s in events.Scalars(metric)]
            assert [s.step
                    for s in scalars] == steps == list(range(30, (60 if member.algorithm == "bc" else 90) + 1, 30))
            np.testing.assert_allclose([s.value for s in scalars], values, rtol=1e-6)


@pytest.mark.parametrize("who", ["fast", "plain"])
def test_logged_losses_are_those_of_the_updates(tmp_path, who):
    """With one update a run, the log must hold the loss of the initial network on its first batch."""
    run = run_of(tmp_path / "r", bc_steps=1, steps=1, log_every=1, trainer=who)
    series = read_metrics(run.path / "metrics.csv")
    transitions = Transitions(run.datasets(run.config()), torch.device("cpu"), False)
    batch = transitions.minibatch(torch.tensor([0]), torch.tensor([42]), 0, 16)
    network = PopulationMLP(225, 4, (16,), True)
    q, following = (network.q_values(network.initial([42]), rows)
                    for rows in (batch.observations, batch.next_observations))
    terms = losses.cql_loss(q, batch.actions,
                            losses.td_target(batch.rewards, batch.terminations, following.amax(-1), 0.99),
                            torch.tensor([6.0]))
    for name, term in zip(("losses/td", "losses/penalty", "losses/total"), terms):
        assert series["cql-a6-s42-d42", name][1] == pytest.approx([term.item()], rel=1e-5)
    assert series["bc-s42-d42", "losses/cross_entropy"][1] == pytest.approx([terms.penalty.item()], rel=1e-5)


@pytest.mark.parametrize("who", ["fast", "plain"])
def test_full_batch_log_equals_the_loss_over_the_whole_data(tmp_path, who):
    """Over every transition of the data set, uncompressed."""
    run = run_of(tmp_path / "r", bc_steps=1, steps=1, log_every=1, batch_size="full", trainer=who)
    data, network = run.datasets(run.config())[0], PopulationMLP(225, 4, (16,), True)
    q, following = (network.q_values(network.initial([42]), torch.from_numpy(rows).long()[None]).double()
                    for rows in (data.observations, data.next_observations))
    y = losses.td_target(torch.from_numpy(data.rewards).double()[None], torch.from_numpy(data.terminations)[None],
                         following.amax(-1), 0.99)
    terms = losses.cql_loss(q, torch.from_numpy(data.actions).long()[None], y, torch.tensor([6.0]))
    series = read_metrics(run.path / "metrics.csv")
    for name, term in zip(("losses/td", "losses/penalty", "losses/total"), terms):
        assert series["cql-a6-s42-d42", name][1] == pytest.approx([term.item()], rel=1e-5)
    assert series["bc-s42-d42", "losses/cross_entropy"][1] == pytest.approx([terms.penalty.item()], rel=1e-5)


def after_each_yield(monkeypatch, action):
    """Calls ``action(algorithm, step, state)`` whenever a trainer has done some updates."""
    def trainer_for(config, name, masked=False, original=training.trainer_for):
        def updates(*arguments):
            for step, state, terms in original(config, name)(*arguments):
                action(name, step, state)
                yield step, state, terms
        return updates

    monkeypatch.setattr(training, "trainer_for", trainer_for)


def interrupt_after(monkeypatch, blocks: int):
    """A SIGTERM to this very process in the middle of training, after so many blocks."""
    seen = []

    def count(name, step, state):
        seen.append(step)
        if len(seen) == blocks:
            os.kill(os.getpid(), signal.SIGTERM)

    after_each_yield(monkeypatch, count)


@pytest.mark.parametrize("changes",
                         [dict(slice_size=1), dict(slice_size=1, batch_size="full"), LEARNED | dict(batch_size="full"),
                                     LEARNED | dict(trainer="plain"),
                          dict(trainer="plain", td_loss="huber", batch_size="full")])
@pytest.mark.parametrize("blocks", [1, 4, 9, 101])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, untouched, monkeypatch, changes, blocks):
    settings = dict(alpha=(1.0, 6.0), **changes)
    whole = untouched(**settings)
    with monkeypatch.context() as patch:
        interrupt_after(patch, blocks)
        with pytest.raises(Interrupted) if blocks < 10 or "trainer" in changes else nullcontext():
            run_of(tmp_path / "cut", **settings)
    cut = RunFolder.open(tmp_path / "cut")
    config = cut.config()
    data = cut.datasets(config)
    train(cut, config, data, World.of(data[0]), resume=True)
    assert policy_bytes(cut) == policy_bytes(whole)
    assert (cut.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    for member in all_members(config):
        read = []
        for run in (cut, whole):
            events = EventAccumulator(str(run.path / "tensorboard" / member.name))
            events.Reload()
            read.append({tag: [(s.step, s.value) for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
        assert read[0] == read[1]


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path, untouched):
    whole, cut = untouched(), copied(untouched(), tmp_path / "cut")
    (cut.path / "checkpoint.pt").unlink()
    config = cut.config()
    train(cut, config, data := cut.datasets(config), World.of(data[0]), resume=True)
    assert policy_bytes(cut) == policy_bytes(whole)
    assert (cut.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()


@pytest.mark.parametrize("edit, sentence", [
    (lambda c: c | {"format": 1}, "of a format"), (lambda c: c | {"files": {}}, "does not belong to"),
    (lambda c: {}, "of a format"), (lambda c: c | {"log_sizes": {"metrics.csv": 10**9}}, "is missing or shorter"),
    (lambda c: c | {"log_sizes": {"shards/1/metrics.csv": 0}}, "does not belong to"),
])
def test_checkpoints_that_do_not_belong_are_refused(tmp_path, untouched, edit, sentence):
    run = copied(untouched(), tmp_path / "r")
    atomic_write(run.path / "checkpoint.pt", archive_bytes(edit(load_archive(run.path / "checkpoint.pt"))))
    config = run.config()
    with pytest.raises(RunError, match=sentence):
        train(run, config, run.datasets(config), World.around(None), resume=True)


def test_devices_that_are_not_there():
    assert resolve_device("cpu").type == "cpu" and resolve_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(RunError, match="--device"):
            resolve_device(name)


def test_ood_mass_and_mismatch_by_hand(tmp_path):
    """A table of zeros on two states, three actions: softmax is 1/3 everywhere, greedy is action 0."""
    data = OfflineDataset.from_arrays([0, 0, 0, 1], [0, 0, 1, 2], [0.0] * 4, [0, 0, 1, 1], [False] * 3 + [True])
    transitions = Transitions([data], torch.device("cpu"), False)
    network = PopulationMLP(2, 3, (), True)
    q = torch.tensor([[[3.0, 3.0, 3.0], [7.0, 7.0, 7.0]]])
    diagnostics = Diagnostics(transitions, [data], World.around(None), 0.99)
    found, _ = diagnostics.read(network, [q], torch.tensor([0]), "cql", torch.tensor([[-1.0, 5.0]]))
    assert found["policy/ood_mass"] == pytest.approx([(3 * 1 / 3 + 2 / 3) / 4])
    assert found["policy/action_mismatch_rate"] == pytest.approx([0.5])
    assert found["q/data_mean"] == pytest.approx([4.0]) and found["q/max"] == pytest.approx([7.0])
    assert found["q/start"] == pytest.approx([3.0])
    assert found["health/diverged"] == [1.0]  # 7 is above the bound of 5
    assert json.dumps(found)


@pytest.mark.parametrize("gamma, valued_states, expected", [
    (0.9, 2, [-10.0, 10.0]), (0.0, 2, [-1.0, 10.0]), (1.0, 2, None), (0.9, 1, None)])
def test_the_true_value_of_the_greedy_policy_by_hand(monkeypatch, gamma, valued_states, expected):
    """One member earns -1 for ever, -1 / (1 - gamma), the other 10 once; not logged at gamma 1 or of a large model."""
    monkeypatch.setattr(diagnostics, "VALUED_STATES", valued_states)
    mdp = TabularMDP.from_P({0: {0: [(1.0, 0, -1.0, False)], 1: [(1.0, 1, 10.0, True)]},
                             1: {a: [(1.0, 1, 0.0, True)] for a in (0, 1)}}, start=0)
    world = World(SimpleNamespace(unwrapped=None, spec=SimpleNamespace(max_episode_steps=5)), mdp)
    data = OfflineDataset.from_arrays([0], [1], [10.0], [1], [True])
    transitions = Transitions([data], torch.device("cpu"), False)
    q = torch.tensor([[[7.0, 3.0], [0.0, 0.0]], [[3.0, 7.0], [0.0, 0.0]]])  # the first stays, the second leaves
    measured = Diagnostics(transitions, [data], world, gamma)
    found = measured.with_exact(*measured.read(
        PopulationMLP(2, 2, (), True), [q], torch.tensor([0, 0]), "cql", torch.tensor([[-50.0, 50.0]] * 2)))
    assert found["exact/return"] == [-5.0, 10.0] and found["q/start"] == [7.0, 7.0]
    assert found.get("exact/discounted_value") == (expected and pytest.approx(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [dict(alpha=(0.0, 6.0)), LEARNED | dict(alpha=(1.0, 6.0))])
def test_cuda_agrees_with_the_cpu(tmp_path, changes):
    runs = [run_of(tmp_path / name, **changes, device=name) for name in ("cpu", "cuda")]
    for member in all_members(runs[0].config()):
        for a, b in zip(*(parameters(run, member.name) for run in runs)):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    again = run_of(tmp_path / "again", **changes, device="cuda")
    assert policy_bytes(again) == policy_bytes(runs[1])


def test_a_slice_that_has_ended_leaves_no_memory_behind(tmp_path, monkeypatch):
    """Nothing of it is left when the next begins, without a collection of cycles: a device holds one slice."""
    made, alive = [], []

    def begin(self, *arguments, original=training.Slice.__init__):
        alive.append(sum(reference() is not None for reference in made))
        original(self, *arguments)
        made.append(weakref.ref(self.state.parameters[0]))

    monkeypatch.setattr(training.Slice, "__init__", begin)
    gc.collect()
    gc.disable()
    try:
        assert command.main(["--map", "random:6:1", "--episodes", "10", "--hidden", "8", "--bc-steps", "0", "--steps",
                             "20", "--alpha", *"123456", "--slice-size", "1", "--out", str(tmp_path / "run")]) == 0
    finally:
        gc.enable()
    assert alive == [0] * 6
