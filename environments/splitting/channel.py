"""What happens to a hidden state between the device and the edge: eqs. (3) and (4) of Chen et al.

A channel is written as ``sigma=1,loss=0.1`` on the command line and in tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from icl_optimizer.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:
    from torch import Generator, Tensor

PERFECT = "perfect"
"""How a channel is written that changes nothing."""


@dataclass(frozen=True)
class Channel:
    """A noisy link for hidden states of shape ``(texts, tokens, hidden)``.

    The steps, in order: quantisation, fading and noise, loss. Where fading and ``threshold`` are
    given, what fades below the threshold is lost (eq. 4); ``loss`` is lost independently of that.

    Attributes:
        sigma: Standard deviation of the noise ``n`` of eq. (3), in the units of the hidden state.
        snr_db: Instead of ``sigma``: signal-to-noise ratio in dB against each token's mean power,
            as a sender has it that scales every token to its transmission power.
        fading: Scale ``sigma_h`` of the Rayleigh gain ``h`` of eq. (3); None for ``h = 1``.
        threshold: Gain ``h_th`` below which an element or token is lost, eq. (4).
        equalised: Whether the receiver knows ``h`` and divides by it, so that fading raises the
            noise; else it gets ``h y + n`` as eq. (3) prints it.
        loss: Probability that an element or token is lost and arrives as zero.
        unit: What fades and is lost as one: single elements, or a token's whole packet.
        bits: Bits per element that are sent, with one scale per token; None for all 32.
        known_start: Whether the edge knows the first token's state, which depends on the start
            token alone and so needs no transmission.
    """

    sigma: float = 0.0
    snr_db: float | None = None
    fading: float | None = None
    threshold: float = 0.0
    equalised: bool = True
    loss: float = 0.0
    unit: Literal["element", "token"] = "element"
    bits: Literal[4, 8] | None = None
    known_start: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        _check("sigma", self.sigma, self.sigma >= 0, "at least 0")
        _check("loss", self.loss, 0 <= self.loss <= 1, "0 to 1")
        _check("threshold", self.threshold, self.threshold >= 0, "at least 0")
        _check("fading", self.fading, self.fading is None or self.fading > 0, "more than 0")
        _check("unit", self.unit, self.unit in ("element", "token"), "element, token")
        _check("bits", self.bits, self.bits in (None, 4, 8), "4, 8, or none")
        _check("snr_db", self.snr_db, self.snr_db is None or self.sigma == 0, "none with a sigma")
        if self.threshold and self.fading is None:
            raise ConfigurationError("channel: threshold needs a fading scale; allowed: both.")

    @classmethod
    def parse(cls, text: str) -> Channel:
        """Return the channel that ``text`` writes, as in ``snr_db=5,unit=token,loss=0.1``.

        Raises:
            ConfigurationError: A field or its value is not known.
        """
        if text == PERFECT:
            return cls()
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in _KINDS:
                raise unknown_name("field of a channel", name, _KINDS)
            try:
                given[name] = _KINDS[name](value)
            except (ValueError, KeyError):
                raise ConfigurationError(
                    f"channel: {name} is '{value}'; allowed: {_ALLOWED[name]}."
                ) from None
        return cls(**given)

    def __str__(self) -> str:
        """Return how the channel is written: what differs from a perfect one."""
        parts = [
            f"{f.name}={_written(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ",".join(parts) or PERFECT

    @property
    def changes_nothing(self) -> bool:
        """Whether what arrives is exactly what was sent."""
        return self == Channel(known_start=self.known_start)

    def send(self, hidden: Tensor, generator: Generator) -> Tensor:
        """Return what arrives at the edge.

        Args:
            hidden: States that are sent, ``(texts, tokens, hidden)``; not changed.
            generator: Source of fading, noise and losses.
        """
        import torch

        if self.changes_nothing:
            return hidden
        received = hidden if self.bits is None else dequantised(*quantised(hidden, self.bits))
        kept = torch.ones((), dtype=torch.bool)
        gain = self._gain(hidden, generator)
        noise = self._noise(hidden, generator)
        if gain is None:
            received = received + noise
        else:
            received = received + noise / gain if self.equalised else received * gain + noise
            kept = kept & (gain >= self.threshold)
        if self.loss:
            drawn = torch.rand(_units(hidden, self.unit), generator=generator)
            kept = kept & (drawn >= self.loss)
        # not a product: what is lost may be infinite where the gain was next to nothing
        received = torch.where(kept, received, torch.zeros(()))
        if self.known_start:
            received = torch.cat([hidden[:, :1], received[:, 1:]], dim=1)
        return received

    def _gain(self, hidden: Tensor, generator: Generator) -> Tensor | None:
        """Return a Rayleigh gain per element or token."""
        import torch

        if self.fading is None:
            return None
        drawn = torch.rand(_units(hidden, self.unit), generator=generator)
        return self.fading * torch.sqrt(-2 * torch.log1p(-drawn))

    def _noise(self, hidden: Tensor, generator: Generator) -> Tensor:
        import torch

        if not self.sigma and self.snr_db is None:
            return torch.zeros(())
        scale: Tensor | float = self.sigma
        if self.snr_db is not None:
            scale = hidden.square().mean(-1, keepdim=True).sqrt() * 10 ** (-self.snr_db / 20)
        return torch.randn(hidden.shape, generator=generator) * scale


def quantised(hidden: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers of ``bits`` bits, and the scale of each token (symmetric, by maximum).

    Args:
        hidden: States ``(texts, tokens, hidden)``.
        bits: Bits per element.

    Returns:
        Numbers (int8, between ``-2^(bits-1) + 1`` and ``2^(bits-1) - 1``) and scales ``(texts,
        tokens, 1)``.
    """
    import torch

    largest = 2 ** (bits - 1) - 1
    scale = hidden.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
    return torch.round(hidden / scale).to(torch.int8), scale


def dequantised(numbers: Tensor, scale: Tensor) -> Tensor:
    """Return the states that :func:`quantised` made whole numbers of."""
    return numbers.to(scale.dtype) * scale


def loss_probability(threshold: float, scale: float) -> float:
    """Return the chance that a Rayleigh gain falls below the threshold, eq. (4)."""
    return 1 - math.exp(-(threshold**2) / (2 * scale**2))


def fading_scale(loss: float, threshold: float) -> float:
    """Return the scale ``sigma_h`` at which eq. (4) gives this loss; infinite for none."""
    if loss == 0:
        return math.inf
    return threshold / math.sqrt(-2 * math.log1p(-loss))


def _units(hidden: Tensor, unit: str) -> tuple[int, ...]:
    """Return the shape of what is drawn for ``hidden``, one entry per element or token."""
    return tuple(hidden.shape) if unit == "element" else (*hidden.shape[:2], 1)


def _check(field: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ConfigurationError(f"channel: {field} is {value!r}; allowed: {allowed}.")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


_YES_NO = {"yes": True, "no": False}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("sigma", "snr_db", "fading", "threshold", "loss"), float),
    **dict.fromkeys(("equalised", "known_start"), _YES_NO.__getitem__),
    "unit": str,
    "bits": int,
}
_ALLOWED = {
    name: "a number" if kind in (float, int) else "yes, no" for name, kind in _KINDS.items()
}
