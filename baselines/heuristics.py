"""Policies that learn nothing: a random decision, or always the same one."""

from __future__ import annotations

from icl_optimizer.decision import Decision, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.policy import Policy, one_hot, rows_of
from icl_optimizer.problem import Problem


class RandomPolicy(Policy):
    """Takes every decision with the same chance, whether it may explore or not."""

    name = "random"

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; see :class:`Policy`."""
        contexts, count = self.contexts(situations), len(self.problem.labels)
        actions = self.rng.integers(count, size=len(contexts))
        return [
            self.rule_decision(
                c, int(a), [1 / count] * count, row, propensity=1 / count, support=1 / count
            )
            for c, a, row in zip(contexts, actions, rows_of(situations), strict=True)
        ]


class ConstantPolicy(Policy):
    """Always takes the same decision.

    Args:
        problem: Labels and columns.
        action: A label, or its index.
        name: Name in tables; ``always-`` and the label when None.
        env: Environment to run in, if any.
        seed: Not used; nothing here is random.
    """

    def __init__(
        self,
        problem: Problem,
        action: int | str,
        *,
        name: str | None = None,
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Choose the decision."""
        super().__init__(problem, env=env, seed=seed)
        self.action = _index(problem, action)
        self.name = name or constant_name(problem.labels[self.action])

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; see :class:`Policy`."""
        chances = one_hot(self.action, len(self.problem.labels))
        return [
            self.rule_decision(context, self.action, chances, row)
            for context, row in zip(self.contexts(situations), rows_of(situations), strict=True)
        ]


def constant_name(label: str) -> str:
    """Return the name of the policy that always takes ``label``."""
    return f"always-{label.lower().replace(' ', '-')}"


def _index(problem: Problem, action: int | str) -> int:
    if isinstance(action, str):
        if action not in problem.labels:
            raise unknown_name("action", action, problem.labels)
        return problem.action(action)
    if not 0 <= action < len(problem.labels):
        raise ConfigurationError(
            f"action is {action}; allowed: 0 to {len(problem.labels) - 1} "
            f"({', '.join(problem.labels)})."
        )
    return action
