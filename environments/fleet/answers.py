"""One answer of a fleet's server, read to its end: its text and how long its parts took."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icl_optimizer.environments.fleet.servers import Fleet


@dataclass(frozen=True)
class Reading:
    """An answer that was whole.

    Attributes:
        text: What was answered.
        tokens: Tokens of it.
        queued_s: Seconds that the request waited for a slot.
        first_token_s: Seconds from then to the first token.
        service_s: Seconds from then to the end.
    """

    text: str
    tokens: int
    queued_s: float
    first_token_s: float
    service_s: float

    @property
    def token_s(self) -> float:
        """Seconds per token after the first, 0 where there is none."""
        return (self.service_s - self.first_token_s) / (self.tokens - 1) if self.tokens > 1 else 0.0


async def read_answer(fleet: Fleet, index: int, body: Mapping[str, Any]) -> Reading:
    """Send a chat request to a server and return its answer.

    Raises:
        UpstreamError: There was no room, or no whole answer.
    """
    began = time.monotonic()
    async with await fleet.serve(index, "chat/completions", body) as served:
        text = "".join([text_of(chunk) async for chunk in served])
        service_s = time.monotonic() - began - served.queued_s
        first_s = service_s if served.first_token_s is None else served.first_token_s
        return Reading(text, served.tokens, served.queued_s, first_s, service_s)


def text_of(chunk: bytes) -> str:
    """Return the text in an event of a stream, or in a whole answer; empty where there is none."""
    try:
        told = json.loads(chunk.removeprefix(b"data:"))
    except ValueError:
        return ""
    choices = told.get("choices") if isinstance(told, dict) else None
    if not choices:
        return ""
    said = choices[0].get("delta") or choices[0].get("message") or {}
    return said.get("content") or choices[0].get("text") or ""
