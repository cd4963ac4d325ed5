"""Experience: what was tried in which context, and which examples a prompt may show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
    """How often a decision was tried in a context, and its mean reward."""

    count: int = 0
    mean: float = 0.0

    def add(self, reward: float) -> None:
        """Count one more reward."""
        self.count += 1
        self.mean += (reward - self.mean) / self.count


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
    """

    def __init__(
        self, problem: Problem, replay: Replay = "means", *, capacity: int | None = None
    ) -> None:
        """Start empty."""
        if replay not in REPLAYS:
            raise unknown_name("replay", replay, REPLAYS)
        default = DEFAULT_OUTCOMES if replay == "latest" else DEFAULT_CONTEXTS
        self.problem = problem
        self.replay = replay
        self.capacity = default if capacity is None else capacity
        if self.capacity < 1:
            raise ConfigurationError(f"capacity is {capacity}; allowed: at least 1.")
        self.tallies: dict[Context, dict[int, Tally]] = {}
        self._best: dict[Context, Example] = {}
        self._latest: deque[Example] = deque(maxlen=self.capacity)
        self._examples: list[Example] | None = None
        self.received = 0

    def __len__(self) -> int:
        """Return the number of examples a prompt may show."""
        return len(self.examples())

    def add(self, outcome: Outcome) -> Literal["good", "bad"]:
        """Take one outcome in and return its evaluation; censored ones count for nothing."""
        if outcome.censored:
            return "bad"
        self.received += 1
        good = self._evaluate(outcome)
        tally = self.tallies.setdefault(outcome.context, {}).setdefault(outcome.action, Tally())
        tally.add(outcome.reward)
        example = Example(outcome.context, outcome.action, outcome.reward, good)
        self._latest.append(example)
        if good:
            self._best[outcome.context] = example
        self._forget()
        self._examples = None
        return "good" if good else "bad"

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
            "tallies": [
                {"words": c.words, "action": a, **asdict(t)}
                for c, actions in self.tallies.items()
                for a, t in actions.items()
            ],
            "best": [self._example_json(e) for e in self._best.values()],
            "latest": [self._example_json(e) for e in self._latest],
        }

    @classmethod
    def from_json(cls, problem: Problem, data: Mapping[str, Any]) -> ExperiencePool:
        """Return the pool that :meth:`to_json` described."""
        pool = cls(problem, data["replay"], capacity=data["capacity"])
        pool.received = data["received"]
        for row in data["tallies"]:
            context = problem.context(row["words"])
            tally = Tally(row["count"], row["mean"])
            pool.tallies.setdefault(context, {})[row["action"]] = tally
        for row in data["best"]:
            example = pool._example(row)
            pool._best[example.context] = example
        pool._latest.extend(pool._example(row) for row in data["latest"])
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
