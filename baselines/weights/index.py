"""The index of shipped weights: one JSON file per environment, beside its safetensors files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from icl_optimizer.baselines.weights.staleness import completed, parameters_of
from icl_optimizer.errors import ConfigurationError

INDEX = "index.json"
SHIPPED = Path(__file__).parent
"""Folder of the weights that come with the package: one folder per environment."""


@dataclass(frozen=True)
class Case:
    """What tells one file of weights from another.

    Attributes:
        environment: Name of the environment.
        settings: Its parameters; what is left out has its default, ``"1"`` is the number 1.
        policy: Name of the policy.
        seed: Seed of network, exploration and episodes.
        interactions: Decisions of learning.
    """

    environment: str
    settings: Mapping[str, Any]
    policy: str
    seed: int
    interactions: int

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Every parameter of the environment, as plain JSON values."""
        return parameters_of(self.environment, self.settings)

    @property
    def file(self) -> str:
        """Name of the file; it tells parameter points and budgets apart."""
        text = json.dumps([self.parameters, self.interactions], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.policy}-{digest}-seed{self.seed}.safetensors"


class Entry(BaseModel):
    """One file of weights: what it was trained on, for how long and by which command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="Name of the file, beside the index.")
    environment: str = Field(description="Name of the environment.")
    settings: dict[str, Any] = Field(description="Its parameters, as they were given.")
    parameters: dict[str, Any] = Field(description="Every parameter that they stand for.")
    policy: str = Field(description="Name of the policy.")
    policy_settings: dict[str, Any] = Field(description="Its configuration.")
    seed: int = Field(description="Seed of network, exploration and episodes.")
    interactions: int = Field(description="Decisions that it learned from.")
    problem: str = Field(description="Digest of labels and columns that the network knows.")
    probe: tuple[float, ...] = Field(description="What fixed decisions meet in the environment.")
    version: str = Field(description="Version of the package.")
    command: str = Field(description="Shell command that made the file.")

    def is_of(self, case: Case) -> bool:
        """Return whether the weights are for exactly this case."""
        if self.environment != case.environment:
            return False
        parameters = completed(self.environment, self.parameters)
        mine = (self.policy, self.seed, self.interactions, parameters)
        return mine == (case.policy, case.seed, case.interactions, case.parameters)

    def replaces(self, other: Entry) -> bool:
        """Return whether the same command would make both, whatever defaults were then."""
        fields = ("settings", "policy", "seed", "interactions")
        return all(getattr(self, name) == getattr(other, name) for name in fields)


def find(case: Case, folder: Path | None = None) -> tuple[Entry, Path] | None:
    """Return entry and file of the weights for exactly this case; None if there are none.

    Args:
        case: Environment, policy, seed and budget.
        folder: Where to look; None for what comes with the package.
    """
    place = (folder or SHIPPED) / case.environment
    for entry in read_index(place):
        if entry.is_of(case):
            return entry, place / entry.file
    return None


def read_index(place: Path) -> list[Entry]:
    """Return the entries of an environment's folder; none where there is no index.

    Raises:
        ConfigurationError: The index is damaged.
    """
    path = place / INDEX
    if not path.exists():
        return []
    try:
        return [Entry.model_validate(item) for item in json.loads(path.read_text())]
    except (ValidationError, ValueError) as error:
        raise ConfigurationError(f"index of weights '{path}' cannot be read: {error}.") from error


def write_index(place: Path, entries: Iterable[Entry]) -> None:
    """Write the index of an environment's folder; a kill in mid-write leaves the old one."""
    ordered = sorted(entries, key=lambda e: (e.policy, e.file.rsplit("-", 1)[0], e.seed))
    partial = place / f"{INDEX}.partial"
    partial.write_text(json.dumps([e.model_dump(mode="json") for e in ordered], indent=1) + "\n")
    os.replace(partial, place / INDEX)
