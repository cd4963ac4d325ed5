"""A discrete environment for a learner with continuous outputs (imports torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class ArgmaxActions(VecEnvWrapper):
    """Takes one number per decision, each in -1..1, and carries out the decision of the largest."""

    def __init__(self, venv: VecEnv) -> None:
        """Wrap an environment whose actions are ``Discrete``."""
        assert isinstance(venv.action_space, spaces.Discrete), "one decision out of several"
        box = spaces.Box(-1.0, 1.0, (int(venv.action_space.n),), np.float32)
        super().__init__(venv, action_space=box)

    def reset(self) -> Any:
        """Begin an episode everywhere."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Hand on the decisions of the largest numbers; ``actions`` are ``(E, decisions)``."""
        self.venv.step_async(actions.argmax(axis=1))

    def step_wait(self) -> Any:
        """Return what the environment returns."""
        return self.venv.step_wait()
