"""The contract of every policy: decide and update underneath, learn and predict on top."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, MadeBy, Outcome, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Context, Problem
from icl_optimizer.rollout import run_learning

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

Callback = Callable[[dict[str, Any], dict[str, Any]], bool | None]


class Policy(ABC):
    """A decision maker that works with or without an environment.

    ``decide`` / ``update`` / ``learn_from`` need none, so a policy serves online and from logs.
    ``learn`` / ``predict`` / ``save`` / ``load`` follow Stable-Baselines3, so that its
    ``evaluate_policy`` and callbacks run on every policy.

    Attributes:
        name: Name in tables and on the command line.
        problem: Labels and columns that the policy decides about.
        env: Environment to learn in, or None.
        num_timesteps: Decisions made while learning, what Stable-Baselines3 calls time steps.
        explored: Decisions in which it might explore; schedules of exploration go by it.
    """

    name = "policy"

    def __init__(self, problem: Problem, *, env: BatchedEnv | None = None, seed: int = 0) -> None:
        """Bind the policy to a problem and, to learn in it, an environment."""
        self.problem = problem
        self.env = env
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.num_timesteps = 0
        self.explored = 0
        self.logger: Any = None
        self._ids = itertools.count()

    @abstractmethod
    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for a batch of observations ``(n, columns)`` or of contexts.

        Args:
            situations: Observations as an array, or contexts in words.
            explore: Whether to try decisions in order to learn.
        """

    async def adecide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Return what :meth:`decide` returns, for callers in an event loop.

        Policies that ask a remote model do not block the loop; the others answer at once.
        """
        return self.decide(situations, explore=explore)

    def update(self, outcomes: Sequence[Outcome]) -> None:  # noqa: B027  (many policies are fixed)
        """Learn from outcomes as they arrive."""

    def learn_from(self, log: Sequence[Outcome]) -> Self:
        """Learn from logged outcomes, in their order; no environment needed."""
        for outcome in log:
            self.update([outcome])
        return self

    def learn(self, total_timesteps: int, callback: Any = None, progress_bar: bool = False) -> Self:
        """Make ``total_timesteps`` decisions in the environment and learn from each.

        Args:
            total_timesteps: Decisions, over all sub-environments.
            callback: As in Stable-Baselines3: a ``BaseCallback``, a function of ``locals`` and
                ``globals`` that returns False to stop, or a list of them.
            progress_bar: Whether to draw one.
        """
        run_learning(self, self.require_env(), total_timesteps, callback, progress_bar)
        return self

    def predict(
        self,
        observation: NDArray[Any],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], Any]:
        """Return the actions for a batch of observations; the signature of Stable-Baselines3."""
        rows = np.asarray(observation)
        actions = self._actions(np.atleast_2d(rows), explore=not deterministic)
        return (actions if rows.ndim > 1 else actions[0]), state

    def _actions(self, rows: NDArray[Any], *, explore: bool) -> NDArray[np.int64]:
        """Return the actions for observations ``(n, columns)``."""
        decisions = self.decide(rows, explore=explore)
        return np.array([d.action for d in decisions], dtype=np.int64)

    def save(self, path: str | Path) -> None:
        """Write the policy below ``path``; raises where there is nothing to keep."""
        raise ConfigurationError(f"policy '{self.name}' has nothing to save.")

    def load(self, path: str | Path) -> Self:
        """Take over what :meth:`save` wrote."""
        raise ConfigurationError(f"policy '{self.name}' has nothing to load.")

    def log_values(self) -> dict[str, float]:
        """Return what to log beside the reward, such as epsilon or pool size."""
        return {}

    def require_env(self) -> BatchedEnv:
        """Return the environment, or raise an error that says how to give one."""
        if self.env is None:
            raise ConfigurationError(
                f"policy '{self.name}' has no environment; allowed: one given as env=, "
                "or learn_from(log) without one."
            )
        return self.env

    def set_logger(self, logger: Any) -> None:
        """Log learning to a Stable-Baselines3 logger."""
        self.logger = logger

    def get_env(self) -> VecEnv | None:
        """Return the environment behind Stable-Baselines3's interface, for its callbacks."""
        from icl_optimizer.environments.adapters import as_sb3

        return None if self.env is None else as_sb3(self.env, encoded=False)

    def get_vec_normalize_env(self) -> None:  # noqa: B027  (part of Stable-Baselines3's contract)
        """Return None: observations are never normalised outside the policy."""

    def contexts(self, situations: Situations) -> list[Context]:
        """Return the situations in words."""
        if isinstance(situations, np.ndarray):
            return self.problem.describe_all(situations)
        return [self.problem.check_context(context) for context in situations]

    def rule_decision(
        self,
        context: Context,
        action: int,
        probabilities: Sequence[float],
        observation: NDArray[Any] | None = None,
        made_by: MadeBy = "rule",
        propensity: float = 1.0,
        support: float = 0.0,
    ) -> Decision:
        """Return a decision with the next id."""
        return Decision(
            next(self._ids),
            action,
            self.problem.labels[action],
            tuple(float(p) for p in probabilities),
            made_by,
            context,
            propensity,
            None if observation is None else tuple(observation.tolist()),
            support=support,
        )


def rows_of(situations: Situations) -> list[NDArray[Any] | None]:
    """Return each situation's observation, or None where it came as a context."""
    if isinstance(situations, np.ndarray):
        return list(np.atleast_2d(situations))
    return [None] * len(situations)


def observations_of(problem: Problem, situations: Situations) -> NDArray[Any]:
    """Return the situations as observations, or raise where only words were given."""
    if not isinstance(situations, np.ndarray):
        raise ConfigurationError(
            f"contexts were given to a numeric policy on '{problem.name}'; "
            "allowed: observations (only policies that read words decide from contexts)."
        )
    return problem.check(np.atleast_2d(situations))


def one_hot(action: int, count: int) -> list[float]:
    """Return the probabilities of a certain choice."""
    return [float(i == action) for i in range(count)]
