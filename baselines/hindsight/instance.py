"""What is known in hindsight about requests and servers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_POSITIVE = ("service_s", "deadline_s")


@dataclass(frozen=True, eq=False)
class Instance:
    """n requests and m servers, with everything that a policy would only learn later.

    Each server is a FIFO queue with ``slots`` places of service. A request that finds
    ``capacity`` requests in the system (waiting or in service) is dropped. One that finishes
    later than ``deadline_s`` after its arrival scores 0 and occupies its server all the same.

    Attributes:
        arrival_s: When each request arrives, in seconds, in order, shape ``(n,)``.
        service_s: How long each request would take on each server, in seconds, above 0, shape
            ``(n, m)``; in the paper the tokens P over the speed delta.
        score: What each request would score on each server if in time, at least 0, ``(n, m)``.
        deadline_s: How long after its arrival a request may finish, in seconds, above 0, ``(n,)``.
        capacity: Most requests in the system of each server, at least 1, shape ``(m,)``.
        slots: How many requests each server serves at a time, 1 to ``capacity``, shape ``(m,)``.
    """

    arrival_s: Floats
    service_s: Floats
    score: Floats
    deadline_s: Floats
    capacity: Ints
    slots: Ints

    def __post_init__(self) -> None:
        """Copy the arrays, make them read-only and check them.

        Raises:
            ConfigurationError: A shape does not fit, or a value is not allowed.
        """
        for name in ("arrival_s", "service_s", "score", "deadline_s"):
            self._keep(name, np.array(getattr(self, name), dtype=np.float64))
        for name in ("capacity", "slots"):
            self._keep(name, _whole(name, np.array(getattr(self, name))))
        self._check_shapes()
        self._check_values()

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return len(self.arrival_s)

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return len(self.capacity)

    @property
    def reachable(self) -> Bools:
        """Which requests an idle server would finish in time, shape ``(n, m)``."""
        reachable: Bools = self.service_s <= self.deadline_s[:, None]
        return reachable

    @property
    def score_limit(self) -> float:
        """The total score if no request had to wait: a bound that needs no solver."""
        return float(np.where(self.reachable, self.score, 0.0).max(axis=1, initial=0.0).sum())

    def _keep(self, name: str, values: Floats | Ints) -> None:
        values.flags.writeable = False
        object.__setattr__(self, name, values)

    def _check_shapes(self) -> None:
        n, m = self.arrival_s.size, self.capacity.size
        if m == 0:
            raise ConfigurationError("capacity is empty; allowed: one value per server.")
        for name, shape in {
            "arrival_s": (n,),
            "capacity": (m,),
            "service_s": (n, m),
            "score": (n, m),
            "deadline_s": (n,),
            "slots": (m,),
        }.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ConfigurationError(
                    f"{name} has shape {found}; allowed: {shape} for {n} arrivals and "
                    f"{m} capacities."
                )

    def _check_values(self) -> None:
        for name in ("arrival_s", "service_s", "score", "deadline_s"):
            _require(name, getattr(self, name), np.isfinite(getattr(self, name)), "finite numbers")
        for name in _POSITIVE:
            _require(name, getattr(self, name), getattr(self, name) > 0, "seconds above 0")
        _require("score", self.score, self.score >= 0, "numbers from 0")
        _require("capacity", self.capacity, self.capacity >= 1, "whole numbers from 1")
        fits = (self.slots >= 1) & (self.slots <= self.capacity)
        _require("slots", self.slots, fits, "whole numbers from 1 to the server's capacity")
        ordered = np.diff(self.arrival_s, prepend=-np.inf) >= 0
        _require("arrival_s", self.arrival_s, ordered, "times in order")


def checked_assignment(instance: Instance, assignment: Ints) -> Ints:
    """Return ``assignment`` as integers, one per request.

    Raises:
        ConfigurationError: Its shape is not ``(n,)`` or it names a server that does not exist.
    """
    whole = _whole("assignment", np.array(assignment))
    if whole.shape != (instance.requests,):
        raise ConfigurationError(
            f"assignment has shape {whole.shape}; allowed: {(instance.requests,)}."
        )
    known = (whole >= -1) & (whole < instance.servers)
    _require("assignment", whole, known, f"-1 (dropped) to {instance.servers - 1}")
    return whole


def require_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0.

    Raises:
        ConfigurationError: It is not.
    """
    if not (np.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} is {value}; allowed: a finite number above 0.")


def _whole(name: str, values: NDArray[np.generic]) -> Ints:
    if values.size and values.dtype.kind not in "iu":
        raise ConfigurationError(f"{name} is of type {values.dtype}; allowed: whole numbers.")
    return values.astype(np.int64)


def _require(name: str, values: Floats | Ints, good: Bools, allowed: str) -> None:
    if not good.all():
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        label = ", ".join(map(str, where))
        raise ConfigurationError(f"{name}[{label}] is {values[where]}; allowed: {allowed}.")
