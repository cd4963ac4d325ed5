"""What a policy asked of its language models, how they were asked, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from icl_optimizer.agent import ICLAgent
from icl_optimizer.deciders import Decider, DeciderCounts, ListedDecider
from icl_optimizer.deciders.chain import ChainDecider
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.policy import Policy


@dataclass
class ModelUse:
    """Counts of one policy with one seed, or of several seeds together.

    Attributes:
        decider: How each model was asked, by its name.
        capabilities: What was found out about each model, by its name.
        asked: Distinct queries that a model was to answer.
        invalid: Answers that named no label.
        fallback: Queries that experience answered in the model's place.
        failures: Of those, the queries whose request failed, by kind of failure.
        answered_by: Queries answered, by name of the model.
        passed_on: In a chain, queries that a model failed to answer, by its name and the kind of
            failure.
    """

    decider: dict[str, str] = field(default_factory=dict)
    capabilities: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: int = 0
    invalid: int = 0
    fallback: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    passed_on: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def invalid_rate(self) -> float:
        """Share of invalid answers."""
        return self.invalid / max(self.asked, 1)

    @property
    def fallback_rate(self) -> float:
        """Share of queries that experience answered."""
        return self.fallback / max(self.asked, 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {
            "failures": dict(self.failures),
            "answered_by": dict(self.answered_by),
            "passed_on": {name: dict(kinds) for name, kinds in self.passed_on.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelUse:
        """Return what :meth:`to_json` described."""
        counters = {key: Counter(data[key]) for key in ("failures", "answered_by")}
        passed_on = {name: Counter(kinds) for name, kinds in data["passed_on"].items()}
        return cls(**data | counters | {"passed_on": passed_on})


def model_use(policy: Policy) -> ModelUse | None:
    """Return what ``policy`` asked of its models so far; None for one that asks none itself."""
    if isinstance(policy, ForecastAgent):
        return _foreseen(policy)
    if not isinstance(policy, ICLAgent):
        return None
    decider = policy.decider
    parts = decider.deciders if isinstance(decider, ChainDecider) else {decider.model.name: decider}
    counts = [_counts(part) for part in parts.values()]
    return ModelUse(
        {name: _kind(part) for name, part in parts.items()},
        {
            name: asdict(found)
            for name, part in parts.items()
            if (found := part.model.known_capabilities) is not None
        },
        policy.asked,
        sum(c.invalid for c in counts),
        sum(c.fallback for c in counts) + policy.failures.total(),
        Counter(policy.failures),
        _answered_by(policy),
        dict(decider.passed_on) if isinstance(decider, ChainDecider) else {},
    )


def _foreseen(policy: ForecastAgent) -> ModelUse:
    """Return what an agent that foresees asked, which does so in one way."""
    words = policy.words
    return ModelUse(
        {model.name: "predict" for model in words.models},
        {
            model.name: asdict(found)
            for model in words.models
            if (found := model.known_capabilities) is not None
        },
        policy.asked,
        words.invalid,
        words.invalid + policy.failures.total(),
        Counter(policy.failures),
        Counter(words.answered_by),
        dict(words.passed_on),
    )


def _answered_by(policy: ICLAgent) -> Counter[str]:
    decider = policy.decider
    if isinstance(decider, ChainDecider):
        return Counter(decider.answered_by)
    return Counter({decider.model.name: policy.asked - policy.failures.total()})


def together(uses: Iterable[ModelUse]) -> ModelUse:
    """Return the sum over seeds."""
    total = ModelUse()
    for use in uses:
        total.decider |= use.decider
        total.capabilities |= use.capabilities
        total.asked += use.asked
        total.invalid += use.invalid
        total.fallback += use.fallback
        total.failures += use.failures
        total.answered_by += use.answered_by
        for name, kinds in use.passed_on.items():
            total.passed_on[name] = total.passed_on.get(name, Counter()) + kinds
    return total


def _kind(decider: Decider) -> str:
    """Return the decider's name as the option ``decider`` has it."""
    if isinstance(decider, ListedDecider):
        return _kind(decider.now)
    return type(decider).__name__.removesuffix("Decider").lower()


def _counts(decider: Decider) -> DeciderCounts:
    """Return what happened to queries; that of a decider's parts where it has some."""
    if isinstance(decider, ListedDecider):
        return decider.writer.counts
    return decider.counts
