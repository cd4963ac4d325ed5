"""What tasks are scheduled to: language models of a published table, or servers of a fleet."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from icl_optimizer.errors import unknown_name

TASK_TYPES = ("reasoning", "coding", "math", "data analysis", "language")


@dataclass(frozen=True)
class ServedLlm:
    """A language model behind one queue.

    Attributes:
        name: Name in ``data/served_llms.csv``.
        family: Family of models.
        billions: Parameters, 10^9.
        tokens_per_s: Speed of generation.
        score: Mean score per task type, 0 to 1, in the order of :data:`TASK_TYPES`.
    """

    name: str
    family: str
    billions: float
    tokens_per_s: float
    score: tuple[float, ...]


class ServedServer(BaseModel):
    """A server as somebody has described or measured it; its service takes overhead and tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=64, description="Label.")
    tokens_per_s: float = Field(gt=0, le=1e6, description="Answer tokens per second of a task.")
    overhead_s: float = Field(
        0.0, ge=0, le=600, description="Time in service besides the answer's tokens, seconds."
    )
    mean_tokens: dict[str, float] = Field(
        default_factory=dict, description="Mean output length by task type; 500 where left out."
    )
    scores: dict[str, float] = Field(
        default_factory=dict, description="Mean score by task type, 0 to 1; 1 where left out."
    )
    slots: int = Field(1, ge=1, le=1024, description="Tasks that it serves at the same time.")
    queue_size: int = Field(10, ge=1, le=1000, description="Most tasks, in service included.")

    @field_validator("mean_tokens")
    @classmethod
    def _lengths(cls, values: dict[str, float]) -> dict[str, float]:
        return by_type(values)

    @field_validator("scores")
    @classmethod
    def _shares(cls, values: dict[str, float]) -> dict[str, float]:
        return by_type(values, zero=True, limit=1.0)

    @model_validator(mode="after")
    def _slots_fit(self) -> Self:
        if self.slots > self.queue_size:
            raise ValueError(
                f"slots is {self.slots}; allowed: at most queue_size, which is {self.queue_size}"
            )
        return self


@cache
def served_llms() -> dict[str, ServedLlm]:
    """Return the models of ``data/served_llms.csv`` by name."""
    text = (files("icl_optimizer.environments.data") / "served_llms.csv").read_text()
    return {
        row["name"]: ServedLlm(
            row["name"],
            row["family"],
            float(row["billions"]),
            float(row["tokens_per_s"]),
            tuple(float(row[t]) / 100 for t in TASK_TYPES),
        )
        for row in csv.DictReader(text.splitlines())
    }


def by_type(
    values: dict[str, float], *, zero: bool = False, limit: float = 1e6
) -> dict[str, float]:
    """Return numbers by task type, or raise for a name or number that is not allowed."""
    for name, value in values.items():
        if name not in TASK_TYPES:
            raise ValueError(str(unknown_name("task type", name, TASK_TYPES)))
        if not (0 <= value <= limit if zero else 0 < value < limit):
            allowed = f"0 to {limit:g}" if zero else f"more than 0, less than {limit:g}"
            raise ValueError(f"'{name}' is {value}; allowed: {allowed}")
    return values
