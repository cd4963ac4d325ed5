"""When to try a decision instead of taking the model's: epsilon schedules and try-all-first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.problem import Context, Problem


class Experience(Protocol):
    """What exploration has to know of the experience."""

    problem: Problem

    def tried(self, context: Context, action: int) -> int:
        """Return how often ``action`` was carried out in ``context``."""


@dataclass(frozen=True)
class Trial:
    """What exploration says about one decision.

    Attributes:
        proposed: The action to try and the chance of each, or None to judge by experience.
        forced: Whether it had to be tried, an action being unknown in this context.
        epsilon: Chance to explore otherwise.
    """

    proposed: tuple[int, list[float]] | None = None
    forced: bool = False
    epsilon: float = 0.0

    def propensity(self, action: int, greedy: Sequence[float]) -> float:
        """Return the chance to take ``action``, exploring or not.

        Args:
            action: Index of the action taken.
            greedy: Chance of each action without exploration; not used when ``forced``.
        """
        if self.forced and self.proposed is not None:
            return self.proposed[1][action]
        return (1 - self.epsilon) * greedy[action] + self.epsilon / len(greedy)

    def support(self, greedy: Sequence[float]) -> float:
        """Return the least chance of any action, exploring or not; see :meth:`propensity`."""
        return min(self.propensity(action, greedy) for action in range(len(greedy)))


NO_TRIAL = Trial()


class Exploration(BaseModel):
    """Epsilon-greedy around the language model, optionally trying every decision first.

    The chance to explore in decision ``t`` of a run is constant, falls linearly from ``start``
    to ``end`` over ``steps`` decisions, or exponentially with that time constant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Literal["constant", "linear", "exponential"] = Field(
        "linear", description="How epsilon develops."
    )
    start: float = Field(0.3, ge=0, le=1, description="Epsilon at the first decision.")
    end: float = Field(0.02, ge=0, le=1, description="Epsilon in the end.")
    steps: int = Field(60, ge=1, description="Decisions until the end, or the time constant.")
    try_all_first: bool = Field(
        True, description="Take a decision not yet tried in this context before anything else."
    )

    def epsilon(self, t: int) -> float:
        """Return the chance to explore in decision ``t`` (from 0)."""
        if self.schedule == "constant":
            return self.start
        if self.schedule == "linear":
            return self.start + (self.end - self.start) * min(t / self.steps, 1.0)
        return self.end + (self.start - self.end) * float(np.exp(-t / self.steps))

    def trial(self, pool: Experience, context: Context, t: int, rng: np.random.Generator) -> Trial:
        """Return what to try in decision ``t`` of a run, if anything."""
        count = len(pool.problem.labels)
        untried = [a for a in range(count) if pool.tried(context, a) == 0]
        if self.try_all_first and untried:
            chances = [1 / len(untried) if a in untried else 0.0 for a in range(count)]
            return Trial((int(rng.choice(untried)), chances), forced=True)
        epsilon = self.epsilon(t)
        if rng.random() < epsilon:
            return Trial((int(rng.integers(count)), [1 / count] * count), epsilon=epsilon)
        return Trial(epsilon=epsilon)


NO_EXPLORATION = Exploration(schedule="constant", start=0.0, end=0.0, try_all_first=False)
