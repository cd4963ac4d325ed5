"""How fast the agent that foresees decides: cold, with the model's prefixes, from kept answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from icl_optimizer.environments.registry import make
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.forecast_config import ForecastConfig
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.problem import Context
from icl_optimizer.rollout import progress

WINDOWS = (50, 100, 200, 350, 500, 1000, 2000)
"""Interactions at which the hit rate since the last one is reported."""
MEASURED = 40
"""Situations that each speed is measured on."""


def speed_rows(
    model: LanguageModel, environment: str = "slo-scheduling", *, progress_bar: bool
) -> list[list[str]]:
    """Return a table of decisions per second and of hit rates, the header first.

    Args:
        model: The language model.
        environment: Where decisions are made; one with columns of single decisions.
        progress_bar: Whether to draw one.
    """
    env = make(environment, 1)
    agent = ForecastAgent(env.problem, model, env=env, seed=0)
    rows = [["what", "value"]]
    done, before = 0, (0, 0)
    with progress("hit rate", WINDOWS[-1], shown=progress_bar) as advance:
        for end in WINDOWS:
            agent.learn(end - done)
            advance(end - done)
            now = agent.made_by["cache"], agent.made_by["cache"] + agent.made_by["llm"]
            hits, asked = now[0] - before[0], now[1] - before[1]
            rows.append([f"hit rate, interactions {done + 1}-{end}", f"{hits / max(asked, 1):.0%}"])
            done, before = end, now
    contexts = _situations(agent, environment)
    uncached = ForecastAgent(env.problem, model, ForecastConfig(cache=False))
    uncached.table = agent.table
    agent.decide(contexts)
    for name, policy, prepare in (
        ("cold: no prefix, no answer kept", uncached, model.reset),
        ("prefixes reused, no answer kept", uncached, lambda: None),
        ("answers kept", agent, lambda: None),
    ):
        rows.append([f"decisions/s, {name}", f"{_rate(policy, contexts, prepare):,.1f}"])
    return rows


def _situations(agent: ForecastAgent, environment: str) -> list[Context]:
    """Return situations as they are met, in order."""
    env = make(environment, MEASURED)
    observations, _ = env.reset(seed=7)
    rng = np.random.default_rng(0)
    for _ in range(10):
        observations, *_ = env.step(rng.integers(len(env.problem.labels), size=MEASURED))
    return agent.problem.describe_all(observations)


def _rate(
    agent: ForecastAgent, contexts: Sequence[Context], prepare: Callable[[], object]
) -> float:
    """Return decisions per second, one situation at a time."""
    spent = 0.0
    for context in contexts:
        prepare()
        started = time.perf_counter()
        agent.decide([context])
        spent += time.perf_counter() - started
    return len(contexts) / spent
