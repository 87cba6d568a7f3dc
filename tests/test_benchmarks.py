"""The benchmarks measure what they say: counts by hand, rows and files; no timing is asserted."""

import json
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import cadence, floor, large_data, loading, throughput, throughput_plot, turns
from benchmarks.case import Case, measured
from benchmarks.data import DataFiles, enlarged
from benchmarks.session import MeasuringError, Session
from cql.collect import datasets_for
from cql.config import Config
from cql.networks import PopulationMLP


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return DataFiles(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def in_process(monkeypatch):
    """Children without processes of their own."""
    with ExitStack() as stack:
        class Here:
            def __init__(self, interpreter, module, settings):
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
    # numbers moved: first layer forward and weights 5*2+2*3+5*3 each; second 5*3+3*4+5*4 three times; Adam 7 per parameter
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
    with_none = floor.update_cost(network.sizes, discrete, 0)  # no observation: what is left is Adam, and the weights read
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


def test_the_table_and_its_files(in_process, files, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "DataFiles", lambda folder: files)
    monkeypatch.setattr(throughput, "COMPARED", {("cql", 2, 8): ("JAX scan CQL",), ("bc", 1, 8): ()})
    monkeypatch.setattr(throughput, "QUICK", (2, 0.01))
    assert throughput.main(["--quick", "--members", "1", "2", "--batch", "8", "full", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for algorithm in ("CQL", "BC"):
        for members in (1, 2):
            for batch in ("8", "full"):
                assert f"\n{algorithm} coordinates M={members} B={batch} " in printed
    assert "CQL index M=2 B=8 " in printed
    found = json.loads((tmp_path / "out/throughput.json").read_text(), parse_constant=pytest.fail)
    assert [(e["algorithm"], e["batch"], e["members"]) for e in found["table"]] == [
        (a, b, m) for a in ("cql", "bc") for b in (8, "full") for m in (1, 2)]
    entry = found["table"][0]
    assert entry["product_operations"] == floor.update_cost([(2, 256), (256, 256), (256, 4)], False, 8).product_operations
    for answer in entry["rounds"]:
        assert 0 < answer["rate"] and 0 < answer["bmm"] <= answer["products"] and 0 < answer["copy"]
    low, high = (entry["member_updates_per_second"][which] for which in ("low", "high"))
    assert low == min(a["rate"] for a in entry["rounds"]) and high == max(a["rate"] for a in entry["rounds"])
    assert entry["of_products"]["high"] == max(a["rate"] * entry["product_operations"] / a["products"] for a in entry["rounds"])
    assert (tmp_path / "out/throughput.png").read_bytes().startswith(b"\x89PNG")


def test_precisions_stand_side_by_side(in_process, files, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "DataFiles", lambda folder: files)
    monkeypatch.setattr(throughput, "QUICK", (2, 0.01))
    argv = ["--quick", "--only", "table", "--members", "1", "2", "--batch", "8", "--precision", "float32", "bfloat16"]
    assert throughput.main([*argv, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "out/throughput.json").read_text())["table"]
    for members in (1, 2):
        first, second = ([answer["rate"] for entry in table if (entry["algorithm"], entry["members"], entry["precision"]) == (
            "cql", members, precision) for answer in entry["rounds"]] for precision in ("float32", "bfloat16"))
        assert f"CQL coordinates M={members} B=8 bfloat16".ljust(46) + f"{turns.ratios(second, first)} times float32\n" in printed
    lines = throughput_plot.panels({"table": table, "sweeps": []})["members"]
    assert {label: [entry["precision"] for entry in entries] for label, entries in lines.items()} == {
        "batch 8": ["float32"] * 2, "batch 8, bfloat16": ["bfloat16"] * 2}


def test_ratios_are_those_of_each_round():
    ratio = turns.ratios([2.0, 9.0, 40.0], [1.0, 3.0, 10.0])
    assert ratio == (3.0, 2.0, 4.0)
    assert str(ratio) == "3 (2–4)"


def test_large_data_is_loaded_and_trained_on(in_process, capsys):
    assert large_data.main(["--transitions", "20000", "--observation", "coordinates", "--rounds", "1", "--seconds", "0.01"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("coordinates: 20,0") and "load" in first and "peak memory" in first
    assert [int(text.partition("members, ")[2].partition(" transitions")[0].replace(",", "")) for text in rest] == [10**4, 20_000]


def test_a_child_that_cannot_start_is_said_to(files):
    case = Case("cql", "index", 1, 8, 16, 10**4, "nowhere.npz")
    with pytest.raises(MeasuringError, match="there is no data set at nowhere.npz"):
        Session(sys.executable, "benchmarks.case", case._asdict())


@pytest.mark.parametrize("argv, words", [
    (["--peer", "sb3=python"], "known peers are d3rlpy, jax"), (["--peer", "jax=/nowhere/python"], "there is no interpreter"),
    (["--members", "0"], "must be at least 1"), (["--device", "tpu"], "is no device"),
    (["--precision", "tf32"], "--precision tf32 needs a CUDA device"),
    (["--out", "/nowhere/at/all"], "No such file")])
def test_bad_input_gets_one_sentence(argv, words, capsys):
    assert throughput.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_the_share_outside_the_updates_is_that_of_the_clock(capsys, monkeypatch):
    """A clock that goes on by one second at each look: two around the training, two around its one block."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("benchmarks.cadence.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert cadence.main(["--rounds", "1", "--episodes", "5", "--hidden", "4", "--bc-steps", "0", "--steps", "10"]) == 0
    assert capsys.readouterr().out == "training: 3 (3–3) s, outside the updates: 66.7 (66.7–66.7) %\n"
    assert cadence.main(["--steps", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
