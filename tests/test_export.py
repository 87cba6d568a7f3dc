"""An exported policy: the same outputs and actions from files that need nothing of this package."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from cql.commands import export as export_command
from cql.dataset import OfflineDataset
from cql.deploy import export as exporting
from cql.deploy.export import (
    FORMATS,
    TOLERANCE,
    export,
    largest_difference,
    observations_of,
    program,
)
from cql.deploy.model import Model
from cql.deploy.store import Registry
from cql.errors import RunError
from cql.files import sha256
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.world import World

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parent.parent / "docs/examples"
SHAPES = {  # inputs, outputs, hidden, discrete
    "table": (5, 3, (), True), "index": (7, 4, (16, 16), True), "linear": (2, 3, (), False),
    "wide": (2, 4, (1100, 1100), False)}  # large enough for oneDNN's private operator, which must not be in a file


def policy_of(shape, algorithm="cql"):
    """In the table two actions of state 0 are equally good, and all of state 1."""
    network = PopulationMLP(*SHAPES[shape])
    parameters = network.initial([3])
    if shape == "table":
        parameters[0][0, :2] = torch.tensor([[1.0, 2.0, 2.0], [5.0, 5.0, 5.0]])
    return Policy(network, parameters, algorithm, 6.0 if algorithm == "cql" else None, 42, 43)


@lru_cache
def program_of(shape):
    return program(policy_of(shape))


@lru_cache
def contents_of(shape, make):
    return make(program_of(shape), '{"member": "x"}')


def observations_for(policy, size):
    generator = np.random.default_rng(size)
    if policy.network.discrete:
        return generator.integers(0, policy.network.inputs, size)
    return generator.normal(size=(size, policy.network.inputs)).astype(np.float32)


@pytest.fixture(params=["torch", "onnx"])
def form(request):
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime").set_default_logger_severity(4)
    return FORMATS[request.param]


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestOnePolicy:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_outputs_and_actions_in_batches_of_any_size(self, form, shape):
        _, make, runner_of = form
        policy, run = policy_of(shape), runner_of(contents_of(shape, make))
        for size in (0, 1, 2, 3, 1000):
            observations = observations_for(policy, size)
            outputs, actions = run(observations)
            assert outputs.shape == (size, policy.network.outputs)
            assert outputs.dtype == np.float32 and actions.dtype == np.int64
            np.testing.assert_array_equal(actions, policy.act(observations))
            np.testing.assert_allclose(outputs, policy.q_values(observations), rtol=1e-5, atol=1e-6)

    def test_ties_go_to_the_lowest(self, form):
        _, make, runner_of = form
        assert runner_of(contents_of("table", make))(np.array([0, 1]))[1].tolist() == [1, 0]

    @pytest.mark.parametrize("shape", ["table", "index"])
    def test_an_index_that_is_no_state_is_an_error(self, form, shape):
        _, make, runner_of = form
        policy, run = policy_of(shape), runner_of(contents_of(shape, make))
        states = policy.network.inputs
        for index in (-1, -states, -states - 1, states, 2**40, -2**40):
            with pytest.raises(Exception, match="index out of range|out of data bounds"):
                run(np.array([0, index]))
        assert run(np.array([states - 1]))[1] == policy.act([states - 1])

    def test_nan_in_a_vector_is_no_error_so_that_loaders_must_check(self, form):
        _, make, runner_of = form
        outputs, actions = runner_of(contents_of("linear", make))(np.array([[np.nan, 0]], dtype=np.float32))
        assert np.isnan(outputs).all() and 0 <= actions[0] < 3

    def test_equal_policies_give_equal_bytes_without_paths(self, form):
        _, make, _ = form
        first = contents_of("table", make)
        assert first == make(program(policy_of("table")), '{"member": "x"}')
        assert str(EXAMPLES.parent.parent).encode() not in first and b"network.py" not in first
        assert b'{"member": "x"}' in first

    @pytest.mark.parametrize("shape", SHAPES)
    def test_only_core_operators(self, shape):
        calls = [node.target for node in program_of(shape).graph.nodes if node.op == "call_function"]
        assert len(calls) > 3 and all(torch.Tag.core in call.tags for call in calls), calls

    def test_nothing_in_a_pt2_is_pickled(self):
        archive = zipfile.ZipFile(io.BytesIO(contents_of("index", exporting.torch_bytes)))
        for name in archive.namelist():
            contents = archive.read(name)
            assert not zipfile.is_zipfile(io.BytesIO(contents)), name  # torch.save's form
            if name.endswith("_config.json"):
                assert not any(entry["use_pickle"] for entry in json.loads(contents)["config"].values())
            elif "/data/" in name:
                assert "/weights/weight_" in name or "/constants/tensor_" in name or not contents, name  # raw numbers
        assert archive.testzip() is None


class TestCheck:
    policy, observations = policy_of("index"), np.arange(7)

    def run(self, observations):
        return self.policy.q_values(observations), self.policy.act(observations)

    def test_the_policy_itself_passes(self):
        assert largest_difference(self.run, self.policy, self.observations) == 0

    def test_the_difference_is_relative_to_the_largest_output(self):
        largest = np.abs(self.policy.q_values(self.observations)).max()
        off = np.float32(5e-6 * largest)
        found = largest_difference(lambda o: (self.run(o)[0] + off, self.run(o)[1]), self.policy, self.observations)
        assert found == pytest.approx(5e-6, rel=0.05)

    @pytest.mark.parametrize("wrong, sentence", [
        (lambda q, a, o: (q, np.where(o == 6, (a + 1) % 4, a)),
         "acts otherwise on 1 of 7 observations, first on 6: .*not kept"),
        (lambda q, a, o: (q * (1 + 2 * TOLERANCE), a), "outputs are 2.0e-05 off"),
        (lambda q, a, o: (np.where(o[:, None] == 6, np.nan, q).astype(np.float32), a), "outputs are nan off"),
        (lambda q, a, o: (q.astype(np.float64), a), "batch of 0 has outputs float64"),
        (lambda q, a, o: (q, a.astype(np.int32)), "actions int32"),
        (lambda q, a, o: (q.squeeze(0), a) if len(o) == 1 else (q, a), r"batch of 1 has outputs float32 \[4\]"),
    ])
    def test_what_differs_is_refused(self, wrong, sentence):
        with pytest.raises(RunError, match=sentence):
            largest_difference(lambda o: wrong(*self.run(o), o), self.policy, self.observations)

    def test_more_observations_than_are_checked_at_once(self, monkeypatch):
        monkeypatch.setattr(exporting, "ROWS", 2)
        with pytest.raises(RunError, match="on 1 of 1 observations, first on 6"):
            largest_difference(lambda o: (self.run(o)[0], np.where(o == 6, 4, self.run(o)[1])), self.policy,
                               self.observations)


def test_checked_on_every_state_else_on_the_data(deployable):
    model = Model.open(deployable, "cql-a6-s42-d42")
    assert observations_of(model).tolist() == list(range(12))
    seen = np.array([[0.5, 1], [0, 1], [0.5, 1]], dtype=np.float32)
    dataset = OfflineDataset.from_arrays(observations=seen, actions=[0, 1, 2], rewards=[0, 0, 0],
                                         next_observations=seen, terminations=[False, False, True])
    unknown = dataclasses.replace(model, policy=policy_of("linear"), dataset=dataset, world=World(None, None))
    assert observations_of(unknown).tolist() == [[0, 1], [0.5, 1]] and observations_of(unknown).dtype == np.float32


ELSEWHERE = """
import json, runpy, sys
sys.modules["cql"] = sys.modules["envs"] = None
try:
    import cql
