"""The tasks of one offloading episode: everything random but the radio, drawn at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from icl_optimizer.environments.base import Bools, Floats, Ints
from icl_optimizer.environments.offloading_config import (
    PAPER_TYPES,
    OffloadingConfig,
    service_types,
)


@dataclass(frozen=True)
class TaskDraws:
    """Tasks in order of arrival, one row per episode; each array is ``(E, horizon)``.

    Attributes:
        word: Index of the service type in the environment's word list.
        quality_task: Whether the task is quality-preferred.
        estimate: Estimated output size, tokens; what is observed.
        tokens: True output size, tokens.
        user: Which user asks.
        arrival_s: Arrival time, seconds since the episode began.
        backhaul_s: Backhaul delay at arrival, seconds.
    """

    word: Ints
    quality_task: Bools
    estimate: Floats
    tokens: Floats
    user: Ints
    arrival_s: Floats
    backhaul_s: Floats

    @classmethod
    def empty(cls, num_envs: int, horizon: int) -> TaskDraws:
        """Return room for ``num_envs`` episodes."""
        types = {"word": np.int64, "quality_task": np.bool_, "user": np.int64}
        shape = (num_envs, horizon)
        return cls(**{f.name: np.zeros(shape, types.get(f.name, np.float64)) for f in fields(cls)})

    def fill(self, indices: Ints, episodes: TaskDraws) -> None:
        """Copy ``episodes`` ``(n, horizon)`` into the rows ``indices`` ``(n,)``."""
        for item in fields(self):
            getattr(self, item.name)[indices] = getattr(episodes, item.name)


def draw_tasks(rngs: Sequence[np.random.Generator], config: OffloadingConfig) -> TaskDraws:
    """Return the tasks of one episode for each generator in ``rngs``."""
    shape = (len(rngs), config.horizon)
    kind, size, error, word, gap, switch, noise = np.zeros((7, *shape))
    user, start = np.zeros(shape, dtype=np.int64), np.zeros((len(rngs), 1), dtype=np.int64)
    for i, rng in enumerate(rngs):
        rng.random(out=kind[i])
        rng.random(out=size[i])
        rng.standard_normal(out=error[i])
        rng.random(out=word[i])
        user[i] = rng.integers(config.users, size=config.horizon)
        rng.standard_exponential(out=gap[i])
        if config.congested:
            rng.random(out=switch[i])
            start[i] = rng.integers(2)
            rng.random(out=noise[i])
    quality = kind < config.quality_share
    low = config.mean_tokens * (1 - config.token_spread)
    high = config.mean_tokens * (1 + config.token_spread)
    estimate = low + (high - low) * size
    return TaskDraws(
        word=_pick_words(word, quality, config),
        quality_task=quality,
        estimate=estimate,
        tokens=estimate * (1 + error.clip(-3, 3) * config.estimate_error),
        user=user,
        arrival_s=np.cumsum(config.mean_gap_s * gap, axis=1),
        backhaul_s=_backhaul(switch, start, noise, config),
    )


@cache
def _word_pool(config: OffloadingConfig, kind: str) -> Ints:
    """Return the indices of the words of one kind that may occur."""
    paper = config.vocabulary == "paper"
    allowed = PAPER_TYPES if paper else service_types(config.words)
    everything = list(PAPER_TYPES if paper else service_types())
    return np.array([everything.index(name) for name, k in allowed.items() if k == kind])


def _pick_words(uniforms: Floats, quality: Bools, config: OffloadingConfig) -> Ints:
    """Return a word of each task's kind, uniform over the words that may occur."""
    pools = [_word_pool(config, kind) for kind in ("regular", "quality")]
    regular, demanding = (pool[(uniforms * len(pool)).astype(np.int64)] for pool in pools)
    return np.where(quality, demanding, regular)


def _backhaul(switch: Floats, start: Ints, noise: Floats, config: OffloadingConfig) -> Floats:
    """Return the backhaul delay at each task: fixed, or a two-state chain with +-50 % noise."""
    if not config.congested:
        return np.full(switch.shape, config.backhaul_s)
    switches = np.cumsum(switch < config.backhaul_switch, axis=1) + start
    level = np.where(switches % 2 == 1, config.slow_backhaul_s, config.backhaul_s)
    return np.asarray(level * (0.5 + noise))
