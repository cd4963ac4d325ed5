"""What the study of cold starts asks about: servers and task types never seen, and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.slo_scheduling import (
    LEVELS,
    RATES,
    SLOSchedulingVectorEnv,
    build_problem,
)
from icl_optimizer.environments.slo_scheduling_config import (
    TASK_TYPES,
    SLOSchedulingConfig,
)
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Problem, Quantity
from icl_optimizer.rollout import Rollout

Split = Literal["development", "report"]
Floats = NDArray[np.float64]

BANDS = (
    ("qwen2-1.5b", "phi3-3.8b"),
    ("qwen2-7b", "llama3-8b", "gemma2-9b"),
    ("phi3-14b", "gemma2-27b"),
    ("llama3-70b", "qwen2-72b"),
)
"""Servers that experience may be of: each seed draws one of each size."""
NEW_SERVERS: dict[Split, tuple[str, ...]] = {
    "development": ("qwen1.5-1.8b", "qwen1.5-4b", "mistral-7b", "mistral-nemo-12b", "qwen1.5-72b"),
    "report": (
        "qwen2-0.5b",
        "phi3.5-3.8b",
        "yi-6b",
        "gemma-7b",
        "llama3.1-8b",
        "command-r-35b",
        "llama3.1-70b",
        "mistral-large-123b",
    ),
}
"""Servers without experience. Prompts were chosen by the first; the others are asked once."""
NEW_TASKS: dict[Split, dict[str, float]] = {
    "development": {
        "translation": 150.0,
        "chatting": 200.0,
        "greeting": 40.0,
        "joke": 100.0,
        "story writing": 1500.0,
        "theorem proving": 1200.0,
        "legal contract": 2000.0,
        "lecture notes": 1500.0,
    },
    "report": {
        "classification": 30.0,
        "summarization": 150.0,
        "email reply": 180.0,
        "planning": 1000.0,
        "essay writing": 1200.0,
        "report writing": 1600.0,
    },
}
"""Task types without experience, with their mean output length in tokens. Assumptions."""
REPLACED = "language"
"""Task type whose place a new one takes among the five that arrive."""
OUTCOMES = 500
"""Random decisions that experience consists of, the same number at each arrival rate."""
EPISODES = 400
"""Episodes per arrival rate that the truth is counted in."""
SEEN = 20
"""Requests that a situation must have had, so that its verdict is known."""
LENGTHS = (("short", 450.0), ("medium", 600.0), ("long", np.inf))
"""Words for the length of answers, each with the mean number of tokens that it ends at."""


@dataclass(frozen=True)
class Question:
    """Will requests of this task be answered in time at this server? One verdict per queue word.

    Attributes:
        kind: What was never seen.
        server: Name in ``data/served_llms.csv``.
        task: Word of the task type.
        length: Length of its answers in words; empty where nobody says it.
        in_time: Share of requests in time by queue word, NaN where too few came, ``(levels,)``.
    """

    kind: str
    server: str
    task: str
    length: str
    in_time: Floats


@dataclass(frozen=True)
class Experience:
    """Outcomes of random decisions at known servers.

    Attributes:
        models: The servers.
        outcomes: What came of the decisions.
    """

    models: tuple[str, ...]
    outcomes: list[Outcome]

    def problem(self, *others: str) -> Problem:
        """Return the problem of these servers and ``others``."""
        return build_problem(SLOSchedulingConfig(models=(*self.models, *others)))

    @cached_property
    def table(self) -> OutcomeTable:
        """The outcomes, summed up."""
        table = OutcomeTable(self.problem())
        for outcome in self.outcomes:
            table.add(outcome)
        return table

    def table_with(self, server: str) -> OutcomeTable:
        """Return the table of these servers and of one more, of which nothing was seen."""
        if server in self.models:
            return self.table
        return OutcomeTable.from_json(self.problem(server), self.table.to_json())


def length_word(tokens: float) -> str:
    """Return the word for the length of answers with so many tokens on average."""
    return next(word for word, most in LENGTHS if tokens <= most)


def known_lengths() -> dict[str, str]:
    """Return the length of each known task type's answers in words."""
    return {task: length_word(mean) for task, mean in SLOSchedulingConfig().mean_tokens.items()}


