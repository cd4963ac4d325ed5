"""Policies that foresee the outcome of each decision and let one rule choose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from icl_optimizer.decision import Outcome, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.exploration import Exploration, Trial
from icl_optimizer.forecast import Floats, Forecast, ForecastRule
from icl_optimizer.judging import Judgement, JudgingPolicy, Rows
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.policy import rows_of
from icl_optimizer.problem import Context, Problem

EXPLORATION = Exploration(start=0.3, end=0.1, steps=100)
"""Goes on for ever: with queues, what is good depends on where the others were sent."""


class ForecastingPolicy(JudgingPolicy):
    """Foresees chance and reward of each decision; a rule takes the best expected one.

    The ``probabilities`` of its decisions are shares of the expected rewards above the worst one's;
    the decision taken is the rule's.

    A subclass says what it foresees in :meth:`_forecast`; exploration, experience per decision
    and rule are the same for all, so that tables show what the forecasts are worth.

    Args:
        problem: Labels and columns.
        rule: How decisions follow from forecasts.
        exploration: When to try decisions; :data:`EXPLORATION` when None.
        env: Environment to learn in, if any.
        seed: Seeds exploration.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        rule: ForecastRule | None = None,
        exploration: Exploration | None = None,
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Start without experience."""
        super().__init__(problem, env=env, seed=seed)
        self.rule = rule or ForecastRule()
        self.exploration = exploration or EXPLORATION
        self.table = OutcomeTable(problem)
        self._dump = problem.dump

    @abstractmethod
    def _forecast(self, contexts: Sequence[Context], rows: Rows) -> Forecast:
        """Return what is expected of every decision in ``n`` situations."""

    def forecast(self, situations: Situations) -> Forecast:
        """Return what is expected of every decision, for observations or contexts."""
        return self._forecast(self.contexts(situations), rows_of(situations))

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, which may come long after their decisions, into the experience."""
        for outcome in outcomes:
            self.problem.check_context(outcome.context)
            self.table.add(outcome)

    def log_values(self) -> dict[str, float]:
        """Return epsilon and the number of situations seen."""
        return {
            "forecast/epsilon": self.exploration.epsilon(self.explored),
            "forecast/situations": float(len(self.table)),
        }

    def _try(self, context: Context) -> Trial:
        trial = self.exploration.trial(self.table, context, self.explored, self.rng)
        self.explored += 1
        return trial

    def _judge(self, contexts: Sequence[Context], rows: Rows) -> list[Judgement]:
        if not contexts:
            return []
        return self._choose(self._forecast(contexts, rows))

    def _choose(self, forecast: Forecast) -> list[Judgement]:
        """Return the decisions that the rule takes, with the share of each."""
        chosen = self.rule.choose(forecast, self._dump)
        pairs = zip(chosen.tolist(), shares(forecast.value).tolist(), strict=True)
        return [Judgement(action, tuple(share), "rule") for action, share in pairs]


def shares(values: Floats) -> Floats:
    """Return each decision's share of the expected rewards above the worst's, ``(n, labels)``."""
    above = values - values.min(axis=1, keepdims=True) + 1e-9
    return np.asarray(above / above.sum(axis=1, keepdims=True))
