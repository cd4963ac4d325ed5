"""The demo fleet: paces are kept, turns are taken, and no process stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.environments.fleet.config import load_fleet
from icl_optimizer.environments.fleet.demo import DemoFleet, ask_server
from icl_optimizer.environments.fleet.demo_check import check_demo
from icl_optimizer.environments.fleet.pacing import LATE_S, Clock, Pace, PaceCounters, paced
from icl_optimizer.environments.fleet.pacing_proxy import PacingProxy
from icl_optimizer.errors import ConfigurationError

FAST = {"name": "one", "llm": "llamacpp", "tokens_per_s": 500, "overhead_s": 0}
ASKED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
ENDLESS = {"max_tokens": 1900, "ignore_eos": True}
PATIENCE_S = 20


class SetClock(Clock):
    """A clock that stands until somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def until(self, moment: float) -> None:
        self.time = max(self.time, moment)


def chunk(tokens: int, last: bool = False) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop" if last else None}
    return {"choices": [choice], "timings": {"predicted_n": tokens}, "model": "x"}


@given(
    gaps=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    rate=st.floats(1, 100),
    overhead=st.floats(0, 2),
    start=st.floats(0, 10),
)
def test_tokens_go_out_when_due_or_when_they_come(
    gaps: list[float], rate: float, overhead: float, start: float
) -> None:
    pace, clock, counters = Pace(rate, overhead), SetClock(), PaceCounters()
    clock.time = start
    came = [start + sum(gaps[: i + 1]) for i in range(len(gaps))]

    async def made() -> AsyncIterator[dict[str, Any]]:
        for number, moment in enumerate(came, 1):
            await clock.until(moment)
            yield chunk(number)
        yield chunk(len(came), last=True)

    async def out() -> list[float]:
        return [clock.now() async for _ in paced(made(), pace, start, clock, counters)]

    *tokens, end = asyncio.run(out())
    dues = [start + overhead + i / rate for i in range(len(came))]
    expected = [max(due, moment) for due, moment in zip(dues, came, strict=True)]
    assert tokens == pytest.approx(expected)
    assert end == pytest.approx(max(start + overhead + len(came) / rate, came[-1]))
    late = [moment - due for due, moment in zip(dues, came, strict=True) if moment - due > LATE_S]
    assert counters.tokens == len(came)
    assert counters.late_tokens == pytest.approx(len(late), abs=1e-9)
    assert counters.lateness_s == pytest.approx(sum(late), abs=1e-6)
    assert counters.worst_lateness_s == pytest.approx(max(late, default=0.0), abs=1e-9)


