"""When experience has aged: noticing that outcomes no longer are what they were."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from icl_optimizer.experience import Tally

Ageing = Literal["none", "surprise"]
AGEINGS: tuple[Ageing, ...] = ("none", "surprise")

COMPARED = 512
"""Earlier outcomes that a new one is compared with."""

DEGREES = 4
"""Outcomes of known decisions before the spread of rewards is taken as known."""

PRIOR = 2.0
"""Outcomes that the common spread counts for beside those of one context and decision."""

OUTLIER = 3.0
"""Standard deviations beyond which a deviation widens the spread no further."""

STRANGEST = 1e9
"""Stands for a deviation where there never was any; a number that JSON has."""


class ChangeDetector:
    """Notices that rewards are no longer drawn as before, whatever their distribution.

    How strange a reward is: its deviation from the mean of its context and decision, in standard
    deviations. Its rank among the earlier ones gives a conformal p-value, evenly distributed
    while nothing changes. Bets against that (the simple mixture of Vovk, Nouretdinov and Gammerman,
    "Testing exchangeability on-line", 2003) win while something has changed; they start anew
    whenever what they won is lost (a CUSUM, as in Volkhonskiy et al., "Inductive conformal
    martingales for change-point detection", 2017). The alarm is raised when the odds outweigh the
    experience at stake: after ``n`` outcomes at ``n`` to 1, which by chance alone takes ``n``
    outcomes or more, on average.

    Attributes:
        evidence: Log of what the bets have won, 0 or more.
        surprised: Whether the last outcome spoke for a change.
    """

    def __init__(self) -> None:
        """Start without any outcome."""
        self.evidence = 0.0
        self.surprised = False
        self._outcomes = 0
        self._squares, self._degrees = 0.0, 0
        self._known: deque[float] = deque(maxlen=COMPARED)
        self._waiting: list[float] = []

    def add(self, reward: float, tally: Tally) -> bool:
        """Count ``reward`` in ``tally`` and return whether the world has changed."""
        variance = self._variance(tally)
        deviation = abs(reward - tally.mean)
        self._outcomes += 1
        self._count(reward, tally, variance)
        self.surprised = False
        if variance is not None:
            self._weigh(_strangeness(deviation, variance))
        return self.surprised and self.evidence >= math.log(self._outcomes)

    def _variance(self, tally: Tally) -> float | None:
        """Return the variance of the next reward around its mean; None if not known by now."""
        if tally.count == 0 or self._degrees < DEGREES:
            return None
        common = self._squares / self._degrees
        own = (tally.squares + PRIOR * common) / (tally.count - 1 + PRIOR)
        return own * (1 + 1 / tally.count)

    def _count(self, reward: float, tally: Tally, variance: float | None) -> None:
        known, squares = tally.count > 0, tally.squares
        tally.add(reward, OUTLIER**2 * variance if variance else math.inf)
        self._squares += tally.squares - squares
        self._degrees += known

    def _weigh(self, strangeness: float) -> None:
        """Let the evidence grow or shrink; what is under suspicion is no measure for others."""
        stranger = sum(known >= strangeness for known in self._known)
        won = log_bet((1 + stranger) / (1 + len(self._known)))
        self.evidence += won
        self.surprised = won > 0
        self._waiting.append(strangeness)
        if self.evidence <= 0:
            self.evidence = 0.0
            self._known.extend(self._waiting)
            self._waiting.clear()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "evidence": self.evidence,
            "outcomes": self._outcomes,
            "squares": self._squares,
            "degrees": self._degrees,
            "known": list(self._known),
            "waiting": self._waiting,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChangeDetector:
        """Return the detector that :meth:`to_json` described."""
        detector = cls()
        detector.evidence, detector._outcomes = data["evidence"], data["outcomes"]
        detector._squares, detector._degrees = data["squares"], data["degrees"]
        detector._known.extend(data["known"])
        detector._waiting = list(data["waiting"])
        return detector


def log_bet(p: float) -> float:
    """Return the log of what the mixture of power bets earns at the p-value ``p``, in (0, 1].

    It earns the integral of ``e p ** (e - 1)`` over ``e`` from 0 to 1, whose mean over even
    p-values is 1.
    """
    if p == 1:
        return math.log(0.5)
    log = math.log(p)
    return math.log((1 - p + p * log) / (p * log * log))


def _strangeness(deviation: float, variance: float) -> float:
    if variance == 0:
        return STRANGEST if deviation > 0 else 0.0
    return min(deviation / math.sqrt(variance), STRANGEST)
