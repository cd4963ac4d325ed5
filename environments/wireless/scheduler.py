"""Rate of a link and the proportional-fair scheduler, for a batch of cells.

Shapes: ``E`` sub-environments, ``K`` users, ``Q`` resource blocks. Arrays may have any memory
order; users outermost is fastest, since the maximum over users then runs along contiguous rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Floats, Ints

# bit/s; keeps the ratio of the scheduler finite for a user that is never served
LEAST_AVERAGE = 1.0


def sinr(
    fading: NDArray[Any], signal_w: Floats, interference_w: NDArray[Any], noise_w: float
) -> NDArray[Any]:
    """Return the signal-to-interference-and-noise ratio inside eq. (2) of Zhou et al. (2024).

    Args:
        fading: Fast-fading power gains, mean 1, shape ``(E, K, Q)``; overwritten by the result.
        signal_w: Mean received power p g on a resource block, watts, ``(E, K, 1)``.
        interference_w: Received from the other sites, watts, ``(E, K, 1)`` or ``(E, K, Q)``.
        noise_w: Noise power b N_0, watts.

    Returns:
        Linear ratios, shape ``(E, K, Q)``.
    """
    ratio = (signal_w / (interference_w + noise_w)).astype(fading.dtype, copy=False)
    return np.multiply(fading, ratio, out=fading)


def log_rate(ratio: NDArray[Any]) -> NDArray[Any]:
    """Return ln(1 + SINR), the rate in nat/s/Hz; ``ratio`` is overwritten by the result.

    The natural logarithm is the one that NumPy computes fastest in single precision.
    """
    np.add(ratio, 1, out=ratio)
    return np.log(ratio, out=ratio)


def shannon_rate(ratio: ArrayLike, bandwidth_hz: float) -> Floats:
    """Return b log2(1 + SINR) in bit/s, eq. (2) of Zhou et al. (2024), for any shape."""
    return bandwidth_hz / np.log(2.0) * log_rate(np.array(ratio, dtype=np.float64))


def proportional_fair(
    rates: NDArray[Any], average: Floats
) -> tuple[NDArray[np.unsignedinteger[Any]], Floats]:
    """Give each resource block to the user with the largest rate relative to its average.

    Args:
        rates: Rate of each user on each block, shape ``(E, K, Q)``, any unit.
        average: Moving average of each user's throughput, positive, shape ``(E, K)``; its unit
            need not be that of ``rates``.

    Returns:
        The owner of each block, shape ``(E, Q)``, the first user among equals; and each user's
        throughput, the sum of its blocks' rates, shape ``(E, K)``, in the unit of ``rates``.
    """
    n_users = rates.shape[1]
    metric = rates * (1.0 / average).astype(rates.dtype)[:, :, None]
    best = metric.max(axis=1)
    # ranks fall with the user's index, so the largest rank among equals is the first user
    rank = np.arange(n_users, 0, -1, dtype=np.min_scalar_type(n_users))
    owner = n_users - ((metric == best[:, None]) * rank[:, None]).max(axis=1)
    return owner, _won(owner, best, n_users) * average


def moving_average(average: Floats, throughput: Floats, time_constant: float) -> Floats:
    """Return T <- (1 - 1/t_c) T + throughput / t_c in bit/s, at least ``LEAST_AVERAGE``.

    Args:
        average: Present averages, bit/s, any shape.
        throughput: Throughput in the last interval, bit/s, the same shape.
        time_constant: t_c in scheduling intervals.
    """
    weight = 1.0 / time_constant
    return np.maximum((1.0 - weight) * average + weight * throughput, LEAST_AVERAGE)


def _won(owner: NDArray[Any], best: NDArray[Any], n_users: int) -> Floats:
    """Return the metric that each user won in total, ``(E, K)``, from ``(E, Q)`` arrays."""
    first: Ints = np.arange(len(owner), dtype=np.int64)[:, None] * n_users
    total = np.bincount((first + owner).ravel(), best.ravel(), len(owner) * n_users)
    return total.reshape(len(owner), n_users)
