"""Rayleigh fast fading read from a trace, as network simulators such as ns-3 do.

A trace of independent unit-mean exponential power gains is made once; an interval reads a window
at a random offset. That costs a copy instead of a logarithm per resource block, and a draw is one
integer.
"""

from __future__ import annotations

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


@cache
def fading_windows(length: int, n_blocks: int) -> Singles:
    """Return every window of ``n_blocks`` samples of the trace, ``(length - Q + 1, Q)``; a view."""
    windows: Singles = sliding_window_view(fading_tape(length), n_blocks)
    return windows


def read_windows(windows: Singles, offset: Ints, n_users: int) -> Singles:
    """Return the gains that start at ``offset``: user after user, each block after block.

    Args:
        windows: Windows of the trace, shape ``(W, Q)``.
        offset: Where each sub-environment starts, shape ``(E,)``, at most ``W - (K - 1) Q - 1``.
        n_users: Users ``K``.

    Returns:
        A new array, shape ``(K, E, Q)``.
    """
    starts = offset + np.arange(n_users)[:, None] * windows.shape[1]
    return np.asarray(windows[starts])
