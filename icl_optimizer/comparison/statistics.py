"""How good, how surely better: centres, profiles and odds with stratified bootstrap intervals.

After Agarwal et al. 2021, *Deep Reinforcement Learning at the Edge of the Statistical Precipice*:
runs are resampled within each stratum (a parameter point), never across, and policies are compared
by whole distributions of runs. The definitions are those of their library, rliable, and the tests
hold its values; runs may differ in number from stratum to stratum here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
ROBUST_FROM = 8
"""Runs from which the centre is the interquartile mean: the middle half of five values is hardly
more robust than all of them."""

Floats = NDArray[np.float64]
Strata = Sequence[ArrayLike]
"""The scores of one policy, one array ``(runs,)`` per stratum."""


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


NONE = Estimate(math.nan, math.nan, math.nan, 0)


def interquartile_mean(values: Floats) -> Floats:
    """Return the mean of the middle half along the last axis (Agarwal et al. 2021)."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))


def estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the centre of ``values`` ``(n,)`` with a percentile bootstrap interval.

    Eight values or more give the interquartile mean, fewer the plain mean.
    """
    data = _finite(values)
    if data.size == 0:
        return NONE
    centres = _resampled_centres(data, seed)
    return _estimate(float(_centre(data)), centres, data.size)


def aggregate(strata: Strata) -> Estimate:
    """Return the centre of all runs of all strata; the bootstrap resamples within each stratum.

    Where a stratum has a single run, nothing is known of how runs scatter in it; then the runs of
    all strata are resampled together, and the interval says how much strata differ.
    """
    runs = _present(strata)
    if not runs:
        return NONE
    together = np.concatenate(runs)
    if len(runs) == 1 or min(values.size for values in runs) < 2:
        return estimate(together)
    return _estimate(float(_centre(together)), _centre(_resampled(runs, 0)), together.size)


def difference(a: Strata, b: Strata) -> Estimate:
    """Return the centre of ``a`` minus that of ``b``, runs of both resampled independently.

    ``n`` is the smaller number of runs.
    """
    mine, theirs = _present(a), _present(b)
    if not mine or not theirs:
        return NONE
    centre = float(_centre(np.concatenate(mine)) - _centre(np.concatenate(theirs)))
    resampled = _centre(_resampled(mine, 0)) - _centre(_resampled(theirs, 1))
    return _estimate(centre, resampled, min(_count(mine), _count(theirs)))


def improvement(a: Strata, b: Strata) -> Estimate:
    """Return the probability that a run of ``a`` scores above one of ``b``; a tie counts half.

    The mean over strata of the Mann-Whitney statistic (Agarwal et al. 2021, section 4.3). The
    bootstrap resamples runs within each stratum; where one has a single run, it resamples strata,
    whose number is then ``n``.

    Args:
        a: Scores of the one.
        b: Scores of the other, stratum by stratum the same.

    Raises:
        ValueError: If the strata differ in number.
    """
    pairs = [(np.sort(_finite(x)), np.sort(_finite(y))) for x, y in zip(a, b, strict=True)]
    pairs = [(x, y) for x, y in pairs if x.size and y.size]
    if not pairs:
        return NONE
    means, resampled = [], []
    for stratum, (x, y) in enumerate(pairs):
        # how many of x lie below each of y, and how many do not lie above
        below, upto = (np.searchsorted(x, y, side=side) for side in ("left", "right"))
        means.append(1 - (below + upto).mean() / (2 * x.size))
        mine, theirs = _shares(x.size, 2 * stratum), _shares(y.size, 2 * stratum + 1)
        ends = np.concatenate([np.zeros((RESAMPLES, 1)), mine.cumsum(axis=1)], axis=1)
        resampled.append(1 - np.einsum("rj,rj->r", ends[:, below] + ends[:, upto], theirs) / 2)
    if min(values.size for pair in pairs for values in pair) < 2:
        shares = _shares(len(means), 0)
        return _estimate(float(np.mean(means)), shares @ np.array(means), len(means))
    n = min(sum(p[side].size for p in pairs) for side in (0, 1))
    return _estimate(float(np.mean(means)), np.mean(resampled, axis=0), n)


def profile(strata: Strata, thresholds: ArrayLike) -> list[Estimate]:
    """Return the share of runs above each threshold, the mean over strata.

    The performance profile of Agarwal et al. 2021, section 4.2: where one curve lies above another
    everywhere, its policy is better whatever level is asked for.

    Args:
        strata: Scores of one policy.
        thresholds: Scores ``(k,)``.
    """
    runs, at = _present(strata), np.asarray(thresholds, dtype=np.float64)
    if not runs:
        return [NONE] * at.size
    above = [(values[:, None] > at).astype(np.float64) for values in runs]
    means = np.mean([passed.mean(axis=0) for passed in above], axis=0)
    resampled = np.mean([_shares(len(p), i) @ p for i, p in enumerate(above)], axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    n = _count(runs)
    return [
        Estimate(float(m), float(lo), float(hi), n)
        for m, lo, hi in zip(means, low, high, strict=True)
    ]


def chance_of_order(a: int, b: int) -> float:
    """Return how often luck alone puts all of ``a`` runs above all of ``b`` runs."""
    return 1 / math.comb(a + b, a)


def interactions_to(steps: Sequence[float], values: Sequence[float], threshold: float) -> float:
    """Return the first step from which ``values`` stay at or above ``threshold``; NaN if never."""
    reached = np.asarray(values) >= threshold
    if not len(reached) or not reached[-1]:
        return float("nan")
    below = np.flatnonzero(~reached)
    return float(steps[0 if below.size == 0 else int(below[-1]) + 1])


def _finite(values: ArrayLike) -> Floats:
    data = np.asarray(values, dtype=np.float64).ravel()
    return data[np.isfinite(data)]


def _present(strata: Strata) -> list[Floats]:
    """Return the strata that hold anything, sorted, so that the order of runs changes nothing."""
    return [np.sort(values) for s in strata if (values := _finite(s)).size]


def _count(runs: Sequence[Floats]) -> int:
    return sum(values.size for values in runs)


def _centre(values: Floats) -> Floats:
    robust = values.shape[-1] >= ROBUST_FROM
    return interquartile_mean(values) if robust else np.asarray(values.mean(axis=-1))


def _resampled_centres(data: Floats, seed: int) -> Floats:
    if data.size >= ROBUST_FROM:
        return _middle_weights(data.size, seed) @ np.sort(data)
    return np.asarray(data[_picks(data.size, seed)].mean(axis=-1))


def _resampled(runs: Sequence[Floats], side: int) -> Floats:
    """Return resamples of all strata side by side ``(resamples, runs)``."""
    drawn = [values[_picks(values.size, 2 * i + side)] for i, values in enumerate(runs)]
    return np.concatenate(drawn, axis=1)


def _estimate(mean: float, resampled: Floats, n: int) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(mean, float(low), float(high), n)


def _picks(n: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def _counts(n: int, seed: int) -> Floats:
    """Return how often each of ``n`` runs is in each resample ``(resamples, n)``."""
    places = _picks(n, seed) + n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(places.ravel(), minlength=RESAMPLES * n)
    return counts.reshape(RESAMPLES, n).astype(np.float64)


@lru_cache(maxsize=32)
def _shares(n: int, seed: int) -> Floats:
    return _counts(n, seed) / n


@lru_cache(maxsize=4)
def _middle_weights(n: int, seed: int) -> Floats:
    """Return what each of ``n`` ordered values weighs in the centre of each resample.

    So an interval is one product of matrices, however many policies, metrics and checkpoints
    there are: resampling a thousand runs anew for each would take minutes.
    """
    cut = n // 4
    ends = _counts(n, seed).cumsum(axis=1)
    inside = np.clip(ends, cut, n - cut)
    inside[:, 1:] -= inside[:, :-1].copy()
    inside[:, 0] -= cut
    return np.asarray(inside / (n - 2 * cut))
