"""Deep-RL baselines: learners of Stable-Baselines3 behind the policy contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.drl_config import CONFIGS, DqnConfig, DrlConfig, preset
from icl_optimizer.baselines.saving import identity, read_tensors
from icl_optimizer.decision import Decision, Outcome, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.policy import Policy, observations_of
from icl_optimizer.problem import Problem
from icl_optimizer.rollout import ensure_logger, progress
from icl_optimizer.tensors import write_tensors

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from icl_optimizer.baselines.sb3_models import Dqn, Learner

INSTALL = "pip install 'icl-optimizer[rl]'"


class DrlPolicy(Policy):
    """A network that learns by reinforcement, on encoded observations.

    Words enter as one-hot codes with a slot for unknown ones, numbers scaled to 0..1
    (:meth:`Problem.encode`). It learns from the reward stream of its environment; DQN also from
    logged outcomes.

    Args:
        problem: Labels and columns.
        config: Settings; the preset of ``name`` for this problem when None.
        name: A preset's name, or any other together with ``config``.
        env: Environment to learn in, if any.
        seed: Seeds network, exploration, replay and the episodes.

    Attributes:
        has_critic: Whether all of the network is there; not after loading a file that holds the
            deciding part alone.
    """

    def __init__(
        self,
        problem: Problem,
        config: DrlConfig | None = None,
        *,
        name: str = "dqn",
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Build an untrained network."""
        super().__init__(problem, env=env, seed=seed)
        self.name = name
        self.config: DrlConfig = preset(name, problem.name) if config is None else config
        self.has_critic = True
        self._build()

    def _build(self) -> None:
        try:
            from icl_optimizer.baselines import sb3_callbacks, sb3_models
        except ImportError as error:
            raise MissingDependencyError(
                f"policy '{self.name}' needs Stable-Baselines3 and torch: {INSTALL}."
            ) from error
        self._sb3, self._callback_classes = sb3_models, sb3_callbacks
        self.model: Learner = sb3_models.build(
            self.config, self._encoded_env(), self.seed, self.problem
        )

    def _encoded_env(self) -> VecEnv:
        from icl_optimizer.baselines.spaces_only import SpacesOnly
        from icl_optimizer.environments.adapters import as_sb3

        return SpacesOnly(self.problem) if self.env is None else as_sb3(self.env, encoded=True)

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations ``(n, columns)``.

        ``probabilities`` are PPO's and A2C's own; DQN and SAC have none, there the softmax of Q
        values or outputs stands for their preference. ``propensity`` is 1 unless exploring.
        """
        rows = observations_of(self.problem, situations)
        actions, preferences, chances = self._choose(rows, explore)
        contexts = self.contexts(rows)
        return [
            self.rule_decision(
                contexts[i],
                int(actions[i]),
                preferences[i],
                rows[i],
                made_by="rule" if actions[i] == preferences[i].argmax() else "explore",
                propensity=float(chances[i, actions[i]]),
                support=float(chances[i].min()),
            )
            for i in range(len(rows))
        ]

    def _actions(self, rows: NDArray[Any], *, explore: bool) -> NDArray[np.int64]:
        """Return the actions without the words of a decision."""
        return self._choose(observations_of(self.problem, rows), explore=explore)[0]

    def _choose(
        self, rows: NDArray[Any], explore: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return actions ``(n,)``, preferences and chances ``(n, actions)``."""
        features = self.problem.encode(rows)
        preferences = self.model.preferences(features)
        if explore:
            chances = self.model.behaviour(features)
            return self._sb3.draw(chances, self.rng), preferences, chances
        actions = preferences.argmax(axis=1)
        return actions, preferences, np.eye(preferences.shape[1])[actions]

    def learn(self, total_timesteps: int, callback: Any = None, progress_bar: bool = False) -> Self:
        """Learn from ``total_timesteps`` more decisions; see :meth:`Policy.learn`.

        A callback's ``model`` is this policy, so it predicts from plain observations.

        Raises:
            ConfigurationError: It was loaded without its critic: an untrained one would undo what
                the actor has learned.
        """
        self.require_env()
        if not self.has_critic:
            raise ConfigurationError(
                f"policy '{self.name}' was loaded from a file without critic and cannot learn on; "
                "allowed: deciding, a new policy, or a file that was saved whole."
            )
        ensure_logger(self)
        self.model.set_logger(self.logger)
        # another policy may have used the environment since, so begin new episodes
        self.model._last_obs = None
        with (
            progress(f"{self.name} learns", total_timesteps, shown=progress_bar) as advance,
            self._sb3.isolated_random(self.seed + self.num_timesteps),
        ):
            callbacks = [*self._trials(), *self._callbacks(callback)]
            bridge = self._callback_classes.Bridge(self, callbacks, advance)
            self.model.learn(total_timesteps, callback=bridge, reset_num_timesteps=False)
        return self

    def _trials(self) -> list[Any]:
        """Return the callback that keeps the best weights, where the settings ask for it."""
        every = getattr(self.config, "keep_best", 0)
        if not every:
            return []
        env: Any = self.require_env()
        # the same parameters, other episodes
        other = type(env)(self._callback_classes.TRIAL_ENVS, env.config)
        return [self._callback_classes.KeepBest(self, other, every)]

    def _callbacks(self, callback: Any) -> list[Any]:
        if callback is None:
            return []
        items = list(callback) if isinstance(callback, Iterable) else [callback]
        wrap = self._callback_classes.FunctionCallback
        return [item if hasattr(item, "on_step") else wrap(item) for item in items]

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from outcomes away from an environment; see :meth:`learn_from`."""
        self.learn_from(outcomes)

    def learn_from(self, log: Sequence[Outcome]) -> Self:
        """Learn from logged outcomes: DQN replays them, each as an episode of one decision.

        A log holds no next observation, so effects on later rewards are not learned from it.

        Raises:
            ConfigurationError: An on-policy learner, or outcomes without observations.
        """
        if not isinstance(self.config, DqnConfig):
            raise ConfigurationError(
                f"policy '{self.name}' learns on-policy, from decisions it has just made itself; "
                "allowed: learn(total_timesteps) in an environment, or 'dqn' for a log."
            )
        known = [outcome for outcome in log if not outcome.censored]
        if any(outcome.observation is None for outcome in known):
            raise ConfigurationError(
                f"policy '{self.name}' was given outcomes without observation; "
                "allowed: outcomes that hold one."
            )
        if known:
            self._replay(known)
        return self

    def _replay(self, outcomes: Sequence[Outcome]) -> None:
        ensure_logger(self)
        self.model.set_logger(self.logger)
        rows = observations_of(self.problem, np.array([o.observation for o in outcomes]))
        actions = np.array([o.action for o in outcomes])
        rewards = np.array([o.reward for o in outcomes])
        with self._sb3.isolated_random(self.seed + self.num_timesteps):
            cast("Dqn", self.model).replay(self.problem.encode(rows), actions, rewards)
        self.num_timesteps += len(outcomes)
        self.model.num_timesteps = self.num_timesteps

    def log_values(self) -> dict[str, float]:
        """Return epsilon for DQN."""
        if not isinstance(self.config, DqnConfig):
            return {}
        return {"dqn/epsilon": self.config.epsilon(self.num_timesteps)}

    def save(self, path: str | Path, *, actor_only: bool = False) -> None:
        """Write one safetensors file: the weights, and as JSON metadata everything else.

        Optimiser state and replay buffer are not kept: learning goes on, with an empty memory.

        Args:
            path: The file.
            actor_only: Whether to leave out what deciding does not need: DQN's target network,
                the critic of the others. A policy that was loaded without critic has none to save.
        """
        actor_only = actor_only or not self.has_critic
        state = {
            name: tensor.numpy()
            for name, tensor in self.model.policy.state_dict().items()
            if not actor_only or name.startswith(self.model.deciding)
        }
        extra = {
            "config": self.config.model_dump(mode="json"),
            "actor_only": actor_only,
            "nodes": self.model.nodes,
        }
        write_tensors(path, state, identity(self, "drl") | extra)

    def load(self, path: str | Path) -> Self:
        """Take over weights and settings from :meth:`save`.

        From a file without target network, DQN takes a copy of the network for it. From one
        without critic, the others decide as before but cannot learn on. PPO that scores the experts
        of a graph takes weights that were trained with any number of them.

        Raises:
            ConfigurationError: The file is none, or of another problem or other columns.
        """
        state, data = read_tensors(self, "drl", path)
        self.config = CONFIGS[data["config"]["algorithm"]](**data["config"])
        self.name, self.seed = data["policy"], data["seed"]
        self._build()
        if data.get("nodes") != self.model.nodes:
            raise ConfigurationError(
                f"saved policy '{path}' has nodes {data['nodes']}; allowed: {self.model.nodes}."
            )
        self.has_critic = self.model.take(state)
        self.num_timesteps = self.model.num_timesteps = data["num_timesteps"]
        return self
