"""A policy that now and then decides at random, so that its log can tell about others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from icl_optimizer.decision import Decision, Outcome, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.off_policy.targets import chances_of_decision
from icl_optimizer.policy import Policy


class EpsilonGreedy(Policy):
    """Decides as another policy does, but at random with a small chance.

    Every action has a chance of at least ``epsilon / actions`` everywhere, so every record of its
    log has support.

    Args:
        policy: Who decides otherwise, without exploration of its own.
        epsilon: Chance of a random decision, over all actions alike.
        seed: Seeds what is random here.
    """

    def __init__(self, policy: Policy, epsilon: float, *, seed: int = 0) -> None:
        """Wrap ``policy``."""
        if not 0 < epsilon <= 1:
            raise ConfigurationError(f"epsilon is {epsilon}; allowed: above 0, at most 1.")
        super().__init__(policy.problem, env=policy.env, seed=seed)
        self.name = policy.name
        self.policy, self.epsilon = policy, epsilon

    def bind(self, env: BatchedEnv) -> Self:
        """Bind the policy inside, where it can be bound."""
        bound = getattr(self.policy, "bind", None)
        if bound is not None:
            bound(env)
        return self

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; ``explore`` makes no difference."""
        return [self._tried(decision) for decision in self.policy.decide(situations)]

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Let the policy inside learn."""
        self.policy.update(outcomes)

    def save(self, path: str | Path) -> None:
        """Save the policy inside."""
        self.policy.save(path)

    def load(self, path: str | Path) -> Self:
        """Load the policy inside."""
        self.policy.load(path)
        return self

    def _tried(self, decision: Decision) -> Decision:
        count = self.problem.count
        chances = (1 - self.epsilon) * chances_of_decision(decision, self.policy.name)
        chances += self.epsilon / count
        support = float(chances.min())
        if self.rng.random() >= self.epsilon:
            return replace(decision, propensity=float(chances[decision.action]), support=support)
        action = int(self.rng.integers(count))
        return replace(
            decision,
            action=action,
            label=self.problem.labels[action],
            probabilities=tuple(np.full(count, 1 / count).tolist()),
            made_by="explore",
            propensity=float(chances[action]),
            support=support,
        )
