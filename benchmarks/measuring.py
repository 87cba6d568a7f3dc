"""Measuring several commands in turns (A B C A B C …), so that what else the machine does befalls all of them.

Each command is a process that prints one line of JSON when it is ready, and then one for every number of seconds that
it reads. Imports nothing but the standard library (``rolled_out`` Gymnasium), because peers import it in environments
of their own.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Command(NamedTuple):
    """``interpreter -m module SETTINGS``, run in a checkout; the settings are given as JSON."""

    interpreter: str
    module: str
    settings: dict
    checkout: Path | str = ROOT


def in_turns(commands: dict, rounds: int, seconds: float) -> dict:
    """``key -> Command`` to ``key -> the answers of all rounds``.

    Exits with a sentence if a command ends before it answers.
    """
    processes = {}
    try:
        for key, (interpreter, module, settings, checkout) in commands.items():
            argv = [interpreter, "-m", module, json.dumps(settings)]
            processes[key] = subprocess.Popen(argv, cwd=checkout, text=True, stdin=subprocess.PIPE,
                                              stdout=subprocess.PIPE)
            _answer(processes[key])
        answers = {key: [] for key in commands}
        for _ in range(rounds):
            for key, process in processes.items():
                print(seconds, file=process.stdin, flush=True)
                answers[key].append(_answer(process))
        return answers
    finally:
        for process in processes.values():
            process.communicate()


def _answer(process: subprocess.Popen) -> dict:
    for line in process.stdout:
        if line.startswith("{"):  # libraries write to stdout as they like
            return json.loads(line)
    sys.exit(f"error: {' '.join(process.args[:3])} ended before it answered.")


def answer_with(measure) -> None:
    """The process's side: says that it is ready, then answers every number of seconds with ``measure(seconds)``."""
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), flush=True)


def rate(work, seconds: float, synchronise=lambda: None) -> float:
    """Units per second of ``work()``, which does some and returns how many, repeated for about so many seconds."""
    units, spent, calls = 0, 0.0, 1
    synchronise()
    while spent < seconds:
        start = time.perf_counter()
        units += sum(work() for _ in range(calls))
        synchronise()
        took = time.perf_counter() - start
        spent += took
        if took < seconds / 20:
            calls *= 2
    return units / spent


def spread(values: list[float]) -> str:
    """Median, smallest and largest over the rounds."""
    return f"{_three(statistics.median(values))} ({_three(min(values))}–{_three(max(values))})"


def rates(answers: list[dict]) -> str:
    return spread([answer["rate"] for answer in answers])


def ratios(ours: list[dict], theirs: list[dict]) -> str:
    """The ratio of the rates of each round: their median is what the machine's drift touches least."""
    return spread([a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)])


def rolled_out(task: str, act, gamma: float, episodes: int = 30) -> dict:
    """Mean return of a policy, and its mean discounted return with the standard error; ``act(observation)``."""
    import gymnasium

    environment, returns, discounted = gymnasium.make(task), [], []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=5000 + episode)
        done, weight, total, worth = False, 1.0, 0.0, 0.0
        while not done:
            observation, reward, terminated, truncated, _ = environment.step(act(observation))
            total, worth = total + float(reward), worth + weight * float(reward)
            weight, done = weight * gamma, terminated or truncated
        returns.append(total)
        discounted.append(worth)
    return {"return": statistics.mean(returns), "discounted": statistics.mean(discounted),
            "error": statistics.stdev(discounted) / episodes**0.5}


def _three(value: float) -> str:
    """Three significant digits, without exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
