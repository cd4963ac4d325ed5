"""A server in OpenAI's wire format whose speed and failures are ordered, not real.

``python -m icl_optimizer.studies.stub_server --tokens 16`` prints its ports as a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from icl_optimizer.studies.stub_answers import LARGEST, StubAnswer

StubFaultKind = Literal["none", "refused", "hang", "429", "500", "reset", "cut", "slow"]

_HOST = "127.0.0.1"
_LOOK_S = 0.5


class StubFault(BaseModel):
    """What goes wrong, as in :class:`~icl_optimizer.studies.faulty_server.Fault`, at run time.

    ``none``: nothing. ``refused``: nothing listens, and open connections are closed. ``hang``: no
    answer ever. ``429``, ``500``: that status. ``reset``: the connection is reset before the
    answer. ``cut``: it is closed in mid-answer. ``slow``: the answer begins late.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: StubFaultKind = Field("none", description="What goes wrong.")
    after_tokens: int = Field(3, ge=0, description="Tokens of a stream before 'cut' strikes.")
    delay_s: float = Field(2.0, ge=0, description="Seconds that 'slow' adds.")


class StubSettings(BaseModel):
    """How the server answers while nothing is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("stub", min_length=1, description="Name of its model.")
    port: int = Field(0, ge=0, le=65535, description="0: any free one.")
    tokens: int = Field(16, ge=1, le=LARGEST, description="Length of an answer.")
    ttft_s: float = Field(0.0, ge=0, description="Seconds to the first token.")
    token_s: float = Field(0.0, ge=0, description="Seconds from token to token.")
    padding: int = Field(0, ge=0, le=65536, description="Characters that make tokens longer.")


@dataclass
class StubCounts:
    """Requests for completions.

    Attributes:
        received: That arrived.
        answered: Whose whole answer was written.
        failed: Hit by a fault.
        abandoned: Whose client went away.
        in_progress: Not over yet.
        most_at_once: The most there were at a time.
    """

    received: int = 0
    answered: int = 0
    failed: int = 0
    abandoned: int = 0
    in_progress: int = 0
    most_at_once: int = 0


@dataclass
class StubServer:
    """Serves on loopback while its ``async with`` block runs.

    Besides ``/v1/chat/completions``, ``/v1/completions``, ``/v1/models`` and ``/health`` it has a
    port for orders that stays open whatever is wrong: ``POST /fault`` takes the fields of
    :class:`StubFault`, ``GET /counts`` returns :class:`StubCounts`.

    Attributes:
        settings: How it answers.
        fault: What is wrong; :meth:`order` changes it.
        counts: What was asked.
        port: Where it serves.
        control_port: Where it takes orders.
    """

    settings: StubSettings = field(default_factory=StubSettings)
    fault: StubFault = field(default_factory=StubFault)
    counts: StubCounts = field(default_factory=StubCounts)
    port: int = 0
    control_port: int = 0
    _serving: web.AppRunner | None = None
    _control: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://{_HOST}:{self.port}/v1"

    async def __aenter__(self) -> Self:
        """Listen on both ports."""
        self._control, self.control_port = await _listen(self._control_app(), 0)
        await self._open()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close both."""
        await self._shut()
        assert self._control is not None
        await self._control.cleanup()

    async def order(self, fault: StubFault) -> None:
        """Let ``fault`` hold for every request from now on."""
        self.fault = fault
        if fault.kind == "refused":
            await self._shut()
        elif self._serving is None:
            await self._open()

    async def _open(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._serving, self.port = await _listen(app, self.port or self.settings.port)

    async def _shut(self) -> None:
        if self._serving is not None:
            await self._serving.cleanup()
            self._serving = None

    def _control_app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/fault", self._take_order)
        app.router.add_get("/counts", self._tell_counts)
        return app

    async def _take_order(self, request: web.Request) -> web.Response:
        try:
            fault = StubFault.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": str(error)}, status=400)
        await self.order(fault)
        return web.json_response(fault.model_dump())

    async def _tell_counts(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self.counts))

    async def _health(self, request: web.Request) -> web.Response:
        if self.fault.kind == "hang":
            await asyncio.Event().wait()
        status = 500 if self.fault.kind == "500" else 200
        return web.json_response({"status": "ok" if status == 200 else "error"}, status=status)

    async def _models(self, request: web.Request) -> web.Response:
        if self.fault.kind in ("hang", "500"):
            return await self._health(request)
        model = {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "stub"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._counted(request, chat=True)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._counted(request, chat=False)

    async def _counted(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        counts = self.counts
        counts.received += 1
        counts.in_progress += 1
        counts.most_at_once = max(counts.most_at_once, counts.in_progress)
        try:
            return await self._answer(request, chat=chat)
        except (asyncio.CancelledError, ConnectionResetError):
            counts.abandoned += 1
            raise
        finally:
            counts.in_progress -= 1

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
        except ValueError:
            return _refusal(400, "the body is not JSON")
        fault = self.fault
        failed = await self._misbehave(request, fault)
        if failed is not None:
            self.counts.failed += 1
            return failed
        answer = StubAnswer(
            body,
            chat=chat,
            name=self.settings.name,
            tokens=self.settings.tokens,
            padding=self.settings.padding,
        )
        await _sleep(self.settings.ttft_s + (fault.delay_s if fault.kind == "slow" else 0.0))
        if answer.streams:
            return await self._stream(request, answer, fault)
        await _sleep(self.settings.token_s * (len(answer.words) - 1))
        return await self._send(request, answer.whole(), fault)

    async def _misbehave(self, request: web.Request, fault: StubFault) -> web.Response | None:
        """Return the answer of a fault that comes before any other, None if there is none."""
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            _break(request)
            return web.Response()
        if fault.kind not in ("429", "500"):
            return None
        return _refusal(int(fault.kind), f"ordered fault {fault.kind}")

    async def _send(
        self, request: web.Request, content: bytes, fault: StubFault
    ) -> web.StreamResponse:
        if fault.kind != "cut":
            self.counts.answered += 1
            return web.Response(body=content, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        self._cut(request)
        return response

    async def _stream(
        self, request: web.Request, answer: StubAnswer, fault: StubFault
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = answer.events()
        if fault.kind == "cut":
            events = events[: fault.after_tokens]
        if self.settings.token_s == 0:
            await response.write(b"".join(events))
        else:
            for number, event in enumerate(events):
                await _sleep(self.settings.token_s if number else 0.0)
                await response.write(event)
        if fault.kind == "cut":
            self._cut(request)
            return response
        await response.write(answer.ending())
        await response.write_eof()
        self.counts.answered += 1
        return response

    def _cut(self, request: web.Request) -> None:
        self.counts.failed += 1
        if request.transport is not None:
            request.transport.close()


def _refusal(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "stub", "code": status}
    return web.json_response({"error": error}, status=status)


def _break(request: web.Request) -> None:
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


async def _listen(app: web.Application, port: int) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=0.0, handle_signals=False
    )
    await runner.setup()
    await web.TCPSite(runner, _HOST, port, reuse_address=True).start()
    return runner, int(runner.addresses[0][1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process that started it closes the pipe or is gone, if it is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, info in StubSettings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, dest=name, default=info.default, help=info.description)
    parser.add_argument("--parent", type=int, help="Process whose end ends this one.")
    fields = vars(parser.parse_args(arguments))
    parent = fields.pop("parent")
    try:
        settings = StubSettings.model_validate(fields)
    except ValidationError as error:
        parser.error(str(error))
    asyncio.run(_serve(settings, parent))


async def _serve(settings: StubSettings, parent: int | None) -> None:
    async with StubServer(settings) as server:
        ports = {"port": server.port, "control_port": server.control_port}
        print(json.dumps(ports), flush=True)
        ended = asyncio.Event()
        if parent is not None:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        while not ended.is_set() and (parent is None or os.getppid() == parent):
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_S)


if __name__ == "__main__":
    main()
