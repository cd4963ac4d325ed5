"""The most quality of service that experts which batch could give, with everything known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array, vstack

Floats = NDArray[np.float64]
WINDOW_S = 30.0
"""Length of the windows of time in which work must fit, seconds; they overlap by half."""


@dataclass(frozen=True, eq=False)
class RoutingInstance:
    """An episode in hindsight (``K`` requests, ``N`` experts).

    Attributes:
        arrival_s: Arrivals, seconds, ``(K,)``.
        tokens: Answer tokens, ``(K,)``.
        score: True quality of each expert's answer, ``(K, N)``.
        work_s: Least busy time of the expert that the request can cost, ``(K, N)``, seconds.
        alone_s: Time to completion if nobody else were there, ``(K, N)``, seconds.
        bound_s: Latency per token allowed.
    """

    arrival_s: Floats
    tokens: Floats
    score: Floats
    work_s: Floats
    alone_s: Floats
    bound_s: float


def routing_bound(instance: RoutingInstance) -> float:
    """Return an upper bound on the sum of qualities of service, whatever the decisions.

    A linear programme: requests may be split between experts, and count fully if they could be in
    time alone; each costs the least busy time it can (a full batch all along shares the base time
    of every iteration); the work of requests whose whole time (from arrival until they are late)
    lies in a window must fit into it. Memory and the order of iterations are left out. So the bound
    is loose where load is light, and no policy reaches it.

    Raises:
        RuntimeError: The solver failed.
    """
    value = np.where(instance.alone_s < instance.tokens[:, None] * instance.bound_s, 1.0, 0.0)
    value = value * instance.score
    requests, experts = np.nonzero(value > 0)
    if not len(requests):
        return 0.0
    count = len(requests)
    places = np.arange(count)
    once = coo_array((np.ones(count), (requests, places)), shape=(len(value), count))
    rows, columns, work, limits = _windows(instance, requests, experts)
    fits = coo_array((work, (rows, columns)), shape=(len(limits), count))
    result = linprog(
        -value[requests, experts],
        A_ub=vstack([once, fits]).tocsr(),
        b_ub=np.concatenate([np.ones(len(value)), limits]),
        bounds=(0, 1),
        method="highs",
    )
    if not result.success:
        raise RuntimeError(f"the bound could not be computed: {result.message}")
    return float(-result.fun)


def _windows(
    instance: RoutingInstance, requests: NDArray[np.int64], experts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return rows, columns and work of the constraints, and how much time each window has."""
    begin = instance.arrival_s[requests]
    end = begin + instance.bound_s * instance.tokens[requests]
    work = instance.work_s[requests, experts]
    total = float(end.max())
    spans = [(0.0, total)]
    starts = np.arange(0.0, total, WINDOW_S / 2)
    spans += [(float(start), float(start) + WINDOW_S) for start in starts]
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    limits: list[float] = []
    number = int(instance.score.shape[1])
    for a, b in spans:
        inside = np.flatnonzero((begin >= a) & (end <= b))
        if len(inside):
            rows.append(len(limits) + experts[inside])
            columns.append(inside)
            limits += [b - a] * number
    row, column = np.concatenate(rows), np.concatenate(columns)
    return row, column, work[column], np.array(limits)
