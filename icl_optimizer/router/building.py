"""From a fleet and a policy's name to a policy that decides in front of that fleet."""

from __future__ import annotations

from icl_optimizer.environments.fleet.config import FleetConfig
from icl_optimizer.environments.fleet.twin import scheduling_config
from icl_optimizer.environments.slo_scheduling import build_problem
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.policies import get_policy_spec, make_policy, policy_names
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem
from icl_optimizer.router.settings import RouterSettings


def fleet_problem(config: FleetConfig) -> Problem:
    """Return what policies decide about in front of a fleet: the problem of its twin.

    Raises:
        ConfigurationError: There is a single server, so that there is nothing to decide.
    """
    if len(config.servers) < 2:
        raise ConfigurationError(
            f"servers of the fleet are {', '.join(config.names)}; allowed: at least two, so that "
            "there is something to decide."
        )
    return build_problem(scheduling_config(config))


def router_policies() -> list[str]:
    """Return the names of the policies that can decide in front of a fleet."""
    names = policy_names("slo-scheduling")
    return [name for name in names if not get_policy_spec(name).needs_env]


def router_policy(name: str, problem: Problem, settings: RouterSettings) -> Policy:
    """Return the policy ``name`` for a router.

    Raises:
        ConfigurationError: It does not suit, or has to be trained first.
    """
    if name not in router_policies():
        raise unknown_name("policy of a router", name, router_policies())
    spec = get_policy_spec(name)
    if spec.is_drl and settings.agent is None:
        raise ConfigurationError(
            f"policy '{name}' has not learned; allowed: with an agent that was trained on the "
            "fleet's twin. Train it: icl-optimizer fleet measure FLEET --out twin.yaml, then "
            f"icl-optimizer train {name} slo-scheduling --set @twin.yaml --out AGENT, and give it "
            "as --agent AGENT."
        )
    model = open_llm(settings.llm) if spec.needs_llm else None
    policy = make_policy(name, problem, model=model, seed=settings.seed, options=settings.options)
    if settings.agent is not None:
        policy.load(settings.agent)
    return policy


def thinks_long(name: str) -> bool:
    """Return whether a decision of this policy may have to wait for a language model."""
    return get_policy_spec(name).needs_llm
