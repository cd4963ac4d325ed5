"""Settings of the deep-RL baselines, with the presets they are known by."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.errors import ConfigurationError, unknown_name

Activation = Literal["relu", "tanh"]


class _NetworkConfig(BaseModel):
    """What every learner has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[int, ...] = Field((128, 128), description="Width of each hidden layer.")
    activation: Activation = Field("tanh", description="Nonlinearity after each hidden layer.")
    learning_rate: float = Field(1e-3, gt=0, description="Step size of the optimiser.")
    gamma: float = Field(0.99, ge=0, lt=1, description="Discount of later rewards.")
    normalize_reward: bool = Field(
        True,
        description="Divide rewards by the running standard deviation of the discounted return "
        "(VecNormalize of Stable-Baselines3), so that one setting suits every reward scale.",
    )
    max_grad_norm: float = Field(10.0, gt=0, description="Gradients are clipped to this norm.")


class DqnConfig(_NetworkConfig):
    """Deep Q-learning; counts are decisions, whatever the number of sub-environments."""

    algorithm: Literal["dqn"] = Field("dqn", description="Which learner.")
    activation: Activation = Field("relu", description="Nonlinearity after each hidden layer.")
    buffer_size: int = Field(50_000, ge=1, description="Decisions that the replay buffer keeps.")
    batch_size: int = Field(32, ge=1, description="Replayed decisions per gradient step.")
    learning_starts: int = Field(100, ge=0, description="Random decisions before training.")
    train_every: int = Field(4, ge=1, description="Decisions between two trainings.")
    updates: int = Field(1, ge=1, description="Gradient steps per training.")
    target_update: int = Field(500, ge=1, description="Decisions between target network copies.")
    epsilon_start: float = Field(1.0, ge=0, le=1, description="Chance to explore at first.")
    epsilon_end: float = Field(0.05, ge=0, le=1, description="Chance to explore in the end.")
    epsilon_steps: int = Field(1000, ge=1, description="Decisions until it is reached (linear).")

    def epsilon(self, t: int) -> float:
        """Return the chance to explore in decision ``t`` (from 0)."""
        if t < self.learning_starts:
            return 1.0
        share = min(t / self.epsilon_steps, 1.0)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)


class AnyPpoConfig(_NetworkConfig):
    """Proximal policy optimisation, whatever the network."""

    learning_rate: float = Field(3e-4, gt=0, description="Step size of the optimiser.")
    rollout: int = Field(256, ge=2, description="Decisions, over all environments, per update.")
    batch_size: int = Field(64, ge=1, description="Decisions per gradient step.")
    epochs: int = Field(10, ge=1, description="Passes over a rollout.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Generalised advantage estimation.")
    keep_best: int = Field(
        0,
        ge=0,
        description="Decisions between two trials in other episodes of the environment learned in; "
        "the weights that succeeded most often are kept. 0: the last weights.",
    )
    clip_range: float = Field(0.2, gt=0, description="Largest change of a probability ratio.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    value_weight: float = Field(0.5, ge=0, description="Weight of the value loss.")
    max_grad_norm: float = Field(0.5, gt=0, description="Gradients are clipped to this norm.")


class PpoConfig(AnyPpoConfig):
    """Proximal policy optimisation."""

    algorithm: Literal["ppo"] = Field("ppo", description="Which learner.")


class SurrogatePpoConfig(AnyPpoConfig):
    """Proximal policy optimisation, from some point on with rewards of a surrogate."""

    algorithm: Literal["ppo-surrogate"] = Field("ppo-surrogate", description="Which learner.")
    true_rollouts: int = Field(
        5,
        ge=1,
        description="Rollouts with the environment's own rewards, from which the surrogate is then "
        "fitted (T of Algorithm 1).",
    )
    surrogate_steps: int = Field(
        2000, ge=1, description="Gradient steps, on mini-batches, in which the surrogate is fitted."
    )


class A2cConfig(_NetworkConfig):
    """Advantage actor-critic."""

    algorithm: Literal["a2c"] = Field("a2c", description="Which learner.")
    learning_rate: float = Field(7e-4, gt=0, description="Step size of the optimiser.")
    rollout: int = Field(8, ge=1, description="Decisions, over all environments, per update.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="Generalised advantage estimation.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    value_weight: float = Field(0.5, ge=0, description="Weight of the value loss.")
    max_grad_norm: float = Field(0.5, gt=0, description="Gradients are clipped to this norm.")


class _GraphFields(BaseModel):
    """What the learners on a graph of requests have besides."""

    network: Literal["han", "mlp"] = Field(
        "han",
        description="Graph attention over experts and requests, or the same columns side by side.",
    )
    extra: bool = Field(
        True,
        description="Whether experts also show their backlog, the slack of their requests and the "
        "estimated impact (beyond the paper).",
    )


class GraphPpoConfig(_GraphFields, AnyPpoConfig):
    """Proximal policy optimisation on a graph; each expert is scored by the same head."""

    algorithm: Literal["graph-ppo"] = Field("graph-ppo", description="Which learner.")
    hidden: tuple[int, ...] = Field((64,), description="Width of each hidden layer of a head.")
    activation: Activation = Field("relu", description="Nonlinearity after each hidden layer.")
    learning_rate: float = Field(1e-3, gt=0, description="Step size of the optimiser.")
    gamma: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Discount of later rewards; a decision is felt over the next 30 or so.",
    )
    gae_lambda: float = Field(0.9, ge=0, le=1, description="Generalised advantage estimation.")
    rollout: int = Field(8192, ge=2, description="Decisions, over all environments, per update.")
    batch_size: int = Field(1024, ge=1, description="Decisions per gradient step.")
    epochs: int = Field(6, ge=1, description="Passes over a rollout.")
    entropy: float = Field(0.003, ge=0, description="Weight of the entropy bonus.")


class GraphSacConfig(_GraphFields, _NetworkConfig):
    """Soft actor-critic with one output per decision, of which the largest is carried out."""

    algorithm: Literal["graph-sac"] = Field("graph-sac", description="Which learner.")
    hidden: tuple[int, ...] = Field((64, 64), description="Width of each hidden layer.")
    activation: Activation = Field("relu", description="Nonlinearity after each hidden layer.")
    learning_rate: float = Field(7e-4, gt=0, description="Step size of the optimisers.")
    gamma: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Discount of later rewards.",
    )
    buffer_size: int = Field(100_000, ge=1, description="Decisions that the replay buffer keeps.")
    batch_size: int = Field(256, ge=1, description="Replayed decisions per gradient step.")
    learning_starts: int = Field(2000, ge=0, description="Random decisions before training.")
    train_every: int = Field(8, ge=1, description="Decisions between two gradient steps.")
    temperature: float = Field(
        0.05,
        gt=0,
        description="Weight of the entropy at first. It is learned, but in few gradient steps it "
        "does not get far from where it starts.",
    )
    tau: float = Field(0.01, gt=0, le=1, description="Share of the critics taken by their targets.")


