"""Whether a server is asked: cool-downs that grow, and one careful try after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["up", "cooling", "trying"]


class HealthPolicy(BaseModel):
    """When a server is left alone, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failures: int = Field(
        3, ge=1, le=1000, description="Failures in a row before it is left alone."
    )
    cool_down_s: float = Field(5.0, gt=0, le=3600, description="First rest, seconds.")
    longest_s: float = Field(
        60.0, gt=0, le=3600, description="Longest rest; each failed try doubles it, seconds."
    )


class Health:
    """What recent requests say about one server (a circuit breaker).

    ``up``: it is asked. ``cooling``: it is not, for a while. ``trying``: the rest is over, and one
    request at a time may try it; its success brings the server back, its failure doubles the rest.

    Attributes:
        unreachable: Whether it rests because nobody listened there.

    Args:
        policy: When and how long.
        clock: Seconds that only grow.
    """

    def __init__(
        self, policy: HealthPolicy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the server to be up."""
        self.policy = policy or HealthPolicy()
        self._clock = clock
        self._failed = 0
        self._rest_s = 0.0
        self._until: float | None = None
        self._trying = False
        self.unreachable = False

    @property
    def state(self) -> State:
        """How the server is thought to be."""
        if self._until is None:
            return "up"
        return "cooling" if self._clock() < self._until else "trying"

    @property
    def cooling_s(self) -> float:
        """Seconds until it may be tried; 0 where it may be asked now."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        state = self.state
        return state == "up" or (state == "trying" and not self._trying)

    def begin(self) -> bool:
        """Note that a request is sent; return whether it is the one that tries the server."""
        if self.state != "trying" or self._trying:
            return False
        self._trying = True
        return True

    def succeeded(self) -> None:
        """Note an answer: the server is up."""
        self._failed, self._rest_s, self._until, self._trying = 0, 0.0, None, False

    def failed(self, *, at_once: bool = False, wait_s: float | None = None) -> bool:
        """Note a failure; return whether the server is left alone from now on.

        Args:
            at_once: One such failure is enough: nobody listens there.
            wait_s: What the server itself asked for; at most the longest rest.
        """
        was_trying, self._trying = self._trying, False
        self._failed += 1
        enough = at_once or was_trying or wait_s is not None
        if not enough and self._failed < self.policy.failures:
            return False
        if self.state == "cooling" and not was_trying:
            # others that were under way when it failed tell nothing new
            return True
        self.unreachable = at_once
        doubled = min(2 * self._rest_s, self.policy.longest_s)
        self._rest_s = max(doubled, self.policy.cool_down_s)
        asked = min(wait_s or 0.0, self.policy.longest_s)
        self._until = self._clock() + max(self._rest_s, asked)
        return True

    def back(self) -> None:
        """Note that somebody listens there again: the rest is over, and a request may try it."""
        if self._until is not None:
            self._until = min(self._until, self._clock())
        self.unreachable = False

    def let_go(self) -> None:
        """Note that the request that tried the server ended without telling anything."""
        self._trying = False
