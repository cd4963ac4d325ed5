"""Queues, slots, health and the wire of language-model servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_upstream import ScriptedUpstream, event

from icl_optimizer.environments.fleet.config import FleetConfig, dump_fleet, load_fleet
from icl_optimizer.environments.fleet.health import Health, HealthPolicy
from icl_optimizer.environments.fleet.servers import Fleet, QueueFullError, Served
from icl_optimizer.environments.fleet.upstream import DONE, UpstreamError, open_upstream
from icl_optimizer.errors import ConfigurationError

pytestmark = pytest.mark.anyio
CHAT = "chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
WHOLE = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fleet_of(*upstreams: ScriptedUpstream, slots: int = 1, queue_size: int = 10) -> Fleet:
    names = [f"s{i}" for i in range(len(upstreams))]
    servers = [
        {"name": n, "llm": f"openai:m@http://{n}/v1", "slots": slots, "queue_size": queue_size}
        for n in names
    ]
    return Fleet(load_fleet({"servers": servers}), None, dict(zip(names, upstreams, strict=True)))


async def read(served: Served) -> list[bytes]:
    async with served:
        return [chunk async for chunk in served]


async def ask(fleet: Fleet, index: int = 0, body: Any = STREAM) -> list[bytes]:
    return await read(await fleet.serve(index, CHAT, body))


# -- the fleet file ---------------------------------------------------------------------------


def test_a_fleet_file_survives_being_written(tmp_path: Any) -> None:
    config = load_fleet(
        {
            "deadline_s": 4,
            "servers": [
                {
                    "name": "fast",
                    "llm": "ollama:llama3.2:3b",
                    "slots": 2,
                    "scores": {"math": 0.5},
                    "price": {"output": 0.6},
                },
                {"name": "slow", "llm": "llamacpp"},
            ],
        }
    )
    path = tmp_path / "fleet.yaml"
    path.write_text(dump_fleet(config))
    assert load_fleet(path) == config
    assert config.servers[0].score("math") == 0.5
    assert config.servers[0].score("coding") == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "a b"}, "servers.0.name"),
        ({"slots": 11}, "at most queue_size"),
        ({"scores": {"maths": 1}}, "Did you mean 'math'"),
        ({"scores": {"math": 2}}, "0 to 1"),
        ({"mean_tokens": {"math": 0}}, "more than 0"),
        ({"tokens_per_s": float("nan")}, "tokens_per_s"),
        ({"speed": 3}, "servers.0.speed"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load_fleet({"servers": [{"name": "a", "llm": "llamacpp", **change}]})


def test_names_must_differ_and_files_must_exist(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="'a' occurs twice"):
        load_fleet({"servers": [{"name": "a", "llm": "llamacpp"}] * 2})
    with pytest.raises(ConfigurationError, match="allowed: a YAML file that exists"):
        load_fleet(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("servers: [")
    with pytest.raises(ConfigurationError, match="is not YAML"):
        load_fleet(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigurationError, match="a mapping with 'servers'"):
        load_fleet(tmp_path / "list.yaml")


# -- queues and slots -------------------------------------------------------------------------


async def test_requests_wait_their_turn() -> None:
    gate = asyncio.Event()
    upstream = ScriptedUpstream(gate=gate)
    fleet = fleet_of(upstream, slots=2, queue_size=5)
    bodies = [STREAM | {"user": str(i)} for i in range(5)]
    tasks = [asyncio.create_task(ask(fleet, 0, body)) for body in bodies]
    await asyncio.sleep(0.01)
    server = fleet.servers[0]
    assert (server.in_service, server.waiting, fleet.queue_lengths()) == (2, 3, [5])
    assert server.full
    assert fleet.usable() == [False]
    with pytest.raises(QueueFullError):
        await fleet.serve(0, CHAT, STREAM)
    gate.set()
    await asyncio.gather(*tasks)
    assert [body["user"] for body in upstream.asked] == list("01234")
    assert upstream.most_at_once == 2
    assert fleet.queue_lengths() == [0]
    assert server.served == 5


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 3),
    plan=st.lists(st.sampled_from(["ask", "cancel first", "cancel last", "step"]), max_size=25),
)
def test_no_slot_is_lost_whatever_is_cancelled(slots: int, plan: list[str]) -> None:
    async def run() -> None:
        gate = asyncio.Event()
        upstream = ScriptedUpstream(gate=gate)
        fleet = fleet_of(upstream, slots=slots, queue_size=30)
        tasks: list[asyncio.Task[list[bytes]]] = []
        for action in plan:
            open_ = [task for task in tasks if not task.done()]
            if action == "ask":
                tasks.append(asyncio.create_task(ask(fleet)))
            elif action == "step":
                await asyncio.sleep(0)
            elif open_:
                open_[0 if action == "cancel first" else -1].cancel()
            server = fleet.servers[0]
            assert server.in_service <= slots
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert fleet.queue_lengths() == [0]
        assert upstream.now == 0
        # all slots are free again
        await asyncio.gather(*(ask(fleet) for _ in range(slots)))

    asyncio.run(run())


async def test_what_is_measured_of_an_answer() -> None:
    fleet = fleet_of(ScriptedUpstream())
    served = await fleet.serve(0, CHAT, STREAM)
    assert await served.begin() == [event(""), event("a")]
    assert served.first_token_s is not None
    rest = await read(served)
    assert rest[-1] == DONE
    assert (served.tokens, served.finished, len(rest)) == (3, True, 3)
    served = await fleet.serve(0, CHAT, WHOLE)
    assert len(await served.begin()) == 1
    await served.close()
    assert (served.prompt_tokens, served.tokens, served.finished) == (3, 3, True)


async def test_a_silent_server_tries_patience() -> None:
    upstream = ScriptedUpstream(faults=["silent", "hang"])
    fleet = fleet_of(upstream)
    served = await fleet.serve(0, CHAT, STREAM)
    with pytest.raises(UpstreamError, match=r"no token within 0\.02 s") as raised:
        await served.begin(0.02)
    assert raised.value.kind == "timeout"
    with pytest.raises(UpstreamError, match="no token"):
        await fleet.serve(0, CHAT, STREAM, 0.02)
    assert fleet.queue_lengths() == [0]
    assert fleet.servers[0].failures == 2


# -- health -----------------------------------------------------------------------------------


def test_rests_grow_and_end() -> None:
    now = [0.0]
    health = Health(HealthPolicy(failures=3, cool_down_s=5, longest_s=12), lambda: now[0])
    assert [health.failed() for _ in range(3)] == [False, False, True]
    assert (health.state, health.usable, health.cooling_s) == ("cooling", False, 5)
    # requests that were under way tell nothing new
    health.failed()
    assert health.cooling_s == 5
    now[0] = 5.0
    assert (health.state, health.usable) == ("trying", True)
    assert health.begin()
    assert not health.usable
    assert not health.begin()
    assert health.failed()
    assert health.cooling_s == 10
    now[0] = 15.0
    health.begin()
    health.failed()
    assert health.cooling_s == 12
    now[0] = 27.0
    health.begin()
    health.succeeded()
    assert (health.state, health.usable) == ("up", True)
    assert [health.failed() for _ in range(3)] == [False, False, True]
    assert health.cooling_s == 5


def test_a_refused_connection_or_a_servers_own_word_is_enough() -> None:
    now = [0.0]
    health = Health(HealthPolicy(), lambda: now[0])
    assert health.failed(at_once=True)
    health.succeeded()
    assert health.failed(wait_s=9.0)
    assert health.cooling_s == 9
    health.succeeded()
    # nobody is left alone for a day because it said so
    assert health.failed(wait_s=86_400.0)
    assert health.cooling_s == 60


async def test_a_server_that_is_started_again_is_soon_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("icl_optimizer.environments.fleet.servers._HEALTH_EVERY_S", 0.01)
    away = ScriptedUpstream(faults=["refused"], alive=False)
    broken = ScriptedUpstream(faults=["500"] * 3)
    async with fleet_of(away, broken) as fleet:
        for index, times in ((0, 1), (1, 3)):
            for _ in range(times):
                with pytest.raises(UpstreamError):
                    await ask(fleet, index)
        await asyncio.sleep(0.05)
        assert [s.health.state for s in fleet.servers] == ["cooling", "cooling"]
        away.alive = True
        await asyncio.sleep(0.05)
        # one that listens and fails has to rest
        assert [s.health.state for s in fleet.servers] == ["trying", "cooling"]
        assert (await ask(fleet))[-1] == DONE
        assert fleet.servers[0].health.state == "up"


async def test_those_who_wait_go_elsewhere_when_a_server_fails() -> None:
    gate = asyncio.Event()
    upstream = ScriptedUpstream(gate=gate)
    fleet = fleet_of(upstream)
    first = asyncio.create_task(ask(fleet))
    waiting = [asyncio.create_task(ask(fleet)) for _ in range(3)]
    await asyncio.sleep(0.01)
    fleet.servers[0].failed(UpstreamError("nobody listens", "connection"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(r, "kind", None) for r in results] == ["open"] * 3
    gate.set()
    assert (await first)[-1] == DONE
    # its answer shows that the server is there
    assert fleet.servers[0].health.state == "up"


async def test_a_wrong_request_says_nothing_about_the_server() -> None:
    upstream = ScriptedUpstream(faults=["400"] * 5)
    fleet = fleet_of(upstream)
    for _ in range(5):
        with pytest.raises(UpstreamError) as raised:
            await fleet.serve(0, CHAT, STREAM)
        assert not raised.value.retryable
    assert fleet.servers[0].health.state == "up"


async def test_an_answer_that_breaks_off_is_one_failure() -> None:
    fleet = fleet_of(ScriptedUpstream(faults=["cut"] * 3))
    states = []
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await ask(fleet)
        states.append(fleet.servers[0].health.state)
    assert states == ["up", "up", "cooling"]
    with pytest.raises(UpstreamError) as raised:
        await ask(fleet)
    assert raised.value.kind == "open"


# -- the wire ---------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served_by(handler: Handler, spec: str = "openai:m@", **fields: Any) -> AsyncIterator[Any]:
    """Yield a fleet of one server on loopback that answers by ``handler``."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    url = f"{spec}http://127.0.0.1:{port}/v1"
    config = load_fleet({"servers": [{"name": "s", "llm": url, **fields}]})
    try:
        async with Fleet(config) as fleet:
            yield fleet
    finally:
        await runner.cleanup()


