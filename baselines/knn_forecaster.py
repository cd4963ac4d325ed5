"""Forecasts from the most similar requests that a server got."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.forecasters import NumericForecaster, own_columns
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Floats
from icl_optimizer.judging import Rows
from icl_optimizer.problem import Problem

OWN_SCALE = 8.0
"""Length of a decision's own columns in the distance, where another word is sqrt(2) away: best of
1, 4 and 8 with 3, 5 or 7 neighbours on seeds that no table reports."""


class KnnForecaster(NumericForecaster):
    """Expects what became of the ``k`` most similar requests that the same server got.

    Reward if successful is that of the ``k`` nearest successes; of equally near ones those seen
    first count.

    Args:
        problem: Labels and columns.
        k: How many.
        **options: Those of :class:`ForecastingPolicy`.

    Attributes:
        capacity: Experiences kept per decision; the oldest is overwritten.
    """

    name = "knn-predict"
    capacity = 5000

    def __init__(self, problem: Problem, *, k: int = 7, **options: Any) -> None:
        """Start without experience."""
        super().__init__(problem, **options)
        if k < 1:
            raise ConfigurationError(f"k is {k}; allowed: at least 1.")
        self.k = k
        self._seen = [_Seen(len(columns), self.capacity) for columns in self._columns]
        self._scale = [
            np.where(np.isin(columns, own_columns(problem, action)), OWN_SCALE, 1.0)
            for action, columns in enumerate(self._columns)
        ]

    def features(self, rows: Rows, action: int) -> Floats:
        """Return what the observations say about ``action``, own columns stretched."""
        return np.asarray(super().features(rows, action) * self._scale[action])

    def _learn(self, action: int, row: Floats, reward: float, feasible: bool) -> None:
        self._seen[action].add(row, reward, feasible)

    def _estimate(self, action: int, features: Floats) -> tuple[Floats, Floats, Floats]:
        known, rewards, feasible = self._seen[action].experience
        if not len(known):
            return np.full(len(features), 0.5), np.zeros(len(features)), np.zeros(len(features))
        chance = _nearest_mean(features, known, feasible.astype(np.float64), self.k)
        good = _nearest_mean(features, known[feasible], rewards[feasible], self.k)
        bad = _nearest_mean(features, known[~feasible], rewards[~feasible], self.k)
        return chance, good, bad

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"k": self.k, "seen": [seen.to_json() for seen in self._seen]}

    def _restore(self, data: dict[str, Any]) -> None:
        super()._restore(data)
        self.k = data["k"]
        for seen, saved in zip(self._seen, data["seen"], strict=True):
            seen.restore(saved)


class _Seen:
    """Experiences with one decision, in arrays of a fixed size."""

    def __init__(self, size: int, capacity: int) -> None:
        self._rows = np.zeros((capacity, size))
        self._rewards = np.zeros(capacity)
        self._feasible = np.zeros(capacity, dtype=np.bool_)
        self._count = 0

    def add(self, row: Floats, reward: float, feasible: bool) -> None:
        """Take one in; the oldest is overwritten when it is full."""
        place = self._count % len(self._rewards)
        self._rows[place], self._rewards[place], self._feasible[place] = row, reward, feasible
        self._count += 1

    @property
    def experience(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Features, rewards, and whether it was feasible, of all that is kept."""
        kept = min(self._count, len(self._rewards))
        return self._rows[:kept], self._rewards[:kept], self._feasible[:kept]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        rows, rewards, feasible = (array.tolist() for array in self.experience)
        return {"count": self._count, "rows": rows, "rewards": rewards, "feasible": feasible}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what :meth:`to_json` described."""
        self._count, kept = data["count"], len(data["rewards"])
        self._rows[:kept] = np.reshape(data["rows"], (kept, self._rows.shape[1]))
        self._rewards[:kept], self._feasible[:kept] = data["rewards"], data["feasible"]


def _nearest_mean(queries: Floats, known: Floats, values: Floats, k: int) -> Floats:
    """Return the mean value of the ``k`` rows of ``known`` nearest to each query, ``(n,)``."""
    if not len(known):
        return np.zeros(len(queries))
    cross = queries @ known.T
    distance = (queries**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * cross
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.asarray(values[nearest].mean(axis=1))
