"""Specs and their parameters: what is refused before anything starts, and what is sent."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from loopback import Asked, Reply, chat_reply, serve
from pydantic import Field

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.llm import LangChainModel, load_llm, validate_spec
from icl_optimizer.llm.chain import split_chain
from icl_optimizer.llm.credentials import refuse_credentials
from icl_optimizer.llm.opening import open_llm, validate_chain
from icl_optimizer.llm.spec import parse_spec
from icl_optimizer.studies.ollama_server import Answer, Question, serve_ollama


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ollama:m?temprature=1", r"unknown LLM parameter 'temprature'.*mean 'temperature'"),
        ("ollama:m?num_ctz=512", r"'num_ctz'.*mean 'num_ctx'.*context_size, endpoint"),
        ("llamacpp?thread=2", r"'thread'.*mean 'threads'.*Allowed: cache_mib, context_size"),
        ("ollama:m?temperature=hot", "temperature is 'hot'.*valid number"),
        ("ollama:m?temperature=nan", "temperature is 'nan'.*finite"),
        ("ollama:m?temperature=2.5", "less than or equal to 2"),
        ("openai:m?top_p=0", "top_p is '0'.*greater than 0"),
        ("openai:m?seed=-1", "seed is '-1'"),
        ("openai:m?timeout=0", "timeout is '0'.*greater than 0"),
        ("openai:m?logprobs=perhaps", "logprobs is 'perhaps'.*boolean"),
        ("openai:m@http://h/v1?concurrency=0", "concurrency is '0'"),
        ("openai:m@http://h/v1?endpoint=talk", "endpoint is 'talk'.*'chat' or 'completions'"),
        ("ollama:m?num_ctx=1", "context_size is '1'.*greater than or equal to 16"),
        ("ollama:m?mirostat=high", "mirostat is 'high'.*valid integer"),
        ("llamacpp?threads=0", "threads is '0'.*greater than or equal to 1"),
        ("llamacpp?timeout=3", "llamacpp cannot honour .*'timeout': .*inside this process"),
        ("openai:m?repeat_penalty=1.1", "openai cannot honour .*'repeat_penalty'"),
        ("openai:m?base_url=http://h/v1", "'base_url': .*openai:MODEL@URL"),
        ("ollama:m?max_retries=2", "'max_retries' cannot be set: .*by the library itself"),
        ("ollama:m?num_predict=2", "'num_predict' cannot be set: each request"),
        ("ollama:m?seed=1&seed=2", "'seed' twice"),
        ("ollama:m?num_ctx=99&context_size=99", "'context_size' is given twice and as 'num_ctx'"),
        ("ollama:m?", "malformed parameters; write"),
        ("ollama:m?seed", "malformed parameters; write"),
        ("openai:m,ollama:m", "has a comma"),
        ("openai:m@http://h:port/v1", "no valid URL"),
        ("openai:m@http://h/v1?endpoint=chat&repeat_penalty=2", "honour .*'repeat_penalty'"),
        ("openai:m@http://h/v1?endpoint=completions&verbosity=low", "honour .*'verbosity'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate_spec(spec)
    with pytest.raises(ConfigurationError, match=message):
        load_llm(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "ollama:m?api_key=sk-123456789",
        "openai:m?openai-api-key=sk-123456789",
        "openai:m?sk-123456789",
        'openai:m@http://h/v1?extra_body={"auth_token":"sk-123456789"}',
        'openai:m@http://h/v1?extra_body={"auth_token":"sk-123456789"',
        "ollama:m?base_url=http://me:sk-123456789@host",
        "openai:m@https://me:sk-123456789@host/v1",
        'ollama:m?client_kwargs={"headers":{"Authorization":"sk-123456789"}}',
    ],
)
def test_a_secret_in_a_spec_is_refused_and_not_repeated(spec: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        validate_spec(spec)
    assert "sk-123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        'ollama:m?client_kwargs={"proxy":"http://me:hunter2@proxy:3128"}',
        'ollama:m?client_kwargs={"proxies":{"a":"1","b":["me:hunter2@proxy:3128"]}}',
        'ollama:m?client_kwargs={"proxy":"http:\\u002f\\u002fme:hunter2\\u0040proxy"}',
        "ollama:m?base_url=me:hunter2@host:11434",
        "ollama:m?base_url=me%3Ahunter2%2540host:11434",
        "ollama:m?base_url=http://host:1/?api_key=hunter2",
        "ollama:m?base_url=http://host:1/?a=1%26access_token=hunter2",
        "ollama:m@http://me:hunter2@host/v1",
        "openai:m@me:hunter2@host/v1",
        "openai:m@http://me:hunter2,more@host/v1",
        "openai:m@http://me:hunter2/more@host/v1",
        "openai:m@http://me:hunter2@host/v1,",
        "openai:m@http://me:hunter2@host/v1,openai:m@http://me:hunter2@host/v1",
        "openai:m@HTTP://me:hunter2@host/v1",
        "openai:m@http://hunter2@host/v1",
        'openai:m@http://host/v1?default_query={"a":"1","code":"hunter2"}',
        'openai:m@http://host/v1?default_headers={"X-Auth":"hunter2"}',
        'openai:m@http://host/v1?default_headers={"X-Team":"hunter2"}',
        'ollama:m?client_kwargs={"cookies":{"a":"hunter2"}}',
        "llamacpp:http://me:hunter2@host/x.gguf",
        "unheard-of:m@http://me:hunter2@host/v1",
        "http://me:hunter2@host/v1",
        "openai:m@http://host/v1?temperature=http://me:hunter2@host",
    ],
)
def test_credentials_are_refused_before_anything_else(spec: str) -> None:
    for check in (refuse_credentials, split_chain, validate_chain, open_llm):
        with pytest.raises(ConfigurationError, match="would hold a secret") as caught:
            check(spec)  # type: ignore[operator]
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("password", ["hunter2?x", "hunter2#x", "hunter2:x/y", "hunter2 x"])
def test_no_error_repeats_a_password_of_any_form(password: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        validate_spec(f"openai:m@http://me:{password}@host/v1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "openai:a@http://h:8080,openai:b@http://h2/v1",
        "google_anthropic_vertex:claude@20240620,google_anthropic_vertex:claude@20241022",
        "openai:@cf/meta/llama@https://h/v1?temperature=0.2,ollama:m?num_ctx=512",
        "ollama:m?base_url=http://h:11434&keep_alive=5m",
        'openai:m@http://h/v1?extra_body={"max_tokens":5}',
        "openai:m@HTTPS://h/v1?context_size=512",
    ],
)
def test_ordinary_specs_hold_no_credentials(spec: str) -> None:
    refuse_credentials(spec)
    assert len(split_chain(spec)) == 1 + spec.count(",")


def test_the_scheme_of_a_url_may_be_in_capitals() -> None:
    spec = parse_spec("openai:m@HTTPS://h/v1/")
    assert (spec.model, spec.url) == ("m", "HTTPS://h/v1")
    with pytest.raises(ConfigurationError, match="user name or password"):
        load_llm("ollama:m", base_url="me:hunter2@host")
    with pytest.raises(ConfigurationError, match="user name or password"):
        load_llm("ollama:m", client_kwargs={"proxy": "http://me:hunter2@host"})


def test_keywords_are_parameters_too() -> None:
    with pytest.raises(ConfigurationError, match="'seed' is given twice"):
        load_llm("ollama:m?seed=1", seed=2)
    with pytest.raises(ConfigurationError, match="'Authorization' would hold a secret"):
        load_llm("openai:m@http://h/v1", default_headers={"Authorization": "x"})
    with pytest.raises(ConfigurationError, match=r"a LangChain object cannot honour .*'seed'"):
        load_llm(FakeListChatModel(responses=["a"]), seed=2)
    validate_spec("ollama:m", num_ctx=512)
    with pytest.raises(ConfigurationError, match="context_size is 5"):
        validate_spec("ollama:m", num_ctx=5)


def test_common_names_reach_ollama_by_its_own() -> None:
    questions: list[Question] = []

    def answer(question: Question) -> Answer:
        questions.append(question)
        return Answer("yes")

    with serve_ollama(answer, ["tiny"], logprobs=False) as url:
        query = "temperature=0.5&top_p=0.9&repeat_penalty=1.15&seed=7&context_size=512"
        model = load_llm(f"ollama:tiny?{query}&mirostat=1&base_url={url}")
        assert model.generate(["hello"], max_tokens=3, stop=["\n"]) == ["yes"]
        by_keyword = load_llm("ollama:tiny", base_url=url, num_ctx=512)
        by_keyword.generate(["hello"], max_tokens=3)
    assert questions[0].options == {
        "temperature": 0.5,
        "top_p": 0.9,
        "repeat_penalty": 1.15,
        "seed": 7,
        "num_ctx": 512,
        "num_predict": 3,
        "mirostat": 1,
        "stop": ["\n"],
    }
    assert questions[1].options == {"temperature": 0.0, "num_ctx": 512, "num_predict": 3}


def test_an_openai_server_gets_max_tokens_and_its_own_names() -> None:
    bodies: list[Any] = []

    def answer(asked: Asked) -> Reply:
        bodies.append(asked.body)
        return chat_reply("yes")

    with serve(answer) as url:
        query = 'seed=7&endpoint=chat&extra_body={"top_k":3}'
        model = load_llm(f"openai:tiny@{url}/v1?{query}")
        assert model.generate(["hello"], max_tokens=3) == ["yes"]
    (body,) = bodies
    assert "max_completion_tokens" not in body
    assert (body["max_tokens"], body["top_k"], body["seed"], body["temperature"]) == (3, 3, 7, 0.0)


def test_openai_itself_wants_a_key_unless_answers_are_replayed() -> None:
    with pytest.raises(ConfigurationError, match="needs the environment variable OPENAI_API_KEY"):
        load_llm("openai:gpt-4o")
    model = load_llm("openai:gpt-4o", require_key=False)
    assert isinstance(model, LangChainModel)


@pytest.mark.parametrize("spec", ["ollama:m", "openai:m@http://127.0.0.1:1/v1", "openai:m"])
def test_an_identity_is_json_that_tells_models_apart(spec: str) -> None:
    def identity(query: str = "") -> str:
        model = load_llm(f"{spec}{query}", require_key=False)
        return json.dumps(model.identity, sort_keys=True)

    plain = identity()
    assert identity("?timeout=5&concurrency=2") == plain == identity("?temperature=0")
    others = {identity(f"?{q}") for q in ("temperature=0.5", "seed=1", "logprobs=false")}
    assert len({plain, *others}) == 4


def test_objects_are_told_apart_by_their_settings() -> None:
    from langchain_ollama import ChatOllama

    secret = {"headers": {"Authorization": "sk-123456789"}}
    cold = load_llm(ChatOllama(model="m", temperature=0.0, client_kwargs=secret))
    warm = load_llm(ChatOllama(model="m", temperature=1.0))
    assert cold.identity == {
        "name": "ChatOllama:m",
        "parameters": {"model": "m", "temperature": 0.0},
    }
    assert warm.identity != cold.identity


class ChatElsewhere(FakeListChatModel):
    """A provider's class with names of its own."""

    random_seed: int | None = None
    request_timeout: float | None = Field(default=None, alias="timeout")
    max_retries: int = 5
    temperature: float = 0.7
    safe_prompt: bool = False
    model: str = ""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install LangChain and the package of one of its providers."""

    def init_chat_model(model: str, model_provider: str, **arguments: Any) -> ChatElsewhere:
        return ChatElsewhere(responses=[model_provider], model=model, **arguments)

    modules = {
        "langchain": {},
        "langchain.chat_models": {"init_chat_model": init_chat_model},
        "langchain_mistralai": {"ChatMistralAI": ChatElsewhere},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("elsewhere")
def test_other_providers_get_common_names_by_their_own() -> None:
    model = load_llm("mistralai:large?seed=3&timeout=4&safe_prompt=true")
    assert isinstance(model, LangChainModel)
    assert model.generate(["x"]) == ["mistralai"]
    made = model._model
    assert (made.random_seed, made.request_timeout, made.safe_prompt) == (3, 4.0, True)
    assert (made.max_retries, made.temperature, made.model) == (0, 0.0, "large")
    assert load_llm("mistralai:large?random_seed=3").identity["parameters"]["seed"] == 3
    assert load_llm("mistralai:large")._model.request_timeout == 120.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"cannot honour .*'top_p': .*ChatElsewhere"):
        validate_spec("mistralai:large?top_p=0.5")
    with pytest.raises(ConfigurationError, match="unknown LLM parameter 'safeprompt'"):
        validate_spec("mistralai:large?safeprompt=true")


def test_other_providers_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match="pip install langchain langchain-google-genai"
    ):
        validate_spec("google_genai:gemini")


def test_checking_a_spec_imports_no_client() -> None:
    code = (
        "import sys; from icl_optimizer.llm import load_llm, validate_spec\n"
        "validate_spec('ollama:m?temperature=0.5'); validate_spec('openai:m@http://h/v1?seed=1')\n"
        "load_llm('openai:m@http://h/v1')\n"
        "sys.exit(', '.join({'langchain_ollama', 'langchain_openai', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
