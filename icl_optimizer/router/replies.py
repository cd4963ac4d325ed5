"""Answers of the router's own: errors in OpenAI's form, headers that every answer carries."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Send

Headers = list[tuple[bytes, bytes]]
LOGGER = logging.getLogger("icl_optimizer.router")
JSON = b"application/json"
_CONTENT_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", _CONTENT_POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
"""Headers of every answer: the page runs no script but its own, and nothing is kept."""


class Refusal(Exception):
    """A request that gets an error before any server is asked.

    Attributes:
        status: HTTP status.
        message: What is wrong: the field, its value and what is allowed.
        kind: OpenAI's ``type`` of the error.
        code: OpenAI's ``code``, a short name.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Keep what to answer."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code or HTTPStatus(status).phrase.lower().replace(" ", "_")
        self.headers = list(headers)


def error_body(message: str, kind: str, code: str) -> bytes:
    """Return an error as OpenAI writes it."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole answer of JSON over ASGI."""
    fixed = [(b"content-type", JSON), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fixed + headers})
    await send({"type": "http.response.body", "body": body})


def raw_error(status: int, message: str) -> bytes:
    """Return an error as bytes of HTTP/1.1, for what never became a request."""
    phrase = HTTPStatus(status).phrase
    body = error_body(message, "invalid_request_error", phrase.lower().replace(" ", "_"))
    headers = [
        *((b"content-type", JSON), (b"content-length", str(len(body)).encode())),
        *((b"connection", b"close"), *SECURITY),
    ]
    lines = [f"HTTP/1.1 {status} {phrase}".encode(), *(b": ".join(each) for each in headers)]
    return b"\r\n".join([*lines, b"", body])


__all__ = [
    "JSON",
    "LOGGER",
    "SECURITY",
    "Headers",
    "Refusal",
    "error_body",
    "raw_error",
    "send_json",
]
