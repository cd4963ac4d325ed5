"""What comes in and what goes out: requests, choices, answers, errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from icl_optimizer.decision import Decision
from icl_optimizer.environments.fleet.upstream import Path

UNKNOWN_TASK = "not looked at"
"""Task type of a request where neither the policy nor a log asks for it."""


def new_id() -> str:
    """Return a name for a request."""
    return f"req-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class RoutedRequest:
    """A request as the router sees it.

    Attributes:
        body: The request in OpenAI's form.
        path: Which endpoint it is for.
        deadline_s: Time allowed from its arrival to the end of the answer, seconds; None for the
            fleet's own.
        task: Its task type; None: the classifier finds it.
        id: Its name in logs and headers.
        arrived: When it came, on the monotonic clock.
    """

    body: Mapping[str, Any]
    path: Path = "chat/completions"
    deadline_s: float | None = None
    task: str | None = None
    id: str = field(default_factory=new_id)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def streams(self) -> bool:
        """Whether the answer is wanted in parts."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class Choice:
    """Where a request goes, and why.

    Attributes:
        server: Index of the server.
        name: Its name.
        probabilities: What the policy gives each server.
        made_by: Who decided: language model, its cache, exploration, a fallback, a rule.
        reasons: In words, what led to it.
        task: Task type, :data:`UNKNOWN_TASK` where nobody asks for it.
        deadline_s: Deadline, seconds after the arrival.
        queues: Requests at each server at that moment.
        decision: The policy's own decision.
        seconds: Time that it took.
        support: Least chance of any server, 0 where one could not be asked.
    """

    server: int
    name: str
    probabilities: tuple[float, ...]
    made_by: str
    reasons: tuple[str, ...]
    task: str
    deadline_s: float
    queues: tuple[int, ...]
    decision: Decision
    seconds: float
    support: float = 0.0

    @property
    def propensity(self) -> float:
        """Chance with which the policy decides like this here."""
        return self.decision.propensity


@dataclass
class Routed:
    """An answer on its way back.

    Attributes:
        choice: Who answers.
        media_type: Of the body.
        headers: To be sent along.
        chunks: The body; server-sent events come one by one. A server that fails after the first
            token ends it with an event that holds an error.
        close: To be called when the client has got everything, or went away.
        status: HTTP status.
    """

    choice: Choice
    media_type: str
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]]
    status: int = 200


class RouterError(Exception):
    """A request that is not answered; what the client is told.

    Attributes:
        status: HTTP status.
        message: What happened, without anything secret.
        type: OpenAI's word for it.
        retry_after: Seconds after which to try again, where that may help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "server_error",
        retry_after: float | None = None,
    ) -> None:
        """Keep what the client is told."""
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """Return the error in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.type, "code": self.status}}
