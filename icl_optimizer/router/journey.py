"""One request on its way, and the books that are kept about all of them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from icl_optimizer.decision import Outcome
from icl_optimizer.router.decision_log import DecisionLog
from icl_optimizer.router.metrics import RouterMetrics
from icl_optimizer.router.pool_store import PoolStore
from icl_optimizer.router.requests import Choice, RoutedRequest

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.config import FleetConfig
    from icl_optimizer.environments.fleet.servers import Served
    from icl_optimizer.environments.fleet.upstream import UpstreamError
    from icl_optimizer.router.choice import Chooser
    from icl_optimizer.router.settings import RouterSettings

RECENT = 50
"""Decisions that the live page may show."""
CLIENT_GONE = 499
"""Status, as nginx counts it, of a request whose client went away."""


@dataclass
class Journey:
    """One request from its arrival to its end.

    Attributes:
        request: What came.
        task: Its task type.
        deadline_s: Its deadline, seconds after its arrival.
        choices: Where it was sent, one choice after the other.
        ended: Whether it is known what became of it.
        counts_for_us: Whether the server was asked to count tokens for the books alone.
    """

    request: RoutedRequest
    task: str
    deadline_s: float
    choices: list[Choice] = field(default_factory=list)
    ended: bool = False
    counts_for_us: bool = False

    @property
    def left_s(self) -> float:
        """Seconds until its deadline, a little more than 0 where that is over."""
        return max(self.deadline_s - self.seconds, 1e-3)

    @property
    def choice(self) -> Choice:
        """Where it is, or was at last."""
        return self.choices[-1]

    @property
    def seconds(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.request.arrived


@dataclass
class Totals:
    """What became of requests since the router began."""

    requests: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    retried: int = 0
    cancelled: int = 0
    deadlines_met: int = 0
    learned: int = 0
    tokens: int = 0
    dollars: float = 0.0


class Books:
    """Counts, logs and learns: everything that follows from what becomes of requests.

    Args:
        config: The fleet, for scores and prices.
        chooser: Lets the policy learn.
        settings: What is kept, and where.
        pool: Where outcomes go, if anywhere.
    """

    def __init__(
        self,
        config: FleetConfig,
        chooser: Chooser,
        settings: RouterSettings,
        pool: PoolStore | None,
    ) -> None:
        """Begin empty."""
        self.totals = Totals()
        self.metrics = RouterMetrics(config.names)
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._config, self._chooser, self._settings, self._pool = config, chooser, settings, pool
        self._log = DecisionLog(settings.decision_log)

    def close(self) -> None:
        """Write what waits, and close the files."""
        if self._pool is not None:
            self._pool.close()
        self._log.close()

    def summary(self) -> dict[str, Any]:
        """Return the totals as plain JSON values."""
        pending = self._pool.pending if self._pool is not None else 0
        lost = self._pool.lost if self._pool is not None else 0
        return asdict(self.totals) | {
            "pool_pending": pending,
            "pool_lost": lost,
            "log_dropped": self._log.dropped,
            "policy_failures": sum(self._chooser.failures.values()),
        }

    def flush(self) -> None:
        """Write what could not be written before."""
        if self._pool is not None and self._pool.pending:
            self._pool.flush()
            self.metrics.pool_pending(self._pool.pending)

    def sent(self, journey: Journey, failure: UpstreamError | None) -> None:
        """Note a choice; ``failure`` is what another server did with the request before."""
        choice = journey.choice
        if failure is not None:
            self.totals.retried += 1
            self.metrics.retried(journey.choices[-2].name, failure.kind)
        self.metrics.decided(choice.name, choice.seconds, choice.made_by)

    def failed_early(self, journey: Journey, error: UpstreamError) -> None:
        """Note a server that failed before the first token; the request may go elsewhere."""
        # whoever sent it there learns that this was of no use
        if error.blames:
            self._learn(journey, met=False)
        reward = self._reward(journey, met=False) if error.blames else None
        self._note(journey, f"failed: {error.kind}", None, reward, met=False)

    def refused(self, journey: Journey | None, status: int) -> None:
        """Note a request that was not answered: by no server that was asked, or without asking."""
        if journey is None or not journey.choices:
            self.totals.refused += 1
            self.metrics.refused(status)
        else:
            journey.ended = True
            self.totals.failed += 1
            self._unanswered(journey, None, status)

    def answered(self, journey: Journey, served: Served) -> None:
        """Note a whole answer."""
        seconds = journey.seconds
        met = seconds <= journey.deadline_s
        price = served.server.config.price
        dollars = (served.prompt_tokens * price.input + served.tokens * price.output) / 1e6
        journey.ended = True
        self.totals.answered += 1
        self.totals.deadlines_met += met
        self.totals.tokens += served.tokens
        self.totals.dollars += dollars
        first = None
        if served.first_token_s is not None and served.last_s is not None:
            first = max(0.0, seconds - served.last_s + served.first_token_s)
        self.metrics.finished(
            *(journey.choice.name, 200, seconds, first, met),
            *(served.prompt_tokens, served.tokens, dollars),
        )
        self._learn(journey, met=met)
        self._note(journey, "answered", served, self._reward(journey, met=met), met=met)

    def broke_off(self, journey: Journey, served: Served, error: UpstreamError) -> None:
        """Note an answer that ended in the middle."""
        journey.ended = True
        self.totals.failed += 1
        self._unanswered(journey, served, 502)
        reward = None
        if error.blames:
            self._learn(journey, met=False)
            reward = self._reward(journey, met=False)
        self._note(journey, f"broke off: {error.kind}", served, reward, met=False)

    def cancelled(self, journey: Journey, served: Served | None) -> None:
        """Note a client who went away; before the deadline, nobody knows what would have come."""
        if journey.ended:
            return
        journey.ended = True
        self.totals.cancelled += 1
        if not journey.choices:
            return
        self._unanswered(journey, served, CLIENT_GONE)
        late = journey.seconds >= journey.deadline_s
        if late:
            self._learn(journey, met=False)
        self._note(journey, "client went away", served, 0.0 if late else None, met=False)

    def _unanswered(self, journey: Journey, served: Served | None, status: int) -> None:
        tokens = 0 if served is None else served.tokens
        seconds = journey.seconds
        # a client that goes away early leaves open whether the deadline would have been met
        met = None if status == CLIENT_GONE and seconds < journey.deadline_s else False
        self.metrics.finished(journey.choice.name, status, seconds, None, met, 0, tokens, 0.0)

    def _learn(self, journey: Journey, *, met: bool) -> None:
        if not self._settings.learn:
            return
        choice = journey.choice
        outcome = Outcome(
            choice.decision.id,
            choice.decision.context,
            choice.server,
            self._reward(journey, met=met),
            met,
            False,
            choice.decision.observation,
            {"response_time_s": journey.seconds, "deadline_met": float(met)},
        )
        if self._pool is not None:
            self._pool.append(outcome)
            self.metrics.pool_pending(self._pool.pending)
        self._chooser.learn(outcome)
        self.totals.learned += 1

    def _reward(self, journey: Journey, *, met: bool) -> float:
        """Return the server's score on the task, or 0 where the deadline was missed."""
        server = self._config.servers[journey.choice.server]
        return server.score(journey.task) if met else 0.0

    def _note(
        self,
        journey: Journey,
        became: str,
        served: Served | None,
        reward: float | None,
        *,
        met: bool,
    ) -> None:
        """Write the decision log, and what the page shows; no reward where it is not known."""
        line = {**_about(journey, self._config.names), "became": became, "met": met}
        line |= {"reward": reward, "response_s": round(journey.seconds, 4), **_course(served)}
        self.recent.appendleft(line)
        if self._settings.log_prompts:
            line = {**line, "request": dict(journey.request.body)}
        self._log.write(line)


def _about(journey: Journey, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what was known, and what was decided."""
    choice = journey.choice
    chances = (round(p, 4) for p in choice.probabilities)
    return {
        "time": round(time.time(), 3),
        "id": journey.request.id,
        "attempt": len(journey.choices),
        "task": choice.task,
        "deadline_s": choice.deadline_s,
        "queues": dict(zip(names, choice.queues, strict=True)),
        "observation": choice.decision.observation,
        "action": choice.server,
        "server": choice.name,
        "wanted": names[choice.decision.action],
        "probabilities": dict(zip(names, chances, strict=True)),
        "propensity": round(choice.propensity, 6),
        "support": round(choice.support, 6),
        "made_by": choice.made_by,
        "reasons": list(choice.reasons),
        "decision_s": round(choice.seconds, 6),
    }


def _course(served: Served | None) -> dict[str, Any]:
    if served is None:
        return {"queued_s": None, "first_token_s": None, "tokens": 0}
    first = served.first_token_s
    return {
        "queued_s": round(served.queued_s, 4),
        "first_token_s": None if first is None else round(first, 4),
        "tokens": served.tokens,
    }
