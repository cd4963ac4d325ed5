"""The log that off-policy evaluation reads: one decision per line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Problem

ROUNDING = 1e-5
"""Chances in logs may be rounded by so much."""


class DecisionRecord(BaseModel):
    """One logged decision, with the chance it had and what came of it.

    Lines may hold more than these fields, as a router's do.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    observation: tuple[float, ...] | None = Field(
        None, description="The observation, one number per column."
    )
    context: dict[str, str] | None = Field(
        None, description="The situation in words; needed where there is no observation."
    )
    action: str | int = Field(description="Label of what was carried out, or its index.")
    propensity: float = Field(gt=0, le=1, description="Chance that this action had here.")
    support: float = Field(
        ge=0, le=1, description="Least chance of any action here; 0 where one is never taken."
    )
    reward: float | None = Field(description="What it earned; null where that is not known.")
    feasible: bool | None = Field(
        None,
        validation_alias=AliasChoices("feasible", "met"),
        description="Whether every constraint held.",
    )
    episode: str | int | None = Field(
        None, description="Decisions that may depend on each other share it."
    )
    made_by: str = Field("", description="How the decision came about.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.observation is None and self.context is None:
            raise ValueError("a record has neither observation nor context; allowed: one or both")
        if self.support > self.propensity + ROUNDING:
            raise ValueError(
                f"support is {self.support}; allowed: at most the propensity ({self.propensity})"
            )
        return self

    def action_index(self, problem: Problem) -> int:
        """Return the index of the action.

        Raises:
            ConfigurationError: The problem has no such decision.
        """
        labels = problem.labels
        if isinstance(self.action, str) and self.action in labels:
            return labels.index(self.action)
        if isinstance(self.action, int) and 0 <= self.action < len(labels):
            return self.action
        raise ConfigurationError(
            f"action is {self.action!r}; allowed on '{problem.name}': {', '.join(labels)}, or "
            f"0 to {len(labels) - 1}."
        )


def write_records(path: str | Path, records: Iterable[DecisionRecord]) -> None:
    """Write records as JSON lines."""
    with Path(path).open("w", encoding="utf-8") as file:
        for one in records:
            file.write(json.dumps(one.model_dump(mode="json"), ensure_ascii=False) + "\n")


def read_records(path: str | Path, problem: Problem) -> list[DecisionRecord]:
    """Return the decisions of a log, in its order.

    Args:
        path: Written by :func:`write_records` or by a router.
        problem: What was decided about.

    Raises:
        ConfigurationError: There is no such file, or a line is malformed or about something else;
            the message holds its number.
    """
    if not Path(path).is_file():
        raise ConfigurationError(f"the log is '{path}'; allowed: a file that exists.")
    found = []
    # what is no text shows as a line that is no JSON
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                one = DecisionRecord.model_validate_json(line)
                one.action_index(problem)
                if one.observation is not None and len(one.observation) != len(problem.columns):
                    raise ConfigurationError(
                        f"observation has {len(one.observation)} entries; allowed: "
                        f"{len(problem.columns)}."
                    )
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "it"
                raise ConfigurationError(
                    f"{path}, line {number}: {field}: {first['msg']}."
                ) from error
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from error
            found.append(one)
    return found
