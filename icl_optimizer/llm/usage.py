"""What a language model was asked to do, counted."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields


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
        with self._lock:
            self.calls += calls
            self.prompt_tokens += prompt_tokens
            self.reused_tokens += reused_tokens
            self.completion_tokens += completion_tokens
            self.seconds += seconds
            self.cached += cached
            self.retries += retries
            self.failures += failures

    def snapshot(self) -> Usage:
        """Return a copy that no longer changes."""
        with self._lock:
            return Usage(**self.as_dict())  # type: ignore[arg-type]  # values keep their field's type

    def __add__(self, other: Usage) -> Usage:
        """Return both together."""
        mine, theirs = self.as_dict(), other.as_dict()
        return Usage(**{key: mine[key] + theirs[key] for key in mine})  # type: ignore[arg-type]

    def __sub__(self, earlier: Usage) -> Usage:
        """Return what was used since ``earlier``."""
        before, after = earlier.as_dict(), self.as_dict()
        return Usage(**{key: after[key] - before[key] for key in after})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, int | float]:
        """Return the counters by name, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}
