"""Whether every member ended where its loss leads, judged from the log and the data alone.

BC's loss has a floor that is known exactly, the entropy of the logged actions: a member whose cross-entropy ends more
than ``ABOVE_FLOOR`` above it has not converged. For CQL no floor is known without the exact solution. Its learning rate
falls to 0 along a cosine, so that in the last updates nothing moves, converged or not; and its TD loss rises while it
learns, since the targets move. What tells converged from not is how far the values moved since three quarters of the
updates, where the learning rate is 15 % of the first. They travel back from the goal, the value at the start last.

Measured on ``islands`` (``python train.py --alpha 0.3 1 6 50 --steps N``; at 5,000 and 6,000 updates alpha 0.3 and 50).
``0.26 … 0.29`` is the range over alphas, ``0.003, 0.003`` one value per alpha:

    updates                       mean |Q - exact Q|, share of its range       moved
     2,000                        0.26 … 0.29                                  0.53 … 0.61
     4,000                        0.005 … 0.04                                 0.28 … 0.62
     5,000                        0.003, 0.003                                 0.19, 1.0
     6,000                        0.0008, 0.0002                               0.004, 0.37
     8,000                        0.00002 … 0.0002                             0.0001 … 0.002
    16,000                        0.000001 … 0.000003                          0.00001 … 0.0001
    80,000 (the default)          0.0000002                                    0.0004
    80,000, batch 64, --lr 1e-3   0.004                                        0.02 … 0.04
     8,000, batch 64              0.015                                        0.03, 0.11
     8,000, --lr 1e-4             0.07, 0.2                                    0.12, 0.07
     8,000, --lr 3e-4             0.025, 0.001                                 0.09, 0.04

The limits lie between those that are near the exact solution and those that are not. A network whose speed is that of
its learning rate, the sign of one that has only begun, moves 1.2 % in the last quarter; so the limit is 1 %, and 5 %
with minibatches, whose noise moves the values too. Two causes cannot be seen in this way, and the exact solution shows
both: a network too small for its loss, and a target network copied too seldom. BC is 0.16 nats above its floor after
100 updates, 0.0005 after 500, and 0.07 where 32 hidden units read coordinates.
"""

import math

MOVED, MOVED_BY_NOISE = 0.01, 0.05  # of the largest value in the log: limits of the full batch and of minibatches
ABOVE_FLOOR = 0.05  # nats
QUARTERS = 0.75  # of the updates
FAR = 0.01  # of the range of the exact Q: a network whose mean |Q - exact Q| is above it is far from the solution
OOD_MASS = 0.001  # of softmax Q, mean over the data: below, the values of OOD actions hardly matter

Log = dict[str, tuple[list[int], list[float]]]  # of one member that has finished: metric -> (updates, values)


def limit(batch_size: int | str) -> float:
    """How far the values of a CQL member that has converged may move, as a share of the largest."""
    return MOVED if batch_size == "full" else MOVED_BY_NOISE


def judged(log: Log, entropy: float | None, batch_size: int | str) -> dict | None:
    """``{"measure": "moved" | "excess", "value", "converged"}`` of one member; None where it cannot be judged.

    It cannot without a log entry in the first three quarters of the updates.

    Args:
        entropy: of the logged actions, None where it is not known.
    """
    steps = next(iter(log.values()))[0]
    before = max((n for n, step in enumerate(steps) if step <= QUARTERS * steps[-1]), default=None)
    if before is None:
        return None
    if "losses/cross_entropy" in log:
        if entropy is None:
            return None
        return _judgement("excess", log["losses/cross_entropy"][1][-1] - entropy, ABOVE_FLOOR)
    return _judgement("moved", moved(log, before), limit(batch_size))


def _judgement(measure: str, value: float, most: float) -> dict | None:
    return {"measure": measure, "value": value, "converged": value <= most} if math.isfinite(value) else None


def moved(log: Log, before: int) -> float:
    """How far q/data_mean or q/start moved since entry ``before``, as a share of the largest value of both."""
    curves = [log[name][1] for name in ("q/data_mean", "q/start")]
    largest = max(abs(value) for curve in curves for value in curve)
    return max(abs(curve[-1] - curve[before]) for curve in curves) / max(largest, 1e-12)


def words(convergence: dict | None) -> str:
    """What a table says beside a member: nothing of one that has converged or cannot be judged."""
    if convergence is None or convergence["converged"]:
        return ""
    return "not converged (" + (
        f"values moved {convergence['value']:.1%} in the last quarter)" if convergence["measure"] == "moved" else
        f"cross-entropy {convergence['value']:.2f} above its floor)")