DrlConfig = DqnConfig | PpoConfig | SurrogatePpoConfig | A2cConfig | GraphPpoConfig | GraphSacConfig
CONFIGS: dict[str, type[DrlConfig]] = {
    "dqn": DqnConfig,
    "ppo": PpoConfig,
    "ppo-surrogate": SurrogatePpoConfig,
    "a2c": A2cConfig,
    "graph-ppo": GraphPpoConfig,
    "graph-sac": GraphSacConfig,
}

PRESETS: dict[str, DrlConfig] = {
    "dqn": DqnConfig(),
    "dqn-tuned": DqnConfig(
        gamma=0.9,
        learning_starts=16,
        train_every=1,
        updates=4,
        target_update=100,
        epsilon_steps=200,
    ),
    "dqn-short-memory": DqnConfig(buffer_size=100, epsilon_end=0.2),
    "ppo": PpoConfig(),
    "ppo-tuned": PpoConfig(
        gamma=0.9, learning_rate=1e-3, rollout=64, batch_size=32, gae_lambda=0.5, entropy=0.01
    ),
    "ppo-split": PpoConfig(learning_rate=1e-3, rollout=4_000, batch_size=500, entropy=0.001),
    "a2c": A2cConfig(),
    "han-ppo": GraphPpoConfig(),
    "mlp-ppo": GraphPpoConfig(network="mlp", hidden=(128, 128)),
    "han-sac": GraphSacConfig(),
    "mlp-sac": GraphSacConfig(network="mlp", hidden=(128, 128)),
    "han-ppo-no-impact": GraphPpoConfig(extra=False),
    "han-sac-paper": GraphSacConfig(extra=False),
}

SPLITTING_PPO: dict[str, Any] = {
    "hidden": (64, 64),
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "clip_range": 0.2,
    "rollout": 400,
    "batch_size": 100,
    "gae_lambda": 0.95,
}
"""PPO in Table III of Chen et al.; layers, activation, epochs: Stable-Baselines3's defaults, as in
their public code."""

