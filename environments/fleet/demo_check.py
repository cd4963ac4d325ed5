"""How well the demo fleet keeps its pace: each server alone, all together, and beside a decider."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import numpy as np

from icl_optimizer.environments.base import Floats

from .config import FleetConfig, ServerConfig
from .demo import DemoFleet, ask_server

_MAX_TOKENS = 24
_DECIDER = ServerConfig(name="decider", llm="llamacpp", tokens_per_s=1e6)
_THINGS = ("apples", "pears", "pens", "cups", "maps", "keys", "lamps", "coins")
_EXAMPLES = "\n".join(
    f"queue {i % 7} at ash, {i % 5} at birch, {i % 6} at cedar: {_THINGS[i % 8]}" for i in range(24)
)


@dataclass(frozen=True)
class PaceCheck:
    """One server under load from one client that always has a request under way.

    Attributes:
        load: Who else was at work: ``alone``, ``together`` or ``beside a decider``.
        server: Its name.
        tokens_per_s: Its pace.
        requests: Answers that came.
        achieved_per_s: Mean over answers of tokens / (response time - ``overhead_s``).
        ttft_s: Mean time to the first token, seconds.
        worst_ttft_s: The longest.
        late: Share of tokens that went out late, see :data:`~.pacing.LATE_S`.
        lateness_s: Mean lateness of those, seconds; 0 where there are none.
    """

    load: str
    server: str
    tokens_per_s: float
    requests: int
    achieved_per_s: float
    ttft_s: float
    worst_ttft_s: float
    late: float
    lateness_s: float


@dataclass
class _Seen:
    """What a client saw: tokens, time to the first and to the end, seconds, of each answer."""

    tokens: list[int] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)


def check_demo(config: FleetConfig, seconds: float = 60.0) -> Iterator[PaceCheck]:
    """Start a fleet, measure it, and yield one row for each server and load.

    A third of the time goes to the servers alone, one after the other; a third to all together;
    a third to all together while another llama.cpp server reads a prompt of examples without
    pause, as the in-context policy would at worst.

    Args:
        config: The fleet, as for :class:`~icl_optimizer.environments.fleet.demo.DemoFleet`.
        seconds: Total length of the measurement.

    Raises:
        ConfigurationError, MissingDependencyError, ConnectionError: As for ``DemoFleet``.
    """
    part = seconds / 3
    with DemoFleet(config) as fleet:
        everyone = list(zip(config.servers, fleet.urls, strict=True))
        numbers = count()  # of prompts: none comes twice, since llama.cpp remembers what it read
        for server in everyone:
            yield from _measure("alone", [server], part / len(everyone), numbers)
        yield from _measure("together", everyone, part, numbers)
        with DemoFleet(FleetConfig(servers=(_DECIDER,))) as other:
            yield from _measure("beside a decider", everyone, part, numbers, other.urls[0])


def _measure(
    load: str,
    servers: Sequence[tuple[ServerConfig, str]],
    seconds: float,
    numbers: Iterator[int],
    decider: str | None = None,
) -> Iterator[PaceCheck]:
    urls = [url for _, url in servers]
    before = [_counted(url) for url in urls]
    seen = asyncio.run(_run(urls, seconds, numbers, decider))
    for (server, url), old, one in zip(servers, before, seen, strict=True):
        yield _row(load, server, one, _counted(url) - old)


def _counted(url: str) -> Floats:
    """Return the tokens, the late ones, and their lateness in seconds that a server counted."""
    told = ask_server(url, "/pace")
    if told is None:
        raise ConnectionError(f"{url}/pace does not answer.")
    return np.array([told[key] for key in ("tokens", "late_tokens", "lateness_s")], float)


def _row(load: str, server: ServerConfig, seen: _Seen, counted: Floats) -> PaceCheck:
    pairs = zip(seen.tokens, seen.end_s, strict=True)
    tokens, late, lateness_s = map(float, counted)
    return PaceCheck(
        load,
        server.name,
        server.tokens_per_s,
        len(seen.tokens),
        statistics.fmean(length / (end - server.overhead_s) for length, end in pairs),
        statistics.fmean(seen.first_s),
        max(seen.first_s),
        late / tokens,
        lateness_s / late if late else 0.0,
    )


async def _run(
    urls: list[str], seconds: float, numbers: Iterator[int], decider: str | None
) -> list[_Seen]:
    async with aiohttp.ClientSession() as session:
        deciding = asyncio.ensure_future(_decide(session, decider)) if decider else None
        end = time.monotonic() + seconds
        found = await asyncio.gather(*(_client(session, url, numbers, end) for url in urls))
        if deciding is not None:
            deciding.cancel()
            with suppress(asyncio.CancelledError):
                await deciding
        return list(found)


async def _client(
    session: aiohttp.ClientSession, url: str, numbers: Iterator[int], end: float
) -> _Seen:
    """Ask one request after the other; at least one, and none is begun after ``end``."""
    seen = _Seen()
    while not seen.tokens or time.monotonic() < end:
        body = _request(next(numbers))
        start = time.monotonic()
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            first, usage = None, None
            async for line in reply.content:
                if first is None and b'"content": "' in line:
                    first = time.monotonic() - start
                if b'"usage"' in line:
                    usage = json.loads(line.removeprefix(b"data: "))["usage"]
        seen.end_s.append(time.monotonic() - start)
        seen.first_s.append(seen.end_s[-1] if first is None else first)
        seen.tokens.append(usage["completion_tokens"] if usage else 0)
    return seen


async def _decide(session: aiohttp.ClientSession, url: str) -> None:
    for number in count():
        text = f"{_EXAMPLES}\nqueue {number % 7} at ash, {number % 10} at birch, 2 at cedar:"
        body = {"prompt": text, "max_tokens": 1, "temperature": 0}
        async with session.post(f"{url}/v1/completions", json=body) as reply:
            reply.raise_for_status()


def _request(number: int) -> dict[str, Any]:
    """Return a request of about 60 prompt tokens, most of them unlike those of the others."""
    one, other = _THINGS[number % 8], _THINGS[(number // 8 + 3) % 8]
    text = (
        f"A shop sells {one} for {number % 97 + 2} and {other} for {number % 89 + 3}. "
        f"Write a story about somebody who buys {number % 7 + 2} {one}."
    )
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
