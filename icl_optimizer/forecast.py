"""What to expect of each decision: its chance to succeed, and the reward either way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