except ImportError:
    print("cql cannot be imported")
script, calls = sys.argv[1:]
for sys.argv in json.loads(calls):
    try:
        runpy.run_path(script)
    except SystemExit as error:
        print(error)
    print("done")
"""


def run_example(script, calls, folder):
    """What an example prints, a list of lines for each call, where this package cannot be imported."""
    shutil.copy(EXAMPLES / script, folder)
    ran = subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", ELSEWHERE, script, json.dumps(calls)],
                         cwd=folder, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    first, _, rest = ran.stdout.partition("\n")
    assert first == "cql cannot be imported"
    return [part.splitlines() for part in rest.split("done\n")[:-1]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name, script, member", [("torch", "load_torch.py", "cql-a6-s42-d42"),
                                                  ("onnx", "load_onnx.py", "bc-s42-d42")])
def test_exported_and_run_elsewhere(deployable, tmp_path, monkeypatch, name, script, member):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if name == "onnx":
            pytest.importorskip(package)
        else:  # which needs none of them
            monkeypatch.setitem(sys.modules, package, None)
    ending, make, _ = FORMATS[name]
    assert export_command.main([str(deployable), str(tmp_path), "--member", member, "--format", name]) == 0
    file, = (path.name for path in tmp_path.iterdir())
    assert file == f"{member}{ending}"
    vectors = policy_of("linear")
    about = {"observations": {"kind": "vector", "size": 2}, "actions": ["a", "b", "c"]}
    (tmp_path / f"vector{ending}").write_bytes(make(program_of("linear"), json.dumps(about)))
    every, low, high, asked, nan, short, long = run_example(script, [[script, *words] for words in (
        [file, *map(str, range(12))], [file, "0", "-1"], [file, "12"],
        *([f"vector{ending}", *words] for words in (["0.5,-1", "0,2"], ["nan,0"], ["1"], ["1,2,3"])))], tmp_path)
    policy, words = Policy.load(deployable / "policies" / f"{member}.pt"), [line.split() for line in every]
    assert [int(state) for state, *_ in words] == list(range(12))
    assert [word for _, word, *_ in words] == [("up", "down", "left", "right")[a] for a in policy.act(range(12))]
    outputs, _ = exporting.Greedy(policy)(torch.arange(12))
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in words], outputs.numpy(), atol=6e-5)
    assert low == high == ["error: an observation is a state from 0 to 11."]
    assert [line.split()[1] for line in asked] == ["abc"[a] for a in vectors.act([[0.5, -1], [0, 2]])]
    assert nan == short == long == ["error: an observation is 2 finite numbers."]


def test_metadata(deployable):
    model = Model.open(deployable, "cql-a6-s42-d42")
    assert json.loads(exporting.metadata(model, "d" * 64)) == {
        "member": "cql-a6-s42-d42", "algorithm": "cql", "alpha": 6.0, "final_alpha": 6.0, "outputs": "q_values",
        "observations": {"kind": "index", "size": 12}, "actions": ["up", "down", "left", "right"],
        "policy_sha256": "d" * 64}
    bc = json.loads(exporting.metadata(Model.open(deployable, "bc-s42-d42"), "d" * 64))
    assert (bc["algorithm"], bc["alpha"], bc["final_alpha"], bc["outputs"]) == ("bc", None, None, "logits")


def test_an_entry_exported(deployable, tmp_path):
    registry = Registry(tmp_path / "reg")
    entry = registry.folder(registry.register(deployable, "cql-a1-s42-d42", "ann"))
    line, = export(entry, tmp_path / "out")
    written = tmp_path / "out/cql-a1-s42-d42.pt2"
    assert line.startswith(f"{written}: {written.stat().st_size:,} bytes; acts as the policy on all of 12 observations")
    extra = {"metadata.json": ""}
    torch.export.load(written, extra_files=extra)
    assert json.loads(extra["metadata.json"])["policy_sha256"] == sha256(deployable / "policies/cql-a1-s42-d42.pt")
    export(deployable, tmp_path / "again", "cql-a1-s42-d42")
    assert (tmp_path / "again/cql-a1-s42-d42.pt2").read_bytes() == written.read_bytes()


def test_no_file_is_kept_where_one_fails(deployable, tmp_path, monkeypatch, capsys):
    def idle(contents):
        return lambda o: (np.zeros((len(o), 4), np.float32), np.zeros(len(o), np.int64))

    monkeypatch.setitem(FORMATS, "onnx", (".bad", exporting.torch_bytes, idle))
    arguments = [str(deployable), str(tmp_path / "out"), "--member", "cql-a6-s42-d42", "--format", "all"]
    assert export_command.main(arguments) == 2
    assert "acts otherwise on" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, sentence", [
    (["nowhere", "out"], "error: nowhere is no run folder: it has no config.json.\n"),
    (["RUN", "out"],
     "error: RUN has 2 CQL members: choose one with --member (bc-s42-d42, cql-a1-s42-d42, cql-a6-s42-d42).\n"),
    (["RUN", "out", "--member", "x"],
     "error: RUN has no member x: it has bc-s42-d42, cql-a1-s42-d42, cql-a6-s42-d42.\n"),
    (["RUN", "file", "--member", "bc-s42-d42"], "error: [Errno 17] File exists: 'file'\n"),
])
def test_errors_are_one_sentence(deployable, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert export_command.main([str(deployable) if word == "RUN" else word for word in arguments]) == 2
    assert capsys.readouterr().err.replace(str(deployable), "RUN") == sentence


def test_without_the_extra_onnx_is_refused(deployable, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    arguments = [str(deployable), str(tmp_path / "out"), "--member", "bc-s42-d42", "--format", "all"]
    assert export_command.main(arguments) == 2 and not (tmp_path / "out").exists()
    assert "error: ONNX needs the extra export: pip install 'glassbox-cql[export]'" in capsys.readouterr().err
