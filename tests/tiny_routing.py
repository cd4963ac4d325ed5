"""A tiny routing problem: at the best expert nobody is in a hurry, which only requests tell."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.graph.layout import EXPERT, EXTRA, KINDS, REQUEST
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.problem import Column, Problem, Quantity

PLACES = 3
HARM, DROPPED, HURRY = -1.0, 0.3, 0.5


def routing_problem(experts: int = 3, horizon: int = 50) -> Problem:
    """Return ``experts`` experts with three places for requests of each kind."""
    roles = [*EXPERT, *EXTRA]
    roles += [f"{kind} {k + 1} {f}" for kind in KINDS for k in range(PLACES) for f in REQUEST]
    columns: list[Column] = [Quantity(name, "tokens", 0.0, 2.0) for name in ("Prompt", "Expected")]
    for action in range(experts):
        for role in roles:
            name = f"expert {action} {role}"
            columns.append(Quantity(name, "share", 0.0, 1.0, action=action, role=role))
    labels = (*(f"expert {i}" for i in range(experts)), "drop")
    return Problem("qos-routing", labels, tuple(columns), horizon)


class TinyRouting(BatchedEnv):
    """An expert pays its quality, or harms where a running request is late; dropping pays little.

    In a calm one nobody runs, so that quality is all. Nothing that is decided has consequences; the
    numbers of absent requests are 0.
    """

    def __init__(
        self, num_envs: int = 1, *, experts: int = 3, calm: bool = False, autoreset: bool = True
    ) -> None:
        super().__init__(num_envs, routing_problem(experts), autoreset=autoreset)
        self._calm = calm
        self._rows = np.zeros((num_envs, self.problem.horizon + 1, len(self.problem.columns)))
        self._values = np.zeros((num_envs, self.problem.horizon + 1, self.problem.count))

    def _begin(self, indices: Ints) -> None:
        for i in indices:
            self._rows[i] = draw_rows(self.problem, len(self._rows[i]), self.rngs[i])
            if self._calm:
                self._rows[i][:, requests_of(self.problem, "running").ravel()] = 0.0
            self._values[i] = values_of(self.problem, self._rows[i])

    def _observe(self) -> NDArray[Any]:
        return self._rows[np.arange(self.num_envs), self.elapsed]

    def action_values(self) -> Floats:
        return self._values[np.arange(self.num_envs), self.elapsed]

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        values = self.action_values()
        rewards = values[np.arange(self.num_envs), actions]
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        outcomes = Outcomes(decision_ids, rewards, rewards == values.max(axis=1), nothing, {})
        return StepResult(rewards, outcomes, nothing)


def requests_of(problem: Problem, kind: str) -> Ints:
    """Return the columns of the requests of one kind, ``(experts, places, 6)``."""
    return _requests_of(problem.count - 1, kind)


@lru_cache
def _requests_of(experts: int, kind: str) -> Ints:
    problem = routing_problem(experts)
    found = [[problem.role(f"{kind} {k + 1} {f}") for f in REQUEST] for k in range(PLACES)]
    return np.transpose(np.array(found), (2, 0, 1))


def draw_rows(problem: Problem, count: int, rng: np.random.Generator) -> Floats:
    """Return random observations, ``(count, columns)``."""
    rows = rng.random((count, len(problem.columns)))
    for kind in KINDS:
        for places in requests_of(problem, kind):
            absent = np.arange(PLACES) >= rng.integers(PLACES + 1, size=(count, 1))
            rows[:, places] *= ~absent[:, :, None]
    return rows


def values_of(problem: Problem, rows: NDArray[Any]) -> Floats:
    """Return the reward of every decision, ``(n, decisions)``."""
    latency = rows[:, requests_of(problem, "running")[..., -1]]
    worth = np.where((latency > HURRY).any(axis=2), HARM, rows[:, problem.role("Quality")])
    return np.concatenate([worth, np.full((len(rows), 1), DROPPED)], axis=1)
