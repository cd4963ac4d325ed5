"""Stable-Baselines3's learners with exact budgets and their own random numbers (imports torch)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from icl_optimizer.baselines.drl_config import (
    A2cConfig,
    AnyPpoConfig,
    DqnConfig,
    DrlConfig,
    GraphPpoConfig,
    GraphSacConfig,
    PpoConfig,
    SurrogatePpoConfig,
)
from icl_optimizer.problem import Problem

if TYPE_CHECKING:
    from icl_optimizer.baselines.graph.learners import GraphPpo, GraphSac

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Weights = dict[str, NDArray[np.float32]]
Nodes = dict[str, list[str]]


@contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed the global generators that Stable-Baselines3 draws from, and restore them after.

    So a learner's result depends on its seed alone, whatever else runs in the process. Torch
    uses one thread meanwhile: these networks are too small for more.
    """
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
        torch.set_num_threads(threads)


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def network_shape(config: DrlConfig) -> dict[str, Any]:
    """Return the shape of the networks, as Stable-Baselines3's policies take it."""
    return {"net_arch": list(config.hidden), "activation_fn": ACTIVATIONS[config.activation]}


class FlatReplayBuffer(ReplayBuffer):
    """A replay buffer in which a batch of any size can be stored, as logged experience needs."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        n_envs: int = 1,
        **options: Any,
    ) -> None:
        """Keep ``buffer_size`` decisions; the number of environments does not matter."""
        super().__init__(buffer_size, observation_space, action_space, device, 1, **options)

    def add(
        self,
        obs: Features,
        next_obs: Features,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store ``n`` decisions, the arrays being ``(n, ...)``; the oldest go."""
        rows = (self.pos + np.arange(len(reward))) % self.buffer_size
        self.observations[rows, 0] = obs
        self.next_observations[rows, 0] = next_obs
        self.actions[rows, 0, 0] = action
        self.rewards[rows, 0] = reward
        self.dones[rows, 0] = done
        self.timeouts[rows, 0] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.full |= self.pos + len(rows) >= self.buffer_size
        self.pos = (self.pos + len(rows)) % self.buffer_size


class Dqn(DQN):
    """DQN whose replay ratio and exploration do not depend on the number of environments."""

    deciding = ("q_net.",)
    """What the names of the weights begin with that deciding needs."""
    nodes: Nodes | None = None
    """Features of the nodes of a graph, where weights fit any number of these."""

    def __init__(self, config: DqnConfig, env: VecEnv, seed: int) -> None:
        """Build the networks."""
        super().__init__(
            "MlpPolicy",
            env,
            learning_rate=config.learning_rate,
            buffer_size=config.buffer_size,
            learning_starts=config.learning_starts,
            batch_size=config.batch_size,
            gamma=config.gamma,
            train_freq=1,
            replay_buffer_class=FlatReplayBuffer,
            target_update_interval=max(config.target_update, env.num_envs),
            max_grad_norm=config.max_grad_norm,
            policy_kwargs=network_shape(config),
            seed=seed,
            device="cpu",
        )
        self.config = config
        self.rng = np.random.default_rng(seed)
        self._due = 0.0

    def preferences(self, features: Features) -> Floats:
        """Return the softmax of the Q values; a way to report them, not a probability."""
        with torch.no_grad():
            values = self.q_net(torch.as_tensor(features)).double()
        return np.asarray(torch.softmax(values, dim=1).numpy())

    def behaviour(self, features: Features) -> Floats:
        """Return the chances of epsilon-greedy at the present epsilon."""
        greedy = self.preferences(features)
        epsilon = self.config.epsilon(self.num_timesteps)
        chances = np.full(greedy.shape, epsilon / greedy.shape[1])
        chances[np.arange(len(greedy)), greedy.argmax(axis=1)] += 1 - epsilon
        return chances

    def take(self, state: Weights) -> bool:
        """Take over weights; return whether learning can go on from them."""
        given = {name: torch.from_numpy(array) for name, array in state.items()}
        # in a file without target network, the network itself stands for it
        target = {f"q_net_target.{k[6:]}": v for k, v in given.items() if k.startswith("q_net.")}
        self.policy.load_state_dict(target | given)
        return True

    def replay(self, features: Features, actions: NDArray[Any], rewards: Floats) -> None:
        """Learn from logged decisions, each as an episode of its own (no later reward)."""
        count = len(actions)
        if self._vec_normalize_env is not None:
            self._vec_normalize_env.ret_rms.update(rewards)
        assert self.replay_buffer is not None, "it was built with the networks"
        done = np.ones(count)
        self.replay_buffer.add(features, features, actions, rewards, done, [{}] * count)
        self._due += self.config.updates * count / self.config.train_every
        self._train_due()

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take the gradient steps that are due after one step of every environment."""
        self._due += self.config.updates * self.n_envs / self.config.train_every
        self._train_due()

    def _train_due(self) -> None:
        whole = int(self._due)
        self._due -= whole
        if whole:
            super().train(whole, self.config.batch_size)

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Explore in each environment on its own; Stable-Baselines3 does in all or none."""
        actions = draw(self.behaviour(np.asarray(self._last_obs)), self.rng)
        return actions, actions


