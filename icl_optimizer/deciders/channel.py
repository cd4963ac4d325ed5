"""Decisions by Bayes' rule: under which label's list of examples is the query most likely?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_optimizer.deciders.base import Floats
from icl_optimizer.deciders.score import ScoreDecider
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context


@dataclass
class ChannelDecider(ScoreDecider):
    """Eq. (6) by Bayes' rule: the label whose own examples make the query most likely.

    Pr(y | x) is proportional to Pr(x | y): for each label the model reads a list of the examples
    with that decision and tells how likely the query is as its next entry (noisy channel, Min et
    al. 2022). A small model is far better at continuing a list of like things than at naming the
    label of one. Calibration ``pool`` leaves out an example of each decision and scores those.
    """

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the lists, one per label, each with the query as its next entry."""
        lists = [self._list(examples, action) for action in range(len(self.labels))]
        return "\n\n".join(f"{text} {self.builder.words(query)}" for text in lists)

    def _list(self, examples: Sequence[Example], action: int) -> str:
        return self.builder.render_list(list(examples) * self.passes, action)

    def _check_labels(self) -> None:
        """Accept any labels: their names are not scored."""

    def scores(self, examples: Sequence[Example], queries: Sequence[Context]) -> Floats:
        """Return the log-likelihood of each query among each label's examples, ``(n, labels)``."""
        texts = [f" {self.builder.words(q)}" for q in queries]
        columns = [
            self.model.likelihood([self._list(examples, action)] * len(texts), texts)
            for action in range(len(self.labels))
        ]
        return np.stack(columns, axis=1)

    def _leaves_out(self, known: bool) -> bool:
        return super()._leaves_out(known) or not known
