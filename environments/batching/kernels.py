"""The loops over iterations and requests, compiled.

They share a file because a loop's cached machine code holds what it calls, and is made anew only
when its own file changes.

``expert`` is one record of :data:`.records.EXPERT`, ``request`` are the records of one
sub-environment, ``running`` and ``waiting`` the item numbers of one expert, ``cost`` the five
costs in the order of :class:`.StepCosts`, ``limits`` the most running and the most prompt tokens
in an iteration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.compiled import compiled

NEVER = np.iinfo(np.int64).max


@compiled()
def first_refused(
    expert: NDArray[np.int64],
    item: NDArray[np.int64],
    now: NDArray[np.float64],
    prompt: NDArray[np.int64],
    answer: NDArray[np.int64],
    state: Any,
    request: Any,
    clock: NDArray[np.float64],
) -> int:
    """Return the first sub-environment whose request cannot be assigned, -1 if all can."""
    for e in range(now.shape[0]):
        if expert[e] == -1:
            continue
        if not (0 <= expert[e] < state.shape[1] and 0 <= item[e] < request.shape[1] - 1):
            return e
        if request[e, item[e]].sent or early(now[e], prompt[e], answer[e], state[e], clock[e]):
            return e
    return -1


@compiled()
def first_early(
    now: NDArray[np.float64],
    prompt: NDArray[np.int64],
    answer: NDArray[np.int64],
    state: Any,
    clock: NDArray[np.float64],
) -> int:
    """Return the first sub-environment where a request cannot come at ``now``, -1 if all can."""
    for e in range(now.shape[0]):
        if early(now[e], prompt[e], answer[e], state[e], clock[e]):
            return e
    return -1


@compiled()
def early(now: float, prompt: int, answer: int, experts: Any, clock: float) -> bool:
    """Return whether a request has no length, or comes at no time that can be now."""
    if not (prompt >= 1 and answer >= 1 and clock <= now < np.inf):
        return True
    for j in range(experts.shape[0]):
        expert = experts[j]
        if expert.span > 0.0:
            if expert.time <= now:
                return True
        elif expert.running + expert.waiting > 0 and expert.time < now:
            return True
    return False


@compiled()
def assign(
    expert: NDArray[np.int64],
    item: NDArray[np.int64],
    now: NDArray[np.float64],
    prompt: NDArray[np.int64],
    answer: NDArray[np.int64],
    state: Any,
    waiting: NDArray[np.int64],
    request: Any,
    kv_tokens: NDArray[np.int64],
    clock: NDArray[np.float64],
    accepted: NDArray[np.bool_],
) -> None:
    """Put every sub-environment's request into a queue; see :meth:`.ExpertBank.assign`."""
    for e in range(now.shape[0]):
        j, k = expert[e], item[e]
        accepted[e] = False
        if j == -1:
            continue
        clock[e] = now[e]
        fits = prompt[e] + answer[e] <= kv_tokens[j]
        if fits and state[e, j].waiting < waiting.shape[2]:
            accepted[e] = True
            join(k, now[e], prompt[e], answer[e], state[e, j], waiting[e, j], request[e])


@compiled()
def join(
    item: int,
    now: float,
    prompt: int,
    answer: int,
    expert: Any,
    waiting: NDArray[np.int64],
    request: Any,
) -> None:
    """Put a request at the end of a queue that has room."""
    row = request[item]
    row.arrival, row.prompt, row.answer = now, prompt, answer
    row.left, row.generated, row.sent = prompt, 0, 1
    if expert.running + expert.waiting == 0:
        expert.time = now
    waiting[expert.waiting] = item
    expert.waiting += 1


