"""What the real clients make of servers that fail, and what they keep to themselves."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from loopback import LLAMA_PROPS, Asked, Reply, chat_reply, closed_port, llama_reply, serve

from icl_optimizer.errors import ConfigurationError, FailureKind
from icl_optimizer.llm import LanguageModel, LlamaServer, ModelError, PromptTooLongError, load_llm
from icl_optimizer.llm.provider_errors import retry_after
from icl_optimizer.llm.redaction import redact

KEY = "sk-very-secret-0123456789"
CLIENTS = ("openai", "ollama", "ollama chat", "llama.cpp")
LABELS = ["A", "B"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "OLLAMA_API_KEY"):
        monkeypatch.setenv(variable, KEY)


def client(kind: str, url: str, query: str = "timeout=20") -> LanguageModel:
    if kind == "ollama":
        return load_llm(f"ollama:tiny?base_url={url}&{query}")
    if kind == "ollama chat":
        return load_llm(f"ollama:tiny?base_url={url}&endpoint=chat&{query}")
    if kind == "openai":
        return load_llm(f"openai:tiny@{url}/v1?endpoint=chat&{query}")
    return load_llm(f"openai:tiny@{url}/v1?{query}")


def ollama_reply(content: str = "A", done: bool = True) -> Reply:
    stamp = {"model": "tiny", "created_at": "2025-01-01T00:00:00Z"}
    message = {"role": "assistant", "content": content}
    parts = {"message": message, "response": content, "done": done}  # of a chat or a completion
    return Reply(json.dumps({**stamp, **parts}) + "\n")


@contextmanager
def failing(kind: str, reply: Callable[[Asked], Reply]) -> Iterator[LanguageModel]:
    """Yield a client whose server answers what it is asked to generate with ``reply``."""

    def answer(asked: Asked) -> Reply:
        return Reply(LLAMA_PROPS) if asked.path == "/props" else reply(asked)

    with serve(answer) as url:
        yield client(kind, url)


def failure(model: LanguageModel) -> ModelError:
    with pytest.raises(ModelError) as caught:
        model.generate(["hello"], max_tokens=2)
    return caught.value


STATUSES: dict[int, FailureKind] = {
    400: "request",
    401: "key",
    403: "key",
    404: "request",
    408: "timeout",
    429: "rate limit",
    500: "server",
    501: "request",
    503: "server",
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_status_is_a_kind_of_failure(kind: str) -> None:
    asked_for: list[int] = []

    def reply(asked: Asked) -> Reply:
        asked_for.append(status)
        return Reply({"error": {"message": "no", "code": status}}, status)

    found = {}
    with failing(kind, reply) as model:
        for status in STATUSES:
            error = failure(model)
            found[status] = error.kind
            assert error.retryable == (error.kind not in ("key", "request"))
    assert found == STATUSES
    assert asked_for == list(STATUSES)  # clients repeat nothing by themselves


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_wait_that_a_server_asks_for_is_kept(kind: str) -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    waits = []
    with failing(kind, lambda asked: Reply({"error": "busy"}, 429, headers)) as model:
        for value in ("7", format_datetime(later, usegmt=True), "soon"):
            headers = {"Retry-After": value}
            waits.append(failure(model).retry_after)
    assert waits == [7.0, pytest.approx(90, abs=30), None]


def test_waits_in_the_past_are_none_to_speak_of() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"Retry-After": "1.5"}) == 1.5
    assert retry_after({}) is None


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_that_is_not_there(kind: str) -> None:
    error = failure(client(kind, closed_port()))
    assert error.kind == "connection"
    assert "did not answer" in str(error)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_server_that_hangs(kind: str) -> None:
    released = threading.Event()

    def wait(asked: Asked) -> Reply:
        released.wait(20)
        return Reply()

    with serve(wait) as url:
        error = failure(client(kind, url, "timeout=0.2"))
        released.set()
    assert error.kind == "timeout"


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_connection_reset_in_mid_answer(kind: str) -> None:
    whole = ollama_reply() if "ollama" in kind else chat_reply("A")
    with failing(kind, lambda asked: Reply(whole.body, cut=True)) as model:
        assert failure(model).kind == "connection"


MALFORMED: dict[str, dict[str, Any]] = {
    "openai": {
        "truncated": '{"choices": [{"index": 0, "mess',
        "no JSON": "<html>hello</html>",
        "empty choices": {"id": "1", "object": "chat.completion", "choices": []},
        "null choices": {"id": "1", "object": "chat.completion", "choices": None},
        "no choices": {"id": "1"},
        "no message": {"id": "1", "choices": [{"index": 0}]},
        "no content": chat_reply(None).body,
        "empty content": chat_reply("").body,
        "empty body": "",
    },
    "ollama": {
        "truncated": '{"model": "tiny", "mess\n',
        "empty content": ollama_reply("").body,
        "ends too early": ollama_reply("A", done=False).body,
        "empty body": "",
    },
    "llama.cpp": {
        "truncated": '{"choices": [{"text": "A',
        "empty choices": {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        "no choices": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        "no object": [1, 2],
        "empty body": "",
    },
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_answers_that_cannot_be_read_are_malformed(kind: str) -> None:
    cases = MALFORMED[kind.partition(" ")[0]]
    with failing(kind, lambda asked: Reply(cases[case])) as model:
        found = {}
        for case in cases:
            found[case] = failure(model).kind
    assert found == dict.fromkeys(cases, "malformed")


def test_an_error_in_mid_stream_is_the_servers() -> None:
    lines = ollama_reply("A", done=False).text + json.dumps({"error": "out of memory"}) + "\n"
    with failing("ollama chat", lambda asked: Reply(lines)) as model:
        error = failure(model)
    assert error.kind == "server"
    assert "out of memory" in str(error)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_key_that_a_server_repeats_is_kept_secret(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []

    def echo(asked: Asked) -> Reply:
        sent.append(asked.headers.get("Authorization", ""))
        said = f"what you sent: {sent[-1]}"
        return Reply({"error": {"message": said, "code": status}}, status, {"X-Echo": sent[-1]})

    with failing(kind, echo) as model:
        for status in (400, 401, 403, 429, 500):
            error = failure(model)
            assert sent[-1] == f"Bearer {KEY}"
            assert KEY not in "\n".join([*everything_shown(error), repr(model), caplog.text])
            assert error.__cause__ is error.__context__ is None
            told = "what you sent: Bearer [redacted]" in str(error)
            assert told == (status not in (401, 403))
        assert KEY not in f"{model.identity} {model.name}"


def everything_shown(error: BaseException) -> Iterator[str]:
    link: BaseException | None = error
    while link is not None:
        yield repr(link)
        yield from traceback.format_exception(link)
        link = link.__cause__ or link.__context__


def test_only_long_values_of_keys_are_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "token-of-mine")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("HOME_TOWN", "Springfield")
    text = redact(f"{KEY} token-of-mine abc Springfield")
    assert text == "[redacted] [redacted] abc Springfield"


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
        "(4990 in the messages, 10 in the completion).",
        {"type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096},
    ],
)
def test_a_prompt_that_is_too_long_for_the_server(said: Any) -> None:
    error = {"message": said} if isinstance(said, str) else {"message": "too long", **said}
    with (
        failing("openai", lambda asked: Reply({"error": error}, 400)) as model,
        pytest.raises(PromptTooLongError) as caught,
    ):
        model.generate(["hello"])
    assert (caught.value.tokens, caught.value.limit) == (5000, 4096)


class Buggy(FakeListChatModel):
    """Raises what a mistake in a user's own class would."""

    failure: Any = None

    def _call(self, *args: Any, **kwargs: Any) -> str:
        raise self.failure


