"""How a router works: its policy, its limits, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.exploration import Exploration

RARELY = Exploration(start=0.1, end=0.02, steps=500, try_all_first=False)
"""Exploration at the expense of callers."""


class RouterSettings(BaseModel):
    """Everything about a router beside its servers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: str = Field("icl-predict", description="Who decides: a policy of slo-scheduling.")
    llm: str = Field("llamacpp", description="Language model of a policy that asks one.")
    agent: Path | None = Field(
        None, description="A saved policy; deep reinforcement learning needs one."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the in-context agent."
    )
    seed: int = Field(0, description="Seed of exploration.")
    explore: bool = Field(True, description="Try decisions now and then, to learn.")
    exploration: Exploration | None = Field(
        None,
        description="How often; None: rarely, since callers wait for what is tried, and everything "
        "once at first where the fleet's file does not say how long answers are.",
    )
    warm_up: int = Field(
        300,
        ge=0,
        le=100_000,
        description="Simulated requests to the fleet's twin that a policy learns from before the "
        "first real one, where the fleet's file says how long answers are; 0: none.",
    )
    learn: bool = Field(True, description="Learn from what becomes of requests.")
    attempts: int | None = Field(
        None, ge=1, le=64, description="Servers that a request is sent to at most; None: all."
    )
    decision_timeout_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="Longest wait for a decision; then the shortest queue is taken, seconds.",
    )
    first_token_timeout_s: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Longest wait for the first token of a stream before another server is tried, "
        "seconds.",
    )
    pool: Path | None = Field(None, description="SQLite file that keeps what was learned.")
    decision_log: Path | None = Field(None, description="File for one line of JSON per decision.")
    log_prompts: bool = Field(False, description="Write prompts into the decision log.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: a free one.")
    max_body_bytes: int = Field(
        1_000_000, ge=1000, le=1 << 30, description="Largest body of a request."
    )
    max_in_flight: int = Field(256, ge=1, le=100_000, description="Most requests at a time.")
    max_connections: int = Field(512, ge=1, le=100_000, description="Most open connections.")
    header_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Longest time until a request's headers are there, seconds."
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Longest time for a request's body, and a second more for each 20 kB, seconds.",
    )
    client_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Longest time that a client takes nothing, seconds."
    )
    drain_s: float = Field(
        30.0, ge=0, le=3600, description="Time to finish requests after SIGTERM, seconds."
    )
    open_metrics: bool = Field(False, description="Show metrics without a key.")
