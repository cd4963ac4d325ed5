"""What the study of load balancing runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icl_optimizer.comparison.config import ComparisonConfig, default_config
from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import ConfigurationError

NAME = "load-balancing"
LEAST_LOADED, ROUND_ROBIN = "least-loaded", "round-robin"
CALIBRATED = "calibrated"
POLICIES = get_spec(NAME).policies


@dataclass(frozen=True)
class BalancingPlan:
    """What to run; the defaults are the whole study.

    Attributes:
        scenarios: Of the environment; each is a comparison of its own.
        policies: Names; ``learner``, least loaded and round robin have to be among them.
        learner: Policy whose requests figures 6, 8 and 9 show, and that the ablation trains.
        interactions: Decisions that the policies other than deep RL learn from.
        drl_interactions: Budget of deep RL; None: each policy's own.
        train: Whether deep RL is trained anew even where the package has its weights; without it
            such policies have no learning curve.
        generalise: Whether policies that learned on one trace are run on the other, too.
        ablation_seeds: Repetitions of the ablation; 0 for none.
        ablation_interactions: Decisions that each of its policies learns from.
        llm: Language model of the in-context policies.
        settings: Further parameters of the environment, for every scenario.
        jobs: Processes.
    """

    scenarios: tuple[str, ...] = ("nominal", "high-load", CALIBRATED)
    policies: tuple[str, ...] = POLICIES
    learner: str = "ppo-tuned"
    interactions: int = 500
    drl_interactions: int | None = None
    train: bool = False
    generalise: bool = True
    ablation_seeds: int = 3
    ablation_interactions: int = 400_000
    llm: str = "llamacpp"
    settings: Mapping[str, Any] = field(default_factory=dict)
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse a plan whose figures and ratios would lack a policy."""
        needed = (self.learner, LEAST_LOADED, ROUND_ROBIN)
        if missing := [name for name in needed if name not in self.policies]:
            raise ConfigurationError(
                f"policies are {', '.join(self.policies)}; allowed: any that include "
                f"{' and '.join(missing)}."
            )

    def settings_in(self, scenario: str) -> dict[str, Any]:
        """Return the environment's parameters in ``scenario``."""
        return {"scenario": scenario, **self.settings}

    def environment(self, scenario: str) -> LoadBalancingConfig:
        """Return the environment's whole configuration in ``scenario``."""
        config = get_spec(NAME).config(self.settings_in(scenario))
        assert isinstance(config, LoadBalancingConfig), "of this environment"
        return config

    def comparison(self, scenario: str, seeds: int) -> ComparisonConfig:
        """Return the comparison of all policies in ``scenario``."""
        return default_config(
            NAME,
            settings=self.settings_in(scenario),
            policies=self.policies,
            seeds=seeds,
            interactions=self.interactions,
            drl_interactions=self.drl_interactions,
            train=self.train,
            sweeps=self.generalise,
            llm=self.llm,
        )
