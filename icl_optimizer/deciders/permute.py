"""Label scores that do not depend on what the labels are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Literal

import numpy as np

from icl_optimizer.deciders.base import Answer, Decider, Floats, as_answers
from icl_optimizer.deciders.score import ScoreDecider
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context

Permutation = Literal["none", "exchange", "letters"]


@dataclass
class PermutedDecider(Decider):
    """Averages scores over prompts in which every decision once bears every name.

    With k labels there are k prompts per query: in the s-th, decision i bears the name of decision
    i + s (modulo k). So whatever the model has for or against a name counts for every decision
    alike, and what remains comes from the examples.

    Attributes:
        scorers: Scores labels under each naming; the s-th has the names moved by s.
    """

    scorers: Sequence[ScoreDecider] = field(kw_only=True)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the prompts under each naming."""
        return "\n\n".join(scorer.prompt(examples, query) for scorer in self.scorers)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        # every scorer's columns are the decisions, whatever they are called there
        scores: list[Floats] = [scorer.calibrated(orders, queries) for scorer in self.scorers]
        return as_answers(np.mean(scores, axis=0))


def namings(labels: Sequence[str], permutation: Permutation) -> list[tuple[str, ...]]:
    """Return the names of the decisions in each prompt.

    Args:
        labels: The labels' own names.
        permutation: ``none``: these alone. ``exchange``: these, moved on by one each time.
            ``letters``: A, B, C, ... instead, moved on likewise.

    Raises:
        ConfigurationError: There are more labels than letters.
    """
    if permutation == "none":
        return [tuple(labels)]
    names = tuple(labels)
    if permutation == "letters":
        if len(labels) > len(ascii_uppercase):
            raise ConfigurationError(
                f"permute_labels is 'letters' for {len(labels)} labels; "
                f"allowed: at most {len(ascii_uppercase)} labels."
            )
        names = tuple(ascii_uppercase[: len(labels)])
    return [names[shift:] + names[:shift] for shift in range(len(names))]
