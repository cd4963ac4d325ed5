"""One scheduler in plain Python, event by event: the reference for the batched environment."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from icl_optimizer.environments.base import observation_box
from icl_optimizer.environments.slo_scheduling import build_problem
from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig
from icl_optimizer.environments.slo_scheduling_tasks import TaskDraws, draw_tasks

DEPARTURE, EXPIRY, ARRIVAL = 0, 1, 2
"""Kinds of events; at the same time, who leaves makes room for who comes."""


@dataclass
class Task:
    """One task; the first fields are those of :class:`TaskDraws`, then what became of it.

    Attributes:
        server: Where it was sent.
        start_s: Beginning of service, None if it waits or was dropped.
        finish_s: End of service, or when it was taken away; None if it was dropped.
        earned: Its score; 0 if late, taken away or dropped.
        cancelled: Whether it was taken away at its deadline.
    """

    kind: int
    arrival_s: float
    deadline_s: float
    tokens: list[float]
    score: list[float]
    server: int = -1
    start_s: float | None = None
    finish_s: float | None = None
    earned: float = 0.0
    cancelled: bool = False

    @property
    def expiry_s(self) -> float:
        """When its deadline is over."""
        return self.arrival_s + self.deadline_s

    @property
    def in_time(self) -> bool:
        """Whether it finished by its deadline."""
        return not self.cancelled and self.finish_s is not None and self.finish_s <= self.expiry_s


class ScalarSLOSchedulingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """What :class:`SLOSchedulingVectorEnv` computes, for one episode, event by event.

    Written to be read and to be compared with: a list of coming arrivals and departures, a queue
    in each server, and nothing known before it happens. It draws the same random numbers in the
    same order, so with the same seed its trajectory is that of the batched environment. Spaces,
    rewards and episodes are described there; ``info`` holds ``finished``, the numbers of the tasks
    that left since the last decision, and ``dropped``, whether that decision's task was.

    Args:
        config: The parameters.
        **fields: Fields of :class:`SLOSchedulingConfig`, instead of ``config``.
    """

    def __init__(self, config: SLOSchedulingConfig | None = None, **fields: Any) -> None:
        """Set up the spaces."""
        self.config = config or SLOSchedulingConfig(**fields)
        self.problem = build_problem(self.config)
        self.observation_space: spaces.Space[Any] = observation_box(self.problem)
        self.action_space = spaces.Discrete(len(self.problem.labels))
        self.metadata = {"render_modes": []}
        self.tasks: list[Task] = []
        self.waiting: list[deque[int]] = []
        self.serving: list[set[int]] = []
        self.present = 0
        self._speeds = self.config.speeds.tolist()
        self._overheads = self.config.overheads.tolist()
        self._slots, self._capacity = self.config.slots_each, self.config.capacity
        self._events: list[tuple[float, int, int]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; ``options`` are not used."""
        super().reset(seed=seed)
        self.tasks = list_tasks(draw_tasks([self.np_random], self.config))
        self.waiting = [deque() for _ in self._speeds]
        self.serving = [set() for _ in self._speeds]
        self._events = [(task.arrival_s, ARRIVAL, k) for k, task in enumerate(self.tasks)]
        self._next_arrival()
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Send the present task to a model, and let time pass to the next arrival or the end."""
        task = self.tasks[self.present]
        task.server = self._longest() if action == len(self._speeds) else int(action)
        dropped = bool(self.length(task.server) >= self._capacity[task.server])
        if not dropped:
            if self.config.cancel_late:
                heapq.heappush(self._events, (task.expiry_s, EXPIRY, self.present))
            self.waiting[task.server].append(self.present)
            self._serve(task.server, task.arrival_s)
        truncated = self.present == len(self.tasks) - 1
        finished = self._next_arrival()
        reward = sum(self.tasks[k].earned for k in finished)
        return self._observe(), reward, False, truncated, {"finished": finished, "dropped": dropped}

    def length(self, server: int) -> int:
        """Return how many tasks a server holds, waiting and in service."""
        return len(self.waiting[server]) + len(self.serving[server])

    def _longest(self) -> int:
        return max(range(len(self._speeds)), key=self.length)

    def _next_arrival(self) -> list[int]:
        """Carry out events up to an arrival, or all that are left; return the departures."""
        finished = []
        while self._events:
            time_s, kind, number = heapq.heappop(self._events)
            if kind == ARRIVAL:
                self.present = number
                break
            if self._leaves(time_s, kind, number):
                finished.append(number)
        return finished

    def _leaves(self, now_s: float, kind: int, number: int) -> bool:
        """Carry out a departure or a deadline; return whether the task left just now."""
        task = self.tasks[number]
        if number in self.waiting[task.server]:
            self.waiting[task.server].remove(number)
        elif number in self.serving[task.server]:
            self.serving[task.server].remove(number)
        else:
            return False
        task.finish_s, task.cancelled = now_s, kind == EXPIRY
        if task.in_time:
            task.earned = task.score[task.server]
        self._serve(task.server, now_s)
        return True

    def _serve(self, server: int, now_s: float) -> None:
        """Begin to serve who has waited longest, if there is a free slot."""
        if not self.waiting[server] or len(self.serving[server]) >= self._slots[server]:
            return
        number = self.waiting[server].popleft()
        task = self.tasks[number]
        task.start_s = now_s
        service = self._overheads[server] + task.tokens[server] / self._speeds[server]
        self.serving[server].add(number)
        heapq.heappush(self._events, (now_s + service, DEPARTURE, number))

    def _observe(self) -> NDArray[np.float32]:
        task = self.tasks[self.present]
        lengths = [self.length(server) for server in range(len(self._speeds))]
        return np.array([*lengths, task.kind, task.deadline_s], dtype=np.float32)


def list_tasks(draws: TaskDraws) -> list[Task]:
    """Return the tasks of the first episode one by one."""
    columns = (getattr(draws, field.name)[0].tolist() for field in fields(draws))
    return [Task(*row) for row in zip(*columns, strict=True)]
