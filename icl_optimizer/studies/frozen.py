"""Frozen experience and held-out queries: the same for everything that is compared on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.comparison.evaluation import HELD_OUT, agreement
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.problem import Context
from icl_optimizer.rollout import Rollout

TASKS = 400


@dataclass(frozen=True)
class Queries:
    """Held-out situations as a policy of random decisions meets them.

    Attributes:
        contexts: The situations in words, in order.
        values: What each decision would earn in them, shape ``(n, labels)``.
    """

    contexts: list[Context]
    values: NDArray[np.float64]

    @property
    def distinct(self) -> list[Context]:
        """Each context once, the most frequent first."""
        return [context for context, _ in Counter(self.contexts).most_common()]

    def metrics(self, actions: NDArray[np.int64]) -> dict[str, float]:
        """Return accuracy, balanced accuracy and optimality of one action per query ``(n,)``.

        The optimality is that of the immediate rewards in these situations.
        """
        earned = self.values[np.arange(len(actions)), actions].mean()
        best, chance = self.values.max(axis=1).mean(), self.values.mean()
        return {
            **agreement(actions, self.values.argmax(axis=1)),
            "optimality": float((earned - chance) / (best - chance)),
        }


def random_log(settings: Mapping[str, Any], decisions: int, seed: int) -> list[Outcome]:
    """Return the outcomes of so many random decisions on the offloading system."""
    env = make("offloading", 1, **settings)
    rollout = Rollout(RandomPolicy(env.problem, seed=seed), env, explore=True)
    rollout.reset(seed=seed)
    outcomes: list[Outcome] = []
    while len(outcomes) < decisions:
        outcomes += rollout.step()[1]
    return outcomes


def held_out(settings: Mapping[str, Any], seed: int, tasks: int = TASKS) -> Queries:
    """Return the held-out queries of one seed."""
    horizon = make("offloading", 1, **settings).problem.horizon
    env = make("offloading", -(-tasks // horizon), **settings)
    rollout = Rollout(RandomPolicy(env.problem, seed=seed), env, explore=True)
    rollout.reset(seed=HELD_OUT + 1000 * seed)
    contexts: list[Context] = []
    values = []
    for _ in range(horizon):
        values.append(env.action_values())
        contexts += [decision.context for decision in rollout.step()[0]]
    return Queries(contexts, np.concatenate(values))
