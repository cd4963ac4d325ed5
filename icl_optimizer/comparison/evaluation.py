"""Greedy evaluation on held-out tasks, beside the oracle and random choice on the same tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.baselines.oracle import OraclePolicy
from icl_optimizer.comparison.bounds import hindsight_bounds
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout

HELD_OUT = 1_000_003
"""Distance between the seeds of learning and of evaluation."""

RANDOM_REPEATS = 5

_BOUNDS: dict[tuple[str, str, int, int], tuple[float, float]] = {}
"""Mean reward of oracle and random choice: all policies with a seed are held against the same."""


class Held:
    """Held-out tasks of one parameter point and seed.

    Every policy meets the same tasks: the environment draws whatever is random from its own
    seed, whatever the decisions are.

    Args:
        environment: Name of the environment.
        settings: Its parameters while learning; those of its :attr:`.EnvironmentSpec.evaluation`
            (the held-out part of a trace) take their place.
        seed: Seed of the repetition.
        tasks: At least so many decisions; whole episodes, and no fewer than
            :attr:`.EnvironmentSpec.episodes`.
    """

    def __init__(self, environment: str, settings: dict[str, Any], seed: int, tasks: int) -> None:
        """Build the environment once."""
        spec = get_spec(environment)
        held_out = {**settings, **spec.evaluation}
        horizon = make(environment, 1, **held_out).problem.horizon
        self.env = make(environment, max(spec.episodes, -(-tasks // horizon)), **held_out)
        self.seed = HELD_OUT + 1000 * seed
        self._key = environment, repr(spec.config(held_out)), self.seed, self.env.num_envs

    @property
    def rehearsal(self) -> Held:
        """Tasks on which nothing real happens: these."""
        return self

    def evaluate(self, policy: Policy, *, bounds: bool = True) -> dict[str, float]:
        """Return the metrics of ``policy``, deciding greedily.

        Args:
            policy: Any policy.
            bounds: Whether oracle and random choice are run too, for ``optimality``.
        """
        raw = self._run(policy)
        if not bounds:
            return raw
        raw["optimality"] = optimality(raw["reward"], *self._bounds)
        return raw

    @property
    def _bounds(self) -> tuple[float, float]:
        """Return the mean reward of the oracle and of random choice."""
        if self._key not in _BOUNDS:
            problem = self.env.problem
            best = self._run(OraclePolicy(problem, env=self.env))["reward"]
            random = [
                self._run(RandomPolicy(problem, seed=k))["reward"] for k in range(RANDOM_REPEATS)
            ]
            _BOUNDS[self._key] = best, float(np.mean(random))
        return _BOUNDS[self._key]

    def _run(self, policy: Policy) -> dict[str, float]:
        bound = getattr(policy, "bind", None)
        if bound is not None:
            bound(self.env)
        rollout = Rollout(policy, self.env, explore=False)
        rollout.reset(seed=self.seed)
        outcomes, actions, best = [], [], []
        total = np.zeros(self.env.num_envs)
        for _ in range(self.env.problem.horizon):
            best.append(_best_actions(self.env))
            decisions, finished, reward = rollout.step()
            total += reward
            actions.append([d.action for d in decisions])
            outcomes += finished
        summary = summarise(self.env, outcomes)
        summary |= agreement(np.array(actions).ravel(), np.array(best).ravel())
        limits = hindsight_bounds(self.env, self.seed)
        if limits is not None:
            whole = limits.sum()
            summary["hindsight_share"] = (
                float(total[: len(limits)].sum() / whole) if whole else math.nan
            )
        return summary


def optimality(reward: float, best: float, chance: float) -> float:
    """Return 1 for the oracle's reward and 0 for that of random choice; NaN if they are equal."""
    if math.isclose(best, chance, rel_tol=1e-9, abs_tol=1e-12):
        return math.nan
    return (reward - chance) / (best - chance)


def summarise(env: BatchedEnv, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the metrics of decisions that have finished, as ``env`` names them."""
    rewards = np.array([o.reward for o in outcomes])
    feasible = np.array([o.feasible for o in outcomes])
    names = outcomes[0].metrics
    metrics = {name: np.array([o.metrics[name] for o in outcomes]) for name in names}
    return env.summarise(rewards, feasible, metrics)


def agreement(actions: NDArray[np.int64], best: NDArray[np.int64]) -> dict[str, float]:
    """Return how often the best decision was taken, plainly and averaged over the classes."""
    right = actions == best
    classes = [right[best == action].mean() for action in np.unique(best)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(classes))}


def _best_actions(env: BatchedEnv) -> NDArray[np.int64]:
    return np.asarray(env.action_values().argmax(axis=1))
