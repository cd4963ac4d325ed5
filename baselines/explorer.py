"""What the learners on experience share with the in-context agent: pool and exploration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.ageing import Ageing
from icl_optimizer.baselines.saving import identity, read_json, restoring, write_json
from icl_optimizer.decision import Decision, MadeBy, Outcome, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.experience import ExperiencePool
from icl_optimizer.exploration import NO_TRIAL, Exploration, Trial
from icl_optimizer.policy import Policy, one_hot, rows_of
from icl_optimizer.problem import Context, Problem

CAPACITY = 100_000
"""Contexts that a pool keeps: practically all, a table need not fit into a prompt."""


class ExploringPolicy(Policy):
    """Explores exactly as the in-context agent does, and judges by experience otherwise.

    A subclass says what it makes of the experience in :meth:`_values`. Before any experience it
    has nothing to judge by, and decides at random.

    Args:
        problem: Labels and columns.
        exploration: When to try decisions; the in-context agent's default when None.
        ageing: When the experience is forgotten, see :class:`ExperiencePool`.
        env: Environment to learn in, if any.
        seed: Seeds exploration.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        problem: Problem,
        *,
        exploration: Exploration | None = None,
        ageing: Ageing = "none",
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Start without experience."""
        super().__init__(problem, env=env, seed=seed)
        self.exploration = exploration or Exploration()
        self.pool = ExperiencePool(problem, "means", capacity=CAPACITY, ageing=ageing)

    @abstractmethod
    def _values(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> NDArray[np.float64]:
        """Return how good each action is, ``(n, actions)``; there is experience."""

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for observations or contexts; see :class:`Policy`.

        ``probabilities`` are certain, since a mean knows no doubt; ``propensity`` is the chance
        over both ways, exploring and not, to take the action here.
        """
        contexts, rows = self.contexts(situations), rows_of(situations)
        trials = [self._try(context) if explore else NO_TRIAL for context in contexts]
        open_to_judgement = [i for i, trial in enumerate(trials) if not trial.forced]
        judged = self._judge(
            [contexts[i] for i in open_to_judgement], [rows[i] for i in open_to_judgement]
        )
        own = dict(zip(open_to_judgement, judged, strict=True))
        return [
            self._decision(contexts[i], rows[i], trial, own.get(i))
            for i, trial in enumerate(trials)
        ]

    def _decision(
        self,
        context: Context,
        row: NDArray[Any] | None,
        trial: Trial,
        own: tuple[int, list[float]] | None,
    ) -> Decision:
        """Return the decision that exploration (``trial``) or judgement (``own``) takes."""
        taken = trial.proposed or own
        assert taken is not None, "what is not forced was judged"
        action, chances = taken
        greedy = own[1] if own else chances
        chance, support = trial.propensity(action, greedy), trial.support(greedy)
        made_by: MadeBy = "explore" if trial.proposed else "rule"
        return self.rule_decision(context, action, chances, row, made_by, chance, support)

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes into the experience."""
        for outcome in outcomes:
            self.pool.add(outcome)

    def log_values(self) -> dict[str, float]:
        """Return epsilon and the number of known contexts."""
        return {
            f"{self.kind}/epsilon": self.exploration.epsilon(self.explored),
            f"{self.kind}/contexts": float(len(self.pool.tallies)),
        }

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON."""
        write_json(path, identity(self, self.kind) | self._state())

    def load(self, path: str | Path) -> Self:
        """Take over what :meth:`save` wrote."""
        data = read_json(self, self.kind, path)
        with restoring(path):
            self.seed, self.num_timesteps = data["seed"], data["num_timesteps"]
            self._restore(data)
        return self

    def _state(self) -> dict[str, Any]:
        return {
            "exploration": self.exploration.model_dump(mode="json"),
            "explored": self.explored,
            "pool": self.pool.to_json(),
        }

    def _restore(self, data: dict[str, Any]) -> None:
        self.exploration = Exploration(**data["exploration"])
        self.explored = data["explored"]
        self.pool = ExperiencePool.from_json(self.problem, data["pool"])

    def _try(self, context: Context) -> Trial:
        trial = self.exploration.trial(self.pool, context, self.explored, self.rng)
        self.explored += 1
        return trial

    def _judge(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> list[tuple[int, list[float]]]:
        """Return the chosen action and the chance of each."""
        if not contexts:
            return []
        count = len(self.problem.labels)
        if self.pool.received == 0:
            drawn = self.rng.integers(count, size=len(contexts))
            return [(int(action), [1 / count] * count) for action in drawn]
        best = self._values(contexts, rows).argmax(axis=1)
        return [(int(action), one_hot(int(action), count)) for action in best]
