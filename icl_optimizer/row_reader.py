"""The chance of a decision to succeed, as a language model reads it off a row of outcomes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.deciders.base import DeciderCounts, normalised
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.outcomes import OutcomeTable, Words
from icl_optimizer.prompting import PromptBuilder

LEVELS: dict[int, tuple[str, ...]] = {
    2: ("late", "fast"),
    3: ("late", "mixed", "fast"),
    5: ("never", "rarely", "sometimes", "usually", "always"),
}
"""Words for chances in so many equal intervals, the lowest first."""
MOST_KEPT = 100_000
"""Answers kept; the oldest are forgotten."""


class Cell(NamedTuple):
    """One decision where the situation says ``shared`` of all decisions and ``own`` of it."""

    action: int
    shared: Words
    own: Words


@dataclass
class RowReader:
    """Asks a language model about single cells of an :class:`OutcomeTable`.

    The prompt is the row of the decision and the shared words, one cell per situation of its own
    in their order, each with a word for what came of it: "gemma2-9b math: empty fast, one fast,
    two late". Then the row again, cut before the word in question, which the model continues; a
    situation not seen yet stands where it belongs. The chance is the sum of the words'
    probabilities times what they are worth: the mean chance of the cells that bear them, in
    tenths. A prompt has no more cells than own columns have words, however long experience
    grows; answers are kept by prompt.

    Attributes:
        model: The language model.
        builder: Renders ``<problem>/row.j2`` (the header) in ``layouts/row.j2``.
        levels: Number of words: 2, 3 or 5.
        passes: Times that the row is shown before it is cut, and once more.
        cache: Whether answers are kept.
    """

    model: LanguageModel
    builder: PromptBuilder
    levels: int = 2
    passes: int = 2
    cache: bool = True
    counts: DeciderCounts = field(default_factory=DeciderCounts)

    def __post_init__(self) -> None:
        """Start without answers."""
        self._kept: dict[Hashable, NDArray[np.float64]] = {}
        self._worth: tuple[int, NDArray[np.float64]] = (-1, np.zeros(self.levels))
        self._rendered: tuple[int, dict[Cell, str]] = (-1, {})

    @property
    def words(self) -> tuple[str, ...]:
        """The words for chances, the lowest first."""
        return LEVELS[self.levels]

    def known(self, prompt: str) -> bool:
        """Return whether ``prompt`` was answered before."""
        return prompt in self._kept

    def prompt(self, table: OutcomeTable, cell: Cell) -> str:
        """Return what the model is asked about ``cell``."""
        if self._rendered[0] != table.received:
            self._rendered = table.received, {}
        known = self._rendered[1].get(cell)
        if known is None:
            known = self._rendered[1][cell] = self._render(table, cell)
        return known

    def _render(self, table: OutcomeTable, cell: Cell) -> str:
        return self.builder.render_cells(
            cell.action,
            cell.shared,
            rows=[self._row(table, cell, whole=True)] * (self.passes - 1),
            cut=self._row(table, cell, whole=False),
            query=" ".join(cell.own),
        )

    def chances(self, table: OutcomeTable, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the chance that each prompt asks about, ``(n,)``; equal ones are asked once.

        Raises:
            ModelError: The model did not answer.
        """
        new = [p for p in dict.fromkeys(prompts) if p not in self._kept]
        fresh = dict(zip(new, self._ask(new), strict=True))
        answers = [fresh[p] if p in fresh else self._kept[p] for p in prompts]
        if self.cache:
            self._keep(fresh)
        return np.array(answers).reshape(len(prompts), self.levels) @ self.worth(table)

    def worth(self, table: OutcomeTable) -> NDArray[np.float64]:
        """Return the mean chance of the cells that bear each word, in tenths, ``(levels,)``."""
        if self._worth[0] != table.received:
            groups: list[list[float]] = [[] for _ in self.words]
            for cell in table.cells():
                chance = table.chance(*cell)
                groups[self._level(chance)].append(chance)
            means = [
                float(np.mean(group)) if group else (level + 0.5) / self.levels
                for level, group in enumerate(groups)
            ]
            # tenths, so that one more outcome does not change every decision a little
            self._worth = table.received, np.array([round(mean, 1) for mean in means])
        return self._worth[1]

    def _ask(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each word, ``(n, levels)``."""
        self.counts.asked += len(prompts)
        if not prompts:
            return np.zeros((0, self.levels))
        if self.model.capabilities.logprobs:
            scores = self.model.score(prompts, [f" {word}" for word in self.words])
            return np.exp(normalised(scores))
        texts = self.model.generate(prompts, choices=self.words)
        return np.array([[float(text.strip() == word) for word in self.words] for text in texts])

    def _keep(self, fresh: dict[str, NDArray[np.float64]]) -> None:
        self._kept.update(fresh)
        while len(self._kept) > MOST_KEPT:
            self._kept.pop(next(iter(self._kept)))

    def _row(self, table: OutcomeTable, cell: Cell, *, whole: bool) -> list[str]:
        """Return the cells of the row in words, all of it or what comes before ``cell``."""
        shown = []
        for own, chance in table.row(cell.action, cell.shared):
            if not whole and self._place(table, cell.action, own) >= self._place(
                table, cell.action, cell.own
            ):
                break
            shown.append(f"{' '.join(own)} {self.words[self._level(chance)]}")
        return shown

    @staticmethod
    def _place(table: OutcomeTable, action: int, own: Words) -> int:
        return table.problem.own_words(action).index(own)

    def _level(self, chance: float) -> int:
        return min(int(chance * self.levels), self.levels - 1)
