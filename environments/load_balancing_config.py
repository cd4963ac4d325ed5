"""Parameters of the load balancing system, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from icl_optimizer.environments.traces.reading import check_source
from icl_optimizer.environments.traces.rows import Malformed
from icl_optimizer.errors import ConfigurationError

Scenario = Literal["nominal", "high-load", "calibrated"]
Part = Literal["train", "held-out", "all"]
TRAINING_HORIZON = 1000
"""Requests of an episode of the training part where none are given, or all it has."""


class Server(BaseModel):
    """One server of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens_per_s: float = Field(
        5000.0, gt=0, le=1e9, description="Tokens per second of each request in service."
    )
    slots: int = Field(
        5, ge=1, le=1000, description="Requests in service at the same time (concurrency)."
    )

    @property
    def capacity(self) -> float:
        """Tokens per second with all slots busy; what the paper divides loads by."""
        return self.tokens_per_s * self.slots


class RewardWeights(BaseModel):
    """Factors of the reward's components (Section IV); 0 takes one out, for an ablation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    time: float = Field(-0.01, description="For each second of estimated processing time.")
    queue: float = Field(-0.1, description="For each request waiting at the chosen server.")
    overload: float = Field(-10.0, description="If the chosen server has no free slot.")
    balance: float = Field(0.1, description="Of 1 - std(load) / (mean(load) + eps).")
    base: float = Field(1.0, description="For a request that is served or put into the queue.")
    slo: float | None = Field(
        None,
        description="For a response after the objective, paid at completion; None: by the scenario "
        "(-5, in nominal 0).",
    )


@dataclass(frozen=True)
class Setup:
    """What a scenario sets.

    Attributes:
        servers: The cluster.
        requests: First so many requests of the trace; None for all.
        span_s: Seconds that they are squeezed into; None for as recorded.
        load_factor: What arrivals are sped up by beyond that.
        slo_weight: Weight of the service-level objective in the reward.
    """

    servers: tuple[Server, ...]
    requests: int | None
    span_s: float | None
    load_factor: float
    slo_weight: float


HETEROGENEOUS = tuple(Server(tokens_per_s=1000.0 * k, slots=k) for k in (3, 5, 7))
SCENARIOS: dict[Scenario, Setup] = {
    "nominal": Setup((Server(),) * 3, None, None, 1.0, 0.0),
    "high-load": Setup(HETEROGENEOUS, 5000, 1000.0, 1.0, -5.0),
    "calibrated": Setup(HETEROGENEOUS, 5000, 1000.0, 1.0, -5.0),
}
"""The paper's two scenarios (Section VI), and one whose load factor depends on the trace."""

CALIBRATED: dict[str, float] = {"azure-code": 5.0, "azure-conversation": 13.4}
"""Load factors at which least loaded is late for 40 % (conversation: 39 %) of what is held out.

Found by ``python -m icl_optimizer.environments.load_balancing_calibration TRACE``, and rounded to
tenths.
"""


class LoadBalancingConfig(BaseModel):
    """Load balancing on a trace (Abbaraju); *assumption*: left open by the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trace: str = Field(
        "azure-code", description="Shipped trace (azure-code, azure-conversation) or a file."
    )
    malformed: Malformed = Field(
        "reject", description="Malformed rows of a file: reject or skip them."
    )
    scenario: Scenario = Field(
        "calibrated",
        description="What is not set otherwise: nominal and high-load as in the paper, calibrated "
        "as high-load with arrivals sped up until least loaded is late for 40 % of the requests.",
    )
    part: Part = Field(
        "train", description="Part of the trace that episodes are taken from, in time order."
    )
    train_share: float = Field(
        0.7, gt=0, lt=1, description="Share of the requests in the training part. Assumption."
    )
    scaling_trace: str | None = Field(
        None,
        description="Trace whose training part the features are scaled by, that of learning when a "
        "policy meets another trace; None: the present one.",
    )
    every: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Take every so-manieth request. The paper takes every 50th of a week in "
        "training; the shipped hour has too few for that.",
    )
    horizon: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Requests of an episode, from a random place of the part; None: 1000 of the "
        "training part, the whole of another.",
    )
    servers: tuple[Server, ...] | None = Field(
        None,
        min_length=2,
        max_length=64,
        description="The cluster; None: by the scenario, 3 x (5000 tokens/s, 5 slots) in nominal, "
        "else (3000, 3), (5000, 5), (7000, 7).",
    )
    requests: int | None = Field(
        None, ge=2, description="First so many requests of the trace; None: by the scenario."
    )
    span_s: float | None = Field(
        None,
        gt=0,
        description="Seconds that these are squeezed into; None: by the scenario, 1000 s but in "
        "nominal.",
    )
    load_factor: float | None = Field(
        None,
        gt=0,
        le=1e6,
        validate_default=True,
        description="Further speed-up of arrivals; None: by the scenario.",
    )
    start_rule: Literal["slots", "last-finish"] = Field(
        "slots",
        description="When a request starts: as soon as a slot is free, or (as printed) at the "
        "later of now and the server's last finish.",
    )
    when_full: Literal["queue", "drop"] = Field(
        "queue", description="A request at a server without a free slot waits, or is dropped."
    )
    queue_size: int = Field(
        1000, ge=0, le=100_000, description="Most requests that wait at a server (Section IV)."
    )
    slo_s: float = Field(
        2.0, gt=0, le=3600, description="Response time allowed, seconds (Section VI-B)."
    )
    recent: int = Field(
        20,
        ge=1,
        le=10_000,
        description="Completions over which a server's mean response is taken. Assumption.",
    )
    weights: RewardWeights = Field(
        default_factory=RewardWeights, description="Factors of the reward's components."
    )

    @field_validator("trace", "scaling_trace")
    @classmethod
    def _is_there(cls, source: str | None) -> str | None:
        if source is not None:
            try:
                check_source(source)
            except ConfigurationError as error:
                raise ValueError(str(error)) from error
        return source

    @field_validator("load_factor")
    @classmethod
    def _known_load(cls, value: float | None, info: ValidationInfo) -> float | None:
        given = info.data
        if value is None and given.get("scenario") == "calibrated" and "trace" in given:
            sources = {given["trace"], given.get("scaling_trace") or given["trace"]}
            if unknown := sources - CALIBRATED.keys():
                raise ValueError(
                    f"allowed: a number, since '{min(unknown)}' is not among the calibrated traces "
                    f"({', '.join(CALIBRATED)})"
                )
        return value

    @property
    def setup(self) -> Setup:
        """The scenario with what is set otherwise."""
        preset = SCENARIOS[self.scenario]
        known = CALIBRATED.get(self.trace, 1.0) if self.scenario == "calibrated" else 1.0
        slo = self.weights.slo
        return Setup(
            self.servers or preset.servers,
            self.requests or preset.requests,
            self.span_s or preset.span_s,
            self.load_factor or known,
            preset.slo_weight if slo is None else slo,
        )
