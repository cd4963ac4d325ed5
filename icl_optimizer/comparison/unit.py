"""One unit of a comparison: a policy learns with one seed and is evaluated on the way."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.comparison.explain import explain
from icl_optimizer.comparison.live import LiveHeld, held_out
from icl_optimizer.comparison.model_use import model_use
from icl_optimizer.comparison.shipping import shipped_weights
from icl_optimizer.comparison.statistics import interactions_to
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.guard import spent
from icl_optimizer.llm.prices import Prices
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
    """What a unit measured.

    Attributes:
        rows: What the decisions alone determine.
        timings: What depends on the clock, the network or an earlier run's cache.
        explanation: What to show of its prompts.
        model_use: What was asked of language models, see :class:`~.model_use.ModelUse`.
    """

    rows: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    explanation: dict[str, Any] | None = None
    model_use: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UnitResult:
        """Return the unit that :meth:`to_json` described."""
        rows, timings = ([Row(**r) for r in data[k]] for k in ("rows", "timings"))
        return cls(rows, timings, data["explanation"], data.get("model_use"))


class Unit:
    """Runs one policy with one seed.

    Args:
        config: The comparison.
        policy: Name of the policy.
        seed: Seed of the repetition.
        model: Language model where the policy needs one.
        prices: What models cost; None for the shipped list prices.
    """

    def __init__(
        self,
        config: ComparisonConfig,
        policy: str,
        seed: int,
        model: LanguageModel | None,
        prices: Prices | None = None,
    ) -> None:
        """Build environment, policy and held-out tasks."""
        self.config = config
        self.seed = seed
        self.spec = get_policy_spec(policy)
        self.model = model if self.spec.needs_llm else None
        self.prices = prices or Prices.load()
        self.budget = unit_budget(config, policy)
        self.shipped = shipped_weights(config, policy, seed, self.budget)
        self.env = self.spec.training_env(config.environment, config.settings)
        if self.model is not None:
            # failures are replayed in the order in which this very unit met them
            self.model.begin_recording(f"{_digest(config)}/{policy}/{seed}")
        self.policy: Policy = make_policy(
            policy,
            self.env.problem,
            env=self.env,
            model=self.model,
            seed=seed,
            prompts=config.prompts,
            options=config.icl,
        )
        self.held: Held | LiveHeld = held_out(
            config.environment, config.settings, seed, config.eval_tasks
        )
        self.result = UnitResult()
        self._metrics: dict[str, float] | None = None
        self._away = 0.0
        self._evaluation_usage = Usage()
        self._evaluation_dollars = 0.0
        self._curve: list[tuple[float, float]] = []
        self._rewards: list[float] = []

    def run(self, advance: Advance) -> UnitResult:
        """Learn, evaluate at the checkpoints and at further points; report progress."""
        if self.model is not None:
            self.model.reset()
        if isinstance(self.held, LiveHeld):
            self.held.on_task = advance
        started, before, paid = time.perf_counter(), self._usage(), self._dollars()
        if self.shipped is not None:
            self.policy.load(self.shipped[1])
            self._evaluate(self.budget)
            advance(self.budget)
        elif self.spec.learns:
            self._learn(advance)
        else:
            for _, event in self._agenda():
                event()
            advance(self.budget)
        seconds = time.perf_counter() - started - self._away
        usage = self._usage() - before - self._evaluation_usage
        self._costs(usage, self._dollars() - paid - self._evaluation_dollars, seconds)
        if self.config.sweeps and self.spec.in_sweeps:
            self._sweep()
        if self.seed == 0:
            self.result.explanation = explain(self.policy, self.held.rehearsal)
        return self.result

    def _learn(self, advance: Advance) -> None:
        agenda = self._agenda()
        done = 0

        def after_step(scope: dict[str, Any], _: dict[str, Any]) -> bool:
            nonlocal done
            now = self.policy.num_timesteps
            self._rewards.extend(np.asarray(scope["rewards"]).ravel().tolist())
            while agenda and now >= agenda[0][0]:
                agenda.pop(0)[1]()
            advance(now - done)
            done = now
            return True

        self.policy.learn(self.budget, callback=after_step)
        for _, event in agenda:
            event()
        for step, reward in enumerate(self._rewards[: self.config.interactions], start=1):
            self._add(self.config.scenario, "train", step, {"reward": reward})

    def _agenda(self) -> list[tuple[int, Callable[[], None]]]:
        """Return what is due after how many decisions: evaluations, and the drift if any."""
        agenda: list[tuple[int, Callable[[], None]]] = [
            (point, partial(self._evaluate, point)) for point in self._checkpoints()
        ]
        if self.config.drift_at is not None:
            agenda.append((self.config.drift_at, self._drift))
        # a stable order: the evaluation at the drift still meets the old environment
        return sorted(agenda, key=lambda item: item[0])

    def _checkpoints(self) -> list[int]:
        """Return when to evaluate; live, where that takes its time, only at the end."""
        if isinstance(self.held, LiveHeld):
            return [self.budget]
        return self.config.checkpoints(self.budget)

    def _drift(self) -> None:
        """Let the environment change under the policy, and the held-out tasks with it."""
        config = self.config
        environment = get_spec(config.environment)
        changed = self.spec.training_settings(config.final_settings, environment)
        self.env.change(environment.config(changed))
        self._metrics = None
        self.held = held_out(
            config.environment, config.final_settings, self.seed, config.eval_tasks
        )

    def _evaluate(self, step: int) -> None:
        started, before, paid = time.perf_counter(), self._usage(), self._dollars()
        if self._metrics is None or not self.spec.steady:
            with _off_the_record(self.policy):
                self._metrics = self.held.evaluate(self.policy)
        metrics = self._metrics
        self._add(self.config.scenario, "eval", step, metrics)
        if "optimality" in metrics:
            self._curve.append((step, metrics["optimality"]))
        self._away += time.perf_counter() - started
        self._evaluation_usage = self._evaluation_usage + (self._usage() - before)
        self._evaluation_dollars += self._dollars() - paid

    def _sweep(self) -> None:
        final = self.config.final_settings
        for point in get_spec(self.config.environment).sweep_points(final):
            settings = {**final, **point.settings}
            held = Held(self.config.environment, settings, self.seed, self.config.eval_tasks)
            metrics = held.evaluate(self.policy, bounds=False)
            self._add(point.name, "eval", self.budget, metrics)

    def _costs(self, usage: Usage, dollars: float, seconds: float) -> None:
        made_by = getattr(self.policy, "made_by", {})
        costs: dict[str, float] = {
            "interactions": float(self.budget if self.spec.learns else 0),
            # how soon it learned is not known of weights that were trained before
            **({"shipped_weights": 1.0} if self.shipped else self._speed()),
        }
        if self.model is not None:
            use = model_use(self.policy)
            costs |= {
                "llm_calls": float(usage.calls),
                "llm_cached": float(made_by.get("cache", 0)),
                "prompt_tokens": float(usage.prompt_tokens),
                "completion_tokens": float(usage.completion_tokens),
            }
            if use is not None:
                costs |= {"invalid_rate": use.invalid_rate, "fallback_rate": use.fallback_rate}
                self.result.model_use = use.to_json()
            # not a number where a price is not known, so that nobody takes it for free
            costs["cost_usd"] = dollars
        self._add(self.config.scenario, "train", self.budget, costs)
        p50, p95 = np.percentile(self._latencies(), [50, 95]) * 1000
        times = {"decision_ms_p50": p50, "decision_ms_p95": p95}
        if self.shipped is None:
            times["train_s"] = seconds
        if self.model is not None:
            times |= {
                "llm_disk_cached": float(usage.cached),
                "llm_retries": float(usage.retries),
                "llm_failures": float(usage.failures),
            }
            for percent in (50, 95):
                latency = usage.latency_ms(percent)
                if latency is not None:
                    times[f"llm_ms_p{percent}"] = latency
        self._add(self.config.scenario, "train", self.budget, times, clock=True)

    def _speed(self) -> dict[str, float]:
        """Return how many interactions it took to learn, and after a drift to recover.

        Nothing where there is no oracle to tell.
        """
        if not self._curve:
            return {}
        drift_at = math.inf if self.config.drift_at is None else self.config.drift_at
        before = [point for point in self._curve if point[0] <= drift_at]
        after = [(step - drift_at, value) for step, value in self._curve if step > drift_at]
        speed = {"interactions_to_95": _interactions_to(before)}
        return speed | {"interactions_to_recover": _interactions_to(after)} if after else speed

    def _latencies(self) -> list[float]:
        """Return seconds per single decision: as met while learning, else measured now."""
        met: list[float] = getattr(self.policy, "latencies", [])
        if met:
            return met
        held = self.held.rehearsal
        observation, _ = held.env.reset(seed=held.seed)
        seconds = []
        for _ in range(LATENCY_CALLS):
            started = time.perf_counter()
            # the oracle answers for the whole batch it is bound to
            self.policy.decide(observation if self.spec.needs_env else observation[:1])
            seconds.append(time.perf_counter() - started)
        return seconds

    def _usage(self) -> Usage:
        return Usage() if self.model is None else self.model.usage.snapshot()

    def _dollars(self) -> float:
        """Return what the tokens so far cost at the list price; NaN where it is not known."""
        cost = None if self.model is None else spent(self.model, self.prices)
        return math.nan if cost is None else cost

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


def _interactions_to(curve: list[tuple[float, float]]) -> float:
    steps, optimality = zip(*curve, strict=True)
    return interactions_to(steps, optimality, SHARE_OF_ORACLE)


def _digest(config: ComparisonConfig) -> str:
    """Return what tells this comparison from others that share a cache's folder."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


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
    """Return the interactions that ``policy`` learns from: the shared number, or its own larger.

    A drift comes before a budget of its own begins.
    """
    spec = get_policy_spec(policy)
    if not spec.is_drl:
        return config.interactions
    where, settings = get_spec(config.environment).learned_in(config.settings)
    own = config.drl_interactions or spec.budget_in(where.name, settings)
    return max(config.interactions, own + (config.drift_at or 0))