@dataclass
class Behind:
    """The scripted server behind a proxy: what it was asked, and how it answers."""

    tokens: int = 5
    gap_s: float = 0.0
    cut: bool = False
    gate: asyncio.Event | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.gate is not None:
            await self.gate.wait()
        usage = {"prompt_tokens": 3, "completion_tokens": self.tokens}
        if "messages" not in body:
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        if not body.get("stream"):
            await asyncio.sleep(self.gap_s * self.tokens)
            return web.json_response({"choices": [], "usage": usage, "timings": {}})
        answer = web.StreamResponse()
        await answer.prepare(request)
        for number in range(1, self.tokens + 1):
            await self._say(answer, chunk(number))
            await asyncio.sleep(self.gap_s)
        if self.cut and request.transport:
            request.transport.abort()
            return answer
        await self._say(answer, chunk(self.tokens, last=True))
        await self._say(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _say(self, answer: web.StreamResponse, said: dict[str, Any]) -> None:
        await answer.write(f"data: {json.dumps(said)}\n\n".encode())


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Work = Callable[[aiohttp.ClientSession, PacingProxy], Awaitable[None]]


def run(behind: Behind, work: Work, rate: float = 500.0, slots: int = 1) -> PaceCounters:
    """Do ``work`` with a client of a proxy before ``behind``; return what the proxy counted."""

    async def all_of_it() -> PaceCounters:
        upstream = web.Application()
        upstream.router.add_post("/v1/chat/completions", behind.complete)
        upstream.router.add_get("/health", _ok)
        async with listening(upstream) as url:
            proxy = PacingProxy("tiny", Pace(rate, 0.0), slots, url)
            async with listening(proxy.app) as address, aiohttp.ClientSession(address) as client:
                await asyncio.wait_for(work(client, proxy), PATIENCE_S)
            return proxy.counters

    return asyncio.run(all_of_it())


async def _ok(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def ask(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, str]:
    async with client.post("/v1/chat/completions", json={**ASKED, **fields}) as reply:
        return reply.status, await reply.text()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_stream_is_passed_on_whole() -> None:
    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        _, text = await ask(client, stream=True)
        found = events(text)
        assert [len(event["choices"]) for event in found] == [1] * 6
        assert {event["model"] for event in found} == {"tiny"}
        assert not any("timings" in event for event in found)
        _, text = await ask(client, stream=True, stream_options={"include_usage": True})
        assert events(text)[-1]["usage"]["completion_tokens"] == 5

    counters = run(behind := Behind(), work)
    assert counters.served == 2
    assert counters.tokens == 10
    assert all(asked["stream_options"]["include_usage"] for asked in behind.asked)


def test_an_answer_in_one_piece_takes_as_long_as_its_tokens() -> None:
    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        start = time.monotonic()
        status, text = await ask(client)
        assert time.monotonic() - start >= 20 / 100
        assert status == 200
        assert json.loads(text)["usage"]["completion_tokens"] == 20

    assert run(Behind(tokens=20), work, rate=100).tokens == 20


def test_a_server_slower_than_the_pace_is_counted_as_late() -> None:
    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        await ask(client, stream=True)

    counters = run(Behind(tokens=5, gap_s=0.05), work)
    # the first comes at once; the fifth after 0.2 s, and is due after 4 / 500 s
    assert counters.late_tokens >= 4
    assert counters.worst_lateness_s >= 0.19


def test_turns_are_taken_in_the_order_of_arrival() -> None:
    behind = Behind(tokens=3)

    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        behind.gate = asyncio.Event()
        asked = []
        for number in range(6):
            asked.append(asyncio.ensure_future(ask(client, stream=number % 2 == 0, seed=number)))
            counters = proxy.counters
            await until(lambda n=number, c=counters: c.busy + c.waiting == n + 1)
        assert (counters.busy, counters.waiting) == (2, 4)
        behind.gate.set()
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}

    counters = run(behind, work, slots=2)
    order = [asked["seed"] for asked in behind.asked]
    assert sorted(order[:2]) == [0, 1]
    assert order[2:] == [2, 3, 4, 5]
    assert behind.most_at_once == 2
    assert (counters.busy, counters.waiting, counters.served) == (0, 0, 6)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot_and_stops_the_server(stream: bool) -> None:
    behind = Behind(tokens=10_000, gap_s=0.005)

    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        served = asyncio.ensure_future(ask(client, stream=stream))
        await until(lambda: behind.at_once == 1)
        waits = asyncio.ensure_future(ask(client, stream=stream))
        await until(lambda: proxy.counters.waiting == 1)
        for task in (waits, served):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(lambda: proxy.counters.cancelled == 2 and behind.left == 1)
        assert (proxy.counters.busy, proxy.counters.waiting) == (0, 0)
        behind.tokens = 2
        assert (await ask(client, stream=stream))[0] == 200

    assert run(behind, work).served == 1


def test_failures_behind_are_told_and_free_the_slot() -> None:
    behind = Behind(cut=True)

    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(client, stream=True)
        async with client.post("/v1/chat/completions", json={}) as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]["message"] == "no messages"
        for body in (b"{", b"[1]"):
            async with client.post("/v1/chat/completions", data=body) as reply:
                assert reply.status == 400
                assert "JSON object" in (await reply.json())["error"]["message"]
        proxy._url = "http://127.0.0.1:1"
        assert (await ask(client))[0] == 502
        async with client.get("/health") as reply:
            assert reply.status == 503

    counters = run(behind, work)
    assert (counters.failed, counters.served, counters.busy) == (3, 0, 0)


def test_what_a_server_says_of_itself() -> None:
    async def work(client: aiohttp.ClientSession, proxy: PacingProxy) -> None:
        await ask(client)
        async with client.get("/health") as reply:
            assert await reply.json() == {"status": "ok"}
        async with client.get("/v1/models") as reply:
            assert [model["id"] for model in (await reply.json())["data"]] == ["tiny"]
        async with client.get("/pace") as reply:
            told = await reply.json()
        assert told["name"] == "tiny"
        assert (told["served"], told["tokens"], told["tokens_per_s"]) == (1, 5, 500)

    run(Behind(), work)


def test_the_shipped_fleet_has_four_paces_below_what_two_cores_make() -> None:
    config = load_fleet("demo")
    rates = sorted(server.tokens_per_s for server in config.servers)
    assert len(rates) == 4
    assert all(b / a >= 1.3 for a, b in pairwise(rates))
    assert sum(rates) < 50
    assert {server.llm for server in config.servers} == {"llamacpp"}


