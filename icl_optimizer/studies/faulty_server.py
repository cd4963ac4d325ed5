"""A server on loopback that passes requests on to a real one and misbehaves on order."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

FaultKind = Literal[
    "refused",
    "hang",
    "429 retry-after",
    "429",
    "500",
    "truncated json",
    "empty choices",
    "off-label text",
    "reset",
    "restart",
]

OFF_LABEL = "I would rather not say."

_ASKING = ("/completions", "/chat/completions")
_HOP = ("host", "connection", "accept-encoding", "content-length", "transfer-encoding")
_TIMEOUT = 120.0  # of the real server, in seconds
_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 seconds

Reply = tuple[int, dict[str, str], bytes]


class Fault(BaseModel):
    """What goes wrong, and with which requests.

    Requests for a completion are counted from 0, retries included. Of those from ``start`` on,
    the last of every ``every`` is hit, ``times`` times. Other requests, such as ``/props``, pass
    untouched, unless each request is hit (the defaults).

    ``refused``: nothing listens. ``hang``: no answer ever. ``429 retry-after``, ``429``, ``500``:
    that status. ``truncated json``: half of the answer, said to be whole. ``empty choices``: an
    answer without any. ``off-label text``: a sentence for an answer, without log-probabilities.
    ``reset``: the connection is reset in mid-answer. ``restart``: at request ``start`` the server
    dies, and ``down`` seconds later it is back on the same port.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind = Field(description="What goes wrong.")
    start: int = Field(0, ge=0, description="Requests that pass before.")
    every: int = Field(1, ge=1, description="1: each request, 3: every third one.")
    times: int | None = Field(None, ge=1, description="How often; None: for ever.")
    retry_after: float = Field(1.0, ge=0, description="Of '429 retry-after', in seconds.")
    down: float = Field(1.0, ge=0, description="How long 'restart' is away, in seconds.")

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        scheduled = self.every != 1 or self.times is not None
        if self.kind == "refused" and not self.always:
            raise ValueError("'refused' cannot count requests; allowed: the default schedule")
        if self.kind == "restart" and scheduled:
            raise ValueError("'restart' happens once; allowed: start and down")
        return self

    @property
    def always(self) -> bool:
        """Whether each request is hit."""
        return self.start == 0 and self.every == 1 and self.times is None

    def hits(self, number: int) -> bool:
        """Return whether the request with this number, counted from 0, is hit."""
        round_, place = divmod(number - self.start, self.every)
        due = number >= self.start and place == self.every - 1
        return due and (self.times is None or round_ < self.times)


@contextmanager
def faulty_server(upstream_url: str, fault: Fault) -> Iterator[str]:
    """Serve on loopback in front of ``upstream_url`` while the block runs.

    Args:
        upstream_url: An OpenAI-compatible server, for example that of ``LlamaCpp().serve()``.
        fault: What goes wrong.

    Yields:
        The URL to use instead, with the same path.
    """
    place = _bound(0)
    port = place.getsockname()[1]
    url = f"http://127.0.0.1:{port}{urlsplit(upstream_url).path}"
    if fault.kind == "refused":
        # bound, so that nobody else takes the port, but not listening
        with place:
            yield url
        return
    server = _Proxy(place, upstream_url, fault)
    try:
        yield url
    finally:
        server.stop()


def _bound(port: int) -> socket.socket:
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", port))
    return place


