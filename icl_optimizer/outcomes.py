"""What came of each decision in the situations it was taken in: chances and rewards, summed up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from icl_optimizer.decision import Outcome
from icl_optimizer.forecast import Forecast
from icl_optimizer.problem import Context, Problem

WEIGHT = 1.0
"""Outcomes that a coarser group counts for in the estimate of a finer one."""

Words = tuple[str, ...]
Group = tuple[Any, ...]


@dataclass
class OutcomeTally:
    """Outcomes of one group.

    Attributes:
        count: How many.
        succeeded: How many were feasible.
        reward: Sum of the rewards of those.
        otherwise: Sum of the rewards of the others.
    """

    count: int = 0
    succeeded: int = 0
    reward: float = 0.0
    otherwise: float = 0.0

    def add(self, reward: float, succeeded: bool) -> None:
        """Count one outcome."""
        self.count += 1
        if succeeded:
            self.succeeded += 1
            self.reward += reward
        else:
            self.otherwise += reward


EMPTY = OutcomeTally()


class OutcomeTable:
    """Tallies by decision and by what the situation says about it.

    A situation tells of a decision what all share (the task) and what is its own (its queue), see
    :meth:`Problem.view`. A group is looked up in a dictionary, so an estimate takes as long after
    a hundred thousand outcomes as after ten. Where little was seen of a group, coarser ones count,
    each as :data:`WEIGHT` outcomes: chances fall back from decision, own and shared words to
    decision and own words, to own words over all decisions, to the decision, to everything;
    rewards, which do not depend on the queue once the answer is in time, from decision and shared
    words to the decision, to everything; where columns tell what a decision is worth (its stakes),
    from these words, whatever the decision, to everything.
    """

    def __init__(self, problem: Problem) -> None:
        """Start empty."""
        self.problem = problem
        self.received = 0
        self._tallies: dict[Group, OutcomeTally] = {}
        self._split: dict[Context, tuple[Words, tuple[Words, ...]]] = {}
        self._cells: dict[tuple[int, Words, Words], list[OutcomeTally]] = {}
        self._coarse: dict[tuple[int, Words], float] = {}
        self._staked = any(column.stake and column.spoken for column in problem.columns)
        self._no_stakes: tuple[Words, ...] = ((),) * problem.count

    def __len__(self) -> int:
        """Return how many decisions were seen in different situations of their own."""
        return len(self._cells)

    def add(self, outcome: Outcome) -> None:
        """Take one outcome in; censored ones count for nothing."""
        if outcome.censored:
            return
        shared, own = self.words(outcome.context)
        action, stakes = outcome.action, self._stakes(outcome.context)[outcome.action]
        self.received += 1
        self._coarse.clear()
        for tally in self._tallies_of(action, shared, own[action]):
            tally.add(outcome.reward, outcome.feasible)
        if stakes:
            self._stake(stakes).add(outcome.reward, outcome.feasible)

    def _stakes(self, context: Context) -> tuple[Words, ...]:
        return self.problem.stakes(context) if self._staked else self._no_stakes

    def _stake(self, stakes: Words) -> OutcomeTally:
        return self._tallies.setdefault(("stake", stakes), OutcomeTally())

    def _tallies_of(self, action: int, shared: Words, own: Words) -> list[OutcomeTally]:
        """Return the tallies that an outcome belongs to, new ones where there are none yet."""
        known = self._cells.get((action, shared, own))
        if known is None:
            groups: tuple[Group, ...] = (
                ("cell", action, shared, own),
                ("task", action, shared),
                *_coarse_groups(action, own),
            )
            known = [self._tallies.setdefault(group, OutcomeTally()) for group in groups]
            self._cells[action, shared, own] = known
        return known

    def words(self, context: Context) -> tuple[Words, tuple[Words, ...]]:
        """Return the words that all decisions share, and the own words of each."""
        known = self._split.get(context)
        if known is None:
            shared, own = self.problem.split(context)
            known = shared.words, tuple(c.words for c in own)
            if len(self._split) > 100_000:
                self._split.clear()
            self._split[context] = known
        return known

    def tally(self, action: int, shared: Words, own: Words) -> OutcomeTally:
        """Return what was seen of a decision in one situation."""
        return self._tallies.get(("cell", action, shared, own), EMPTY)

    def tried(self, context: Context, action: int) -> int:
        """Return how often ``action`` was taken where the situation said the same about it."""
        shared, own = self.words(context)
        return self.tally(action, shared, own[action]).count

    def chance(self, action: int, shared: Words, own: Words) -> float:
        """Return the estimated probability that the decision succeeds."""
        coarse = self._coarse.get((action, own))
        if coarse is None:
            coarse = 0.5
            for group in _coarse_groups(action, own):
                coarse = self._share(group, coarse)
            self._coarse[action, own] = coarse
        return self._share(("cell", action, shared, own), coarse)

    def _share(self, group: Group, coarser: float) -> float:
        """Return the share of successes in a group, towards what coarser ones say."""
        tally = self._tallies.get(group, EMPTY)
        return (tally.succeeded + WEIGHT * coarser) / (tally.count + WEIGHT)

    def rewards(self, action: int, shared: Words, stakes: Words = ()) -> tuple[float, float]:
        """Return the estimated reward of the decision if it succeeds, and if it does not."""
        good, bad = 0.0, 0.0
        groups: tuple[Group, ...] = (("action", action), ("task", action, shared))
        for group in (("all",), *((("stake", stakes),) if stakes else groups)):
            tally = self._tallies.get(group, EMPTY)
            weight = 0.0 if group == ("all",) else WEIGHT
            failed = tally.count - tally.succeeded
            if tally.succeeded:
                good = (tally.reward + weight * good) / (tally.succeeded + weight)
            if failed:
                bad = (tally.otherwise + weight * bad) / (failed + weight)
        return good, bad

    def forecast(self, contexts: Sequence[Context]) -> Forecast:
        """Return what the table expects of every decision."""
        count = len(self.problem.labels)
        chance, reward, otherwise = np.zeros((3, len(contexts), count))
        for i, context in enumerate(contexts):
            shared, own = self.words(context)
            stakes = self._stakes(context)
            for action in range(count):
                chance[i, action] = self.chance(action, shared, own[action])
                reward[i, action], otherwise[i, action] = self.rewards(
                    action, shared, stakes[action]
                )
        return Forecast(chance, reward, otherwise, np.full(chance.shape, np.nan))

    def row(self, action: int, shared: Words) -> list[tuple[Words, float]]:
        """Return what is expected of the decision by its own words, in their order.

        Every combination that any decision was seen in, so that a cell not seen yet shows what
        coarser groups say of it.
        """
        return [
            (own, self.chance(action, shared, own))
            for own in self.problem.own_words(action)
            if ("level", own) in self._tallies
        ]

    def cells(self) -> Collection[tuple[int, Words, Words]]:
        """Return decision, shared and own words of every situation that was seen."""
        return self._cells.keys()

    def to_json(self) -> list[dict[str, Any]]:
        """Return everything as plain JSON values."""
        stakes = [group[1] for group in self._tallies if group[0] == "stake"]
        return [
            {"action": action, "shared": shared, "own": own}
            | asdict(self.tally(action, shared, own))
            for action, shared, own in self._cells
        ] + [{"stakes": words} | asdict(self._stake(words)) for words in stakes]

    @classmethod
    def from_json(cls, problem: Problem, rows: Sequence[Mapping[str, Any]]) -> OutcomeTable:
        """Return the table that :meth:`to_json` described."""
        table = cls(problem)
        for row in rows:
            if "stakes" in row:
                tally = table._stake(tuple(row["stakes"]))
                for name in asdict(tally):
                    setattr(tally, name, row[name])
                continue
            action, shared, own = row["action"], tuple(row["shared"]), tuple(row["own"])
            for tally in table._tallies_of(action, shared, own):
                for name in asdict(tally):
                    setattr(tally, name, getattr(tally, name) + row[name])
            table.received += row["count"]
        return table


def _coarse_groups(action: int, own: Words) -> tuple[Group, ...]:
    """Return the groups that tell of a decision's success whatever is shared, coarsest first."""
    return ("all",), ("action", action), ("level", own), ("own", action, own)
