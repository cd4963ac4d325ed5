"""Pure ASGI middleware around the router: errors, keys, sizes, times, requests in flight."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from icl_optimizer.router.keys import Keys, is_loopback
from icl_optimizer.router.replies import LOGGER, SECURITY, Refusal, error_body, send_json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from icl_optimizer.router.metrics import RouterMetrics

REQUEST_ID = "icl_optimizer.request_id"
"""Key of the request's id in an ASGI scope."""
_SLOWEST = 20_000
"""Bytes per second that a body may not stay below for longer than the time allowed."""
_ID = re.compile(rb"[!-~]{1,128}")


@dataclass(frozen=True)
class Limits:
    """What callers may take of the router.

    Attributes:
        max_connections: Open at the same time.
        max_in_flight: POST requests worked on at the same time.
        max_body_bytes: Of a request.
        max_head_bytes: Request line and headers of a request, together.
        header_timeout_s: From the first byte, or the connection, to the end of the headers.
        body_timeout_s: From there to the end of the body; a second more for each 20 kB.
        client_timeout_s: Without a byte taken, after which a slow reader's connection is closed.
        keep_alive_s: Between two requests of a connection.
    """

    max_connections: int = 512
    max_in_flight: int = 256
    max_body_bytes: int = 1_000_000
    max_head_bytes: int = 16_384
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    client_timeout_s: float = 30.0
    keep_alive_s: int = 20

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return those limits that ``settings`` has, by name, and the defaults for the others."""
        names = [each.name for each in fields(cls) if hasattr(settings, each.name)]
        return cls(**{name: getattr(settings, name) for name in names})


class Shield:
    """The outermost: gives requests an id, and every error OpenAI's form; lets none through.

    What goes wrong inside is one line of log with the id and the exception's type. Its text is
    left out, because it may hold a prompt.
    """

    def __init__(self, app: ASGIApp, metrics: RouterMetrics) -> None:
        """Stand around ``app``; refusals are counted in ``metrics``."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        number = scope[REQUEST_ID] = uuid4().hex

        async def adding(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = _completed(message["headers"], number)
            await send(message)

        try:
            number = scope[REQUEST_ID] = _request_id(scope, number)
            await self._app(scope, receive, adding)
        except Refusal as refusal:
            self._metrics.refused(refusal.status)
            body = error_body(refusal.message, refusal.kind, refusal.code)
            if not started:
                await send_json(adding, refusal.status, body, refusal.headers)
        except asyncio.CancelledError:
            # the time to drain is over: the server closes the connection, and logs no traceback
            LOGGER.warning("request %s: stopped with the router", number)
        except Exception as error:
            LOGGER.error("request %s: %s", number, type(error).__name__)
            body = error_body("the router failed", "server_error", "internal_error")
            if not started:
                await send_json(adding, 500, body, [])


class Access:
    """Lets in who has a key; without keys, those who call this machine by its own name."""

    def __init__(
        self, app: ASGIApp, keys: Keys, public: Collection[str], *, open_to_all: bool = False
    ) -> None:
        """Stand around ``app``.

        Args:
            app: What is guarded.
            keys: Of the callers.
            public: Paths that need no key.
            open_to_all: Whether callers without keys may use any host name.
        """
        self._app = app
        self._keys = keys
        self._public = public
        self._any_host = open_to_all or keys.required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            if not self._any_host:
                _check_host(scope)
            if b"%" in scope.get("raw_path", b""):
                # no path here has a character that needs it
                raise Refusal(404, "there is no such path; allowed: paths without %")
            if scope["path"] not in self._public:
                self._check_key(scope)
        await self._app(scope, receive, send)

    def _check_key(self, scope: Scope) -> None:
        given = header(scope, b"authorization")
        if not self._keys.admit(given):
            what = "is not known" if given else "is missing"
            raise Refusal(
                401,
                f"the key {what}; allowed: a caller's key, as in 'Authorization: Bearer KEY'",
                "invalid_api_key",
                headers=[(b"www-authenticate", b'Bearer realm="icl-optimizer"')],
            )


class Bounds:
    """Bounds what a POST request takes: bytes, seconds, and how many there are at once."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        """Stand around ``app``."""
        self._app = app
        self._limits = limits
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        most = self._limits.max_in_flight
        if self.in_flight >= most:
            text = f"{most} requests are in flight; allowed: at most {most}"
            raise Refusal(429, text, "overloaded", headers=[(b"retry-after", b"1")])
        declared = header(scope, b"content-length")
        if declared is not None and int(declared) > self._limits.max_body_bytes:
            raise self._too_large(declared.decode())
        self.in_flight += 1
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self.in_flight -= 1

    def _bounded(self, receive: Receive) -> Receive:
        start = asyncio.get_running_loop().time() + self._limits.body_timeout_s
        taken, whole = 0, False

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(start + taken / _SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise Refusal(408, self._too_slow()) from None
            taken += len(message.get("body", b""))
            if taken > self._limits.max_body_bytes:
                raise self._too_large(f"more than {self._limits.max_body_bytes}")
            whole = not message.get("more_body", False)
            return message

        return bounded

    def _too_slow(self) -> str:
        allowed = f"{self._limits.body_timeout_s:g} s, and one more for each {_SLOWEST} bytes"
        return f"the body takes too long; allowed: {allowed}"

    def _too_large(self, size: str) -> Refusal:
        most = self._limits.max_body_bytes
        return Refusal(413, f"the body has {size} bytes; allowed: at most {most}")


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of a header, None where there is none.

    Raises:
        Refusal: It is there more than once.
    """
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise Refusal(400, f"the header {name.decode()} is there {len(found)} times; allowed: once")
    return found[0] if found else None


def _request_id(scope: Scope, own: str) -> str:
    """Return the caller's id of the request, or the router's own."""
    given = header(scope, b"x-request-id")
    if given is None:
        return own
    if not _ID.fullmatch(given):
        raise Refusal(
            400,
            "the header x-request-id is not of the right form; allowed: 1 to 128 printable ASCII "
            "characters without spaces",
        )
    return given.decode("ascii")


def _check_host(scope: Scope) -> None:
    """Refuse other names for this machine, which a web page in a browser here could use."""
    given = (header(scope, b"host") or b"").decode("latin-1")
    name = given if given.endswith("]") else given.rpartition(":")[0] or given
    if not is_loopback(name):
        raise Refusal(
            421,
            "the host is not this machine's own name; allowed without keys: localhost, 127.0.0.1 "
            "or [::1]; for others use keys, or --open",
        )


def _completed(headers: list[tuple[bytes, bytes]], number: str) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with those that every answer carries."""
    there = {name for name, _ in headers}
    more = [*SECURITY, (b"x-request-id", number.encode())]
    return [*headers, *(each for each in more if each[0] not in there)]
