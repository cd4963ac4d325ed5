"""The stub server and the load that is put on it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")

from icl_optimizer.studies.child import Child, free_port
from icl_optimizer.studies.load import LoadPlan, LoadResult, Sample, load_in_process, run_load
from icl_optimizer.studies.stub_process import StubProcess
from icl_optimizer.studies.stub_server import StubFault, StubServer, StubSettings


def load(
    fault: StubFault, *, streams: float, settings: StubSettings | None = None
) -> tuple[LoadResult, StubServer]:
    async def main() -> tuple[LoadResult, StubServer]:
        async with StubServer(settings or StubSettings()) as server:
            await server.order(fault)
            plan = LoadPlan(
                url=server.url, rate=100, duration_s=0.04, stream_share=streams, timeout_s=0.5
            )
            return await run_load(plan), server

    return asyncio.run(main())


@pytest.mark.parametrize("streams", [0.0, 1.0])
def test_answers_are_whole(streams: float) -> None:
    result, server = load(StubFault(), streams=streams)
    assert result.count("answered") == 4
    assert result.lost == 0
    assert server.counts.answered == server.counts.received == 4
    assert server.counts.in_progress == 0


@pytest.mark.parametrize(
    ("kind", "streams", "became", "detail"),
    [
        ("refused", 0.0, "unanswered", "ClientConnectorError"),
        ("reset", 0.0, "unanswered", "ServerDisconnectedError"),
        ("hang", 0.0, "unanswered", "no end in time"),
        ("500", 0.0, "error", "status 500"),
        ("429", 1.0, "error", "status 429"),
        ("cut", 0.0, "broken", "ClientPayloadError"),
        ("cut", 1.0, "broken", "ClientPayloadError"),
        ("slow", 1.0, "answered", ""),
    ],
)
def test_every_fault_shows(kind: str, streams: float, became: str, detail: str) -> None:
    fault = StubFault.model_validate({"kind": kind, "delay_s": 0.1})
    result, server = load(fault, streams=streams)
    assert {(s.became, s.detail) for s in result.samples} == {(became, detail)}
    assert server.counts.received == (0 if kind == "refused" else 4)
    assert server.counts.abandoned == (4 if kind == "hang" else 0)


def test_a_cut_stream_has_so_many_tokens() -> None:
    async def main() -> bytes:
        async with StubServer() as server:
            await server.order(StubFault(kind="cut", after_tokens=5))
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = b'{"stream": true, "messages": []}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            got = await reader.read()
            writer.close()
            await writer.wait_closed()
            return got

    got = asyncio.run(main())
    assert got.count(b'"content"') == 5
    assert b"[DONE]" not in got


def test_the_official_client_understands_it() -> None:
    from openai import AsyncOpenAI

    async def main() -> None:
        settings = StubSettings(name="tiny", tokens=4)
        async with (
            StubServer(settings) as server,
            AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
        ):
            chat = await client.chat.completions.create(
                model="x", messages=[{"role": "user", "content": "hi"}]
            )
            assert chat.choices[0].message.content == "w0 w1 w2 w3 "
            assert chat.usage is not None
            assert chat.usage.completion_tokens == 4
            plain = await client.completions.create(model="x", prompt="hi", max_tokens=2)
            assert plain.choices[0].text == "w0 w1 "
            stream = await client.chat.completions.create(
                model="x",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            parts = [part async for part in stream]
            assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == (
                "w0 w1 w2 w3 "
            )
            assert parts[-1].usage is not None
            assert [m.id async for m in client.models.list()] == ["tiny"]

    asyncio.run(main())


def test_a_process_takes_orders_dies_and_comes_back() -> None:
    with StubProcess(StubSettings(name="one", tokens=2)) as stub:
        plan = LoadPlan(url=stub.url, rate=50, duration_s=0.1, stream_share=0.4)
        assert load_in_process(plan).count("answered") == 5
        assert stub.counts().answered == 5
        stub.order(StubFault(kind="500"))
        assert asyncio.run(run_load(plan)).errors() == {"status 500": 5}
        stub.kill()
        assert asyncio.run(run_load(plan)).lost == 5
        stub.restart()
        assert asyncio.run(run_load(plan)).count("answered") == 5
        pid = stub.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = Sample(0.0, 0.9, 1.0, 1.0, 1.1, 200, False, "answered")
    punctual = Sample(1.0, 0.0, 0.1, 0.1, 0.2, 200, False, "answered")
    result = LoadResult((late, punctual))
    assert result.percentile(100) == 1.1
    assert result.percentile(0, "headers_s") == 0.1


def test_a_stall_is_seen_by_every_request_that_was_due_meanwhile() -> None:
    async def main() -> LoadResult:
        async with StubServer(StubSettings(ttft_s=0.3)) as server:
            # a closed loop would have sent one request in the time of these ten
            return await run_load(LoadPlan(url=server.url, rate=100, duration_s=0.1))

    result = asyncio.run(main())
    assert len(result.samples) == 10
    assert result.percentile(0) >= 0.3


def test_arrivals() -> None:
    even = LoadPlan(url="http://x/v1", rate=4, duration_s=1)
    assert even.due() == [0, 0.25, 0.5, 0.75]
    assert [even.streams(i) for i in range(4)] == [False] * 4
    half = even.model_copy(update={"stream_share": 0.5})
    assert [half.streams(i) for i in range(4)] == [False, True] * 2
    poisson = LoadPlan(url="http://x/v1", rate=50, duration_s=100, arrivals="poisson", seed=3)
    gaps = [b - a for a, b in zip(poisson.due(), poisson.due()[1:], strict=False)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert poisson.due() == poisson.due()


def test_a_child_that_does_not_serve_says_what_it_printed(tmp_path: Path) -> None:
    health = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(RuntimeError, match="no such weights"):
        Child([sys.executable, "-c", "raise SystemExit('no such weights')"], health, tmp_path / "l")


def test_wrong_settings_are_refused() -> None:
    command = [sys.executable, "-m", "icl_optimizer.studies.stub_server", "--tokens", "0"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert "greater than or equal to 1" in told.stderr
