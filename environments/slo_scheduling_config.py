"""Parameters of the SLO-aware scheduling system, with their sources."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.comma_lists import Numbers, Texts
from icl_optimizer.environments.queues.arrivals import Bursts
from icl_optimizer.environments.slo_scheduling_servers import (
    TASK_TYPES,
    ServedLlm,
    ServedServer,
    by_type,
    served_llms,
)
from icl_optimizer.errors import unknown_name

DEFAULT_TOKENS = 500.0
"""Mean output length of a task type that ``mean_tokens`` leaves out."""
OF_SERVERS = ("models", "queue_size", "slots", "mean_tokens")
"""Fields whose place is taken by those of each of ``servers``."""


class SLOSchedulingConfig(BaseModel):
    """SLO-aware task scheduling (Mekrache et al. 2025); *assumption*: left open by the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    models: Texts = Field(
        ("phi3-3.8b", "gemma2-9b", "qwen2-7b", "llama3-8b"),
        min_length=2,
        description="Served models, one queue each (Section V-A).",
    )
    arrival_rate: float = Field(
        1.0, gt=0, le=100, description="Mean arrivals per second, lambda (Table I: 1 in training)."
    )
    bursts: Bursts | None = Field(
        None, description="Two-state modulation of the arrivals; None: Poisson, as in the paper."
    )
    horizon: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Tasks of an episode (Table I: 30 steps, here one decision per task).",
    )
    queue_size: int = Field(
        10, ge=1, le=1000, description="Most tasks at one model, in service included (Table I)."
    )
    slots: int = Field(1, ge=1, le=64, description="Tasks that a model serves at the same time.")
    deadline_s: float = Field(10.0, gt=0, le=3600, description="Deadline, seconds (Table I).")
    type_deadlines_s: dict[str, float] = Field(
        default_factory=dict, description="Deadlines of single task types that differ, seconds."
    )
    mixed_deadlines_s: Numbers = Field(
        (), description="Deadlines drawn at random for each task; they replace the others."
    )
    mean_tokens: dict[str, float] = Field(
        default_factory=lambda: {
            "reasoning": 560.0,
            "coding": 400.0,
            "math": 800.0,
            "data analysis": 560.0,
            "language": 480.0,
        },
        description="Mean output length by task type, tokens; 500 for a type that is left out. "
        "Assumption, see the page of the system: scaled so that round robin meets three of four "
        "deadlines at one task per second.",
    )
    length_spread: float = Field(
        0.4, ge=0, le=2, description="Log-standard deviation of a task's length. Assumption."
    )
    relative_lengths: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="By task type, lengths as they were measured, relative to the mean: a task's "
        "is one of them, and length_spread has no part in it.",
    )
    model_spread: float = Field(
        0.2, ge=0, le=2, description="Log-standard deviation between models on a task. Assumption."
    )
    score_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Standard deviation of a task's score around the LiveBench mean, 0 to 1 scale.",
    )
    dump_action: bool = Field(
        False,
        description="Offer 'dump' beside the models: the task goes where the queue is longest, so "
        "that it hurts least.",
    )
    cancel_late: bool = Field(
        False,
        description="Take a task away at its deadline; else it is served to the end, as in the "
        "paper.",
    )
    servers: tuple[ServedServer, ...] = Field(
        (), description="Servers in the place of `models`, as a fleet's description has them."
    )

    @field_validator("models")
    @classmethod
    def _known_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in served_llms():
                raise ValueError(str(unknown_name("served model", name, served_llms())))
        if len(set(names)) < len(names):
            raise ValueError("allowed: different models")
        return names

    @field_validator("slots")
    @classmethod
    def _within_queue(cls, slots: int, info: ValidationInfo) -> int:
        queue_size = info.data.get("queue_size", slots)
        if slots > queue_size:
            raise ValueError(f"allowed: at most queue_size, which is {queue_size}")
        return slots

    @field_validator("type_deadlines_s", "mean_tokens")
    @classmethod
    def _known_types(cls, values: dict[str, float]) -> dict[str, float]:
        return by_type(values)

    @field_validator("relative_lengths")
    @classmethod
    def _known_lengths(cls, values: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, lengths in values.items():
            if name not in TASK_TYPES:
                raise ValueError(str(unknown_name("task type", name, TASK_TYPES)))
            if not lengths or min(lengths) <= 0 or max(lengths) > 1000:
                raise ValueError(f"'{name}' is {lengths}; allowed: numbers above 0, at most 1000")
        return {name: tuple(sorted(lengths)) for name, lengths in values.items()}

    @field_validator("mixed_deadlines_s")
    @classmethod
    def _positive(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not 0 < value <= 3600:
                raise ValueError(f"holds {value}; allowed: more than 0, at most 3600 s")
        return values

    @model_validator(mode="after")
    def _models_or_servers(self) -> Self:
        if not self.servers:
            return self
        names = self.names
        if not 2 <= len(set(names)) == len(names):
            raise ValueError(f"servers are {names}; allowed: at least two, of different names")
        for field in OF_SERVERS:
            usual = type(self).model_fields[field].get_default(call_default_factory=True)
            if getattr(self, field) != usual:
                raise ValueError(f"{field} is given beside servers; allowed: one of the two")
        return self

    @property
    def served(self) -> tuple[ServedLlm, ...]:
        """The served models, in order, where there are no ``servers``."""
        return tuple(served_llms()[name] for name in self.models)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the servers or models, in order."""
        return tuple(server.name for server in self.servers) or self.models

    @property
    def speeds(self) -> Floats:
        """Tokens per second of each server, ``(servers,)``."""
        return np.array([s.tokens_per_s for s in self.servers or self.served])

    @property
    def overheads(self) -> Floats:
        """Seconds of service besides the tokens at each server, ``(servers,)``."""
        return np.array([s.overhead_s for s in self.servers] or [0.0] * len(self.models))

    @property
    def slots_each(self) -> Ints:
        """Tasks that each server serves at the same time, ``(servers,)``."""
        return np.array([s.slots for s in self.servers] or [self.slots] * len(self.models))

    @property
    def capacity(self) -> Ints:
        """Most tasks at each server, in service included, ``(servers,)``."""
        each = [s.queue_size for s in self.servers] or [self.queue_size] * len(self.models)
        return np.array(each)

    @property
    def deadlines(self) -> Floats:
        """Deadline by task type, seconds, ``(types,)``; mixed ones do not depend on the type."""
        return np.array([self.type_deadlines_s.get(t, self.deadline_s) for t in TASK_TYPES])

    @property
    def possible_deadlines(self) -> tuple[float, ...]:
        """Every deadline that may occur, ascending."""
        return tuple(sorted(set(self.mixed_deadlines_s or self.deadlines.tolist())))

    @property
    def mean_lengths(self) -> Floats:
        """Mean tokens by task type and server, ``(types, servers)``; one column if all alike."""
        given = [s.mean_tokens for s in self.servers] or [self.mean_tokens]
        return np.array([[m.get(t, DEFAULT_TOKENS) for m in given] for t in TASK_TYPES])

    @property
    def mean_generation(self) -> Floats:
        """Mean time that the tokens take by task type and server, seconds, ``(types, servers)``."""
        return np.asarray(self.mean_lengths / self.speeds)

    @property
    def relative_variance(self) -> Floats:
        """Variance of lengths on one model, relative to the mean squared, ``(types,)``."""
        shared = np.full(len(TASK_TYPES), np.exp(self.length_spread**2))
        for name, lengths in self.relative_lengths.items():
            values = np.asarray(lengths)
            shared[TASK_TYPES.index(name)] = (values**2).mean() / values.mean() ** 2
        return np.asarray(shared * np.exp(self.model_spread**2) - 1)

    @property
    def mean_service(self) -> Floats:
        """Mean service time by task type and server, seconds, ``(types, servers)``."""
        return self.overheads + self.mean_generation

    @property
    def mean_score(self) -> Floats:
        """Mean score by task type and server, 0 to 1, ``(types, servers)``."""
        if self.servers:
            return np.array([[s.scores.get(t, 1.0) for s in self.servers] for t in TASK_TYPES])
        return np.array([m.score for m in self.served]).T


__all__ = ["TASK_TYPES", "SLOSchedulingConfig", "ServedLlm", "ServedServer", "served_llms"]
