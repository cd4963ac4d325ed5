"""The edge's half as a server: one connection is one device, which has one text at a time."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError

from .edge import EdgeSession, context_size, fingerprint, vocabulary
from .model import SplitModel
from .packing import ENCODINGS, Encoding, Packed
from .wire import PAYLOAD_LIMIT, EdgeError, Frame, FrameError, read_frame, send_frame

_DRAIN_S = 1.0


@dataclass(frozen=True)
class Limits:
    """What keeps one device from harming the others.

    Attributes:
        timeout_s: Time for a frame, once it has begun.
        idle_s: Time between frames, after which a connection is closed.
        connections: Most devices at once.
    """

    timeout_s: float = 30.0
    idle_s: float = 600.0
    connections: int = 16


class EdgeServer(Closing):
    """Serves layers ``p + 1..L``, for any ``p`` that a device asks for.

    There is neither encryption nor a password: whoever reaches the port may use it.

    Args:
        model: The model.
        host: Address to listen on; the default is reached from this machine alone.
        port: Port; 0 for a free one.
        limits: Times and numbers of connections.
    """

    def __init__(
        self,
        model: SplitModel,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        """Listen; nothing is answered before :meth:`start` or :meth:`serve_forever`."""
        self._server = _Server(model, host, port, limits or Limits())
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def serve_forever(self) -> None:
        """Answer until :meth:`close` is called by another thread."""
        self._server.serve_forever(poll_interval=0.05)

    def start(self) -> Self:
        """Answer in a thread of its own."""
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening and end all connections."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.end_connections()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, model: SplitModel, host: str, port: int, limits: Limits) -> None:
        try:
            super().__init__((host, port), _Device)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"the edge cannot listen on {host}:{port}: {error}.") from None
        self.limits = limits
        self.desk = Desk(model)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def admit(self, connection: socket.socket) -> bool:
        """Return whether there is room for one more."""
        with self._lock:
            room = len(self._connections) < self.limits.connections
            if room:
                self._connections.add(connection)
            return room

    def leave(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def end_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Device(socketserver.BaseRequestHandler):
    """One connection."""

    server: _Server
    request: socket.socket

    def handle(self) -> None:
        """Answer frame after frame; what is no frame ends the connection, not the server."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        # a device that is gone needs no answer
        with suppress(EdgeError):
            if not self.server.admit(self.request):
                limit = self.server.limits.connections
                self._refuse(f"the edge is busy with {limit} devices; try again later.")
                return
            try:
                self._converse()
            except FrameError as error:
                self._refuse(str(error))
            finally:
                self.server.leave(self.request)

    def _converse(self) -> None:
        limits, visit = self.server.limits, Visit()
        while True:
            frame = read_frame(
                self.request,
                limits.timeout_s,
                idle=limits.idle_s,
                payload_limit=self.server.desk.payload_limit,
            )
            if frame is None:
                return
            try:
                reply = self.server.desk.answer(frame, visit)
            except (EdgeError, ConfigurationError) as error:
                reply = _error(str(error))
            except Exception as error:
                send_frame(self.request, _error(f"the edge failed: {error!r}"), limits.timeout_s)
                raise
            send_frame(self.request, reply, limits.timeout_s)

    def _refuse(self, message: str) -> None:
        """Say why, and take what is still coming, which otherwise would destroy the answer."""
        send_frame(self.request, _error(message), self.server.limits.timeout_s)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _DRAIN_S
            while (left := deadline - time.monotonic()) > 0:
                self.request.settimeout(left)
                if not self.request.recv(2**20):
                    return


@dataclass
class Visit:
    """What the edge keeps of one connection."""

    session: EdgeSession | None = field(default=None)


class Desk:
    """Answers frames: ``open`` begins a text, ``step`` brings the states of its next tokens."""

    def __init__(self, model: SplitModel) -> None:
        """Find out what is said of the model."""
        self.model = model
        self.about: dict[str, Any] = {
            "layers": model.layers,
            "hidden": model.hidden,
            "vocabulary": vocabulary(model),
            "model": model.identity,
            "fingerprint": fingerprint(model),
        }

    @property
    def payload_limit(self) -> int:
        """Most bytes of a frame: the states of a whole context."""
        return min(context_size(self.model) * self.model.hidden * 4, PAYLOAD_LIMIT)

    def answer(self, frame: Frame, visit: Visit) -> Frame:
        """Return the answer to a frame.

        Raises:
            EdgeError: It asks for what there is not; the text goes on where it was.
        """
        if frame.word("op", ("open", "step")) == "open":
            visit.session = EdgeSession(self.model, frame.whole("split", 1, self.model.layers))
            return Frame({"op": "opened", **self.about})
        if visit.session is None:
            raise EdgeError("a step comes before a text was opened; allowed: open, then step.")
        return self._step(frame, visit.session)

    def _step(self, frame: Frame, session: EdgeSession) -> Frame:
        packed = self._packed(frame)
        place = frame.whole("position", 0, context_size(self.model))
        if place != session.position:
            raise EdgeError(f"position is {place}; allowed: {session.position}, the next token.")
        if frame.word("want", ("token", "logits")) == "token":
            return Frame({"op": "token", "token": session.token(packed)})
        rows = packed.tokens + (packed.start is not None)
        size = rows * vocabulary(self.model) * 4
        if size > PAYLOAD_LIMIT:
            raise EdgeError(
                f"logits of {rows} tokens have {size:,} bytes; allowed: {PAYLOAD_LIMIT:,}."
            )
        logits = session.logits(packed)
        return Frame(
            {"op": "logits", "tokens": rows}, logits.numpy().astype("<f4", copy=False).tobytes()
        )

    def _packed(self, frame: Frame) -> Packed:
        encoding: Encoding = next(e for e in ENCODINGS if e == frame.word("encoding", ENCODINGS))
        tokens = frame.whole("tokens", 0, context_size(self.model))
        start = None
        if frame.header.get("start") is not None:
            start = frame.whole("start", 0, vocabulary(self.model) - 1)
        return Packed(frame.payload, encoding, tokens, start)


def _error(message: str) -> Frame:
    return Frame({"op": "error", "message": message[:2000]})