@compiled()
def advance(
    until: NDArray[np.float64],
    state: Any,
    running: NDArray[np.int64],
    waiting: NDArray[np.int64],
    request: Any,
    costs: NDArray[np.float64],
    kv_tokens: NDArray[np.int64],
    limits: NDArray[np.int64],
    clock: NDArray[np.float64],
    out: NDArray[np.int64],
    out_s: NDArray[np.float64],
) -> int:
    """Let time pass; return how many requests were written to the outputs."""
    count = 0
    for e in range(until.shape[0]):
        passed = until[e] if until[e] < np.inf else clock[e]
        for j in range(costs.shape[0]):
            expert, first = state[e, j], count
            count = run(
                expert,
                running[e, j],
                waiting[e, j],
                request[e],
                costs[j],
                kv_tokens[j],
                limits,
                until[e],
                out[1],
                count,
            )
            for i in range(first, count):
                row = request[e, out[1, i]]
                out[0, i], out[2, i] = e, j
                out_s[0, i], out_s[1, i] = row.arrival, row.first_token
                out_s[2, i], out_s[3, i] = row.finish, row.gpu
                if until[e] == np.inf:
                    passed = max(passed, row.finish)
            for i in range(expert.decoding):
                row = request[e, running[e, j, i]]
                row.generated = row.answer - (row.due - expert.steps)
        clock[e] = max(clock[e], passed)
    return count


@compiled()
def run(
    expert: Any,
    running: NDArray[np.int64],
    waiting: NDArray[np.int64],
    request: Any,
    cost: NDArray[np.float64],
    kv_tokens: int,
    limits: NDArray[np.int64],
    until: float,
    left: NDArray[np.int64],
    count: int,
) -> int:
    """Run one expert to ``until``; write who left to ``left`` from ``count`` on, return the end."""
    while True:
        if expert.span > 0.0:
            if expert.time > until:
                return count
            end_iteration(expert, running, request)
            if expert.steps == expert.next_due:
                count = leave(expert, running, request, left, count)
        if expert.running + expert.waiting == 0 or not expert.time < until:
            return count
        if expert.waiting > 0:
            admit(expert, running, waiting, request, kv_tokens, limits[0])
        if expert.decoding == expert.running:
            jump(expert, cost, until)
            if expert.steps == expert.next_due:
                count = leave(expert, running, request, left, count)
                continue
            if not expert.time < until:
                return count
        start_iteration(expert, running, request, cost, limits[1])


@compiled()
def admit(
    expert: Any,
    running: NDArray[np.int64],
    waiting: NDArray[np.int64],
    request: Any,
    kv_tokens: int,
    max_running: int,
) -> None:
    """Let the first of the queue in, as long as the next one fits."""
    came = 0
    while came < expert.waiting and expert.running < max_running:
        row = request[waiting[came]]
        need = row.prompt + row.answer
        if expert.kv + need > kv_tokens:
            break
        running[expert.running] = waiting[came]
        expert.running += 1
        expert.kv += need
        came += 1
    if came > 0:
        for i in range(expert.waiting):
            waiting[i] = waiting[i + came] if i + came < expert.waiting else -1
        expert.waiting -= came


@compiled()
def jump(expert: Any, cost: NDArray[np.float64], until: float) -> None:
    """Take all iterations that end by ``until`` and before anybody leaves, at once.

    Each of ``n`` sequences adds a token to the caches, so an iteration lasts ``growth`` longer
    than the one before, and ``m`` of them last ``m span + growth m (m - 1) / 2``.
    """
    n = expert.running
    span = cost[0] + cost[3] * n + cost[2] * expert.cached
    growth = cost[2] * n
    m = expert.next_due - expert.steps
    if expert.time + (m * span + growth * (m * (m - 1) / 2)) > until:
        gap, slope = until - expert.time, span - growth / 2
        m = int(2 * gap / (slope + np.sqrt(slope * slope + 2 * growth * gap)))
        # the root may be rounded up
        if expert.time + (m * span + growth * (m * (m - 1) / 2)) > until:
            m -= 1
    total = m * span + growth * (m * (m - 1) / 2)
    expert.time += total
    expert.busy += total
    expert.gpu += total / n
    expert.steps += m
    expert.cached += m * n


@compiled()
def start_iteration(
    expert: Any,
    running: NDArray[np.int64],
    request: Any,
    cost: NDArray[np.float64],
    chunk: int,
) -> None:
    """Give prompts their tokens of this iteration, and say how long it lasts."""
    n, prompt = expert.decoding, 0
    span = cost[0] + cost[3] * n + cost[2] * expert.cached
    while n < expert.running and prompt < chunk:
        row = request[running[n]]
        tokens = min(row.left, chunk - prompt)
        if row.left == row.prompt:
            # what it is charged is counted from here
            row.gpu = expert.gpu
        row.left -= tokens
        prompt += tokens
        n += 1
    if prompt > 0:
        span += cost[1] * prompt + cost[4]
    expert.span, expert.share = span, span / n
    expert.time += span


