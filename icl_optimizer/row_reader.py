"""The chance of a decision to succeed, as a language model reads it off a row of outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
class _Rendered:
    """Rows and prompts as they are after so many outcomes."""

    received: int = -1
    rows: dict[tuple[int, Words], list[tuple[int, str]]] = field(default_factory=dict)
    prompts: dict[Cell, str] = field(default_factory=dict)


@dataclass
class RowReader:
    """Puts single cells of an :class:`OutcomeTable` to a language model, and keeps its answers.

    The prompt is the row of the decision and the shared words, one cell per situation of its own
    in their order, each with a word for what came of it: "gemma2-9b math: empty fast, one fast,
    two late". Then the row again, cut before the word in question, which the model continues; a
    situation not seen yet stands where it belongs, an unknown one at the end. The chance is the sum
    of the words' probabilities times what they are worth: the mean chance of the cells that bear
    them, in tenths. A prompt has no more cells than own columns have words, however long experience
    grows; answers are kept by prompt.

    Attributes:
        builder: Renders ``<problem>/row.j2`` (the header) in ``layouts/row.j2``.
        levels: Number of words: 2, 3 or 5.
        passes: Times that the row is shown, the last time cut.
        cache: Whether answers are kept.
    """

    builder: PromptBuilder
    levels: int = 2
    passes: int = 2
    cache: bool = True

    def __post_init__(self) -> None:
        """Start without answers."""
        self._kept: dict[str, NDArray[np.float64]] = {}
        self._worth: tuple[int, NDArray[np.float64]] = (-1, np.zeros(self.levels))
        self._rendered = _Rendered()

    @property
    def words(self) -> tuple[str, ...]:
        """The words for chances, the lowest first."""
        return LEVELS[self.levels]

    def kept(self, prompt: str) -> NDArray[np.float64] | None:
        """Return the probability of each word, ``(levels,)``, if ``prompt`` was answered before."""
        return self._kept.get(prompt)

    def keep(self, answers: Mapping[str, NDArray[np.float64]]) -> None:
        """Keep answers by prompt, where answers are kept at all."""
        if not self.cache:
            return
        self._kept.update(answers)
        while len(self._kept) > MOST_KEPT:
            self._kept.pop(next(iter(self._kept)))

    def prompt(self, table: OutcomeTable, cell: Cell) -> str:
        """Return what the model is asked about ``cell``."""
        if self._rendered.received != table.received:
            self._rendered = _Rendered(table.received)
        known = self._rendered.prompts.get(cell)
        if known is None:
            known = self._rendered.prompts[cell] = self._render(table, cell)
        return known

    def _render(self, table: OutcomeTable, cell: Cell) -> str:
        places = table.problem.own_places(cell.action)
        row = self._row(table, cell)
        place = places.get(cell.own, len(places))
        return self.builder.render_cells(
            cell.action,
            cell.shared,
            rows=[[text for _, text in row]] * (self.passes - 1) if row else [],
            cut=[text for other, text in row if other < place],
            query=" ".join(cell.own),
        )

    def _row(self, table: OutcomeTable, cell: Cell) -> list[tuple[int, str]]:
        """Return place and text of each cell in the row of ``cell``, in their order."""
        known = self._rendered.rows.get((cell.action, cell.shared))
        if known is None:
            places = table.problem.own_places(cell.action)
            known = [
                (places[own], " ".join((*own, self.words[self._level(chance)])))
                for own, chance in table.row(cell.action, cell.shared)
            ]
            self._rendered.rows[cell.action, cell.shared] = known
        return known

    def worth(self, table: OutcomeTable) -> NDArray[np.float64]:
        """Return the mean chance of the cells that bear each word, in tenths, ``(levels,)``."""
        if self._worth[0] != table.received:
            groups: list[list[float]] = [[] for _ in self.words]
            for cell in table.cells():
                chance = table.chance(*cell)
                groups[self._level(chance)].append(chance)
            means = [
                sum(group) / len(group) if group else (level + 0.5) / self.levels
                for level, group in enumerate(groups)
            ]
            # tenths, so that one more outcome does not change every decision a little
            self._worth = table.received, np.array([round(mean, 1) for mean in means])
        return self._worth[1]

    def _level(self, chance: float) -> int:
        return min(int(chance * self.levels), self.levels - 1)
