"""Hidden states as bytes, after the channel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .channel import Channel, dequantised, quantised
from .wire import EdgeError

Encoding = Literal["float32", "int8", "int4"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
_BITS: dict[Encoding, Literal[4, 8]] = {"int8": 8, "int4": 4}
_FLOAT = np.dtype("<f4")
_SHIFT = 8


@dataclass(frozen=True)
class Packed:
    """The states of some tokens as they arrive.

    Attributes:
        payload: ``float32``: the states; else one float32 scale per token, then the whole numbers,
            those of 4 bits two to a byte. Little-endian, token by token.
        encoding: How to read these.
        tokens: Tokens in the payload.
        start: Number of the text's first token, whose state is not sent because the edge finds it
            from the number; None where all states are sent.
    """

    payload: bytes
    encoding: Encoding
    tokens: int
    start: int | None = None


def pack(
    states: Tensor, channel: Channel, generator: torch.Generator, start: int | None = None
) -> Packed:
    """Send states over a channel and return the bytes that arrive.

    Whole numbers are sent as such, unless noise has made them something else.

    Args:
        states: States ``(1, tokens, hidden)`` of the device.
        channel: What happens to them.
        generator: Source of noise and losses.
        start: Number of the first token, where these states begin a text.
    """
    known = start is not None and channel.known_start
    sent = states[:, 1:] if known else states
    received = replace(channel, known_start=False).send(sent, generator)
    bits = channel.bits if _whole_numbers_arrive(channel) else None
    payload = _floats(received) if bits is None else _numbers(sent, received, bits)
    encoding: Encoding = "float32" if bits is None else "int8" if bits == 8 else "int4"
    return Packed(payload, encoding, sent.shape[1], start if known else None)


def unpack(packed: Packed, hidden: int) -> Tensor:
    """Return the states ``(1, tokens, hidden)`` that arrived.

    Raises:
        EdgeError: The payload is not as long as it must be, or has numbers that are not finite.
    """
    states = (
        _float_states(packed, hidden)
        if packed.encoding == "float32"
        else _whole_states(packed, hidden, _BITS[packed.encoding])
    )
    if not bool(torch.isfinite(states).all()):
        raise EdgeError("states hold numbers that are not finite; allowed: finite ones.")
    return states


def _whole_numbers_arrive(channel: Channel) -> bool:
    noisy = channel.sigma > 0 or channel.snr_db is not None
    return not noisy and (channel.fading is None or channel.equalised)


def _floats(states: Tensor) -> bytes:
    return states.contiguous().numpy().astype(_FLOAT, copy=False).tobytes()


def _numbers(sent: Tensor, received: Tensor, bits: int) -> bytes:
    numbers, scale = quantised(sent, bits)
    # what was lost arrived as zero; all else arrived as it was sent
    numbers = torch.where(received == 0, 0, numbers)[0]
    whole = numbers.numpy() if bits == 8 else _paired(numbers.numpy())
    return _floats(scale) + whole.tobytes()


def _paired(numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return numbers of 4 bits ``(tokens, hidden)``, two to a byte, the first in the upper half."""
    shifted = (numbers + _SHIFT).astype(np.uint8)
    if shifted.shape[1] % 2:
        shifted = np.pad(shifted, ((0, 0), (0, 1)))
    return (shifted[:, ::2] << 4 | shifted[:, 1::2]).astype(np.uint8)


def _float_states(packed: Packed, hidden: int) -> Tensor:
    _check_length(packed, hidden * _FLOAT.itemsize)
    values = np.frombuffer(packed.payload, _FLOAT).astype(np.float32)
    return torch.from_numpy(values.reshape(1, packed.tokens, hidden))


def _whole_states(packed: Packed, hidden: int, bits: int) -> Tensor:
    per_token = hidden if bits == 8 else (hidden + 1) // 2
    _check_length(packed, per_token + _FLOAT.itemsize)
    scales = np.frombuffer(packed.payload, _FLOAT, packed.tokens).astype(np.float32)
    numbers = np.frombuffer(packed.payload, np.uint8, offset=scales.nbytes)
    numbers = numbers.reshape(packed.tokens, per_token)
    if bits == 8:
        whole = numbers.view(np.int8).copy()
    else:
        halves = np.stack([numbers >> 4, numbers & 15], axis=-1)
        whole = halves.reshape(packed.tokens, -1)[:, :hidden].astype(np.int8) - _SHIFT
    states = dequantised(torch.from_numpy(whole), torch.from_numpy(scales)[:, None])
    return states[None]


def _check_length(packed: Packed, per_token: int) -> None:
    expected = packed.tokens * per_token
    if len(packed.payload) != expected:
        raise EdgeError(
            f"payload has {len(packed.payload):,} bytes; allowed: {expected:,} for "
            f"{packed.tokens} tokens as {packed.encoding}."
        )
