"""The loops over requests: one compiled pass per step, whatever is in flight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.compiled import compiled


@compiled()
def first_refused(
    server: NDArray[np.int64],
    item: NDArray[np.int64],
    now: NDArray[np.float64],
    service: NDArray[np.float64],
    servers: int,
    items: int,
    last_arrival: NDArray[np.float64],
    heap_time: NDArray[np.float64],
    heap_size: NDArray[np.int64],
) -> int:
    """Return the first sub-environment whose request cannot be assigned, -1 if all can."""
    for e in range(server.shape[0]):
        known = 0 <= server[e] < servers and 0 <= item[e] < items
        forward = now[e] >= last_arrival[e] and not (heap_size[e] > 0 and heap_time[e, 0] <= now[e])
        if not (known and forward and 0 <= service[e] < np.inf and now[e] < np.inf):
            return e
    return -1


@compiled()
def assign(
    server: NDArray[np.int64],
    item: NDArray[np.int64],
    now: NDArray[np.float64],
    service: NDArray[np.float64],
    amount: NDArray[np.float64],
    patience: NDArray[np.float64],
    slot_free: NDArray[np.float64],
    slots: NDArray[np.int64],
    capacity: NDArray[np.int64],
    in_system: NDArray[np.int64],
    load: NDArray[np.float64],
    heap_time: NDArray[np.float64],
    heap_item: NDArray[np.int64],
    heap_size: NDArray[np.int64],
    last_arrival: NDArray[np.float64],
    request: Any,
    accepted: NDArray[np.bool_],
) -> None:
    """Give every sub-environment's request to its server; see :meth:`.QueueBank.assign`.

    A server that serves first come, first served without preemption takes each request at
    ``max(arrival, earliest free slot)``, known at once (Kiefer and Wolfowitz 1955). That holds
    with requests that give up, too: when those ahead leave is known already.
    """
    for e in range(server.shape[0]):
        j, k = server[e], item[e]
        row = request[e, k]
        row.server, row.arrival, row.amount = j, now[e], amount[e]
        last_arrival[e] = now[e]
        accepted[e] = in_system[e, j] < capacity[j]
        if not accepted[e]:
            row.start, row.finish = np.inf, np.inf
            continue
        first = 0
        for c in range(1, slots[j]):
            if slot_free[e, j, c] < slot_free[e, j, first]:
                first = c
        start = max(now[e], slot_free[e, j, first])
        gives_up = now[e] + patience[e]
        if start < gives_up:
            finish = min(start + service[e], gives_up)
            slot_free[e, j, first] = finish
        else:
            start, finish = np.inf, gives_up
        row.start, row.finish = start, finish
        in_system[e, j] += 1
        load[e, j] += amount[e]
        # sift the request up the heap of finish times
        place = heap_size[e]
        heap_size[e] += 1
        while place > 0:
            parent = (place - 1) // 2
            if heap_time[e, parent] <= finish:
                break
            heap_time[e, place], heap_item[e, place] = heap_time[e, parent], heap_item[e, parent]
            place = parent
        heap_time[e, place], heap_item[e, place] = finish, k


@compiled()
def advance(
    until: NDArray[np.float64],
    in_system: NDArray[np.int64],
    load: NDArray[np.float64],
    heap_time: NDArray[np.float64],
    heap_item: NDArray[np.int64],
    heap_size: NDArray[np.int64],
    request: Any,
    recent: NDArray[np.float64],
    recent_sum: NDArray[np.float64],
    recent_count: NDArray[np.int64],
    out: NDArray[np.int64],
    out_s: NDArray[np.float64],
) -> int:
    """Take out what has finished by ``until``; return how much was written to the outputs."""
    window = recent.shape[2]
    count = 0
    for e in range(until.shape[0]):
        while heap_size[e] > 0 and heap_time[e, 0] <= until[e]:
            k = heap_item[e, 0]
            row = request[e, k]
            j = row.server
            in_system[e, j] -= 1
            # an empty server has no load, whatever rounding left
            load[e, j] = load[e, j] - row.amount if in_system[e, j] > 0 else 0.0
            response = row.finish - row.arrival
            place = recent_count[e, j] % window
            recent_sum[e, j] += response - recent[e, j, place]
            recent[e, j, place] = response
            recent_count[e, j] += 1
            out[0, count], out[1, count], out[2, count] = e, k, j
            out_s[0, count], out_s[1, count], out_s[2, count] = row.arrival, row.start, row.finish
            count += 1
            # the last leaf takes the root's place and sinks
            heap_size[e] -= 1
            size = heap_size[e]
            time, last = heap_time[e, size], heap_item[e, size]
            place = 0
            while True:
                child = 2 * place + 1
                if child >= size:
                    break
                if child + 1 < size and heap_time[e, child + 1] < heap_time[e, child]:
                    child += 1
                if heap_time[e, child] >= time:
                    break
                heap_time[e, place], heap_item[e, place] = heap_time[e, child], heap_item[e, child]
                place = child
            if size > 0:
                heap_time[e, place], heap_item[e, place] = time, last
    return count
