"""Scripted language-model servers on loopback, all behind one port, for tests."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from aiohttp import web

from icl_optimizer.closing import Closing

TEXT = "positive it is"


class StubServers(Closing):
    """Answers chat requests at ``/NAME/v1``, each name in its own way.

    ``held`` never answers, ``broken`` answers with status 500, ``late`` answers when :meth:`let_go`
    was called, ``longer`` with one more word for every third request, and any other name with
    :data:`TEXT`, word by word.

    Attributes:
        seen: Name and body of each request, in order.
    """

    def __init__(self) -> None:
        """Listen on a free port."""
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._open())

    def fleet(self, *names: str, **fields: Any) -> dict[str, Any]:
        """Return the description of a fleet of these servers, each with ``fields``."""
        servers = [{"name": n, "llm": f"openai:stub@{self.url(n)}", **fields} for n in names]
        return {"servers": servers}

    def url(self, name: str) -> str:
        """Return the base URL of a server."""
        return f"http://127.0.0.1:{self._port}/{name}/v1"

    def let_go(self) -> None:
        """Let the server ``late`` answer."""
        self._loop.call_soon_threadsafe(self._late.set)

    def close(self) -> None:
        """Stop listening."""
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._late = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{name}/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name, body = request.match_info["name"], await request.json()
        self.seen.append((name, body))
        if name == "broken":
            return web.json_response({"error": {"message": "out of order"}}, status=500)
        if name == "held":
            await asyncio.Event().wait()
        if name == "late":
            await self._late.wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = TEXT.split()
        if name == "longer":
            words += ["so"] * (len(self.seen) % 3)
        for word in words:
            await response.write(_event({"choices": [{"delta": {"content": f"{word} "}}]}))
        usage = {"prompt_tokens": 9, "completion_tokens": len(words)}
        await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
