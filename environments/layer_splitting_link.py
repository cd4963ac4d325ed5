"""The radio link of an episode: noise and loss probability, drawn when it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig


@dataclass(frozen=True)
class Links:
    """Links of ``n`` episodes, and where their splits begin.

    Attributes:
        sigma: Standard deviation of the noise of (3), ``(n, times)``.
        loss: Loss probability of (4), ``(n, times)``.
        start: Layer of the first split, ``(n,)``.
    """

    sigma: Floats
    loss: Floats
    start: Ints

    @classmethod
    def empty(cls, episodes: int, config: LayerSplittingConfig) -> Links:
        """Return room for ``episodes``."""
        shape = (episodes, link_times(config))
        return cls(np.zeros(shape), np.zeros(shape), np.ones(episodes, dtype=np.int64))

    def fill(self, indices: Ints, other: Links) -> None:
        """Copy the episodes of ``other`` into the rows ``indices``."""
        self.sigma[indices], self.loss[indices] = other.sigma, other.loss
        self.start[indices] = other.start


def link_times(config: LayerSplittingConfig) -> int:
    """Return how many links an episode has: one, or that of every step and the one after it."""
    return 1 if config.link == "block" else config.horizon + 1


def draw_links(rngs: Sequence[np.random.Generator], config: LayerSplittingConfig) -> Links:
    """Draw one episode from each generator.

    Noise and loss probability are uniform over their ranges at every time, whatever the link. With
    ``correlated`` each follows a Gauss-Markov process z' = a z + sqrt(1 - a^2) w, as fading does
    (Gudmundson 1991 for shadowing), mapped to the range by its distribution function. For the loss
    that is a walk of the fading's scale, of which (4) makes the loss probability.

    Args:
        rngs: One generator per episode.
        config: Ranges, kind of link.
    """
    first, last = config.starts
    start = np.array([rng.integers(first, last + 1) for rng in rngs], dtype=np.int64)
    shape = (link_times(config), 2)
    if config.link == "correlated":
        level = ndtr(_walk(np.stack([r.standard_normal(shape) for r in rngs]), config.correlation))
    else:
        level = np.stack([rng.random(shape) for rng in rngs])
    return Links(
        _within(config.sigmas, level[:, :, 0]), _within(config.losses, level[:, :, 1]), start
    )


def _walk(steps: Floats, correlation: float) -> Floats:
    """Return the stationary Gauss-Markov process with these innovations, ``(n, times, 2)``."""
    values = steps.copy()
    fresh = np.sqrt(1 - correlation**2)
    for time in range(1, steps.shape[1]):
        values[:, time] = correlation * values[:, time - 1] + fresh * steps[:, time]
    return values


def _within(ends: tuple[float, float], level: NDArray[np.float64]) -> Floats:
    low, high = ends
    return np.asarray(low + (high - low) * level)
