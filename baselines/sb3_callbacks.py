"""Callbacks of Stable-Baselines3 around a policy of this library (imports torch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from icl_optimizer.environments.base import BatchedEnv

TRIALS = 500_009
"""Distance between the seeds of learning and those of trials in between."""
TRIAL_ENVS = 24
"""Episodes of a trial."""


class Bridge(BaseCallback):
    """Runs callbacks within a learner with the library's policy as their ``model``.

    So the same callback, which asks ``model.predict`` about plain observations, runs on every
    policy. ``locals["rewards"]`` are those of the environment, before normalisation.
    """

    def __init__(self, owner: Any, callbacks: list[BaseCallback], advance: Callable[[int], Any]):
        """Keep the policy, its callbacks and the progress bar."""
        super().__init__()
        self.owner = owner
        self.callbacks = callbacks
        self.advance = advance

    def _init_callback(self) -> None:
        for callback in self.callbacks:
            callback.init_callback(self.owner)

    def _scope(self) -> dict[str, Any]:
        scope = {**self.locals, "self": self.owner}
        env = self.model.get_env()
        if isinstance(env, VecNormalize) and "rewards" in scope:
            scope["rewards"] = env.get_original_reward()
        return scope

    def _on_training_start(self) -> None:
        for callback in self.callbacks:
            callback.on_training_start(self._scope(), self.globals)

    def _on_rollout_start(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_start()

    def _on_step(self) -> bool:
        env = self.training_env
        self.owner.num_timesteps = self.num_timesteps
        self.advance(env.num_envs)
        scope = self._scope()
        for callback in self.callbacks:
            callback.update_locals(scope)
        # every callback runs, also after one has asked to stop
        wishes = [callback.on_step() for callback in self.callbacks]
        return all(wishes)

    def _on_rollout_end(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_end()

    def _on_training_end(self) -> None:
        for callback in self.callbacks:
            callback.on_training_end()


class KeepBest(BaseCallback):
    """Tries the policy in other episodes now and then, and keeps the weights that did best.

    What Stable-Baselines3's ``EvalCallback`` does, by the share of decisions whose constraints
    held: where the reward has several components, its last weights may be good at another.

    Args:
        owner: The policy that learns.
        env: Episodes for the trials; of the environment that it learns in, never of what a
            comparison evaluates on.
        every: Decisions between two trials.
    """

    def __init__(self, owner: Any, env: BatchedEnv, every: int) -> None:
        """Begin without weights."""
        super().__init__()
        self.owner, self.env, self.every = owner, env, every
        self._best: tuple[float, dict[str, Any]] = (-1.0, {})
        self._next = every

    def _on_step(self) -> bool:
        total = self.owner.model._total_timesteps
        if self.num_timesteps >= min(self._next, total):
            self._next += self.every
            self._try()
        if self.num_timesteps >= total:
            # what is evaluated at the end are the weights that stay
            self._take_best()
        return True

    def _on_training_end(self) -> None:
        # the learner has updated its weights once more
        self._take_best()

    def _try(self) -> float:
        """Return the share of decisions whose constraints held, and keep the weights if best."""
        observations, _ = self.env.reset(seed=TRIALS + 1000 * self.owner.seed)
        held = decided = 0
        for _ in range(self.env.problem.horizon):
            actions, _state = self.owner.predict(observations, deterministic=True)
            observations, *_, info = self.env.step(actions)
            held += int(info["outcomes"].feasible.sum())
            decided += len(info["outcomes"])
        share = held / max(decided, 1)
        if share > self._best[0]:
            weights = self.owner.model.policy.state_dict()
            self._best = share, {name: value.clone() for name, value in weights.items()}
        return share

    def _take_best(self) -> None:
        if self._best[1]:
            self.owner.model.policy.load_state_dict(self._best[1])


class AfterRollout(BaseCallback):
    """Calls a function whenever a rollout is complete, before it is learned from."""

    def __init__(self, function: Callable[[], None]) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.function()


class FunctionCallback(BaseCallback):
    """A function of ``locals`` and ``globals`` that returns False to stop (None goes on)."""

    def __init__(self, function: Callable[[dict[str, Any], dict[str, Any]], bool | None]) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.locals, self.globals) is not False
