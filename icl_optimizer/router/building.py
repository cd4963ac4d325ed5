"""From a fleet and a policy's name to a policy that decides in front of that fleet."""

from __future__ import annotations

from typing import Any

import numpy as np

from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.fleet.config import FleetConfig
from icl_optimizer.environments.fleet.twin import scheduling_config
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv, build_problem
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.policies import get_policy_spec, make_policy, policy_names
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem
from icl_optimizer.rollout import Rollout
from icl_optimizer.router.settings import RARELY, RouterSettings


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


def router_policy(name: str, config: FleetConfig, settings: RouterSettings) -> Policy:
    """Return the policy ``name`` in front of a fleet, with what it can know before it begins.

    Deep reinforcement learning comes trained. Whatever else learns has seen ``settings.warm_up``
    requests to the fleet's twin, sent at random, and explores rarely; where the fleet's file does
    not say how long answers are (``mean_tokens``) there is no twin to learn from, and it tries
    everything once.

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
            f"icl-optimizer train {name} slo-scheduling --set @twin.yaml --set cancel_late=false "
            "--out AGENT (the router does not break answers off at the deadline), and give it "
            "as --agent AGENT."
        )
    described = all(server.mean_tokens for server in config.servers)
    exploration = settings.exploration or RARELY.model_copy(
        update={"try_all_first": not (described and settings.warm_up)}
    )
    options = dict(settings.options)
    own: dict[str, Any] = {}
    if spec.needs_llm:
        tried = exploration.model_dump()
        options = {f"exploration.{key}": value for key, value in tried.items()} | options
    elif spec.learns and not spec.is_drl:
        own = {"exploration": exploration}
    policy = make_policy(
        name,
        fleet_problem(config),
        model=open_llm(settings.llm) if spec.needs_llm else None,
        seed=settings.seed,
        options=options,
        **own,
    )
    if settings.agent is not None:
        policy.load(settings.agent)
    elif spec.learns and settings.warm_up and described:
        policy.learn_from(twin_outcomes(config, settings.warm_up, settings.seed))
    return policy


def twin_outcomes(config: FleetConfig, requests: int, seed: int) -> list[Outcome]:
    """Return what came of ``requests`` simulated ones that were sent to random servers.

    They come as fast as the servers can answer most of them, so that queues of all lengths occur.
    """
    twin = scheduling_config(config, cancel_late=False)
    slots = np.array([server.slots for server in config.servers])
    rate = float((slots / twin.mean_service.mean(axis=0)).sum())
    horizon = 50
    twin = scheduling_config(
        config, cancel_late=False, arrival_rate=min(rate, 100.0), horizon=horizon
    )
    env = SLOSchedulingVectorEnv(-(-requests // horizon), twin)
    rollout = Rollout(RandomPolicy(env.problem, seed=seed), env, explore=False)
    rollout.reset(seed=seed)
    outcomes = [o for _ in range(horizon) for o in rollout.step()[1]]
    return outcomes[:requests]


def thinks_long(name: str) -> bool:
    """Return whether a decision of this policy may have to wait for a language model."""
    return get_policy_spec(name).needs_llm
