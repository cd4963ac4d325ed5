"""Keys and passwords in the text of a spec, which is written into results and must hold none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.redaction import is_secret_name

_DEPTH = 4  # texts inside of texts that are looked at: percent signs, JSON, URLs
_AFTER_SCHEME = re.compile(r"://([^/?#\s]*|[^,?\s]*)@(?!https?://)", re.IGNORECASE)
_AFTER_AT = re.compile(r"@[^/@,\s]*:[^/@\s]*@")
"""``MODEL@user:password@host``: the first @ is that of a spec."""
_BARE = re.compile(r"^[^\s/@:]+:[^\s/@]*@\S")
"""``user:password@host``, as the whole of a value."""
_QUERY_NAME = re.compile(r"[?&;]\s*([^=&?;\s]+)")
_JSON_NAME = re.compile(r"[\"']([^\"']+)[\"']\s*:")
_HEADERS = re.compile(r"headers?$|^proxy_auth$|^auth$", re.IGNORECASE)
_REFUSED = (
    "the LLM would hold a secret, or a header that may be one, so nothing of it is shown here. "
    "Allowed: URLs without user name and password, and keys in the provider's environment "
    "variable, such as OPENAI_API_KEY."
)


def refuse_credentials(spec: str) -> None:
    """Raise ConfigurationError for a spec, or a chain, that holds something secret.

    Refused are URLs with a user name or password, parameters whose name speaks of a secret, and
    HTTP headers with values; in the text as it is, without its percent signs, and in the JSON of
    its parameters. The message quotes nothing.

    Args:
        spec: As for :func:`~.loading.load_llm`, or several separated by commas.
    """
    if any(map(_holds_credentials, [spec, *spec.split(",")])):
        raise ConfigurationError(_REFUSED)


def holds_login(value: Any) -> bool:
    """Whether a parameter's value, nested ones included, holds a user name or password."""
    return any(_is_login(text) for _, text in _texts("", value))


def _holds_credentials(spec: str) -> bool:
    for text in _decoded(spec):
        if _AFTER_SCHEME.search(text) or _AFTER_AT.search(text.partition("?")[0]):
            return True
        if any(map(is_secret_name, _QUERY_NAME.findall(text) + _JSON_NAME.findall(text))):
            return True
        for part in text.partition("?")[2].split("&"):
            name, _, value = part.partition("=")
            if any(_is_secret(*each) for each in _texts(name, value)):
                return True
    return False


def _is_secret(name: str, text: str) -> bool:
    names = name.split(".")
    return any(map(is_secret_name, names)) or bool(
        _is_login(text) or (text and any(map(_HEADERS.search, names)))
    )


def _is_login(text: str) -> bool:
    return any(_AFTER_SCHEME.search(each) or _BARE.search(each) for each in _decoded(text))


def _texts(name: str, value: Any, depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
    """Yield every text in a value, with the names that lead to it."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(f"{name}.{key}", each, depth)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(name, each, depth)
    elif isinstance(value, str):
        yield name, value
        inner = _json(value) if depth else None
        if inner is not None:
            yield from _texts(name, inner, depth - 1)


def _json(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list | str) else None


def _decoded(text: str) -> list[str]:
    """Return the text as it is, and without percent signs as often as there are any."""
    found = [text]
    for _ in range(_DEPTH):
        if (plain := unquote(found[-1])) == found[-1]:
            break
        found.append(plain)
    return found


__all__ = ["holds_login", "refuse_credentials"]
