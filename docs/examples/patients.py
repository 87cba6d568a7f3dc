"""Writes patients.csv, the log of 5,000 simulated patients; with a run as argument, treats new ones by its policies.

Every four hours a patient gets no, a low or a high dose. A dose costs, lowers the severity and is poison where that is
low. Below a severity of 0 a patient is well (reward 10), above 10 lost (−10); after 20 doses the record is cut off.
"""

import csv
import sys
from pathlib import Path

import numpy as np

import cql

DOSES = ("high", "low", "none")  # numbered in this order
EFFECT, POISON, COST = np.array([[2.0, 0.9, 0.0], [2.5, 0.2, 0.0], [0.5, 0.2, 0.0]])


def treated(choose, steps=20, patients=5000, seed=0):
    """Yields (under treatment, observations, actions, rewards, ended), step by step; choose: (observations, rng)."""
    rng = np.random.default_rng(seed)
    age, severity, there = rng.uniform(20, 90, patients), rng.uniform(2, 8, patients), np.ones(patients, bool)
    for _ in range(steps):
        seen = np.column_stack([age, 0.5 + 0.5 * severity, 70 + 6 * severity]).round(2)  # age, lactate, heart rate
        actions = choose(seen, rng)
        severity = severity + 0.2 + age / 200 + rng.normal(0, 0.8, patients)
        severity += POISON[actions] * (seen[:, 2] < 94) - EFFECT[actions]
        rewards = 10.0 * (severity < 0) - 10.0 * (severity > 10) - COST[actions]
        ended = (severity < 0) | (severity > 10)
        yield there, seen, actions, rewards, ended
        there = there & ~ended


def clinicians(seen, rng):
    """A high dose above a heart rate of 100, else a low one or none; four times in ten any of the three."""
    usual = np.where(seen[:, 2] > 100, 0, rng.integers(1, 3, len(seen)))
    return np.where(rng.random(len(seen)) < 0.4, rng.integers(0, 3, len(seen)), usual)


if len(sys.argv) == 1:
    with open("patients.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patient", "hour", "age", "lactate", "heart_rate", "dose", "reward", "ended"])
        for step, (there, seen, actions, rewards, ended) in enumerate(treated(clinicians, steps=21)):
            for n in np.flatnonzero(there):  # the last row of a record that is cut off holds an observation alone
                taken = [DOSES[actions[n]], rewards[n].round(2), int(ended[n])] if step < 20 else ["", "", 0]
                table.writerow([n, 4 * step, *seen[n], *taken])
else:
    policies = {path.stem: cql.Policy.load(path) for path in sorted(Path(sys.argv[1]).glob("policies/*.pt"))}
    choices = {name: lambda seen, _, policy=policy: policy.act(seen) for name, policy in policies.items()}
    for name, choose in {"clinicians": clinicians, **choices}.items():
        line = f"{name:20}"
        for steps, gamma in ((20, 1.0), (600, 0.99)):  # a record; and on and on, discounted
            returns = sum(gamma**n * there * rewards for n, (there, _, _, rewards, _) in enumerate(
                treated(choose, steps, seed=1)))
            line += f"  {returns.mean():6.2f} ± {1.96 * returns.std() / len(returns) ** 0.5:.2f}"
        print(line)
