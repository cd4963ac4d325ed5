"""Experience: what was tried in which context, and which examples a prompt may show."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from icl_optimizer.ageing import AGEINGS, Ageing, ChangeDetector
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.problem import Context, Problem

Replay = Literal["means", "prioritized", "latest"]
REPLAYS: tuple[Replay, ...] = ("means", "prioritized", "latest")
DEFAULT_CONTEXTS = 512
DEFAULT_OUTCOMES = 16


@dataclass(frozen=True)
class Example:
    """One example of a prompt, eq. (9): keywords, decision, reward, evaluation.

    Attributes:
        context: The keywords and their words.
        action: Index of the decision.
        reward: Its reward, or the mean reward of that decision in this context.
        good: Evaluation: good or bad decision.
        visits: How many outcomes speak for it: those seen in this context.
    """

    context: Context
    action: int
    reward: float
    good: bool = True
    visits: int = 1


@dataclass
class Tally:
    """How often a decision was tried in a context, and how it was rewarded.

    Attributes:
        count: Outcomes.
        mean: Their mean reward.
        squares: Sum of squared deviations from the mean, those of outliers limited.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, reward: float, limit: float = math.inf) -> None:
        """Count one more reward; ``squares`` grows by ``limit`` at most."""
        before = reward - self.mean
        self.count += 1
        self.mean += before / self.count
        self.squares += min(before * (reward - self.mean), limit)


