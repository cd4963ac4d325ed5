"""Forecasts by ridge regression with a confidence bonus."""

from __future__ import annotations

from typing import Any

import numpy as np

from icl_optimizer.baselines.forecasters import NumericForecaster, own_columns
from icl_optimizer.decision import Decision, Situations
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Floats
from icl_optimizer.problem import Problem


class LinearForecaster(NumericForecaster):
    """Ridge regression of success and reward on what tells of each decision (disjoint LinUCB).

    While it explores, the chance has the confidence bonus ``alpha sqrt(x' A^-1 x)`` of LinUCB (Li
    et al. 2010); shared words enter on their own and multiplied with the own columns, so that a
    queue may matter more for one task than another.
    """

    name = "linear-predict"

    def __init__(
        self, problem: Problem, *, alpha: float = 0.5, ridge: float = 1.0, **options: Any
    ) -> None:
        """Start without experience."""
        super().__init__(problem, **options)
        if not 0 <= alpha < np.inf:
            raise ConfigurationError(f"alpha is {alpha}; allowed: at least 0.")
        if not 0 < ridge < np.inf:
            raise ConfigurationError(f"ridge is {ridge}; allowed: more than 0.")
        self.alpha = alpha
        self._models = []
        for action in range(len(problem.labels)):
            size = len(self._crossed(np.zeros((1, len(self._columns[action]))), action)[0])
            self._models.append({name: _Ridge(size, ridge) for name in ("chance", "good", "bad")})
        self._optimistic = False

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide; with confidence bonus where it may explore."""
        self._optimistic = explore
        try:
            return super().decide(situations, explore=explore)
        finally:
            self._optimistic = False

    def _learn(self, action: int, row: Floats, reward: float, feasible: bool) -> None:
        x = self._crossed(row[None], action)[0]
        self._models[action]["chance"].add(x, float(feasible))
        self._models[action]["good" if feasible else "bad"].add(x, reward)

    def _estimate(self, action: int, features: Floats) -> tuple[Floats, Floats, Floats]:
        x, models = self._crossed(features, action), self._models[action]
        bonus = self.alpha * models["chance"].doubt(x) if self._optimistic else 0.0
        chance = np.clip(models["chance"].predict(x) + bonus, 0.0, 1.0)
        return chance, models["good"].predict(x), models["bad"].predict(x)

    def _state(self) -> dict[str, Any]:
        models = [{name: m.to_json() for name, m in by.items()} for by in self._models]
        return super()._state() | {"alpha": self.alpha, "models": models}

    def _restore(self, data: dict[str, Any]) -> None:
        super()._restore(data)
        self.alpha = data["alpha"]
        for by, saved in zip(self._models, data["models"], strict=True):
            for name, model in by.items():
                model.restore(saved[name])

    def _crossed(self, features: Floats, action: int) -> Floats:
        """Return features, a constant, and products of own with shared ones."""
        own = np.isin(self._columns[action], own_columns(self.problem, action))
        products = features[:, own, None] * features[:, None, ~own]
        one = np.ones((len(features), 1))
        return np.hstack([one, features, products.reshape(len(features), -1)])


class _Ridge:
    """Ridge regression that takes in one row after the other."""

    def __init__(self, size: int, ridge: float) -> None:
        self._inverse = np.eye(size) / ridge
        self._target = np.zeros(size)
        self._weights = np.zeros(size)

    def add(self, x: Floats, y: float) -> None:
        """Take one row in (Sherman-Morrison)."""
        along = self._inverse @ x
        self._inverse -= np.outer(along, along) / (1 + x @ along)
        self._target += x * y
        self._weights = self._inverse @ self._target

    def predict(self, x: Floats) -> Floats:
        """Return the expected value of each row, ``(n,)``."""
        return np.asarray(x @ self._weights)

    def doubt(self, x: Floats) -> Floats:
        """Return ``sqrt(x' A^-1 x)`` of each row, ``(n,)``."""
        return np.asarray(np.sqrt(np.einsum("ni,ni->n", x @ self._inverse, x)))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {"inverse": self._inverse.tolist(), "target": self._target.tolist()}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what :meth:`to_json` described."""
        self._inverse, self._target = np.array(data["inverse"]), np.array(data["target"])
        self._weights = self._inverse @ self._target