def gather(seed: int) -> Experience:
    """Return the experience of one seed."""
    rng = np.random.default_rng(seed)
    models = tuple(str(rng.choice(band)) for band in BANDS)
    outcomes: list[Outcome] = []
    for place, rate in enumerate(RATES):
        env = SLOSchedulingVectorEnv(1, models=models, arrival_rate=rate)
        rollout = Rollout(RandomPolicy(env.problem, seed=seed), env, explore=True)
        rollout.reset(seed=len(RATES) * seed + place)
        some: list[Outcome] = []
        while len(some) < OUTCOMES // len(RATES):
            some += rollout.step()[1]
        outcomes += some[: OUTCOMES // len(RATES)]
    return Experience(models, outcomes)


def questions(models: tuple[str, ...], split: Split) -> Iterator[Question]:
    """Yield what is asked of those who know ``models``, kind by kind, with the truth."""
    for server in NEW_SERVERS[split]:
        found = in_time((*models, server))[-1]
        for task, length in known_lengths().items():
            yield Question("server", server, task, length, found[TASK_TYPES.index(task)])
    tasks = NEW_TASKS[split]
    place = TASK_TYPES.index(REPLACED)
    truth = {task: in_time(models, {REPLACED: mean})[:, place] for task, mean in tasks.items()}
    for kind, said in (("task, its word alone", False), ("task, length said", True)):
        for task, found in truth.items():
            for server, shares in zip(models, found, strict=True):
                yield Question(kind, server, task, length_word(tasks[task]) * said, shares)
    names = list(tasks)
    for i, server in enumerate(NEW_SERVERS[split]):
        task = names[i % len(names)]
        shares = in_time((*models, server), {REPLACED: tasks[task]})[-1, place]
        yield Question(
            "server and task, length said", server, task, length_word(tasks[task]), shares
        )


def in_time(models: tuple[str, ...], mean_tokens: Mapping[str, float] | None = None) -> Floats:
    """Return the share of requests in time under random decisions at all arrival rates.

    Args:
        models: The servers.
        mean_tokens: Mean output lengths of task types that differ.

    Returns:
        By server, task type and queue word, ``(models, types, levels)``; NaN where fewer than
        :data:`SEEN` requests came.
    """
    lengths = SLOSchedulingConfig().mean_tokens | dict(mean_tokens or {})
    shape = (len(models), len(TASK_TYPES), len(LEVELS))
    met, count = np.zeros(shape), np.zeros(shape)
    for seed, rate in enumerate(RATES):
        config = SLOSchedulingConfig(models=models, arrival_rate=rate, mean_tokens=lengths)
        place, feasible = _random_play(config, seed)
        np.add.at(count, tuple(place), 1)
        np.add.at(met, tuple(place), feasible)
    return np.where(count >= SEEN, met / np.maximum(count, 1), np.nan)


def _random_play(
    config: SLOSchedulingConfig, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return server, task type and queue word of each request ``(3, n)``, and if it was in time."""
    env = SLOSchedulingVectorEnv(EPISODES, config, autoreset=False)
    observation, info = env.reset(seed=seed)
    rng, rows = np.random.default_rng(seed), np.arange(EPISODES)
    column = env.problem.columns[0]
    assert isinstance(column, Quantity), "queues come first"
    place = np.zeros((3, config.horizon * EPISODES), dtype=np.int64)
    feasible = np.zeros(config.horizon * EPISODES, dtype=np.bool_)
    first = info["decision_id"][0]
    for _ in range(config.horizon):
        action = rng.integers(len(config.models), size=EPISODES)
        queue = np.searchsorted(column.edges, observation[rows, action], side="right")
        kind = observation[:, len(config.models)].astype(np.int64)
        place[:, info["decision_id"] - first] = action, kind, queue
        observation, *_, info = env.step(action)
        feasible[info["outcomes"].decision_id - first] = info["outcomes"].feasible
    return place, feasible
