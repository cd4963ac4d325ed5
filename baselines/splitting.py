"""Rules that move the layer after which a model is split."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.queueing import RulePolicy
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.layer_splitting_expert import SplittingExpert
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.problem import Problem

FIXED = ("split-first", "split-middle", "split-last")
NEARLY = 1e-6
"""What a move costs by layer, so that of equally good ones the shortest is taken."""


class SplittingRule(RulePolicy):
    """Asks an expert who knows the moves and, where the rule needs it, the measured table.

    Args:
        problem: Labels and columns of layer splitting, with its expert.
        env: Environment to run in, if any.
        seed: Seeds the ties.
    """

    def __init__(self, problem: Problem, *, env: BatchedEnv | None = None, seed: int = 0) -> None:
        """Refuse a problem in which nothing is split."""
        super().__init__(problem, env=env, seed=seed)
        if not isinstance(problem.expert, SplittingExpert):
            raise ConfigurationError(
                f"a rule about splits was given '{problem.name}'; allowed: layer-splitting."
            )
        self.expert = problem.expert

    def _costs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        reached = self.expert.reached(rows)
        return self._move_costs(rows, reached) + NEARLY * np.abs(self.expert.moves)

    @abstractmethod
    def _move_costs(
        self, rows: NDArray[np.float64], reached: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the cost of each move, which leads to the layers ``reached``, ``(n, moves)``."""


class FixedSplitPolicy(SplittingRule):
    """Walks to one layer and stays there, whatever the link.

    Args:
        problem: Labels and columns of layer splitting.
        name: One of :data:`FIXED`: the first layer, the deepest, or the one halfway.
        env: Environment to run in, if any.
        seed: Not used; nothing here is random.
    """

    def __init__(
        self, problem: Problem, *, name: str, env: BatchedEnv | None = None, seed: int = 0
    ) -> None:
        """Choose the layer."""
        super().__init__(problem, env=env, seed=seed)
        if name not in FIXED:
            raise unknown_name("rule", name, FIXED)
        deepest = self.expert.config.deepest
        self.name = name
        self.layer = dict(zip(FIXED, (1, (1 + deepest) // 2, deepest), strict=True))[name]

    def _move_costs(
        self, rows: NDArray[np.float64], reached: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return np.abs(reached - self.layer).astype(np.float64)


class MyopicSplitPolicy(SplittingRule):
    """Takes the move with the best next reward, by the measured table, if the link stays."""

    name = "myopic-split"

    def _move_costs(
        self, rows: NDArray[np.float64], reached: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return np.asarray(-self.expert(rows).reward)


class NearestRecordPolicy(SplittingRule):
    """Walks to the layer that was best at the nearest noise and loss that were measured."""

    name = "nearest-record"

    def _move_costs(
        self, rows: NDArray[np.float64], reached: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        rewards = self.expert.layer_rewards(self.expert.nearest_measured(rows))
        best = rewards.argmax(axis=1) + 1
        costs: NDArray[np.float64] = np.abs(reached - best[:, None]).astype(np.float64)
        return costs
