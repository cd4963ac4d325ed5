"""The router's endpoint on a socket: one process, one loop, an end that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.router.app import build_app
from icl_optimizer.router.connections import bounded_protocol
from icl_optimizer.router.guards import Limits

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from icl_optimizer.router.keys import Keys
    from icl_optimizer.router.router import Router

_OTHER_FILES = 256
"""Files and connections to servers, beside those of callers."""


class RouterServer(uvicorn.Server):
    """uvicorn that goes on listening while it drains.

    A first SIGTERM or SIGINT lets requests under way finish, while ``/health`` says 503 and new
    requests are refused; a second one ends at once.

    Args:
        app: From :func:`~icl_optimizer.router.app.build_app`.
        limits: What callers may take.
        drain_s: Longest time to finish, seconds.
    """

    def __init__(self, app: Starlette, limits: Limits, drain_s: float) -> None:
        """Prepare; nothing listens yet."""
        protocol, self.callers = bounded_protocol(limits)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                # it would log requests; what matters is in the decision log
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=1,
                backlog=min(limits.max_connections, 2048),
            )
        )
        self._app = app
        self._drain_s = drain_s
        self._end: float | None = None

    def drain(self) -> None:
        """Refuse new requests, and end when those under way are answered."""
        if self._end is not None:
            self.should_exit = True
            return
        self._app.state.draining = True
        self._end = time.monotonic() + self._drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain. The signal is not raised again afterwards: the caller has to clean up, too."""
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        idle = not self.server_state.tasks
        if self._end is not None and (idle or time.monotonic() >= self._end):
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, so that a taken one is known at once.

    Raises:
        ConfigurationError: There is no such address, or it is taken.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(f"host is '{host}': {error}; allowed: an address here.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"host and port are {host}:{port}: {error.strerror}; allowed: an address of this "
            "machine and a port that is free."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a bound socket is reached, such as http://127.0.0.1:8000."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_router(
    router: Router,
    keys: Keys,
    listener: socket.socket,
    *,
    open_to_all: bool = False,
    ready: Callable[[RouterServer], Any] | None = None,
) -> None:
    """Run a router and its endpoint until a signal, or :meth:`RouterServer.drain`.

    Args:
        router: Not running yet.
        keys: Of the callers.
        listener: Bound, from :func:`bind`; closed at the end.
        open_to_all: Whether callers without keys may use any host name.
        ready: Called with the server when the router runs.
    """
    try:
        limits = Limits.of(router.settings)
        _allow_files(limits.max_connections + _OTHER_FILES)
        async with router:
            app = build_app(router, keys, limits, open_to_all=open_to_all)
            server = RouterServer(app, limits, router.settings.drain_s)
            callers = server.callers
            router.metrics.watch_connections(callers.__len__, lambda: callers.evicted)
            # what was loaded stays for good: the collector would look through it again and again,
            # tens of milliseconds in which nobody is answered
            gc.collect()
            gc.freeze()
            # from here on callers wait instead of being turned away
            listener.listen(server.config.backlog)
            if ready is not None:
                ready(server)
            await server.serve([listener])
    finally:
        listener.close()


def serve(
    router: Router,
    keys: Keys,
    listener: socket.socket,
    *,
    open_to_all: bool = False,
    ready: Callable[[RouterServer], Any] | None = None,
) -> None:
    """Run :func:`serve_router` in a loop of its own, on uvloop where there is one."""
    running = serve_router(router, keys, listener, open_to_all=open_to_all, ready=ready)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(running)


def end_on_signals() -> None:
    """Have SIGTERM end the program as an interrupt does, so that what was started is stopped."""

    def stop(sig: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _allow_files(needed: int) -> None:
    """Raise the number of open files as far as needed.

    Raises:
        ConfigurationError: The system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"max_connections is {needed - _OTHER_FILES}; allowed: at most {hard - _OTHER_FILES}, "
            "from the system's limit on open files (ulimit -Hn)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


__all__ = ["RouterServer", "bind", "end_on_signals", "serve", "serve_router", "url_of"]