def test_what_cannot_be_started_is_refused(tmp_path: Path) -> None:
    other = {"servers": [{"name": "a", "llm": "ollama:llama3"}]}
    with pytest.raises(ConfigurationError, match="'a' has llm 'ollama:llama3'; allowed"):
        DemoFleet(other)
    with pytest.raises(ConfigurationError, match=r"'llamacpp:gone.gguf'; allowed: a file"):
        DemoFleet({"servers": [{"name": "a", "llm": "llamacpp:gone.gguf"}]})
    with pytest.raises(ConfigurationError, match="ports has 2 entries; allowed: one for each"):
        DemoFleet({"servers": [FAST]}, [1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--port", "65534"], "--port is 65534; allowed: at most 65532"),
        (["up", "--out", "gone/fleet.yaml"], "--out is 'gone/fleet.yaml'; allowed: a file in"),
        (["up", "--out", __file__], "which exists; allowed: a new file, or one that"),
        (["up", "no.yaml"], "fleet is 'no.yaml'; allowed: a YAML file"),
        (["status", "demo"], "'ash' has llm 'llamacpp'; allowed for a status"),
    ],
)
def test_commands_name_what_is_wrong(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["fleet", *arguments])
    assert message in str(done.exception)


def test_status_of_servers_that_are_silent(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("servers: [{name: a, llm: 'openai:a@http://127.0.0.1:1/v1'}]")
    done = CliRunner().invoke(app, ["fleet", "status", str(file)])
    assert done.exit_code == 1
    assert "silent" in done.output


@pytest.mark.llm
def test_a_real_server_answers_at_its_pace_and_is_started_again() -> None:
    async def work(url: str) -> str:
        async with aiohttp.ClientSession(url) as client:
            status, text = await ask(client, temperature=0)
            assert status == 200
            whole = json.loads(text)["choices"][0]["message"]["content"]
            options = {"stream_options": {"include_usage": True}}
            _, text = await ask(client, temperature=0, stream=True, **options)
            found = events(text)
            deltas = [event["choices"][0]["delta"] for event in found if event["choices"]]
            assert "".join(delta.get("content") or "" for delta in deltas) == whole
            assert found[-1]["usage"]["completion_tokens"] == 5
            with suppress(TimeoutError):  # llama.cpp must stop, or the next one waits for long
                await asyncio.wait_for(ask(client, stream=True, **ENDLESS), 0.3)
            await asyncio.wait_for(ask(client, temperature=0), PATIENCE_S)
        return str(whole)

    with DemoFleet({"servers": [FAST]}) as fleet:
        assert fleet.config.servers[0].llm == f"openai:one@{fleet.urls[0]}/v1"
        first = asyncio.run(work(fleet.urls[0]))
        (pace,) = fleet.paces()
        assert pace is not None
        assert (pace["served"], pace["cancelled"]) == (3, 1)
        with pytest.raises(ConfigurationError, match=r"'one': port is \d+, which cannot be"):
            DemoFleet({"servers": [FAST]}, [int(fleet.urls[0].rpartition(":")[2])])
        assert fleet.restart_dead() == []
        os.kill(fleet.pids[0], signal.SIGKILL)
        while not (names := fleet.restart_dead()):
            time.sleep(0.01)
        assert names == ["one"]
        assert asyncio.run(work(fleet.urls[0])) == first
    assert fleet.paces() == [None]


@pytest.mark.llm
def test_a_check_measures_every_load() -> None:
    found = list(check_demo(load_fleet({"servers": [{**FAST, "tokens_per_s": 40}]}), 1.5))
    assert [row.load for row in found] == ["alone", "together", "beside a decider"]
    for row in found:
        assert row.requests >= 1
        assert 0 < row.achieved_per_s <= 40
        assert 0 < row.ttft_s <= row.worst_ttft_s


@pytest.mark.llm
def test_no_server_outlives_a_killed_parent() -> None:
    code = (
        "import json, time\n"
        "from icl_optimizer.environments.fleet.demo import DemoFleet\n"
        f"fleet = DemoFleet({{'servers': [{FAST!r}, { ({**FAST, 'name': 'two'})!r}]}})\n"
        "print(json.dumps(fleet.urls), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        urls = json.loads(parent.stdout.readline())
        assert all(ask_server(url, "/health") for url in urls)
        parent.kill()
        # the servers write to the same pipe: it ends when the last of them has
        parent.communicate(timeout=PATIENCE_S)
    assert not any(ask_server(url, "/health") for url in urls)


@pytest.mark.llm
def test_up_writes_the_fleet_file_and_stops_on_sigterm(tmp_path: Path) -> None:
    source, out = tmp_path / "one.yaml", tmp_path / "fleet.yaml"
    source.write_text(json.dumps({"servers": [FAST]}))
    command = [sys.executable, "-c", "from icl_optimizer.cli import main; main()", "fleet", "up"]
    with subprocess.Popen(
        [*command, str(source), "--port", "0", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        shown = ""
        while "Ctrl-C stops" not in shown:
            line = running.stdout.readline()
            assert line, shown
            shown += line
        done = CliRunner().invoke(app, ["fleet", "status", str(out)])
        assert done.exit_code == 0
        assert "up" in done.output
        running.send_signal(signal.SIGTERM)
        rest, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, rest
    assert "stopped" in rest
    assert (
        ask_server(load_fleet(out).servers[0].llm.partition("@")[2].removesuffix("/v1"), "/health")
        is None
    )