def streaming(*parts: bytes, cut: bool = False) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        if cut and request.transport is not None:
            request.transport.close()
            return response
        await response.write_eof()
        return response

    return answer


async def test_events_are_whole_however_they_arrive() -> None:
    parts = (
        b'data: {"choices": [{"del',
        b'ta": {"content": "a"}}]}\r\n',
        b"\r\n: a comment\n\n",
        b'data: {"choices": [{"delta": {"content": "b"}}]}\n\ndata: [DONE]\n\n',
    )
    async with served_by(streaming(*parts)) as fleet:
        chunks = await ask(fleet)
    texts = [chunk for chunk in chunks if chunk.startswith(b"data: {")]
    assert [json.loads(t[6:])["choices"][0]["delta"]["content"] for t in texts] == ["a", "b"]
    assert chunks[-1] == DONE


@pytest.mark.parametrize(
    "parts",
    [
        (b'data:{"choices": [{"delta": {"content": "a"}}]}\n\n', b"data:[DONE]\n\n"),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\r\n\r', b"\ndata: [DONE]\r", b"\n\r\n"),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\r', b"\n\r\ndata: [DONE]\r\n\r\n"),
    ],
)
async def test_every_legal_form_of_an_end_is_known(parts: tuple[bytes, ...]) -> None:
    async with served_by(streaming(*parts)) as fleet:
        chunks = await ask(fleet)
    assert len(chunks) == 2
    assert chunks[-1] == DONE