class _Listener(ThreadingHTTPServer):
    """Answers on a socket that is bound already; closing ends all its connections and threads."""

    daemon_threads = False

    def __init__(self, place: socket.socket, proxy: _Proxy) -> None:
        super().__init__(place.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = place
        self.proxy = proxy
        self.gone = threading.Event()
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.socket.close()
        self.gone.set()  # only now, so that who is let go finds the port closed
        with self._guard:
            for connection in self._connections:
                _end(connection)
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that went away is no error here
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Proxy:
    """The listener that is up, and the count of what was asked."""

    def __init__(self, place: socket.socket, upstream_url: str, fault: Fault) -> None:
        self.fault = fault
        self.upstream = urlsplit(upstream_url).netloc
        self._address: tuple[str, int] = place.getsockname()
        self._asked = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._restart: threading.Thread | None = None
        self._listener = _Listener(place, self)

    def strikes(self, path: str) -> bool:
        """Return whether this request is hit."""
        if not path.partition("?")[0].endswith(_ASKING):
            return self.fault.always and self.fault.kind != "restart"
        with self._lock:
            number, self._asked = self._asked, self._asked + 1
        if self.fault.kind == "restart":
            return number == self.fault.start
        return self.fault.hits(number)

    def die(self) -> None:
        """Stop listening, and come back after a while."""
        self._restart = threading.Thread(target=self._die)
        self._restart.start()

    def _die(self) -> None:
        self._listener.close()
        with _bound(self._address[1]) as place:
            if not self._stopped.wait(self.fault.down):
                self._listener = _Listener(place.dup(), self)

    def stop(self) -> None:
        self._stopped.set()
        self._listener.close()
        if self._restart is not None:
            self._restart.join()
            self._listener.close()  # another one, if the restart was faster


class _Handler(BaseHTTPRequestHandler):
    """One request: passed on, unless the fault strikes."""

    server: _Listener

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.proxy.fault
        if not self.server.proxy.strikes(self.path):
            self._send(*self._ask(body))
        elif fault.kind == "hang":
            self.server.gone.wait()
        elif fault.kind == "restart":
            self.server.proxy.die()
            self.server.gone.wait()
        elif fault.kind == "reset":
            self._reset(*self._ask(body))
        else:
            self._send(*self._spoilt(fault, body))

    def _spoilt(self, fault: Fault, body: bytes) -> Reply:
        if fault.kind == "429 retry-after":
            return _refusal(429, {"Retry-After": f"{fault.retry_after:g}"})
        if fault.kind in ("429", "500"):
            return _refusal(int(fault.kind), {})
        status, headers, content = self._ask(body)
        if fault.kind == "truncated json":
            return status, headers, content[: len(content) // 2]
        return status, headers, _changed(content, empty=fault.kind == "empty choices")

    def _ask(self, body: bytes) -> Reply:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        upstream = http.client.HTTPConnection(self.server.proxy.upstream, timeout=_TIMEOUT)
        try:
            upstream.request(self.command, self.path, body or None, headers)
            with upstream.getresponse() as answer:
                content = answer.read()
        except (OSError, http.client.HTTPException):
            return _refusal(502, {})
        finally:
            upstream.close()
        return answer.status, {"Content-Type": answer.headers.get_content_type()}, content

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._head(status, headers, len(content))
        self.wfile.write(content)

    def _reset(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._head(status, headers, len(content))
        self.wfile.write(content[: len(content) // 2])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        # the socket object would shut the connection down in good order first
        os.close(self.connection.detach())

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # the client may have been faster
        connection.shutdown(socket.SHUT_RDWR)


def _refusal(status: int, headers: dict[str, str]) -> Reply:
    error = {"message": f"ordered fault {status}", "type": "fault", "code": status}
    content = json.dumps({"error": error}).encode()
    return status, {"Content-Type": "application/json", **headers}, content


def _changed(content: bytes, *, empty: bool) -> bytes:
    """Return an answer without its choices, or with other text in them."""
    try:
        answer = json.loads(content)
    except ValueError:
        return content
    if not isinstance(answer, dict) or "choices" not in answer:
        return content
    if empty:
        return json.dumps({**answer, "choices": []}).encode()
    for choice in answer["choices"]:
        choice.pop("logprobs", None)
        if "message" in choice:
            choice["message"]["content"] = OFF_LABEL
        else:
            choice["text"] = OFF_LABEL
    return json.dumps(answer).encode()


__all__ = ["OFF_LABEL", "Fault", "FaultKind", "faulty_server"]
