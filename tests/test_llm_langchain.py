"""LangChain models: scripted ones, and the real clients against small local servers."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm import LangChainModel, ModelError, doctor, load_llm

LOGPROBS = [("Local", -0.5), (" local", -2.0), ("off", -1.5), ("I", -3.0)]


class ListingModel(BaseChatModel):
    """Lists alternatives as OpenAI's models do."""

    top_logprobs: int | None = None
    listed: list[tuple[str, float]]

    @property
    def _llm_type(self) -> str:
        return "listing"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        assert (kwargs["logprobs"], kwargs["top_logprobs"], kwargs["max_tokens"]) == (True, 20, 1)
        listed = [{"token": token, "logprob": value} for token, value in self.listed]
        content = [{"token": "Local", "top_logprobs": listed}] if listed else []
        message = AIMessage(
            "Local",
            response_metadata={"logprobs": {"content": content}},
            usage_metadata={
                "input_tokens": 30,
                "output_tokens": 1,
                "total_tokens": 31,
                "input_token_details": {"cache_read": 20},
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


@contextmanager
def server(answer: Callable[[str, Any], tuple[int, str]]) -> Iterator[int]:
    """Run a server whose ``answer(path, request)`` gives status and body; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = answer(self.path, json.loads(body) if body else dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


def test_chat_and_completion_models_generate() -> None:
    for model in (FakeListChatModel(responses=["one", "two"]), FakeListLLM(responses=["one"])):
        wrapped = load_llm(model)
        assert wrapped.generate(["first"], stop=["\n"]) == ["one"]
        assert wrapped.usage.calls == 1
        assert not wrapped.capabilities.logprobs
        assert not wrapped.capabilities.constrained
        with pytest.raises(ConfigurationError, match="cannot give log-probabilities"):
            wrapped.score(["first"], ["a", "b"])
        with pytest.raises(ConfigurationError, match="cannot be held"):
            wrapped.generate(["first"], choices=["a", "b"])
    assert (
        load_llm(FakeListChatModel(responses=["hi"])).chat(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        )
        == "hi"
    )


def test_label_scores_sum_the_listed_variants() -> None:
    model = LangChainModel(ListingModel(listed=LOGPROBS))
    scores = model.score(["first", "second"], [" local", " offload"])
    local = math.log(math.exp(-0.5) + math.exp(-2.0))
    np.testing.assert_allclose(scores, [[local, -1.5]] * 2)
    usage = model.usage
    assert (usage.calls, usage.prompt_tokens, usage.reused_tokens) == (2, 60, 40)
    assert usage.completion_tokens == 2


def test_a_label_that_is_not_listed_is_an_error() -> None:
    model = LangChainModel(ListingModel(listed=LOGPROBS))
    with pytest.raises(ModelError, match=r"'edge' is not among the 4 most likely.*'Local'"):
        model.score(["first"], ["local", "edge"])
    with pytest.raises(ModelError, match="returned no log-probabilities"):
        LangChainModel(ListingModel(listed=[])).score(["first"], ["local", "offload"])


def test_a_likely_shared_token_is_an_error_and_a_rare_one_is_not() -> None:
    labels = ["local", "loopback"]
    likely = ListingModel(listed=[("lo", -0.1), ("local", -3.0), ("loop", -4.0)])
    with pytest.raises(ConfigurationError, match="both start with the token 'lo'"):
        LangChainModel(likely).score(["first"], labels)
    rare = ListingModel(listed=[("local", -0.2), ("loop", -2.0), ("l", -9.0)])
    scores = LangChainModel(rare).score(["first"], labels)
    np.testing.assert_allclose(scores, [[-0.2, -2.0]])


def test_ollama_lists_alternatives_and_takes_a_schema() -> None:
    requests: list[Any] = []

    def answer(path: str, request: Any) -> tuple[int, str]:
        requests.append(request)
        listed = [{"token": "local", "logprob": -0.3}, {"token": "off", "logprob": -1.6}]
        reply: dict[str, Any] = {
            "model": "tiny",
            "created_at": "2025-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": '{"answer": "offload"}'},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 12,
            "eval_count": 1,
        }
        if request.get("logprobs"):
            first = {"token": "local", "logprob": -0.3, "top_logprobs": listed}
            reply["logprobs"] = [first]
        return 200, json.dumps(reply) + "\n"

    with server(answer) as port:
        model = load_llm("ollama:tiny", base_url=f"http://127.0.0.1:{port}", num_ctx=2048)
        scores = model.score(["first"], ["local", "offload"])
        chosen = model.generate(["first"], choices=["local", "offload"])
    np.testing.assert_allclose(scores, [[-0.3, -1.6]])
    assert chosen == ["offload"]
    assert requests[0]["options"] == {"num_ctx": 2048, "num_predict": 1, "temperature": 0.0}
    assert requests[0]["top_logprobs"] == 20
    assert requests[1]["format"]["properties"]["answer"]["enum"] == ["local", "offload"]
    assert (model.usage.calls, model.usage.prompt_tokens) == (2, 24)
    assert model.capabilities.context_size == 2048


def test_an_unreachable_server_is_named() -> None:
    with server(lambda path, request: (200, "")) as port:
        pass
    for spec in (f"openai:tiny@http://127.0.0.1:{port}/v1", "ollama:tiny"):
        params = (
            {"max_retries": 0}
            if spec.startswith("openai")
            else {"base_url": f"http://127.0.0.1:{port}"}
        )
        with pytest.raises(ModelError, match=f"'{spec}' did not answer"):
            load_llm(spec, **params).generate(["hello"])


def test_a_refused_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    body = json.dumps({"error": {"message": "bad key sk-secret", "type": "x", "code": 401}})
    with server(lambda path, request: (401, body)) as port:
        model = load_llm(f"openai:tiny@http://127.0.0.1:{port}/v1", max_retries=0)
        with pytest.raises(ModelError, match="refused the API key") as caught:
            model.generate(["hello"])
    assert caught.value.__cause__ is None
    assert "sk-secret" not in f"{caught.value} {model!r}"


def test_the_doctor_finds_ollama() -> None:
    body = json.dumps({"models": [{"name": "llama3.1:8b"}]})
    with server(lambda path, request: (200, body)) as port:
        found = doctor._ollama(port)
    assert found.ok
    assert found.detail == f"port {port}: llama3.1:8b"
    assert doctor._ollama(port).remedy == "start it: ollama serve"
    with server(lambda path, request: (200, "hello")) as port:
        assert "something else" in doctor._ollama(port).detail
