"""Errors that name the field, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError


class ConfigurationError(ValueError):
    """Bad input, found before any work starts."""


class MissingDependencyError(ImportError):
    """An optional part is not installed; the message holds the command that installs it."""


FailureKind = Literal[
    "connection", "timeout", "rate limit", "server", "malformed", "key", "request", "answer", "open"
]
RETRYABLE: tuple[FailureKind, ...] = ("connection", "timeout", "rate limit", "server", "malformed")


class ModelError(RuntimeError):
    """A language model answered with an error, or not in the form that was asked for.

    Attributes:
        kind: ``connection`` (refused or reset), ``timeout``, ``rate limit`` (429), ``server``
            (5xx), ``malformed`` (an answer cut short or without content), ``key`` (401, 403),
            ``request`` (any other 4xx), ``answer`` (whole, but not what was asked for), ``open``
            (not asked at all: the circuit breaker is open).
        retry_after: Seconds to wait before asking again, where the server said so.
    """

    def __init__(
        self, message: str, kind: FailureKind = "answer", retry_after: float | None = None
    ) -> None:
        """Keep what went wrong."""
        super().__init__(message)
        self.kind: FailureKind = kind
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether asking again may help."""
        return self.kind in RETRYABLE

    def __reduce__(self) -> tuple[type[ModelError], tuple[str, FailureKind, float | None]]:
        """Pickle with all attributes, so that worker processes can pass it on."""
        return type(self), (str(self), self.kind, self.retry_after)


class BudgetError(RuntimeError):
    """The calls or the money allowed are used up; what was finished by then is kept."""


class ReplayError(RuntimeError):
    """A replay met a request that was not recorded."""


class WorkerError(RuntimeError):
    """A worker process was lost again and again; what was finished by then is kept."""


class PromptShortenedWarning(UserWarning):
    """A prompt did not fit into the model's context and was shortened."""


def unknown_name(field: str, value: str, allowed: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that is not known, with the nearest valid one.

    Args:
        field: What was being named, for example ``policy``.
        value: The name that was given.
        allowed: Every valid name.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigurationError(f"unknown {field} '{value}'.{hint} Allowed: {', '.join(names)}.")


def invalid_fields(owner: str, error: ValidationError) -> ConfigurationError:
    """Return pydantic's findings as one line each: field, value, what is allowed.

    Args:
        owner: What the fields belong to, for example ``offloading``.
        error: What pydantic found.
    """
    lines = [
        f"{owner}: {'.'.join(map(str, e['loc'])) or 'settings'} is {e['input']!r}: {e['msg']}."
        for e in error.errors()
    ]
    return ConfigurationError("\n".join(lines))
