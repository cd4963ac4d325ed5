"""An environment that has spaces but cannot be stepped (imports torch)."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Problem


class SpacesOnly(VecEnv):
    """Lets Stable-Baselines3 build a network for a policy that serves, or learns from a log."""

    render_mode = None

    def __init__(self, problem: Problem) -> None:
        """Take the encoded spaces of ``problem``."""
        observation = spaces.Box(0.0, 1.0, (problem.encoded_size,), np.float32)
        super().__init__(1, observation, spaces.Discrete(len(problem.labels)))

    def reset(self) -> NoReturn:
        """Refuse: there is nothing behind the spaces."""
        raise ConfigurationError("there is no environment; allowed: one given as env=.")

    def step_async(self, actions: Any) -> NoReturn:
        """Refuse."""
        self.reset()

    def step_wait(self) -> NoReturn:
        """Refuse."""
        self.reset()

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of this object."""
        return [getattr(self, attr_name)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> NoReturn:
        """Refuse."""
        self.reset()

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        self.reset()

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return that nothing is wrapped."""
        return [False]
