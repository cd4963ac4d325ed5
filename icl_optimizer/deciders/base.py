"""What deciders share: answers and counters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import MadeBy
from icl_optimizer.experience import Example
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.problem import Context
from icl_optimizer.prompting import PromptBuilder

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A decider's answer to one query.

    Attributes:
        probabilities: Probability of each label.
        made_by: ``llm``, or ``fallback`` when the model gave no usable answer.
        passing: Whether asking again may bring another answer, so that this one is not kept.
    """

    probabilities: tuple[float, ...]
    made_by: MadeBy = "llm"
    passing: bool = False

    def again(self) -> Answer:
        """Return the answer as a cache gives it; a fallback stays one."""
        return self if self.made_by == "fallback" else Answer(self.probabilities, "cache")


@dataclass
class DeciderCounts:
    """What happened so far; for the cost columns of a comparison."""

    asked: int = 0
    invalid: int = 0
    fallback: int = 0


@dataclass
class Decider(ABC):
    """Asks ``model`` with prompts of ``builder``."""

    model: LanguageModel
    builder: PromptBuilder
    counts: DeciderCounts = field(default_factory=DeciderCounts)

    def answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        """Answer ``queries``, one answer each.

        Args:
            orders: The examples, once per order in which they are to be shown.
            queries: Situations in words.
        """
        self.counts.asked += len(queries)
        return self._answer(orders, queries)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the model is sent for ``query``."""
        return self.builder.render(examples, query)

    @abstractmethod
    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        """Answer the queries."""


def normalised(scores: Floats) -> Floats:
    """Return log-scores ``(n, k)`` with each row's probabilities summing to one."""
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))


def as_answers(scores: Floats) -> list[Answer]:
    """Return an answer per row of log-scores ``(n, labels)``."""
    return [Answer(tuple(float(p) for p in row)) for row in np.exp(normalised(scores))]
