"""The in-context learning agent: experience and exploration around a language model."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.agent_file import FORMAT_VERSION, read_agent
from icl_optimizer.deciders import Answer
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError, ModelError, PromptShortenedWarning
from icl_optimizer.experience import Example, ExperiencePool
from icl_optimizer.exploration import Trial
from icl_optimizer.icl_config import ICLConfig, make_decider
from icl_optimizer.judging import AskingPolicy, Judgement, Rows
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import watched
from icl_optimizer.llm.errors import PromptTooLongError
from icl_optimizer.policy import one_hot
from icl_optimizer.problem import Context, Problem
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.selection import (
    Keywords,
    arrange,
    nearest_last,
    relevant_keywords,
    restrict,
    summarise,
)
from icl_optimizer.summaries import summaries

FEW_KEYWORDS = 4
"""Keywords that are chosen anew at every outcome; more, when outcomes have grown by a tenth."""


class ICLAgent(AskingPolicy):
    """Decides by asking a language model with examples from its own experience.

    Zhou et al. 2024, Section III: task description, examples and query go into the prompt, the
    candidate label with the highest probability is the decision (eq. 6), its outcome is evaluated
    and enters the pool, epsilon-greedy exploration around it finds better examples.

    Args:
        problem: Labels, keywords, templates.
        model: The language model.
        config: Options.
        env: Environment to learn in, if any.
        seed: Seeds exploration and the order of examples.
        prompts: Folder with templates that replace shipped ones.
    """

    name = "icl"

    def __init__(
        self,
        problem: Problem,
        model: LanguageModel,
        config: ICLConfig | None = None,
        *,
        env: BatchedEnv | None = None,
        seed: int = 0,
        prompts: str | Path | None = None,
    ) -> None:
        """Start with an empty pool."""
        super().__init__(problem, env=env, seed=seed)
        self.model = model
        self.prompts = prompts
        self._configure(config or ICLConfig())
        self.pool = ExperiencePool(
            problem, self.config.replay, capacity=self.config.capacity, ageing=self.config.ageing
        )

    def _configure(self, config: ICLConfig) -> None:
        """Take over ``config``; what was answered with other options is forgotten."""
        self.config = config
        self.builder = PromptBuilder(self.problem, config.layout, self.prompts)
        self._sums_up = config.sums_up(self.builder)
        self.decider = make_decider(config, self.model, self.builder)
        self._cache: dict[tuple[Any, ...], Answer] = {}
        self._shown: tuple[int, Keywords, list[Example]] | None = None
        self._selected: tuple[int, Keywords] | None = None
        self._limit = config.max_examples

    @property
    def in_flight(self) -> int:
        """Most calls of :meth:`adecide` that ask the model at once."""
        return self.config.in_flight

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes into the pool."""
        with self._lock:
            for outcome in outcomes:
                self.pool.add(outcome)

    def log_values(self) -> dict[str, float]:
        """Return epsilon, pool size and model calls."""
        return {
            "icl/epsilon": self._epsilon(),
            "icl/pool_size": float(len(self.pool)),
            "icl/llm_calls": float(self.model.usage.calls),
        }

    def prompt(self, situation: Context | NDArray[Any]) -> str:
        """Return the prompt that would be sent for this situation."""
        query, orders = self._query(situation)
        return self.decider.prompt(orders[0], query)

    def shown(self, situation: Context | NDArray[Any]) -> list[Example]:
        """Return the examples that the prompt for this situation holds, in its order."""
        return self._query(situation)[1][0]

    def _query(self, situation: Context | NDArray[Any]) -> tuple[Context, list[list[Example]]]:
        """Return the situation under the keywords that matter, and the orders of its examples."""
        context = situation if isinstance(situation, Context) else self.problem.describe(situation)
        keywords, examples = self._table()
        query = restrict(context, keywords)
        return query, self._orders(examples, query)

    def save(self, path: str | Path) -> None:
        """Write the agent as JSON; the model itself is named, not stored."""
        data = {
            "format": "icl-optimizer agent",
            "format_version": FORMAT_VERSION,
            "problem": self.problem.name,
            "labels": self.problem.labels,
            "keywords": list(self.problem.keywords),
            "model": self.model.name,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "explored": self.explored,
            "pool": self.pool.to_json(),
        }
        Path(path).write_text(json.dumps(data, indent=1))

    def load(self, path: str | Path) -> Self:
        """Take over configuration and pool from :meth:`save`; the model stays the present one."""
        data = read_agent(path)
        for field, mine in (
            ("problem", self.problem.name),
            ("labels", list(self.problem.labels)),
            ("keywords", list(self.problem.keywords)),
        ):
            if data[field] != mine:
                raise ConfigurationError(
                    f"saved agent '{path}' has {field} {data[field]}; allowed: {mine}."
                )
        self._configure(ICLConfig(**data["config"]))
        self.seed, self.num_timesteps = data["seed"], data["num_timesteps"]
        self.explored = data["explored"]
        self.pool = ExperiencePool.from_json(self.problem, data["pool"])
        return self

    def twin(self, model: LanguageModel | None = None, **options: Any) -> ICLAgent:
        """Return an agent that shares this one's experience.

        Args:
            model: Its language model; None for the same.
            **options: Fields of its configuration that differ.
        """
        config = ICLConfig(**{**self.config.model_dump(), **options})
        other = ICLAgent(
            self.problem, model or self.model, config, seed=self.seed, prompts=self.prompts
        )
        other.pool = self.pool
        return other

    def _epsilon(self) -> float:
        return self.config.exploration.epsilon(self.explored)

    def _try(self, context: Context) -> Trial:
        trial = self.config.exploration.trial(self.pool, context, self.explored, self.rng)
        self.explored += 1
        return trial

    def _judge(self, contexts: Sequence[Context], rows: Rows) -> list[Judgement]:
        """Return the model's answer for each context, from the cache where it has one."""
        if not contexts:
            return []
        started = time.perf_counter()
        keywords, examples = self._table()
        queries = [restrict(c, keywords) for c in contexts]
        shown = self.builder.signature(examples)
        known: dict[Context, Answer] = {}
        new = []
        for query in dict.fromkeys(queries):
            cached = self._cache.get((shown, query)) if self.config.cache else None
            if cached is None:
                new.append(query)
            else:
                known[query] = cached
        self.asked += len(new)
        # of these queries alone, whatever other threads ask meanwhile
        with watched(self.model) as used:
            fresh = dict(zip(new, self._answers(examples, new), strict=True))
        for query, answer in fresh.items():
            if self.config.cache and not answer.passing:
                self._cache[shown, query] = answer.again()
        seconds = (time.perf_counter() - started) / len(contexts)
        tokens = sum(usage.prompt_tokens for usage in used) // len(contexts)
        results = []
        for query in queries:
            answer = known.get(query) or fresh[query]
            results.append(_judgement(answer, seconds, 0 if query in known else tokens))
            if self.config.cache:
                known[query] = answer.again()
        return results

    def _answers(self, examples: list[Example], queries: Sequence[Context]) -> list[Answer]:
        """Ask the decider; what the model fails to answer falls back to experience."""
        if not queries:
            return []
        try:
            return self._judged(examples, queries)
        except ModelError as error:
            if self.config.on_failure == "stop":
                raise
            if len(queries) > 1 and error.kind != "open":
                # one that failed must not cost the others their answers
                return [self._answers(examples, [query])[0] for query in queries]
            self.failures[error.kind] += len(queries)
            passing = error.retryable or error.kind == "open"
            return [self._by_experience(examples, query, passing=passing) for query in queries]

    def _by_experience(self, examples: list[Example], query: Context, *, passing: bool) -> Answer:
        """Return the decision of the best matching example, the first label without any."""
        near = nearest_last(examples, query, 1)
        action = near[0].action if near else 0
        return Answer(tuple(one_hot(action, len(self.problem.labels))), "fallback", passing)

    def _judged(self, examples: list[Example], queries: Sequence[Context]) -> list[Answer]:
        """Ask the decider; a prompt that does not fit loses its least relevant examples."""
        try:
            if len(examples) <= self._limit:
                return self.decider.answer(self._orders(examples, queries[0]), queries)
            return [self.decider.answer(self._orders(examples, q), [q])[0] for q in queries]
        except PromptTooLongError as error:
            if self._limit == 1:
                raise
            if self._limit == self.config.max_examples:
                warnings.warn(
                    f"{error} The least relevant examples are left out.",
                    PromptShortenedWarning,
                    stacklevel=2,
                )
            self._limit = max(1, min(self._limit, len(examples)) // 2)
            return self._judged(examples, queries)

    def _table(self) -> tuple[Keywords, list[Example]]:
        """Return the keywords that matter and the pool's examples under them."""
        with self._lock:
            return self._present_table()

    def _present_table(self) -> tuple[Keywords, list[Example]]:
        if self._shown is None or self._shown[0] != self.pool.received:
            examples = self.pool.examples()
            everything = self.problem.keywords
            keywords = everything
            if self.config.select_keywords and examples and self.pool.replay != "latest":
                keywords = self._relevant(examples)
                examples = summarise(examples, keywords)
            if self._sums_up:
                examples = list(summaries(self.pool.tallies, keywords, self.config.levels))
            self._shown = (self.pool.received, keywords, list(examples))
        return self._shown[1], self._shown[2]

    def _relevant(self, examples: list[Example]) -> Keywords:
        """Return the keywords that matter; of many, those found at the last thorough look."""
        many = len(self.problem.keywords) > FEW_KEYWORDS
        counted = self.pool.counted
        if many and self._selected is not None:
            then, keywords = self._selected
            # fewer than then: the pool has begun anew
            if then <= counted and 10 * counted < 11 * then:
                return keywords
        keywords = relevant_keywords(examples, len(self.problem.labels))
        self._selected = counted, keywords
        return keywords

    def _orders(self, examples: list[Example], query: Context) -> list[list[Example]]:
        if self.pool.replay == "latest":
            return [examples[-self._limit :]]
        if len(examples) > self._limit:
            examples = nearest_last(examples, query, self._limit)
        seeds = range(self.seed * 97, self.seed * 97 + self.config.orders)
        return [arrange(examples, self.config.order, seed) for seed in seeds]


def _judgement(answer: Answer, seconds: float, tokens: int) -> Judgement:
    """Return the decision with the highest probability, and what it took."""
    action = int(np.argmax(answer.probabilities))
    return Judgement(action, answer.probabilities, answer.made_by, seconds, tokens)


__all__ = ["ICLAgent", "ICLConfig", "read_agent"]
