"""What a language model was asked to do, counted."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields

_GROWTH = 1.02  # of one bucket of durations to the next: a quantile is off by 1 % at most
_SHORTEST = 1e-6


@dataclass
class Usage:
    """Counters of one model; two snapshots subtract to what happened in between.

    Attributes:
        calls: Requests the model answered; one for each prompt, text or message list.
        prompt_tokens: Tokens of all prompts, the reused ones included.
        reused_tokens: Prompt tokens taken from the prefix cache instead of being computed.
        completion_tokens: Tokens the model produced.
        seconds: Wall time spent inside the model.
        cached: Those of ``calls`` that a cache on disk answered.
        retries: Requests sent again after a failure.
        failures: Requests that failed for good, retries included in none of the above.
    """

    calls: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached: int = 0
    retries: int = 0
    failures: int = 0
    _durations: Counter[int] = field(default_factory=Counter, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    @property
    def processed_tokens(self) -> int:
        """Prompt tokens that were really computed."""
        return self.prompt_tokens - self.reused_tokens

    def add(
        self,
        calls: int = 0,
        prompt_tokens: int = 0,
        reused_tokens: int = 0,
        completion_tokens: int = 0,
        seconds: float = 0.0,
        cached: int = 0,
        retries: int = 0,
        failures: int = 0,
    ) -> None:
        """Add to the counters; safe from several threads."""
        for usage in self._counting():
            with usage._lock:
                usage.calls += calls
                usage.prompt_tokens += prompt_tokens
                usage.reused_tokens += reused_tokens
                usage.completion_tokens += completion_tokens
                usage.seconds += seconds
                usage.cached += cached
                usage.retries += retries
                usage.failures += failures

    def time(self, seconds: float, requests: int) -> None:
        """Add the wall time of requests that were asked together; each took its share of it.

        Args:
            seconds: Wall time of all of them.
            requests: How many were answered.
        """
        self.add(seconds=seconds)
        if requests > 0:
            for usage in self._counting():
                with usage._lock:
                    usage._durations[_bucket(seconds / requests)] += requests

    def latency_ms(self, percent: float) -> float | None:
        """Return a percentile of the milliseconds per answered request, right to 1 %.

        Durations are counted in buckets of constant relative width, so that snapshots subtract
        and memory stays bounded (Masson et al., "DDSketch", VLDB 2019). Requests asked together
        count with their share of the time. Cached answers are not measured.

        Args:
            percent: Above 0, at most 100; 50 is the median.

        Returns:
            None when nothing was measured.
        """
        with self._lock:
            counts = sorted(self._durations.items())
        left = math.ceil(percent / 100 * sum(count for _, count in counts))
        for bucket, count in counts:
            left -= count
            if left <= 0:
                return 1000 * 2 * float(_GROWTH**bucket) / (_GROWTH + 1)
        return None

    @contextmanager
    def watch(self) -> Iterator[Usage]:
        """Yield what the block adds: this thread's part, whatever others add meanwhile.

        Threads that the block starts belong to it if they run in a copy of its context, as those
        of ``asyncio.to_thread`` and of LangChain do.
        """
        seen = Usage()
        token = _watching.set((*_watching.get(), (self, seen)))
        try:
            yield seen
        finally:
            _watching.reset(token)

    def snapshot(self) -> Usage:
        """Return a copy that no longer changes."""
        with self._lock:
            return self._made(self.as_dict(), Counter(self._durations))

    def __add__(self, other: Usage) -> Usage:
        """Return both together."""
        first, second = self.snapshot(), other.snapshot()
        mine, theirs = first.as_dict(), second.as_dict()
        sums = {key: mine[key] + theirs[key] for key in mine}
        return self._made(sums, first._durations + second._durations)

    def __sub__(self, earlier: Usage) -> Usage:
        """Return what was used since ``earlier``."""
        now = self.snapshot()
        after, before = now.as_dict(), earlier.as_dict()
        rest = {key: after[key] - before[key] for key in after}
        return self._made(rest, now._durations - earlier._durations)

    def as_dict(self) -> dict[str, int | float]:
        """Return the counters by name, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @staticmethod
    def _made(counters: dict[str, int | float], durations: Counter[int]) -> Usage:
        usage = Usage(**counters)  # type: ignore[arg-type]  # values keep their field's type
        usage._durations = durations
        return usage

    def _counting(self) -> list[Usage]:
        return [self, *(seen for usage, seen in _watching.get() if usage is self)]


_watching: ContextVar[tuple[tuple[Usage, Usage], ...]] = ContextVar("watching", default=())
"""The watched counters of this context, each with what it added."""


def _bucket(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, _SHORTEST), _GROWTH))
