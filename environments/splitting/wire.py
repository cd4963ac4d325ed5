"""Frames between device and edge: a fixed prefix, a JSON header, raw bytes.

The prefix holds the letters ``ICLS``, the version (2 bytes), and the lengths of the header (4
bytes) and of what follows it (8 bytes), all big-endian.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]
MAGIC = b"ICLS"
VERSION = 1
PREFIX = struct.Struct("!4sHIQ")
HEADER_LIMIT = 4096
"""Longest header, in bytes."""
PAYLOAD_LIMIT = 256 * 2**20
"""Longest payload that either side accepts, in bytes."""
_PIECE = 2**20


class EdgeError(ConnectionError):
    """Device and edge do not understand each other; the message says what is wrong."""


class FrameError(EdgeError):
    """What came is no frame, so nothing after it can be read either."""


@dataclass(frozen=True)
class Frame:
    """What one side tells the other.

    Attributes:
        header: JSON object; ``op`` says what it is about.
        payload: Raw bytes.
    """

    header: Mapping[str, Any]
    payload: bytes = b""

    def encoded(self) -> bytes:
        """Return the bytes on the connection."""
        header = json.dumps(self.header, separators=(",", ":")).encode()
        return PREFIX.pack(MAGIC, VERSION, len(header), len(self.payload)) + header + self.payload

    def whole(self, name: str, least: int, most: int) -> int:
        """Return a whole number of the header.

        Raises:
            EdgeError: It is missing, no whole number, or out of range.
        """
        value = self.header.get(name)
        if type(value) is not int or not least <= value <= most:
            raise EdgeError(
                f"{name} is {_shown(value)}; allowed: a whole number, {least} to {most}."
            )
        return value

    def word(self, name: str, allowed: tuple[str, ...]) -> str:
        """Return a word of the header.

        Raises:
            EdgeError: It is missing or none of the allowed.
        """
        value = self.header.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise EdgeError(f"{name} is {_shown(value)}; allowed: {', '.join(allowed)}.")
        return value


def send_frame(connection: socket.socket, frame: Frame, timeout: float) -> int:
    """Send a frame within ``timeout`` seconds and return its number of bytes.

    Raises:
        EdgeError: The other side is gone or takes nothing.
    """
    content = frame.encoded()
    connection.settimeout(timeout)
    try:
        connection.sendall(content)
    except TimeoutError as error:
        raise EdgeError(f"the other side took no data for {timeout:g} s.") from error
    except OSError as error:
        raise EdgeError(f"the connection broke while sending: {error}.") from error
    return len(content)


def read_frame(
    connection: socket.socket,
    timeout: float,
    *,
    idle: float | None = None,
    payload_limit: int = PAYLOAD_LIMIT,
) -> Frame | None:
    """Return the next frame, or None when the other side has closed the connection before one.

    Args:
        connection: Where it comes from.
        timeout: Seconds in which the whole frame must be there, once it has begun.
        idle: Seconds in which it must begin; ``timeout`` if not given.
        payload_limit: Most bytes of the payload.

    Raises:
        FrameError: It is no frame, too long, of another version, cut short or too slow.
    """
    begun = _read(connection, 1, time.monotonic() + (timeout if idle is None else idle))
    if not begun:
        return None
    deadline = time.monotonic() + timeout
    prefix = begun + _whole(connection, PREFIX.size - 1, deadline)
    magic, version, header_size, payload_size = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise FrameError(f"a frame begins with {magic!r}; allowed: {MAGIC!r}.")
    if version != VERSION:
        raise FrameError(f"version is {version}; allowed: {VERSION}.")
    _check_size("header", header_size, HEADER_LIMIT)
    _check_size("payload", payload_size, payload_limit)
    header = _header(_whole(connection, header_size, deadline))
    return Frame(header, _whole(connection, payload_size, deadline))


def _header(content: bytes) -> Mapping[str, Any]:
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        raise FrameError("a frame's header is no JSON.") from None
    if not isinstance(header, dict):
        raise FrameError("a frame's header is JSON, but no object.")
    return header


def _check_size(part: str, size: int, limit: int) -> None:
    if size > limit:
        raise FrameError(f"a frame's {part} has {size:,} bytes; allowed: at most {limit:,}.")


def _whole(connection: socket.socket, size: int, deadline: float) -> bytes:
    content = _read(connection, size, deadline)
    if len(content) < size:
        raise FrameError(f"a frame was cut short: {len(content):,} of {size:,} bytes came.")
    return content


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Return ``size`` bytes, or fewer where the other side has closed the connection."""
    content = bytearray()
    while len(content) < size:
        left = deadline - time.monotonic()
        try:
            # what has come already is read even if the time is up
            connection.settimeout(max(left, 1e-3))
            piece = connection.recv(min(size - len(content), _PIECE))
        except TimeoutError as error:
            raise FrameError("nothing came in time.") from error
        except OSError as error:
            raise FrameError(f"the connection broke while reading: {error}.") from error
        if not piece:
            break
        content += piece
        if left < 0 and len(content) < size:
            raise FrameError("a frame took too long.")
    return bytes(content)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
