"""Rate of a link and the proportional-fair scheduler, for a batch of cells.

Shapes: ``K`` users, ``E`` sub-environments, ``Q`` resource blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Floats, Owners, Singles
from .fading import FadingWindows

# bit/s; keeps the ratio of the scheduler finite for a user that is never served
LEAST_AVERAGE = 1.0


def sinr(signal_w: Floats, interference_w: Floats, noise_w: float) -> Floats:
    """Return the signal-to-interference-and-noise ratio inside eq. (2) of Zhou et al. (2024).

    Args:
        signal_w: Received power p g on a resource block, watts, any shape.
        interference_w: Received from the other sites, watts, the same shape.
        noise_w: Noise power b N_0, watts.
    """
    return np.asarray(signal_w / (interference_w + noise_w))


def shannon_rate(ratio: ArrayLike, bandwidth_hz: float) -> Floats:
    """Return b log2(1 + SINR) in bit/s, eq. (2) of Zhou et al. (2024), for any shape."""
    return np.asarray(bandwidth_hz * np.log2(1.0 + np.asarray(ratio, dtype=np.float64)))


def proportional_fair(
    fading: FadingWindows, mean_sinr: Floats | Singles, average: Floats
) -> tuple[Owners, Floats]:
    """Give each resource block to the user with the largest rate relative to its average.

    The rate is ln(1 + SINR), in nat/s/Hz, and the SINR a user's mean times its fading.

    Args:
        fading: Power gains of ``K`` users in ``E`` cells.
        mean_sinr: SINR before fading, linear, shape ``(K, E)``.
        average: Moving average of each user's throughput, positive, shape ``(K, E)``; its unit
            need not be that of the rates.

    Returns:
        The owner of each block, shape ``(E, Q)``, the first user among equals; and each user's
        throughput, the sum of its blocks' rates, nat/s/Hz, shape ``(K, E)``.

    Raises:
        IndexError: If a window leaves the fading trace.
    """
    # the compiler takes half a second to load, which who never schedules need not wait for
    from .kernels import schedule

    fading.check()
    owner = np.empty((fading.start.shape[1], fading.n_blocks), dtype=np.int32)
    throughput = np.empty(fading.start.shape, dtype=np.float32)
    weight = _single(1.0 / average)
    schedule(
        fading.trace,
        np.ascontiguousarray(fading.start),
        _single(mean_sinr),
        weight,
        owner,
        throughput,
    )
    return owner, throughput.astype(np.float64)


def moving_average(average: Floats, throughput: Floats, time_constant: float) -> Floats:
    """Return T <- (1 - 1/t_c) T + throughput / t_c in bit/s, at least ``LEAST_AVERAGE``.

    Args:
        average: Present averages, bit/s, any shape.
        throughput: Throughput in the last interval, bit/s, the same shape.
        time_constant: t_c in scheduling intervals.
    """
    weight = 1.0 / time_constant
    return np.maximum((1.0 - weight) * average + weight * throughput, LEAST_AVERAGE)


def _single(values: Floats | Singles) -> Singles:
    return np.ascontiguousarray(values, dtype=np.float32)
