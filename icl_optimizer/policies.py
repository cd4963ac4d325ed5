"""The policies by name, those of other packages included."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, invalid_fields, unknown_name
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.policy import Policy
from icl_optimizer.policy_spec import Factory, PolicySpec, Request
from icl_optimizer.problem import Problem
from icl_optimizer.shipped_policies import ICL_PRESETS, SHIPPED, options_of

ENTRY_POINT_GROUP = "icl_optimizer.policies"
_SPECS = {spec.name: spec for spec in SHIPPED}


def policy_names(problem: str | None = None) -> list[str]:
    """Return the names of all policies, or of those that suit the problem of this name."""
    names = sorted(set(_SPECS) | {e.name for e in entry_points(group=ENTRY_POINT_GROUP)})
    if problem is None:
        return names
    return [name for name in names if get_policy_spec(name).suits(problem)]


def get_policy_spec(name: str) -> PolicySpec:
    """Return the policy ``name``; an error names the nearest one that exists."""
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
    prompts: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Policy:
    """Return a new policy.

    Args:
        name: One of :func:`policy_names`.
        problem: Labels and columns, ``env.problem``.
        env: Environment to learn in; not needed to decide or to learn from a log.
        model: The language model, for the policies that need one.
        seed: Seeds everything random in the policy.
        prompts: Folder with the user's own templates, for the in-context policies.
        options: Options of the in-context policies; a comparison hands the same to all, and the
            others have no use for them.
        **settings: Fields of this policy's own configuration that differ from its preset.

    Raises:
        ConfigurationError: Unknown name, setting or value, an unsuitable problem, or no model.
        MissingDependencyError: An optional package that the policy needs is not installed.
    """
    spec = get_policy_spec(name)
    if not spec.suits(problem.name, problem.roles):
        raise unsuitable(spec, problem.name)
    request = Request(name, problem, env, model, seed, prompts, options or {}, settings)
    try:
        return spec.factory(request)
    except ValidationError as error:
        raise invalid_fields(f"policy '{name}'", error) from error


def unsuitable(spec: PolicySpec, problem: str) -> ConfigurationError:
    """Return the error for a policy that is not made for the problem of this name."""
    return ConfigurationError(
        f"policy '{spec.name}' was asked about '{problem}'; "
        f"allowed: {', '.join(spec.environments or ())}."
    )


__all__ = [
    "ENTRY_POINT_GROUP",
    "ICL_PRESETS",
    "Factory",
    "PolicySpec",
    "Request",
    "get_policy_spec",
    "make_policy",
    "options_of",
    "policy_names",
    "unsuitable",
]
