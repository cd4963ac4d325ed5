"""Rayleigh fast fading read from a trace, as network simulators such as ns-3 do.

A trace of independent unit-mean exponential power gains is made once; an interval reads a window
at a random offset. That costs a copy instead of a logarithm per resource block, and a draw is one
integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .arrays import Ints, Singles

TAPE_SEED = 38901


@cache
def fading_tape(length: int) -> Singles:
    """Return the trace of ``length`` power gains, mean 1, the same in every process."""
    tape = np.random.default_rng(TAPE_SEED).standard_exponential(length)
    gains: Singles = (tape / tape.mean()).astype(np.float32)
    gains.flags.writeable = False
    return gains


@dataclass(frozen=True)
class FadingWindows:
    """Where in a trace each user of each cell reads its fading in one interval.

    Attributes:
        trace: Power gains, shape ``(L,)``.
        start: Where a user's window begins, shape ``(K, E)``.
        n_blocks: Resource blocks ``Q``, the length of a window.
    """

    trace: Singles
    start: Ints
    n_blocks: int

    def read(self) -> Singles:
        """Return the gains, a new array of shape ``(K, E, Q)``."""
        return np.asarray(sliding_window_view(self.trace, self.n_blocks)[self.start])

    def check(self) -> None:
        """Raise :class:`IndexError` if a window leaves the trace."""
        if self.start.size:
            first, last = self.start.min(), self.start.max() + self.n_blocks
            if first < 0 or last > len(self.trace):
                raise IndexError(
                    f"fading is read from {first} to {last} in a trace of {len(self.trace)} gains"
                )


def windows_of_users(trace: Singles, offset: Ints, n_users: int, n_blocks: int) -> FadingWindows:
    """Return windows that follow each other, user after user, from each cell's ``offset``.

    Args:
        trace: Power gains, shape ``(L,)``.
        offset: Where each cell's first user begins, shape ``(E,)``.
        n_users: Users ``K``.
        n_blocks: Resource blocks ``Q``.
    """
    start = offset + np.arange(n_users)[:, None] * n_blocks
    return FadingWindows(trace, start, n_blocks)
