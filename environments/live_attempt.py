"""One task on its way through a live fleet, and what came of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from icl_optimizer.environments.fleet.answers import read_answer
from icl_optimizer.environments.fleet.servers import Fleet, QueueFullError
from icl_optimizer.environments.fleet.tasks import CheckableTask
from icl_optimizer.environments.fleet.upstream import UpstreamError


@dataclass
class Attempt:
    """One task on its way to an answer.

    Attributes:
        item: Number of the task in its episode.
        server: Where it was sent.
        decision_id: Of the decision.
        arrival: Scheduled arrival on the clock, seconds.
        deadline_s: Time allowed from then on.
        task: What is asked.
        decided_s: Seconds from the arrival until it was sent on its way.
        response_s: Seconds from the arrival until it was over.
        score: Of the answer, whenever it came.
        dropped: Whether the server had no room.
        failed: Whether the server gave no whole answer.
        cancelled: Whether it was given up at its deadline.
        queued_s: Seconds that it waited for a slot.
        ttft_s: Seconds from the arrival to the first token; 0 without an answer, as what follows.
        tpot_s: Seconds per token after the first.
        tokens: Tokens of the answer.
    """

    item: int
    server: int
    decision_id: int
    arrival: float
    deadline_s: float
    task: CheckableTask
    decided_s: float = 0.0
    response_s: float = 0.0
    score: float = 0.0
    dropped: bool = False
    failed: bool = False
    cancelled: bool = False
    queued_s: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens: int = 0

    @property
    def met(self) -> bool:
        """Whether a whole answer was there by the deadline."""
        given_up = self.dropped or self.failed or self.cancelled
        return not given_up and self.response_s <= self.deadline_s

    @property
    def metrics(self) -> dict[str, float]:
        """What the environment reports of it."""
        return {
            "deadline_met": float(self.met),
            "score": self.score if self.met else 0.0,
            "response_time_s": 0.0 if self.dropped else self.response_s,
            "dropped": float(self.dropped),
            "server": float(self.server),
            "failed": float(self.failed),
            "decided_s": self.decided_s,
            "queued_s": self.queued_s,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "tokens": float(self.tokens),
        }

    async def run(self, fleet: Fleet, *, cancel: bool) -> None:
        """Send the task and read the answer; note what came of it."""
        self.decided_s = time.monotonic() - self.arrival
        left = self.deadline_s - self.decided_s
        try:
            async with asyncio.timeout(left if cancel else None):
                answer = await read_answer(fleet, self.server, self.task.body)
        except TimeoutError:
            self.cancelled = True
        except QueueFullError:
            self.dropped = True
        except UpstreamError:
            self.failed = True
        else:
            self.score = self.task.check(answer.text)
            self.queued_s, self.tokens = answer.queued_s, answer.tokens
            self.ttft_s = self.decided_s + answer.queued_s + answer.first_token_s
            self.tpot_s = answer.token_s
        self.response_s = time.monotonic() - self.arrival
