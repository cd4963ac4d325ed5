"""Options of the in-context agent that foresees."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from icl_optimizer.exploration import Exploration
from icl_optimizer.forecast import ForecastRule
from icl_optimizer.forecasting import EXPLORATION
from icl_optimizer.row_reader import LEVELS


class ForecastConfig(BaseModel):
    """Options of the in-context agent that foresees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exploration: Exploration = Field(EXPLORATION, description="When to try decisions.")
    rule: ForecastRule = Field(ForecastRule(), description="How decisions follow from forecasts.")
    levels: int = Field(2, description="Words for chances: 2, 3 or 5.")
    passes: int = Field(2, ge=1, le=4, description="Times that a row is shown, the last time cut.")
    prior: float = Field(
        3.0,
        ge=0,
        le=100,
        description="Outcomes that the model's word counts for beside those seen in the same "
        "situation; 0: its word alone.",
    )
    cache: bool = Field(True, description="Reuse the answer to an identical prompt.")
    on_failure: Literal["table", "stop"] = Field(
        "table", description="When no model answers: go by what was seen on average, or stop."
    )
    in_flight: int = Field(
        8, ge=1, le=256, description="Most calls of adecide that ask the model at once."
    )

    @field_validator("levels")
    @classmethod
    def _known_levels(cls, value: int) -> int:
        if value not in LEVELS:
            raise ValueError(f"allowed: {', '.join(map(str, LEVELS))}")
        return value
