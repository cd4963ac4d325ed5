"""Networks on the graph for Stable-Baselines3's policies, and their plain twins (imports torch)."""

from __future__ import annotations

from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from icl_optimizer.baselines.graph.han import WIDTH, GraphEncoder
from icl_optimizer.baselines.graph.layout import GraphLayout


class GraphExtractor(BaseFeaturesExtractor):
    """The arrived request's embedding, as in the authors' code; experts are told apart by number.

    Args:
        observation_space: Of encoded observations.
        layout: Which columns are which features.
    """

    def __init__(self, observation_space: spaces.Box, layout: GraphLayout) -> None:
        """Build the encoder."""
        super().__init__(observation_space, WIDTH)
        self.encoder = GraphEncoder(layout, numbered=True, experts=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the embeddings ``(B, WIDTH)``."""
        arrived: Tensor = self.encoder(observations)["arrived"]
        return arrived


class FlatExtractor(BaseFeaturesExtractor):
    """The columns that the graph would hold, side by side: what a network without graph sees."""

    def __init__(self, observation_space: spaces.Box, layout: GraphLayout) -> None:
        """Keep the columns."""
        super().__init__(observation_space, len(layout.columns))
        self.register_buffer("columns", torch.from_numpy(layout.columns), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the columns ``(B, len(layout.columns))``."""
        return observations.index_select(1, self.get_buffer("columns"))


class GraphActorCritic(ActorCriticPolicy):
    """Scores every expert by the same head, so that their number may change after training."""

    mlp_extractor: Any
    action_net: Any
    value_net: Any
    optimizer_class: Any

    def __init__(self, *args: Any, layout: GraphLayout, **options: Any) -> None:
        """Build encoder and heads; ``net_arch`` are the widths of each head's hidden layers."""
        # needed while the parent is built
        self.layout = layout
        super().__init__(*args, **options)

    def _build(self, lr_schedule: Any) -> None:
        self.mlp_extractor = GraphHeads(
            self.layout, cast("list[int]", self.net_arch), self.activation_fn
        )
        self.action_net, self.value_net = nn.Identity(), nn.Identity()
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )


class GraphHeads(nn.Module):
    """Logits of all decisions and the value of an observation, from one graph encoder.

    An expert's logit comes from its own and the arrived request's embedding, that of dropping from
    the arrived request's, and the value from the arrived request's and the mean expert's. The heads
    also see the features of expert and arrived request as they came in: a mean of means cannot be
    more exact than what it averages.
    """

    def __init__(self, layout: GraphLayout, hidden: list[int], activation: type[nn.Module]) -> None:
        """Build encoder and heads."""
        super().__init__()
        self.encoder = GraphEncoder(layout)
        arrived, expert = WIDTH + len(layout.arrived), WIDTH + layout.experts.shape[1]
        self.expert_head = _head(arrived + expert, hidden, activation, 0.01)
        self.drop_head = _head(arrived, hidden, activation, 0.01)
        self.value_head = _head(arrived + expert, hidden, activation, 1.0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, N + 1)`` and the values ``(B, 1)``."""
        arrived, expert = self._embed(features)
        return self._logits(arrived, expert), self._values(arrived, expert)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Return the logits alone."""
        return self._logits(*self._embed(features))

    def forward_critic(self, features: Tensor) -> Tensor:
        """Return the values alone."""
        return self._values(*self._embed(features))

    def _embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is known of the arrived request ``(B, .)`` and of experts ``(B, N, .)``."""
        nodes, present = self.encoder.nodes(features)
        found = self.encoder.embed(nodes, present)
        arrived = torch.cat([found["arrived"], nodes["arrived"].squeeze(1)], dim=1)
        return arrived, torch.cat([found["expert"], nodes["expert"]], dim=2)

    def _logits(self, arrived: Tensor, expert: Tensor) -> Tensor:
        both = torch.cat([expert, arrived.unsqueeze(1).expand(-1, expert.shape[1], -1)], dim=2)
        return torch.cat([self.expert_head(both).squeeze(2), self.drop_head(arrived)], dim=1)

    def _values(self, arrived: Tensor, expert: Tensor) -> Tensor:
        values: Tensor = self.value_head(torch.cat([arrived, expert.mean(1)], dim=1))
        return values


class SharedActor(Actor):
    """An actor that reads the critics' encoder and leaves its training to them."""

    mu: Any
    log_std: Any
    action_dist: Any

    def extract_features(
        self, obs: Tensor | dict[str, Tensor], features_extractor: BaseFeaturesExtractor
    ) -> Tensor:
        """Return the features, without gradient."""
        with torch.no_grad():
            features: Tensor = super().extract_features(obs, features_extractor)
        return features

    def act(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return drawn actions ``(B, N + 1)`` and their log probabilities ``(B, 1)``."""
        hidden = self.latent_pi(features)
        deviation = torch.clamp(self.log_std(hidden), -20, 2)
        actions, chance = self.action_dist.log_prob_from_params(self.mu(hidden), deviation)
        return actions, chance.unsqueeze(1)


class SharedSacPolicy(SACPolicy):
    """SAC's networks with one encoder, which the critics train.

    Stable-Baselines3 lets the actor train a shared encoder; what a state is worth says more about
    it than what the present actor would do.
    """

    actor: SharedActor
    critic: ContinuousCritic
    optimizer_class: Any

    def _build(self, lr_schedule: Any) -> None:
        self.critic = self.make_critic()
        self.critic_target = self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.set_training_mode(False)
        self.actor = self.make_actor(self.critic.features_extractor)
        own = [p for n, p in self.actor.named_parameters() if not n.startswith("features_extract")]
        for part, weights in ((self.actor, own), (self.critic, list(self.critic.parameters()))):
            part.optimizer = self.optimizer_class(
                weights, lr=lr_schedule(1), **self.optimizer_kwargs
            )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SharedActor:
        """Return an actor on the given encoder."""
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return SharedActor(**options).to(self.device)


def _head(size: int, hidden: list[int], activation: type[nn.Module], gain: float) -> nn.Sequential:
    """Return a network to one number, whose last layer begins with weights of scale ``gain``."""
    layers: list[nn.Module] = []
    for width in hidden:
        layer = nn.Linear(size, width)
        nn.init.orthogonal_(layer.weight, 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, activation()]
        size = width
    last = nn.Linear(size, 1)
    nn.init.orthogonal_(last.weight, gain)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
