"""Whether an environment is still the one that weights were trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from icl_optimizer.baselines.drl_config import preset
from icl_optimizer.columns import Category
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.problem import Problem

if TYPE_CHECKING:
    from icl_optimizer.baselines.weights.index import Entry

PROBE_ENVS, PROBE_STEPS = 8, 40
PROBE_TOLERANCE = 1e-3
"""Relative; other platforms round the last digits of a simulation differently."""


def parameters_of(environment: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter of the environment with ``settings``, as plain JSON values."""
    return get_spec(environment).config(settings).model_dump(mode="json")


def completed(environment: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with the defaults of those that were added since."""
    return parameters_of(environment, {}) | dict(parameters)


def learner_settings(policy: str, problem: str) -> dict[str, Any]:
    """Return the configuration of a deep-RL policy, and what is different while it learns."""
    from icl_optimizer.policies import get_policy_spec

    settings: dict[str, Any] = preset(policy, problem).model_dump(mode="json")
    training = dict(get_policy_spec(policy).training)
    return settings | ({"training": training} if training else {})


def problem_identity(problem: Problem) -> str:
    """Return a digest of what a network must know: labels, and how columns are encoded."""
    columns = [
        {"name": c.name, "words": list(c.words), "learned": c.learned}
        if isinstance(c, Category)
        else {"name": c.name, "low": c.low, "high": c.high}
        for c in problem.columns
    ]
    known = {"labels": list(problem.labels), "columns": columns}
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def probe(environment: str, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the mean reward and the mean features that fixed decisions meet.

    They move with whatever is no parameter: tables of data, the dynamics themselves.
    """
    env = make(environment, PROBE_ENVS, **settings)
    observations, _ = env.reset(seed=0)
    actions = np.random.default_rng(0).integers(
        len(env.problem.labels), size=(PROBE_STEPS, PROBE_ENVS)
    )
    features, rewards = [], []
    for action in actions:
        features.append(env.problem.encode(observations).mean(axis=0))
        observations, reward, *_ = env.step(action)
        rewards.append(reward.mean())
    means = np.concatenate([[np.mean(rewards)], np.mean(features, axis=0)])
    return tuple(float(f"{value:.6g}") for value in means)


@lru_cache(maxsize=16)
def _probe_now(environment: str, settings: str) -> tuple[float, ...]:
    """Return the probe of the present environment; many files of weights share one."""
    return probe(environment, json.loads(settings))


def misfit(entry: Entry) -> str | None:
    """Return what has changed since the weights of ``entry`` were trained; None if nothing has."""
    then = completed(entry.environment, entry.parameters)
    if parameters_of(entry.environment, entry.settings) != then:
        return "parameters"
    problem = make(entry.environment, 1, **entry.settings).problem
    if problem_identity(problem) != entry.problem:
        return "labels or columns"
    if learner_settings(entry.policy, problem.name) != entry.policy_settings:
        return f"settings of '{entry.policy}'"
    now = _probe_now(entry.environment, json.dumps(entry.settings))
    if not np.allclose(now, entry.probe, rtol=PROBE_TOLERANCE, atol=1e-6):
        return "dynamics or data"
    return None
