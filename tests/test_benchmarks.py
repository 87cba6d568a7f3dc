"""The benchmarks measure what they say: counts by hand and printed rows; no timing is asserted."""

import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import cadence, floor, large_data, loading, throughput, turns, versions
from benchmarks.case import Case, measured
from benchmarks.data import DataFiles, enlarged
from benchmarks.session import MeasuringError, Session
from cql import algorithm, engine
from cql.collect import datasets_for
from cql.config import Config
from cql.network import PopulationMLP


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return DataFiles(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def in_process(monkeypatch):
    """Children without processes of their own."""
    with ExitStack() as stack:
        class Here:
            def __init__(self, interpreter, module, settings, checkout):
                if module == "benchmarks.loading":
                    self.ready, self.measure = loading.load_and_compress(**settings), None
                else:
                    self.ready, self.measure = stack.enter_context(measured(Case(**settings)))

            def close(self):
                pass

        monkeypatch.setattr(turns, "Session", Here)
        monkeypatch.setattr(floor, "CALIBRATION", 0.001)
        monkeypatch.setattr("benchmarks.case.WARM_UP", 0.001)
        yield


def test_operations_and_bytes_of_a_small_network_are_those_counted_by_hand():
    # 2 -> 3 -> 4, five observations
    # products: forward 2*5*2*3 + 2*5*3*4, weights the same, inputs of the second layer 2*5*4*3
    # per output of a layer: bias and its gradient 2*5*(3+4), ReLU and its mask 2*5*3; Adam 13 * (2*3+3 + 3*4+4)
    # numbers moved: first layer forward and weights 5*2+2*3+5*3 each; second 5*3+3*4+5*4 thrice; Adam 7 a parameter
    cost = floor.update_cost([(2, 3), (3, 4)], False, 5)
    assert cost.product_operations == 60 + 120 + 60 + 120 + 120
    assert cost.operations == 480 + 70 + 30 + 13 * 25
    assert cost.bytes == 4 * (2 * 31 + 3 * 47 + 7 * 25)


def test_a_table_costs_rows_and_no_product():
    # 6 states -> 3 (rows of a table) -> 4, five observations: a product's input gradient, but none below the table
    cost = floor.update_cost([(6, 3), (3, 4)], True, 5)
    assert cost.product_operations == 3 * 120
    assert cost.operations == 360 + 2 * 5 * 4 + 13 * (18 + 16)
    assert cost.bytes == 4 * (3 * 47 + 4 * 5 * 3 + 7 * 34)


@pytest.mark.parametrize("discrete", [False, True])
def test_adam_is_counted_on_every_parameter(discrete):
    network = PopulationMLP(6, 4, (3, 5), discrete)
    with_none = floor.update_cost(network.sizes, discrete, 0)  # no observation: Adam is left, and the weights read
    assert with_none.operations == floor.ADAM * network.parameters_per_member


def test_more_data_holds_the_same_transitions_in_whole_episodes():
    base = datasets_for(Config(episodes=20), {})[0]
    large = enlarged(base, 5000)
    assert 5000 <= len(large) < 5000 + 80
    mine, theirs = base.compress(), large.compress()
    for name in ("observations", "actions", "rewards", "next_observations", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    inner = np.diff(large.episode_ids) == 0
    np.testing.assert_array_equal(large.observations[1:][inner], large.next_observations[:-1][inner])
    assert len(enlarged(base, 10)) == len(base)


@pytest.fixture
def answers(in_process, files, monkeypatch):
    """Short measurements on the shared data; what is measured, by case."""
    found = {}

    def in_turns(*arguments):
        new = turns.in_turns(*arguments)
        found.update(new)
        return new
    monkeypatch.setattr(throughput, "DataFiles", lambda folder: files)
    monkeypatch.setattr(throughput, "QUICK", (2, 0.01))
    monkeypatch.setattr(throughput, "in_turns", in_turns)
    return found


def test_the_tables(answers, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "COMPARED", {("cql", 2, 4): ("JAX scan CQL",), ("bc", 1, 4): ()})
    assert throughput.main(["--quick", "--members", "1", "2", "--batch", "8", "full"]) == 0
    _, comparison, table = capsys.readouterr().out.split("\n\n")
    assert [(case.algorithm, case.observation, case.members, case.batch) for case in answers] == [
        *((a, o, m, 4) for o in ("coordinates", "index") for a, m in (("cql", 2), ("bc", 1))),
        *((a, "coordinates", m, b) for a in ("cql", "bc") for b in (8, "full") for m in (1, 2))]
    rows = [throughput.row(case, measured) for case, measured in answers.items()]
    assert comparison.splitlines()[1:] == rows[:4] and table.splitlines()[1:] == rows[4:]
    case, (ready, rounds) = [*answers.items()][4]
    assert rows[4].startswith("CQL coordinates M=1 B=8  ")
    cost = floor.update_cost([(2, 256), (256, 256), (256, 4)], False, 8)
    assert {name: ready[name] for name in cost._fields} == cost._asdict()
    assert len(rounds) == 2 and min(answer[name] for answer in rounds for name in ("rate", "bmm", "copy")) > 0


def test_a_row_is_that_computed_by_hand():
    # GFLOP/s: 10, 20, 30 updates/s of 1e9 operations; of bmm: the same over 40, 40, 50
    # floor: 2e9 operations take 0.05, 0.05, 0.04 s; 3e8 bytes 0.03, 0.06, 0.03 s; the larger 0.05, 0.06, 0.04 s
    measured = turns.Measured(
        {"product_operations": 10**9, "operations": 2 * 10**9, "bytes": 3 * 10**8, "peak_memory": 1234 * 2**20},
        [{"rate": 10.0, "bmm": 4e10, "copy": 1e10}, {"rate": 20.0, "bmm": 4e10, "copy": 5e9},
         {"rate": 30.0, "bmm": 5e10, "copy": 1e10}])
    row = throughput.row(Case("bc", "index", 2, "full", 256, 10**4, "", trainer="plain"), measured)
    widths = [width for _, width in throughput.COLUMNS]
    cells = [row[sum(widths[:i]):sum(widths[:i + 1])].rstrip() for i in range(len(widths))]
    assert cells == [
        "BC index M=2 B=full plain", "20 (10–30)", "20 (10–30)", "0.5 (0.25–0.6)", "1.2 (0.5–1.2)", "1,234"]


def test_peers_are_compared_round_by_round(monkeypatch, capsys):
    case = Case("cql", "index", 1, 64, 256, 10**4, "")
    ready = {"product_operations": 1, "operations": 1, "bytes": 1, "peak_memory": 0}
    monkeypatch.setattr(throughput, "in_turns", lambda children, rounds, seconds: {
        case: turns.Measured(ready, [{"rate": rate, "bmm": 1.0, "copy": 1.0} for rate in (2.0, 9.0, 40.0)]),
        "JAX scan CQL": turns.Measured({}, [{"rate": rate} for rate in (1.0, 3.0, 10.0)])})
    throughput.compare([case], {"JAX scan CQL": turns.Child("python", "benchmarks.peer_jax", {})}, 3, 0.0)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "JAX scan CQL".ljust(46) + "3 (1–10)", "CQL index M=1 B=64".ljust(46) + "3 (2–4) times JAX scan CQL"]


def test_trainers_stand_side_by_side(answers, capsys):
    argv = ["--quick", "--only", "table", "--members", "1", "2", "--batch", "8", "--trainer", "fast", "plain"]
    assert throughput.main(argv) == 0
    printed = capsys.readouterr().out
    for members in (1, 2):
        fast, plain = (measured.column("rate") for case, measured in answers.items()
                       if (case.algorithm, case.members) == ("cql", members))
        ratio = turns.ratios(plain, fast)
        assert f"CQL coordinates M={members} B=8 plain".ljust(46) + f"{ratio} times fast\n" in printed


@pytest.mark.parametrize("trainer, module", [("fast", engine), ("plain", algorithm)])
def test_a_case_goes_through_its_schedule_again_and_again(in_process, files, monkeypatch, trainer, module):
    starts, updates, threads = [], module.updates, torch.get_num_threads()
    monkeypatch.setattr(module, "updates", lambda *arguments: starts.append(arguments[-2:]) or updates(*arguments))
    monkeypatch.setattr("benchmarks.case.UPDATES", 150)
    case = Case("cql", "index", 9, 8, 16, 10**4, files.path("index", 10**4), trainer=trainer)
    with measured(case) as (_, measure):
        while len(starts) < 3:
            assert measure(0.05)["rate"] > 0
    assert set(starts) == {(0, 150)} and torch.get_num_threads() == threads


def test_ratios_are_those_of_each_round():
    ratio = turns.ratios([2.0, 9.0, 40.0], [1.0, 3.0, 10.0])
    assert ratio == (3.0, 2.0, 4.0)
    assert str(ratio) == "3 (2–4)"


def test_large_data_is_loaded_and_trained_on(in_process, capsys):
    argv = ["--transitions", "20000", "--observation", "coordinates", "--rounds", "1", "--seconds", "0.01"]
    assert large_data.main(argv) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("coordinates: 20,0") and "load" in first and "peak memory" in first
    sizes = [text.partition("members, ")[2].partition(" transitions")[0] for text in rest]
    assert [int(size.replace(",", "")) for size in sizes] == [10**4, 20_000]


def test_a_child_that_cannot_start_is_said_to(files):
    case = Case("cql", "index", 1, 8, 16, 10**4, "nowhere.npz")
    with pytest.raises(MeasuringError, match="there is no data set at nowhere.npz"):
        Session(sys.executable, "benchmarks.case", case._asdict())


@pytest.mark.parametrize("argv, words", [
    (["--peer", "sb3=python"], "known peers are d3rlpy, jax"),
    (["--peer", "jax=/nowhere/python"], "there is no interpreter"),
    (["--members", "0"], "must be at least 1"), (["--device", "tpu"], "is no device")])
def test_bad_input_gets_one_sentence(argv, words, capsys):
    assert throughput.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_the_share_outside_the_trainer_is_that_of_the_clock(capsys, monkeypatch):
    """A clock that goes on by a second at each look: two around the training, its one block, and the trainer's end."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("benchmarks.cadence.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert cadence.main(["--rounds", "1", "--episodes", "5", "--hidden", "4", "--bc-steps", "0", "--steps", "10"]) == 0
    assert capsys.readouterr().out == "training: 5 (5–5) s, outside the trainer: 60 (60–60) %\n"
    assert cadence.main(["--steps", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_versions_in_turns(in_process, monkeypatch, capsys):
    monkeypatch.setattr(versions, "WIDTHS", (8,))
    monkeypatch.setattr(versions, "MEMBERS", (1,))
    assert versions.main(["other", "--rounds", "2", "--seconds", "0.01"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.endswith("this checkout   other, ratio") and [row.split()[:3] for row in rows] == [
        ["1", "64", "8"], ["1", "full", "8"], ["8", "64", "64"]]
