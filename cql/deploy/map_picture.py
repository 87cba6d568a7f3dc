"""The map of a grid with one position on it, as a PNG: what the policy does there and where that leads."""

import numpy as np

from cql.analysis.figures.position import draw_position
from cql.analysis.figures.style import png
from cql.deploy.model import Model
from cql.errors import RunError


def map_picture(model: Model, numbers: list[float], action: int | None = None) -> bytes:
    """The map with the position that an observation shows, and with an action that is asked about, if any.

    It sets and resets matplotlib's settings, so only one thread may call it at a time.

    Args:
        numbers: the observation; for a model of state indices, one whole number.

    Raises:
        RunError: the model has no such observation or action, or its world is no grid or too large to be drawn.
    """
    if not model.has_map:
        raise RunError("there is no map: the states of this model are not the cells of a grid that can be drawn.")
    alone = model.dataset.discrete and len(numbers) == 1
    observation = model.observation(numbers[0] if alone else numbers)
    state = model.state(observation)
    if state is None:
        raise RunError("no cell of the map shows this observation.")
    action = None if action is None else model.action(action, model.possible(observation))
    counts = np.stack([model.counts(observation) for observation in model.world.inputs])
    greedy = model.policy.act(model.world.inputs)
    return png(draw_position(model.world.grid, model.actions, greedy, counts, state, action))
