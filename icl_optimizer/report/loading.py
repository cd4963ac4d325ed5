"""Reading a run folder: whatever is missing or malformed is named before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from icl_optimizer.comparison.tables import KEYS, ResultsTable, require
from icl_optimizer.errors import ConfigurationError

SUMMARY_COLUMNS = (*KEYS, "metric", "mean", "ci_low", "ci_high", "n")
NUMBERS = ("seed", "step", "value", "mean", "ci_low", "ci_high", "n")
EXTRA_POINTS = ("pair", "words")
"""Scenario keys that mark an evaluation away from the training scenario."""

Model = TypeVar("Model", bound=BaseModel)


class RunConfig(BaseModel):
    """``config.json``: what was compared, and how to repeat it."""

    environment: str
    settings: dict[str, Any]
    policies: list[str]
    llm: str | list[str] | None = None
    seeds: int | list[int]
    interactions: int = Field(ge=1)
    budgets: dict[str, int]
    checkpoints: list[int] | dict[str, list[int]] = Field(default_factory=list)
    command: str
    versions: dict[str, str]
    title: str = ""
    drift_at: int | None = None

    @property
    def seed_count(self) -> int:
        """Number of repetitions."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)


class PoolRow(BaseModel):
    """One example of an experience pool, or of a prompt."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    words: dict[str, str]
    decision: str
    reward: float
    evaluation: str
    count: int


class DecisionRow(BaseModel):
    """One decision beside the oracle's."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    context: dict[str, str]
    probabilities: dict[str, float]
    decision: str
    made_by: str
    oracle_decision: str
    prompt: str = ""
    examples: list[PoolRow] = Field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether the oracle decides the same."""
        return self.decision == self.oracle_decision


class PolicyExplanation(BaseModel):
    """Prompt, experience pool and decision samples of one policy."""

    prompt: str
    pool: list[PoolRow]
    decisions: list[DecisionRow]


class ModelRow(BaseModel):
    """What one policy asked of its language models, over all seeds."""

    decider: dict[str, str]
    capabilities: dict[str, dict[str, Any]]
    asked: int
    invalid: int
    fallback: int
    failures: dict[str, int]
    answered_by: dict[str, int]
    passed_on: dict[str, dict[str, int]] = Field(default_factory=dict)


class Explanations(BaseModel):
    """``explain.json``."""

    policies: dict[str, PolicyExplanation] = Field(default_factory=dict)
    models: dict[str, ModelRow] = Field(default_factory=dict)
    stopped: list[tuple[str, int, int]] = Field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Attributes:
        folder: Where it lies.
        config: What was compared.
        results: The rows of ``results.csv``, texts as categories.
        summary: The rows of ``summary.csv`` at the training scenario.
        explanations: Per policy, empty without ``explain.json``.
        scenario: The scenario that the policies learned in.
        models: What each policy asked of language models.
        stopped: Policy, seed and last evaluation of the units that did not end.
    """

    folder: Path
    config: RunConfig
    results: pd.DataFrame
    summary: pd.DataFrame
    explanations: dict[str, PolicyExplanation]
    scenario: str
    models: dict[str, ModelRow] = field(default_factory=dict)
    stopped: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """Names of all that was measured, in alphabetical order."""
        return sorted(map(str, self.results["metric"].unique()))

    def rows(self, metric: str, *, split: str = "eval") -> pd.DataFrame:
        """Return the measured values of ``metric`` at the training scenario."""
        data = self.results
        mine = (data["scenario"] == self.scenario) & (data["split"] == split)
        return data[mine & (data["metric"] == metric) & data["value"].notna()]

    def extra_rows(self, metric: str) -> pd.DataFrame:
        """Return the values of ``metric`` at every scenario but the training one."""
        data = self.results
        extra = (data["scenario"] != self.scenario) & (data["split"] == "eval")
        return data[extra & (data["metric"] == metric) & data["value"].notna()]


