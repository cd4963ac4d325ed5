"""A proxy that lets a server's tokens out at a pace, as if a slower machine made them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import aiohttp
from aiohttp import web

from .pacing import Clock, Pace, PaceCounters, paced

_LONGEST_LINE = 2**20
_SILENCE_S = 120.0


class PacingProxy:
    """OpenAI's interface of one server, at a pace.

    A request holds one of the slots for ``overhead_s + tokens / tokens_per_s`` seconds, or longer
    where the server behind is slower; others wait their turn in the order in which they came.

    Args:
        name: The model's name in answers.
        pace: The pace.
        slots: Requests served at the same time.
        url: The llama.cpp server behind, such as ``http://127.0.0.1:8080``.
        key: What that server wants as a bearer token.

    Attributes:
        counters: What it did so far.
    """

    def __init__(self, name: str, pace: Pace, slots: int, url: str, key: str = "") -> None:
        """Keep the settings; nothing is opened."""
        self.counters = PaceCounters()
        self._settings = {"name": name, "slots": slots, **asdict(pace)}
        self._name = name
        self._pace = pace
        self._slots = asyncio.Semaphore(slots)
        self._url = url
        self._key = key
        self._clock = Clock()

    @property
    def app(self) -> web.Application:
        """The application; without aiohttp's ``handler_cancellation`` it serves who has gone."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/pace", self._tell_pace)
        app.cleanup_ctx.append(self._connection)
        return app

    async def _connection(self, app: web.Application) -> AsyncIterator[None]:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_S),
            # llama.cpp closes idle connections, and a request sent on such a one is lost
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            read_bufsize=_LONGEST_LINE,
        )
        yield
        await self._session.close()

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "icl-optimizer"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, request: web.Request) -> web.Response:
        try:
            async with self._session.get(f"{self._url}/health") as reply:
                return web.json_response(await reply.json(), status=reply.status)
        except (aiohttp.ClientError, TimeoutError):
            return _error(503, "llama.cpp does not answer.")

    async def _tell_pace(self, request: web.Request) -> web.Response:
        return web.json_response({**self._settings, **asdict(self.counters)})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _error(400, "the body must be a JSON object.")
        try:
            async with self._slot():
                return await self._serve(request, body)
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a slot, first come first served, and hold it."""
        counters = self.counters
        counters.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            counters.waiting -= 1
        counters.busy += 1
        try:
            yield
        finally:
            counters.busy -= 1
            self._slots.release()

    async def _serve(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        start = self._clock.now()
        asked = dict(body)
        if body.get("stream"):
            options = {**(body.get("stream_options") or {}), "include_usage": True}
            asked |= {"stream_options": options, "timings_per_token": True}
        answer: web.StreamResponse | None = None
        try:
            async with self._session.post(f"{self._url}{request.path}", json=asked) as reply:
                if reply.status != 200:
                    self.counters.failed += 1
                    return await _relayed(reply)
                if not body.get("stream"):
                    return await self._whole(reply, start)
                answer = _event_stream()
                await answer.prepare(request)
                await self._stream(answer, reply, start, _wants_usage(body))
                return answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return self._failed(request, answer, error)

    def _failed(
        self, request: web.Request, answer: web.StreamResponse | None, error: Exception
    ) -> web.StreamResponse:
        """Count it, and tell the client as far as it still can be told."""
        if isinstance(error, ConnectionResetError):  # the client's own connection
            self.counters.cancelled += 1
            return answer or web.Response(status=499)
        self.counters.failed += 1
        if answer is None:
            return _error(502, f"llama.cpp failed: {type(error).__name__}.")
        if request.transport is not None:  # cut, since the answer is not whole
            request.transport.abort()
        return answer

    async def _whole(self, reply: aiohttp.ClientResponse, start: float) -> web.Response:
        """Return an answer in one piece when all of its tokens are due."""
        found = await reply.json()
        found.pop("timings", None)
        tokens = int(found["usage"]["completion_tokens"])
        due = self._pace.due(start, tokens)
        await self._clock.until(due)
        self.counters.count(tokens, self._clock.now() - due)
        self.counters.served += 1
        return web.json_response({**found, "model": self._name})

    async def _stream(
        self,
        answer: web.StreamResponse,
        reply: aiohttp.ClientResponse,
        start: float,
        usage: bool,
    ) -> None:
        """Pass the events on, each when it is due."""
        whole = True
        async for chunk in paced(_chunks(reply), self._pace, start, self._clock, self.counters):
            whole = whole and "error" not in chunk
            if chunk.get("choices") or "error" in chunk or usage:
                text = json.dumps({**chunk, "model": self._name})
                await answer.write(f"data: {text}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        await answer.write_eof()
        self.counters.served += whole
        self.counters.failed += not whole


async def _chunks(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each event but the last, which only says that it is the last."""
    async for line in reply.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])
        elif line.startswith(b"data: [DONE]"):
            return
    raise aiohttp.ClientPayloadError("the stream ended early")


async def _relayed(reply: aiohttp.ClientResponse) -> web.Response:
    return web.Response(
        body=await reply.read(), status=reply.status, content_type="application/json"
    )


def _event_stream() -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    return web.StreamResponse(headers=headers)


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _error(status: int, message: str) -> web.Response:
    """Return an error in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)
