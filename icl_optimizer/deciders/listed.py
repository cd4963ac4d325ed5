"""Label scores where a model lists the labels, written answers where it lists none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from icl_optimizer.deciders.base import Answer, Decider, DeciderCounts
from icl_optimizer.experience import Example
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context


@dataclass
class ListedDecider(Decider):
    """For models that give the log-probabilities of a few alternatives only.

    A chat model that begins its answers in another way lists none of the labels. From the first
    time it does so, it is asked to write, held to the labels where it can be.

    Attributes:
        score: Decides as long as labels are listed.
        writer: Decides from then on.
        writes: Whether it is so far.
    """

    score: Decider = field(kw_only=True)
    writer: Decider = field(kw_only=True)
    writes: bool = False

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
        if not self.writes:
            try:
                return self.score.answer(orders, queries)
            except ModelError as error:
                if error.kind != "answer":
                    raise
                self.writes = True
        before = self.writer.counts.invalid, self.writer.counts.fallback
        answers = self.writer.answer(orders, queries)
        self.counts = DeciderCounts(
            self.counts.asked,
            self.counts.invalid + self.writer.counts.invalid - before[0],
            self.counts.fallback + self.writer.counts.fallback - before[1],
        )
        return answers