def load_run(folder: str | Path | Run) -> Run:
    """Return the run in ``folder``; one that was read before stays as it is.

    Raises:
        ConfigurationError: If the folder was not written by a comparison; the message names the
            file, the column or the field.
    """
    if isinstance(folder, Run):
        return folder
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(f"'{path}' is not a folder; give the folder of a comparison.")
    config = read_json(path / "config.json", RunConfig)
    results = read_results(path)
    summary = _read_csv(path / "summary.csv", SUMMARY_COLUMNS)
    _check_results(path / "results.csv", results, config)
    scenario = _training_scenario(path / "results.csv", results)
    explanation = path / "explain.json"
    explained = read_json(explanation, Explanations) if explanation.exists() else Explanations()
    mine = summary[summary["scenario"] == scenario]
    return Run(
        path,
        config,
        results,
        mine,
        explained.policies,
        scenario,
        explained.models,
        explained.stopped,
    )


def has_results(folder: Path) -> bool:
    """Return whether ``folder`` holds at least one evaluation."""
    if not (folder / "results.csv").is_file():
        return False
    return not ResultsTable(folder).select(["split"], split="eval").empty


def read_results(folder: Path, **chosen: Any) -> pd.DataFrame:
    """Return rows of ``results.csv`` in a small form: a text takes one or two bytes.

    Args:
        folder: That of a comparison or a sweep.
        **chosen: Which rows, see :meth:`.ResultsTable.select`.
    """
    data = ResultsTable(folder).select(**chosen)
    small: dict[str, Any] = {"seed": "int32", "step": "int64", "value": "float64"}
    return data.astype({name: small.get(name, "category") for name in data.columns})


def parse_scenario(name: str) -> dict[str, str]:
    """Return ``key=value;...`` as a mapping; ``default`` has no keys."""
    return dict(part.split("=", 1) for part in name.split(";") if "=" in part)


def read_json(path: Path, model: type[Model]) -> Model:
    """Return the file as ``model``; an error names the field that does not fit."""
    require(path)
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: field '{field}': {first['msg']}.") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}.") from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    require(path)
    try:
        data = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not a table: {error}.") from error
    missing = [name for name in columns if name not in data.columns]
    if missing:
        raise ConfigurationError(f"{path} has no column {', '.join(map(repr, missing))}.")
    for name in columns:
        if name in NUMBERS:
            data[name] = _numbers(path, data[name])
    return data


def _numbers(path: Path, column: pd.Series[Any]) -> pd.Series[Any]:
    """Return the column as numbers; an empty cell is a missing value, any other text an error."""
    values = pd.to_numeric(column.replace("", "nan"), errors="coerce")
    bad = column[values.isna() & ~column.str.lower().isin(["", "nan"])]
    if len(bad):
        raise ConfigurationError(
            f"{path}, line {int(bad.index[0]) + 2}: column '{column.name}' has "
            f"'{bad.iloc[0]}'; allowed: a number."
        )
    return values


def _check_results(path: Path, results: pd.DataFrame, config: RunConfig) -> None:
    if results.empty:
        raise ConfigurationError(f"{path} has no rows; the comparison has measured nothing yet.")
    splits = sorted(set(results["split"].unique()) - {"train", "eval"})
    if splits:
        raise ConfigurationError(f"{path}: split '{splits[0]}'; allowed: eval, train.")
    others = sorted(set(results["environment"].unique()) - {config.environment})
    if others:
        raise ConfigurationError(
            f"{path}: environment '{others[0]}', but config.json says '{config.environment}'."
        )


def _training_scenario(path: Path, results: pd.DataFrame) -> str:
    """Return the scenario that policies learn in; a run without learners has one plain scenario."""
    trained = set(results.loc[results["split"] == "train", "scenario"].unique())
    if not trained:
        names = set(results["scenario"].unique())
        trained = {n for n in names if not parse_scenario(n).keys() & set(EXTRA_POINTS)}
    if len(trained) != 1:
        found = ", ".join(sorted(trained)) or "none"
        raise ConfigurationError(f"{path}: one training scenario is expected; found: {found}.")
    return str(trained.pop())
