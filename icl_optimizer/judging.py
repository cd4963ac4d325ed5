"""What policies share that judge a batch of situations at once, some of them by asking a model."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from numpy.typing import NDArray

from icl_optimizer.decision import Decision, MadeBy, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.exploration import NO_TRIAL, Trial
from icl_optimizer.policy import Policy, one_hot, rows_of
from icl_optimizer.problem import Context, Problem

Rows = Sequence[NDArray[Any] | None]


class Judgement(NamedTuple):
    """What a policy would do in one situation if it did not explore.

    Attributes:
        action: Index of the decision.
        probabilities: Probability that it gives each decision.
        made_by: How it came about.
        seconds: Seconds spent on it (an equal share of the batch).
        tokens: Tokens of the prompts, 0 without a call.
    """

    action: int
    probabilities: tuple[float, ...]
    made_by: MadeBy
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Batch:
    """Situations on their way to a decision, in order."""

    contexts: list[Context]
    rows: list[NDArray[Any] | None]
    trials: list[Trial]

    @property
    def to_judge(self) -> tuple[list[Context], list[NDArray[Any] | None]]:
        """Contexts and observations that exploration does not force."""
        open_ = [i for i, trial in enumerate(self.trials) if not trial.forced]
        return [self.contexts[i] for i in open_], [self.rows[i] for i in open_]


class JudgingPolicy(Policy):
    """Decides in three steps: see what to try, judge the rest at once, put both together."""

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations ``(n, columns)`` or contexts; see :class:`Policy`.

        ``propensity`` is the chance over both ways, exploring and not, to take the action here.
        """
        batch = self._open(situations, explore)
        return self._close(batch, self._judge(*batch.to_judge))

    @abstractmethod
    def _judge(self, contexts: Sequence[Context], rows: Rows) -> list[Judgement]:
        """Return what to do in each of these situations, of which there may be none."""

    @abstractmethod
    def _try(self, context: Context) -> Trial:
        """Return what exploration says about the next decision."""

    def _open(self, situations: Situations, explore: bool) -> Batch:
        """Put situations into words and see what exploration says about each."""
        contexts, rows = self.contexts(situations), rows_of(situations)
        trials = [self._try(context) if explore else NO_TRIAL for context in contexts]
        return Batch(contexts, rows, trials)

    def _close(self, batch: Batch, judged: Sequence[Judgement]) -> list[Decision]:
        """Return the decisions of a batch, given the judgements of what was not forced."""
        given = iter(judged)
        return [
            self._decision(context, row, trial, None if trial.forced else next(given))
            for context, row, trial in zip(batch.contexts, batch.rows, batch.trials, strict=True)
        ]

    def _decision(
        self, context: Context, row: NDArray[Any] | None, trial: Trial, own: Judgement | None
    ) -> Decision:
        """Return the decision that exploration (``trial``) or judgement (``own``) takes."""
        count = len(self.problem.labels)
        greedy = [0.0] * count if own is None else one_hot(own.action, count)
        probabilities: Sequence[float]
        made_by: MadeBy
        if trial.proposed is not None:
            (action, probabilities), made_by = trial.proposed, "explore"
        else:
            assert own is not None, "what is not forced was judged"
            action, probabilities, made_by = own.action, own.probabilities, own.made_by
        return Decision(
            next(self._ids),
            action,
            self.problem.labels[action],
            tuple(float(p) for p in probabilities),
            made_by,
            context,
            trial.propensity(action, greedy),
            None if row is None else tuple(row.tolist()),
            own.seconds if own else 0.0,
            own.tokens if own else 0,
            trial.support(greedy),
        )


class AskingPolicy(JudgingPolicy):
    """Asks a model, which takes time: threads may ask at once, and everything is counted.

    Attributes:
        made_by: How often a decision was made by the model, from kept answers, by exploration, or
            by a fallback.
        failures: Queries whose request failed, by kind.
        asked: Distinct queries that the model was to answer.
        latencies: Seconds per decision that was not forced by exploration.
    """

    def __init__(self, problem: Problem, *, env: BatchedEnv | None = None, seed: int = 0) -> None:
        """Start with nothing counted."""
        super().__init__(problem, env=env, seed=seed)
        self.made_by: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.asked = 0
        self.latencies: list[float] = []
        self._lock = threading.RLock()  # calls of adecide ask in threads of their own

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Most calls of :meth:`adecide` that ask the model at once."""

    async def adecide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide without blocking the event loop; at most ``in_flight`` calls ask at once.

        Decisions come back in the order of ``situations``. Outcomes may be given to
        :meth:`update` meanwhile; a decision uses the experience there was when it was asked for.
        """
        batch = self._open(situations, explore)
        loop = asyncio.get_running_loop()
        return self._close(
            batch, await loop.run_in_executor(self._threads, self._judge, *batch.to_judge)
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.in_flight, thread_name_prefix="icl-decide")

    def _close(self, batch: Batch, judged: Sequence[Judgement]) -> list[Decision]:
        decisions = super()._close(batch, judged)
        self.made_by.update(d.made_by for d in decisions)
        self.latencies += [judgement.seconds for judgement in judged]
        return decisions
