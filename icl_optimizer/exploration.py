"""When to try a decision instead of taking the model's: epsilon schedules and try-all-first."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.experience import ExperiencePool
from icl_optimizer.problem import Context


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

    def propose(
        self, pool: ExperiencePool, context: Context, t: int, rng: np.random.Generator
    ) -> tuple[int, list[float]] | None:
        """Return the decision to try and the chance of each, or None to ask the model."""
        count = len(pool.problem.labels)
        untried = [a for a in range(count) if pool.tried(context, a) == 0]
        if self.try_all_first and untried:
            chances = [1 / len(untried) if a in untried else 0.0 for a in range(count)]
            return int(rng.choice(untried)), chances
        if rng.random() < self.epsilon(t):
            return int(rng.integers(count)), [1 / count] * count
        return None


NO_EXPLORATION = Exploration(schedule="constant", start=0.0, end=0.0, try_all_first=False)