@compiled()
def end_iteration(expert: Any, running: NDArray[np.int64], request: Any) -> None:
    """Count the tokens of an iteration that is over; the prefilled ones have their first."""
    expert.busy += expert.span
    expert.gpu += expert.share
    expert.span = 0.0
    expert.steps += 1
    expert.cached += expert.decoding
    if expert.decoding == 0:
        expert.next_due = NEVER
    while expert.decoding < expert.running:
        row = request[running[expert.decoding]]
        if row.left > 0:
            break
        row.first_token = expert.time
        row.due = expert.steps + row.answer - 1
        expert.next_due = min(expert.next_due, row.due)
        expert.cached += row.prompt + 1
        expert.decoding += 1


@compiled()
def leave(
    expert: Any, running: NDArray[np.int64], request: Any, left: NDArray[np.int64], count: int
) -> int:
    """Take out who has all its tokens; the others close up."""
    kept, decoding = 0, 0
    expert.next_due = NEVER
    for i in range(expert.running):
        k = running[i]
        row = request[k]
        if i < expert.decoding and row.due == expert.steps:
            row.finish, row.gpu = expert.time, expert.gpu - row.gpu
            row.generated = row.answer
            expert.kv -= row.prompt + row.answer
            expert.cached -= row.prompt + row.answer
            left[count] = k
            count += 1
            continue
        if i < expert.decoding:
            decoding += 1
            expert.next_due = min(expert.next_due, row.due)
        running[kept] = k
        kept += 1
    for i in range(kept, expert.running):
        running[i] = -1
    expert.running, expert.decoding = kept, decoding
    if decoding == 0 and kept == 0:
        # nobody is being charged; small numbers round less
        expert.gpu = 0.0
    return count


@compiled()
def value_if(
    now: NDArray[np.float64],
    prompt: NDArray[np.int64],
    answer: NDArray[np.int64],
    worth: NDArray[np.float64],
    own_worth: NDArray[np.float64],
    bound: float,
    state: Any,
    running: NDArray[np.int64],
    waiting: NDArray[np.int64],
    request: Any,
    costs: NDArray[np.float64],
    kv_tokens: NDArray[np.int64],
    limits: NDArray[np.int64],
    value: NDArray[np.float64],
) -> None:
    """Compare every expert's future with one request more; see :meth:`.ExpertBank.value_if`."""
    last = request.shape[1] - 1
    batch, queue = running.shape[2], waiting.shape[2]
    # a copy of one expert, and of the requests there
    one, some = np.empty(1, state.dtype), np.empty(last + 1, request.dtype)
    batch_copy, queue_copy = np.empty(batch, np.int64), np.empty(queue, np.int64)
    left = np.empty(batch + queue, np.int64)
    for e in range(now.shape[0]):
        for j in range(costs.shape[0]):
            expert, value[e, j] = state[e, j], 0.0
            if prompt[e] + answer[e] > kv_tokens[j] or expert.waiting >= queue:
                continue
            for more in range(2):
                if more == 0 and expert.running + expert.waiting == 0:
                    continue
                one[0] = expert
                for i in range(expert.running):
                    batch_copy[i] = running[e, j, i]
                    some[batch_copy[i]] = request[e, batch_copy[i]]
                for i in range(expert.waiting):
                    queue_copy[i] = waiting[e, j, i]
                    some[queue_copy[i]] = request[e, queue_copy[i]]
                if more:
                    join(last, now[e], prompt[e], answer[e], one[0], queue_copy, some)
                count = run(
                    one[0],
                    batch_copy,
                    queue_copy,
                    some,
                    costs[j],
                    kv_tokens[j],
                    limits,
                    np.inf,
                    left,
                    0,
                )
                for i in range(count):
                    k = left[i]
                    if (some[k].finish - some[k].arrival) / some[k].answer < bound:
                        gain = own_worth[e, j] if k == last else worth[e, k]
                        value[e, j] += gain if more else -gain
