"""Decisions by prediction: the model tells how each would turn out, a rule takes the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_optimizer.deciders.base import Answer, Decider, Floats, normalised
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context
from icl_optimizer.summaries import Cell, Summary, cells_of, level_values


@dataclass
class PredictDecider(Decider):
    """The model predicts the outcome of each decision in a word; the best expected one is taken.

    For each decision the prompt is a row of what was seen, "local: chatting -> good; coding ->
    poor; ...", and then the row again, cut before the cell in question, whose word the model
    continues. A query that the row does not hold is asked about at its end. The expected value is
    the sum of the words' probabilities times what they are worth: the mean advantage of the level,
    on a scale from 0 (worst) to 1, in tenths. The probabilities of the answer are proportional to
    the expected values. After arXiv 2502.01118: let the model predict and a rule choose.
    """

    passes: int = 2

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the prompts about each decision."""
        actions = range(len(self.builder.problem.labels))
        return "\n\n".join(self._prompt(examples, action, query) for action in actions)

    def _prompt(self, examples: Sequence[Example], action: int, query: Context) -> str:
        row = [(s, c) for s, c in cells_of(examples) if c.action == action]
        place = next((i for i, (s, _) in enumerate(row) if s.context == query), len(row))
        shown = [self._cell(summary, cell) for summary, cell in row]
        return self.builder.render_row(action, [shown] * (self.passes - 1), shown[:place], query)

    def _cell(self, summary: Summary, cell: Cell) -> str:
        return f"{self.builder.words(summary.context)} -> {cell.level}"

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        values = np.mean([self.values(examples, queries) for examples in orders], axis=0)
        # a decision that is sure to be the worst keeps a trace, so that none is 0 of 0
        shares = (values + 1e-6) / (values + 1e-6).sum(axis=1, keepdims=True)
        return [Answer(tuple(float(p) for p in row)) for row in shares]

    def values(self, examples: Sequence[Example], queries: Sequence[Context]) -> Floats:
        """Return the expected value of each decision, 0 to 1, shape ``(n, labels)``."""
        labels = self.builder.problem.labels
        worth = level_values(examples)
        if len(worth) < 2:
            return np.zeros((len(queries), len(labels)))
        words = [f" {word}" for word in worth]
        columns = []
        for action in range(len(labels)):
            prompts = [self._prompt(examples, action, q) for q in queries]
            chances = np.exp(normalised(self.model.score(prompts, words)))
            columns.append(chances @ np.array(list(worth.values())))
        return np.stack(columns, axis=1)
