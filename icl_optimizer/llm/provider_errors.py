"""Whatever a provider's client raises, as ``ModelError`` and without anything secret."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from icl_optimizer.errors import ConfigurationError, FailureKind
from icl_optimizer.llm.errors import ModelError, PromptTooLongError
from icl_optimizer.llm.redaction import redact

T = TypeVar("T")

_LONGEST = 500  # characters of a server's own words
_BY_STATUS: dict[int, FailureKind] = {
    401: "key",
    403: "key",
    408: "timeout",
    429: "rate limit",
    501: "request",  # the server will never know how
}
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, EOFError)
"""What clients raise when an answer has not the form they expect, such as an empty list."""
# Clients name their errors alike, and most of them are not installed here.
_BY_NAME: tuple[tuple[str, FailureKind], ...] = (
    ("Timeout", "timeout"),
    ("RateLimit|ResourceExhausted|Throttling", "rate limit"),
    ("Authentication|PermissionDenied|Credential|Unauthorized|Forbidden", "key"),
    ("Decod|OutputParser|LengthFinish|ResponseValidation", "malformed"),
    ("ContentFilter|Refusal", "answer"),
    ("Connect|Network|RemoteProtocol|ReadError|WriteError|ProxyError", "connection"),
    ("BadRequest|InvalidRequest|NotFound|InvalidURL|UnsupportedProtocol", "request"),
)
_TOO_LONG = re.compile(
    r"maximum context length is (?P<limit>\d+) tokens.{0,200}?(?P<tokens>\d+) (?:input )?tokens",
    re.DOTALL,
)


def call_provider(name: str, call: Callable[[], T]) -> T:
    """Return ``call()``; a failure of the provider's client becomes ``ModelError``.

    The original error is not chained, not even as context: its text and its frames may hold the
    key. Errors that no provider causes, such as a failed assertion or a wrong argument, pass.

    Args:
        name: The model, for the message.
        call: Asks the provider, and does nothing else.

    Raises:
        ModelError: With the kind of failure and the wait that the server asked for.
        PromptTooLongError: The server said so, with both numbers.
    """
    try:
        return call()
    except (ConfigurationError, ModelError):
        raise
    except Exception as error:
        if not _is_providers(error):
            raise
        failure = _converted(name, error)
    raise failure  # out here, where no context clings to it


def read_answer(name: str, read: Callable[[], T]) -> T:
    """Return ``read()``, which takes an answer apart; ``ModelError`` when a part is missing."""
    try:
        return read()
    except ConfigurationError:
        raise
    except _UNREADABLE as error:
        failure = _malformed(name, error)
    raise failure


def status_error(
    name: str, status: int, body: str, headers: Mapping[str, str]
) -> ModelError | PromptTooLongError:
    """Return the error for an HTTP answer with a status of 400 or more.

    Args:
        name: The model, for the message.
        status: The HTTP status.
        body: What the server said.
        headers: Those of the answer; ``Retry-After`` is read.
    """
    kind = _BY_STATUS.get(status) or ("server" if status >= 500 else "request")
    too_long = _too_long(body) if status in (400, 413, 422, 500) else None
    if too_long is not None:
        return too_long
    wait = retry_after(headers)
    if kind == "key":
        # Servers like to repeat the key here, whole or in part, so nothing of the text is kept.
        return ModelError(
            f"'{name}' refused the API key from the environment (HTTP {status}).", kind, wait
        )
    return ModelError(f"'{name}' answered with HTTP {status}: {_short(body)}", kind, wait)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` header, in seconds or as a date, or None."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _is_providers(error: Exception) -> bool:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, *_UNREADABLE)) or library not in ("builtins", "__main__")


def _converted(name: str, error: Exception) -> Exception:
    # the one that tells the status need not be the one that has the headers
    status, body = 0, ""
    headers: Mapping[str, str] = {}
    for link in _chain(error):
        told = _http(link)
        status, headers, body = status or told[0], headers or told[1], body or told[2]
    if status >= 400:
        return status_error(name, status, body or str(error), headers)
    too_long = _too_long(str(error))
    if too_long is not None:
        return too_long
    kind = _kind(error)
    if kind == "malformed":
        return _malformed(name, error)
    if kind == "key":
        return ModelError(f"'{name}' refused the API key from the environment.", kind)
    return ModelError(f"'{name}' did not answer: {_described(error)}", kind)


def _kind(error: Exception) -> FailureKind:
    for link in _chain(error):
        names = " ".join(cls.__name__ for cls in type(link).__mro__)
        for pattern, kind in _BY_NAME:
            if re.search(pattern, names):
                return kind
        if isinstance(link, OSError):
            return "connection"
    return "malformed" if isinstance(error, _UNREADABLE) else "server"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what led to it: clients wrap each other's errors."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _http(error: BaseException) -> tuple[int, Mapping[str, str], str]:
    """Return status, headers and body that an error carries; status 0 when there is none."""
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    if isinstance(response, Mapping):  # botocore keeps the answer as a dictionary
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status is None:
        status = getattr(error, "code", None)
    headers = getattr(response, "headers", None)
    return (
        status if isinstance(status, int) else 0,
        headers if isinstance(headers, Mapping) else {},
        _body(response),
    )


def _body(response: Any) -> str:
    try:
        text = response.text
    except Exception:  # a streamed answer that nobody has read has no text
        return ""
    return text if isinstance(text, str) else ""


def _too_long(text: str) -> PromptTooLongError | None:
    found = _TOO_LONG.search(text)
    if found:
        return PromptTooLongError(int(found["tokens"]), int(found["limit"]))
    try:
        error = json.loads(text)["error"]
        return PromptTooLongError(int(error["n_prompt_tokens"]), int(error["n_ctx"]))
    except _UNREADABLE:
        return None


def _malformed(name: str, error: Exception) -> ModelError:
    return ModelError(f"'{name}' sent a malformed answer: {_described(error)}", "malformed")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error))}"


def _short(text: str) -> str:
    text = " ".join(redact(text).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


__all__ = ["call_provider", "read_answer", "retry_after", "status_error"]