def test_mistakes_of_the_program_are_no_failures_of_a_provider() -> None:
    for mistake in (AssertionError("no"), TypeError("f() got an unexpected keyword argument 'x'")):
        with pytest.raises(type(mistake)):
            load_llm(Buggy(responses=[], failure=mistake)).generate(["hello"])
    error = failure(load_llm(Buggy(responses=[], failure=IndexError("list index out of range"))))
    assert error.kind == "malformed"


def test_a_llama_server_is_found_out_at_the_first_question() -> None:
    paths: list[str] = []

    def answer(asked: Asked) -> Reply:
        paths.append(asked.path)
        return llama_reply(asked)

    with serve(answer) as url:
        model = load_llm(f"openai:tiny@{url}/v1?repeat_penalty=1.1&reuse_prefix=false")
        assert paths == []
        assert model.score(["x "], ["one", "lot"]).tolist() == [[-0.1, -2.0]]
        capabilities = model.capabilities
        model.close()
    assert isinstance(model.inner, LlamaServer)  # type: ignore[attr-defined]
    assert paths[0] == "/props"
    assert (capabilities.context_size, capabilities.top_logprobs) == (256, None)
    assert (capabilities.likelihoods, capabilities.embeddings) == (True, False)
    assert capabilities.chat_template
    with pytest.raises(ConfigurationError, match="was closed"):
        model.count_tokens("x")


