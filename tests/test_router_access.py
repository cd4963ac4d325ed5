"""Who gets into the router, and what those who should not can do to it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tiny_router import ASK, Endpoint, ScriptedRouter, endpoint, received

from icl_optimizer.cli.route import router_settings
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.redaction import redact
from icl_optimizer.router.keys import Keys, check_exposure, load_keys
from icl_optimizer.router.serving import bind
from icl_optimizer.studies.access_tricks import ask_raw, tricks
from icl_optimizer.studies.slow_connections import finish_slow, start_slow

KEY = "caller-key-0123456789"
OTHER = "another-key-0123456789"
PROMPT = "a very private prompt"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def router() -> ScriptedRouter:
    # a body that takes long is given up soon
    return ScriptedRouter(max_body_bytes=2000, body_timeout_s=0.3, header_timeout_s=0.3)


@pytest.fixture(scope="module")
def here(router: ScriptedRouter) -> Iterator[Endpoint]:
    with endpoint(router, Keys.of([KEY, OTHER])) as running:
        yield running


@pytest.fixture(scope="module")
def open_door(router: ScriptedRouter) -> Iterator[Endpoint]:
    """The same without keys."""
    with endpoint(router) as running:
        yield running


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "authorization",
    [
        *("", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"),
        *(
            f"Bearer {KEY},{OTHER}",
            f"Bearer {KEY.upper()}",
            "Bearer \xe9\xff",
            "Bearer " + "k" * 9000,
        ),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models")),
        *(("GET", "/metrics"), ("GET", "/status"), ("GET", "/nowhere")),
    ],
)
def test_nobody_gets_in_with_a_wrong_key(
    here: Endpoint, router: ScriptedRouter, method: str, path: str, authorization: str
) -> None:
    before = len(router.asked)
    body = ASK if method == "POST" else None
    answer = here.send(method, path, body, {"Authorization": authorization})
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.error["code"] == "invalid_api_key"
    assert len(router.asked) == before


def test_without_a_header_there_is_only_health_and_the_empty_page(here: Endpoint) -> None:
    assert here.chat().status == 401
    assert here.send("GET", "/health").json == {"status": "ok"}
    for path in ("/", "/page.js", "/page.css", "/icon.svg"):
        assert here.send("GET", path).status == 200


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {OTHER}", f"Bearer  {KEY}"])
def test_each_key_opens(here: Endpoint, authorization: str) -> None:
    given = {"Authorization": authorization}
    assert here.send("POST", "/v1/chat/completions", ASK, given).status == 200
    assert here.send("GET", "/status", None, given).status == 200


def test_two_keys_at_once_are_refused(here: Endpoint) -> None:
    line = f"Authorization: Bearer {KEY}\r\n".encode()
    answer = here.raw(b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + line + line + b"\r\n")
    assert status_of(answer) == 400


def test_metrics_may_be_open() -> None:
    with endpoint(ScriptedRouter(open_metrics=True), Keys.of([KEY])) as here:
        assert here.send("GET", "/metrics").status == 200
        assert here.send("GET", "/status").status == 401


def test_keys_come_from_a_file_or_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}  \n")
    monkeypatch.setenv("ROUTER_CALLERS", f"{KEY}, {OTHER}")
    for keys in (load_keys(file=file), load_keys(env="ROUTER_CALLERS")):
        assert keys.admit(f"Bearer {OTHER}".encode())
        assert not keys.admit(b"Bearer # ours")
        assert KEY not in repr(keys)
    assert KEY not in redact(f"it was {KEY}")
    assert load_keys().admit(None)


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "with spaces within the key\n"])
def test_files_without_good_keys_are_refused_without_quoting(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="allowed: ") as caught:
        load_keys(file=file)
    assert "short" not in str(caught.value)
    assert "within" not in str(caught.value)


def test_keys_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a file that exists"):
        load_keys(file=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="holds no key"):
        load_keys(env="ROUTER_CALLERS_NONE")
    with pytest.raises(ConfigurationError, match="one of them"):
        load_keys("A", tmp_path)


def test_other_machines_need_keys_or_a_word() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_exposure(host, Keys(), open_to_all=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(ConfigurationError, match="--open"):
            check_exposure(host, Keys(), open_to_all=False)
        check_exposure(host, Keys(), open_to_all=True)
        check_exposure(host, Keys.of([KEY]), open_to_all=False)


def test_a_page_of_another_name_gets_nothing_from_an_open_router(open_door: Endpoint) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert open_door.send("GET", "/status", None, {"Host": host}).status == 421
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert open_door.send("GET", "/status", None, {"Host": host}).status == 200
    with endpoint(ScriptedRouter(), open_to_all=True) as anybody:
        assert anybody.send("GET", "/status", None, {"Host": "here.example"}).status == 200


def test_declared_bodies_that_are_too_large_are_refused_unread(open_door: Endpoint) -> None:
    head = HEAD + JSON + b"Content-Length: 999999999999\r\n\r\n"
    answer = open_door.raw(head, end=False)
    assert status_of(answer) == 413
    assert b"at most 2000" in answer


def test_undeclared_bodies_are_counted(open_door: Endpoint, router: ScriptedRouter) -> None:
    before = len(router.asked)
    part = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = open_door.raw(HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + part * 2000)
    assert status_of(answer) == 413
    body = {"messages": [{"role": "user", "content": "x" * 2000}]}
    assert open_door.chat(body).status == 413
    assert len(router.asked) == before


def test_a_body_that_does_not_come_is_given_up(open_door: Endpoint) -> None:
    answer = open_door.raw(HEAD + JSON + b"Content-Length: 100\r\n\r\n{", end=False)
    assert status_of(answer) == 408
    assert b"takes too long" in answer


def test_headers_that_do_not_come_are_given_up(open_door: Endpoint) -> None:
    assert open_door.raw(b"", end=False) == b""
    assert open_door.raw(HEAD, end=False) == b""
    # one that is kept open, too
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = open_door.raw(first + b"GET /hea", end=False)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"x-request-id: a\nset-cookie: b",
            b"x-request-id: a\rset-cookie: b",
            b"x-request-id: a\0",
        ),
        *(b"x-request-id: a\r\n set-cookie: b", b"x request-id: a", b"x-request-id : a", b": a"),
        *(b"x-request-id: \xc4\x8a", b"x-request-id: a\x7f", b"x-request-id: a\r\nx-request-id: b"),
        *(b"x-deadline-s: 1\r\nx-deadline-s: 2", b"x-task-type: math\r\nx-task-type: coding"),
        *(b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: -1", b"Content-Length: 1e3"),
        *(
            b"Content-Length: 2\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked, x",
        ),
        *(b"a: " + b"b" * 20_000, b"\r\n".join([b"a: b"] * 200)),
    ],
)
def test_headers_that_try_more_are_refused(
    open_door: Endpoint, router: ScriptedRouter, line: bytes
) -> None:
    before = len(router.asked)
    body = json.dumps(ASK).encode()
    length = b"" if b"Content" in line or b"Transfer" in line else b"Content-Length: %d\r\n"
    length = length % len(body) if length else b""
    answer = open_door.raw(HEAD + JSON + length + line + b"\r\n\r\n" + body)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert 400 <= status_of(answer) < 500
    assert b"set-cookie" not in head
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(router.asked) == before


@pytest.mark.parametrize(
    "target",
    [
        *(b"/../v1/models", b"/v1/../status", b"/%2e%2e/status", b"/v1/%2e%2e%2fstatus"),
        *(b"//v1/models", b"/v1//models", b"/v1/models/", b"/V1/models", b"/%73tatus"),
        *(b"/status%00", b"/status\0", b"/status;x", b"/\xc3\xa9", b"/status\\..", b"\\status"),
        *(
            b"http://evil.example/status",
            b"https:status",
            b"*",
            b"status",
            b"",
            b"/" + b"a" * 20_000,
        ),
        *(
            b"/page/../page.js",
            b"/page.js/",
            b"/etc/passwd",
            b"/page/index.html",
            b"/status?" * 3000,
        ),
    ],
)
def test_tricks_with_paths_lead_nowhere(open_door: Endpoint, target: bytes) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = open_door.raw(request)
    assert 400 <= status_of(answer) < 500
    assert b'"error"' in answer


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            b"GET",
            b"GET / HTTP/9.9\r\n\r\n",
            b"EVIL / HTTP/1.1\r\n\r\n",
        ),
        *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n"),
    ],
)
def test_what_is_not_http_does_no_harm(open_door: Endpoint, line: bytes) -> None:
    answer = open_door.raw(line)
    assert not answer or 400 <= status_of(answer) < 500
    assert open_door.send("GET", "/health").status == 200


def test_a_body_cannot_hold_another_request(open_door: Endpoint, router: ScriptedRouter) -> None:
    inner = HEAD + JSON + b"Content-Length: 0\r\n\r\n"
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = open_door.raw(head + b"Content-Length: %d\r\n\r\n%b" % (len(inner), inner))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_requests_piled_up_in_one_connection_are_bounded(open_door: Endpoint) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = open_door.raw(one * 5000)
    assert answer.count(b"HTTP/1.1 200") < 100
    assert open_door.send("GET", "/health").status == 200


def test_slow_connections_do_not_keep_others_out() -> None:
    router = ScriptedRouter(max_connections=50)
    with endpoint(router) as here, ExitStack() as stack:
        begun = (b"", b"GET /health HTT", HEAD + JSON + b"Content-Length: 9\r\n\r\n{")
        slow = []
        for number in range(400):
            connection = stack.enter_context(here.connect())
            connection.sendall(begun[number % 3])
            slow.append(connection)
            if number % 20 == 0:
                assert here.chat().status == 200
        callers = here.server.callers
        eventually(lambda: callers.evicted >= 350)
        assert callers.most <= 50
        assert len(callers) <= 50
        assert here.chat().status == 200
        # the first ones were closed
        assert received(slow[0]) == b""
    assert len(router.asked) == 21


def test_the_studys_tricks_get_errors_and_reach_nobody(
    here: Endpoint, router: ScriptedRouter
) -> None:
    before = len(router.asked)
    for what, requests in tricks(KEY, times=1).items():
        answers = {ask_raw(here.port, request) for request in requests}
        assert answers <= {400, 401, 404, 413, 431}, what
    assert len(router.asked) == before


def test_the_studys_slow_clients_are_counted() -> None:
    with endpoint(ScriptedRouter(max_connections=20)) as here:
        counts = finish_slow(start_slow(here.port, 100, 2.0))
        assert (counts.opened, counts.failed) == (100, 0)
        assert counts.closed > 0
        assert here.server.callers.most <= 20
        assert here.chat().status == 200


def test_connections_in_service_are_never_closed_for_new_ones() -> None:
    router = ScriptedRouter(max_connections=2)
    go_on = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def wait() -> None:
        loops.append(asyncio.get_running_loop())
        await go_on.wait()

    router.before = wait
    body = json.dumps(ASK).encode()
    ask = HEAD + JSON + b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with endpoint(router) as here, here.connect() as first, here.connect() as second:
        first.sendall(ask)
        second.sendall(ask)
        eventually(lambda: len(loops) == 2)
        third = here.raw(b"", end=False)
        loops[0].call_soon_threadsafe(go_on.set)
        assert [status_of(received(each)) for each in (first, second)] == [200, 200]
    assert status_of(third) == 503


def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": PROMPT}]}).encode()
    with caplog.at_level(logging.DEBUG), endpoint(ScriptedRouter(), Keys.of([KEY])) as here:
        for key in (KEY, f"wrong-{KEY}"):
            for each in (body, body[:-1]):
                here.send(
                    "POST",
                    f"/v1/chat/completions?key={KEY}",
                    each,
                    {"Authorization": f"Bearer {key}", "X-Task-Type": PROMPT},
                )
        here.raw(b"GET /" + KEY.encode() + b"\0 HTTP/1.1\r\n\r\n")
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text


def test_a_taken_port_is_known_at_once() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="host"):
        bind("no.such.host.invalid", 0)


def test_settings_of_the_command_are_checked() -> None:
    assert router_settings({"port": 0}, {"drain_s": "5"}).drain_s == 5
    for more in ({"drain_s": "long"}, {"nonsense": "1"}):
        with pytest.raises(ConfigurationError, match=next(iter(more))):
            router_settings({}, more)
    with pytest.raises(ConfigurationError, match="--port"):
        router_settings({"port": 0}, {"port": "9"})
