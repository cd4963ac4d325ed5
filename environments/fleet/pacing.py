"""When the tokens of an answer may go out, so that a fast server is as slow as wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

LATE_S = 0.02
"""A token counts as late when it goes out this much after it is due, seconds."""


class Clock:
    """The time that a pace is kept by; tests put their own in its place."""

    def now(self) -> float:
        """Return seconds from an arbitrary moment on, never going back."""
        return time.monotonic()

    async def until(self, moment: float) -> None:
        """Return at ``moment``, or at once if it is over."""
        while (left := moment - self.now()) > 0:
            await asyncio.sleep(left)


@dataclass(frozen=True)
class Pace:
    """When each part of an answer may go out.

    Attributes:
        tokens_per_s: Answer tokens per second and request.
        overhead_s: Seconds from the start of service to the first token.
    """

    tokens_per_s: float
    overhead_s: float

    def due(self, start: float, tokens: int) -> float:
        """Return the moment at which ``tokens`` may be out and the next one may follow.

        That is ``start + overhead_s + tokens / tokens_per_s``: the first token is due for 0, the
        end of an answer for its length.
        """
        return start + self.overhead_s + tokens / self.tokens_per_s


@dataclass
class PaceCounters:
    """What a server did so far, and how much of it was later than its pace.

    Attributes:
        busy: Requests in service.
        waiting: Requests that wait for a slot.
        served: Answers that went out whole.
        cancelled: Requests whose client went away, waiting or in service.
        failed: Requests that the server behind the proxy refused or broke off.
        tokens: Answer tokens that went out.
        late_tokens: Those that went out more than :data:`LATE_S` after they were due.
        lateness_s: Sum of how late these were, seconds.
        worst_lateness_s: The largest of it, seconds.
    """

    busy: int = 0
    waiting: int = 0
    served: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens: int = 0
    late_tokens: int = 0
    lateness_s: float = 0.0
    worst_lateness_s: float = 0.0

    def count(self, tokens: int, late_s: float) -> None:
        """Count tokens that went out together, ``late_s`` after they were due."""
        self.tokens += tokens
        if tokens and late_s > LATE_S:
            self.late_tokens += tokens
            self.lateness_s += tokens * late_s
            self.worst_lateness_s = max(self.worst_lateness_s, late_s)


async def paced(
    chunks: AsyncIterator[dict[str, Any]],
    pace: Pace,
    start: float,
    clock: Clock,
    counters: PaceCounters,
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer, none before it is due.

    A token that comes late does not move the ones after it: they catch up with the pace.

    Args:
        chunks: Chunks in OpenAI's format, with llama.cpp's ``timings`` that count the tokens.
        pace: The pace.
        start: When service began, by ``clock``.
        clock: The time.
        counters: Where tokens are counted.
    """
    out = 0
    async for chunk in chunks:
        made = max(out, int(chunk.pop("timings", {}).get("predicted_n", out)))
        if "error" not in chunk:
            due = pace.due(start, made if _is_last(chunk) else max(made - 1, 0))
            await clock.until(due)
            counters.count(made - out, clock.now() - due)
        out = made
        yield chunk


def _is_last(chunk: dict[str, Any]) -> bool:
    """Whether it ends the answer: it has the reason, or nothing but the usage."""
    return not chunk.get("choices") or bool(chunk["choices"][0].get("finish_reason"))
