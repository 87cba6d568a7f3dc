"""What TensorBoard shows of a population: its hyperparameters backend in process, and its own servers."""

import json
import random
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import (
    EventMultiplexer,
)
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from cql.members import all_members
from cql.metrics import METRICS, TOGETHER, TRIAL_METRICS, read_metrics
from cql.run_folder import RunFolder
from cql.training import Interrupted, train
from cql.world import World
from tests.test_training import interrupt_after, run_of

pytestmark = pytest.mark.slow
NUMBER, TEXT = api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_STRING
COLUMNS = {"algorithm": TEXT, "alpha": NUMBER, "seed": NUMBER, "data_seed": NUMBER, "lr": NUMBER, "gamma": NUMBER,
           "target_interval": NUMBER, "td_loss": TEXT, "double_q": NUMBER, "penalty_threshold": NUMBER, "slip": NUMBER,
           "epsilon": NUMBER, "episodes": NUMBER, "bc_top": NUMBER, "bc_safe": NUMBER, "batch_size": TEXT,
           "hidden": TEXT}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs beside each other: ``plain``, and ``resumed`` after an interruption, which learns alpha."""
    folder = tmp_path_factory.mktemp("runs")
    run_of(folder / "plain", alpha=(0.0, 6.0), num_seeds=2, num_datasets=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 4)
        run_of(folder / "resumed", penalty_threshold=1.2)
    run = RunFolder.open(folder / "resumed")
    config = run.config()
    train(run, config, data := run.datasets(config), World.of(data[0]), resume=True)
    return folder


def backend(folder) -> backend_context.Context:
    events = EventMultiplexer().AddRunsFromDirectory(str(folder))
    events.Reload()
    return backend_context.Context(SimpleNamespace(data_provider=MultiplexerDataProvider(events, str(folder))))


def trials(folder) -> dict:
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=1000, allowed_statuses=[
        api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING])
    found = list_session_groups.Handler(RequestContext(), backend(folder), "experiment", request).run()
    return {group.name: group for group in found.session_groups}


def test_one_trial_per_member_with_its_alpha_and_its_last_exact_outcome(runs):
    run = RunFolder.open(runs / "plain")
    found, series = trials(run.path / "tensorboard"), read_metrics(run.path / "metrics.csv")
    members = all_members(run.config())
    assert found.keys() == {member.name for member in members} and len(members) == 12
    for member in members:
        settings = found[member.name].hparams
        assert settings["seed"].number_value == member.seed and settings["data_seed"].number_value == member.data_seed
        assert settings["algorithm"].string_value == member.algorithm
        assert (settings["alpha"].number_value if "alpha" in settings else None) == member.alpha
        outcomes = {value.name.tag: value.value for value in found[member.name].metric_values}
        for name in TRIAL_METRICS:
            assert outcomes[name] == pytest.approx(series[member.name, name][1][-1], rel=1e-6)


def test_the_columns_of_the_trials_are_the_same_whichever_run_is_read_first(runs):
    """In 20 orders, and from the record of every run alone: of BC and CQL, with a learned alpha and without."""
    reader, context = backend(runs), RequestContext()
    found = reader.hparams_metadata(context, "experiment")
    shuffles = [random.Random(seed).sample(list(found), len(found)) for seed in range(20)]
    assert {order[0].split("/")[-1].split("-")[0] for order in shuffles} == {"bc", "cql"}
    for order in [*shuffles, *([name] for name in found)]:
        records = {name: found[name] for name in order}
        experiment = reader.experiment_from_metadata(context, "experiment", True, records, [])
        assert {column.name: column.type for column in experiment.hparam_infos} == COLUMNS
        assert [metric.name.tag for metric in experiment.metric_infos] == list(TRIAL_METRICS)


class Server:
    """A TensorBoard of its own, on a free port."""

    def __init__(self, folder, *options: str):
        self.process = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port=0",
                                         *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.url = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.communicate()

    def ask(self, path: str, body=None, **query: str):
        if self.url is None:
            line = next(line for line in self.process.stderr if "http://" in line)
            self.url = line[line.index("http://") :].split()[0] + "data/plugin"
        request = urllib.request.Request(f"{self.url}/{path}?{urllib.parse.urlencode(query)}", headers={
            "Content-Type": "application/json"}, data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tags(self, expected: int) -> dict:
        """The scalars of every run, once so many runs are read."""
        for _ in range(300):
            if len(tags := self.ask("scalars/tags")) == expected:
                return tags
            time.sleep(0.1)
        raise AssertionError(f"{len(tags)} of {expected} runs after 30 s")


def test_servers_show_columns_descriptions_values_and_the_chart(runs):
    """A server with the default loader and one with the loader in Python, which read the files differently."""
    with ExitStack() as stack:
        for server in [stack.enter_context(Server(runs, *options)) for options in ((), ("--load_fast=false",))]:
            tags = server.tags(expected=14)
            found = server.ask("hparams/experiment", {"experimentName": ""})
            assert {column["name"] for column in found["hparamInfos"]} == COLUMNS.keys()
            for folder in ("plain", "resumed"):
                run = RunFolder.open(runs / folder)
                series = read_metrics(run.path / "metrics.csv")
                for member in all_members(run.config()):
                    name = f"{folder}/tensorboard/{member.name}"
                    assert tags[name].keys() == {metric for who, metric in series if who == member.name}
                    for metric, shown in tags[name].items():
                        assert plain_text(shown["description"]) == METRICS[metric][1]
                for metric in TOGETHER:  # read from the first to the last entry, those before the interruption too
                    steps, values = series[member.name, metric]
                    points = server.ask("scalars/scalars", run=name, tag=metric)
                    assert [step for _, step, _ in points] == steps
                    assert [value for *_, value in points] == pytest.approx(values, rel=1e-6)
            (category,) = server.ask("custom_scalars/layout")["category"]
            (chart,) = category["chart"]
            assert chart["multiline"]["tag"] == [f"{name}$" for name in TOGETHER]


def test_there_is_no_chart_of_both_values_where_the_true_one_is_not_known(tmp_path):
    run = run_of(tmp_path / "run", gamma=1.0)
    assert "exact/discounted_value" not in {metric for _, metric in read_metrics(run.path / "metrics.csv")}
    assert not backend(run.path).tb_context.data_provider.list_tensors(
        RequestContext(), experiment_id="experiment", plugin_name="custom_scalars")


def plain_text(html: str) -> str:
    return html.removeprefix("<p>").removesuffix("</p>").replace("&gt;", ">").replace("&lt;", "<")
