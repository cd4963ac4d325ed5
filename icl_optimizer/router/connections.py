"""Connections that cost the router little: bounded in number, in time and in size of headers."""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from icl_optimizer.router.guards import Limits
from icl_optimizer.router.replies import raw_error

MOST_HEADERS = 100
MOST_PIPELINED = 8
_LINGER_S = 1.0
"""Seconds in which input is read and thrown away, so that a client that is still sending gets to
read the error; a connection closed with unread input is reset."""


class Connections:
    """All open connections of a server, those that wait for a request in order of their waiting.

    At the limit the one that has waited longest without a complete request makes room. So clients
    that connect and say nothing, however many, cannot keep out those that ask at once.

    Attributes:
        limits: Of the server.
        evicted: Connections closed to make room.
        refused: Connections refused because all others were being served.
        most: The highest number open at once.
    """

    def __init__(self, limits: Limits) -> None:
        """Begin with none."""
        self.limits = limits
        self.evicted = 0
        self.refused = 0
        self.most = 0
        self._open: set[BoundedProtocol] = set()
        self._waiting: dict[BoundedProtocol, None] = {}

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    def admit(self, connection: BoundedProtocol) -> bool:
        """Make room for a new connection; False when all others are being served."""
        if len(self._open) >= self.limits.max_connections:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                self.refused += 1
                return False
            self.evicted += 1
            self.remove(oldest)
            oldest.drop()
        self._open.add(connection)
        self.most = max(self.most, len(self._open))
        return True

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def wait(self, connection: BoundedProtocol) -> None:
        """Note that a connection has nothing to do until its client sends a whole request."""
        if connection in self._open:
            self._waiting[connection] = None

    def serve(self, connection: BoundedProtocol) -> None:
        """Note that a connection's request is complete."""
        self._waiting.pop(connection, None)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on what a client may hold without having asked anything.

    uvicorn's own limit on concurrency answers 503 to everybody once it is reached, and llhttp has
    no limit on headers.
    """

    shared: ClassVar[Connections]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._deaf = False
        self._refusal = (400, "this is not HTTP/1.1")
        self._timer: TimerHandle | None = None
        self._stalled: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or refuse."""
        super().connection_made(transport)
        if not self.shared.admit(self):
            transport.write(raw_error(503, "all connections are in use; allowed: to try again"))
            transport.close()
            return
        self.shared.wait(self)
        self._arm(self.shared.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        self.shared.remove(self)
        self._disarm()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection, at once where the client takes nothing."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Read; refuse headers that are too long."""
        if self._deaf or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._timer is None:
                self._arm(self.shared.limits.header_timeout_s)
        super().data_received(data)
        too_long = self._head_bytes > self.shared.limits.max_head_bytes
        if self._in_head and too_long and not self._deaf:
            self._refuse(*self._too_long())

    def on_message_begin(self) -> None:
        """Give the headers their time."""
        super().on_message_begin()
        if self._timer is None:
            self._arm(self.shared.limits.header_timeout_s)

    def on_headers_complete(self) -> None:
        """Check the head; what is raised here ends in :meth:`send_400_response`."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.shared.limits.max_head_bytes or len(self.headers) > MOST_HEADERS:
            self._refusal = self._too_long()
            raise ValueError
        if not self.url.startswith(b"/"):
            self._refusal = (400, "the target is no path; allowed: one that begins with /")
            raise ValueError
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refusal = (400, f"too many requests at once; allowed: {MOST_PIPELINED}")
            raise ValueError
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Count the request as complete."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0
        if not self.cycle.response_complete:
            self.shared.serve(self)

    def on_response_complete(self) -> None:
        """Wait for the next request; for the rest of this one, not for long."""
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        self.shared.wait(self)
        if self.cycle.more_body:
            self._linger()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in OpenAI's form."""
        self._refuse(*self._refusal)

    def pause_writing(self) -> None:
        """Watch a client that reads slowly."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """End the watch."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch(self, unsent: int) -> None:
        patience = self.shared.limits.client_timeout_s
        self._stalled = self.loop.call_later(patience, self._check_progress, unsent)

    def _check_progress(self, before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= before:
            self.transport.abort()
        else:
            self._watch(unsent)

    def _too_long(self) -> tuple[int, str]:
        most = self.shared.limits.max_head_bytes
        return 431, f"the headers are too long; allowed: {most} bytes, {MOST_HEADERS} headers"

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: float) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # the answer to an earlier request is not to suffer
            self._arm(seconds)
        else:
            self.drop()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close, unless another answer is being written."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        self.transport.write(raw_error(status, message))
        self._linger()

    def _linger(self) -> None:
        self._deaf = True
        self._unset_keepalive_if_required()
        self._arm(_LINGER_S)


def bounded_protocol(limits: Limits) -> tuple[type[BoundedProtocol], Connections]:
    """Return the protocol of a server with these limits, and its connections."""
    shared = Connections(limits)
    return type("RouterProtocol", (BoundedProtocol,), {"shared": shared}), shared


__all__ = ["BoundedProtocol", "Connections", "bounded_protocol"]
