"""Generation task offloading between an edge and a cloud language model (Zhou et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.inference import LlmProfile, find_profile, generation_time
from icl_optimizer.environments.offloading_config import (
    PAPER_TYPES,
    OffloadingConfig,
    service_types,
)
from icl_optimizer.environments.offloading_tasks import TaskDraws, draw_tasks
from icl_optimizer.environments.registry import SweepPoint
from icl_optimizer.environments.wireless import RadioNetwork
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Category, Column, Problem, Quantity

LOCAL, OFFLOAD = 0, 1
FIXED = ("users", "edge_slots", "congested", "radio")
"""Parameters that shape the state, so that they cannot change in mid-run."""


class OffloadingVectorEnv(BatchedEnv):
    """Offload each generation task to the edge or to the cloud model.

    ## Description
    Users of one cell ask for generated content. A small model at the edge answers fast, a large
    one in the cloud answers well; quality-preferred tasks are only satisfied by the large one.
    The result travels over a 3GPP urban downlink with proportional-fair scheduling. With
    ``congested=True`` the edge serves a finite number of tasks at once, the others queue, and the
    backhaul delay varies. With ``vocabulary="open"`` service types are words of a long list.

    ## Action Space
    ``Discrete(2)``: 0 local (edge model), 1 offload (cloud model).

    ## Observation Space
    ``Box``: index of the service type's word, estimated output size in tokens; congested: wait
    at the edge in s and present backhaul delay in s.

    ## Starting State
    Users dropped uniformly in the cell, an empty edge, a random task.

    ## Rewards
    Eq. (10): ``target_s - t_total - penalty``, the penalty only when constraint (4e) fails, where
    ``t_total`` is transmission (eq. 1) plus generation (eq. 3), plus waiting when congested.

    ## Episode End
    Truncated after ``horizon`` tasks.

    ## Information
    ``outcomes``: reward, feasible (4e) and the metrics ``delay_s``, ``quality_task`` (1 for a
    quality-preferred task) of each decision, known at once.

    ## Arguments
    Every field of :class:`OffloadingConfig`, by keyword or as ``config``.

    ## References
    Zhou et al., "Generative AI as a Service in 6G Edge-Cloud: Generation Task Offloading by
    In-context Learning", 2024.

    ## Version History
    v0: initial version.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: OffloadingConfig | None = None,
        *,
        autoreset: bool = True,
        **fields: Any,
    ) -> None:
        """Set up the cell and the two models."""
        self.config = config or OffloadingConfig(**fields)
        super().__init__(num_envs, build_problem(self.config), autoreset=autoreset)
        self._profiles = _profiles(self.config)
        self.radio = RadioNetwork(self.config.radio, num_envs, self.config.users)
        self._tasks = TaskDraws.empty(num_envs, self.config.horizon)
        self._capacity = np.ones(num_envs)
        self._slot_free = np.zeros((num_envs, self.config.edge_slots))
        self._rows = np.arange(num_envs)

    def change(self, config: BaseModel) -> None:
        """Let other parameters hold from the next decision on; see :meth:`BatchedEnv.change`.

        Models, quality requirement, target, penalty, ``inverted`` and, unless congested, the
        backhaul change at once. Queue and radio stay as they are, and so do the tasks of the
        present episode: their share, words and gaps change with the next one.
        """
        new = OffloadingConfig.model_validate(config)
        for field in FIXED:
            old, given = getattr(self.config, field), getattr(new, field)
            if old != given:
                raise ConfigurationError(
                    f"offloading: {field} is {given!r} in mid-run; allowed: {old!r}, as it was."
                )
        if build_problem(new) != self.problem:
            raise ConfigurationError(
                "offloading: labels or columns are different in mid-run; allowed: parameters that "
                "leave them as they are, such as edge_llm, quality_requirement or inverted."
            )
        self.config, self._profiles = new, _profiles(new)
        if not new.congested:
            self._tasks.backhaul_s[:] = new.backhaul_s

    @property
    def carries_over(self) -> bool:
        """Whether a decision changes what later ones meet: only where the edge has a queue."""
        return self.config.congested

    def _begin(self, indices: Ints) -> None:
        rngs = [self.rngs[i] for i in indices]
        self._tasks.fill(indices, draw_tasks(rngs, self.config))
        radio = [self.radio.draw_episode(rng, self.config.horizon) for rng in rngs]
        self.radio.reset(indices, radio)
        self._slot_free[indices] = 0.0

    def _arrive(self, indices: Ints) -> None:
        """Advance the radio by one scheduling interval, up to the next task's transmission."""
        capacity = self.radio.step(np.minimum(self.elapsed, self.config.horizon - 1), indices)
        self._capacity[indices] = capacity[self._rows, self._now(self._tasks.user)][indices]

    def _now(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the entry of the present task, ``values`` being ``(E, horizon)``."""
        return values[self._rows, np.minimum(self.elapsed, self.config.horizon - 1)]

    def _wait(self) -> Floats:
        """Return the seconds until an edge slot is free, 0 where the edge is not finite."""
        if not self.config.congested:
            return np.zeros(self.num_envs)
        arrival = self._now(self._tasks.arrival_s)
        wait: Floats = np.maximum(self._slot_free.min(axis=1) - arrival, 0.0)
        return wait

    def _observe(self) -> NDArray[Any]:
        columns = [self._now(self._tasks.word), self._now(self._tasks.estimate)]
        if self.config.congested:
            columns += [self._wait(), self._now(self._tasks.backhaul_s)]
        pairs = zip(columns, self.problem.columns, strict=True)
        return np.stack([np.clip(values, c.low, c.high) for values, c in pairs], axis=1)

    def _delays(self) -> Floats:
        """Return the total delay of both decisions, seconds, shape ``(2, E)``; eqs. (1)-(4)."""
        tokens = self._now(self._tasks.tokens)
        # bytes to bits: capacity is in bit/s
        radio = tokens * self.config.bytes_per_token * 8 / self._capacity
        edge = radio + self._wait() + generation_time(self._profiles[LOCAL], tokens)
        cloud = radio + self._now(self._tasks.backhaul_s)
        cloud = cloud + generation_time(self._profiles[OFFLOAD], tokens)
        return np.stack([edge, cloud])

    def _feasible(self) -> NDArray[np.bool_]:
        """Return whether constraint (4e) holds for both decisions, shape ``(2, E)``."""
        modest = ~self._now(self._tasks.quality_task)
        return np.stack([modest | (p.mmlu >= self.config.requirement) for p in self._profiles])

    def _results(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return reward, delay and feasibility by label, each ``(2, E)``."""
        delays, feasible = self._delays(), self._feasible()
        rewards = self.config.target_s - delays - self.config.penalty * ~feasible
        if self.config.inverted:
            return rewards[::-1], delays[::-1], feasible[::-1]
        return rewards, delays, feasible

    def action_values(self) -> Floats:
        """Return the reward of either decision for the present task, ``(E, 2)``."""
        return self._results()[0].T

    def summarise(
        self, rewards: Floats, feasible: NDArray[np.bool_], metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return reward (also per kind of task), success rate of quality tasks, and delay."""
        demanding = metrics["quality_task"] > 0
        parts = {
            "reward_regular": rewards[~demanding],
            "reward_quality": rewards[demanding],
            "success_rate": feasible[demanding],
        }
        return {
            "reward": float(rewards.mean()),
            "delay_s": float(metrics["delay_s"].mean()),
            "offload_rate": float(metrics["executed"].mean()),
            **{name: float(v.mean()) for name, v in parts.items() if v.size},
        }

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        all_rewards, all_delays, all_feasible = self._results()
        rewards, delays = all_rewards[actions, self._rows], all_delays[actions, self._rows]
        feasible = all_feasible[actions, self._rows]
        metrics = {
            "delay_s": delays,
            "quality_task": self._now(self._tasks.quality_task).astype(np.float64),
            "executed": (actions ^ int(self.config.inverted)).astype(np.float64),
        }
        if self.config.congested:
            self._occupy(metrics["executed"] == LOCAL)
        done = np.zeros(self.num_envs, dtype=np.bool_)
        outcomes = Outcomes(decision_ids, rewards, feasible, done, metrics)
        return StepResult(rewards, outcomes, done)

    def _occupy(self, local: NDArray[np.bool_]) -> None:
        """Give each local task the edge slot that is free first (first in, first out)."""
        arrival = self._now(self._tasks.arrival_s)
        slot = self._slot_free.argmin(axis=1)
        start = np.maximum(self._slot_free[self._rows, slot], arrival)
        service = generation_time(self._profiles[LOCAL], self._now(self._tasks.tokens))
        finish = np.where(local, start + service, self._slot_free[self._rows, slot])
        self._slot_free[self._rows, slot] = finish


class OffloadingEnv(SingleEnv):
    """One offloading cell as a :class:`gymnasium.Env`; see :class:`OffloadingVectorEnv`."""

    def __init__(self, config: OffloadingConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`OffloadingConfig`."""
        super().__init__(OffloadingVectorEnv(1, config, autoreset=False, **fields))


def _profiles(config: OffloadingConfig) -> tuple[LlmProfile, LlmProfile]:
    """Return the profiles of the edge and of the cloud model."""
    return find_profile("edge_llm", config.edge_llm), find_profile("cloud_llm", config.cloud_llm)


def build_problem(config: OffloadingConfig) -> Problem:
    """Return labels and observation columns for ``config``."""
    names = tuple(PAPER_TYPES if config.vocabulary == "paper" else service_types())
    learned = len(names) if config.vocabulary == "paper" else len(service_types("learned"))
    largest = config.mean_tokens * (1 + config.token_spread) * 1.2
    thirds = config.mean_tokens * config.token_spread / 3
    columns: list[Column] = [
        Category("Service type", names, learned),
        Quantity(
            "Output size",
            "tokens",
            0.0,
            largest,
            (config.mean_tokens - thirds, config.mean_tokens + thirds),
            ("short", "medium", "long"),
        ),
    ]
    if config.congested:
        waits = ("none", "short", "medium", "long")
        columns += [
            Quantity("Edge wait", "s", 0.0, 120.0, (1.0, 10.0, 20.0), waits),
            Quantity(
                "Backhaul",
                "s",
                0.0,
                2 * config.slow_backhaul_s + config.backhaul_s,
                ((config.backhaul_s + config.slow_backhaul_s) / 2,),
                ("fast", "slow"),
            ),
        ]
    return Problem("offloading", config.labels, tuple(columns), config.horizon)


PAIRS = (
    ("llama3-8b", "llama3-70b"),
    ("gemma-7b", "gemini-1.5-pro"),
    ("llama2-7b", "llama2-70b"),
)
MIXES = (0.5, 0.85, 0.15)


def sweep_points(config: OffloadingConfig) -> list[SweepPoint]:
    """Return the points of figures 5(d)-(f), or the mixes of unseen words for the open list."""
    if config.vocabulary == "open":
        return [
            SweepPoint(
                f"words=unseen;quality_share={mix}", {"words": "unseen", "quality_share": mix}
            )
            for mix in MIXES
        ]
    axes: dict[str, tuple[float, ...]] = {
        "users": (5, 10, 20, 40, 60),
        "mean_tokens": (250, 500, 1000, 1500, 2000),
        "quality_share": (0.0, 0.25, 0.5, 0.75, 1.0),
    }
    return [
        SweepPoint(
            f"{key}={value};pair={edge}+{cloud}", {key: value, "edge_llm": edge, "cloud_llm": cloud}
        )
        for key, values in axes.items()
        for value in values
        for edge, cloud in PAIRS
    ]
