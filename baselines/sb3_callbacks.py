"""Callbacks of Stable-Baselines3 around a policy of this library (imports torch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize


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


class FunctionCallback(BaseCallback):
    """A function of ``locals`` and ``globals`` that returns False to stop (None goes on)."""

    def __init__(self, function: Callable[[dict[str, Any], dict[str, Any]], bool | None]) -> None:
        """Keep the function."""
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.locals, self.globals) is not False
