"""The errors that input can cause, and how every command reports them: one sentence and a status that is not 0."""

import sys
from collections.abc import Callable
from functools import wraps


class GlassboxError(ValueError):
    """Input that cannot be used; the message is one sentence that says why."""


class ConfigError(GlassboxError):
    """A setting that cannot be used."""


class DatasetError(GlassboxError):
    """A data set that cannot be used."""


class RunError(GlassboxError):
    """A run folder, or a file of one, that cannot be used."""


def first_line(error: Exception) -> str:
    """What an error of another library says first, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def reports_errors(command: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """The command, with its errors printed to standard error: status 2 for bad input, 130 for an interrupt."""

    @wraps(command)
    def main(argv: list[str] | None = None) -> int:
        try:
            return command(argv)
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
            return 130
        except (GlassboxError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return main
