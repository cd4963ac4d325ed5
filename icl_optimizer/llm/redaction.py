"""Secrets of the environment, kept out of whatever is shown or written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from icl_optimizer.errors import ConfigurationError

_ENDINGS = ("_API_KEY", "_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST = 8  # shorter values would strike out ordinary words
_PLACE = "[redacted]"
_SECRET_NAME = re.compile(
    r"key|secret|password|authorization|credential|(?<![a-z])token(?![a-z])", re.IGNORECASE
)


def redact(text: str) -> str:
    """Return ``text`` without the values of this process's keys.

    Secrets are the values, of at least 8 characters, of environment variables whose names end in
    ``_API_KEY``, ``_KEY``, ``_TOKEN``, ``_SECRET`` or ``_PASSWORD``.
    """
    for secret in _secrets():
        text = text.replace(secret, _PLACE)
    return text


def refuse_secrets(params: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a parameter that would hold a secret, nested ones included.

    The message names the parameter, never its value.
    """
    for name in _secret_names(params):
        raise ConfigurationError(
            f"the parameter '{name}' would hold a secret; set the provider's environment "
            "variable instead, such as OPENAI_API_KEY."
        )


def holds_secret(params: Mapping[str, Any]) -> bool:
    """Whether the name of a parameter, nested ones included, says that it holds a secret."""
    return any(True for _ in _secret_names(params))


def shown(value: object) -> str:
    """Return a value for an error message, unless it speaks of a secret."""
    text = repr(value)
    return "a value that seems to hold a secret" if _SECRET_NAME.search(text) else redact(text)


def _secret_names(params: Mapping[str, Any]) -> Iterator[str]:
    for name, value in params.items():
        if _SECRET_NAME.search(str(name)):
            yield str(name)
        elif isinstance(value, Mapping):
            yield from _secret_names(value)


def _secrets() -> list[str]:
    """Return the values to strike out, longest first, since one may contain another."""
    found = {
        value.strip()
        for name, value in os.environ.items()
        if name.upper().endswith(_ENDINGS) and len(value.strip()) >= _SHORTEST
    }
    return sorted(found, key=len, reverse=True)