def test_other_servers_are_asked_by_chat() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path.startswith("/v1/chat"):
            return chat_reply("A", {"A": -0.2, "B": -1.9})
        if asked.path == "/v1/models":
            listed = {"id": "tiny", "object": "model", "created": 1, "owned_by": "x"}
            return Reply({"object": "list", "data": [{**listed, "max_model_len": 2048}]})
        return Reply("not found", 404)

    with serve(answer) as url:
        model = load_llm(f"openai:tiny@{url}/v1")
        assert model.score(["x"], LABELS)[0] == pytest.approx([-0.2, -1.9])
        assert model.capabilities.context_size == 2048
        assert model.usage.calls == 3  # two of them to find out what it can do
        with pytest.raises(ConfigurationError, match=r"endpoint=completions, but .* llama\.cpp"):
            load_llm(f"openai:tiny@{url}/v1?endpoint=completions").generate(["x"])
        with pytest.raises(ConfigurationError, match=r"cannot honour .*'repeat_penalty'"):
            load_llm(f"openai:tiny@{url}/v1?repeat_penalty=1.1").generate(["x"])
    with (
        serve(llama_reply) as url,
        pytest.raises(ConfigurationError, match=r"cannot honour .*'service_tier'.*llama\.cpp"),
    ):
        load_llm(f"openai:tiny@{url}/v1?service_tier=flex").generate(["x"])


def test_a_llama_server_that_is_still_loading_is_not_mistaken_for_another() -> None:
    ready = threading.Event()

    def answer(asked: Asked) -> Reply:
        loading = {"error": {"code": 503, "message": "Loading model"}}
        return llama_reply(asked) if ready.is_set() else Reply(loading, 503)

    with serve(answer) as url:
        model = load_llm(f"openai:tiny@{url}/v1")
        assert failure(model).kind == "server"
        ready.set()
        assert model.generate(["hello"]) == ["o"]
        assert model.capabilities.likelihoods


def test_requests_of_a_batch_run_at_once_and_stay_in_order() -> None:
    together = threading.Barrier(3, timeout=20)

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/completions" and asked.body["prompt"].isdigit():
            together.wait()  # only three requests at once get past
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            return Reply({"choices": [{"text": asked.body["prompt"]}], "usage": usage})
        return llama_reply(asked)

    with serve(answer) as url:
        prompts = [str(i) for i in range(9)]
        model = load_llm(f"openai:tiny@{url}/v1")
        with model.usage.watch() as watched:
            assert model.generate(prompts) == prompts
        assert watched.calls == model.usage.calls == 9
        together = threading.Barrier(1)
        alone = load_llm(f"openai:tiny@{url}/v1?concurrency=1")
        assert alone.generate(prompts) == prompts
        model.close()
        alone.close()


def test_a_model_without_logprobs_only_writes() -> None:
    with serve(llama_reply) as url:
        model = load_llm(f"openai:tiny@{url}/v1?logprobs=false")
        assert not model.capabilities.logprobs
        assert not model.capabilities.likelihoods
        assert model.capabilities.constrained
        with pytest.raises(ConfigurationError, match="cannot give log-probabilities"):
            model.score(["x"], LABELS)
        model.close()
