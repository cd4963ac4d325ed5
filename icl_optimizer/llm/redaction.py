"""Secrets of the environment and of given objects, kept out of what is shown or written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from icl_optimizer.errors import ConfigurationError

_ENDINGS = ("_API_KEY", "_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST = 8  # shorter values would strike out ordinary words
_PLACE = "[redacted]"
_SECRET_NAME = re.compile(
    r"key|secret|passw(or)?d|passphrase|authorization|credential|cookie|bearer"
    r"|(?<![a-z])(token|auth|pwd)(?![a-z])",
    re.IGNORECASE,
)
_SHORT_NAME = re.compile(r"^(code|pass|pw|sig|signature)$", re.IGNORECASE)
_FORMS = (
    (re.compile(r"\b(bearer\s+)(?!\[redacted\])[^\s\"'\\<>{},]+", re.IGNORECASE), r"\1"),
    (re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}"), ""),
    (re.compile(r"(://)[^/?#@\s\"']+(?=@(?!https?://))"), r"\1"),
)
"""What secrets look like wherever they come from, with what is kept before them."""
_remembered: set[str] = set()


def redact(text: str) -> str:
    """Return ``text`` without the values of this process's keys.

    Secrets are the values, of at least 8 characters, of environment variables whose names end in
    ``_API_KEY``, ``_KEY``, ``_TOKEN``, ``_SECRET`` or ``_PASSWORD``; those that a LangChain object
    brought with it; and whatever looks like one: what follows ``Bearer``, keys that begin with
    ``sk-``, names and passwords in URLs.
    """
    for secret in _secrets():
        for form in dict.fromkeys((secret, json.dumps(secret)[1:-1], quote(secret, safe=""))):
            text = text.replace(form, _PLACE)
    for pattern, kept in _FORMS:
        text = pattern.sub(f"{kept}{_PLACE}", text)
    return text


def remember_secrets(values: Iterable[str]) -> None:
    """Have ``redact`` strike out more values, those of at least 8 characters."""
    _remembered.update(v.strip() for v in values if len(v.strip()) >= _SHORTEST)


def is_secret_name(name: str) -> bool:
    """Whether the name of a parameter or header says that it holds a secret."""
    return bool(_SECRET_NAME.search(name) or _SHORT_NAME.search(name))


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
    return sorted(found | _remembered.copy(), key=len, reverse=True)
