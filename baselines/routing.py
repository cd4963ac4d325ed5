"""Rules for requests to experts that answer with different quality and slow each other down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.queueing import RulePolicy
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.forecast import Expert
from icl_optimizer.problem import Problem

BY_COLUMN = {"least-kv": ("KV", 1.0), "quality-greedy": ("Quality", -1.0)}
"""Rules that look at one column alone: its role, and whether less (1) or more (-1) is better."""
BY_FORECAST = ("latency-greedy", "qos-greedy", "impact-greedy")
"""Rules that look at what an engineer who knows the experts' costs expects."""


class ColumnRule(RulePolicy):
    """Takes the expert with the lowest (or highest) value of one column.

    Args:
        problem: Labels and columns.
        name: One of :data:`BY_COLUMN`.
        env: Environment to run in, if any.
        seed: Seeds the ties.
    """

    def __init__(
        self, problem: Problem, *, name: str, env: BatchedEnv | None = None, seed: int = 0
    ) -> None:
        """Find the columns."""
        super().__init__(problem, env=env, seed=seed)
        if name not in BY_COLUMN:
            raise unknown_name("rule", name, BY_COLUMN)
        role, self._sign = BY_COLUMN[name]
        self.name, self._role = name, problem.role(role)

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._sign * rows[:, self._role]


class ForecastRulePolicy(RulePolicy):
    """Takes the decision that looks best to who knows the experts' costs.

    Args:
        problem: Labels, columns, and an expert.
        name: ``latency-greedy`` (least expected latency), ``qos-greedy`` (highest expected quality
            of service of the request itself), ``impact-greedy`` (the same, less what it puts at
            risk for others; drops it where nothing is left).
        env: Environment to run in, if any.
        seed: Seeds the ties.
    """

    def __init__(
        self, problem: Problem, *, name: str, env: BatchedEnv | None = None, seed: int = 0
    ) -> None:
        """Refuse a problem that nobody knows parameters of."""
        super().__init__(problem, env=env, seed=seed)
        if name not in BY_FORECAST:
            raise unknown_name("rule", name, BY_FORECAST)
        if problem.expert is None:
            raise ConfigurationError(
                f"policy '{name}' was given '{problem.name}', which has no expert; allowed: "
                "problems whose parameters are known, such as qos-routing."
            )
        self.name, self._expert = name, problem.expert

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        expert: Expert = self._expert
        forecast = expert(rows)
        if self.name == "latency-greedy":
            return forecast.seconds
        if self.name == "qos-greedy":
            return -forecast.chance * (forecast.reward - forecast.otherwise)
        return -forecast.value
