"""Means with bootstrap intervals over seeds, and interactions to a share of the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval.

    Attributes:
        mean: The mean; the interquartile mean from eight values on.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the middle half along the last axis (Agarwal et al. 2021)."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))


def estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the centre of ``values`` ``(n,)`` with a percentile bootstrap interval.

    Eight values or more give the interquartile mean, fewer the plain mean: the middle half of
    five values is hardly more robust than all of them.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if data.size == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    centre = interquartile_mean if data.size >= 8 else lambda v: v.mean(axis=-1)
    picks = np.random.default_rng(seed).integers(data.size, size=(RESAMPLES, data.size))
    low, high = np.percentile(centre(data[picks]), [2.5, 97.5])
    return Estimate(float(centre(data)), float(low), float(high), int(data.size))


def interactions_to(steps: Sequence[float], values: Sequence[float], threshold: float) -> float:
    """Return the first step from which ``values`` stay at or above ``threshold``; NaN if never."""
    reached = np.asarray(values) >= threshold
    if not len(reached) or not reached[-1]:
        return float("nan")
    below = np.flatnonzero(~reached)
    return float(steps[0 if below.size == 0 else int(below[-1]) + 1])
