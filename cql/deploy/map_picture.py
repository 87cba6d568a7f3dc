"""The map of a grid with one position on it, as a PNG: what the policy does there and where that leads."""

import numpy as np

from cql.analysis.figures.position import draw_position
from cql.analysis.figures.style import png
from cql.deploy.explanation import checked_action, checked_observation
from cql.deploy.model import Model
from cql.errors import RunError

LARGEST_MAP = 10_000  # cells


def map_picture(model: Model, numbers: list[float], action: int | None = None) -> bytes:
    """The map with the position that an observation shows, and with an action that is asked about, if any.

    It sets and resets matplotlib's settings, so only one thread may call it at a time.

    Args:
        numbers: the observation; for a model of state indices, one whole number.

    Raises:
        RunError: the model has no such observation or action, or its world is no grid or too large to be drawn.
    """
    grid = model.world.grid
    if grid is None or len(grid.terminal) > LARGEST_MAP:
        raise RunError("there is no map: the states of this model are not the cells of a grid that can be drawn.")
    if model.dataset.discrete and not (len(numbers) == 1 and numbers[0].is_integer()):
        raise RunError("an observation of this model is one integer.")
    state = model.state(checked_observation(model, int(numbers[0]) if model.dataset.discrete else numbers))
    if state is None:
        raise RunError("no cell of the map shows this observation.")
    action = None if action is None else checked_action(model, action)
    counts = np.stack([model.counts(observation) for observation in model.world.inputs])
    return png(draw_position(grid, model.actions, model.policy.act(model.world.inputs), counts, state, action))