PAPER: dict[str, dict[str, DrlConfig]] = {
    "dqn-paper": {
        # Table I of Mekrache et al.; from learning_starts on: left open there
        "slo-scheduling": DqnConfig(
            learning_rate=1e-3,
            gamma=0.99,
            buffer_size=50_000,
            batch_size=32,
            epsilon_start=0.1,
            epsilon_end=0.05,
            epsilon_steps=10_000,
            learning_starts=100,
            train_every=1,
            target_update=2_000,
        ),
        # Abbaraju, Section IV; from learning_starts on: left open there
        "load-balancing": DqnConfig(
            learning_rate=3e-4,
            gamma=0.99,
            buffer_size=50_000,
            learning_starts=1_000,
            epsilon_steps=20_000,
            train_every=8,
            target_update=2_000,
        ),
        # Chen et al. give none: defaults of Stable-Baselines3, exploration over a tenth of it all
        "layer-splitting": DqnConfig(
            hidden=(64, 64),
            learning_rate=1e-4,
            gamma=0.99,
            buffer_size=24_000,
            epsilon_steps=2_400,
            target_update=10_000,
        ),
    },
    "ppo-paper": {
        "load-balancing": PpoConfig(
            activation="relu",
            learning_rate=3e-4,
            gamma=0.99,
            rollout=8_192,
            batch_size=256,
            entropy=0.003,
        ),
        "layer-splitting": PpoConfig(**SPLITTING_PPO),
    },
    "ppo-surrogate": {"layer-splitting": SurrogatePpoConfig(**SPLITTING_PPO)},
    "ppo-surrogate-shipped": {"layer-splitting": PpoConfig(**SPLITTING_PPO)},
    "a2c-paper": {
        "load-balancing": A2cConfig(activation="relu", learning_rate=3e-4, gamma=0.99, rollout=40),
        # Chen et al. give none: defaults of Stable-Baselines3
        "layer-splitting": A2cConfig(hidden=(64, 64), learning_rate=7e-4, gamma=0.99, rollout=5),
    },
}
"""Settings of the papers, by policy and problem."""

SPLITTING_BUDGET = 24_000
"""Decisions in Table IV of Chen et al."""

PAPER_BUDGETS: dict[str, dict[str, int]] = {
    "dqn-paper": {
        "slo-scheduling": 10_000,
        "load-balancing": 400_000,
        "load-balancing scenario=nominal": 200_000,
        "layer-splitting": SPLITTING_BUDGET,
    },
    "ppo-paper": {
        "load-balancing": 400_000,
        "load-balancing scenario=nominal": 200_000,
        "layer-splitting": SPLITTING_BUDGET,
    },
    "ppo-surrogate": {"layer-splitting": SPLITTING_BUDGET},
    "ppo-surrogate-shipped": {"layer-splitting": SPLITTING_BUDGET},
    "a2c-paper": {"load-balancing": 100_000, "layer-splitting": SPLITTING_BUDGET},
}
"""Decisions that the papers' policies learn from: Table I of Mekrache et al., PPO's of Abbaraju.
A2C, of which the latter says "comparable", has fewer: its updates are small and many."""

PAPER_ENVS: dict[str, dict[str, int]] = {
    "dqn-paper": {"slo-scheduling": 1, "load-balancing": 64, "layer-splitting": 8},
    "ppo-paper": {"load-balancing": 64, "layer-splitting": 80},
    "ppo-surrogate": {"layer-splitting": 80},
    "ppo-surrogate-shipped": {"layer-splitting": 80},
    "a2c-paper": {"load-balancing": 8, "layer-splitting": 1},
}
"""Sub-environments that they learn in; 80 episodes of 5 decisions are a rollout of 400."""

PPO_BALANCING = PpoConfig(
    activation="relu",
    learning_rate=1e-3,
    rollout=8_192,
    batch_size=1_024,
    epochs=8,
    entropy=0.003,
    keep_best=100_000,
)
"""``ppo-tuned`` on load balancing: large batches, since one burst of arrivals says little."""


def preset(name: str, problem: str) -> DrlConfig:
    """Return the settings that the policy ``name`` has on the problem of this name.

    Args:
        name: ``dqn``, ``dqn-paper``, ...
        problem: Name of the problem; the settings of a paper depend on it, and
            those of ``ppo-tuned``.

    Raises:
        ConfigurationError: No such policy, or no paper has it for this problem.
    """
    if (name, problem) == ("ppo-tuned", "load-balancing"):
        return PPO_BALANCING
    if name in PRESETS:
        return PRESETS[name]
    if name not in PAPER:
        raise unknown_name("preset", name, (*PRESETS, *PAPER))
    if problem not in PAPER[name]:
        raise ConfigurationError(
            f"policy '{name}' was asked about '{problem}'; allowed: {', '.join(PAPER[name])}."
        )
    return PAPER[name][problem]
