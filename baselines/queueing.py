"""Classic rules for requests to servers with queues."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Forecast, ForecastRule
from icl_optimizer.policy import Policy, observations_of, one_hot
from icl_optimizer.problem import Problem

WAITING = ("Queue", "Waiting")
"""Roles of the columns that count requests at a server, in the order of preference."""


class RulePolicy(Policy):
    """Takes the server with the lowest cost; ties are broken at random.

    Args:
        problem: Labels and columns.
        env: Environment to run in, if any.
        seed: Seeds the ties.
    """

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations ``(n, columns)``; see :class:`Policy`."""
        rows = observations_of(self.problem, situations)
        lowest = self._lowest(rows)
        actions = self._drawn(lowest)
        # servers that cost the same have the same chance; other labels have none
        chances = np.zeros((len(rows), len(self.problem.labels)))
        chances[:, : lowest.shape[1]] = lowest / lowest.sum(axis=1, keepdims=True)
        return [
            self.rule_decision(
                context, int(action), chance.tolist(), row, propensity=float(chance[action])
            )
            for context, action, chance, row in zip(
                self.contexts(rows), actions, chances, rows, strict=True
            )
        ]

    def _actions(self, rows: NDArray[Any], *, explore: bool) -> NDArray[np.int64]:
        return self._drawn(self._lowest(rows))

    def _lowest(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which servers cost least, ``(n, servers)``."""
        costs = self._costs(observations_of(self.problem, rows).astype(np.float64))
        return np.asarray(costs == costs.min(axis=1, keepdims=True))

    def _drawn(self, lowest: NDArray[np.bool_]) -> NDArray[np.int64]:
        ties = self.rng.random(lowest.shape)
        return np.asarray(np.where(lowest, ties, -1.0).argmax(axis=1), dtype=np.int64)

    @abstractmethod
    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the cost of each server, ``(n, servers)``."""


class RoundRobinPolicy(Policy):
    """Takes the servers in turn, whatever their state; each sub-environment has its own turn."""

    name = "round-robin"

    def __init__(self, problem: Problem, *, env: BatchedEnv | None = None, seed: int = 0) -> None:
        """Begin with the first server."""
        super().__init__(problem, env=env, seed=seed)
        self._turns = np.zeros(0, dtype=np.int64)
        self._servers = problem.count - (problem.dump is not None)

    def bind(self, env: BatchedEnv) -> Self:
        """Begin with the first server again, for requests of ``env``."""
        self.env, self._turns = env, np.zeros(0, dtype=np.int64)
        return self

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; see :class:`Policy`."""
        contexts = self.contexts(situations)
        rows = list(np.atleast_2d(situations)) if isinstance(situations, np.ndarray) else None
        actions, count = self._next(len(contexts)), len(self.problem.labels)
        return [
            self.rule_decision(
                context,
                int(actions[i]),
                one_hot(int(actions[i]), count),
                None if rows is None else rows[i],
            )
            for i, context in enumerate(contexts)
        ]

    def _actions(self, rows: NDArray[Any], *, explore: bool) -> NDArray[np.int64]:
        return self._next(len(rows))

    def _next(self, count: int) -> NDArray[np.int64]:
        if len(self._turns) != count:
            self._turns = np.zeros(count, dtype=np.int64)
        actions = self._turns % self._servers
        self._turns += 1
        return actions


class ShortestQueuePolicy(RulePolicy):
    """Takes the server with the fewest requests waiting (and in service, where queues count it)."""

    name = "shortest-queue"

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows[:, _first_role(self.problem, WAITING)]


class LeastConnectionsPolicy(RulePolicy):
    """Takes the server with the fewest active and queued requests."""

    name = "least-connections"

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        waiting = rows[:, _first_role(self.problem, WAITING)]
        if "Active" not in self.problem.roles:
            return waiting
        return waiting + rows[:, self.problem.role("Active")]


class LeastLoadedPolicy(RulePolicy):
    """Takes the server with the fewest tokens in flight."""

    name = "least-loaded"

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows[:, self.problem.role("Load")]


class ExpertPolicy(RulePolicy):
    """Decides by what an engineer who knows speeds, lengths and scores expects.

    Args:
        problem: Labels, columns, and an expert.
        name: Which rule: ``shortest-expected-completion``, ``score-greedy`` (the best score,
            whatever the queues), ``score-in-time`` (score times the chance to be in time),
            ``sacrifice`` (the best chance to be in time; hopeless requests where they hurt least).
        rule: What to do with hopeless requests; only ``score-in-time`` and ``sacrifice`` ask it.
        env: Environment to run in, if any.
        seed: Seeds the ties.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        name: str,
        rule: ForecastRule | None = None,
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Refuse a problem that nobody knows parameters of."""
        super().__init__(problem, env=env, seed=seed)
        if problem.expert is None:
            raise ConfigurationError(
                f"policy '{name}' was given '{problem.name}', which has no expert; allowed: "
                "problems whose speeds are known, such as slo-scheduling and load-balancing."
            )
        self.name, self.expert, self.rule = name, problem.expert, rule or ForecastRule()
        self._dump = problem.dump

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        forecast = self.expert(rows)
        if self.name == "shortest-expected-completion":
            return forecast.seconds
        if self.name == "score-greedy":
            return -forecast.reward
        if self.name == "sacrifice":
            # the sooner the better among those that are as sure to be in time
            sooner = 1e-6 / (1 + np.minimum(forecast.seconds, 1e9))
            none = np.zeros_like(sooner)
            forecast = Forecast(forecast.chance, 1 + sooner, none, forecast.seconds)
        chosen = self.rule.choose(forecast, self._dump)
        return 1.0 - np.eye(len(self.problem.labels))[chosen]


def _first_role(problem: Problem, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the columns of the first of these roles that the problem has."""
    return problem.role(next((name for name in names if name in problem.roles), names[0]))
