"""TensorBoard's own hyperparameters backend, reading a population: one trial a member, with settings and outcome."""

from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import (
    EventMultiplexer,
)
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from cql.members import all_members
from cql.metrics import TRIAL_METRICS, read_metrics
from tests.test_training import run_of

pytestmark = pytest.mark.slow


def trials(folder) -> dict:
    events = EventMultiplexer().AddRunsFromDirectory(str(folder))
    events.Reload()
    context = backend_context.Context(SimpleNamespace(data_provider=MultiplexerDataProvider(events, str(folder))))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=1000, allowed_statuses=[
        api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING])
    found = list_session_groups.Handler(RequestContext(), context, "experiment", request).run()
    return {group.name: group for group in found.session_groups}


def test_one_trial_per_member_with_its_alpha_and_its_last_exact_outcome(tmp_path):
    run = run_of(tmp_path / "run", alpha=(0.0, 6.0), num_seeds=2, num_datasets=2)
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
