"""A tiny environment whose best decision is known: what learners must find in a second."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.problem import Category, Problem, Quantity

WORDS = ("apple", "stone", "pear")
BEST = np.array([0, 1, 0])
RIGHT, WRONG = 8.0, -12.0


def tiny_problem(horizon: int = 10) -> Problem:
    """Fruit goes left, stone goes right; the weight does not matter."""
    columns = (
        Category("Thing", WORDS, len(WORDS)),
        Quantity("Weight", "kg", 0.0, 2.0, (1.0,), ("light", "heavy")),
    )
    return Problem("tiny", ("left", "right"), columns, horizon)


class TinyEnv(BatchedEnv):
    """Draws a thing and a weight; the reward depends on the thing and the decision alone."""

    def __init__(self, num_envs: int = 1, *, autoreset: bool = True, horizon: int = 10) -> None:
        super().__init__(num_envs, tiny_problem(horizon), autoreset=autoreset)
        self._things = np.zeros((num_envs, horizon + 1), dtype=np.int64)
        self._weights = np.zeros((num_envs, horizon + 1))

    def _begin(self, indices: Ints) -> None:
        for i in indices:
            self._things[i] = self.rngs[i].integers(len(WORDS), size=self._things.shape[1])
            self._weights[i] = self.rngs[i].uniform(0, 2, size=self._weights.shape[1])

    def _now(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[np.arange(self.num_envs), self.elapsed]

    def _observe(self) -> NDArray[Any]:
        return np.stack([self._now(self._things), self._now(self._weights)], axis=1)

    def action_values(self) -> Floats:
        best = BEST[self._now(self._things)]
        return np.where(best[:, None] == np.arange(2), RIGHT, WRONG)

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        rewards = self.action_values()[np.arange(self.num_envs), actions]
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        right = rewards == RIGHT
        outcomes = Outcomes(decision_ids, rewards, right, nothing, {"right": right.astype(float)})
        return StepResult(rewards, outcomes, nothing)


class SingleTinyEnv(SingleEnv):
    """One tiny environment."""

    def __init__(self) -> None:
        super().__init__(TinyEnv(1, autoreset=False))


def every_situation() -> NDArray[np.float32]:
    """Return all things at two weights, shape ``(6, 2)``."""
    rows = [[thing, weight] for thing in range(len(WORDS)) for weight in (0.3, 1.7)]
    return np.array(rows, dtype=np.float32)
