"""A fleet file: which language-model servers there are, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.errors import ConfigurationError, invalid_fields, unknown_name

DEMO = "demo"
"""The name of the shipped fleet, which ``fleet up`` starts on this machine."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Price(_Part):
    """What a server's tokens cost, in US dollars per million tokens."""

    input: float = Field(0.0, ge=0, description="Prompt tokens.")
    output: float = Field(0.0, ge=0, description="Answer tokens.")


class ServerConfig(_Part):
    """One language-model server.

    What is known of its speed, lengths and scores are hints: a rule needs them, a twin is
    simulated from them, and ``fleet measure`` finds them.
    """

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Label."
    )
    llm: str = Field(description="LLM spec, as in openai:NAME@http://host:8080/v1.")
    slots: int = Field(1, ge=1, le=1024, description="Requests it serves at the same time.")
    queue_size: int = Field(
        10, ge=1, le=1000, description="Most requests sent or waiting to be sent to it."
    )
    tokens_per_s: float = Field(
        50.0, gt=0, le=1e6, description="Answer tokens per second and request."
    )
    overhead_s: float = Field(0.0, ge=0, le=600, description="Seconds to the first token.")
    mean_tokens: dict[str, float] = Field(
        default_factory=dict, description="Mean length of answers by task type, tokens."
    )
    scores: dict[str, float] = Field(
        default_factory=dict, description="Mean score by task type, 0 to 1; 1 where left out."
    )
    price: Price = Field(Price(), description="Prices of its tokens.")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds its key; never the key itself."
    )
    timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Longest silence before it counts as failed, seconds."
    )

    @field_validator("mean_tokens", "scores")
    @classmethod
    def _known_types(cls, values: dict[str, float]) -> dict[str, float]:
        for name in values:
            if name not in TASK_TYPES:
                raise ValueError(str(unknown_name("task type", name, TASK_TYPES)))
        return values

    @field_validator("mean_tokens")
    @classmethod
    def _lengths(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            if not 0 < value < 1e6:
                raise ValueError(f"'{name}' is {value}; allowed: more than 0, less than 1e6")
        return values

    @field_validator("scores")
    @classmethod
    def _shares(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            if not 0 <= value <= 1:
                raise ValueError(f"'{name}' is {value}; allowed: 0 to 1")
        return values

    @model_validator(mode="after")
    def _slots_fit(self) -> Self:
        if self.slots > self.queue_size:
            raise ValueError(
                f"slots is {self.slots}; allowed: at most queue_size, which is {self.queue_size}"
            )
        return self

    def score(self, task: str) -> float:
        """Return the mean score for a task type, 0 to 1."""
        return self.scores.get(task, 1.0)


class FleetConfig(_Part):
    """The servers that requests can go to."""

    servers: tuple[ServerConfig, ...] = Field(
        min_length=1, max_length=64, description="In the order of the labels."
    )
    deadline_s: float = Field(
        10.0, gt=0, le=3600, description="Deadline of a request that names none, seconds."
    )
    deadlines_s: tuple[float, ...] = Field(
        (),
        max_length=8,
        description="Deadlines that callers name, seconds, where they differ: policies that read "
        "words tell requests apart by the nearest of them.",
    )
    length_spread: float = Field(
        0.4, ge=0, le=2, description="Log-standard deviation of an answer's length."
    )
    relative_lengths: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="Measured lengths by task type, relative to the mean.",
    )
    model_spread: float = Field(
        0.0, ge=0, le=2, description="Log-standard deviation of lengths between servers."
    )

    @field_validator("servers")
    @classmethod
    def _different_names(cls, servers: tuple[ServerConfig, ...]) -> tuple[ServerConfig, ...]:
        names = [server.name for server in servers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' occurs twice; allowed: different names")
        return servers

    @field_validator("deadlines_s")
    @classmethod
    def _possible(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not 0 < value <= 3600:
                raise ValueError(f"holds {value}; allowed: more than 0, at most 3600 s")
        return tuple(sorted(set(values)))

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, in order."""
        return tuple(server.name for server in self.servers)


def load_fleet(source: str | Path | Mapping[str, Any] | FleetConfig) -> FleetConfig:
    """Return a fleet from a YAML file, from ``demo``, or from fields.

    Raises:
        ConfigurationError: There is no such file, it is not YAML, or a field is not valid; the
            message names it.
    """
    if isinstance(source, FleetConfig):
        return source
    if isinstance(source, Mapping):
        return _checked("the fleet", source)
    if str(source) == DEMO:
        text = (files("icl_optimizer.environments.data") / "demo_fleet.yaml").read_text()
        return _checked("the demo fleet", yaml.safe_load(text))
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigurationError(
            f"fleet is '{source}'; allowed: a YAML file that exists, or '{DEMO}'."
        )
    try:
        fields = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the fleet file '{source}' is not YAML: {error}") from error
    return _checked(f"the fleet file '{source}'", fields)


def dump_fleet(config: FleetConfig) -> str:
    """Return the YAML text of a fleet; :func:`load_fleet` reads it again."""
    fields = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _checked(what: str, fields: Any) -> FleetConfig:
    if not isinstance(fields, Mapping):
        raise ConfigurationError(
            f"{what} is {type(fields).__name__}; allowed: a mapping with 'servers'."
        )
    try:
        return FleetConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise invalid_fields(what, error) from error
