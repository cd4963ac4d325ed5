"""k nearest neighbours on the encoded observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.ageing import Ageing
from icl_optimizer.baselines.explorer import ExploringPolicy
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import Exploration
from icl_optimizer.problem import Context, Problem

Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]
"""Features, actions and rewards of the experience."""


class KnnPolicy(ExploringPolicy):
    """Takes the decision whose k nearest experiences were rewarded most, on average.

    Distance is Euclidean on the encoded observation: one-hot words (two different words are
    sqrt(2) apart, all unknown words are the same) and numbers scaled to 0..1.

    Args:
        problem: Labels and columns.
        k: Neighbours per decision.
        capacity: Experiences kept; the oldest is forgotten.
        exploration: When to try decisions; the in-context agent's default when None.
        ageing: When the experience is forgotten, see :class:`ExperiencePool`.
        env: Environment to learn in, if any.
        seed: Seeds exploration.
    """

    name = "knn"
    kind = "knn"

    def __init__(
        self,
        problem: Problem,
        *,
        k: int = 3,
        capacity: int = 5000,
        exploration: Exploration | None = None,
        ageing: Ageing = "none",
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Start without experience."""
        super().__init__(problem, exploration=exploration, ageing=ageing, env=env, seed=seed)
        for field, value in (("k", k), ("capacity", capacity)):
            if value < 1:
                raise ConfigurationError(f"{field} is {value}; allowed: at least 1.")
        self.k, self.capacity = k, capacity
        self._seen: list[tuple[list[float], int, float]] = []
        self._arrays: Arrays | None = None

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, which must hold their observation, into the experience."""
        super().update(outcomes)
        for outcome in outcomes:
            if outcome.observation is None:
                raise ConfigurationError(
                    "policy 'knn' was given an outcome without observation; "
                    "allowed: outcomes that hold one."
                )
            if not outcome.censored:
                self._seen.append((list(outcome.observation), outcome.action, outcome.reward))
        self._seen = self._seen[-min(self.capacity, self.pool.counted) :]
        self._arrays = None

    def _values(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> NDArray[np.float64]:
        given = [row for row in rows if row is not None]
        if len(given) < len(rows):
            raise ConfigurationError("contexts were given to policy 'knn'; allowed: observations.")
        queries = self.problem.encode(self.problem.check(np.array(given)))
        features, actions, rewards = self._experience()
        values = np.full((len(queries), len(self.problem.labels)), -np.inf)
        for action in np.unique(actions):
            mine = actions == action
            values[:, action] = _nearest_mean(queries, features[mine], rewards[mine], self.k)
        return values

    def _experience(self) -> Arrays:
        """Return features ``(m, encoded_size)``, actions and rewards ``(m,)``."""
        if self._arrays is None:
            observations, actions, rewards = zip(*self._seen, strict=True)
            features = self.problem.encode(np.array(observations))
            self._arrays = features, np.array(actions), np.array(rewards)
        return self._arrays

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"k": self.k, "capacity": self.capacity, "seen": self._seen}

    def _restore(self, data: dict[str, Any]) -> None:
        super()._restore(data)
        self.k, self.capacity = data["k"], data["capacity"]
        self._seen = [(row, action, reward) for row, action, reward in data["seen"]]
        self._arrays = None


def _nearest_mean(
    queries: NDArray[np.float32],
    features: NDArray[np.float32],
    rewards: NDArray[np.float64],
    k: int,
) -> NDArray[np.float64]:
    """Return the mean reward of the ``k`` rows of ``features`` nearest to each query, ``(n,)``."""
    distance = (
        (queries**2).sum(axis=1)[:, None]
        + (features**2).sum(axis=1)[None]
        - 2 * queries @ features.T
    )
    # a stable order, so that ties go to the older experience
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.asarray(rewards[nearest].mean(axis=1))
