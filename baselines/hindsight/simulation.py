"""Servers with FIFO queues, request by request: the exact outcome of an assignment."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from .instance import Bools, Floats, Instance, Ints, checked_assignment


class Server:
    """One server with its queue, on which requests arrive in order of time.

    Since service times are known and the order is FIFO, a request's finish is settled when it
    arrives.

    Args:
        capacity: Most requests in the system, waiting or in service.
        slots: How many are in service at a time.
    """

    def __init__(self, capacity: int, slots: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._free = [-np.inf] * slots  # a heap: when each slot has done all it was given
        self._leaving: list[float] = []  # a heap: when those in the system finish

    def is_full(self, now: float) -> bool:
        """Return whether a request that arrives now would be dropped."""
        while self._leaving and self._leaving[0] <= now:
            heapq.heappop(self._leaving)
        return len(self._leaving) >= self._capacity

    def finish(self, now: float, service: float) -> float:
        """Return when a request that arrives now would finish, in seconds."""
        return max(now, self._free[0]) + service

    def backlog(self, now: float) -> float:
        """Return the work that is left, in seconds of service."""
        return sum(max(0.0, free - now) for free in self._free)

    def admit(self, now: float, service: float) -> float:
        """Take a request into the queue and return when it finishes; nan if it is dropped."""
        if self.is_full(now):
            return float("nan")
        finish = self.finish(now, service)
        heapq.heapreplace(self._free, finish)
        heapq.heappush(self._leaving, finish)
        return finish


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of every request.

    Attributes:
        assignment: The server each was sent to, -1 for none, shape ``(n,)``.
        finish_s: When each finished, in seconds; nan if it was dropped, shape ``(n,)``.
        in_time: Whether it finished by its deadline, shape ``(n,)``.
        scores: What each scored, 0 unless in time, shape ``(n,)``.
    """

    assignment: Ints
    finish_s: Floats
    in_time: Bools
    scores: Floats

    @property
    def total_score(self) -> float:
        """The sum of the scores."""
        return float(self.scores.sum())

    @property
    def deadlines_met(self) -> int:
        """How many requests finished in time."""
        return int(self.in_time.sum())


def new_servers(instance: Instance) -> list[Server]:
    """Return the servers of ``instance``, empty."""
    pairs = zip(instance.capacity.tolist(), instance.slots.tolist(), strict=True)
    return [Server(capacity, slots) for capacity, slots in pairs]


def simulate(instance: Instance, assignment: Ints) -> Outcome:
    """Return what becomes of every request under an assignment.

    Args:
        instance: Requests and servers.
        assignment: The server each request is sent to on arrival, -1 to drop it, ``(n,)``.

    Raises:
        ConfigurationError: The assignment does not fit the instance.
    """
    assignment = checked_assignment(instance, assignment)
    servers = new_servers(instance)
    finish = np.full(instance.requests, np.nan)
    arrival, service = instance.arrival_s.tolist(), instance.service_s.tolist()
    for i, j in enumerate(assignment.tolist()):
        if j >= 0:
            finish[i] = servers[j].admit(arrival[i], service[i][j])
    return outcome_of(instance, assignment, finish)


def outcome_of(instance: Instance, assignment: Ints, finish_s: Floats) -> Outcome:
    """Return the outcome of finish times that are already known, nan for dropped requests."""
    # a comparison with nan is false: what was dropped is not in time
    in_time: Bools = finish_s <= instance.arrival_s + instance.deadline_s
    chosen = instance.score[np.arange(instance.requests), np.maximum(assignment, 0)]
    return Outcome(assignment, finish_s, in_time, np.where(in_time, chosen, 0.0))
