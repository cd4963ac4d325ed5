"""The tasks of a scheduling episode: everything random, drawn at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import ndtr

from icl_optimizer.environments.base import Bools, Floats, Ints
from icl_optimizer.environments.queues import draw_arrivals
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES, SLOSchedulingConfig


@dataclass(frozen=True)
class TaskDraws:
    """Tasks in order of arrival, one row per episode.

    Attributes:
        kind: Index of the task type, ``(E, horizon)``.
        arrival_s: Arrival, seconds since the episode began, ``(E, horizon)``.
        deadline_s: Time allowed from arrival to the end of the answer, ``(E, horizon)``.
        tokens: Output length at each model, ``(E, horizon, models)``.
        score: Score at each model if in time, ``(E, horizon, models)``.
    """

    kind: Ints
    arrival_s: Floats
    deadline_s: Floats
    tokens: Floats
    score: Floats

    @classmethod
    def empty(cls, num_envs: int, config: SLOSchedulingConfig) -> TaskDraws:
        """Return room for ``num_envs`` episodes."""
        flat = (num_envs, config.horizon)
        deep = (*flat, len(config.names))
        return cls(
            np.zeros(flat, np.int64), np.zeros(flat), np.zeros(flat), np.zeros(deep), np.zeros(deep)
        )

    def fill(self, indices: Ints, episodes: TaskDraws) -> None:
        """Copy ``episodes`` ``(n, ...)`` into the rows ``indices`` ``(n,)``."""
        for item in fields(self):
            getattr(self, item.name)[indices] = getattr(episodes, item.name)


def draw_tasks(rngs: Sequence[np.random.Generator], config: SLOSchedulingConfig) -> TaskDraws:
    """Return the tasks of one episode for each generator in ``rngs``.

    A task's length is lognormal around the mean of its type, or one of those that were measured,
    with a part that all models share and a part of each model's own.
    """
    shape, models = (len(rngs), config.horizon), len(config.names)
    uniform = np.empty((len(rngs), 2, config.horizon))
    normal = np.empty((len(rngs), 1 + models * (2 if config.score_noise else 1), config.horizon))
    arrival = draw_arrivals(rngs, config.horizon, config.arrival_rate, config.bursts)
    for i, rng in enumerate(rngs):
        rng.random(out=uniform[i])
        rng.standard_normal(out=normal[i])
    kind = (uniform[:, 0] * len(TASK_TYPES)).astype(np.int64)
    score = config.mean_score.take(kind, axis=0)
    if config.score_noise:
        error = normal[:, 1 + models :].swapaxes(1, 2)
        # as far down as up, so that the mean holds
        room = np.minimum(score, 1 - score)
        score = score + np.clip(config.score_noise * error, -room, room)
    if config.mixed_deadlines_s:
        choice = (uniform[:, 1] * len(config.mixed_deadlines_s)).astype(np.int64)
        deadline = np.array(config.mixed_deadlines_s)[choice]
    else:
        deadline = config.deadlines[kind]
    tokens = _lengths(kind, normal[:, : 1 + models], config)
    return TaskDraws(kind, arrival, np.broadcast_to(deadline, shape), tokens, score)


def _lengths(kind: Ints, normal: Floats, config: SLOSchedulingConfig) -> Floats:
    """Return output lengths ``(E, horizon, models)`` from normals ``(E, 1 + models, horizon)``."""
    # in place: on thousands of episodes, most of the time goes into fetching memory
    lengths = config.model_spread * normal[:, 1:]
    lengths += config.length_spread * normal[:, :1]
    lengths -= (config.length_spread**2 + config.model_spread**2) / 2
    np.exp(lengths, out=lengths)
    for name, known in config.relative_lengths.items():
        _measured(lengths, kind == TASK_TYPES.index(name), normal, np.asarray(known), config)
    lengths *= config.mean_lengths.take(kind, axis=0).swapaxes(1, 2)
    return lengths.swapaxes(1, 2)


def _measured(
    lengths: Floats, chosen: Bools, normal: Floats, known: Floats, config: SLOSchedulingConfig
) -> None:
    """Put measured lengths, relative to their mean, in the place of lognormal ones.

    Args:
        lengths: Relative lengths, ``(E, models, horizon)``; changed where ``chosen``.
        chosen: Tasks of the type, ``(E, horizon)``.
        normal: Standard normals, the shared one first, ``(E, 1 + models, horizon)``.
        known: Measured lengths, ascending.
        config: For the spread between models.
    """
    quantile = np.minimum((ndtr(normal[:, 0]) * len(known)).astype(np.int64), len(known) - 1)
    own = np.exp(config.model_spread * normal[:, 1:] - config.model_spread**2 / 2)
    shared = (known / known.mean())[quantile][:, None]
    np.copyto(lengths, shared * own, where=chosen[:, None])
