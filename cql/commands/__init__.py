"""The command lines, a module each: ``python -m cql NAME``. Each has a ``main`` that takes its arguments."""
