"""What to expect of each decision: its chance to succeed, and the reward either way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """What is expected of every decision in ``n`` situations; each array is ``(n, labels)``.

    Attributes:
        chance: Probability that every constraint holds (a request is answered in time).
        reward: Expected reward when it does.
        otherwise: Expected reward when it does not.
        seconds: Expected time to completion, seconds; NaN where nobody knows.
    """

    chance: Floats
    reward: Floats
    otherwise: Floats
    seconds: Floats

    @property
    def value(self) -> Floats:
        """Expected reward of every decision, ``(n, labels)``."""
        return self.chance * self.reward + (1 - self.chance) * self.otherwise


class Expert(Protocol):
    """A pure function of the observation, made of what an engineer knows about the system."""

    def __call__(self, observations: NDArray[Any]) -> Forecast:
        """Return the forecast for observations ``(n, columns)``."""


class ForecastRule(BaseModel):
    """How decisions follow from forecasts; the same for whoever makes them.

    The decision with the highest expected reward is taken. But where no decision is likely to
    succeed, the request is hopeless, and goes where it hurts least: to the decision least likely
    to succeed (the server that nobody can use now; of equals the one that takes longest, where
    that is known), or to a decision made for this purpose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dump_below: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A request is hopeless if no decision has this chance to succeed; 0: never.",
    )

    def choose(self, forecast: Forecast, dump: int | None = None) -> NDArray[np.int64]:
        """Return the decisions, ``(n,)``.

        Args:
            forecast: What is expected of each.
            dump: The decision for hopeless requests, if there is one.
        """
        best = forecast.value.argmax(axis=1)
        hopeless = forecast.chance.max(axis=1) < self.dump_below
        least = _least_likely(forecast) if dump is None else np.full(len(best), dump)
        return np.asarray(np.where(hopeless, least, best))


def _least_likely(forecast: Forecast) -> NDArray[np.int64]:
    """Return the decision least likely to succeed; of equal ones that which takes longest."""
    seconds = np.nan_to_num(forecast.seconds, nan=0.0, posinf=np.inf)
    chance = np.round(forecast.chance, 3)
    least = chance == chance.min(axis=1, keepdims=True)
    return np.asarray(np.where(least, seconds, -1.0).argmax(axis=1))