@pytest.mark.parametrize("usage", ["[1]", '{"prompt_tokens": "many", "completion_tokens": null}'])
async def test_counts_that_make_no_sense_do_no_harm(usage: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {usage}}}'

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, content_type="application/json")

    async with served_by(answer) as fleet:
        served = await fleet.serve(0, CHAT, WHOLE)
        assert await read(served) == [body.encode()]
        assert (served.tokens, served.finished) == (0, True)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_without_an_end_is_an_error(cut: bool) -> None:
    part = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    async with served_by(streaming(part, cut=cut)) as fleet:
        with pytest.raises(UpstreamError) as raised:
            await ask(fleet)
    assert raised.value.kind == "connection"


async def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        seen["body"] = await request.json()
        seen["key"] = request.headers.get("Authorization")
        return web.json_response({"choices": [{"message": {"content": "hi"}}]})

    monkeypatch.setenv("TINY_KEY", "server-key-123")
    async with served_by(answer, api_key_env="TINY_KEY") as fleet:
        await ask(fleet, 0, {"model": "auto", "messages": [], "temperature": 0.3})
    assert seen["body"] == {"model": "m", "messages": [], "temperature": 0.3}
    assert seen["key"] == "Bearer server-key-123"
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(ConfigurationError, match="TINY_KEY is not set"):
        async with served_by(answer, api_key_env="TINY_KEY"):
            pass


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((500, "server"), (429, "rate limit"), (401, "key"), (422, "request"), (413, "request")),
        *((404, "server"), (402, "server"), (501, "server")),
    ],
)
async def test_errors_by_status(status: int, kind: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "no"}, status=status, headers={"Retry-After": "3"})

    async with served_by(answer) as fleet:
        with pytest.raises(UpstreamError) as raised:
            await ask(fleet)
    assert (raised.value.kind, raised.value.status, raised.value.retry_after) == (kind, status, 3)


