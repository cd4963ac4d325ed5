"""What a request must look like before anything is done with it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.router.guards import REQUEST_ID, header
from icl_optimizer.router.replies import Refusal
from icl_optimizer.router.requests import RoutedRequest

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from icl_optimizer.environments.fleet.upstream import Path

LONGEST_DEADLINE_S = 3600.0
MOST_TOKENS = 10_000_000
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NAME = 256  # characters of a model's name
_SHOWN = 60  # characters of a value in a message
_DECIMAL = re.compile(rb"[0-9]{1,7}(\.[0-9]{1,9})?")
_JSON_TYPE = re.compile(rb"\s*application/json\s*(;.*)?", re.IGNORECASE)


async def read_request(scope: Scope, receive: Receive, path: Path) -> RoutedRequest | None:
    """Return a request that is in order, None when its client went away.

    Raises:
        Refusal: It is not; the message names the field, its value and what is allowed.
    """
    if not _JSON_TYPE.fullmatch(header(scope, b"content-type") or b""):
        # also keeps out forms that web pages of others send without being asked
        raise Refusal(415, "content-type is not JSON; allowed: application/json")
    deadline_s, task = _deadline(scope), _task(scope)
    body = await _read(receive)
    if body is None:
        return None
    fields = _parsed(body)
    check_body(fields, path)
    return RoutedRequest(fields, path, deadline_s, task, scope[REQUEST_ID])


def check_body(fields: Any, path: Path) -> None:
    """Raise Refusal unless this is a request in OpenAI's form."""
    if not isinstance(fields, dict):
        _wrong("the body", fields, "a JSON object")
    if path == "chat/completions":
        _check_messages(fields.get("messages"))
    else:
        _check_prompt(fields.get("prompt"))
    for name, (fits, allowed) in _FIELDS.items():
        if fields.get(name) is not None and not fits(fields[name]):
            _wrong(name, fields[name], allowed)


def _is_count(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


_TOKENS = (_is_count(MOST_TOKENS), f"an integer from 1 to {MOST_TOKENS}")
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "model": (
        lambda value: isinstance(value, str) and len(value) <= _NAME,
        f"a text of at most {_NAME} characters, or nothing",
    ),
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "n": (_is_count(128), "an integer from 1 to 128"),
    "stream_options": (lambda value: isinstance(value, dict), "an object"),
}


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        _wrong("messages", messages, "a list of one or more messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            _wrong(where, message, "an object with role and content")
        if message.get("role") not in ROLES:
            _wrong(f"{where}.role", message.get("role"), ", ".join(ROLES))
        content = message.get("content")
        parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        silent = content is None and message["role"] == "assistant"
        if not (isinstance(content, str) or parts or silent):
            _wrong(f"{where}.content", content, "a text, or a list of objects")


def _check_prompt(prompt: Any) -> None:
    listed = isinstance(prompt, list) and bool(prompt)
    kinds = {type(part) for part in prompt} if listed else set()
    if not (isinstance(prompt, str) or kinds in ({str}, {int})):
        _wrong("prompt", prompt, "a text, a list of texts, or a list of tokens")


def _deadline(scope: Scope) -> float | None:
    given = header(scope, b"x-deadline-s")
    if given is None:
        return None
    if not _DECIMAL.fullmatch(given) or not 0 < float(given) <= LONGEST_DEADLINE_S:
        allowed = f"seconds as a decimal number, more than 0, at most {LONGEST_DEADLINE_S:g}"
        _wrong("the header x-deadline-s", given.decode("latin-1"), allowed)
    return float(given)


def _task(scope: Scope) -> str | None:
    given = header(scope, b"x-task-type")
    if given is None:
        return None
    text = given.decode("latin-1")
    name = re.sub("[-_]", " ", text.strip().lower())
    if name not in TASK_TYPES:
        near = difflib.get_close_matches(name, TASK_TYPES, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        _wrong("the header x-task-type", text, ", ".join(TASK_TYPES) + hint)
    return name


async def _read(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _parsed(body: bytes) -> Any:
    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        if b"\\u" in body:
            # half of a surrogate pair cannot be sent on
            json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        at = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(400, f"the body is not JSON{at}; allowed: a JSON object in UTF-8") from None
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _wrong(field: str, value: Any, allowed: str) -> NoReturn:
    text = json.dumps(value) if isinstance(value, str | int | float) else _kind(value)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise Refusal(400, f"{field} is {shown}; allowed: {allowed}", "invalid_value")


def _kind(value: Any) -> str:
    if value is None:
        return "missing or null"
    return "an empty list" if value == [] else f"a {type(value).__name__}"


__all__ = ["check_body", "read_request"]
