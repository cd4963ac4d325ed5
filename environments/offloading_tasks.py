"""The tasks of one offloading episode: everything random but the radio, drawn at its start."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.offloading_config import (
    PAPER_TYPES,
    OffloadingConfig,
    service_types,
)


@dataclass
class TaskDraws:
    """Tasks in order of arrival; each array is ``(horizon,)``, or ``(E, horizon)`` stacked.

    Attributes:
        word: Index of the service type in the environment's word list.
        quality_task: Whether the task is quality-preferred.
        estimate: Estimated output size, tokens; what is observed.
        tokens: True output size, tokens.
        user: Which user asks.
        arrival_s: Arrival time, seconds since the episode began.
        backhaul_s: Backhaul delay at arrival, seconds.
    """

    word: NDArray[np.int64]
    quality_task: NDArray[np.bool_]
    estimate: NDArray[np.float64]
    tokens: NDArray[np.float64]
    user: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    backhaul_s: NDArray[np.float64]

    @classmethod
    def empty(cls, num_envs: int, horizon: int) -> TaskDraws:
        """Return room for ``num_envs`` episodes."""
        shape = (num_envs, horizon)
        whole, real = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        return cls(
            whole,
            np.zeros(shape, dtype=np.bool_),
            real,
            real.copy(),
            whole.copy(),
            real.copy(),
            real.copy(),
        )

    def fill(self, index: int, episode: TaskDraws) -> None:
        """Copy ``episode`` into row ``index``."""
        for item in fields(self):
            getattr(self, item.name)[index] = getattr(episode, item.name)


def draw_tasks(rng: np.random.Generator, config: OffloadingConfig) -> TaskDraws:
    """Return the tasks of one episode, drawn from ``rng``."""
    n = config.horizon
    quality = rng.random(n) < config.quality_share
    low, high = config.mean_tokens * (1 - config.token_spread), config.mean_tokens * (
        1 + config.token_spread
    )
    estimate = rng.uniform(low, high, n)
    error = np.clip(rng.standard_normal(n), -3, 3) * config.estimate_error
    return TaskDraws(
        word=_draw_words(rng, quality, config),
        quality_task=quality,
        estimate=estimate,
        tokens=estimate * (1 + error),
        user=rng.integers(config.users, size=n),
        arrival_s=np.cumsum(rng.exponential(config.mean_gap_s, n)),
        backhaul_s=_draw_backhaul(rng, config),
    )


def _draw_words(
    rng: np.random.Generator, quality: NDArray[np.bool_], config: OffloadingConfig
) -> NDArray[np.int64]:
    """Return a word of each task's kind, uniform over the words that may occur."""
    everything = PAPER_TYPES if config.vocabulary == "paper" else service_types()
    allowed = PAPER_TYPES if config.vocabulary == "paper" else service_types(config.words)
    index = {name: i for i, name in enumerate(everything)}
    pools: dict[Any, NDArray[np.int64]] = {
        kind: np.array([index[n] for n, k in allowed.items() if k == kind])
        for kind in ("regular", "quality")
    }
    picks = rng.random(len(quality))
    regular = pools["regular"][(picks * len(pools["regular"])).astype(int)]
    return np.where(quality, pools["quality"][(picks * len(pools["quality"])).astype(int)], regular)


def _draw_backhaul(rng: np.random.Generator, config: OffloadingConfig) -> NDArray[np.float64]:
    """Return the backhaul delay at each task: fixed, or a two-state chain with +-50 % noise."""
    n = config.horizon
    if not config.congested:
        return np.full(n, config.backhaul_s)
    switches = np.cumsum(rng.random(n) < config.backhaul_switch) + rng.integers(2)
    slow = switches % 2 == 1
    return np.where(slow, config.slow_backhaul_s, config.backhaul_s) * rng.uniform(0.5, 1.5, n)
