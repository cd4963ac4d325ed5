"""What an engineer who has measured the model expects of each move, from the observation alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig
from icl_optimizer.environments.layer_splitting_problem import move_layers
from icl_optimizer.environments.layer_splitting_reward import covering_table, reward_of
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Forecast

if TYPE_CHECKING:
    from icl_optimizer.environments.splitting.records import MeasuredTable

NOISE, LOSS, SPLIT = 0, 1, 2
"""Places of the columns."""


@dataclass(frozen=True)
class SplittingExpert:
    """The reward of every layer under the present link, as the measured table has it.

    Rules ask it; what learns does not. It takes the link as staying what it is. Where the reward
    compares with the episode's first state (``code-initial``), which no observation tells, it
    compares with the present one.

    Attributes:
        config: Moves and reward.
        given: The table; None for the shipped one.
    """

    config: LayerSplittingConfig
    given: MeasuredTable | None = field(default=None, compare=False, repr=False)

    @property
    def moves(self) -> Ints:
        """How far each decision moves the split, layers, ``(moves,)``."""
        return np.array(move_layers(self.config))

    @property
    def table(self) -> MeasuredTable:
        """The measured table.

        Raises:
            ConfigurationError: Nobody has measured this model, or not in this range.
        """
        if self.given is None and self.config.model is not None:
            raise ConfigurationError(
                f"layer-splitting: model is {self.config.model!r}, of which there is no table; "
                "allowed for rules that know one: None, the installed weights."
            )
        return covering_table(self.config, self.given)

    def layer_rewards(self, observations: NDArray[Any]) -> Floats:
        """Return the reward of splitting after each layer, ``(n, deepest)``."""
        rows = np.atleast_2d(observations).astype(np.float64)
        layers = np.arange(1, self.config.deepest + 1)
        nats = self.table.extra_nats(layers, rows[:, NOISE, None], rows[:, LOSS, None])
        now = np.take_along_axis(nats, _split(rows)[:, None] - 1, axis=1)
        return reward_of(self.config, layers, nats, now)

    def nearest_measured(self, observations: NDArray[Any]) -> Floats:
        """Return the observations with the nearest noise and loss of which there are records."""
        rows = np.atleast_2d(observations).astype(np.float64)
        for column, points in ((NOISE, self.table.sigmas), (LOSS, self.table.losses)):
            measured = np.asarray(points)
            distance = np.abs(rows[:, column, None] - measured)
            rows[:, column] = measured[distance.argmin(axis=1)]
        return rows

    def reached(self, observations: NDArray[Any]) -> Ints:
        """Return the layer that each move leads to, ``(n, moves)``."""
        split = _split(np.atleast_2d(observations))
        moved = split[:, None] + self.moves
        return np.asarray(np.clip(moved, 1, self.config.deepest))

    def __call__(self, observations: NDArray[Any]) -> Forecast:
        """Return the next reward of each move for observations ``(n, columns)``."""
        places = self.reached(observations) - 1
        reward = np.take_along_axis(self.layer_rewards(observations), places, axis=1)
        return Forecast(np.ones(reward.shape), reward, reward, np.full(reward.shape, np.nan))


def _split(rows: NDArray[Any]) -> Ints:
    """Return the present layer, ``(n,)``."""
    return np.asarray(rows[:, SPLIT], dtype=np.float64).round().astype(np.int64)
