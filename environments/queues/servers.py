"""A bank of FIFO servers in many sub-environments at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Bools, Floats, Ints
from icl_optimizer.errors import ConfigurationError

DROPPED = np.inf
"""Start and finish of a request that found its server full."""

REQUEST = np.dtype(
    [
        ("arrival", np.float64),
        ("start", np.float64),
        ("finish", np.float64),
        ("amount", np.float64),
        ("server", np.int64),
    ]
)


@dataclass(frozen=True)
class Finished:
    """Requests that left the servers, in order of sub-environment and finish; each ``(n,)``.

    Attributes:
        env: Sub-environment.
        item: Number of the request in its episode.
        server: Where it was served.
        arrival_s: Arrival, seconds.
        start_s: Beginning of service, ``inf`` of a request that gave up before.
        finish_s: End of service, or when it gave up.
    """

    env: Ints
    item: Ints
    server: Ints
    arrival_s: Floats
    start_s: Floats
    finish_s: Floats

    def __len__(self) -> int:
        """Return how many finished."""
        return len(self.env)


class QueueBank:
    """``S`` servers, each with slots that serve at the same time and one queue, ``E`` times over.

    Requests are served first come, first served, without preemption; a server that has room never
    idles while one waits. So the start of a request is known when it is assigned, and the state
    between assignments needs no clock of its own: :meth:`advance` moves to any later time and
    returns what finished. One compiled loop does the work of a step for all sub-environments.

    Args:
        num_envs: Number of sub-environments ``E``.
        slots: Requests that each server serves at the same time, ``(S,)``.
        capacity: Most requests in each server, waiting and in service, ``(S,)``.
        items: Most requests in an episode.
        recent: Completions over which :attr:`mean_response` is taken.

    Attributes:
        in_system: Requests waiting and in service, ``(E, S)``.
        load: Their amounts (tokens) taken together, ``(E, S)``.
    """

    def __init__(
        self,
        num_envs: int,
        slots: Sequence[int] | Ints,
        capacity: Sequence[int] | Ints,
        items: int,
        *,
        recent: int = 20,
    ) -> None:
        """Set up empty servers."""
        self.slots = np.asarray(slots, dtype=np.int64)
        self.capacity = np.asarray(capacity, dtype=np.int64)
        _check(self.slots, self.capacity, items, recent)
        servers = len(self.slots)
        shape = (num_envs, servers)
        # no more are in flight at once than the servers hold, nor than an episode has
        flying = min(int(self.capacity.sum()), items)
        self.in_system = np.zeros(shape, dtype=np.int64)
        self.load = np.zeros(shape)
        self._slot_free = np.zeros((*shape, int(self.slots.max())))
        self._request = np.zeros((num_envs, items), dtype=REQUEST)
        self._heap_time = np.zeros((num_envs, flying))
        self._heap_item = np.zeros((num_envs, flying), dtype=np.int64)
        self._heap_size = np.zeros(num_envs, dtype=np.int64)
        self._recent = np.zeros((*shape, recent))
        self._recent_sum = np.zeros(shape)
        self._recent_count = np.zeros(shape, dtype=np.int64)
        self._last_arrival = np.zeros(num_envs)
        self._out = np.zeros((3, num_envs * flying), dtype=np.int64)
        self._out_s = np.zeros((3, num_envs * flying))
        self._rows, self._ones = np.arange(num_envs), np.ones(num_envs)
        self._forever = np.full(num_envs, np.inf)

    def reset(self, indices: Ints) -> None:
        """Empty the servers of the sub-environments ``indices``; what was in flight is gone."""
        servers = (self.in_system, self.load, self._slot_free)
        queues = (self._heap_size, self._last_arrival)
        responses = (self._recent, self._recent_sum, self._recent_count)
        array: NDArray[Any]
        for array in (*servers, *queues, *responses):
            array[indices] = 0

    def assign(
        self,
        server: Ints,
        item: Ints,
        now_s: Floats,
        service_s: Floats,
        amount: Floats | None = None,
        patience_s: Floats | None = None,
    ) -> Bools:
        """Give one request per sub-environment to a server, after :meth:`advance` to its arrival.

        Args:
            server: Which server, ``(E,)``.
            item: Number of the request in its episode, ``(E,)``.
            now_s: Arrival, seconds, ``(E,)``.
            service_s: Time in service there, seconds, ``(E,)``.
            amount: What it adds to :attr:`load`, ``(E,)``; 1 each when None.
            patience_s: Time after which it gives up and leaves, waiting or in service, seconds,
                ``(E,)``; never when None.

        Returns:
            Which were accepted, ``(E,)``; the others found the server full and are gone.

        Raises:
            ConfigurationError: A server or item that does not exist, a service time that is
                negative or not finite, or an arrival before an earlier one or later than a
                completion that :meth:`advance` has not taken out. Nothing was assigned.
        """
        from icl_optimizer.environments.queues import kernels

        amount = self._ones if amount is None else amount
        patience_s = self._forever if patience_s is None else patience_s
        self._check_shapes(server=server, item=item, now_s=now_s, service_s=service_s)
        self._check_shapes(amount=amount, patience_s=patience_s)
        self._check_requests(server, item, now_s, service_s)
        accepted = np.empty(len(server), dtype=np.bool_)
        kernels.assign(
            server,
            item,
            now_s,
            service_s,
            amount,
            patience_s,
            self._slot_free,
            self.slots,
            self.capacity,
            self.in_system,
            self.load,
            self._heap_time,
            self._heap_item,
            self._heap_size,
            self._last_arrival,
            self._request,
            accepted,
        )
        return accepted

    def advance(self, until_s: Floats) -> Finished:
        """Let time pass to ``until_s`` ``(E,)``, ``inf`` to the end, and return what finished."""
        from icl_optimizer.environments.queues import kernels

        self._check_shapes(until_s=until_s)
        count = kernels.advance(
            until_s,
            self.in_system,
            self.load,
            self._heap_time,
            self._heap_item,
            self._heap_size,
            self._request,
            self._recent,
            self._recent_sum,
            self._recent_count,
            self._out,
            self._out_s,
        )
        return Finished(*self._out[:, :count].copy(), *self._out_s[:, :count].copy())

    def finish_if(self, now_s: Floats, service_s: Floats) -> Floats:
        """Return when a request would finish at each server, ``inf`` where it is full.

        Args:
            now_s: Arrival, seconds, ``(E,)``.
            service_s: Its time in service at each server, ``(E, S)``.
        """
        free = np.where(self._is_slot, self._slot_free, np.inf).min(axis=2)
        finish = np.maximum(now_s[:, None], free) + service_s
        return np.where(self.full, DROPPED, finish)

    def times(self, item: Ints) -> tuple[Floats, Floats]:
        """Return start and finish of one request per sub-environment, each ``(E,)``."""
        rows = self._request[self._rows, item]
        return rows["start"], rows["finish"]

    @property
    def full(self) -> Bools:
        """Whether each server is full, ``(E, S)``."""
        return self.in_system >= self.capacity

    @property
    def waiting(self) -> Ints:
        """Requests that wait for a slot, ``(E, S)``."""
        # a server with a free slot lets nobody wait
        return np.asarray(np.maximum(self.in_system - self.slots, 0))

    @property
    def active(self) -> Ints:
        """Requests in service, ``(E, S)``."""
        return np.minimum(self.in_system, self.slots)

    @property
    def mean_response(self) -> Floats:
        """Mean response time of the last completions of each server, seconds, ``(E, S)``."""
        known = np.minimum(self._recent_count, self._recent.shape[2])
        return np.where(known > 0, self._recent_sum / np.maximum(known, 1), 0.0)

    def backlog(self, now_s: Floats) -> Floats:
        """Return the work that each server still has, seconds over all slots, ``(E, S)``."""
        left = np.maximum(self._slot_free - now_s[:, None, None], 0.0)
        return np.asarray(np.where(self._is_slot, left, 0.0).sum(axis=2))

    def _check_shapes(self, **arrays: NDArray[Any]) -> None:
        for name, values in arrays.items():
            if values.shape != self._rows.shape:
                raise ConfigurationError(
                    f"{name} has shape {values.shape}; allowed: {self._rows.shape}, one per "
                    "sub-environment."
                )

    def _check_requests(self, server: Ints, item: Ints, now_s: Floats, service_s: Floats) -> None:
        """Raise for what the compiled loop, which checks no bounds, must not see."""
        from icl_optimizer.environments.queues import kernels

        servers, items = len(self.slots), self._request.shape[1]
        e = kernels.first_refused(
            server,
            item,
            now_s,
            service_s,
            servers,
            items,
            self._last_arrival,
            self._heap_time,
            self._heap_size,
        )
        if e >= 0:
            raise ConfigurationError(
                f"the request of sub-environment {e} is number {item[e]} for server {server[e]} at "
                f"{now_s[e]:g} s, {service_s[e]:g} s of service; allowed: numbers below {items}, "
                f"servers below {servers}, times that are finite and do not run backwards (the "
                f"last arrival was at {self._last_arrival[e]:g} s) after advance() to the arrival."
            )

    @property
    def _is_slot(self) -> NDArray[np.bool_]:
        return np.asarray(np.arange(self._slot_free.shape[2]) < self.slots[:, None])


def _check(slots: Ints, capacity: Ints, items: int, recent: int) -> None:
    if slots.ndim != 1 or not len(slots) or (slots < 1).any():
        raise ConfigurationError(f"slots are {slots.tolist()}; allowed: at least 1 per server.")
    if capacity.shape != slots.shape or (capacity < slots).any():
        raise ConfigurationError(
            f"capacity is {capacity.tolist()}; allowed: one number per server, no less than its "
            f"slots, which are {slots.tolist()}."
        )
    for name, value in (("items", items), ("recent", recent)):
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; allowed: at least 1.")
