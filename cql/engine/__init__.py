"""The updates of ``cql.algorithm``, faster. Only this file of the package is imported from outside.

``updates`` has the signature of ``cql.algorithm.updates`` and makes the same updates, but yields after a block of
them, with the loss terms summed over the block. ``tests/test_engine.py`` holds the two together. What makes it fast:
distinct pairs instead of transitions (``pairs``), target values computed once per target copy and passes by hand into
memory made once (``cohort``, ``passes``), members in cohorts that fit a core's cache, on all cores (``workers``),
CUDA graphs (``capture``).
"""

from cql.engine.trainer import memory_needed, serves, updates

__all__ = ["memory_needed", "serves", "updates"]
