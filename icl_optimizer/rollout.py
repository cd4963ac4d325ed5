"""The loop between a policy and an environment: decide, step, hand back outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, Outcome
from icl_optimizer.environments.base import BatchedEnv, Outcomes

if TYPE_CHECKING:
    from icl_optimizer.policy import Policy


class Rollout:
    """Steps an environment with a policy and matches outcomes to decisions by id.

    Args:
        policy: Decides for every sub-environment.
        env: A batched environment; it goes on from where it is after :meth:`reset`.
        explore: Whether the policy may explore.
    """

    def __init__(self, policy: Policy, env: BatchedEnv, *, explore: bool) -> None:
        """Keep the two; :meth:`reset` begins."""
        self.policy = policy
        self.env = env
        self.explore = explore
        self.pending: dict[int, Decision] = {}
        self.observations: NDArray[np.float32] | None = None
        self.dones: NDArray[np.bool_] = np.zeros(env.num_envs, dtype=np.bool_)
        self._ids: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def reset(self, seed: int | None = None) -> None:
        """Begin new episodes; decisions still pending are forgotten."""
        self.observations, info = self.env.reset(seed=seed)
        self._ids = info["decision_id"]
        self.pending.clear()

    def step(self) -> tuple[list[Decision], list[Outcome], NDArray[np.float64]]:
        """Decide and carry out once; return decisions, finished outcomes and rewards ``(E,)``."""
        assert self.observations is not None, "reset comes first"
        decisions = self.policy.decide(self.observations, explore=self.explore)
        self.pending.update(zip(self._ids.tolist(), decisions, strict=True))
        actions = np.array([d.action for d in decisions])
        self.observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.dones = terminated | truncated
        self._ids = info["decision_id"]
        return decisions, self._finished(info["outcomes"]), rewards

    def _finished(self, batch: Outcomes) -> list[Outcome]:
        return [self._outcome(batch, i) for i in range(len(batch))]

    def _outcome(self, batch: Outcomes, i: int) -> Outcome:
        decision = self.pending.pop(int(batch.decision_id[i]))
        return Outcome(
            decision_id=decision.id,
            context=decision.context,
            action=decision.action,
            reward=float(batch.reward[i]),
            feasible=bool(batch.feasible[i]),
            censored=bool(batch.censored[i]),
            observation=decision.observation,
            metrics={name: float(values[i]) for name, values in batch.metrics.items()},
        )


def run_learning(
    policy: Policy, env: BatchedEnv, total_timesteps: int, callback: Any, progress_bar: bool
) -> None:
    """Let ``policy`` make ``total_timesteps`` exploring decisions and learn from each."""
    rollout = Rollout(policy, env, explore=True)
    rollout.reset(seed=policy.seed if policy.num_timesteps == 0 else None)
    hooks = [_Hook(policy, item, total_timesteps) for item in _as_list(callback)]
    goal = policy.num_timesteps + total_timesteps
    with progress(f"{policy.name} learns", total_timesteps, shown=progress_bar) as advance:
        while policy.num_timesteps < goal:
            _, outcomes, rewards = rollout.step()
            dones = rollout.dones
            policy.update(outcomes)
            policy.num_timesteps += env.num_envs
            advance(env.num_envs)
            _record(policy, rewards)
            scope = locals()
            # every callback sees every step, whichever asks to stop
            going_on = [hook.step(scope) for hook in hooks]
            if not all(going_on):
                break
    for hook in hooks:
        hook.end()


class progress:
    """A progress bar as a context manager; yields the function that advances it."""

    def __init__(self, text: str, total: int, *, shown: bool) -> None:
        """Prepare a bar of ``total`` steps."""
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, transient=True, disable=not shown)
        self._task = self._bar.add_task(text, total=total)

    def __enter__(self) -> Any:
        """Show the bar."""
        self._bar.start()
        return lambda steps: self._bar.advance(self._task, steps)

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._bar.stop()


class _Hook:
    """A Stable-Baselines3 callback object, or a plain function of locals and globals."""

    def __init__(self, policy: Policy, callback: Any, total: int) -> None:
        self._callback = callback
        self._is_object = hasattr(callback, "on_step")
        if self._is_object:
            ensure_logger(policy)
            callback.init_callback(policy)
            callback.on_training_start({"total_timesteps": total, "self": policy}, globals())

    def step(self, scope: dict[str, Any]) -> bool:
        if self._is_object:
            self._callback.update_locals(scope)
            return bool(self._callback.on_step())
        return self._callback(scope, globals()) is not False

    def end(self) -> None:
        if self._is_object:
            self._callback.on_training_end()


def _as_list(callback: Any) -> list[Any]:
    if callback is None:
        return []
    return list(callback) if isinstance(callback, Iterable) else [callback]


def ensure_logger(policy: Policy) -> None:
    """Give ``policy`` a silent Stable-Baselines3 logger where it has none."""
    if policy.logger is None:
        from stable_baselines3.common.logger import Logger

        policy.logger = Logger(folder=None, output_formats=[])


def _record(policy: Policy, rewards: NDArray[np.float64]) -> None:
    if policy.logger is None:
        return
    policy.logger.record("rollout/reward", float(rewards.mean()))
    for name, value in policy.log_values().items():
        policy.logger.record(name, value)
    policy.logger.dump(policy.num_timesteps)
