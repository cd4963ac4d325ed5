"""The server that misbehaves on order, and retries against it over real sockets."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError
from tiny_models import Clock, Untouchable, probabilities

from icl_optimizer.errors import ModelError
from icl_optimizer.llm import FunctionLLM
from icl_optimizer.llm.resilience import BreakerPolicy, ResilientModel, RetryPolicy
from icl_optimizer.llm.response_cache import CachedModel
from icl_optimizer.studies.faulty_server import OFF_LABEL, Fault, FaultKind, faulty_server

LOGPROBS = {"content": [{"token": " x"}]}


def completed(path: str, request: dict[str, Any]) -> dict[str, Any]:
    if path == "/v1/chat/completions":
        reply = {"role": "assistant", "content": "offload"}
        return {"choices": [{"index": 0, "message": reply, "logprobs": LOGPROBS}]}
    if path == "/v1/completions":
        answers = probabilities(request["prompt"])
        text = max(answers, key=answers.__getitem__)
        return {"choices": [{"index": 0, "text": text, "logprobs": LOGPROBS}]}
    return {"path": path, "request": request}


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """Serve a model that is right and never fails."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
            content = json.dumps(completed(self.path, request)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.headers["Content-Length"] = "0"
            self.do_POST()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def connection(url: str, timeout: float = 10.0) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(url)
    connected = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    try:
        yield connected
    finally:
        connected.close()


def post(url: str, request: Any, timeout: float = 10.0) -> tuple[int, Any, bytes]:
    with connection(url, timeout) as connected:
        connected.request("POST", urlsplit(url).path, json.dumps(request))
        with connected.getresponse() as answer:
            return answer.status, answer.headers, answer.read()


def complete(url: str, prompt: str = "coding", timeout: float = 10.0) -> Any:
    status, _, content = post(f"{url}/completions", {"prompt": prompt}, timeout)
    return json.loads(content)["choices"][0]["text"] if status == 200 else status


@pytest.fixture(autouse=True)
def _no_threads_stay() -> Iterator[None]:
    before = lasting()
    yield
    assert lasting() == before


def lasting() -> set[threading.Thread]:
    """Return the threads that keep a process alive; those of the model above do not."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def test_without_a_hit_everything_passes(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="500", start=100)) as url:
        assert complete(url) == "offload"
        for path in ("/v1/completions", "/v1/chat/completions", "/props", "/tokenize?a=1"):
            root = url.removesuffix("/v1")
            status, headers, content = post(f"{root}{path}", {"prompt": "talk", "päth": "ä"})
            assert (status, headers["Content-Type"]) == (200, "application/json")
            expected = completed(urlsplit(path).path, {"prompt": "talk", "päth": "ä"})
            assert json.loads(content) == expected
        with connection(url) as connected:
            connected.request("GET", "/props")
            assert json.loads(connected.getresponse().read())["path"] == "/props"


@pytest.mark.parametrize(
    ("schedule", "hit"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every": 3}, [2, 5, 8]),
        ({"times": 2}, [0, 1]),
        ({"start": 4}, [4, 5, 6, 7, 8]),
        ({"start": 1, "every": 2, "times": 3}, [2, 4, 6]),
    ],
)
def test_the_schedule_counts_completions(
    upstream: str, schedule: dict[str, int], hit: list[int]
) -> None:
    with faulty_server(upstream, Fault(kind="429", **schedule)) as url:  # type: ignore[arg-type]
        root = url.removesuffix("/v1")
        statuses = []
        for _ in range(9):
            statuses.append(post(f"{url}/chat/completions", {})[0])
            other = post(f"{root}/tokenize", {})[0]
            assert other == (429 if schedule == {} else 200)
    assert [i for i, status in enumerate(statuses) if status == 429] == hit


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "refused", "every": 2},
        {"kind": "restart", "times": 2},
        {"kind": "earthquake"},
        {"kind": "500", "every": 0},
    ],
)
def test_impossible_faults_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fault(**options)


def test_statuses_come_with_a_readable_error(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="429 retry-after", retry_after=2.5)) as url:
        status, headers, content = post(f"{url}/completions", {})
    assert (status, headers["Retry-After"]) == (429, "2.5")
    assert json.loads(content)["error"]["code"] == 429
    with faulty_server(upstream, Fault(kind="500")) as url:
        status, headers, _ = post(f"{url}/completions", {})
    assert (status, headers["Retry-After"]) == (500, None)


def test_answers_are_spoilt(upstream: str) -> None:
    whole = json.dumps(completed("/v1/completions", {"prompt": "talk"})).encode()
    with faulty_server(upstream, Fault(kind="truncated json")) as url:
        _, _, content = post(f"{url}/completions", {"prompt": "talk"})
    assert content == whole[: len(whole) // 2]
    with faulty_server(upstream, Fault(kind="empty choices")) as url:
        assert json.loads(post(f"{url}/completions", {"prompt": "talk"})[2]) == {"choices": []}
        assert json.loads(post(f"{url}/tokenize", {})[2])["path"] == "/v1/tokenize"
    with faulty_server(upstream, Fault(kind="off-label text")) as url:
        plain = json.loads(post(f"{url}/completions", {"prompt": "talk"})[2])
        chat = json.loads(post(f"{url}/chat/completions", {})[2])
    assert plain == {"choices": [{"index": 0, "text": OFF_LABEL}]}
    reply = {"role": "assistant", "content": OFF_LABEL}
    assert chat == {"choices": [{"index": 0, "message": reply}]}


def test_a_refused_connection(upstream: str) -> None:
    with (
        faulty_server(upstream, Fault(kind="refused")) as url,
        pytest.raises(ConnectionRefusedError),
    ):
        complete(url)


def test_a_hanging_server_holds_only_those_it_hits(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="hang", times=1)) as url:
        with pytest.raises(TimeoutError):
            complete(url, timeout=0.1)
        assert complete(url) == "offload"


def test_a_reset_comes_in_mid_answer(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="reset", times=1)) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            body = b'{"prompt": "talk"}'
            head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
            raw.sendall(head % len(body) + body)
            parts: list[bytes] = []
            with pytest.raises(ConnectionResetError):
                parts.extend(iter(lambda: raw.recv(4096), b""))
        assert complete(url) == "offload"
    head, _, half = b"".join(parts).partition(b"\r\n\r\n")
    promised = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert 0 < len(half) < promised


def until_up(url: str) -> int:
    """Return how many connections were refused before the server was back."""
    refused = 0
    while True:
        try:
            complete(url)
        except ConnectionRefusedError:
            refused += 1
            threading.Event().wait(0.01)
        else:
            return refused


def test_a_restarted_server_is_back_on_its_port(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="restart", start=2, down=0.2)) as url:
        assert [complete(url), complete(url)] == ["offload"] * 2
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            complete(url)
        assert until_up(url) > 0
        assert complete(url) == "offload"


def test_the_block_can_end_while_the_server_is_away(upstream: str) -> None:
    gone = pytest.raises((ConnectionError, http.client.HTTPException))
    with faulty_server(upstream, Fault(kind="restart", down=60)) as url, gone:
        complete(url)


def test_an_idle_connection_does_not_hold_the_server(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="500")) as url:
        idle = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port))
        complete(url)
    idle.close()


class Remote(FunctionLLM):
    """A bare client of the completion endpoint."""

    def __init__(self, url: str) -> None:
        super().__init__(probabilities)
        self.url = url

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        return [self._complete(prompt) for prompt in prompts]

    def _complete(self, prompt: str) -> str:
        try:
            answer = complete(self.url, prompt, timeout=0.5)
        except TimeoutError:
            raise ModelError("no answer in time", "timeout") from None
        except (ConnectionError, http.client.HTTPException) as error:
            raise ModelError(f"no answer: {error!r}", "connection") from None
        except (ValueError, LookupError) as error:
            raise ModelError(f"half an answer: {error!r}", "malformed") from None
        if isinstance(answer, int):
            raise ModelError(f"status {answer}", "rate limit" if answer == 429 else "server", 0.01)
        if answer not in ("local", "offload"):
            raise ModelError(f"off label: {answer}", "answer")
        self.usage.add(calls=1)
        return str(answer)


def guarded(url: str, clock: Clock) -> ResilientModel:
    return ResilientModel(
        Remote(url),
        RetryPolicy(),
        BreakerPolicy(),
        clock=clock,
        sleep=clock.sleep,
        rng=random.Random(0),
    )


PROMPTS = [f"{'talk' if i % 2 else 'coding'} {i}" for i in range(8)]
EXPECTED = ["local" if i % 2 else "offload" for i in range(8)]


@pytest.mark.parametrize(
    "kind", ["429 retry-after", "429", "500", "truncated json", "empty choices", "reset"]
)
def test_every_passing_fault_is_survived(upstream: str, kind: FaultKind, tmp_path: Path) -> None:
    clock = Clock()
    with (
        faulty_server(upstream, Fault(kind=kind, every=3)) as url,
        CachedModel(guarded(url, clock), tmp_path) as model,
    ):
        assert model.generate(PROMPTS) == EXPECTED
        assert model.usage.retries >= 4
        assert model.usage.failures == 0
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        assert replay.generate(PROMPTS) == EXPECTED


def test_one_hang_costs_one_timeout(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="hang", every=4, times=1)) as url:
        model = guarded(url, Clock())
        assert model.generate(PROMPTS[:6]) == EXPECTED[:6]
    assert model.usage.failures == 0


def test_an_answer_off_the_labels_is_not_asked_again(upstream: str) -> None:
    with faulty_server(upstream, Fault(kind="off-label text")) as url:
        model = guarded(url, Clock())
        with pytest.raises(ModelError, match="off label"):
            model.generate(["talk"])
    assert model.usage.retries == 0


def test_a_server_that_is_gone_is_left_alone_until_it_is_back(upstream: str) -> None:
    clock = Clock()
    with faulty_server(upstream, Fault(kind="restart", down=1.0)) as url:
        model = guarded(url, clock)
        kinds = []
        for _ in range(7):
            with pytest.raises(ModelError) as caught:
                model.generate(["talk"])
            kinds.append(caught.value.kind)
        assert kinds == ["connection"] * 5 + ["open"] * 2
        assert until_up(url) >= 0
        with pytest.raises(ModelError, match="next try is in"):
            model.generate(["talk"])
        clock.now += 30
        assert model.generate(PROMPTS) == EXPECTED
    assert (model.usage.failures, model.usage.retries) == (8, 15)
