"""What an engineer who knows the experts' costs expects of each, from the observation alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.qos_routing_config import SHOWN, QoSRoutingConfig
from icl_optimizer.environments.qos_routing_impact import Costs
from icl_optimizer.forecast import Forecast

PER_EXPERT, PER_REQUEST = 8, 6
"""Columns of an expert, and of a request at one."""
LENGTH_SPREAD = 0.44
"""Standard deviation of the logarithm of an answer's length around the predicted one, as measured
on the training part of the Azure conversation trace."""


@dataclass(frozen=True)
class RoutingExpert:
    """Latency per token and chance to be in time at each expert, and the quality to be had.

    A request that joins ``B`` others decodes at the pace of ``B + 1`` sequences; before that it
    waits for half an iteration, for a place if there is none, and for its own prefill and those of
    requests that wait before it. What comes before the first token weighs the less the longer the
    answer; its length is taken as log-normal around the predicted one. What arrives later is not
    foreseen. From what success is worth, the verdict of the impact estimator is taken off.
    """

    config: QoSRoutingConfig
    costs: Costs

    def __call__(self, observations: NDArray[Any]) -> Forecast:
        """Return the forecast for observations ``(n, columns)``."""
        rows = np.atleast_2d(observations).astype(np.float64)
        prompt, expected = rows[:, 0:1], np.maximum(rows[:, 1:2], 1.0)
        before, pace, full = self._latency(rows, prompt, expected)
        bound = self.config.latency_bound_s
        left = np.maximum(bound - pace, 1e-12)
        chance = ndtr((np.log(expected) - np.log(before / left)) / LENGTH_SPREAD)
        chance = np.where(full | (pace >= bound), 0.0, chance)
        experts = self._experts(rows)
        quality, impact = experts[:, :, 0], experts[:, :, 7]
        seconds = np.where(full, np.inf, before + pace * expected)
        drop = np.zeros((len(rows), 1))
        return Forecast(
            np.hstack([chance, drop]),
            np.hstack([quality - impact, drop]),
            np.hstack([-impact, drop]),
            np.hstack([seconds, drop + np.inf]),
        )

    def _experts(self, rows: Floats) -> Floats:
        """Return the columns of the experts, ``(n, N, columns of one)``."""
        end = 2 + PER_EXPERT * self.config.experts
        return rows[:, 2:end].reshape(len(rows), self.config.experts, PER_EXPERT)

    def _latency(
        self, rows: Floats, prompt: Floats, expected: Floats
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return seconds before decoding, seconds per token after, and which experts are full."""
        experts = self._experts(rows)
        running, waiting, kv = experts[:, :, 2], experts[:, :, 3], experts[:, :, 4]
        shown = rows[:, 2 + PER_EXPERT * self.config.experts :].reshape(
            len(rows), self.config.experts, 2, SHOWN, PER_REQUEST
        )
        present = shown[:, :, 0, :, 0] > 0
        tokens, generated = shown[:, :, 0, :, 0], shown[:, :, 0, :, 4]
        cached = ((tokens + generated) * present).sum(axis=2)
        pace = self.costs.iteration(running + 1.0, cached + prompt + expected / 2)
        places = self.config.max_running
        needs = np.maximum(running + waiting + 1.0 - places, 0.0)
        crowded = kv + (prompt + expected) / self.config.kv_tokens > 1.0
        needs = np.maximum(needs, crowded & (running > 0)).astype(np.int64)
        left = np.where(present, np.maximum(shown[:, :, 0, :, 2] - generated, 1.0), np.inf)
        order = np.sort(left, axis=2)
        place = np.clip(needs - 1, 0, SHOWN - 1)[:, :, None]
        wait = np.where(needs > 0, np.take_along_axis(order, place, axis=2)[:, :, 0], 0.0)
        wait = np.where(np.isfinite(wait), wait, 0.0) * self.costs.iteration(running, cached)
        ahead = self.costs.prefill_s * waiting + self.costs.per_prompt_token_s * (
            shown[:, :, 1, :, 0].sum(axis=2)
        )
        rest = np.where(running > 0, self.costs.iteration(running, cached) / 2, 0.0)
        before = rest + wait + ahead + self.costs.prefill(prompt)
        full = (waiting >= self.config.queue_size) & (needs > 0)
        return before, pace, full
