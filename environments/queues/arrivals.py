"""When requests arrive: at random, in bursts, or as recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.environments.base import Floats


class Bursts(BaseModel):
    """A Poisson process whose rate is modulated by a two-state Markov chain (MMPP).

    The chain is stationary, and the mean rate stays that of the plain process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    factor: float = Field(4.0, gt=1, description="Rate in a burst over the rate between bursts.")
    share: float = Field(0.2, gt=0, lt=1, description="Share of the time that is a burst.")
    mean_s: float = Field(10.0, gt=0, description="Mean length of a burst, seconds.")

    def rates(self, mean_rate: float) -> tuple[float, float]:
        """Return the rate between bursts and within one, per second."""
        quiet = mean_rate / (1 + self.share * (self.factor - 1))
        return quiet, self.factor * quiet

    @property
    def quiet_s(self) -> float:
        """Mean time between two bursts, seconds."""
        return self.mean_s * (1 - self.share) / self.share


def draw_arrivals(
    rngs: Sequence[np.random.Generator], count: int, rate: float, bursts: Bursts | None = None
) -> Floats:
    """Return the first ``count`` arrival times of each generator, seconds, ``(n, count)``.

    Args:
        rngs: One generator per sub-environment.
        count: Requests in an episode.
        rate: Mean arrivals per second.
        bursts: How the rate changes; None for a Poisson process.
    """
    gaps = np.empty((len(rngs), count))
    for i, rng in enumerate(rngs):
        rng.standard_exponential(out=gaps[i])
    expected = np.cumsum(gaps, axis=1)
    if bursts is None:
        return np.asarray(expected / rate)
    return np.array(
        [_slowed(row, rate, bursts, rng) for row, rng in zip(expected, rngs, strict=True)]
    )


def _slowed(expected: Floats, rate: float, bursts: Bursts, rng: np.random.Generator) -> Floats:
    """Return the times at which the modulated process expects so many arrivals.

    A Poisson process of any rate is one of rate 1 in another time (random time change): the
    ``k``-th arrival comes when the integral of the rate reaches the ``k``-th unit arrival.
    """
    quiet, burst = bursts.rates(rate)
    burst_first = bool(rng.random() < bursts.share)
    times, integral = [np.zeros(1)], [np.zeros(1)]
    end = mass = 0.0
    while mass < expected[-1]:
        stays = rng.standard_exponential((64, 2)) * (
            (bursts.mean_s, bursts.quiet_s) if burst_first else (bursts.quiet_s, bursts.mean_s)
        )
        rates = (burst, quiet) if burst_first else (quiet, burst)
        times.append(end + np.cumsum(stays.ravel()))
        integral.append(mass + np.cumsum((stays * rates).ravel()))
        end, mass = float(times[-1][-1]), float(integral[-1][-1])
    return np.interp(expected, np.concatenate(integral), np.concatenate(times))
