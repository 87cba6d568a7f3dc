"""Several children measured in turns: A B C A B C …, so that what the machine does meanwhile befalls all of them."""

import statistics
from pathlib import Path
from typing import NamedTuple

from benchmarks.session import ROOT, Session


class Measured(NamedTuple):
    """What a child said of itself, and its answer of every round."""

    ready: dict
    rounds: list[dict]

    def column(self, name: str) -> list[float]:
        return [answer[name] for answer in self.rounds]


class Child(NamedTuple):
    """Arguments of ``Session``."""

    interpreter: str
    module: str
    settings: dict
    checkout: Path | str = ROOT


def in_turns(children: dict, rounds: int, seconds: float) -> dict:
    """``key -> Child`` to ``key -> Measured``. Raises MeasuringError if one cannot be measured."""
    sessions = {}
    try:
        for key, child in children.items():
            sessions[key] = Session(*child)
        answers = [{key: session.measure(seconds) for key, session in sessions.items()} for _ in range(rounds)]
    finally:
        for session in sessions.values():
            session.close()
    return {key: Measured(session.ready, [answer[key] for answer in answers]) for key, session in sessions.items()}


class Spread(NamedTuple):
    """Median, smallest and largest over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_three(self.median)} ({_three(self.low)}–{_three(self.high)})"


def ratios(ours: list[float], theirs: list[float]) -> Spread:
    """Of each round; their median is what the machine's drift touches least."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def _three(value: float) -> str:
    """Three significant digits, without exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
