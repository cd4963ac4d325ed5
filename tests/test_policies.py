"""The registry of policies."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from tiny_env import tiny_problem

from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import NO_EXPLORATION
from icl_optimizer.policies import (
    ENTRY_POINT_GROUP,
    PolicySpec,
    get_policy_spec,
    make_policy,
    options_of,
    policy_names,
)

FOREIGN = PolicySpec(
    "foreign", "always the first", lambda request: make_policy("random", request.problem)
)


@pytest.mark.parametrize("name", policy_names("offloading"))
def test_every_policy_without_a_language_model_decides(name: str) -> None:
    spec = get_policy_spec(name)
    env = make("offloading", 3)
    if spec.needs_llm:
        with pytest.raises(ConfigurationError, match="no language model"):
            make_policy(name, env.problem)
        return
    observation, _ = env.reset(seed=0)
    decisions = make_policy(name, env.problem, env=env).decide(observation)
    assert [d.label in env.problem.labels for d in decisions] == [True] * 3
    assert make_policy(name, env.problem).name == name
    assert bool(spec.budget) == spec.learns


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'dqn-tuned'"):
        make_policy("dqn-tunde", tiny_problem())


def test_policies_of_one_environment_refuse_others() -> None:
    assert "always-local" not in policy_names("tiny")
    with pytest.raises(ConfigurationError, match="was asked about 'tiny'; allowed: offloading"):
        make_policy("always-local", tiny_problem())


def test_options_merge_into_the_preset() -> None:
    assert options_of("icl-greedy", {}).exploration == NO_EXPLORATION
    config = options_of("icl-paper", {"exploration.start": "0.5", "max_examples": "4"})
    assert (config.exploration.start, config.exploration.try_all_first) == (0.5, False)
    assert (config.max_examples, config.replay) == (4, "prioritized")


@pytest.mark.parametrize(
    ("key", "near"), [("replya", "replay"), ("exploration.strat", "start"), ("replay.x", "")]
)
def test_unknown_options_name_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Did you mean '{near}'" if near else "unknown"):
        options_of("icl", {key: "1"})


def test_other_packages_add_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("foreign", "test_policies:FOREIGN", ENTRY_POINT_GROUP),
        EntryPoint("broken", "test_policies:np", ENTRY_POINT_GROUP),
    ]

    def entry_points(**_: Any) -> list[EntryPoint]:
        return entries

    monkeypatch.setattr("icl_optimizer.policies.entry_points", entry_points)
    assert "foreign" in policy_names()
    assert make_policy("foreign", tiny_problem()).decide(np.array([[0.0, 1.0]]))
    with pytest.raises(ConfigurationError, match="not a PolicySpec"):
        get_policy_spec("broken")