class ExperiencePool:
    """Outcomes as they arrive, and the examples that follow from them.

    ``replay`` says which examples a prompt may show:

    - ``prioritized``: the rules of Zhou et al. (Section III-B). A new context enters as good;
      in a known one the higher reward stays; a violated constraint is bad and changes nothing.
    - ``means``: one example per context in which at least two decisions were tried, the one with
      the highest *mean* reward. So neither a lucky reward nor a decision that nothing was held
      against stays for ever. Before there is any such context, rule 1 holds: what was tried first.
    - ``latest``: the last ``capacity`` outcomes as they are (baseline 1 of the paper).

    Args:
        problem: Labels and keywords.
        replay: See above.
        capacity: Most examples kept by ``latest``; contexts kept by the other two (the oldest
            is forgotten).
        ageing: ``none``, or ``surprise``: when rewards no longer are what they were, everything
            from before the change is forgotten (see :class:`~.ageing.ChangeDetector`).

    Attributes:
        received: Outcomes taken in so far.
        counted: How many of them, from the last one back, still count.
    """

    def __init__(
        self,
        problem: Problem,
        replay: Replay = "means",
        *,
        capacity: int | None = None,
        ageing: Ageing = "none",
    ) -> None:
        """Start empty."""
        if replay not in REPLAYS:
            raise unknown_name("replay", replay, REPLAYS)
        if ageing not in AGEINGS:
            raise unknown_name("ageing", ageing, AGEINGS)
        default = DEFAULT_OUTCOMES if replay == "latest" else DEFAULT_CONTEXTS
        self.problem = problem
        self.replay = replay
        self.capacity = default if capacity is None else capacity
        if self.capacity < 1:
            raise ConfigurationError(f"capacity is {capacity}; allowed: at least 1.")
        self.ageing = ageing
        self.received = 0
        self._latest: deque[Example] = deque(maxlen=self.capacity)
        self._clear()

    def _clear(self) -> None:
        """Forget every outcome."""
        self.tallies: dict[Context, dict[int, Tally]] = {}
        self.counted = 0
        self._best: dict[Context, Example] = {}
        self._latest.clear()
        self._examples: list[Example] | None = None
        self._detector = None if self.ageing == "none" else ChangeDetector()
        self._suspects: list[Outcome] = []

    def __len__(self) -> int:
        """Return the number of examples a prompt may show."""
        return len(self.examples())

    def add(self, outcome: Outcome) -> Literal["good", "bad"]:
        """Take one outcome in and return its evaluation; censored ones count for nothing."""
        self.problem.check_context(outcome.context)
        if outcome.censored:
            return "bad"
        self.received += 1
        return "good" if self._take(outcome) else "bad"

    def _take(self, outcome: Outcome) -> bool:
        self.counted += 1
        good = self._evaluate(outcome)
        tally = self.tallies.setdefault(outcome.context, {}).setdefault(outcome.action, Tally())
        changed = self._notice(outcome, tally)
        example = Example(outcome.context, outcome.action, outcome.reward, good)
        self._latest.append(example)
        if good:
            self._best[outcome.context] = example
        self._forget()
        self._examples = None
        if changed:
            self._start_anew()
        return good

    def _notice(self, outcome: Outcome, tally: Tally) -> bool:
        """Count the outcome and return whether the world has changed."""
        if self._detector is None:
            tally.add(outcome.reward)
            return False
        changed = self._detector.add(outcome.reward, tally)
        if not self._detector.surprised:
            self._suspects.clear()
        else:
            self._suspects.append(outcome)
        return changed

    def _start_anew(self) -> None:
        """Forget everything but the surprises in a row that raised the alarm."""
        since = self._suspects
        self._clear()
        for outcome in since:
            self._take(outcome)

    def tried(self, context: Context, action: int) -> int:
        """Return how often ``action`` was carried out in ``context``."""
        tally = self.tallies.get(context, {}).get(action)
        return 0 if tally is None else tally.count

    def examples(self) -> list[Example]:
        """Return the examples a prompt may show, oldest first; do not change the list."""
        if self._examples is None:
            if self.replay == "latest":
                self._examples = list(self._latest)
            elif self.replay == "prioritized":
                self._examples = list(self._best.values())
            else:
                self._examples = self._mean_examples()
        return self._examples

    def best_action(self, context: Context) -> int | None:
        """Return the decision with the highest mean reward in ``context``; None if never seen."""
        tallies = self.tallies.get(context)
        return None if not tallies else max(tallies, key=lambda action: tallies[action].mean)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "replay": self.replay,
            "capacity": self.capacity,
            "received": self.received,
            "counted": self.counted,
            "ageing": self.ageing,
            "tallies": [
                {"words": c.words, "action": a, **asdict(t)}
                for c, actions in self.tallies.items()
                for a, t in actions.items()
            ],
            "best": [self._example_json(e) for e in self._best.values()],
            "latest": [self._example_json(e) for e in self._latest],
            "detector": None if self._detector is None else self._detector.to_json(),
            "suspects": [
                {
                    "words": o.context.words,
                    "action": o.action,
                    "reward": o.reward,
                    "feasible": o.feasible,
                }
                for o in self._suspects
            ],
        }

    @classmethod
    def from_json(cls, problem: Problem, data: Mapping[str, Any]) -> ExperiencePool:
        """Return the pool that :meth:`to_json` described; an older one has no ageing."""
        ageing = data.get("ageing", "none")
        pool = cls(problem, data["replay"], capacity=data["capacity"], ageing=ageing)
        pool.received = data["received"]
        pool.counted = data.get("counted", pool.received)
        for row in data["tallies"]:
            context = problem.context(row["words"])
            tally = Tally(row["count"], row["mean"], row.get("squares", 0.0))
            pool.tallies.setdefault(context, {})[row["action"]] = tally
        for row in data["best"]:
            example = pool._example(row)
            pool._best[example.context] = example
        pool._latest.extend(pool._example(row) for row in data["latest"])
        if pool._detector is not None:
            pool._detector = ChangeDetector.from_json(data["detector"])
            pool._suspects = [pool._outcome(row) for row in data["suspects"]]
        return pool

    def _evaluate(self, outcome: Outcome) -> bool:
        """Return whether the outcome is a good decision by rules 1 and 2."""
        if not outcome.feasible:
            return False
        known = self._best.get(outcome.context)
        return known is None or outcome.reward > known.reward

    def _mean_examples(self) -> list[Example]:
        compared = [c for c, actions in self.tallies.items() if len(actions) > 1]
        return [self._mean_example(c) for c in compared or self.tallies]

    def _mean_example(self, context: Context) -> Example:
        tallies = self.tallies[context]
        action = max(tallies, key=lambda a: tallies[a].mean)
        visits = sum(tally.count for tally in tallies.values())
        return Example(context, action, tallies[action].mean, visits=visits)

    def _forget(self) -> None:
        # the capacity of ``latest`` counts outcomes; what was tried where is kept as by default
        contexts = DEFAULT_CONTEXTS if self.replay == "latest" else self.capacity
        for store in (self.tallies, self._best):
            while len(store) > contexts:
                store.pop(next(iter(store)))

    def _example_json(self, example: Example) -> dict[str, Any]:
        return {
            "words": example.context.words,
            "action": example.action,
            "reward": example.reward,
            "good": example.good,
        }

    def _example(self, row: Mapping[str, Any]) -> Example:
        return Example(
            self.problem.context(row["words"]), row["action"], row["reward"], row["good"]
        )

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        context = self.problem.context(row["words"])
        return Outcome(0, context, row["action"], row["reward"], row["feasible"])
