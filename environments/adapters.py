"""Thin adapters of a batched environment: one environment, and Stable-Baselines3's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import BatchedEnv

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class SingleEnv(gym.Env[NDArray[np.float32], np.int64]):
    """A batch of one, as a :class:`gymnasium.Env`.

    Its trajectory equals that of the batched sub-environment with the same seed.
    """

    def __init__(self, batch: BatchedEnv) -> None:
        """Wrap ``batch``, which has one sub-environment and no autoreset."""
        if batch.num_envs != 1 or batch.autoreset:
            raise ValueError("a single environment wraps a batch of one without autoreset")
        self.batch = batch
        self.problem = batch.problem
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.metadata = {"render_modes": []}
        self._np_random = batch.rngs[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        observation, info = self.batch.reset(seed=seed)
        # the generator in use is the batch's; Gymnasium's checker looks at this one
        self._np_random = self.batch.rngs[0]
        return observation[0], {"decision_id": int(info["decision_id"][0])}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Carry out one decision."""
        observation, reward, terminated, truncated, info = self.batch.step(np.array([action]))
        info["decision_id"] = int(info["decision_id"][0])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def action_values(self) -> NDArray[np.float64]:
        """Return the reward of every action in the present state, shape ``(actions,)``."""
        values: NDArray[np.float64] = self.batch.action_values()[0]
        return values


def as_sb3(env: BatchedEnv, *, encoded: bool = True) -> VecEnv:
    """Return ``env`` as a Stable-Baselines3 ``VecEnv``.

    Args:
        env: A batched environment with autoreset.
        encoded: Whether observations are encoded (one-hot words with an unknown slot, numbers
            scaled to 0..1), as networks need them, or handed on as they are.
    """
    from icl_optimizer.environments.sb3 import Sb3VecEnv

    return Sb3VecEnv(env, encoded=encoded)
