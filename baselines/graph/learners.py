"""PPO and SAC on the graph or on its columns (imports torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from icl_optimizer.baselines.drl_config import GraphPpoConfig, GraphSacConfig
from icl_optimizer.baselines.graph.layout import GraphLayout
from icl_optimizer.baselines.graph.policies import (
    FlatExtractor,
    GraphActorCritic,
    GraphExtractor,
    SharedSacPolicy,
)
from icl_optimizer.baselines.graph.spaces import ArgmaxActions
from icl_optimizer.baselines.sb3_models import (
    Features,
    Floats,
    OnPolicy,
    Weights,
    any_minibatch,
    isolated_random,
    network_shape,
    ppo_options,
    scaled,
)
from icl_optimizer.problem import Problem

DRAWS = 256
"""Actions drawn per observation to find the chances of a squashed Gaussian's largest entry."""


class GraphPpo(OnPolicy, PPO):
    """PPO that scores the experts on the graph, or one that sees its columns side by side."""

    def __init__(self, config: GraphPpoConfig, env: VecEnv, seed: int, layout: GraphLayout) -> None:
        """Build the networks."""
        shape = network_shape(config)
        if config.network == "han":
            parts = ("encoder.", "expert_head.", "drop_head.")
            self.deciding = tuple(f"mlp_extractor.{part}" for part in parts)
            policy: Any = GraphActorCritic
            self.nodes = layout.nodes
            shape |= {"layout": layout}
        else:
            policy = "MlpPolicy"
            shape |= _extractor(FlatExtractor, layout)
        with any_minibatch():
            super().__init__(policy, env, policy_kwargs=shape, **ppo_options(config, env, seed))


class GraphSac(SAC):
    """SAC with one output per decision, on one encoder that the critics train.

    Its replay ratio does not depend on the number of environments.
    """

    deciding = ("actor.",)
    nodes = None
    actor: Any
    policy: Any
    replay_buffer: Any
    log_ent_coef: Any
    ent_coef_optimizer: Any

    def __init__(self, config: GraphSacConfig, env: VecEnv, seed: int, layout: GraphLayout) -> None:
        """Build the networks."""
        extractor = GraphExtractor if config.network == "han" else FlatExtractor
        super().__init__(
            SharedSacPolicy,
            env,
            learning_rate=config.learning_rate,
            buffer_size=config.buffer_size,
            learning_starts=config.learning_starts,
            batch_size=config.batch_size,
            tau=config.tau,
            gamma=config.gamma,
            train_freq=1,
            ent_coef=f"auto_{config.temperature}",
            policy_kwargs=network_shape(config) | _extractor(extractor, layout),
            seed=seed,
            device="cpu",
        )
        self.config = config
        self._due = 0.0

    def preferences(self, features: Features) -> Floats:
        """Return the softmax of the mean outputs; a way to report them, not a probability."""
        with torch.no_grad():
            means, _, _ = self.actor.get_action_dist_params(torch.as_tensor(features))
        return np.asarray(torch.softmax(means.double(), dim=1).numpy())

    def behaviour(self, features: Features) -> Floats:
        """Return how often each decision has the largest output among :data:`DRAWS` draws."""
        with torch.no_grad():
            means, deviations, _ = self.actor.get_action_dist_params(torch.as_tensor(features))
            # squashing keeps the order
            drawn = means + deviations.exp() * torch.randn(DRAWS, *means.shape)
            first = functional.one_hot(drawn.argmax(dim=2), means.shape[1])
        return np.asarray(first.double().mean(dim=0).numpy())

    def take(self, state: Weights) -> bool:
        """Take over weights; return whether learning can go on from them: not without critics."""
        given = {name: torch.from_numpy(array) for name, array in state.items()}
        own = self.policy.state_dict()
        whole: bool = own.keys() == given.keys()
        rest = {} if whole else {k: v for k, v in own.items() if not k.startswith(self.deciding)}
        self.policy.load_state_dict(rest | given)
        return whole

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take the gradient steps that are due after one step of every environment."""
        self._due += self.n_envs / self.config.train_every
        for _ in range(int(self._due)):
            self._update()
        self._due -= int(self._due)

    def _update(self) -> None:
        """Take one gradient step of critics, actor and temperature, encoding each batch once."""
        batch = self.replay_buffer.sample(self.batch_size, env=self._vec_normalize_env)
        weight = self.log_ent_coef.detach().exp()
        features = self.critic.features_extractor(batch.observations)
        target = self._target(batch, weight)
        values = _values(self.critic, features, batch.actions)
        _step(self.critic.optimizer, 0.5 * ((values - target) ** 2).mean(dim=0).sum())
        seen = features.detach()
        actions, chance = self.actor.act(seen)
        least = _values(self.critic, seen, actions).min(dim=1, keepdim=True).values
        _step(self.actor.optimizer, (weight * chance - least).mean())
        surplus = (chance + self.target_entropy).detach()
        _step(self.ent_coef_optimizer, -(self.log_ent_coef * surplus).mean())
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        self._n_updates += 1
        self.logger.record("train/ent_coef", float(weight))

    def _target(self, batch: Any, weight: Tensor) -> Tensor:
        """Return what the critics should have said, shape ``(B, 1)``."""
        with torch.no_grad():
            seen = self.critic.features_extractor(batch.next_observations)
            actions, chance = self.actor.act(seen)
            later = self.critic_target.features_extractor(batch.next_observations)
            least = _values(self.critic_target, later, actions).min(dim=1, keepdim=True).values
            worth = least - weight * chance
            target: Tensor = batch.rewards + (1 - batch.dones) * self.gamma * worth
        return target


def build_on_graph(
    config: GraphPpoConfig | GraphSacConfig, env: VecEnv, seed: int, problem: Problem
) -> GraphPpo | GraphSac:
    """Return an untrained learner on ``env``; see :func:`~.sb3_models.build`."""
    layout = GraphLayout.of(problem, extra=config.extra)
    if isinstance(config, GraphSacConfig):
        env = ArgmaxActions(env)
    env = scaled(env, config)
    with isolated_random(seed):
        if isinstance(config, GraphSacConfig):
            return GraphSac(config, env, seed, layout)
        return GraphPpo(config, env, seed, layout)


def _extractor(cls: type[Any], layout: GraphLayout) -> dict[str, Any]:
    return {"features_extractor_class": cls, "features_extractor_kwargs": {"layout": layout}}


def _values(critic: Any, features: Tensor, actions: Tensor) -> Tensor:
    """Return what each critic says of the actions, shape ``(B, critics)``."""
    both = torch.cat([features, actions], dim=1)
    return torch.cat([network(both) for network in critic.q_networks], dim=1)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
