"""Options of the in-context learning agent, and the decider that follows from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.decider_chain import ChainDecider
from icl_optimizer.deciders import (
    AutoDecider,
    Calibration,
    ChannelDecider,
    Decider,
    GenerateDecider,
    ScoreDecider,
)
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Replay
from icl_optimizer.exploration import Exploration
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.prompting import PromptBuilder

DeciderName = Literal["auto", "score", "channel", "generate"]


class ICLConfig(BaseModel):
    """Options of the in-context learning agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replay: Replay = Field("means", description="Which examples the pool offers.")
    capacity: int | None = Field(None, ge=1, description="Most examples kept; None: the default.")
    exploration: Exploration = Field(Exploration(), description="When to try decisions.")
    max_examples: int = Field(64, ge=1, le=512, description="Most examples in a prompt.")
    select_keywords: bool = Field(
        True, description="Leave out keywords that do not explain the pool's decisions."
    )
    layout: str = Field("completion", description="Template in layouts/ that builds the prompt.")
    decider: DeciderName = Field(
        "auto",
        description="How the model answers; auto: score, and channel for new words, or what the "
        "model can do.",
    )
    calibration: Calibration = Field("pool", description="How label scores are calibrated.")
    orders: int = Field(1, ge=1, le=8, description="Example orders whose scores are averaged.")
    passes: int = Field(2, ge=1, le=4, description="Times that the examples are shown over.")
    cache: bool = Field(True, description="Reuse the answer to an identical prompt.")
    on_failure: Literal["pool", "stop"] = Field(
        "pool",
        description="When no model answers: take the best matching example's decision, or stop.",
    )
    in_flight: int = Field(
        8, ge=1, le=256, description="Most calls of adecide that ask the model at once."
    )


def make_decider(config: ICLConfig, model: LanguageModel, builder: PromptBuilder) -> Decider:
    """Return the decider that ``config`` asks for.

    ``auto`` takes what the model can do: likelihoods and scores, scores alone, or text.

    Raises:
        ConfigurationError: The model cannot do what is asked for.
    """
    if isinstance(model, ModelChain):
        return ChainDecider(model, builder, make=lambda m: make_decider(config, m, builder))
    kind = _possible(model) if config.decider == "auto" else config.decider
    if kind == "generate":
        return GenerateDecider(model, builder)
    if not model.capabilities.logprobs:
        raise ConfigurationError(
            f"model '{model.name}' returns no log-probabilities for decider='{kind}'; "
            "allowed: decider='generate'."
        )
    classes: dict[str, type[AutoDecider | ScoreDecider]] = {
        "auto": AutoDecider,
        "score": ScoreDecider,
        "channel": ChannelDecider,
    }
    return classes[kind](model, builder, calibration=config.calibration, passes=config.passes)


def _possible(model: LanguageModel) -> DeciderName:
    if model.capabilities.likelihoods:
        return "auto"
    return "score" if model.capabilities.logprobs else "generate"
