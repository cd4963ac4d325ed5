"""The in-context agent that foresees: a language model reads outcomes, a rule takes the best."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from icl_optimizer.agent_file import FORMAT_VERSION, read_agent
from icl_optimizer.decision import Decision, MadeBy, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, ModelError
from icl_optimizer.exploration import Exploration
from icl_optimizer.forecast import Forecast, ForecastRule
from icl_optimizer.forecasting import EXPLORATION, ForecastingPolicy
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import watched
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Context, Problem
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.row_reader import LEVELS, Cell, RowReader


class ForecastConfig(BaseModel):
    """Options of the in-context agent that foresees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exploration: Exploration = Field(EXPLORATION, description="When to try decisions.")
    rule: ForecastRule = Field(ForecastRule(), description="How decisions follow from forecasts.")
    levels: int = Field(2, description="Words for chances: 2, 3 or 5.")
    passes: int = Field(2, ge=1, le=4, description="Times that a row of outcomes is shown.")
    prior: float = Field(
        3.0,
        ge=0,
        le=100,
        description="Outcomes that the model's word counts for beside those seen in the same "
        "situation; 0: its word alone.",
    )
    cache: bool = Field(True, description="Reuse the answer to an identical prompt.")
    on_failure: Literal["table", "stop"] = Field(
        "table", description="When no model answers: go by what was seen on average, or stop."
    )

    @field_validator("levels")
    @classmethod
    def _known_levels(cls, value: int) -> int:
        if value not in LEVELS:
            raise ValueError(f"allowed: {', '.join(map(str, LEVELS))}")
        return value


class ForecastAgent(ForecastingPolicy):
    """Lets a language model foresee whether each decision will succeed; a rule takes the best.

    Direct choice among servers, or the largest of several numbers, is beyond small models;
    reading what usually came of a situation is not. So the model is asked once per decision, about
    the row of its own outcomes (:class:`RowReader`), and code weighs chance against reward, as
    rivals on the same experience do. After arXiv 2502.01118: predict, then choose by a rule.

    Args:
        problem: Labels and columns, some of which describe single decisions.
        model: The language model.
        config: Options.
        env: Environment to learn in, if any.
        seed: Seeds exploration.
        prompts: Folder with templates that replace shipped ones.

    Attributes:
        made_by: How often a decision was made by the model, from kept answers, by exploration, or
            by a fallback.
        failures: Queries whose request failed, by kind.
        asked: Distinct queries that the model was to answer.
        latencies: Seconds per decision that was not forced by exploration.
    """

    name = "icl-predict"

    def __init__(
        self,
        problem: Problem,
        model: LanguageModel,
        config: ForecastConfig | None = None,
        *,
        env: BatchedEnv | None = None,
        seed: int = 0,
        prompts: str | Path | None = None,
    ) -> None:
        """Start without experience."""
        if not problem.by_action:
            raise ConfigurationError(
                f"'{problem.name}' has no columns that describe single decisions; allowed: such as "
                "slo-scheduling and load-balancing, where each server has its queue."
            )
        config = config or ForecastConfig()
        super().__init__(
            problem, rule=config.rule, exploration=config.exploration, env=env, seed=seed
        )
        self.model, self.prompts = model, prompts
        self.made_by: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latencies: list[float] = []
        self._tokens: list[int] = []
        self._configure(config)

    def _configure(self, config: ForecastConfig) -> None:
        self.config, self.rule, self.exploration = config, config.rule, config.exploration
        builder = PromptBuilder(self.problem, folder=self.prompts)
        self.reader = RowReader(
            self.model, builder, levels=config.levels, passes=config.passes, cache=config.cache
        )

    @property
    def asked(self) -> int:
        """Distinct prompts that the model was to answer."""
        return self.reader.counts.asked

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; see :class:`ForecastingPolicy`."""
        decisions = super().decide(situations, explore=explore)
        self.made_by.update(d.made_by for d in decisions)
        return decisions

    def prompt(self, situation: Context | NDArray[Any]) -> str:
        """Return the prompts about each decision in this situation."""
        context = situation if isinstance(situation, Context) else self.problem.describe(situation)
        return "\n\n".join(self.reader.prompt(self.table, cell) for cell in self._cells(context))

    def save(self, path: str | Path) -> None:
        """Write the agent as JSON; the model itself is named, not stored."""
        data = {
            "format": "icl-optimizer agent",
            "format_version": FORMAT_VERSION,
            "kind": "forecast",
            "problem": self.problem.name,
            "labels": self.problem.labels,
            "keywords": list(self.problem.keywords),
            "model": self.model.name,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "explored": self.explored,
            "table": self.table.to_json(),
        }
        Path(path).write_text(json.dumps(data, indent=1))

    def load(self, path: str | Path) -> Self:
        """Take over configuration and experience from :meth:`save`; the model stays."""
        data = read_agent(path)
        for name, mine in (
            ("kind", "forecast"),
            ("problem", self.problem.name),
            ("labels", list(self.problem.labels)),
            ("keywords", list(self.problem.keywords)),
        ):
            if data.get(name) != mine:
                raise ConfigurationError(
                    f"saved agent '{path}' has {name} {data.get(name)}; allowed: {mine}."
                )
        self._configure(ForecastConfig(**data["config"]))
        self.seed, self.num_timesteps = data["seed"], data["num_timesteps"]
        self.explored = data["explored"]
        self.table = OutcomeTable.from_json(self.problem, data["table"])
        return self

    def log_values(self) -> dict[str, float]:
        """Return epsilon, situations seen and model calls."""
        return super().log_values() | {"icl/llm_calls": float(self.model.usage.calls)}

    def _judge(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> list[tuple[int, list[float], MadeBy]]:
        if not contexts:
            return []
        started = time.perf_counter()
        needed = [[self._prompt(cell) for cell in self._cells(c)] for c in contexts]
        known = [all(self.reader.known(p) for p in prompts) for prompts in needed]
        failed = self.failures.total()
        with watched(self.model):
            judged = super()._judge(contexts, rows)
        seconds = (time.perf_counter() - started) / len(contexts)
        self.latencies += [seconds] * len(contexts)
        if self.failures.total() > failed:
            return [(action, share, "fallback") for action, share, _ in judged]
        made: list[MadeBy] = ["cache" if k else "llm" for k in known]
        pairs = zip(judged, made, strict=True)
        return [(action, share, made_by) for (action, share, _), made_by in pairs]

    def _forecast(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> Forecast:
        seen = self.table.forecast(contexts)
        cells = [cell for context in contexts for cell in self._cells(context)]
        prompts = [self._prompt(cell) for cell in cells]
        try:
            told = self.reader.chances(self.table, prompts)
        except ModelError as error:
            if self.config.on_failure == "stop":
                raise
            self.failures[error.kind] += len(contexts)
            return seen
        chance = self._with_seen(cells, told).reshape(seen.chance.shape)
        return Forecast(chance, seen.reward, seen.otherwise, seen.seconds)

    def _with_seen(self, cells: Sequence[Cell], told: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the model's chances and what was seen of the same cells, taken together."""
        if self.config.prior == 0:
            return told
        tallies = [self.table.tally(*cell) for cell in cells]
        succeeded = np.array([t.succeeded for t in tallies])
        count = np.array([t.count for t in tallies])
        return np.asarray((succeeded + self.config.prior * told) / (count + self.config.prior))

    def _cells(self, context: Context) -> list[Cell]:
        shared, own = self.table.words(context)
        return [Cell(action, shared, own[action]) for action in range(len(self.problem.labels))]

    def _prompt(self, cell: Cell) -> str:
        return self.reader.prompt(self.table, cell)
