"""Discrete Conservative Q-Learning and Behaviour Cloning, by hand, beside their exact solutions.

The names below are what a notebook needs (docs/python.md). Each is imported when it is first used, so that
``import cql.exact`` loads neither PyTorch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cql.analysis.figures.maps import draw_policy
    from cql.collect import generate_offline_episodes
    from cql.dataset import OfflineDataset
    from cql.explorable import explore
    from cql.notebook import Fit, evaluate, fit, solve
    from cql.policy import Policy
    from cql.world import World

_MODULES = {
    "Fit": "cql.notebook", "OfflineDataset": "cql.dataset", "Policy": "cql.policy", "World": "cql.world",
    "evaluate": "cql.notebook", "fit": "cql.notebook", "generate_offline_episodes": "cql.collect",
    "draw_policy": "cql.analysis.figures.maps", "explore": "cql.explorable", "solve": "cql.notebook",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'cql' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
