"""Parameters of the layer splitting system, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Case = Literal["L", "H", "A"]
RewardForm = Literal["code", "equation", "code-initial"]


@dataclass(frozen=True)
class Setup:
    """What a case sets.

    Attributes:
        loss: Least and most loss probability.
        start: First and last layer that an episode may begin at.
    """

    loss: tuple[float, float]
    start: tuple[int, int]


CASES: dict[Case, Setup] = {
    "L": Setup((0.0, 0.1), (1, 5)),
    "H": Setup((0.1, 0.3), (6, 10)),
    "A": Setup((0.0, 0.3), (1, 10)),
}
"""The paper's three cases (Section V-A)."""

QUALITY_WEIGHT: dict[RewardForm, float] = {"code": 10.0, "code-initial": 10.5}
"""Factors of the quality in the public code's two rewards."""


class LayerSplittingConfig(BaseModel):
    """Layer splitting (Chen et al. 2024); *assumption*: left open by the paper."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case: Case = Field(
        "A",
        description="What is not set otherwise: L (loss 0 to 0.1, begins at layer 1 to 5), H (0.1 "
        "to 0.3, layer 6 to 10), A (both ranges).",
    )
    sigma_low: float = Field(
        0.0, ge=0, description="Least standard deviation of the noise of (3). Assumption."
    )
    sigma_high: float = Field(
        2.0, ge=0, description="Largest standard deviation of the noise of (3). Assumption."
    )
    loss_low: float | None = Field(
        None, ge=0, lt=1, description="Least loss probability of (4); None: by the case."
    )
    loss_high: float | None = Field(
        None, ge=0, lt=1, description="Largest loss probability of (4); None: by the case."
    )
    start_low: int | None = Field(
        None, ge=1, description="First layer that an episode may begin at; None: by the case."
    )
    start_high: int | None = Field(
        None, ge=1, description="Last layer that an episode may begin at; None: by the case."
    )
    deepest: int = Field(
        10, ge=2, le=1000, description="Deepest layer to split after; moves end there."
    )
    moves: Literal["one", "four"] = Field(
        "one",
        description="How far a decision moves the split: one layer (Section IV-A), or up to four "
        "(the public code's other set).",
    )
    link: Literal["block", "correlated", "independent"] = Field(
        "block",
        description="Noise and loss are drawn once per episode, drift, or are drawn at every step.",
    )
    correlation: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Of noise, and of fading, from step to step (link=correlated). Assumption.",
    )
    reward: RewardForm = Field(
        "equation",
        description="Eq. (8), the public code's reward with a surrogate, or the code's reward with "
        "a real model.",
    )
    quality_weight: float | None = Field(
        None,
        gt=0,
        description="Factor of the quality in the code's rewards; None: 10, in code-initial 10.5.",
    )
    load_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the device's load: lambda of (8), with the load relative to that of "
        "the deepest split, or the factor of (deepest - p) / deepest in the code. Assumption.",
    )
    difference: bool = Field(
        False,
        description="Pay what a move changes: the reward less that of staying under the same link.",
    )
    from_start: bool = Field(
        False,
        description="Pay the reward less that of the episode's first split under the same link. "
        "With a block link that is a constant of the episode: what is best stays best, and a "
        "learner need not tell good moves from good links.",
    )
    input_tokens: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Length d_in in (2): a sentence of WikiText-2 has 20 words (Section V-A).",
    )
    hidden: int = Field(576, ge=1, description="Width d of the hidden state in (2): SmolLM2-135M.")
    rewards_from: Literal["table", "surrogate", "live"] = Field(
        "table",
        description="Perplexities from the measured table, from the network that was fitted to it, "
        "or from the model itself.",
    )
    model: str | None = Field(
        None,
        description="Model to split (rewards_from=live): a GGUF file or a Hugging Face folder; "
        "None: the installed weights.",
    )
    horizon: int = Field(5, ge=1, le=10_000, description="Decisions in an episode (Table III).")

    @model_validator(mode="after")
    def _in_order(self) -> LayerSplittingConfig:
        for name, (low, high) in {
            "sigma": self.sigmas,
            "loss": self.losses,
            "start": self.starts,
        }.items():
            if low > high:
                raise ValueError(f"{name}_low is {low} and {name}_high {high}; allowed: low first")
        if self.starts[1] > self.deepest:
            raise ValueError(
                f"start_high is {self.starts[1]}; allowed: up to {self.deepest}, the deepest split"
            )
        if self.difference and self.from_start:
            raise ValueError("difference and from_start are both True; allowed: one of them")
        if self.model is not None and self.rewards_from != "live":
            raise ValueError(
                f"model is {self.model!r} with rewards_from={self.rewards_from}; allowed: None, or "
                "rewards_from=live"
            )
        return self

    @property
    def sigmas(self) -> tuple[float, float]:
        """Least and largest noise."""
        return self.sigma_low, self.sigma_high

    @property
    def losses(self) -> tuple[float, float]:
        """Least and largest loss probability."""
        low, high = CASES[self.case].loss
        return (
            low if self.loss_low is None else self.loss_low,
            high if self.loss_high is None else self.loss_high,
        )

    @property
    def starts(self) -> tuple[int, int]:
        """First and last layer that an episode may begin at."""
        low, high = CASES[self.case].start
        return self.start_low or low, self.start_high or high

    @property
    def quality(self) -> float:
        """Factor of the quality in the code's rewards."""
        return self.quality_weight or QUALITY_WEIGHT.get(self.reward, 1.0)
