"""A batched environment behind Stable-Baselines3's ``VecEnv`` (imports torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError


class Sb3VecEnv(VecEnv):
    """Stable-Baselines3's view of a :class:`BatchedEnv`; the dynamics stay where they are."""

    def __init__(self, env: BatchedEnv, *, encoded: bool = True) -> None:
        """Wrap ``env``; see :func:`icl_optimizer.environments.adapters.as_sb3`."""
        if not env.autoreset:
            raise ConfigurationError("autoreset is False; allowed: True for Stable-Baselines3.")
        self.env = env
        self.encoded = encoded
        space = env.single_observation_space
        if encoded:
            space = spaces.Box(0.0, 1.0, (env.problem.encoded_size,), np.float32)
        super().__init__(env.num_envs, space, env.single_action_space)
        self._actions: NDArray[np.int64] | None = None
        self._episode_reward = np.zeros(env.num_envs)

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode everywhere, with the seeds given to :meth:`seed` if any."""
        given = [s for s in self._seeds if s is not None]
        observation, _ = self.env.reset(seed=list(self._seeds) if given else None)
        self._reset_seeds()
        self._reset_options()
        self._episode_reward[:] = 0.0
        return self._view(observation)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Carry the actions out; infos hold the last observation of a finished episode."""
        assert self._actions is not None, "step_async comes first"
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        self._episode_reward += reward
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            infos[i] = self._final(int(i), info["final_obs"][i], bool(truncated[i]))
        self._episode_reward[done] = 0.0
        return self._view(observation), reward.astype(np.float32), done, infos

    def _final(self, i: int, observation: NDArray[np.float32], truncated: bool) -> dict[str, Any]:
        return {
            "terminal_observation": self._view(observation[None])[0],
            "TimeLimit.truncated": truncated,
            "episode": {"r": float(self._episode_reward[i]), "l": self.env.problem.horizon},
        }

    def _view(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.env.problem.encode(observation) if self.encoded else observation

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the batch once per sub-environment."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: sub-environments share their attributes."""
        raise ConfigurationError(f"'{attr_name}' cannot be set for one sub-environment.")

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once; its answer stands for every sub-environment."""
        answer = getattr(self.env, method_name)(*args, **kwargs)
        return [answer] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return whether episodes are monitored: they are, in ``info["episode"]``."""
        return [wrapper_class is Monitor] * len(list(self._get_indices(indices)))
