"""Forecasts from experience by table, neighbours or regression: rivals of the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.saving import identity, read_json, restoring, write_json
from icl_optimizer.columns import Column
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import Exploration
from icl_optimizer.forecast import Floats, Forecast, ForecastRule
from icl_optimizer.forecasting import ForecastingPolicy
from icl_optimizer.judging import Rows
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Context, Problem


class _SavedForecaster(ForecastingPolicy):
    """Can be written as JSON, with its options."""

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        write_json(path, identity(self, self.name) | self._state())

    def load(self, path: str | Path) -> Self:
        """Take over what :meth:`save` wrote."""
        data = read_json(self, self.name, path)
        with restoring(path):
            self.seed, self.num_timesteps = data["seed"], data["num_timesteps"]
            self._restore(data)
        return self

    def _state(self) -> dict[str, Any]:
        return {
            "rule": self.rule.model_dump(mode="json"),
            "exploration": self.exploration.model_dump(mode="json"),
            "explored": self.explored,
            "table": self.table.to_json(),
        }

    def _restore(self, data: dict[str, Any]) -> None:
        self.rule = ForecastRule(**data["rule"])
        self.exploration = Exploration(**data["exploration"])
        self.explored = data["explored"]
        self.table = OutcomeTable.from_json(self.problem, data["table"])


class TablePolicy(_SavedForecaster):
    """Expects what was seen on average, in groups of words; see :class:`OutcomeTable`."""

    name = "table"

    def _forecast(self, contexts: Sequence[Context], rows: Rows) -> Forecast:
        return self.table.forecast(contexts)


class NumericForecaster(_SavedForecaster):
    """Keeps, per decision, the numbers that tell of it: shared columns and its own."""

    def __init__(
        self,
        problem: Problem,
        *,
        rule: ForecastRule | None = None,
        exploration: Exploration | None = None,
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Start without experience."""
        super().__init__(problem, rule=rule, exploration=exploration, env=env, seed=seed)
        self._columns = [columns_of(problem, a) for a in range(len(problem.labels))]

    def features(self, rows: Rows, action: int) -> Floats:
        """Return what the observations say about ``action``, ``(n, features)``, each 0 to 1."""
        if any(row is None for row in rows):
            raise ConfigurationError(
                f"contexts were given to policy '{self.name}'; allowed: observations."
            )
        encoded = self.problem.encode(self.problem.check(np.array(rows)))
        return encoded[:, self._columns[action]].astype(np.float64)

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, which must hold their observation, into the experience."""
        if any(outcome.observation is None for outcome in outcomes):
            raise ConfigurationError(
                f"policy '{self.name}' was given an outcome without observation; "
                "allowed: outcomes that hold one."
            )
        super().update(outcomes)
        for outcome in outcomes:
            if not outcome.censored:
                row = self.features([np.array(outcome.observation)], outcome.action)[0]
                self._learn(outcome.action, row, outcome.reward, outcome.feasible)

    @abstractmethod
    def _learn(self, action: int, row: Floats, reward: float, feasible: bool) -> None:
        """Take one outcome in."""

    def _forecast(self, contexts: Sequence[Context], rows: Rows) -> Forecast:
        count = len(self.problem.labels)
        chance, reward, otherwise = np.zeros((3, len(rows), count))
        for action in range(count):
            features = self.features(rows, action)
            chance[:, action], reward[:, action], otherwise[:, action] = self._estimate(
                action, features
            )
        return Forecast(chance, reward, otherwise, np.full(chance.shape, np.nan))

    @abstractmethod
    def _estimate(self, action: int, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Return chance, reward if successful, reward otherwise, each ``(n,)``."""


def columns_of(problem: Problem, action: int) -> NDArray[np.int64]:
    """Return the encoded columns that tell of ``action``: shared ones and its own."""
    return _encoded(problem, lambda column: column.action in (None, action) and not column.detail)


def own_columns(problem: Problem, action: int) -> NDArray[np.int64]:
    """Return the encoded columns that are ``action``'s own."""
    return _encoded(problem, lambda column: column.action == action and not column.detail)


def _encoded(problem: Problem, wanted: Callable[[Column], bool]) -> NDArray[np.int64]:
    chosen: list[int] = []
    place = 0
    for column in problem.columns:
        if wanted(column):
            chosen += range(place, place + column.encoded_size)
        place += column.encoded_size
    return np.array(chosen, dtype=np.int64)
