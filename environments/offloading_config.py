"""Parameters of the offloading system, with their sources."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from icl_optimizer.environments.comma_lists import split_commas
from icl_optimizer.environments.inference import find_profile
from icl_optimizer.environments.wireless import RadioConfig

PAPER_TYPES = {
    "chatting": "regular",
    "translation": "regular",
    "summarization": "regular",
    "scientific reasoning": "quality",
    "coding": "quality",
}


class OffloadingConfig(BaseModel):
    """Generation task offloading (Zhou et al. 2024); *assumption*: left open by the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    users: int = Field(20, ge=1, le=500, description="Users in the cell (Section IV-A).")
    mean_tokens: float = Field(1000, gt=0, description="Mean output size, tokens (Section IV-A).")
    token_spread: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Sizes are uniform within +-spread of the mean. Assumption.",
    )
    estimate_error: float = Field(
        0.05,
        ge=0,
        le=0.3,
        description="Relative standard deviation of the true size around its estimate. Assumption.",
    )
    bytes_per_token: float = Field(4, gt=0, description="Bytes per token (Section IV-A).")
    quality_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of quality-preferred tasks: two of five types. Assumption.",
    )
    edge_llm: str = Field("llama3-8b", description="Profile of the edge model.")
    cloud_llm: str = Field("llama3-70b", description="Profile of the cloud model.")
    quality_requirement: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Least MMLU a quality-preferred task accepts, eq. (4e). None: halfway between "
        "the two models, so that it binds for every pair. Assumption.",
    )
    backhaul_s: float = Field(0.1, ge=0, description="Backhaul delay, seconds. Assumption.")
    target_s: float = Field(30, description="Target delay in eq. (10), seconds. Assumption.")
    penalty: float = Field(
        40, ge=0, description="Penalty in eq. (10) when (4e) is violated, seconds. Assumption."
    )
    horizon: int = Field(50, ge=1, description="Tasks in an episode. Assumption.")
    inverted: bool = Field(
        False, description="Exchange what the two decisions earn, so that their names mislead."
    )
    labels: Annotated[tuple[str, str], BeforeValidator(split_commas)] = Field(
        ("local", "offload"), description="Names of the two decisions, as a policy sees them."
    )
    vocabulary: Literal["paper", "open"] = Field(
        "paper", description="The paper's five service types, or the open list of words."
    )
    words: Literal["learned", "development", "unseen"] = Field(
        "learned", description="Which words of the open list occur."
    )
    congested: bool = Field(
        False, description="Finite edge slots with a queue and a varying backhaul, both observed."
    )
    edge_slots: int = Field(2, ge=1, description="Tasks the edge serves at once (congested).")
    mean_gap_s: float = Field(
        4, gt=0, description="Mean time between tasks, seconds; Poisson (congested)."
    )
    slow_backhaul_s: float = Field(
        12, gt=0, description="Backhaul delay in its slow state, seconds (congested)."
    )
    backhaul_switch: float = Field(
        0.1, gt=0, le=1, description="Chance per task that the backhaul changes state (congested)."
    )
    radio: RadioConfig = Field(RadioConfig(), description="The radio cell.")

    @model_validator(mode="after")
    def _check_names(self) -> OffloadingConfig:
        find_profile("edge_llm", self.edge_llm)
        find_profile("cloud_llm", self.cloud_llm)
        if self.labels[0] == self.labels[1]:
            raise ValueError(f"labels are {self.labels}; allowed: two different names")
        return self

    @property
    def requirement(self) -> float:
        """Least MMLU that a quality-preferred task accepts."""
        if self.quality_requirement is not None:
            return self.quality_requirement
        edge = find_profile("edge_llm", self.edge_llm).mmlu
        return (edge + find_profile("cloud_llm", self.cloud_llm).mmlu) / 2


@cache
def service_types(split: str | None = None) -> dict[str, str]:
    """Return service type to kind (``regular`` or ``quality``) of the open list.

    Args:
        split: ``learned``, ``development``, ``unseen``, or None for all, learned ones first.
    """
    text = files("icl_optimizer.environments.data").joinpath("service_types.csv").read_text()
    rows = [r for r in csv.DictReader(text.splitlines()) if split in (None, r["split"])]
    return {row["name"]: row["kind"] for row in rows}
