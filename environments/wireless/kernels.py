"""The compiled loop of the radio: SINR, rate and scheduling of every resource block in one pass.

Importing this module loads the compiler; the scheduler does so on its first interval.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from icl_optimizer.environments.compiled import compiled

from .arrays import Ints, Owners, Singles

_SINGLE = np.float32


@njit(inline="always")
def ln(x: np.float32) -> np.float32:
    """Return the natural logarithm of a normal positive single, relative error below 1e-7.

    The polynomial of ``logf`` in the Cephes library (Moshier, 1992), on x = 2^e (1 + m) with
    1 + m between sqrt(1/2) and sqrt(2). Without branches or calls, so that the loop around it
    becomes vector instructions.
    """
    bits = _SINGLE(x).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    m = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - _SINGLE(1)
    square = m * m
    series = _SINGLE(7.0376836292e-2)
    series = series * m + _SINGLE(-1.1514610310e-1)
    series = series * m + _SINGLE(1.1676998740e-1)
    series = series * m + _SINGLE(-1.2420140846e-1)
    series = series * m + _SINGLE(1.4249322787e-1)
    series = series * m + _SINGLE(-1.6668057665e-1)
    series = series * m + _SINGLE(2.0000714765e-1)
    series = series * m + _SINGLE(-2.4999993993e-1)
    series = series * m + _SINGLE(3.3333331174e-1)
    scale = _SINGLE(exponent)
    # ln 2 in two parts, so that the sum keeps its last digits
    tail = m * square * series + scale * _SINGLE(-2.12194440e-4) - _SINGLE(0.5) * square
    return m + tail + scale * _SINGLE(0.693359375)


# products may be fused with sums; no other freedom, so that a cell's result stays its own
@compiled(fastmath={"contract"})
def schedule(
    gains: Singles,
    start: Ints,
    mean_sinr: Singles,
    weight: Singles,
    owner: Owners,
    throughput: Singles,
) -> None:
    """Give each resource block to the user with the largest ln(1 + SINR) times its weight.

    Equal claims go to the first user. Nothing is checked: indices must lie inside ``gains``.

    Args:
        gains: Fading power gains of all windows, shape ``(L,)``.
        start: Where in ``gains`` a user's ``Q`` blocks begin, shape ``(K, E)``.
        mean_sinr: Signal over interference plus noise before fading, linear, ``(K, E)``.
        weight: What a user's rate is multiplied with, shape ``(K, E)``.
        owner: Receives the owner of each block, shape ``(E, Q)``.
        throughput: Receives each user's sum over its blocks, nat/s/Hz, shape ``(K, E)``.
    """
    n_users, n_envs = start.shape
    n_blocks = owner.shape[1]
    best = np.empty(n_blocks, _SINGLE)
    first = np.empty(n_blocks, np.int32)
    for cell in range(n_envs):
        best[:] = _SINGLE(-1)
        first[:] = 0
        for user in range(n_users):
            begin = start[user, cell]
            window = gains[begin : begin + n_blocks]
            mean, claim = mean_sinr[user, cell], weight[user, cell]
            for block in range(n_blocks):
                metric = ln(_SINGLE(1) + mean * window[block]) * claim
                if metric > best[block]:
                    best[block] = metric
                    first[block] = user
        throughput[:, cell] = 0
        for block in range(n_blocks):
            winner = first[block]
            owner[cell, block] = winner
            throughput[winner, cell] += best[block] / weight[winner, cell]
