"""The keys that somebody else's model object holds, so that they can be kept out of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretBytes, SecretStr

from icl_optimizer.llm.redaction import is_secret_name

_HEADERS = re.compile(r"headers?$|^cookies?$|^auth$", re.IGNORECASE)
_LOGIN = re.compile(r"://([^/?#\s]*)@")
_DEPTH = 6  # of mappings in mappings


def secrets_of(model: Any) -> set[str]:
    """Return the secret values among the fields of a pydantic object.

    They are its ``SecretStr``, texts whose names speak of a secret, the values of HTTP headers and
    whatever stands before the @ of a URL.
    """
    fields = {name: getattr(model, name, None) for name in type(model).model_fields}
    return {text for text in _found("", fields, False, _DEPTH) if text}


def _found(name: str, value: Any, secret: bool, depth: int) -> Iterator[str]:
    secret = secret or is_secret_name(name) or bool(_HEADERS.search(name))
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode(errors="replace")
    elif isinstance(value, str):
        for login in _LOGIN.findall(value):
            yield login
            yield from login.split(":", 1)
        if secret:
            yield value
            yield from re.split(r"[\s=;]+", value)  # a cookie's value, a key after Bearer
    elif isinstance(value, Mapping) and depth:
        for key, each in value.items():
            yield from _found(str(key), each, secret, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for each in value:
            yield from _found(name, each, secret, depth - 1)
