"""Servers at work: each with its queue and slots, its health, and requests under way."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from icl_optimizer.environments.fleet.config import FleetConfig, ServerConfig
from icl_optimizer.environments.fleet.health import Health, HealthPolicy
from icl_optimizer.environments.fleet.upstream import (
    DONE,
    Answer,
    Path,
    Upstream,
    UpstreamError,
    open_upstream,
)

_HEALTH_EVERY_S = 1.0


class QueueFullError(UpstreamError):
    """A server has no room for another request."""

    def __init__(self, server: str, size: int) -> None:
        """Say whose queue it is."""
        super().__init__(f"server '{server}' has {size} requests already", "rate limit", 1.0, 429)


class Server:
    """One server: a FIFO queue in front of ``slots`` requests at the same time.

    Requests wait here and not at the server, so that they can still go elsewhere when it fails.

    Attributes:
        config: What is known about it.
        index: Its place among the labels.
        health: Whether it is asked.
        in_service: Requests sent and not answered yet.
        served: Requests answered so far.
        failures: Requests that failed so far.
        on_rest: Told the server's name when it begins to be left alone.
    """

    def __init__(
        self, index: int, config: ServerConfig, upstream: Upstream, health: HealthPolicy | None
    ) -> None:
        """Begin idle."""
        self.index, self.config, self.upstream = index, config, upstream
        self.health = Health(health)
        self.in_service = self.served = self.failures = 0
        self.on_rest: Callable[[str], None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def in_system(self) -> int:
        """Requests here, waiting and in service."""
        return self.in_service + len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether there is no room for another request."""
        return self.in_system >= self.config.queue_size

    async def enter(self) -> None:
        """Wait for a slot, first come, first served.

        Raises:
            QueueFullError: There is no room.
            UpstreamError: The server is left alone, now or while this request waited.
        """
        if not self.health.usable:
            raise self._resting()
        if self.full:
            raise QueueFullError(self.config.name, self.in_system)
        if self.in_service < self.config.slots and not self._waiting:
            self.in_service += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # the slot came at the moment when nobody wanted it any more
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Free a slot; who has waited longest takes it."""
        self.in_service -= 1
        while self._waiting and self.in_service < self.config.slots:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_service += 1
                turn.set_result(None)

    def succeeded(self) -> None:
        """Note an answer that was whole."""
        self.served += 1
        self.health.succeeded()

    def failed(self, error: UpstreamError, *, answered: bool = False) -> None:
        """Note a failure; where the server is left alone now, those who wait go elsewhere.

        Args:
            error: What happened.
            answered: Whether an answer had begun, so that somebody listens there.
        """
        self.failures += 1
        if not error.blames:
            # the request did not suit, which says nothing about the server
            return
        unreachable = error.kind == "connection" and not answered
        at_once = error.kind == "key" or unreachable
        rested = self.health.cooling_s > 0
        if self.health.failed(at_once=at_once, wait_s=error.retry_after):
            self.turn_away()
            if self.on_rest is not None and not rested:
                self.on_rest(self.config.name)

    def turn_away(self) -> None:
        """Send everybody who waits elsewhere."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(self._resting())

    def _resting(self) -> UpstreamError:
        return UpstreamError(
            f"server '{self.config.name}' failed and is not asked for "
            f"{self.health.cooling_s:.1f} s",
            "open",
            max(self.health.cooling_s, 0.1),
        )


class Served:
    """One request under way at a server; iterate over its answer, then close it.

    Attributes:
        server: Where it is.
        content_type: Of the answer.
        streams: Whether it comes as events.
        queued_s: Seconds that it waited for a slot.
        first_token_s: Seconds from sending to the first token (whole answers: to the answer), None
            before.
        last_s: Seconds from sending to the end of the answer, None before.
        prompt_tokens: Tokens of the prompt, 0 where the server does not tell.
        tokens: Tokens of the answer: as the server tells, else parts of the stream with text.
        finished: Whether the answer was whole.
    """

    def __init__(
        self, server: Server, answer: Answer, queued_s: float, sent: float, *, trial: bool
    ) -> None:
        """Keep the answer, none of which is read yet."""
        self._trial = trial
        self.server, self._answer, self.queued_s, self._sent = server, answer, queued_s, sent
        self.content_type = answer.content_type
        self.streams = answer.content_type.startswith("text/event-stream")
        self.first_token_s: float | None = None
        self.last_s: float | None = None
        self.prompt_tokens = self.tokens = 0
        self.finished = False
        self._closed = False
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the chunks of the answer that were not read yet.

        Reading raises :class:`UpstreamError` where the answer breaks off.
        """
        return self._chunks

    async def begin(self, patience_s: float | None = None) -> list[bytes]:
        """Read up to the first token, or to the end; return the chunks so far.

        Args:
            patience_s: Longest time since the request was sent, seconds; None: any.

        Raises:
            UpstreamError: It broke off, or the patience is over; the request is closed then.
        """
        held: list[bytes] = []
        left = None if patience_s is None else max(0.0, self._sent + patience_s - time.monotonic())
        try:
            async with asyncio.timeout(left):
                async for chunk in self._chunks:
                    held.append(chunk)
                    if self.first_token_s is not None or self.finished:
                        break
        except TimeoutError:
            error = _impatient(self.server, patience_s)
            self.server.failed(error)
            await self.close()
            raise error from None
        except BaseException:
            await self.close()
            raise
        return held

    async def _read(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._answer.chunks:
                if chunk == DONE or not self.streams:
                    self._ended(chunk)
                elif self._holds_tokens(chunk):
                    self.tokens += 1
                    if self.first_token_s is None:
                        self.first_token_s = time.monotonic() - self._sent
                if b'"usage"' in chunk:
                    self._count(chunk)
                yield chunk
        except UpstreamError as error:
            self.server.failed(error, answered=True)
            raise

    async def close(self) -> None:
        """Free the slot; the server is told to stop where the answer was not whole."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._chunks.aclose()
            await self._answer.close()
        finally:
            if self._trial:
                self.server.health.let_go()
            self.server.leave()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    def _ended(self, chunk: bytes) -> None:
        self.last_s = time.monotonic() - self._sent
        if chunk != DONE:
            self.first_token_s = self.last_s
        self.finished = True
        self.server.succeeded()

    def _holds_tokens(self, chunk: bytes) -> bool:
        """Return whether an event holds tokens; only the first ones are taken apart."""
        if self.first_token_s is not None and b'"usage"' not in chunk:
            return b'"delta":{}' not in chunk and b'"delta": {}' not in chunk
        choices = _fields(chunk).get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            return False
        delta = choice.get("delta")
        # words, thoughts, calls of tools, refusals: whatever is not only a role
        said = [v for k, v in delta.items() if k != "role"] if isinstance(delta, dict) else []
        return bool(choice.get("text")) or any(said)

    def _count(self, chunk: bytes) -> None:
        usage = _fields(chunk).get("usage")
        if not isinstance(usage, dict):
            return
        asked, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.prompt_tokens = asked if isinstance(asked, int) else 0
        self.tokens = answered if isinstance(answered, int) else self.tokens


