"""One unit of a comparison: a policy learns with one seed and is evaluated on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.comparison.explain import explain
from icl_optimizer.comparison.statistics import interactions_to
from icl_optimizer.deciders import DeciderCounts
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.usage import Usage
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy

SHARE_OF_ORACLE = 0.95
LATENCY_CALLS = 50

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Row:
    """One line of ``results.csv``."""

    environment: str
    scenario: str
    policy: str
    llm: str
    seed: int
    split: str
    step: int
    metric: str
    value: float


@dataclass
class UnitResult:
    """What a unit measured: rows, rows in seconds, and what to show of its prompts."""

    rows: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    explanation: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UnitResult:
        """Return the unit that :meth:`to_json` described."""
        rows, timings = ([Row(**r) for r in data[k]] for k in ("rows", "timings"))
        return cls(rows, timings, data["explanation"])


class Unit:
    """Runs one policy with one seed.

    Args:
        config: The comparison.
        policy: Name of the policy.
        seed: Seed of the repetition.
        model: Language model where the policy needs one.
    """

    def __init__(
        self, config: ComparisonConfig, policy: str, seed: int, model: LanguageModel | None
    ) -> None:
        """Build environment, policy and held-out tasks."""
        self.config = config
        self.seed = seed
        self.spec = get_policy_spec(policy)
        self.model = model if self.spec.needs_llm else None
        self.budget = unit_budget(config, policy)
        env = make(config.environment, self.spec.num_envs, **config.settings)
        self.policy: Policy = make_policy(
            policy,
            env.problem,
            env=env,
            model=self.model,
            seed=seed,
            prompts=config.prompts,
            options=config.icl,
        )
        self.held = Held(config.environment, config.settings, seed, config.eval_tasks)
        self.result = UnitResult()
        self._away = 0.0
        self._evaluation_usage = Usage()
        self._curve: list[tuple[int, float]] = []
        self._rewards: list[float] = []

    def run(self, advance: Advance) -> UnitResult:
        """Learn, evaluate at the checkpoints and at further points; report progress."""
        if self.model is not None:
            self.model.reset()
        started, before = time.perf_counter(), self._usage()
        if self.spec.learns:
            self._learn(advance)
        else:
            for point in self.config.checkpoints(self.budget):
                self._evaluate(point)
            advance(self.budget)
        seconds = time.perf_counter() - started - self._away
        self._costs(self._usage() - before - self._evaluation_usage, seconds)
        if self.config.sweeps and self.spec.in_sweeps:
            self._sweep()
        self.result.explanation = explain(self.policy, self.held) if self.seed == 0 else None
        return self.result

    def _learn(self, advance: Advance) -> None:
        points = self.config.checkpoints(self.budget)
        done = 0

        def after_step(scope: dict[str, Any], _: dict[str, Any]) -> bool:
            nonlocal done
            now = self.policy.num_timesteps
            self._rewards.extend(np.asarray(scope["rewards"]).ravel().tolist())
            while points and now >= points[0]:
                self._evaluate(points.pop(0))
            advance(now - done)
            done = now
            return True

        self.policy.learn(self.budget, callback=after_step)
        for point in points:
            self._evaluate(point)
        for step, reward in enumerate(self._rewards[: self.config.interactions], start=1):
            self._add(self.config.scenario, "train", step, {"reward": reward})

    def _evaluate(self, step: int) -> None:
        started, before = time.perf_counter(), self._usage()
        with _off_the_record(self.policy):
            metrics = self.held.evaluate(self.policy)
        self._add(self.config.scenario, "eval", step, metrics)
        self._curve.append((step, metrics["optimality"]))
        self._away += time.perf_counter() - started
        self._evaluation_usage = self._evaluation_usage + (self._usage() - before)

    def _sweep(self) -> None:
        for point in get_spec(self.config.environment).sweep_points(self.config.settings):
            settings = {**self.config.settings, **point.settings}
            held = Held(self.config.environment, settings, self.seed, self.config.eval_tasks)
            metrics = held.evaluate(self.policy, bounds=False)
            self._add(point.name, "eval", self.budget, metrics)

    def _costs(self, usage: Usage, seconds: float) -> None:
        made_by = getattr(self.policy, "made_by", {})
        steps, optimality = zip(*self._curve, strict=True)
        costs: dict[str, float] = {
            "interactions": float(self.budget if self.spec.learns else 0),
            "interactions_to_95": interactions_to(steps, optimality, SHARE_OF_ORACLE),
        }
        if self.model is not None:
            decider = getattr(self.policy, "decider", None)
            counts = DeciderCounts() if decider is None else decider.counts
            asked = max(counts.asked, 1)
            costs |= {
                "llm_calls": float(usage.calls),
                "llm_cached": float(made_by.get("cache", 0)),
                "prompt_tokens": float(usage.prompt_tokens),
                "invalid_rate": counts.invalid / asked,
                "fallback_rate": counts.fallback / asked,
            }
        self._add(self.config.scenario, "train", self.budget, costs)
        p50, p95 = np.percentile(self._latencies(), [50, 95]) * 1000
        times = {"train_s": seconds, "decision_ms_p50": p50, "decision_ms_p95": p95}
        self._add(self.config.scenario, "train", self.budget, times, clock=True)

    def _latencies(self) -> list[float]:
        """Return seconds per single decision: as met while learning, else measured now."""
        met: list[float] = getattr(self.policy, "latencies", [])
        if met:
            return met
        observation, _ = self.held.env.reset(seed=self.held.seed)
        seconds = []
        for _ in range(LATENCY_CALLS):
            started = time.perf_counter()
            # the oracle answers for the whole batch it is bound to
            self.policy.decide(observation if self.spec.needs_env else observation[:1])
            seconds.append(time.perf_counter() - started)
        return seconds

    def _usage(self) -> Usage:
        return Usage() if self.model is None else self.model.usage.snapshot()

    def _add(
        self,
        scenario: str,
        split: str,
        step: int,
        metrics: dict[str, float],
        *,
        clock: bool = False,
    ) -> None:
        target = self.result.timings if clock else self.result.rows
        llm = "" if self.model is None else self.model.name
        for metric, value in metrics.items():
            row = Row(
                self.config.environment,
                scenario,
                self.spec.name,
                llm,
                self.seed,
                split,
                step,
                metric,
                float(value),
            )
            target.append(row)


@contextmanager
def _off_the_record(policy: Policy) -> Iterator[None]:
    """Keep evaluations out of what the policy counts of its own decisions."""
    counted = Counter(getattr(policy, "made_by", {}))
    latencies: list[float] = getattr(policy, "latencies", [])
    met = len(latencies)
    yield
    if counted or met or latencies:
        policy.made_by = counted  # type: ignore[attr-defined]
        del latencies[met:]


def unit_budget(config: ComparisonConfig, policy: str) -> int:
    """Return the interactions that ``policy`` learns from: the shared number, or its own larger."""
    spec = get_policy_spec(policy)
    if not spec.is_drl:
        return config.interactions
    return max(config.interactions, config.drl_interactions or spec.budget)
