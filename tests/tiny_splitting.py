"""A table of perplexities made up for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from icl_optimizer.environments.layer_splitting import LayerSplittingVectorEnv
from icl_optimizer.environments.splitting.records import MeasuredTable

LAYERS = np.arange(1, 11)
SIGMAS, LOSSES = (0.0, 1.0, 2.0), (0.0, 0.15, 0.3)


def steady_table() -> MeasuredTable:
    """Return a table in which layer p costs p / 10 nats, whatever the link."""
    return MeasuredTable(
        LAYERS.tolist(), SIGMAS, LOSSES, np.broadcast_to(LAYERS[:, None, None] / 10, (10, 3, 3))
    )


def hilly_table() -> MeasuredTable:
    """Return a table in which noise harms early layers, and loss those around the third."""
    noise = np.exp(-LAYERS / 3)[:, None, None] * np.square(SIGMAS)[None, :, None]
    hill = (1 + np.exp(-np.square(LAYERS - 3.0)))[:, None, None]
    return MeasuredTable(LAYERS.tolist(), SIGMAS, LOSSES, noise + hill * 4 * np.array(LOSSES))


def tiny_splitting(num_envs: int = 1, **settings: Any) -> LayerSplittingVectorEnv:
    """Return the environment on the hilly table."""
    return LayerSplittingVectorEnv(num_envs, table=hilly_table(), **settings)
