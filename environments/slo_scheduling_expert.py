"""What an engineer who knows speeds, lengths and scores expects of each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig
from icl_optimizer.forecast import Forecast


@dataclass(frozen=True)
class SchedulingExpert:
    """Expected completion and chance to be in time, from the queues' lengths alone.

    With ``n`` tasks ahead of it a task waits for one rest of a service and ``n - 1`` whole ones
    (with one slot); the sum of waiting and service is taken as gamma distributed with its true
    mean and variance. The rest of a service under way has the mean ``(1 + cv^2) / 2`` services,
    as renewal theory has it at a random time.
    """

    config: SLOSchedulingConfig

    def __call__(self, observations: NDArray[Any]) -> Forecast:
        """Return the forecast for observations ``(n, models + 2)``."""
        models, slots = len(self.config.names), self.config.slots_each
        rows = np.atleast_2d(observations).astype(np.float64)
        queue, kind = rows[:, :models], rows[:, models].astype(np.int64)
        deadline = rows[:, models + 1 : models + 2]
        own, any_task = self.config.mean_service[kind], self.config.mean_service.mean(axis=0)
        tokens = self.config.mean_generation
        spreads = self.config.relative_variance
        spread = float(spreads.mean())
        between = self.config.mean_service.var(axis=0) / any_task**2
        # lengths scatter, the overhead does not
        cv2 = spread * (tokens.mean(axis=0) / any_task) ** 2 + between * (1 + spread)
        ahead = np.maximum(queue - slots + 1, 0.0) / slots
        busy = (queue > 0) / slots
        mean = own + any_task * (
            np.maximum(ahead - busy, 0.0) + np.minimum(busy, ahead) * (1 + cv2) / 2
        )
        own_spread = spreads[kind][:, None]
        variance = tokens[kind] ** 2 * own_spread + any_task**2 * cv2 * ahead / slots
        variance = np.maximum(variance, 1e-9)
        chance = gammainc(mean**2 / variance, deadline * mean / variance)
        full = queue >= self.config.capacity
        chance = np.where(full, 0.0, chance)
        seconds = np.where(full, np.inf, mean)
        score = self.config.mean_score[kind]
        if self.config.dump_action:
            # the task goes where the queue is longest
            longest = queue.argmax(axis=1)[:, None]
            chance, score, seconds = (
                np.hstack([values, np.take_along_axis(values, longest, axis=1)])
                for values in (chance, score, seconds)
            )
        return Forecast(chance, score, np.zeros_like(score), seconds)
