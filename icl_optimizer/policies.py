"""The policies by name, with what each needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from pydantic import ValidationError

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.baselines.bandit import BanditPolicy
from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import CONFIGS, PRESETS
from icl_optimizer.baselines.heuristics import ConstantPolicy, RandomPolicy
from icl_optimizer.baselines.knn import KnnPolicy
from icl_optimizer.baselines.oracle import OraclePolicy
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.exploration import NO_EXPLORATION, Exploration
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem

ENTRY_POINT_GROUP = "icl_optimizer.policies"


@dataclass(frozen=True)
class Request:
    """What a policy is made from.

    Attributes:
        name: Name that the policy gets.
        problem: Labels and columns.
        env: Environment to learn in, if any.
        model: Language model, if any.
        seed: Seed of everything random in the policy.
        settings: Fields of the policy's configuration that differ from its preset.
    """

    name: str
    problem: Problem
    env: BatchedEnv | None
    model: LanguageModel | None
    seed: int
    settings: Mapping[str, Any]


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
        needs_env_at_decision: Whether it must be bound to the environment of its decisions.
        learns: Whether experience changes it.
        budget: Decisions it learns from by default when asked to converge; 0 without learning.
        environments: Environments it is made for; None for all.
    """

    name: str
    summary: str
    factory: Factory
    needs_llm: bool = False
    needs_env_at_decision: bool = False
    learns: bool = True
    budget: int = 0
    environments: tuple[str, ...] | None = None

    def suits(self, environment: str) -> bool:
        """Return whether the policy can decide in the environment of this name."""
        return self.environments is None or environment in self.environments


def policy_names(environment: str | None = None) -> list[str]:
    """Return the names of all policies, or of those that suit ``environment``."""
    names = sorted(set(_SPECS) | {e.name for e in entry_points(group=ENTRY_POINT_GROUP)})
    if environment is None:
        return names
    return [name for name in names if get_policy_spec(name).suits(environment)]


def get_policy_spec(name: str) -> PolicySpec:
    """Return the policy ``name``, shipped or of another package."""
    if name in _SPECS:
        return _SPECS[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            spec = entry.load()
            if not isinstance(spec, PolicySpec):
                raise ConfigurationError(f"entry point '{name}' is not a PolicySpec.")
            return spec
    raise unknown_name("policy", name, policy_names())


def make_policy(
    name: str,
    problem: Problem,
    *,
    env: BatchedEnv | None = None,
    model: LanguageModel | None = None,
    seed: int = 0,
    **settings: Any,
) -> Policy:
    """Return a new policy.

    Args:
        name: One of :func:`policy_names`.
        problem: Labels and columns, ``env.problem``.
        env: Environment to learn in; not needed to decide or to learn from a log.
        model: The language model, for the policies that need one.
        seed: Seeds everything random in the policy.
        **settings: Fields of the policy's configuration that differ from its preset.

    Raises:
        ConfigurationError: Unknown name or setting, an unsuitable problem, or no model.
    """
    spec = get_policy_spec(name)
    if not spec.suits(problem.name):
        allowed = ", ".join(spec.environments or ())
        raise ConfigurationError(f"policy '{name}' suits {allowed}; not '{problem.name}'.")
    if spec.needs_llm and model is None:
        raise ConfigurationError(f"policy '{name}' has no language model; allowed: model=....")
    try:
        return spec.factory(Request(name, problem, env, model, seed, settings))
    except ValidationError as error:
        lines = [
            f"policy '{name}': {'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg']}."
            for e in error.errors()
        ]
        raise ConfigurationError("\n".join(lines)) from error


def _known(request: Request, allowed: Mapping[str, Any] | tuple[str, ...]) -> dict[str, Any]:
    """Return the settings, or raise an error that names the nearest valid one."""
    for key in request.settings:
        if key not in allowed:
            raise unknown_name(f"setting of '{request.name}'", key, allowed)
    return dict(request.settings)


def _icl(preset: Mapping[str, Any]) -> Factory:
    def make(request: Request) -> Policy:
        assert request.model is not None, "make_policy checks it"
        settings = _known(request, ICLConfig.model_fields)
        config = ICLConfig(**{**preset, **settings})
        agent = ICLAgent(
            request.problem, request.model, config, env=request.env, seed=request.seed
        )
        agent.name = request.name
        return agent

    return make


def _drl(request: Request) -> Policy:
    preset = PRESETS[request.name]
    cls = CONFIGS[preset.algorithm]
    config = cls(**{**preset.model_dump(), **_known(request, cls.model_fields)})
    return DrlPolicy(
        request.problem, config, name=request.name, env=request.env, seed=request.seed
    )


def _random(request: Request) -> Policy:
    _known(request, ())
    return RandomPolicy(request.problem, env=request.env, seed=request.seed)


def _always(action: int) -> Factory:
    def make(request: Request) -> Policy:
        _known(request, ())
        return ConstantPolicy(request.problem, action, name=request.name, env=request.env)

    return make


def _oracle(request: Request) -> Policy:
    _known(request, ())
    return OraclePolicy(request.problem, env=request.env, seed=request.seed)


def _bandit(request: Request) -> Policy:
    settings = _known(request, ("exploration",))
    return BanditPolicy(request.problem, env=request.env, seed=request.seed, **settings)


def _knn(request: Request) -> Policy:
    settings = _known(request, ("exploration", "k", "capacity"))
    return KnnPolicy(request.problem, env=request.env, seed=request.seed, **settings)


_PAPER = {
    "replay": "prioritized",
    "exploration": Exploration(try_all_first=False),
}
_SPECS = {
    spec.name: spec
    for spec in (
        PolicySpec("icl", "in-context learning", _icl({}), needs_llm=True, budget=100),
        PolicySpec(
            "icl-latest",
            "in-context learning, only the latest experience (baseline 1 of Zhou et al.)",
            _icl({"replay": "latest"}),
            needs_llm=True,
            budget=100,
        ),
        PolicySpec(
            "icl-greedy",
            "in-context learning without exploration (baseline 2 of Zhou et al.)",
            _icl({"exploration": NO_EXPLORATION}),
            needs_llm=True,
            budget=100,
        ),
        PolicySpec(
            "icl-paper",
            "in-context learning with the replay and exploration of Zhou et al.",
            _icl(_PAPER),
            needs_llm=True,
            budget=100,
        ),
        PolicySpec("dqn", "deep Q-learning, common settings", _drl, budget=5000),
        PolicySpec("dqn-tuned", "deep Q-learning, tuned to need few decisions", _drl, budget=1000),
        PolicySpec("ppo", "proximal policy optimisation, common settings", _drl, budget=10000),
        PolicySpec("ppo-tuned", "the same, tuned to need few decisions", _drl, budget=2000),
        PolicySpec("a2c", "advantage actor-critic", _drl, budget=10000),
        PolicySpec("bandit", "mean reward per context and decision", _bandit, budget=500),
        PolicySpec("knn", "nearest neighbours on the observation", _knn, budget=500),
        PolicySpec("random", "every decision with the same chance", _random, learns=False),
        PolicySpec(
            "oracle",
            "tries every decision on the environment itself (immediate reward)",
            _oracle,
            needs_env_at_decision=True,
            learns=False,
        ),
        PolicySpec(
            "always-local",
            "always the edge model",
            _always(0),
            learns=False,
            environments=("offloading",),
        ),
        PolicySpec(
            "always-offload",
            "always the cloud model",
            _always(1),
            learns=False,
            environments=("offloading",),
        ),
    )
}

__all__ = ["Factory", "PolicySpec", "Request", "get_policy_spec", "make_policy", "policy_names"]
