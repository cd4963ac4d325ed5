"""One offloading cell in plain Python: the reference for the batched environment."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from icl_optimizer.environments.base import observation_box
from icl_optimizer.environments.inference import LlmProfile, find_profile
from icl_optimizer.environments.offloading import LOCAL, OFFLOAD, build_problem
from icl_optimizer.environments.offloading_config import OffloadingConfig
from icl_optimizer.environments.offloading_tasks import TaskDraws, draw_tasks
from icl_optimizer.environments.wireless import ScalarRadioNetwork


@dataclass(frozen=True)
class Task:
    """One task; the fields are those of :class:`TaskDraws`, one number each."""

    word: int
    quality_task: bool
    estimate: float
    tokens: float
    user: int
    arrival_s: float
    backhaul_s: float


class ScalarOffloadingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """What :class:`OffloadingVectorEnv` computes, for one cell, task by task.

    Written to be read and to be compared with: it draws the same random numbers in the same
    order, so with the same seed its trajectory is that of the batched environment. Spaces,
    rewards and episodes are described there; ``info`` holds ``delay_s`` (eqs. 1-4), ``feasible``
    (4e), ``quality_task`` and ``executed`` (0 edge, 1 cloud) of the decision just made.

    Args:
        config: The parameters.
        **fields: Fields of :class:`OffloadingConfig`, instead of ``config``.
    """

    def __init__(self, config: OffloadingConfig | None = None, **fields: Any) -> None:
        """Set up the cell and the two models."""
        self.config = config or OffloadingConfig(**fields)
        self.problem = build_problem(self.config)
        box = observation_box(self.problem)
        self._low, self._high = box.low.tolist(), box.high.tolist()
        self.observation_space: spaces.Space[Any] = box
        self.action_space = spaces.Discrete(len(self.problem.labels))
        self.metadata = {"render_modes": []}
        self.edge = find_profile("edge_llm", self.config.edge_llm)
        self.cloud = find_profile("cloud_llm", self.config.cloud_llm)
        self.radio = ScalarRadioNetwork(self.config.radio, self.config.users)
        self.tasks: list[Task] = []
        self.elapsed = 0
        self._capacity: list[float] = []
        self._slot_free: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; ``options`` are not used."""
        super().reset(seed=seed)
        rng, config = self.np_random, self.config
        self.tasks = list_tasks(draw_tasks([rng], config))
        self.radio.reset(self.radio.channel.draw_episode(rng, config.users, config.horizon))
        self.elapsed = 0
        self._slot_free = [0.0] * config.edge_slots
        self._capacity = self.radio.step(0)
        return self._observe(self.tasks[0]), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Carry out one decision."""
        task = self.tasks[self.elapsed]
        executed = 1 - int(action) if self.config.inverted else int(action)
        delay = self.delay(task, executed)
        feasible = self.feasible(task, executed)
        reward = self.config.target_s - delay - (0.0 if feasible else self.config.penalty)
        if self.config.congested and executed == LOCAL:
            self._occupy(task)
        self.elapsed += 1
        truncated = self.elapsed == self.config.horizon
        if not truncated:
            self._capacity = self.radio.step(self.elapsed)
        following = task if truncated else self.tasks[self.elapsed]
        info = {
            "delay_s": delay,
            "feasible": feasible,
            "quality_task": task.quality_task,
            "executed": executed,
        }
        return self._observe(following), reward, False, truncated, info

    def delay(self, task: Task, executed: int) -> float:
        """Return the total delay in seconds if ``task`` runs at the edge (0) or in the cloud (1).

        Transmission (eq. 1) plus generation (eq. 3), plus waiting or backhaul.
        """
        bits = task.tokens * self.config.bytes_per_token * 8
        radio = bits / self._capacity[task.user]
        if executed == OFFLOAD:
            return radio + task.backhaul_s + generation_seconds(self.cloud, task.tokens)
        return radio + self._wait(task) + generation_seconds(self.edge, task.tokens)

    def feasible(self, task: Task, executed: int) -> bool:
        """Return whether constraint (4e) holds: the model is good enough for the task."""
        profile = self.cloud if executed == OFFLOAD else self.edge
        return not task.quality_task or profile.mmlu >= self.config.requirement

    def _wait(self, task: Task) -> float:
        """Return the seconds until an edge slot is free, 0 where the edge is not finite."""
        if not self.config.congested:
            return 0.0
        return max(self._slot_free[0] - task.arrival_s, 0.0)

    def _occupy(self, task: Task) -> None:
        """Give the task the edge slot that is free first (the root of the heap)."""
        start = max(self._slot_free[0], task.arrival_s)
        heapq.heapreplace(self._slot_free, start + generation_seconds(self.edge, task.tokens))

    def _observe(self, task: Task) -> NDArray[np.float32]:
        values = [float(task.word), task.estimate]
        if self.config.congested:
            values += [self._wait(task), task.backhaul_s]
        limits = zip(values, self._low, self._high, strict=True)
        return np.array([min(max(v, low), high) for v, low, high in limits], dtype=np.float32)


def generation_seconds(profile: LlmProfile, tokens: float) -> float:
    """Return TTFT + n TPOT, eq. (3)."""
    return profile.ttft_s + tokens * profile.tpot_s


def list_tasks(draws: TaskDraws) -> list[Task]:
    """Return the tasks of the first episode one by one."""
    columns = (getattr(draws, field.name)[0].tolist() for field in fields(Task))
    return [Task(*row) for row in zip(*columns, strict=True)]
