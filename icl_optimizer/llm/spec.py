"""Specs such as ``ollama:llama3.1:8b?temperature=0.2``, taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.credentials import refuse_credentials
from icl_optimizer.llm.redaction import refuse_secrets

_AT_URL = re.compile(r"@(https?:?/?/?.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Spec:
    """The parts of ``PROVIDER:MODEL@URL?name=value&name=value``.

    Attributes:
        text: The spec as it was given.
        provider: What stands before the first colon.
        model: The provider's name of the model, or a file; empty where nothing was named.
        url: The server of ``openai:MODEL@URL``, without a slash at its end; else empty.
        query: The parameters as texts.
    """

    text: str
    provider: str
    model: str
    url: str = ""
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The spec without its parameters."""
        return self.text.partition("?")[0]


def parse_spec(text: str) -> Spec:
    """Take a spec apart; whether its provider and model exist is not looked at.

    Raises:
        ConfigurationError: It names several models, its URL or query is malformed, or it holds a
            secret.
    """
    refuse_credentials(text)
    text = text.strip()
    base, mark, rest = text.partition("?")
    if "," in text:
        raise ConfigurationError(
            f"the LLM '{_named(base)}' has a comma; allowed here: one model, and no comma in "
            "parameters."
        )
    query = _query(base, rest) if mark else {}
    provider, _, model = base.partition(":")
    name, url = model, ""
    if provider == "openai" and (at := _AT_URL.search(model)):
        name, url = model[: at.start()], at[1].rstrip("/")
        check_url(name, url)
    return Spec(text, provider, name, url, query)


def check_url(name: str, url: str) -> None:
    """Raise ConfigurationError unless ``url`` is a web address without a password.

    Args:
        name: The model that it serves, for the message.
        url: For example ``http://127.0.0.1:8080/v1``.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("an LLM's URL must not hold a user name or password.")
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_valid_port(url):
        raise ConfigurationError(
            f"the LLM 'openai:{name}' has no valid URL after the @; write "
            "'openai:MODEL@http://HOST:PORT/v1'."
        )


def _has_valid_port(url: str) -> bool:
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port is None or port > 0


def _named(base: str) -> str:
    """Return a spec without its URL, which may hold a password in a form nobody expects."""
    return _AT_URL.split(base)[0]


def _query(base: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split("&"):
        name, equals, value = map(unquote, part.partition("="))
        refuse_secrets({name: value})
        if not name or not equals:
            raise ConfigurationError(
                f"the LLM '{_named(base)}' has malformed parameters; write "
                "'?name=value&name=value'."
            )
        if name in found:
            raise ConfigurationError(
                f"the LLM '{_named(base)}' gives the parameter '{name}' twice."
            )
        found[name] = value
    return found
