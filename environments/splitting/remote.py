"""The device's side of a connection to an edge in another process or on another machine."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError

from .edge import fingerprint, vocabulary
from .model import SplitModel
from .packing import Packed
from .wire import Address, EdgeError, Frame, read_frame, send_frame


def parse_address(text: str) -> Address:
    """Return host and port of ``HOST:PORT``.

    Raises:
        ConfigurationError: It is written otherwise.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"edge is '{text}'; allowed: HOST:PORT, port 1 to 65535.")
    return host.strip("[]"), int(port)


class RemoteEdge(Closing):
    """The edge's half of one text, in another process.

    Args:
        address: Host and port of an edge.
        model: The device's model, which must be the same as the edge's.
        split: Layers ``p`` on the device.
        timeout_s: Longest time for connecting, and for each answer.

    Attributes:
        position: Tokens so far, whose keys and values the edge keeps.
        sent_bytes: Bytes sent since the text began, frames and headers included.

    Raises:
        EdgeError: Nobody listens there, or the edge has another model.
    """

    def __init__(
        self, address: Address, model: SplitModel, split: int, *, timeout_s: float = 60.0
    ) -> None:
        """Connect and begin a text."""
        self.position = 0
        self.sent_bytes = 0
        self._timeout_s = timeout_s
        self._vocabulary = vocabulary(model)
        self._where = f"{address[0]}:{address[1]}"
        try:
            self._connection = socket.create_connection(address, timeout_s)
        except OSError as error:
            raise EdgeError(f"no edge at {self._where}: {error}.") from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        try:
            self._compare(self._ask(Frame({"op": "open", "split": split})), model)
        except BaseException:
            self.close()
            raise

    def logits(self, packed: Packed) -> Tensor:
        """Return the logits ``(tokens, vocabulary)`` of the tokens whose states arrived.

        Raises:
            EdgeError: The edge refuses, is gone, or answers something else.
        """
        rows = packed.tokens + (packed.start is not None)
        payload = self._step(packed, "logits").payload
        if len(payload) != rows * self._vocabulary * 4:
            raise EdgeError(f"the edge at {self._where} sent {len(payload):,} bytes of logits.")
        values = np.frombuffer(payload, "<f4").astype(np.float32)
        return torch.from_numpy(values.reshape(rows, self._vocabulary))

    def token(self, packed: Packed) -> int:
        """Return the likeliest next token; raises as :meth:`logits`."""
        return self._step(packed, "token").whole("token", 0, self._vocabulary - 1)

    def close(self) -> None:
        """End the text and the connection."""
        self._connection.close()

    def _step(self, packed: Packed, want: str) -> Frame:
        header = {
            "op": "step",
            "want": want,
            "position": self.position,
            "tokens": packed.tokens,
            "encoding": packed.encoding,
            "start": packed.start,
        }
        reply = self._ask(Frame(header, packed.payload))
        if reply.header.get("op") != want:
            raise EdgeError(f"the edge at {self._where} answered no {want}.")
        self.position += packed.tokens + (packed.start is not None)
        return reply

    def _ask(self, frame: Frame) -> Frame:
        self.sent_bytes += send_frame(self._connection, frame, self._timeout_s)
        reply = read_frame(self._connection, self._timeout_s)
        if reply is None:
            raise EdgeError(f"the edge at {self._where} closed the connection.")
        if reply.header.get("op") == "error":
            raise EdgeError(f"the edge at {self._where} refused: {reply.header.get('message')}")
        return reply

    def _compare(self, opened: Frame, model: SplitModel) -> None:
        theirs: Any = opened.header.get("fingerprint")
        if theirs != (ours := fingerprint(model)):
            raise EdgeError(
                f"the edge at {self._where} has the model {opened.header.get('model')} "
                f"({theirs}), the device {model.identity} ({ours}); allowed: the same."
            )
