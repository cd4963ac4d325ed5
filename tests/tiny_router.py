"""A scripted router with the interface that the endpoint uses, and the endpoint on a socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

from tiny_upstream import DONE, event

from icl_optimizer.router.keys import Keys
from icl_optimizer.router.metrics import RouterMetrics
from icl_optimizer.router.requests import Choice, Routed, RoutedRequest
from icl_optimizer.router.serving import RouterServer, bind, serve
from icl_optimizer.router.settings import RouterSettings

if TYPE_CHECKING:
    from icl_optimizer.router.router import Router

ASK = {"messages": [{"role": "user", "content": "Hello"}]}
Script = Callable[[RoutedRequest], AsyncIterator[bytes]]


async def hello(request: RoutedRequest) -> AsyncIterator[bytes]:
    """Answer as a server would."""
    if request.streams:
        for word in ("Hel", "lo"):
            yield event(word)
        yield DONE
    else:
        yield json.dumps({"choices": [{"message": {"content": "Hello"}}]}).encode()


class ScriptedRouter:
    """Has the interface of ``Router`` and answers by a script; no server is asked.

    Attributes:
        asked: Requests that came through.
        closed: How many answers were closed.
    """

    def __init__(self, script: Script = hello, **settings: Any) -> None:
        self.script = script
        self.settings = RouterSettings(policy="shortest-queue", **settings)
        self.metrics = RouterMetrics(["one"])
        self.health = SimpleNamespace(state="up")
        self.fleet = SimpleNamespace(servers=[SimpleNamespace(health=self.health)])
        self.asked: list[RoutedRequest] = []
        self.closed = 0
        self.before: Callable[[], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def route(self, request: RoutedRequest) -> Routed:
        self.asked.append(request)
        if self.before is not None:
            await self.before()
        chunks = self.script(request)
        media_type = "text/event-stream" if request.streams else "application/json"

        async def close() -> None:
            self.closed += 1

        headers = {"x-request-id": request.id, "x-server": "one"}
        return Routed(cast(Choice, None), media_type, headers, chunks, close)

    def status(self) -> dict[str, Any]:
        self.metrics.server_state("one", 0, 0, self.health.state)
        return {"servers": [], "totals": {"requests": len(self.asked)}, "decisions": []}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is checked on the way."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "code"}
        assert all(isinstance(error[name], str) and error[name] for name in ("message", "type"))
        return cast(dict[str, Any], error)


@dataclass
class Endpoint:
    """A router's endpoint on loopback."""

    port: int
    server: RouterServer = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, data, {**given, **(headers or {})})
            answer = connection.getresponse()
            got = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, got, answer.read())
        finally:
            connection.close()

    def chat(self, body: Any = ASK, **headers: str) -> Reply:
        """Ask for a completion; ``x_task_type`` stands for the header ``x-task-type``."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", "/v1/chat/completions", body, given)

    def raw(self, data: bytes, *, end: bool = True) -> bytes:
        """Send bytes and return all that comes back until the connection ends."""
        with self.connect() as connection:
            with suppress(OSError):  # it may be closed before all is sent
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            return received(connection)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def received(connection: socket.socket) -> bytes:
    """Return all that a connection brings until it ends."""
    parts: list[bytes] = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


@contextmanager
def endpoint(
    router: ScriptedRouter | Router, keys: Keys | None = None, *, open_to_all: bool = False
) -> Iterator[Endpoint]:
    """Run a router's endpoint while the block runs; ended as by a signal."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    started = threading.Event()
    found: list[RouterServer] = []
    loops: list[asyncio.AbstractEventLoop] = []

    def ready(server: RouterServer) -> None:
        found.append(server)
        loops.append(asyncio.get_running_loop())
        started.set()

    def run() -> None:
        try:
            serve(
                cast("Router", router),
                keys or Keys(),
                listener,
                open_to_all=open_to_all,
                ready=ready,
            )
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(30)
        yield Endpoint(port, found[0])
    finally:
        for server in found:
            with suppress(RuntimeError):  # it has ended already
                loops[0].call_soon_threadsafe(server.drain)
        thread.join(30)
        assert not thread.is_alive()
