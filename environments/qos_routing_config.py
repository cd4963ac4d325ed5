"""Parameters of the QoS-aware routing system, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from icl_optimizer.environments.routing_data.questions import Part
from icl_optimizer.environments.traces.reading import check_source
from icl_optimizer.environments.traces.rows import Malformed
from icl_optimizer.errors import ConfigurationError

SHOWN = 10
"""Running and waiting requests of an expert that the state shows (Section IV)."""


@dataclass(frozen=True)
class EdgeExpert:
    """A language model at the edge.

    Attributes:
        label: Short name, the label of the decision.
        model: Name in the table of scores.
        family: Family in words.
        billions: Parameters, billions.
    """

    label: str
    model: str
    family: str
    billions: float


EXPERTS = (
    EdgeExpert("qwen2.5-7b", "qwen2.5-7b-instruct", "Qwen 2.5", 7.6),
    EdgeExpert("gemma2-9b", "gemma-2-9b-it", "Gemma 2", 9.2),
    EdgeExpert("llama3.1-8b", "llama-3.1-8b-instruct", "Llama 3.1", 8.0),
    EdgeExpert("mistral-7b", "mistral-7b-instruct-v0.3", "Mistral", 7.2),
    EdgeExpert("codegemma-7b", "codegemma-7b", "CodeGemma", 8.5),
    EdgeExpert("chatqa-8b", "llama3-chatqa-1.5-8b", "ChatQA 1.5", 8.0),
)
"""The models of the table that fit one edge GPU, the three with the best scores first."""
MOST, LEAST = len(EXPERTS), 3


class QoSRoutingConfig(BaseModel):
    """Routing to language models that batch continuously (Yang et al.).

    *Assumption*: left open by the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    experts: int = Field(3, ge=LEAST, le=MOST, description="Language models at the edge.")
    arrival_rate: float = Field(
        3.0, gt=0, le=1000, description="Mean arrivals per second, whatever the process."
    )
    arrivals: Literal["poisson", "trace"] = Field(
        "poisson",
        description="Requests arrive at random, or as in the trace, at a pace that gives the rate.",
    )
    trace: str = Field(
        "azure-conversation",
        description="Where prompt and answer lengths (and arrivals) come from: a shipped trace or "
        "a file.",
    )
    malformed: Malformed = Field(
        "reject", description="Malformed rows of a file: reject or skip them."
    )
    part: Part = Field("train", description="Part of questions and trace that requests are of.")
    train_share: float = Field(
        0.7, gt=0, lt=1, description="Share of the trace in the training part. Assumption."
    )
    horizon: int = Field(5000, ge=1, le=100_000, description="Requests of an episode.")
    latency_bound_s: float = Field(
        0.03, gt=0, le=60, description="Latency per token allowed, L, seconds."
    )
    reward: Literal["finished", "difference"] = Field(
        "finished",
        description="Quality of service is paid as requests finish, as in the paper; or at once: "
        "what the decision adds if nothing else arrived. Over an episode both pay the same.",
    )
    impact_penalty: bool = Field(
        True, description="Whether the reward takes off what the impact estimator says is harmed."
    )
    impact_rule: Literal["projected", "printed"] = Field(
        "projected",
        description="Latency of a running request that the estimator starts from: projected to its "
        "end, and only of those that would be in time; or as printed, per token generated so far.",
    )
    gpu: Literal["a100", "h100"] = Field(
        "a100",
        description="GPU of every expert; its costs were fitted to measurements. Assumption.",
    )
    n_gpus: Literal[1, 2, 4] = Field(1, description="GPUs of every expert. Assumption.")
    kv_tokens: int = Field(
        16_000,
        ge=100,
        le=10_000_000,
        description="Tokens that an expert's KV cache holds. Assumption: about ten conversations.",
    )
    max_running: int = Field(
        SHOWN, ge=1, le=SHOWN, description="Most requests that an expert runs at a time."
    )
    queue_size: int = Field(
        SHOWN, ge=1, le=SHOWN, description="Most requests that wait at an expert; others drop out."
    )
    chunk_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Most prompt tokens that an iteration prefills; None: whole prompts.",
    )
    length_scale: float = Field(
        0.8,
        gt=0,
        le=100,
        description="Factor on prompt and answer lengths of the trace. Assumption: 0.8, so that "
        "the offered load is 0.5 of the experts' capacity at 2.5 requests per second and 1.2 at 6.",
    )

    @field_validator("trace")
    @classmethod
    def _is_there(cls, source: str) -> str:
        try:
            check_source(source)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return source

    @property
    def served(self) -> tuple[EdgeExpert, ...]:
        """The experts in the order of the decisions."""
        return EXPERTS[: self.experts]
