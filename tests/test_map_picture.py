"""The picture of the map, and the service's route for it."""

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cql.analysis.figures.position import way
from cql.dataset import OfflineDataset
from cql.deploy import map_picture as module
from cql.deploy.map_picture import map_picture
from cql.deploy.model import Model
from cql.errors import RunError
from cql.world import GridMap, World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(deployable):
    return Model.open(deployable, "cql-a6-s42-d42")


def test_the_way_goes_to_the_end_or_until_it_repeats():
    masks = {name: np.isin(np.arange(6), states)
             for name, states in (("hazard", [3]), ("goal", [5]), ("terminal", [3, 5]), ("start", [0]))}
    grid = GridMap((3, 2), **masks, moves=np.array([[1, 0], [0, 1]]))  # S . / . H / . G; actions down and right
    assert [way(grid, np.array([0, 0, 0, 0, 1, 0]), state) for state in (0, 1, 3)] == [[0, 2, 4, 5], [1, 3], [3]]
    assert way(grid, np.ones(6, dtype=int), 0) == [0, 1]  # right, then against the border


def test_it_draws_the_policy_at_the_position(model, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "draw_position", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(module, "png", lambda figure: b"png")
    assert map_picture(model, [6.0], 2) == b"png"
    (grid, actions, greedy, counts, state, asked), = drawn
    assert (grid.shape, actions, state, asked) == ((3, 4), ["up", "down", "left", "right"], 6, 2)
    assert greedy.tolist() == model.policy.act(range(12)).tolist() and counts.sum() == len(model.dataset.actions)
    assert counts[6].tolist() == model.counts(6).tolist()


@pytest.mark.parametrize("numbers, action, sentence", [
    *((numbers, None, "an observation of this model is an integer from 0 to 11.") for numbers in (
        [1.5], [1.0, 2.0], [float("nan")], [float("inf")], [12.0], [1e300])),
    ([1.0], 4, "an action of this model is an integer from 0 to 3."), ([1.0], -1, "an integer from 0 to 3."),
])
def test_what_this_model_does_not_have_is_refused(model, numbers, action, sentence):
    with pytest.raises(RunError, match=sentence):
        map_picture(model, numbers, action)


def test_without_a_map_there_is_no_picture(model, monkeypatch):
    with pytest.raises(RunError, match="there is no map"):
        map_picture(replace(model, world=World.around(None)), [1.0])
    monkeypatch.setattr("cql.deploy.model.LARGEST_MAP", 11)
    with pytest.raises(RunError, match="there is no map"):
        map_picture(model, [1.0])


def test_the_route(deployable, tmp_path, model, monkeypatch):
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    from cql.deploy import app as service
    from cql.deploy.gate import Limits
    from cql.deploy.store import Registry

    registry = Registry(tmp_path / "registry")
    id = registry.register(deployable, "cql-a6-s42-d42", "tester")
    registry.promote(id, "tester", "to be drawn", Limits(max_hazard=1.0, min_return=-1000.0, max_unsupported=1.0))
    released = threading.Event()

    def slow(*arguments):
        assert released.wait(30)
        return map_picture(*arguments)

    monkeypatch.setattr(service, "map_picture", slow)

    async def answers():
        app = service.create_app(registry)
        async with app.router.lifespan_context(app), httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://service") as client:
            drawing = asyncio.create_task(client.get("/v1/map.png", params={"observation": 1, "action": 1}))
            acted = await client.post("/v1/act", json={"observation": 1})  # while the picture waits
            assert not drawing.done()
            released.set()
            return acted, await drawing, [await client.get(f"/v1/map.png{query}") for query in (
                "?observation=12", "?observation=1&action=4", "?observation=1&observation=2", "?observation=nan",
                "?observation=x", "?observation=1&action=x", "")]

    acted, picture, refused = asyncio.run(answers())
    assert acted.json()["model"] == picture.headers["X-Model"] == id
    assert picture.headers["Content-Type"] == "image/png" and picture.content == map_picture(model, [1.0], 1)
    assert picture.content.startswith(b"\x89PNG\r\n") and picture.content != map_picture(model, [1.0])
    assert [answer.status_code for answer in refused] == [422] * 7
    assert refused[1].json() == {"detail": "an action of this model is an integer from 0 to 3."}


def test_vectors(model, monkeypatch):
    """The same grid, its states seen as (row, column)."""
    cells = np.array(list(np.ndindex(3, 4)), dtype=np.float32)
    data, world = model.dataset, World(model.world.environment, model.world.mdp)
    vectors = OfflineDataset.from_arrays(observations=cells[data.observations], actions=data.actions,
                                         rewards=data.rewards, next_observations=cells[data.next_observations],
                                         terminations=data.terminations)
    world.__dict__["inputs"] = cells

    class RowAndColumn:
        network = SimpleNamespace(discrete=False, inputs=2)

        def act(self, observations):
            row, column = np.moveaxis(np.asarray(observations), -1, 0)
            return model.policy.act((4 * row + column).astype(int))

    seen = replace(model, dataset=vectors, world=world, policy=RowAndColumn())
    assert map_picture(seen, [1.0, 2.0]) == map_picture(model, [6.0])
    with pytest.raises(RunError, match="no cell of the map shows this observation"):
        map_picture(seen, [0.5, 0.5])
