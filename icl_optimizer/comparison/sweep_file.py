"""Sweep files: systems, parameters, policies, language models and seeds, in a few lines of YAML."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from icl_optimizer.comparison.config import ComparisonConfig, default_config, scenario_name
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import ConfigurationError, invalid_fields
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.settings_file import read_settings

RESERVED = ("figures", "units")
"""Names of folders that are no points."""
LONGEST_NAME = 80
_OF_THE_SWEEP = {"environment", "name", "grid", "points", "llms", "systems"}


class Shared(BaseModel):
    """What all systems have in common, or one has of its own; what is missing is the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policies: tuple[str, ...] | None = Field(None, min_length=1, description="Their names.")
    llms: tuple[str, ...] | None = Field(None, min_length=1, description="Language models.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Parameters at all points of the grid."
    )
    icl: dict[str, Any] | None = Field(None, description="Options of the in-context agent.")
    seeds: int | None = Field(None, ge=1, le=1000, description="Repetitions.")
    interactions: int | None = Field(None, ge=1, description="Decisions to learn from.")
    drl_interactions: int | None = Field(None, ge=1, description="Those of deep RL.")
    train: bool | None = Field(None, description="Train even where weights are shipped.")
    eval_tasks: int | None = Field(None, ge=1, description="Held-out tasks of an evaluation.")
    sweeps: bool | None = Field(None, description="Evaluate at the system's further points, too.")
    prompts: str | None = Field(None, description="Folder of the user's own templates.")
    threads: int | None = Field(None, ge=1, le=256, description="Threads of each unit.")
    drift: dict[str, Any] | None = Field(None, description="What changes after ``drift_at``.")
    drift_at: int | None = Field(None, ge=1, description="Decisions before the change.")


class System(Shared):
    """One environment at one or more parameter points."""

    environment: str = Field(description="Name of the environment.")
    name: str = Field("", description="Before the names of its points; else the environment's.")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="Values of each parameter; every combination is a point."
    )
    points: tuple[dict[str, Any], ...] = Field(
        (), description="Parameters of each point; with a grid, each with every combination."
    )


def _system(entry: Any) -> Any:
    return {"environment": entry} if isinstance(entry, str) else entry


class Sweep(Shared):
    """A whole sweep file."""

    name: str = Field("", description="For titles.")
    systems: tuple[Annotated[System, BeforeValidator(_system)], ...] = Field(
        min_length=1, description="Environments: names, or mappings as of :class:`System`."
    )


class Point(BaseModel):
    """One comparison of a sweep.

    Attributes:
        name: That of its folder.
        config: What is compared there.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    config: ComparisonConfig


def read_sweep(source: str | Path | Mapping[str, Any]) -> Sweep:
    """Return the sweep in a YAML or JSON file, or in a mapping.

    Raises:
        ConfigurationError: There is no such file, or it names or lacks something; the message has
            the field, its value and what is allowed.
    """
    mapping = source if isinstance(source, Mapping) else read_settings("sweep", source)
    what = "sweep" if isinstance(source, Mapping) else str(source)
    try:
        return Sweep.model_validate(mapping)
    except ValidationError as error:
        raise invalid_fields(what, error) from error


def points_of(sweep: Sweep) -> list[Point]:
    """Return the comparisons in the order of the file.

    With several language models, each has one; policies that ask none are part of every one, and
    run once.

    Raises:
        ConfigurationError: A name or value is not valid, or two points have the same name.
    """
    points = [point for system in sweep.systems for point in _points(sweep, system)]
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"systems: '{name}' comes twice; allowed: every point once, or a system's own name."
            )
    return points


def _points(sweep: Sweep, system: System) -> Iterator[Point]:
    own = system.model_dump(exclude_unset=True, exclude=_OF_THE_SWEEP | {"settings"})
    fields = sweep.model_dump(exclude_unset=True, exclude=_OF_THE_SWEEP | {"settings"}) | own
    llms = system.llms or sweep.llms or ("llamacpp",)
    prefix = system.name or get_spec(system.environment).name
    for varied in _varied(system):
        settings = {**sweep.settings, **system.settings, **varied}
        configs = [
            default_config(system.environment, **fields, settings=settings, llm=llm) for llm in llms
        ]
        if not any(get_policy_spec(policy).needs_llm for policy in configs[0].policies):
            configs = configs[:1]
        for config in configs:
            where = [scenario_name(varied)] if varied else []
            asked = [config.llm] if len(configs) > 1 else []
            yield Point(name=_checked_name([prefix, *where, *asked]), config=config)


def _varied(system: System) -> Iterator[dict[str, Any]]:
    for key, values in system.grid.items():
        if not values:
            raise ConfigurationError(f"grid.{key} is []; allowed: at least one value.")
    if "points" in system.model_fields_set and not system.points:
        raise ConfigurationError("points is []; allowed: at least one point.")
    for point in system.points or ({},):
        for combination in itertools.product(*system.grid.values()):
            yield {**point, **dict(zip(system.grid, combination, strict=True))}


def _checked_name(parts: list[str]) -> str:
    name = folder_name(parts)
    if not name or name in RESERVED:
        raise ConfigurationError(
            f"name of a system is '{parts[0]}', whose folder would be '{name}'; allowed: a name "
            f"with ASCII letters or digits, and none of {', '.join(RESERVED)}."
        )
    return name


def folder_name(parts: list[str]) -> str:
    """Return the name of one folder, with ASCII letters, digits and few other characters."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(parts)).strip("-.")
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256("-".join(parts).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"
