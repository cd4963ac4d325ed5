"""Label scores where a model lists the labels, written answers where it lists none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from icl_optimizer.deciders.base import Answer, Decider
from icl_optimizer.experience import Example
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context

MISSES = 3
"""Queries in a row without a listed label after which a model is only asked to write."""


@dataclass
class ListedDecider(Decider):
    """For models that give the log-probabilities of a few alternatives only.

    A query for which none of them is a label is answered in writing, held to the labels where the
    model can be. A chat model that begins its answers in another way lists none ever; it is asked
    to write from then on.

    Attributes:
        score: Decides as long as labels are listed.
        writer: Decides where none is.
        writes: Whether the model is only asked to write by now.
    """

    score: Decider = field(kw_only=True)
    writer: Decider = field(kw_only=True)
    writes: bool = False
    _listed: bool = False
    _missed: int = 0

    @property
    def now(self) -> Decider:
        """The decider in charge."""
        return self.writer if self.writes else self.score

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return what the decider in charge sends."""
        return self.now.prompt(examples, query)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        if self.writes:
            return self.writer.answer(orders, queries)
        try:
            answers = self.score.answer(orders, queries)
        except ModelError as error:
            if error.kind != "answer":
                raise
            if len(queries) > 1:
                return [self._answer(orders, [query])[0] for query in queries]
            self._missed += 1
            self.writes = not self._listed or self._missed >= MISSES
            return self.writer.answer(orders, queries)
        self._listed, self._missed = True, 0
        return answers
