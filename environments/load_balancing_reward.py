"""The composite reward of load balancing (Abbaraju, Section IV): what is paid at the decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Bools, Floats
from icl_optimizer.environments.load_balancing_config import RewardWeights

IMMEDIATE = ("time", "queue", "overload", "balance", "base")
"""Components that are paid at the decision, in order; ``slo`` follows at completion."""
COMPONENTS = (*IMMEDIATE, "slo")
EPSILON = 1e-6


def immediate(
    weights: RewardWeights,
    tokens: Floats,
    load: Floats,
    waiting: NDArray[Any],
    speed: Floats,
    slots: NDArray[Any],
    at_capacity: Bools,
    full: Bools,
) -> Floats:
    """Return the weighted components for each server, ``(components, n, servers)``.

    Args:
        weights: Factors of the components.
        tokens: Total tokens of the request, ``(n, 1)``.
        load: Tokens in flight at each server, ``(n, servers)``.
        waiting: Requests that wait there, ``(n, servers)``.
        speed: Tokens per second of a slot, ``(n, servers)`` or ``(servers,)``.
        slots: Requests that it serves at once, the same.
        at_capacity: Whether no slot is free, ``(n, servers)``.
        full: Whether the request would be dropped, ``(n, servers)``.
    """
    parts = np.empty((len(IMMEDIATE), *load.shape))
    parts[0] = weights.time * (tokens / speed)
    parts[1] = weights.queue * waiting
    parts[2] = weights.overload * at_capacity
    parts[3] = weights.balance * balance(load, np.where(full, 0.0, tokens), speed * slots)
    parts[4] = weights.base * ~full
    return parts


def balance(load: Floats, added: Floats, capacity: Floats) -> Floats:
    """Return how even loads are once the request is at each server, ``(n, servers)``.

    ``1 - std / (mean + eps)`` of tokens over ``capacity``. The paper does not say whether the
    request counts; before it is added the figure would not depend on the decision.
    """
    servers = load.shape[1]
    before, more = load / capacity, added / capacity
    mean = (before.sum(axis=1, keepdims=True) + more) / servers
    # only one of the squares is another with the request at this server
    squares = (before * before).sum(axis=1, keepdims=True) + more * (2 * before + more)
    std = np.sqrt(np.maximum(squares / servers - mean * mean, 0.0))
    return np.asarray(1 - std / (mean + EPSILON))
