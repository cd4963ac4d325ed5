"""What to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import invalid_fields


class ComparisonConfig(BaseModel):
    """One comparison: an environment, policies, a language model, seeds and budgets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str = Field(description="Name of the environment.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Its parameters.")
    policies: tuple[str, ...] = Field(min_length=1, description="Names of the policies.")
    llm: str = Field("llamacpp", description="Language model of the policies that need one.")
    icl: dict[str, Any] = Field(
        default_factory=dict, description="Options of the in-context learning agent."
    )
    seeds: int = Field(3, ge=1, le=1000, description="Repetitions.")
    interactions: int = Field(100, ge=1, description="Decisions each policy learns from.")
    drl_interactions: int | None = Field(
        None, ge=1, description="Budget of the deep-RL policies; None: their own default."
    )
    train: bool = Field(
        False, description="Train deep-RL policies even where the package has their weights."
    )
    eval_tasks: int = Field(400, ge=1, description="Held-out tasks of an evaluation.")
    sweeps: bool = Field(True, description="Evaluate the trained policies at further points.")
    prompts: str | None = Field(None, description="Folder of the user's own templates.")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="Threads of each unit's embedded model and linear algebra; the order of their "
        "sums depends on it, so it is part of what is compared.",
    )
    drift: dict[str, Any] = Field(
        default_factory=dict, description="Parameters that are different after ``drift_at``."
    )
    drift_at: int | None = Field(
        None,
        ge=1,
        validate_default=True,
        description="Decisions after which the environment changes; None: it stays as it is.",
    )

    @field_validator("drift_at")
    @classmethod
    def _check_drift(cls, value: int | None, info: ValidationInfo) -> int | None:
        drift, interactions = info.data.get("drift"), info.data.get("interactions")
        if (value is None) != (not drift):
            raise ValueError(f"allowed: both or neither of drift_at and drift, which is {drift}")
        if value is not None and interactions is not None and value >= interactions:
            raise ValueError(f"allowed: 1 to {interactions - 1}, less than interactions")
        return value

    @property
    def scenario(self) -> str:
        """Name of the parameter point that policies learn at."""
        drift = {f"drift.{key}": value for key, value in self.drift.items()}
        when = {} if self.drift_at is None else {"drift_at": self.drift_at}
        return scenario_name(self.settings | drift | when)

    @property
    def final_settings(self) -> dict[str, Any]:
        """Parameters of the environment that hold in the end: after the drift, if there is one."""
        return self.settings | self.drift

    def checkpoints(self, budget: int) -> list[int]:
        """Return the interactions after which a policy with ``budget`` is evaluated.

        Every policy is evaluated at the same points up to the shared number of interactions, and
        ones with a larger budget at three points per factor of ten beyond. With a drift the shared
        points end there, and the time since then has eight per factor of ten.
        """
        if self.drift_at is None:
            further = [round(10 ** (k / 3)) for k in range(25)]
            beyond = [c for c in further if self.interactions * 1.2 < c < budget * 0.9]
            points = {*_tenths(self.interactions), *beyond, budget}
        else:
            since = {self.drift_at + round(10 ** (k / 8)) for k in range(65)}
            points = {*_tenths(self.drift_at), *since, self.interactions, budget}
        return sorted(c for c in points if c <= budget)


def _tenths(interactions: int) -> set[int]:
    return {round(interactions * k / 10) for k in (1, 2, 3, 4, 6, 8, 10)} - {0}


def scenario_name(settings: dict[str, Any]) -> str:
    """Return ``key=value;...`` of the settings, or ``default`` without any."""
    return ";".join(f"{k}={_shown(v)}" for k, v in sorted(settings.items())) or "default"


def _shown(value: Any) -> str:
    """Return a setting as text; of things that have names, these alone."""
    named = isinstance(value, list | tuple) and all(
        isinstance(item, Mapping) and "name" in item for item in value
    )
    return "+".join(item["name"] for item in value) if named and value else str(value)


def default_config(environment: str, **overrides: Any) -> ComparisonConfig:
    """Return the comparison that fits ``environment``, minutes on two cores."""
    spec = get_spec(environment)
    fields: dict[str, Any] = {
        "environment": environment,
        "policies": spec.policies,
        "interactions": spec.interactions,
        "seeds": spec.seeds,
    }
    if spec.eval_tasks is not None:
        fields["eval_tasks"] = spec.eval_tasks
    try:
        return ComparisonConfig(**fields | {k: v for k, v in overrides.items() if v is not None})
    except ValidationError as error:
        raise invalid_fields("comparison", error) from error
