"""Options of the in-context learning agent, and the decider that follows from them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from icl_optimizer.ageing import Ageing
from icl_optimizer.deciders import (
    AutoDecider,
    Calibration,
    ChannelDecider,
    Constrain,
    Decider,
    GenerateDecider,
    ListedDecider,
    Permutation,
    PermutedDecider,
    PredictDecider,
    ScoreDecider,
    Style,
    namings,
)
from icl_optimizer.deciders.chain import ChainDecider
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Replay
from icl_optimizer.exploration import Exploration
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.wrapper import unwrapped
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.selection import Order

DeciderName = Literal["auto", "score", "channel", "predict", "generate"]


class ICLConfig(BaseModel):
    """Options of the in-context learning agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replay: Replay = Field("means", description="Which examples the pool offers.")
    capacity: int | None = Field(None, ge=1, description="Most examples kept; None: the default.")
    ageing: Ageing = Field(
        "surprise", description="When the pool forgets: never, or when rewards surprise."
    )
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
    known: Literal["score", "predict"] = Field(
        "score", description="What auto decides by where the examples know every word."
    )
    style: Style = Field(
        "completion", description="One text, one user message, or turns of user and assistant."
    )
    calibration: Calibration = Field("pool", description="How label scores are calibrated.")
    permute_labels: Permutation = Field(
        "none", description="Average label scores over exchanged names, or over letters instead."
    )
    order: Order = Field("alternating", description="In which order examples are shown.")
    orders: int = Field(1, ge=1, le=8, description="Example orders whose scores are averaged.")
    passes: int = Field(2, ge=1, le=4, description="Times that the examples are shown over.")
    levels: int = Field(2, ge=2, le=5, description="Words for good and bad, in summaries.")
    constrain: Constrain = Field(
        "first", description="When a writing model is held to the labels: first, or on retry."
    )
    cache: bool = Field(True, description="Reuse the answer to an identical prompt.")
    on_failure: Literal["pool", "stop"] = Field(
        "pool",
        description="When no model answers: take the best matching example's decision, or stop.",
    )
    in_flight: int = Field(
        8, ge=1, le=256, description="Most calls of adecide that ask the model at once."
    )

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        """Refuse options that the decider would not look at."""
        if self.style != "completion" and self.decider in ("channel", "predict"):
            raise ValueError(
                f"style is '{self.style}' for decider '{self.decider}'; allowed: 'completion'"
            )
        if self.order in ("similar", "nearest-again") and self.decider in ("channel", "predict"):
            raise ValueError(
                f"order is '{self.order}' for decider '{self.decider}'; "
                "allowed: 'alternating', 'random'"
            )
        if self.style == "turns" and self.layout != "completion":
            raise ValueError(
                f"layout is '{self.layout}' for style 'turns', which has its own; "
                "allowed: 'completion'"
            )
        if self.permute_labels != "none" and self.decider not in ("auto", "score"):
            raise ValueError(
                f"permute_labels is '{self.permute_labels}' for decider '{self.decider}'; "
                "allowed: 'none'"
            )
        return self

    def sums_up(self, builder: PromptBuilder) -> bool:
        """Return whether the decider is given summaries of all outcomes instead of examples.

        Raises:
            ConfigurationError: It needs means, which ``replay`` does not keep.
        """
        predicts = self.decider == "predict" or (self.decider, self.known) == ("auto", "predict")
        needed = predicts or builder.shows_tried
        if needed and self.replay != "means":
            raise ConfigurationError(
                f"replay is '{self.replay}' for decider '{self.decider}' with known="
                f"'{self.known}' and layout '{self.layout}', which sum up outcomes; "
                "allowed: 'means'."
            )
        return needed


def make_decider(config: ICLConfig, model: LanguageModel, builder: PromptBuilder) -> Decider:
    """Return the decider that ``config`` asks for.

    ``auto`` takes what the model can do: likelihoods and scores, scores alone, or text.

    Raises:
        ConfigurationError: The model cannot do what is asked for.
    """
    if isinstance(model, ModelChain) or unwrapped(model).remote:
        # what such a model can do is not known before it is asked
        return ChainDecider(model, builder, make=lambda m: _decider_of(config, m, builder))
    return _decider_of(config, model, builder)


def _decider_of(config: ICLConfig, model: LanguageModel, builder: PromptBuilder) -> Decider:
    kind = _possible(model) if config.decider == "auto" else config.decider
    if kind == "generate":
        return _writer(config, model, builder, config.constrain)
    if not model.capabilities.logprobs:
        raise ConfigurationError(
            f"model '{model.name}' returns no log-probabilities for decider='{kind}'; "
            "allowed: decider='generate'."
        )
    if kind == "predict":
        return PredictDecider(model, builder, passes=config.passes)
    if kind == "channel":
        return _channel(config, model, builder, config.passes)
    if kind == "score" and config.decider == "auto":
        score, writer = _known(config, model, builder), _writer(config, model, builder, "first")
        return ListedDecider(model, builder, score=score, writer=writer)
    if kind == "score":
        return _score(config, model, builder)
    return AutoDecider(
        model,
        builder,
        score=_known(config, model, builder),
        # lists gain nothing from being shown twice
        channel=_channel(config, model, builder, passes=1),
    )


def _known(config: ICLConfig, model: LanguageModel, builder: PromptBuilder) -> Decider:
    if config.known == "predict":
        return PredictDecider(model, builder, passes=config.passes)
    return _score(config, model, builder)


def _score(config: ICLConfig, model: LanguageModel, builder: PromptBuilder) -> Decider:
    """Return the decider by label scores, over all names of the labels where they are permuted."""
    labels = builder.problem.labels
    scorers = [
        ScoreDecider(
            model,
            builder if names == labels else builder.renamed(names),
            calibration=config.calibration,
            passes=config.passes,
            order=config.order,
            style=config.style,
        )
        for names in namings(labels, config.permute_labels)
    ]
    if config.permute_labels == "none":
        return scorers[0]
    return PermutedDecider(model, builder, scorers=scorers)


def _writer(
    config: ICLConfig, model: LanguageModel, builder: PromptBuilder, constrain: Constrain
) -> Decider:
    return GenerateDecider(
        model, builder, constrain=constrain, style=config.style, order=config.order
    )


def _channel(
    config: ICLConfig, model: LanguageModel, builder: PromptBuilder, passes: int
) -> Decider:
    return ChannelDecider(model, builder, calibration=config.calibration, passes=passes)


def _possible(model: LanguageModel) -> DeciderName:
    if model.capabilities.likelihoods:
        return "auto"
    return "score" if model.capabilities.logprobs else "generate"
