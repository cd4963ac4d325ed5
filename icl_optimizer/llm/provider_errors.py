"""Errors of remote models, told without anything secret."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from icl_optimizer.llm.errors import ModelError

_REFUSED = (401, 403)
_FAMILIES = (
    ("langchain_core.exceptions", "LangChainException"),
    ("openai", "OpenAIError"),
    ("ollama", "ResponseError"),
    ("httpx", "HTTPError"),
)


@contextmanager
def provider_errors(name: str) -> Iterator[None]:
    """Turn whatever a provider's client raises inside the block into ModelError.

    Args:
        name: The model, for the message.
    """
    try:
        yield
    except _known_errors() as error:
        if getattr(error, "status_code", None) in _REFUSED:
            # Some servers repeat the key in such an answer, so neither text nor cause is kept.
            raise ModelError(f"'{name}' refused the API key from the environment.") from None
        raise ModelError(f"'{name}' did not answer: {type(error).__name__}: {error}") from error


def _known_errors() -> tuple[type[BaseException], ...]:
    """Return the error classes of the clients in use; those not imported cannot have raised."""
    loaded = [
        getattr(sys.modules[module], error) for module, error in _FAMILIES if module in sys.modules
    ]
    return (ConnectionError, TimeoutError, *loaded)
