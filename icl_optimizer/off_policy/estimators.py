"""Inverse propensity, self-normalised and doubly robust estimates, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Logged:
    """The records of a log that every policy can be judged by, as parallel arrays.

    Attributes:
        actions: What was carried out ``(n,)``.
        rewards: What it earned ``(n,)``.
        propensities: Chance that it had ``(n,)``, all above 0.
        clusters: Number of each record's cluster ``(n,)``, from 0 and without gaps.
        expected: What every action is expected to earn there, ``(n, actions)``, by a model that
            has not seen the record.
    """

    actions: NDArray[np.int64]
    rewards: Floats
    propensities: Floats
    clusters: NDArray[np.int64]
    expected: Floats

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.rewards)

    def resamples(self, seed: int = 0) -> Floats:
        """Return how often each cluster is drawn, ``(RESAMPLES, clusters)``; rows are draws."""
        count = int(self.clusters.max()) + 1
        rng = np.random.default_rng(seed)
        return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Target:
    """Another policy on logged records.

    Attributes:
        weights: Its chance of the logged action over the chance that this had, ``(n,)``.
        direct: What the reward model expects of it, ``(n,)``.
    """

    weights: Floats
    direct: Floats

    @classmethod
    def of(cls, logged: Logged, chances: Floats) -> Target:
        """Return the policy that takes actions with these chances ``(n, actions)``."""
        taken = chances[np.arange(len(logged)), logged.actions]
        direct = np.asarray((chances * logged.expected).sum(axis=1))
        return cls(taken / logged.propensities, direct)

    @property
    def effective(self) -> float:
        """Effective sample size: equally weighted records that would tell as much (Kish)."""
        total = float(self.weights.sum())
        return 0.0 if total == 0 else total**2 / float((self.weights**2).sum())


@dataclass(frozen=True)
class Value:
    """An estimate with its 95 % interval.

    Attributes:
        mean: The estimate.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether ``value`` is within the interval."""
        return self.low <= value <= self.high


def estimate(logged: Logged, target: Target, draws: Floats) -> dict[str, Value]:
    """Return what ``target`` is worth per decision by each estimator.

    ``ips`` is unbiased, ``snips`` divides by the sum of the weights instead of the number of
    records (Swaminathan and Joachims 2015), ``dr`` corrects a reward model by weighted residuals
    (Dudik, Langford and Li 2011); ``gain`` is ``dr`` less what the log itself earned.

    Args:
        logged: The records.
        target: The policy.
        draws: :meth:`Logged.resamples`, the same for all policies, so that they can be compared.
    """
    ones = np.ones(len(logged))
    weighted = target.weights * logged.rewards
    doubly = doubly_robust(logged, target)
    parts = {
        "ips": (weighted, ones),
        "snips": (weighted, target.weights),
        "dr": (doubly, ones),
        "gain": (doubly - logged.rewards, ones),
    }
    return {name: ratio(logged, over, under, draws) for name, (over, under) in parts.items()}


def doubly_robust(logged: Logged, target: Target) -> Floats:
    """Return what each record says by the doubly robust estimator, ``(n,)``."""
    taken = logged.expected[np.arange(len(logged)), logged.actions]
    return target.direct + target.weights * (logged.rewards - taken)


def ratio(logged: Logged, over: Floats, under: Floats, draws: Floats) -> Value:
    """Return the sum of ``over`` ``(n,)`` by that of ``under``, bootstrapped over clusters.

    The ends are expanded percentiles (Hesterberg 2015): plain ones are too close where there are
    few clusters, as the normal distribution is in place of Student's.
    """
    count = draws.shape[1]
    sums = [np.bincount(logged.clusters, values, count) for values in (over, under)]
    totals = draws @ sums[1]
    drawn = (draws @ sums[0])[totals > 0] / totals[totals > 0]
    low, high = np.quantile(drawn, expanded(count))
    return Value(float(over.sum() / under.sum()), float(low), float(high))


def expanded(clusters: int) -> tuple[float, float]:
    """Return the two quantiles of bootstrap draws that bound the interval."""
    from scipy.stats import norm, t

    tail = (1 - LEVEL) / 2
    reach = np.sqrt(clusters / (clusters - 1)) * t.ppf(tail, clusters - 1)
    return float(norm.cdf(reach)), float(norm.cdf(-reach))
