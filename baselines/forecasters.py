"""Forecasts from experience by table, neighbours or regression: rivals of the language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.saving import identity, read_json, write_json
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import Exploration
from icl_optimizer.forecast import Floats, Forecast, ForecastRule
from icl_optimizer.forecasting import ForecastingPolicy
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Context, Problem


class TablePolicy(ForecastingPolicy):
    """Expects what was seen on average, in groups of words; see :class:`OutcomeTable`."""

    name = "table"

    def _forecast(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> Forecast:
        return self.table.forecast(contexts)

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        data = {"explored": self.explored, "table": self.table.to_json()}
        write_json(path, identity(self, "table") | data)

    def load(self, path: str | Path) -> Self:
        """Take over what :meth:`save` wrote."""
        data = read_json(self, "table", path)
        self.seed, self.num_timesteps = data["seed"], data["num_timesteps"]
        self.explored = data["explored"]
        self.table = OutcomeTable.from_json(self.problem, data["table"])
        return self


class _NumericForecaster(ForecastingPolicy):
    """Keeps, per decision, the numbers that tell of it: shared columns and its own.

    Attributes:
        capacity: Experiences kept per decision; the oldest is overwritten.
    """

    capacity = 5000

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
        self._columns = [_columns_of(problem, a) for a in range(len(problem.labels))]

    def features(self, rows: Sequence[NDArray[Any] | None], action: int) -> Floats:
        """Return what the observations say about ``action``, ``(n, features)``, each 0 to 1."""
        if any(row is None for row in rows):
            raise ConfigurationError(
                f"contexts were given to policy '{self.name}'; allowed: observations."
            )
        encoded = self.problem.encode(self.problem.check(np.array(rows)))
        return encoded[:, self._columns[action]].astype(np.float64)

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, which must hold their observation, into the experience."""
        super().update(outcomes)
        for outcome in outcomes:
            if outcome.observation is None:
                raise ConfigurationError(
                    f"policy '{self.name}' was given an outcome without observation; "
                    "allowed: outcomes that hold one."
                )
            if not outcome.censored:
                row = self.features([np.array(outcome.observation)], outcome.action)[0]
                self._learn(outcome.action, row, outcome.reward, outcome.feasible)

    def _learn(self, action: int, row: Floats, reward: float, feasible: bool) -> None:
        """Take one outcome in."""
        raise NotImplementedError

    def _forecast(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> Forecast:
        count = len(self.problem.labels)
        chance, reward, otherwise = np.zeros((3, len(rows), count))
        for action in range(count):
            features = self.features(rows, action)
            chance[:, action], reward[:, action], otherwise[:, action] = self._estimate(
                action, features
            )
        return Forecast(chance, reward, otherwise, np.full(chance.shape, np.nan))

    def _estimate(self, action: int, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Return chance, reward if successful, reward otherwise, each ``(n,)``."""
        raise NotImplementedError


class KnnForecaster(_NumericForecaster):
    """Expects what became of the ``k`` most similar requests that the same server got.

    Reward if successful is that of the ``k`` nearest successes.
    """

    name = "knn-predict"

    def __init__(self, problem: Problem, *, k: int = 7, **options: Any) -> None:
        """Keep ``k``; the other options are those of :class:`ForecastingPolicy`."""
        super().__init__(problem, **options)
        if k < 1:
            raise ConfigurationError(f"k is {k}; allowed: at least 1.")
        self.k = k
        self._seen: list[list[tuple[Floats, float, bool]]] = [[] for _ in problem.labels]
        self._arrays: list[tuple[Floats, Floats, NDArray[np.bool_]] | None]
        self._arrays = [None] * len(problem.labels)

    def _learn(self, action: int, row: Floats, reward: float, feasible: bool) -> None:
        seen = self._seen[action]
        seen.append((row, reward, feasible))
        del seen[: -self.capacity]
        self._arrays[action] = None

    def _estimate(self, action: int, features: Floats) -> tuple[Floats, Floats, Floats]:
        if not self._seen[action]:
            return np.full(len(features), 0.5), np.zeros(len(features)), np.zeros(len(features))
        known, rewards, feasible = self._experience(action)
        chance = _nearest_mean(features, known, feasible.astype(np.float64), self.k)
        good = _nearest_mean(features, known[feasible], rewards[feasible], self.k)
        bad = _nearest_mean(features, known[~feasible], rewards[~feasible], self.k)
        return chance, good, bad

    def _experience(self, action: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        arrays = self._arrays[action]
        if arrays is None:
            rows, rewards, feasible = zip(*self._seen[action], strict=True)
            arrays = np.array(rows), np.array(rewards), np.array(feasible)
            self._arrays[action] = arrays
        return arrays


class LinearForecaster(_NumericForecaster):
    """Ridge regression of success and reward on what tells of each decision (disjoint LinUCB).

    While it explores, the chance and reward have the confidence bonus
    ``alpha sqrt(x' A^-1 x)`` of LinUCB (Li et al. 2010); shared words enter on their own and
    multiplied with the own columns, so that a queue may matter more for one task than another.
    """

    name = "linear-predict"

    def __init__(
        self, problem: Problem, *, alpha: float = 0.5, ridge: float = 1.0, **options: Any
    ) -> None:
        """Start without experience."""
        super().__init__(problem, **options)
        if alpha < 0 or ridge <= 0:
            raise ConfigurationError(
                f"alpha is {alpha} and ridge {ridge}; allowed: at least 0, more than 0."
            )
        self.alpha = alpha
        self._models = []
        for action in range(len(problem.labels)):
            size = len(self._crossed(np.zeros((1, len(self._columns[action]))), action)[0])
            self._models.append({name: _Ridge(size, ridge) for name in ("chance", "good", "bad")})
        self._optimistic = False

    def decide(self, situations: Any, *, explore: bool = False) -> Any:
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

    def _crossed(self, features: Floats, action: int) -> Floats:
        """Return features, a constant, and products of own with shared ones."""
        own = np.isin(self._columns[action], _own_columns(self.problem, action))
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
        return np.asarray(np.sqrt(np.einsum("ni,ij,nj->n", x, self._inverse, x)))


def _columns_of(problem: Problem, action: int) -> NDArray[np.int64]:
    """Return the encoded columns that tell of ``action``: shared ones and its own."""
    return _encoded(problem, lambda column: column.action in (None, action))


def _own_columns(problem: Problem, action: int) -> NDArray[np.int64]:
    return _encoded(problem, lambda column: column.action == action)


def _encoded(problem: Problem, wanted: Any) -> NDArray[np.int64]:
    chosen: list[int] = []
    place = 0
    for column in problem.columns:
        if wanted(column):
            chosen += range(place, place + column.encoded_size)
        place += column.encoded_size
    return np.array(chosen, dtype=np.int64)


def _nearest_mean(queries: Floats, known: Floats, values: Floats, k: int) -> Floats:
    """Return the mean value of the ``k`` rows of ``known`` nearest to each query, ``(n,)``."""
    if not len(known):
        return np.zeros(len(queries))
    cross = queries @ known.T
    distance = (queries**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * cross
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.asarray(values[nearest].mean(axis=1))