class OnPolicy:
    """What PPO and A2C share: exact budgets, and reading and writing the deciding part."""

    deciding: tuple[str, ...] = ("mlp_extractor.policy_net.", "action_net.")
    nodes: Nodes | None = None
    policy: Any

    def take(self, state: Weights) -> bool:
        """Take over weights; return whether learning can go on from them: not without critic."""
        given = {name: torch.from_numpy(array) for name, array in state.items()}
        own = self.policy.state_dict()
        whole: bool = own.keys() == given.keys()
        critic = {} if whole else {k: v for k, v in own.items() if not k.startswith(self.deciding)}
        self.policy.load_state_dict(critic | given)
        return whole

    def preferences(self, features: Features) -> Floats:
        """Return the policy's probabilities."""
        with torch.no_grad():
            chances = self.policy.get_distribution(torch.as_tensor(features)).distribution.probs
        wide = np.asarray(chances.double().numpy())
        return np.asarray(wide / wide.sum(axis=1, keepdims=True))

    def behaviour(self, features: Features) -> Floats:
        """Return the policy's probabilities: it explores by drawing from them."""
        return self.preferences(features)

    def collect_rollouts(
        self, env: VecEnv, callback: Any, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Collect a rollout, shortened where the budget ends within it."""
        left = (self._total_timesteps - self.num_timesteps) // env.num_envs  # type: ignore[attr-defined]
        rollout_buffer.buffer_size = max(min(n_rollout_steps, left), 1)
        done: bool = super().collect_rollouts(  # type: ignore[misc]
            env, callback, rollout_buffer, rollout_buffer.buffer_size
        )
        return done


@contextmanager
def any_minibatch() -> Iterator[None]:
    """Keep Stable-Baselines3 from warning of a last minibatch that is smaller; it does no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        yield


def ppo_options(config: AnyPpoConfig, env: VecEnv, seed: int) -> dict[str, Any]:
    """Return the settings of PPO as Stable-Baselines3 takes them, without the networks."""
    return {
        "learning_rate": config.learning_rate,
        "n_steps": _rollout_steps(config.rollout, env),
        "batch_size": config.batch_size,
        "n_epochs": config.epochs,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "clip_range": config.clip_range,
        "ent_coef": config.entropy,
        "vf_coef": config.value_weight,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "device": "cpu",
    }


class Ppo(OnPolicy, PPO):
    """PPO with rollouts counted in decisions."""

    def __init__(self, config: PpoConfig | SurrogatePpoConfig, env: VecEnv, seed: int) -> None:
        """Build the networks."""
        with any_minibatch():
            super().__init__(
                "MlpPolicy",
                env,
                policy_kwargs=network_shape(config),
                **ppo_options(config, env, seed),
            )


class A2c(OnPolicy, A2C):
    """A2C with rollouts counted in decisions."""

    def __init__(self, config: A2cConfig, env: VecEnv, seed: int) -> None:
        """Build the networks."""
        super().__init__(
            "MlpPolicy",
            env,
            learning_rate=config.learning_rate,
            n_steps=_rollout_steps(config.rollout, env),
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.entropy,
            vf_coef=config.value_weight,
            max_grad_norm=config.max_grad_norm,
            policy_kwargs=network_shape(config),
            seed=seed,
            device="cpu",
        )


Learner: TypeAlias = "Dqn | Ppo | A2c | GraphPpo | GraphSac"


def build(config: DrlConfig, env: VecEnv, seed: int, problem: Problem) -> Learner:
    """Return an untrained learner on ``env``, whose observations are those of ``problem``, encoded.

    Raises:
        ConfigurationError: The learner sees a graph, and the problem has none.
    """
    if isinstance(config, GraphPpoConfig | GraphSacConfig):
        from icl_optimizer.baselines.graph.learners import build_on_graph

        return build_on_graph(config, env, seed, problem)
    env = scaled(env, config)
    with isolated_random(seed):
        if isinstance(config, DqnConfig):
            return Dqn(config, env, seed)
        if isinstance(config, PpoConfig | SurrogatePpoConfig):
            return Ppo(config, env, seed)
        return A2c(config, env, seed)


def scaled(env: VecEnv, config: DrlConfig) -> VecEnv:
    """Return ``env`` with rewards of unit scale, where the settings ask for it."""
    if not config.normalize_reward:
        return env
    return VecNormalize(env, norm_obs=False, gamma=config.gamma)


def draw(chances: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return one action per row of ``chances`` ``(n, actions)``."""
    below = rng.random(len(chances))[:, None] >= chances.cumsum(axis=1)[:, :-1]
    return np.asarray(below.sum(axis=1), dtype=np.int64)


def _rollout_steps(decisions: int, env: VecEnv) -> int:
    # PPO refuses a rollout of a single decision
    least = 2 if env.num_envs == 1 else 1
    return max(decisions // env.num_envs, least)
