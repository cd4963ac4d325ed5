"""Label scores for words that the examples know, the noisy channel for new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from icl_optimizer.deciders.base import Answer, Decider
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context


@dataclass
class AutoDecider(Decider):
    """Scores labels for queries whose words the examples know, and asks the channel for new words.

    Measured on the embedded model: label scores with the examples shown twice are right for nearly
    every known context, and the channel generalises far better to words never seen.

    Attributes:
        score: Decides where every word of the query is known.
        channel: Decides where one is new.
    """

    score: Decider = field(kw_only=True)
    channel: Decider = field(kw_only=True)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return what the decider in charge of ``query`` sends."""
        decider = self.channel if _has_new_word(examples, query) else self.score
        return decider.prompt(examples, query)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        new = [q for q in queries if _has_new_word(orders[0], q)]
        known = [q for q in queries if q not in new]
        parts = ((self.channel, new), (self.score, known))
        answers = {
            query: answer
            for decider, part in parts
            if part
            for query, answer in zip(part, decider.answer(orders, part), strict=True)
        }
        return [answers[q] for q in queries]


def _has_new_word(examples: Sequence[Example], query: Context) -> bool:
    """Return whether ``query`` holds a word that no example has under the same keyword."""
    return bool(examples) and any(
        all(e.context[keyword] != word for e in examples) for keyword, word in query.items()
    )
