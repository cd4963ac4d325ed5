"""Rate of a link and the proportional-fair scheduler, for a batch of cells.

Shapes: ``K`` users, ``E`` sub-environments, ``Q`` resource blocks. Users come first, because the
maximum over users then runs along long contiguous rows, several times faster than along columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Floats, Singles

Owners = NDArray[np.unsignedinteger[Any]]

# bit/s; keeps the ratio of the scheduler finite for a user that is never served
LEAST_AVERAGE = 1.0


def sinr(
    fading: Singles, signal_w: Floats, interference_w: Floats | Singles, noise_w: float
) -> Singles:
    """Return the signal-to-interference-and-noise ratio inside eq. (2) of Zhou et al. (2024).

    Args:
        fading: Fast-fading power gains, mean 1, shape ``(K, E, Q)``; overwritten by the result.
        signal_w: Mean received power p g on a resource block, watts, ``(K, E, 1)``.
        interference_w: Received from the other sites, watts, ``(K, E, 1)`` or ``(K, E, Q)``.
        noise_w: Noise power b N_0, watts.

    Returns:
        Linear ratios, shape ``(K, E, Q)``.
    """
    mean = signal_w / (interference_w + noise_w)
    return np.multiply(fading, mean.astype(np.float32), out=fading)


def log_rate(ratio: Singles) -> Singles:
    """Return ln(1 + SINR), the rate in nat/s/Hz; ``ratio`` is overwritten by the result.

    The natural logarithm is the one that NumPy computes fastest in single precision.
    """
    np.add(ratio, np.float32(1), out=ratio)
    return np.log(ratio, out=ratio)


def shannon_rate(ratio: ArrayLike, bandwidth_hz: float) -> Floats:
    """Return b log2(1 + SINR) in bit/s, eq. (2) of Zhou et al. (2024), for any shape."""
    return np.asarray(bandwidth_hz * np.log2(1.0 + np.asarray(ratio, dtype=np.float64)))


def proportional_fair(rates: Singles, average: Floats) -> tuple[Owners, Floats]:
    """Give each resource block to the user with the largest rate relative to its average.

    Args:
        rates: Rate of each user on each block, shape ``(K, E, Q)``, any unit; overwritten.
        average: Moving average of each user's throughput, positive, shape ``(K, E)``; its unit
            need not be that of ``rates``.

    Returns:
        The owner of each block, shape ``(E, Q)``, the first user among equals; and each user's
        throughput, the sum of its blocks' rates, shape ``(K, E)``, in the unit of ``rates``.
    """
    n_users = len(rates)
    weight = (1.0 / average).astype(np.float32)
    metric = np.multiply(rates, weight[:, :, None], out=rates)
    best = metric.max(axis=0)
    # ranks fall with the user's index, so the largest rank among equals is the first user
    rank = np.arange(n_users, 0, -1, dtype=np.min_scalar_type(n_users))[:, None, None]
    wins = (metric == best).view(np.uint8)
    # a rank of one byte takes the place of the truth value, which saves an array
    marks = np.multiply(wins, rank, out=wins if rank.itemsize == 1 else None)
    owner: Owners = n_users - marks.max(axis=0)
    return owner, _sum_by_owner(owner, best, n_users) * average


def moving_average(average: Floats, throughput: Floats, time_constant: float) -> Floats:
    """Return T <- (1 - 1/t_c) T + throughput / t_c in bit/s, at least ``LEAST_AVERAGE``.

    Args:
        average: Present averages, bit/s, any shape.
        throughput: Throughput in the last interval, bit/s, the same shape.
        time_constant: t_c in scheduling intervals.
    """
    weight = 1.0 / time_constant
    return np.maximum((1.0 - weight) * average + weight * throughput, LEAST_AVERAGE)


def _sum_by_owner(owner: Owners, values: Singles, n_users: int) -> Floats:
    """Return the sum of each user's ``values``, ``(K, E)``, from ``(E, Q)`` arrays."""
    n_envs = len(owner)
    cell = np.multiply(owner, n_envs, dtype=np.intp)
    cell += np.arange(n_envs)[:, None]
    total = np.bincount(cell.ravel(), values.ravel(), n_users * n_envs)
    return np.asarray(total.reshape(n_users, n_envs), dtype=np.float64)
