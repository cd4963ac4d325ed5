"""What a split costs the device: operations, energy, and the time to send the hidden state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from icl_optimizer.errors import ConfigurationError

SCALE_BITS = 32
"""Bits of the scale that is sent with each quantised token."""


def paper_flops(split: int, tokens: int, hidden: int) -> int:
    """Return the device's load ``C_UE(p)`` by eq. (2) of Chen et al., as printed.

    ``12 d_in d^2 + (p - 1) 12 d^3``: the first layer handles ``d_in`` tokens, each later layer as
    if its input were ``d`` tokens long, whatever the text's length. :class:`Architecture` counts
    what a real model does.

    Args:
        split: Layers ``p`` on the device, at least 1.
        tokens: Length ``d_in`` of the input, in tokens.
        hidden: Width ``d`` of the hidden state.
    """
    _check("split", split, split >= 1, "at least 1")
    return 12 * tokens * hidden**2 + (split - 1) * 12 * hidden**3


@dataclass(frozen=True)
class Architecture:
    """The sizes that decide how many operations a layer of the Llama family takes.

    Counted are the matrix products, a multiplication and an addition each: projections per token,
    attention of every new token to every token so far (the masked half too, which is computed as
    well), the gated feed-forward part. Not counted: norms, rotary positions, softmax, activations
    and residual sums, which have no matrix product, and the look-up of embeddings.

    Attributes:
        hidden: Width of the hidden state.
        heads: Heads of queries.
        key_heads: Heads of keys and of values, which groups of query heads share.
        head_width: Width of one head.
        inner: Width of the feed-forward part, of which there are three matrices (SwiGLU).
    """

    hidden: int
    heads: int
    key_heads: int
    head_width: int
    inner: int

    @classmethod
    def of(cls, config: Any) -> Architecture:
        """Return the sizes in a model's configuration, as transformers names them."""
        heads = int(config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            hidden=int(config.hidden_size),
            heads=heads,
            key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_width=int(width),
            inner=int(config.intermediate_size),
        )

    def layer_flops(self, tokens: int, cached: int = 0) -> int:
        """Return the floating-point operations of one layer.

        Args:
            tokens: New tokens.
            cached: Tokens before these, whose keys and values are kept.
        """
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        projections = self.hidden * (2 * queries + 2 * keys)
        attention = 2 * queries * (cached + tokens)
        feed_forward = 3 * self.hidden * self.inner
        return 2 * tokens * (projections + attention + feed_forward)

    def ue_flops(self, split: int, tokens: int, cached: int = 0) -> int:
        """Return the floating-point operations of layers ``1..split``, see :meth:`layer_flops`."""
        _check("split", split, split >= 1, "at least 1")
        return split * self.layer_flops(tokens, cached)


@dataclass(frozen=True)
class Device:
    """A device's efficiency.

    Attributes:
        flops_per_joule: Floating-point operations per joule, above 0. The default is a choice: the
            order of what embedded graphics processors reach at their best in single precision.
    """

    flops_per_joule: float = 1e11

    def __post_init__(self) -> None:
        """Refuse what is no efficiency."""
        value = self.flops_per_joule
        _check("flops_per_joule", value, 0 < value < math.inf, "above 0 and finite")

    def energy_j(self, flops: float) -> float:
        """Return the energy of ``flops`` operations, in J."""
        return flops / self.flops_per_joule


@dataclass(frozen=True)
class Link:
    """The link from the device to the edge.

    Attributes:
        bit_per_s: Rate, above 0.
    """

    bit_per_s: float

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        _check("bit_per_s", self.bit_per_s, 0 < self.bit_per_s < math.inf, "above 0 and finite")

    @classmethod
    def shannon(cls, snr_db: float, bandwidth_hz: float) -> Link:
        """Return the link at the Shannon capacity ``B log2(1 + SNR)``.

        Args:
            snr_db: Signal-to-noise ratio, in dB.
            bandwidth_hz: Bandwidth ``B``, in Hz.
        """
        _check("bandwidth_hz", bandwidth_hz, 0 < bandwidth_hz < math.inf, "above 0 and finite")
        return cls(bandwidth_hz * math.log2(1 + 10 ** (snr_db / 10)))

    def seconds(self, bits: float) -> float:
        """Return how long ``bits`` take, in s."""
        return bits / self.bit_per_s


def state_bits(tokens: int, hidden: int, bits: int | None = None) -> int:
    """Return the bits of the hidden states of ``tokens`` tokens on the link.

    Args:
        tokens: Tokens that are sent.
        hidden: Width of the hidden state.
        bits: Bits per element, with a scale of 32 bits per token; None for all 32, without scale.
    """
    per_token = 32 * hidden if bits is None else bits * hidden + SCALE_BITS
    return tokens * per_token


@dataclass(frozen=True)
class SplitCost:
    """What computing and sending costs the device.

    Attributes:
        flops: Floating-point operations of the device's layers, counted.
        energy_j: Their energy, in J.
        sent_bits: Bits on the link.
        send_s: Time to send these, in s.
    """

    flops: int
    energy_j: float
    sent_bits: int
    send_s: float

    @classmethod
    def of(cls, flops: int, sent_bits: int, device: Device, link: Link) -> SplitCost:
        """Return the cost of ``flops`` operations and ``sent_bits`` bits."""
        return cls(flops, device.energy_j(flops), sent_bits, link.seconds(sent_bits))


def _check(field: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ConfigurationError(f"{field} is {value}; allowed: {allowed}.")
