"""The in-context agent that foresees: a language model reads outcomes, a rule takes the best."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.agent_file import FORMAT_VERSION, read_agent
from icl_optimizer.decision import MadeBy, Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, ModelError
from icl_optimizer.forecast import Floats, Forecast
from icl_optimizer.forecast_config import ForecastConfig
from icl_optimizer.forecasting import ForecastingPolicy
from icl_optimizer.judging import AskingPolicy, Judgement, Rows
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import watched
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Context, Problem
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.row_reader import Cell, RowReader
from icl_optimizer.word_reader import WordReader


@dataclass(frozen=True)
class _Questions:
    """What is to be found out about the decisions in ``n`` situations.

    Attributes:
        seen: What the table expects of them.
        prompts: One per situation and decision, ``n`` times ``labels``.
        known: Answers kept from earlier, by prompt.
        worth: What each word for a chance is worth, ``(levels,)``.
        succeeded: Of the outcomes seen in each cell, how many were feasible, ``(n, labels)``.
        count: How many were seen, ``(n, labels)``.
    """

    seen: Forecast
    prompts: list[list[str]]
    known: dict[str, Floats]
    worth: Floats
    succeeded: Floats
    count: Floats

    @property
    def new(self) -> list[str]:
        """The prompts without an answer, each once."""
        return [p for p in dict.fromkeys(chain(*self.prompts)) if p not in self.known]


class ForecastAgent(ForecastingPolicy, AskingPolicy):
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
        self._configure(config)

    def _configure(self, config: ForecastConfig) -> None:
        self.config, self.rule, self.exploration = config, config.rule, config.exploration
        builder = PromptBuilder(self.problem, folder=self.prompts)
        self.rows = RowReader(builder, config.levels, config.passes, config.cache)
        self.words = WordReader(self.model, self.rows.words)

    @property
    def in_flight(self) -> int:
        """Most calls of :meth:`adecide` that ask the model at once."""
        return self.config.in_flight

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, which may come long after their decisions, into the experience."""
        with self._lock:
            super().update(outcomes)

    def prompt(self, situation: Context | NDArray[Any]) -> str:
        """Return the prompts about each decision in this situation."""
        context = situation if isinstance(situation, Context) else self.problem.describe(situation)
        with self._lock:
            return "\n\n".join(self._prompts(self._cells(context)))

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
        data = read_agent(path, "forecast")
        for name, mine in (
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

    def _judge(self, contexts: Sequence[Context], rows: Rows) -> list[Judgement]:
        if not contexts:
            return []
        started = time.perf_counter()
        # of these situations alone, whatever other threads ask meanwhile
        with watched(self.model) as used:
            forecast, made_by = self._foresee(contexts)
        seconds = (time.perf_counter() - started) / len(contexts)
        tokens = sum(usage.prompt_tokens for usage in used) // len(contexts)
        pairs = zip(self._choose(forecast), made_by, strict=True)
        return [
            judged._replace(made_by=made, seconds=seconds, tokens=0 if made == "cache" else tokens)
            for judged, made in pairs
        ]

    def _forecast(self, contexts: Sequence[Context], rows: Rows) -> Forecast:
        return self._foresee(contexts)[0]

    def _foresee(self, contexts: Sequence[Context]) -> tuple[Forecast, list[MadeBy]]:
        """Return what to expect of every decision, and who said so."""
        with self._lock:
            questions = self._questions(contexts)
        new = questions.new
        self.asked += len(new)
        fresh = self._ask(new)
        none = np.full(self.config.levels, np.nan)
        answers = questions.known | dict.fromkeys(new, none) | fresh
        with self._lock:
            self.rows.keep(fresh)
        told = np.array([[answers[p] for p in prompts] for prompts in questions.prompts])
        forecast = self._with_seen(questions, told @ questions.worth)
        return forecast, self._made_by(questions.prompts, set(new), answers)

    def _questions(self, contexts: Sequence[Context]) -> _Questions:
        cells = [self._cells(context) for context in contexts]
        prompts = [self._prompts(row) for row in cells]
        kept = {p: self.rows.kept(p) for p in chain(*prompts)}
        tallies = [[self.table.tally(*cell) for cell in row] for row in cells]
        shape = len(contexts), len(self.problem.labels)
        return _Questions(
            self.table.forecast(contexts),
            prompts,
            {p: answer for p, answer in kept.items() if answer is not None},
            self.rows.worth(self.table),
            np.array([[float(t.succeeded) for t in row] for row in tallies]).reshape(shape),
            np.array([[float(t.count) for t in row] for row in tallies]).reshape(shape),
        )

    def _ask(self, prompts: list[str]) -> dict[str, Floats]:
        """Return the probability of each word by prompt; NaN where asking again is of no use.

        What failed for the time being is left out.
        """
        try:
            return dict(zip(prompts, self.words.ask(prompts), strict=True))
        except ModelError as error:
            if self.config.on_failure == "stop":
                raise
            if len(prompts) > 1 and error.kind != "open":
                # one that failed must not cost the others their answers
                return dict(chain(*(self._ask([prompt]).items() for prompt in prompts)))
            self.failures[error.kind] += len(prompts)
            if error.retryable or error.kind == "open":
                return {}
            return dict.fromkeys(prompts, np.full(self.config.levels, np.nan))

    def _with_seen(self, questions: _Questions, told: Floats) -> Forecast:
        """Return the model's chances and what was seen of the same cells, taken together."""
        seen, prior = questions.seen, self.config.prior
        if prior > 0:
            told = (questions.succeeded + prior * told) / (questions.count + prior)
        chance = np.where(np.isnan(told), seen.chance, told)
        return Forecast(chance, seen.reward, seen.otherwise, seen.seconds)

    def _made_by(
        self, prompts: Sequence[Sequence[str]], new: set[str], answers: dict[str, Floats]
    ) -> list[MadeBy]:
        """Return for each situation whether the model was asked, and answered all."""
        made: list[MadeBy] = []
        for row in prompts:
            if any(np.isnan(answers[p]).any() for p in row):
                made.append("fallback")
            else:
                made.append("cache" if new.isdisjoint(row) else "llm")
            if self.config.cache:
                new = new.difference(row)
        return made

    def _cells(self, context: Context) -> list[Cell]:
        shared, own = self.table.words(context)
        return [Cell(action, shared, own[action]) for action in range(len(self.problem.labels))]

    def _prompts(self, cells: Sequence[Cell]) -> list[str]:
        return [self.rows.prompt(self.table, cell) for cell in cells]


__all__ = ["ForecastAgent", "ForecastConfig"]