@pytest.mark.parametrize("text", ["{", "[]", '{"choices": []}', "3"])
async def test_an_answer_that_is_none(text: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    async with served_by(answer) as fleet:
        with pytest.raises(UpstreamError) as raised:
            await ask(fleet, 0, WHOLE)
    assert raised.value.kind == "malformed"


async def test_a_server_that_closes_kept_connections_is_asked_again() -> None:
    seen = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.transport)
        body = b'{"choices": [{"message": {"content": "hi"}}]}'
        response = web.Response(body=body, content_type="application/json")
        if request.transport is not None:
            # without a word, as servers do that count their connections' requests
            asyncio.get_running_loop().call_later(0.01, request.transport.abort)
        return response

    async with served_by(answer) as fleet:
        for _ in range(3):
            await ask(fleet, 0, WHOLE)
            # the loop has no time to notice that the connection is closed
            import time

            time.sleep(0.02)
    assert len(seen) == 3


async def test_nobody_listens() -> None:
    config = load_fleet({"servers": [{"name": "s", "llm": "openai:m@http://127.0.0.1:9/v1"}]})
    async with Fleet(config) as fleet:
        assert await fleet.probe() == {"s": False}
        with pytest.raises(UpstreamError) as raised:
            await ask(fleet)
        assert raised.value.kind == "connection"
        assert fleet.usable() == [False]


def test_ollama_is_asked_through_its_openai_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.7:11434")
    config = FleetConfig.model_validate({"servers": [{"name": "o", "llm": "ollama:llama3.2:3b"}]})
    upstream = open_upstream(config.servers[0])
    assert (upstream.url, upstream.model) == ("http://10.0.0.7:11434/v1", "llama3.2:3b")  # type: ignore[attr-defined]


async def test_a_langchain_model_streams_in_openais_form() -> None:
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel

    from icl_optimizer.environments.fleet.chat_upstream import ChatUpstream

    config = load_fleet({"servers": [{"name": "s", "llm": "openai:m@http://x/v1"}]})
    model = GenericFakeChatModel(messages=iter(["one two", "three four"]))
    upstream = ChatUpstream(config.servers[0], model)
    async with Fleet(config, None, {"s": upstream}) as fleet:
        served = await fleet.serve(0, CHAT, STREAM)
        chunks = await read(served)
        assert (served.tokens, served.finished, chunks[-1]) == (3, True, DONE)
        answer = json.loads((await ask(fleet, 0, WHOLE))[0])
    assert answer["choices"][0]["message"]["content"] == "three four"


@pytest.mark.llm
async def test_the_embedded_model_as_a_server() -> None:
    config = load_fleet({"servers": [{"name": "s", "llm": "llamacpp"}]})
    async with Fleet(config) as fleet:
        assert await fleet.probe() == {"s": True}
        served = await fleet.serve(0, CHAT, STREAM | {"max_tokens": 4, "temperature": 0})
        chunks = await read(served)
    assert served.tokens in (3, 4)
    assert chunks[-1] == DONE
