"""Start times on a grid, and what they use up: the rows of the time-indexed programme."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack

from .instance import Bools, Floats, Instance, Ints

# in steps: what arithmetic may lose
_TOLERANCE = 1e-8
_SHORTEST_WINDOW = 8
# Work is rounded down to this part of a step: solvers mistake coefficients that differ by a
# millionth for equal ones.
_WORK_PARTS = 64


@dataclass(frozen=True, eq=False)
class Starts:
    """Every (request, server, step) whose start would be in time, and their packing rows.

    Attributes:
        request: Of each start, shape ``(v,)``.
        server: Of each start, shape ``(v,)``.
        score: What it earns, shape ``(v,)``.
        use: What each start uses of each row's limit, sparse, shape ``(rows, v)``.
        limit: Of each row, shape ``(rows,)``.
    """

    request: Ints
    server: Ints
    score: Floats
    use: csr_array
    limit: Floats


@dataclass(frozen=True, eq=False)
class _Grid:
    """Starts in units of steps: start k lies in [earliest, latest], inside of [k, k + 1]."""

    arrival: Floats
    request: Ints
    server: Ints
    step: Ints
    earliest: Floats
    latest: Floats
    service: Floats

    @property
    def ends(self) -> Floats:
        """The earliest possible ends."""
        return self.earliest + self.service


def starts(instance: Instance, resolution_s: float) -> Starts:
    """Return the starts of ``instance`` on a grid of ``resolution_s`` seconds.

    The rows are relaxations: every schedule in continuous time, in which a request starts at s,
    becomes a solution by choosing the step that holds s. See :mod:`.time_indexed`. Rows that
    no choice can break are left out.
    """
    grid = _grid(instance, resolution_s)
    rows = [_once(instance, grid), _running(instance, grid), _present(instance, grid)]
    rows += [
        _work(instance, grid, length) for length in _window_lengths(grid.ends.max(initial=0.0))
    ]
    use = vstack([row[0] for row in rows], format="csr")
    limit = np.concatenate([row[1] for row in rows])
    binding = use.sum(axis=1) > limit + _TOLERANCE
    score = instance.score[grid.request, grid.server]
    return Starts(grid.request, grid.server, score, use[binding], limit[binding])


def _grid(instance: Instance, resolution_s: float) -> _Grid:
    def steps(seconds: Floats) -> Floats:
        return np.round(seconds / resolution_s, 9)

    arrival = steps(instance.arrival_s - instance.arrival_s.min(initial=np.inf))
    request, server = np.nonzero(instance.reachable & (instance.score > 0))
    service = steps(instance.service_s)[request, server]
    latest = arrival[request] + (steps(instance.deadline_s)[request] - service)
    first = np.floor(arrival[request]).astype(np.int64)
    pair, step = _ranges(first, np.floor(latest + _TOLERANCE).astype(np.int64) + 1)
    request = request[pair]
    return _Grid(
        arrival,
        request,
        server[pair],
        step,
        np.maximum(step, arrival[request]),
        np.minimum(step + 1, latest[pair]),
        service[pair],
    )


def _once(instance: Instance, grid: _Grid) -> tuple[csr_array, Floats]:
    """Each request starts at most once."""
    start = np.arange(len(grid.step))
    return _row_block(grid.request, start, None, np.ones(instance.requests), grid)


def _running(instance: Instance, grid: _Grid) -> tuple[csr_array, Floats]:
    """At the end of each step a server runs at most as many as it has slots.

    A request that starts in step k runs at the ends of steps k to (its earliest end, rounded
    down) - 1, wherever in step k it starts.
    """
    end = np.floor(grid.ends).astype(np.int64)
    steps = int(end.max(initial=0))
    start, step = _ranges(grid.step, end)
    limit = np.repeat(instance.slots.astype(np.float64), steps)
    return _row_block(grid.server[start] * steps + step, start, None, limit, grid)


def _present(instance: Instance, grid: _Grid) -> tuple[csr_array, Floats]:
    """After each arrival a server holds at most its capacity.

    Only arrivals raise the number in the system, so no other moment needs a row. A request is
    there from its own arrival until its earliest possible end.
    """
    until = np.searchsorted(grid.arrival, grid.ends - _TOLERANCE)
    start, arrival = _ranges(grid.request, until)
    n = instance.requests
    limit = np.repeat(instance.capacity.astype(np.float64), n)
    return _row_block(grid.server[start] * n + arrival, start, None, limit, grid)


def _work(instance: Instance, grid: _Grid, length: int) -> tuple[csr_array, Floats]:
    """In each window of ``length`` steps a server does at most slots times that work.

    Windows begin every half length. A start counts with the least work that it can do inside
    of the window. The overlap of [s, s + service] with a window rises, stays and falls as s
    grows, so over a step it is least at one end of the step.
    """
    half = length // 2
    latest_end = grid.latest + grid.service
    count = int(np.ceil(latest_end.max(initial=0.0) / half))
    first = np.maximum(np.floor((grid.earliest - length) / half), 0).astype(np.int64)
    start, window = _ranges(first, np.ceil(latest_end / half).astype(np.int64))
    begin, service = window * half, grid.service[start]

    def overlap(at: Floats) -> Floats:
        return np.minimum(at + service, begin + length) - np.maximum(at, begin)

    work = np.minimum(overlap(grid.earliest[start]), overlap(grid.latest[start]))
    work = np.floor(work * _WORK_PARTS) / _WORK_PARTS
    inside: Bools = work > 0
    row = (grid.server[start] * count + window)[inside]
    limit = np.repeat(instance.slots.astype(np.float64), count)
    return _row_block(row, start[inside], work[inside] / length, limit, grid)


def _window_lengths(steps: float) -> list[int]:
    doublings = max(0, int(np.ceil(np.log2(max(steps, 1.0) / _SHORTEST_WINDOW))))
    return [_SHORTEST_WINDOW << power for power in range(doublings + 1)]


def _row_block(
    row: Ints, start: Ints, use: Floats | None, limit: Floats, grid: _Grid
) -> tuple[csr_array, Floats]:
    values = np.ones(len(start)) if use is None else use
    shape = (len(limit), len(grid.step))
    return csr_array((values, (row, start)), shape=shape), limit


def _ranges(begin: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Return the whole numbers from each begin to before its stop, with the range of each."""
    counts = np.maximum(stop - begin, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return owner, np.arange(counts.sum()) - np.repeat(before - begin, counts)
