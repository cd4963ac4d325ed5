"""Schedules by somebody who knows the future: what a policy could have scored, from below."""

from __future__ import annotations

import numpy as np

from icl_optimizer.errors import ConfigurationError

from .instance import Instance, Ints, checked_assignment
from .simulation import Outcome, Server, new_servers, outcome_of, simulate

# Chosen on Poisson arrivals at 2, 4 and 8 requests/s on four servers, where nearby values were
# within 1 %. Temperatures are in mean scores.
_HOT, _COLD = 0.2, 0.02
_SWAPS = 0.6


def clairvoyant_greedy(instance: Instance) -> Outcome:
    """Decide greedily in order of arrival, with true service times and scores.

    A request goes to the server with the highest score among those that finish it in time (then
    the earliest finish, then the first). If there is none it goes where it hurts least: to a
    full server, which drops it, else to the one with the most work left. It does not look
    ahead, so it is a reference and a lower bound of the optimum; under overload a policy that
    keeps fast servers for short requests beats it.
    """
    servers = new_servers(instance)
    assignment = np.empty(instance.requests, dtype=np.int64)
    finish = np.empty(instance.requests)
    rows = zip(
        instance.arrival_s.tolist(),
        instance.service_s.tolist(),
        instance.score.tolist(),
        instance.deadline_s.tolist(),
        strict=True,
    )
    for i, (now, service, score, deadline) in enumerate(rows):
        j = _choice(servers, now, service, score, deadline)
        assignment[i] = j
        finish[i] = servers[j].admit(now, service[j])
    return outcome_of(instance, assignment, finish)


def improved(
    instance: Instance, rounds: int = 2000, *, seed: int = 0, start: Ints | None = None
) -> Outcome:
    """Improve a schedule by simulated annealing on the exact system; requests may be dropped.

    A move sends one request elsewhere, or drops it, or exchanges two that arrive within a
    deadline of each other. The result is never worse than the start, and what would be
    late is dropped. A round costs time proportional to n squared.

    Args:
        instance: Requests and servers.
        rounds: As many times n moves are tried, at least 1.
        seed: Same seed, same result.
        start: The assignment to improve, shape ``(n,)``; the greedy one if None.

    Raises:
        ConfigurationError: ``rounds`` is below 1, or ``start`` does not fit.
    """
    if rounds < 1:
        raise ConfigurationError(f"rounds is {rounds}; allowed: whole numbers from 1.")
    first = clairvoyant_greedy(instance).assignment if start is None else start
    assignment = _without_late(instance, checked_assignment(instance, first))
    if instance.score_limit == 0:
        return simulate(instance, assignment)
    best = _anneal(instance, assignment, rounds, np.random.default_rng(seed))
    return simulate(instance, _without_late(instance, best))


def _choice(
    servers: list[Server], now: float, service: list[float], score: list[float], deadline: float
) -> int:
    full = [server.is_full(now) for server in servers]
    ends = [server.finish(now, service[j]) for j, server in enumerate(servers)]
    usable = [j for j, end in enumerate(ends) if not full[j] and end <= now + deadline]
    if usable:
        return max(usable, key=lambda j: (score[j], -ends[j]))
    return max(range(len(servers)), key=lambda j: (full[j], servers[j].backlog(now)))


def _without_late(instance: Instance, assignment: Ints) -> Ints:
    """Drop what is not in time; the others finish no later for it."""
    return np.where(simulate(instance, assignment).in_time, assignment, -1)


def _anneal(instance: Instance, assignment: Ints, rounds: int, rng: np.random.Generator) -> Ints:
    from .search import anneal

    n, arrival, reach = instance.requests, instance.arrival_s, instance.deadline_s.max()
    near = np.searchsorted(arrival, arrival - reach), np.searchsorted(arrival, arrival + reach)
    # as many places as requests are as good as more, and take less time to look through
    capacity = np.minimum(instance.capacity, n)
    slots = np.minimum(instance.slots, n)
    mean_score = instance.score.mean()
    best = assignment.copy()
    for heat in mean_score * np.geomspace(_HOT, _COLD, rounds):
        mover = rng.integers(n, size=n)
        partner = rng.integers(near[0][mover], near[1][mover])
        anneal(
            arrival,
            instance.service_s,
            instance.score,
            instance.deadline_s,
            capacity,
            slots,
            assignment,
            best,
            mover,
            rng.integers(-1, instance.servers, size=n),
            np.where(rng.random(n) < _SWAPS, partner, -1),
            heat * rng.exponential(size=n),
        )
    return best
