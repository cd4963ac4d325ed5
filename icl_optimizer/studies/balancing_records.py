"""What happened to each request of a held-out pass: the data behind pictures over time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.evaluation import HELD_OUT
from icl_optimizer.comparison.shipping import make_weights, shipped_weights
from icl_optimizer.comparison.unit import unit_budget
from icl_optimizer.environments.base import Outcomes
from icl_optimizer.environments.load_balancing import LoadBalancingVectorEnv
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.studies.balancing_plan import NAME, BalancingPlan
from icl_optimizer.studies.pieces import finish_pieces

SEED = 0
"""Repetition whose policies are recorded."""

Records = dict[str, dict[str, pd.DataFrame]]
"""Records by scenario and policy."""


def record(policy: Policy, settings: Mapping[str, Any], seed: int) -> pd.DataFrame:
    """Return what ``policy``, deciding greedily, does with each held-out request.

    Args:
        policy: Any policy for load balancing.
        settings: Parameters of the environment while learning.
        seed: Of the repetition; the pass is the one that a comparison evaluates on.

    Returns:
        One row per request, in order of arrival: ``request`` (its number), ``arrival_s``,
        ``tokens``, ``server`` (its number), ``response_s`` (NaN if dropped), ``late``,
        ``dropped``, ``queue_length`` (waiting at the chosen server when it came), ``reward``, and
        for each server ``load_J_s``: tokens in flight when the request came, in seconds of the
        server's whole capacity.
    """
    spec = get_spec(NAME)
    env = make(NAME, 1, autoreset=False, **{**settings, **spec.evaluation})
    assert isinstance(env, LoadBalancingVectorEnv), "the registry's"
    bind = getattr(policy, "bind", None)
    if bind is not None:
        bind(env)
    capacity = np.array([server.capacity for server in env.config.setup.servers])
    observations, _ = env.reset(seed=HELD_OUT + 1000 * seed)
    loads, finished = [], []
    for _ in range(env.problem.horizon):
        loads.append(env.queues.load[0] / capacity)
        actions, _ = policy.predict(observations, deterministic=True)
        observations, *_, info = env.step(actions)
        finished.append(_rows(info["outcomes"]))
    rows = pd.concat(finished).sort_values("request", ignore_index=True)
    first, end = env.requests.begin, env.requests.end
    arrival = env.requests.arrival_s[first:end]
    rows.insert(1, "arrival_s", arrival - arrival[0])
    rows.insert(2, "tokens", env.requests.tokens[first:end])
    columns = [f"load_{j}_s" for j in range(len(capacity))]
    return pd.concat([rows, pd.DataFrame(loads, columns=columns)], axis=1)


def _rows(outcomes: Outcomes) -> pd.DataFrame:
    metrics = outcomes.metrics
    dropped = metrics["dropped"] > 0
    return pd.DataFrame(
        {
            # a single environment counts its decisions from 0
            "request": outcomes.decision_id,
            "server": metrics["server"].astype(np.int64),
            "response_s": np.where(dropped, np.nan, metrics["response_time_s"]),
            "late": metrics["slo_violation"].astype(np.int64),
            "dropped": dropped.astype(np.int64),
            "queue_length": metrics["queue_length"].astype(np.int64),
            "reward": outcomes.reward,
        }
    )


def final_policy(config: ComparisonConfig, name: str, weights: Path) -> Policy:
    """Return the policy as it is after learning, with the seed :data:`SEED`.

    Deep RL comes with the package's weights where the comparison used these; elsewhere it is
    trained once more, since a comparison keeps no policies.

    Args:
        config: The comparison.
        name: Of the policy.
        weights: Folder for weights that are trained here.
    """
    spec, budget = get_policy_spec(name), unit_budget(config, name)
    env = make(NAME, spec.envs_in(NAME), **config.settings)
    policy = make_policy(
        name,
        env.problem,
        env=env,
        model=open_llm(config.llm) if spec.needs_llm else None,
        seed=SEED,
        prompts=config.prompts,
        options=config.icl,
    )
    if not spec.is_drl:
        return policy.learn(budget) if spec.learns else policy
    shipped = shipped_weights(config, name, SEED, budget)
    if shipped is not None:
        return policy.load(shipped[1])
    (path,) = make_weights(
        NAME,
        weights,
        policies=[name],
        seeds=SEED + 1,
        settings=config.settings,
        interactions=budget,
        progress_bar=False,
    )
    return policy.load(path)


def run_records(plan: BalancingPlan, folder: Path, *, progress_bar: bool = True) -> Records:
    """Record the final policies of every scenario; what is in ``folder`` is not done again."""
    paths = {
        (scenario, name): folder / "records" / scenario / f"{name}.csv"
        for scenario in plan.scenarios
        for name in plan.policies
    }
    pieces = {
        path: partial(_recorded, plan, scenario, name, folder / "weights" / scenario / name)
        for (scenario, name), path in paths.items()
    }
    finish_pieces("records", pieces, jobs=plan.jobs, progress_bar=progress_bar)
    return {
        scenario: {name: pd.read_csv(paths[scenario, name]) for name in plan.policies}
        for scenario in plan.scenarios
    }


def _recorded(plan: BalancingPlan, scenario: str, name: str, weights: Path) -> str:
    config = plan.comparison(scenario, seeds=SEED + 1)
    rows = record(final_policy(config, name, weights), config.settings, SEED)
    return str(rows.to_csv(index=False, float_format="%.6g"))
