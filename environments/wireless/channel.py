"""What a channel is to the network, and a channel with given gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from icl_optimizer.errors import ConfigurationError

from .arrays import Floats, Ints, Singles
from .fading import FadingWindows


@dataclass(frozen=True)
class ChannelDraws:
    """All that is random in one episode of one cell, before any physics.

    A stack of ``E`` episodes has a leading axis ``E`` on every array. ``D`` are drops, of which
    the channel keeps one per user, ``J`` sites; a channel may leave arrays empty.

    Attributes:
        position: Uniform numbers that place a drop in the cell, ``(D, 3)``.
        sight: Uniform numbers that decide on line of sight, ``(D, J)``.
        shadowing: Standard normal numbers, ``(D, J)``.
        fading: Offset into the fading trace of each scheduling interval, ``(n_steps,)``.
    """

    position: Singles
    sight: Singles
    shadowing: Singles
    fading: Ints

    @staticmethod
    def stack(draws: Sequence[ChannelDraws]) -> ChannelDraws:
        """Return ``draws`` of equal shapes as one stack, in order."""
        parts = (np.stack([getattr(d, f.name) for d in draws]) for f in fields(ChannelDraws))
        return ChannelDraws(*parts)


class Channel(Protocol):
    """Large-scale gains that hold for an episode, and fast fading per interval."""

    def draw_episode(self, rng: np.random.Generator, n_users: int, n_steps: int) -> ChannelDraws:
        """Draw everything random in an episode of ``n_steps`` scheduling intervals."""
        ...

    def large_scale_gain(self, draws: ChannelDraws, n_users: int) -> Floats:
        """Return linear power gains ``(E, K, J)``, the serving site first, of a stack."""
        ...

    def fading(self, offset: Ints, n_users: int, site: int = 0) -> FadingWindows:
        """Return where power gains of mean 1 towards ``site`` are, for ``offset`` of ``(E,)``."""
        ...

    def best_fading(self, n_users: int) -> float:
        """Return the mean fading gain of the best of ``n_users`` on a resource block."""
        ...


class FixedChannel:
    """Given gains and no fading: for tests, hand calculations and measured gains.

    Args:
        gain: Linear power gains, shape ``(K, J)``, the serving site first.
        n_blocks: Resource blocks ``Q``.
    """

    def __init__(self, gain: ArrayLike, n_blocks: int) -> None:
        """Keep the gains."""
        self._gain = np.array(gain, dtype=np.float64)
        self._ones = np.ones(n_blocks, dtype=np.float32)

    def draw_episode(self, rng: np.random.Generator, n_users: int, n_steps: int) -> ChannelDraws:
        """Return empty draws; ``rng`` is left as it is.

        Raises:
            ConfigurationError: If the gains are not those of ``n_users``.
        """
        if len(self._gain) != n_users:
            raise ConfigurationError(
                f"n_users is {n_users}; allowed: {len(self._gain)}, the rows of gain."
            )
        nothing = np.empty((0, 0), dtype=np.float32)
        return ChannelDraws(nothing, nothing, nothing, np.zeros(n_steps, dtype=np.int64))

    def large_scale_gain(self, draws: ChannelDraws, n_users: int) -> Floats:
        """Return the given gains once per episode, shape ``(E, K, J)``."""
        return np.broadcast_to(self._gain, (len(draws.fading), *self._gain.shape)).copy()

    def fading(self, offset: Ints, n_users: int, site: int = 0) -> FadingWindows:
        """Return windows of ones."""
        start = np.zeros((n_users, len(offset)), dtype=np.int64)
        return FadingWindows(self._ones, start, len(self._ones))

    def best_fading(self, n_users: int) -> float:
        """Return 1: nothing fades."""
        return 1.0
