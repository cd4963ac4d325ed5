"""The router's endpoint over real sockets; the router behind it is scripted."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from pathlib import Path

import openai
import pytest
from loopback import chat_reply, closed_port, serve
from tiny_router import ASK, DONE, Endpoint, ScriptedRouter, endpoint, event, received
from tiny_upstream import event as chunk

from icl_optimizer.environments.fleet.config import dump_fleet
from icl_optimizer.router.metrics import RouterMetrics
from icl_optimizer.router.requests import RoutedRequest, RouterError
from icl_optimizer.router.router import Router
from icl_optimizer.studies.child import free_port
from icl_optimizer.studies.router_process import fleet_at

PROMPT = "a very private prompt"


@pytest.fixture(scope="module")
def router() -> ScriptedRouter:
    return ScriptedRouter()


@pytest.fixture(scope="module")
def here(router: ScriptedRouter) -> Iterator[Endpoint]:
    with endpoint(router) as running:
        yield running


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_openai_client_gets_whole_answers_and_streams(
    here: Endpoint, router: ScriptedRouter
) -> None:
    with openai.OpenAI(api_key="none", base_url=f"{here.url}/v1", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["auto"]
        messages = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model="auto", messages=messages)  # type: ignore[call-overload]
        assert whole.choices[0].message.content == "Hello"
        parts = client.chat.completions.create(model="auto", messages=messages, stream=True)  # type: ignore[call-overload]
        assert [part.choices[0].delta.content for part in parts] == ["Hel", "lo"]
    assert [request.streams for request in router.asked[-2:]] == [False, True]


def test_a_request_reaches_the_router_with_what_its_headers_say(
    here: Endpoint, router: ScriptedRouter
) -> None:
    answer = here.chat(x_deadline_s="2.5", x_task_type="Data-Analysis", x_request_id="mine/1")
    assert answer.status == 200
    assert answer.headers["x-request-id"] == "mine/1"
    assert answer.headers["x-server"] == "one"
    asked = router.asked[-1]
    assert (asked.id, asked.deadline_s, asked.task) == ("mine/1", 2.5, "data analysis")
    assert asked.body == ASK
    here.send("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 3})
    assert (router.asked[-1].path, router.asked[-1].deadline_s) == ("completions", None)
    assert router.asked[-1].id != asked.id


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON at character 1"),
        (b"\xff", "UTF-8"),
        (b'{"messages": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
        ([], "JSON object"),
        ({}, "messages is missing"),
        ({"messages": []}, "one or more messages"),
        ({"messages": "Hello"}, 'messages is "Hello"'),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content"),
        ({**ASK, "stream": "yes"}, "stream"),
        ({**ASK, "stream": 1}, "stream"),
        ({**ASK, "model": 3}, "model"),
        ({**ASK, "max_tokens": "many"}, "max_tokens"),
        ({**ASK, "max_tokens": True}, "max_tokens"),
        ({**ASK, "max_tokens": 0}, "max_tokens"),
        ({**ASK, "max_completion_tokens": 1.5}, "max_completion_tokens"),
    ],
)
def test_a_malformed_body_is_refused_before_anything_is_routed(
    here: Endpoint, router: ScriptedRouter, body: object, says: str
) -> None:
    before = len(router.asked)
    answer = here.chat(body)
    assert answer.status == 400
    assert says in answer.error["message"]
    assert "allowed: " in answer.error["message"]
    assert len(router.asked) == before


@pytest.mark.parametrize("prompt", [None, 3, [], ["a", 1], [["a"]], {"a": 1}])
def test_a_malformed_prompt_is_refused(here: Endpoint, prompt: object) -> None:
    answer = here.send("POST", "/v1/completions", {"prompt": prompt})
    assert answer.status == 400
    assert "prompt is" in answer.error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("x-deadline-s", value) for value in ("0", "-1", "nan", "inf", "1_0", "3601", "", "2s")),
        ("x-task-type", "poetry"),
        ("x-task-type", ""),
        ("x-request-id", "a b"),
        ("x-request-id", "x" * 129),
        ("x-request-id", "\xe9"),
    ],
)
def test_a_malformed_header_is_refused_by_name(here: Endpoint, name: str, value: str) -> None:
    answer = here.send("POST", "/v1/chat/completions", ASK, {name: value})
    assert answer.status == 400
    assert name in answer.error["message"]
    assert "allowed: " in answer.error["message"]


def test_other_content_types_are_refused(here: Endpoint) -> None:
    form = {"Content-Type": "text/plain"}
    assert here.send("POST", "/v1/chat/completions", ASK, form).status == 415


def test_other_paths_and_methods_are_errors_in_the_same_form(here: Endpoint) -> None:
    assert here.send("GET", "/v1/embeddings").error["code"] == "not_found"
    wrong = here.send("GET", "/v1/chat/completions")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert wrong.error["code"] == "method_not_allowed"


def test_health_follows_the_servers(here: Endpoint, router: ScriptedRouter) -> None:
    assert here.send("GET", "/health").status == 200
    router.health.state = "cooling"
    try:
        answer = here.send("GET", "/health")
        assert (answer.status, answer.json) == (503, {"status": "no server"})
    finally:
        router.health.state = "up"


def test_metrics_are_prometheus_text(here: Endpoint) -> None:
    answer = here.send("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    assert 'router_server_state{server="one",state="up"} 1.0' in lines
    assert "router_connections 1.0" in lines


def test_every_answer_says_what_browsers_may_not_do(here: Endpoint) -> None:
    for path in ("/", "/page.js", "/health", "/none"):
        headers = here.send("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_events_are_passed_on_as_they_come() -> None:
    go_on = threading.Event()

    async def waiting(request: RoutedRequest) -> AsyncIterator[bytes]:
        yield event("first")
        await asyncio.to_thread(go_on.wait)
        yield DONE

    with endpoint(ScriptedRouter(waiting)) as here, here.connect() as connection:
        connection.sendall(_post({**ASK, "stream": True}))
        got = b""
        try:
            while event("first") not in got:
                got += connection.recv(65536)
            assert DONE not in got
        finally:
            go_on.set()
        while DONE not in got:
            got += connection.recv(65536)


@pytest.mark.parametrize("when", ["before the answer", "in the answer"])
def test_a_client_that_goes_away_ends_its_request(when: str) -> None:
    stopped = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def waiting(request: RoutedRequest) -> AsyncIterator[bytes]:
        yield event("first")
        await endless()

    router = ScriptedRouter(waiting)
    if when == "before the answer":
        router.before = endless
    with endpoint(router) as here:
        with here.connect() as connection:
            connection.sendall(_post({**ASK, "stream": True}))
            if when == "in the answer":
                assert connection.recv(1000)
            eventually(lambda: bool(router.asked))
        assert stopped.wait(20)
        eventually(lambda: router.closed == (when == "in the answer"))


def test_a_client_that_reads_nothing_loses_its_connection() -> None:
    made = 0

    async def much(request: RoutedRequest) -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield event("x" * 100_000)
            await asyncio.sleep(0)  # as where chunks come from a socket

    router = ScriptedRouter(much, client_timeout_s=0.2)
    with endpoint(router) as here, here.connect() as connection:
        connection.sendall(_post({**ASK, "stream": True}))
        eventually(lambda: router.closed == 1)
        eventually(lambda: len(here.server.callers) == 0)
        assert made < 1000
        received(connection)


def test_errors_of_the_router_are_told_in_openais_form() -> None:
    async def refuse() -> None:
        raise RouterError(429, "all are full", "rate_limit_error", 1.2)

    router = ScriptedRouter()
    router.before = refuse
    with endpoint(router) as here:
        answer = here.chat()
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")
    assert answer.error["message"] == "all are full"
    assert answer.headers["x-request-id"] == router.asked[0].id


def test_an_error_after_the_first_token_is_an_event() -> None:
    async def breaks(request: RoutedRequest) -> AsyncIterator[bytes]:
        yield event("first")
        raise RouterError(502, "the server broke off")

    with endpoint(ScriptedRouter(breaks)) as here:
        answer = here.chat({**ASK, "stream": True})
        whole = here.chat()
    first, last = answer.body.split(b"\n\n")[:2]
    assert first + b"\n\n" == chunk("first")
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "the server broke off"
    assert DONE not in answer.body
    assert whole.status == 502


def test_an_unexpected_error_is_one_line_of_log_without_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(request: RoutedRequest) -> AsyncIterator[bytes]:
        raise ValueError(request.body)
        yield b""

    body = {"messages": [{"role": "user", "content": PROMPT}]}
    with caplog.at_level(logging.DEBUG), endpoint(ScriptedRouter(fails)) as here:
        answer = here.chat(body, x_request_id="mine")
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert PROMPT not in answer.body.decode()
    mine = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in mine] == ["request mine: ValueError"]
    assert PROMPT not in caplog.text


def test_draining_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    go_on = threading.Event()

    async def waiting(request: RoutedRequest) -> AsyncIterator[bytes]:
        yield event("first")
        await asyncio.to_thread(go_on.wait)
        yield DONE

    router = ScriptedRouter(waiting)
    with endpoint(router) as here:
        with here.connect() as connection:
            connection.sendall(_post({**ASK, "stream": True}))
            got = connection.recv(1000)
            here.server.drain()
            health, late = here.send("GET", "/health"), here.chat()
            go_on.set()
            got += received(connection)
        assert (health.status, health.json) == (503, {"status": "draining"})
        assert (late.status, late.error["code"]) == (503, "draining")
        assert "retry-after" in late.headers
        assert DONE in got
        eventually(lambda: not _listens(here.port))
    assert len(router.asked) == router.closed == 1


def test_draining_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def endless(request: RoutedRequest) -> AsyncIterator[bytes]:
        yield event("first")
        await asyncio.Event().wait()

    router = ScriptedRouter(endless, drain_s=0)
    with endpoint(router) as here, here.connect() as connection:
        connection.sendall(_post({**ASK, "stream": True}))
        connection.recv(1000)
        here.server.drain()
        received(connection)
    assert router.closed == 1
    assert "Traceback" not in caplog.text


def test_the_command_serves_until_a_signal_and_ends_well(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    urls = [f"{closed_port()}/v1" for _ in range(2)]
    fleet.write_text(dump_fleet(fleet_at(dict(zip("ab", urls, strict=True)))))
    port = free_port()
    command = [
        *(sys.executable, "-c", "from icl_optimizer.cli import main; main()", "route", str(fleet)),
        *("--policy", "shortest-queue", "--port", str(port), "--log", str(tmp_path / "log.jsonl")),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            eventually(lambda: process.poll() is not None or _listens(port))
            request = urllib.request.Request(f"http://127.0.0.1:{port}/health")
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"page: http://127.0.0.1:{port}/" in printed.decode()
    assert errors == b""


def test_the_real_router_answers_and_tells_what_the_page_shows() -> None:
    with serve(lambda asked: chat_reply("Hello")) as url:
        fleet = fleet_at({"one": f"{url}/v1", "two": f"{url}/v1"})
        with endpoint(Router(fleet, "shortest-queue")) as here:
            answer = here.chat(x_task_type="coding", x_deadline_s="7")
            status = here.send("GET", "/status").json
            metrics = here.send("GET", "/metrics").body.decode()
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert answer.headers["x-server"] == "one"
    script = (files("icl_optimizer.router") / "page" / "page.js").read_text()
    decision = status["decisions"][0]
    for name, shown in (
        ("status", status),
        ("totals", status["totals"]),
        ("server", status["servers"][0]),
        ("decision", decision),
    ):
        read = set(re.findall(rf"\b{name}\.(\w+)", script))
        assert read
        assert read <= set(shown), name
    assert (decision["task"], decision["deadline_s"], decision["became"]) == (
        "coding",
        7,
        "answered",
    )
    assert 'router_requests_total{outcome="ok",server="one",status="200"} 1.0' in metrics


def test_metrics_keep_to_known_labels() -> None:
    metrics = RouterMetrics(["one"])
    for name in ("one", "other {evil}", "x" * 1000):
        metrics.decided(name, 0.01, "by magic")
        metrics.finished(name, 200, 1.0, 0.5, True, 3, 4, 0.1)
        metrics.retried(name, "timeout")
        metrics.server_state(name, 1, 2, "dancing")
    metrics.refused(99_999)
    metrics.pool_pending(7)
    text = metrics.render().decode()
    assert "evil" not in text
    assert "magic" not in text
    assert 'router_requests_total{outcome="ok",server="one",status="200"} 1.0' in text
    assert 'router_refused_total{status="other"} 1.0' in text
    assert "router_pool_writes_pending 7.0" in text
    assert 'router_deadlines_total{met="yes",server="one"} 1.0' in text
    assert 'router_tokens_total{direction="out",server="one"} 4.0' in text


def _post(body: object) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