def is_count(chunk: bytes) -> bool:
    """Return whether an event of a stream only counts tokens."""
    told = _fields(chunk)
    return bool(told.get("usage")) and not told.get("choices")


def _fields(chunk: bytes) -> dict[str, Any]:
    """Return the JSON object in an event or a body; empty where there is none."""
    try:
        told = json.loads(chunk.removeprefix(b"data:"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


class Fleet:
    """All servers at work, in one event loop.

    Args:
        config: The servers.
        health: When a server is left alone.
        upstreams: Wires instead of those that the specs name, for tests.

    Example:
        >>> import asyncio
        >>> from icl_optimizer.environments.fleet.config import load_fleet
        >>> async def ask(fleet_file):
        ...     async with Fleet(load_fleet(fleet_file)) as fleet:
        ...         body = {"messages": [{"role": "user", "content": "Hello"}]}
        ...         async with await fleet.serve(0, "chat/completions", body) as served:
        ...             return b"".join([chunk async for chunk in served])
    """

    def __init__(
        self,
        config: FleetConfig,
        health: HealthPolicy | None = None,
        upstreams: Mapping[str, Upstream] | None = None,
    ) -> None:
        """Check the specs; nothing is sent."""
        given = upstreams or {}
        self.config = config
        self.servers = [
            Server(i, each, given.get(each.name) or open_upstream(each), health)
            for i, each in enumerate(config.servers)
        ]
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Open the wires and begin to watch servers that failed."""
        try:
            for server in self.servers:
                await server.upstream.open()
        except BaseException:
            await self._close_wires()
            raise
        self._watch = asyncio.create_task(self._watching())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the wires."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._close_wires()

    async def _close_wires(self) -> None:
        for server in self.servers:
            server.turn_away()
            await server.upstream.close()

    def queue_lengths(self) -> list[int]:
        """Return the requests at each server, waiting and in service."""
        return [server.in_system for server in self.servers]

    def usable(self) -> list[bool]:
        """Return for each server whether a request may go there: it is up and has room."""
        return [server.health.usable and not server.full for server in self.servers]

    async def serve(
        self, index: int, path: Path, body: Mapping[str, Any], patience_s: float | None = None
    ) -> Served:
        """Wait for a slot of a server and send it a request.

        Args:
            index: Which server.
            path: What is asked for.
            body: The request in OpenAI's form.
            patience_s: Longest time from sending to the head of the answer; None: the server's own
                ``timeout_s``.

        Returns:
            The answer, to be iterated over and closed.

        Raises:
            QueueFullError: There is no room, at once.
            UpstreamError: The server is left alone, or it failed.
        """
        server = self.servers[index]
        came = time.monotonic()
        await server.enter()
        sent = time.monotonic()
        trial = server.health.begin()
        try:
            answer = await self._answered(server, path, body, patience_s)
        except BaseException as error:
            if isinstance(error, UpstreamError):
                server.failed(error)
            if trial:
                server.health.let_go()
            server.leave()
            raise
        return Served(server, answer, sent - came, sent, trial=trial)

    async def _answered(
        self, server: Server, path: Path, body: Mapping[str, Any], patience_s: float | None
    ) -> Answer:
        try:
            async with asyncio.timeout(patience_s):
                return await server.upstream.send(path, body)
        except TimeoutError:
            raise _impatient(server, patience_s) from None

    async def probe(self) -> dict[str, bool]:
        """Ask every server whether it is there; return the answers by name."""
        found = await asyncio.gather(*(s.upstream.healthy() for s in self.servers))
        return dict(zip(self.config.names, found, strict=True))

    async def _watching(self) -> None:
        """Look after servers that rest, so that no request has to find out how they are."""
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await asyncio.gather(*(self._look(s) for s in self.servers))

    async def _look(self, server: Server) -> None:
        health = server.health
        if health.unreachable and health.state == "cooling":
            # one that is started again need not wait for the end of its rest
            if await server.upstream.healthy():
                health.back()
        elif health.state == "trying" and health.begin():
            if await server.upstream.healthy():
                # whether it answers, too, is left to a request
                health.let_go()
            else:
                server.failed(UpstreamError(f"server '{server.config.name}' is away", "connection"))


def _impatient(server: Server, patience_s: float | None) -> UpstreamError:
    text = f"server '{server.config.name}' sent no token within {patience_s:g} s"
    return UpstreamError(text, "timeout")
