"""A tabular contextual bandit on the words that the language model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.explorer import ExploringPolicy
from icl_optimizer.problem import Context


class BanditPolicy(ExploringPolicy):
    """Takes the decision with the highest mean reward in exactly this context.

    A table has no idea of likeness: a decision not yet tried in a context is credited with its
    mean reward over all experience, so a context never seen gets the decision that is best
    overall. This is what a language model, which may generalise from like words, has to beat.
    """

    name = "bandit"
    kind = "bandit"

    def _values(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> NDArray[np.float64]:
        overall = self._overall()
        values = np.tile(overall, (len(contexts), 1))
        for i, context in enumerate(contexts):
            for action, tally in self.pool.tallies.get(context, {}).items():
                values[i, action] = tally.mean
        return values

    def _overall(self) -> NDArray[np.float64]:
        """Return each decision's mean reward, ``-inf`` where it was never tried."""
        counts = np.zeros(len(self.problem.labels))
        sums = np.zeros(len(self.problem.labels))
        for actions in self.pool.tallies.values():
            for action, tally in actions.items():
                counts[action] += tally.count
                sums[action] += tally.count * tally.mean
        known = counts > 0
        return np.where(known, sums / np.maximum(counts, 1), -np.inf)
