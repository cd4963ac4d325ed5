"""The compiled inner loop of the local search over assignments.

Importing this module loads the compiler.
"""

from __future__ import annotations

import numpy as np

from icl_optimizer.environments.compiled import compiled

from .instance import Floats, Ints


@compiled()
def server_score(
    server: int,
    arrival: Floats,
    service: Floats,
    score: Floats,
    deadline: Floats,
    assignment: Ints,
    free: Floats,
    leaving: Floats,
) -> float:
    """Return what one server's requests score, with the rules of :class:`.Server`.

    Args:
        server: Which one; dropped requests, -1, score 0.
        arrival: As in :class:`.Instance`, like the next three.
        service: Shape ``(n, m)``.
        score: Shape ``(n, m)``.
        deadline: Shape ``(n,)``.
        assignment: Server of each request, shape ``(n,)``.
        free: Room to work in, one number per slot.
        leaving: Room to work in, one number per place in the system.
    """
    total = 0.0
    if server < 0:
        return total
    free[:] = -np.inf
    leaving[:] = -np.inf
    for i in range(len(arrival)):
        if assignment[i] != server:
            continue
        now = arrival[i]
        place = 0
        while place < len(leaving) and leaving[place] > now:
            place += 1
        if place == len(leaving):
            continue
        slot = 0
        for other in range(1, len(free)):
            if free[other] < free[slot]:
                slot = other
        finish = max(now, free[slot]) + service[i, server]
        free[slot] = leaving[place] = finish
        if finish <= now + deadline[i]:
            total += score[i, server]
    return total


@compiled()
def anneal(
    arrival: Floats,
    service: Floats,
    score: Floats,
    deadline: Floats,
    capacity: Ints,
    slots: Ints,
    assignment: Ints,
    best: Ints,
    mover: Ints,
    target: Ints,
    partner: Ints,
    patience: Floats,
) -> None:
    """Try moves one after another; change ``assignment`` in place.

    A move sends request ``mover`` to server ``target``, or, where ``partner`` is not negative,
    exchanges the servers of the two. It stays if the total score falls by no more than its
    ``patience``, shape ``(moves,)`` like the other three.

    Args:
        arrival: As in :class:`.Instance`, like the next five.
        service: Shape ``(n, m)``.
        score: Shape ``(n, m)``.
        deadline: Shape ``(n,)``.
        capacity: Shape ``(m,)``.
        slots: Shape ``(m,)``.
        assignment: Server of each request, -1 for none, shape ``(n,)``; changed.
        best: The best assignment so far; changed if a better one turns up.
        mover: A request per move.
        target: A server per move, or -1.
        partner: A request per move, or -1.
        patience: At least 0.
    """
    free, leaving = np.empty(slots.max()), np.empty(capacity.max())
    value = np.zeros(len(capacity) + 1)  # the last one, also index -1, is for dropped requests
    top = 0.0
    for j in range(len(capacity)):
        given = (arrival, service, score, deadline)
        room = (free[: slots[j]], leaving[: capacity[j]])
        value[j] = server_score(j, *given, assignment, *room)
        top += server_score(j, *given, best, *room)
    for move in range(len(mover)):
        i, k = mover[move], partner[move]
        old = assignment[i]
        new = assignment[k] if k >= 0 else target[move]
        if new == old:
            continue
        assignment[i] = new
        if k >= 0:
            assignment[k] = old
        tried = (arrival, service, score, deadline, assignment)
        at_old = server_score(old, *tried, free[: slots[old]], leaving[: capacity[old]])
        at_new = server_score(new, *tried, free[: slots[new]], leaving[: capacity[new]])
        if at_old + at_new < value[old] + value[new] - patience[move]:
            assignment[i] = old
            if k >= 0:
                assignment[k] = new
            continue
        value[old], value[new] = at_old, at_new
        total = value.sum()
        if total > top + 1e-12:
            top = total
            best[:] = assignment
