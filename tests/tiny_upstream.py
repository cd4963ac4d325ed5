"""Scripted servers for tests of queues, health and routing; no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from icl_optimizer.environments.fleet.upstream import DONE, Answer, Path, Upstream, UpstreamError

Fault = Literal[
    "", "refused", "500", "429", "400", "404", "413", "hang", "cut", "silent", "whole", "thoughts"
]


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def whole(text: str) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": len(text.split())}
    choices = [{"message": {"content": text}}]
    return json.dumps({"choices": choices, "usage": usage}).encode()


@dataclass
class ScriptedUpstream(Upstream):
    """Answers ``words``, one event each; ``faults`` are met by the next requests, in order.

    With ``gate`` every request waits until the gate is opened.
    """

    words: tuple[str, ...] = ("a", "b", "c")
    faults: list[Fault] = field(default_factory=list)
    gate: asyncio.Event | None = None
    alive: bool = True
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    closed: int = 0
    most_at_once: int = 0
    now: int = 0

    async def send(self, path: Path, body: Mapping[str, Any]) -> Answer:
        self.asked.append(body)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise UpstreamError("nobody listens", "connection")
        if fault == "500":
            raise UpstreamError("broken", "server", None, 500)
        if fault == "429":
            raise UpstreamError("busy", "rate limit", 7.0, 429)
        if fault == "400":
            raise UpstreamError("no such field", "request", None, 400)
        if fault == "404":
            raise UpstreamError("no such model", "server", None, 404)
        if fault == "413":
            raise UpstreamError("too long", "request", None, 413)
        if fault == "hang":
            await asyncio.Event().wait()
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        streams = bool(body.get("stream")) and fault != "whole"
        kind = "text/event-stream" if streams else "application/json"
        return Answer(kind, self._chunks(streams, fault), self._close)

    async def _chunks(self, streams: bool, fault: Fault) -> AsyncIterator[bytes]:
        if self.gate is not None:
            await self.gate.wait()
        if fault == "silent":
            await asyncio.Event().wait()
        if not streams:
            if fault == "cut":
                raise UpstreamError("hung up", "connection")
            yield whole(" ".join(self.words))
            return
        yield event("")
        if fault == "thoughts":
            yield b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n'
            await asyncio.Event().wait()
        for i, word in enumerate(self.words):
            if fault == "cut" and i == 1:
                raise UpstreamError("hung up", "connection")
            yield event(word)
        yield DONE

    async def _close(self) -> None:
        self.now -= 1
        self.closed += 1

    async def healthy(self) -> bool:
        return self.alive

    async def close(self) -> None:
        return None
