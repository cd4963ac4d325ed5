"""What the registry knows about a policy, and what a policy is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.registry import EnvironmentSpec, get_spec, make
from icl_optimizer.errors import unknown_name
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem


@dataclass(frozen=True)
class Request:
    """What a policy is made from.

    Attributes:
        name: Name that the policy gets.
        problem: Labels and columns.
        env: Environment to learn in, if any.
        model: Language model, if any.
        seed: Seed of everything random in the policy.
        prompts: Folder with the user's own templates, if any.
        options: Options of the in-context agent; policies of other kinds have no use for them.
        settings: Fields of the policy's own configuration that differ from its preset.
    """

    name: str
    problem: Problem
    env: BatchedEnv | None = None
    model: LanguageModel | None = None
    seed: int = 0
    prompts: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def known_settings(self, *allowed: str) -> dict[str, Any]:
        """Return the settings, or raise an error that names the nearest allowed one."""
        for key in self.settings:
            if key not in allowed:
                raise unknown_name(f"setting of '{self.name}'", key, allowed)
        return dict(self.settings)


class Factory(Protocol):
    """A function that makes a policy."""

    def __call__(self, request: Request) -> Policy:
        """Return the policy that ``request`` describes."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name; other packages add theirs by entry point.

    Attributes:
        name: Name on the command line.
        summary: One line for listings.
        factory: Makes it.
        needs_llm: Whether it asks a language model.
        needs_env: Whether it must be bound to the environment that its decisions are for.
        learns: Whether experience changes it.
        steady: Whether every evaluation on the same tasks gives the same, so that one is enough.
        is_drl: Whether it is a deep-RL policy, which gets a budget of its own.
        budget: Decisions after which it has converged on offloading, with room to spare.
        budgets: The same where it differs, by environment, or by environment and a setting as in
            ``load-balancing scenario=nominal``.
        envs: Sub-environments where their number differs, by environment.
        training: Parameters of the environment that differ while it learns, as a reward without one
            of its components; it is evaluated like all others.
        num_envs: Sub-environments that it learns in by default.
        in_sweeps: Whether a comparison evaluates it at further parameter points, too.
        environments: Problems it is made for; None for all.
        roles: Roles of columns that are all it looks at: a problem that has one of them suits, too.
    """

    name: str
    summary: str
    factory: Factory
    needs_llm: bool = False
    needs_env: bool = False
    learns: bool = True
    steady: bool = False
    is_drl: bool = False
    budget: int = 0
    num_envs: int = 1
    in_sweeps: bool = True
    environments: tuple[str, ...] | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)
    envs: Mapping[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[str, ...] = ()

    def envs_in(self, environment: str) -> int:
        """Return the number of sub-environments that the policy learns in by default."""
        return self.envs.get(environment, self.num_envs)

    def training_settings(
        self, settings: Mapping[str, Any], environment: EnvironmentSpec | None = None
    ) -> dict[str, Any]:
        """Return the parameters of the environment that it learns in, where it runs with these."""
        alone = {} if environment is None or self.is_drl else environment.one_by_one
        return {**alone, **settings, **self.training}

    def training_env(self, environment: str, settings: Mapping[str, Any]) -> BatchedEnv:
        """Return what the policy learns in, where it runs in ``environment`` with ``settings``."""
        spec, given = get_spec(environment).learned_in(settings)
        learned = self.training_settings(given, spec)
        return make(spec.name, self.envs_in(spec.name), **learned)

    def budget_in(self, environment: str, settings: Mapping[str, Any]) -> int:
        """Return the policy's own budget in ``environment`` with ``settings``."""
        for key, value in settings.items():
            special = self.budgets.get(f"{environment} {key}={value}")
            if special is not None:
                return special
        return self.budgets.get(environment, self.budget)

    def suits(self, problem: str, roles: Collection[str] = ()) -> bool:
        """Return whether the policy can decide in the problem of this name, with these roles."""
        named = self.environments is None or problem in self.environments
        return named or not set(self.roles).isdisjoint(roles)
