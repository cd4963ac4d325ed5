"""What an engineer who knows the servers expects of each, from the observation alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.load_balancing_requests import Requests
from icl_optimizer.environments.load_balancing_reward import immediate
from icl_optimizer.environments.traces import FEATURES
from icl_optimizer.forecast import Forecast


@dataclass(frozen=True)
class BalancingExpert:
    """Expected completion and chance to be in time, from what is observed of the servers.

    A request that finds all ``c`` slots busy and ``w`` requests waiting starts after about
    ``(w + 1/2) m / c`` seconds, where ``m`` is the mean service of those in flight (their tokens
    over their number and the server's speed): those in service are half done on average, and when
    the first slot is free the others are so again. Since the tokens in flight are known, the wait
    varies less than with services at random: it is taken as gamma distributed with a third of the
    variance of as many departures at random, as measured on the training parts of the traces.
    """

    config: LoadBalancingConfig
    requests: Requests

    def __call__(self, observations: NDArray[Any]) -> Forecast:
        """Return the forecast for observations ``(n, columns)``."""
        rows = np.atleast_2d(observations).astype(np.float64)
        servers = rows[:, len(FEATURES) :].reshape(len(rows), -1, 6)
        waiting, load, _, active, speed, slots = np.moveaxis(servers, 2, 0)
        scaled = rows[:, FEATURES.index("total_tokens")]
        tokens = np.maximum(self.requests.unscaled("total_tokens", scaled), 0.0)[:, None]
        wait, shape = self._wait(waiting, load, active, speed, slots)
        own = tokens / speed
        left = self.config.slo_s - own
        busy = wait > 0
        chance = gammainc(shape, np.maximum(left, 0.0) * shape / np.where(busy, wait, 1.0))
        chance = np.where(busy, chance, left >= 0)
        room = self.config.queue_size if self.config.when_full == "queue" else 0
        full = active + waiting >= slots + room
        parts = immediate(
            self.config.weights, tokens, load, waiting, speed, slots, active >= slots, full
        )
        paid = parts.sum(axis=0)
        late = self.config.setup.slo_weight
        return Forecast(
            np.where(full, 0.0, chance), paid, paid + late, np.where(full, np.inf, wait + own)
        )

    def _wait(
        self, waiting: Floats, load: Floats, active: Floats, speed: Floats, slots: Floats
    ) -> tuple[Floats, Floats]:
        """Return mean and shape of the wait for a slot, each ``(n, servers)``; mean 0 for none."""
        flying = active + waiting
        mean = load / np.maximum(flying, 1.0) / speed
        at_once = slots if self.config.start_rule == "slots" else np.ones_like(slots)
        departures = np.where(flying >= at_once, flying - at_once + 0.5, 0.0)
        return departures * mean / at_once, np.maximum(3 * departures, 1.0)
