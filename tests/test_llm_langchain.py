"""LangChain models: what they can do is asked, and what they list becomes label scores."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from loopback import Asked, Reply, chat_reply, serve
from pydantic import Field

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm import LangChainModel, ModelError, PromptTooLongError, doctor, load_llm
from icl_optimizer.llm.conversation import Conversation
from icl_optimizer.llm.first_token import label_logprobs
from icl_optimizer.studies.ollama_server import Answer, Question, Token, serve_ollama

LOGPROBS = [("Local", -0.5), (" local", -2.0), ("off", -1.5), ("I", -3.0)]


class ListingModel(BaseChatModel):
    """Lists alternatives as OpenAI's models do."""

    top_logprobs: int | None = None
    listed: list[tuple[str, float]]
    asked: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "listing"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        assert (kwargs["logprobs"], kwargs["max_tokens"]) == (True, 1)
        self.asked.append(f"{messages[-1].content} {kwargs['top_logprobs']}")
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


def scores(listed: list[tuple[str, float]], labels: list[str]) -> list[float]:
    model = LangChainModel(ListingModel(listed=listed))
    return [float(value) for value in model.score(["first"], labels)[0]]


def test_chat_and_completion_models_generate() -> None:
    for model in (FakeListChatModel(responses=["one", "two"]), FakeListLLM(responses=["one"])):
        wrapped = load_llm(model)
        assert not wrapped.capabilities.logprobs
        assert not wrapped.capabilities.constrained
        assert wrapped.generate(["first"], stop=["\n"]) == ["one"]  # nothing was asked before
        assert wrapped.usage.calls == 1
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
    assert model.capabilities.top_logprobs == 4
    before = model.usage.snapshot()
    found = model.score(["first", "second"], [" local", " offload"])
    local = math.log(math.exp(-0.5) + math.exp(-2.0))
    np.testing.assert_allclose(found, [[local, -1.5]] * 2)
    usage = model.usage - before
    assert (usage.calls, usage.prompt_tokens, usage.reused_tokens) == (2, 60, 40)
    assert usage.completion_tokens == 2


def test_a_model_is_asked_once_and_only_for_what_it_lists() -> None:
    inner = ListingModel(listed=LOGPROBS)
    model = LangChainModel(inner)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: model.capabilities, range(8)))
    model.score(["first"], ["local", "offload"])
    assert inner.asked == ["Reply with A or B only. 20", "first 4"]
    told = LangChainModel(ListingModel(listed=LOGPROBS), logprobs=False)
    assert not told.capabilities.logprobs
    assert told.usage.calls == 0


@pytest.mark.parametrize("listed", [[], [("A", 0.0)]])
def test_a_list_of_less_than_two_is_none(listed: list[tuple[str, float]]) -> None:
    model = LangChainModel(ListingModel(listed=listed))
    assert not model.capabilities.logprobs
    with pytest.raises(ConfigurationError, match="cannot give log-probabilities"):
        model.score(["first"], ["local", "offload"])


def test_a_label_that_is_not_listed_gets_an_upper_bound() -> None:
    # the last of the list is more likely than all that is not listed
    listed = [("local", math.log(0.6)), ("off", math.log(0.3))]
    assert scores(listed, ["local", "edge"]) == pytest.approx([math.log(0.6), math.log(0.1)])
    # and here it is less likely
    listed = [("local", math.log(0.6)), ("off", math.log(0.05))]
    assert scores(listed, ["local", "edge"]) == pytest.approx([math.log(0.6), math.log(0.05)])
    # where rounding leaves nothing, the bound stays finite
    certain = label_logprobs([("local", 0.0), ("off", -40.0)], ["local", "edge", "cloud"])
    assert certain == [0.0, -40.0, -40.0]
    assert label_logprobs([("local", 0.0), ("off", -1.0)], ["local", "edge"])[1] < -27


def test_labels_none_of_which_is_listed_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"none of the labels \['edge', 'cloud'\].*'Local'") as no:
        scores(LOGPROBS, ["edge", "cloud"])
    assert no.value.kind == "answer"


def test_a_list_that_fails_to_come_later_is_malformed() -> None:
    inner = ListingModel(listed=LOGPROBS)
    model = LangChainModel(inner)
    assert model.capabilities.logprobs
    inner.listed = []
    with pytest.raises(ModelError, match="returned no log-probabilities") as caught:
        model.score(["first"], ["local", "offload"])
    assert caught.value.kind == "malformed"


def test_a_likely_shared_token_is_an_error_and_a_rare_one_is_not() -> None:
    labels = ["local", "loopback"]
    with pytest.raises(ConfigurationError, match="both start with the token 'lo'"):
        scores([("lo", -0.1), ("local", -3.0), ("loop", -4.0)], labels)
    rare = scores([("local", -0.2), ("loop", -2.0), ("l", -9.0)], labels)
    np.testing.assert_allclose(rare, [-0.2, -2.0])


def openai_server(asked: Asked, most: int | None, schema: bool, says: str = "A") -> Reply:
    """Answer as a server that lists at most ``most`` alternatives; more are refused."""
    if "chat" not in asked.path:
        return Reply("not found", 404)
    wanted = asked.body.get("top_logprobs", 0)
    if wanted > (most or 0):
        return Reply({"error": {"message": f"top_logprobs must be at most {most}"}}, 400)
    if "response_format" in asked.body:
        if not schema:
            return chat_reply("apple")
        allowed = asked.body["response_format"]["json_schema"]["schema"]["properties"]["answer"]
        return chat_reply(json.dumps({"answer": allowed["enum"][-1]}))
    tokens = [says, *(f"t{i}" for i in range(wanted - 1))] if wanted else []
    return chat_reply(says, {token: -0.1 - 3.0 * i for i, token in enumerate(tokens)})


@pytest.mark.parametrize(
    ("most", "schema", "calls"), [(20, True, 2), (5, True, 2), (None, False, 1), (None, True, 1)]
)
def test_what_a_server_can_do_is_found_out(most: int | None, schema: bool, calls: int) -> None:
    with serve(lambda asked: openai_server(asked, most, schema)) as url:
        model = load_llm(f"openai:tiny@{url}/v1?endpoint=chat")
        found = model.capabilities
        assert (found.logprobs, found.top_logprobs) == (most is not None, most)
        assert (found.constrained, found.context_size) == (schema, None)
        if schema:
            assert model.generate(["first"], choices=["yes", "no"]) == ["no"]
        if most:
            label, other = model.score(["first"], ["A", "B"])[0]
            assert label > -0.2 > other
        assert model.generate(["first"], max_tokens=3) == ["A"]


def test_a_server_that_refuses_everything_has_no_capabilities() -> None:
    gone = Reply({"error": {"message": "the model 'tiny' does not exist"}}, 404)
    with serve(lambda asked: gone) as url:
        model = load_llm(f"openai:tiny@{url}/v1")
        for _ in range(2):  # it is asked again, and may be there by then
            with pytest.raises(ModelError, match="'tiny' does not exist") as caught:
                _ = model.capabilities
    assert caught.value.kind == "request"


@pytest.mark.parametrize(
    ("content", "kind"),
    [('{"answer": "ed', "malformed"), ("", "malformed"), ("I would say edge.", "answer"),
     ('{"answer": "cloud"}', "answer"), ('{"reply": "edge"}', "malformed")],
)  # fmt: skip
def test_answers_that_are_no_choice(content: str, kind: str) -> None:
    held = True

    def answer(asked: Asked) -> Reply:
        return openai_server(asked, 20, schema=True) if held else chat_reply(content)

    with serve(answer) as url:
        model = load_llm(f"openai:tiny@{url}/v1?endpoint=chat")
        assert model.capabilities.constrained
        held = False
        with pytest.raises(ModelError) as caught:
            model.generate(["first"], choices=["edge", "local"])
    assert caught.value.kind == kind


class Scripted:
    """A backend for Ollama's format that prefers 'local' and knows four tokens."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question)
        if question.schema is not None:
            choices = question.schema["properties"]["answer"]["enum"]
            return Answer(json.dumps({"answer": choices[-1]}), prompt_tokens=12)
        top = [("local", -0.3), ("off", -1.6), ("A", -3.0), ("B", -4.0)][: question.top]
        tokens = [Token("lo", -0.3, top), Token("cal", -0.1, top)]
        shown = tokens[: question.options.get("num_predict", 2)]
        return Answer("".join(token.text for token in shown), shown, prompt_tokens=12)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_ollama_lists_alternatives_and_takes_a_schema(endpoint: str) -> None:
    backend = Scripted()
    with serve_ollama(backend, ["tiny:latest"], context_length=2048) as url:
        model = load_llm(f"ollama:tiny?base_url={url}&endpoint={endpoint}")
        found = model.capabilities
        assert (found.logprobs, found.top_logprobs, found.constrained) == (True, 4, True)
        assert found.context_size == 2048  # what the server loaded it with
        np.testing.assert_allclose(model.score(["first"], ["local", "offload"]), [[-0.3, -1.6]])
        assert model.generate(["first"], choices=["local", "offload"]) == ["offload"]
        assert model.generate(["first"], max_tokens=2) == ["local"]
    assert [question.top for question in backend.asked] == [20, 0, 4, 0, 0]
    assert backend.asked[2].options == {"num_predict": 1, "temperature": 0.0}
    chat = [{"role": "user", "content": "first"}]
    third = backend.asked[2]
    assert third.messages == (chat if endpoint == "chat" else [])
    assert (third.prompt, third.raw) == (("", False) if endpoint == "chat" else ("first", True))
    assert (model.usage.calls, model.usage.prompt_tokens) == (5, 60)


def test_an_old_ollama_only_writes() -> None:
    with serve_ollama(Scripted(), ["tiny"], logprobs=False) as url:
        model = load_llm(f"ollama:tiny?base_url={url}&num_ctx=512")
        assert not model.capabilities.logprobs
        assert (model.capabilities.constrained, model.capabilities.context_size) == (True, 512)
        missing = load_llm(f"ollama:huge?base_url={url}")
        with pytest.raises(ModelError, match="model 'huge' not found"):
            missing.generate(["first"])


def test_the_ollama_server_speaks_to_ollamas_client() -> None:
    from ollama import Client, ResponseError

    with serve_ollama(Scripted(), ["tiny:latest"]) as url:
        client = Client(url)
        whole = client.chat("tiny", [{"role": "user", "content": "x"}], logprobs=True)
        parts = list(client.generate("tiny", "x", stream=True, logprobs=True, top_logprobs=2))
        assert [model.model for model in client.list().models] == ["tiny:latest"]
        assert client.show("tiny").capabilities == ["completion"]
        with pytest.raises(ResponseError, match="top_logprobs must be between 0 and 20"):
            client.chat("tiny", [], logprobs=True, top_logprobs=21)
    assert (whole.message.content, whole.done, whole.prompt_eval_count) == ("local", True, 12)
    assert whole.logprobs is not None
    assert [token.token for token in whole.logprobs] == ["lo", "cal"]
    assert [part.response for part in parts] == ["lo", "cal", ""]
    first = parts[0].logprobs
    assert first is not None
    assert [t.token for t in first[0].top_logprobs or ()] == ["local", "off"]
    assert [part.done for part in parts] == [False, False, True]


def test_conversations_are_sent_as_messages() -> None:
    backend = Scripted()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with serve_ollama(backend, ["tiny"]) as url:
        model = load_llm(f"ollama:tiny?base_url={url}")
        model.generate([Conversation(turns)])
        model.generate([Conversation(turns)], choices=["a", "b"])
        model.score([Conversation(turns)], ["local", "offload"])
    asked = [question for question in backend.asked if "Reply" not in str(question)]
    assert [question.messages for question in asked] == [turns] * 3


def test_prompts_that_surely_do_not_fit_are_not_sent() -> None:
    model = load_llm("ollama:tiny?num_ctx=64")
    with pytest.raises(PromptTooLongError) as caught:
        model.generate(["word " * 100], max_tokens=8)
    assert (caught.value.tokens, caught.value.limit) == (133, 64)


def test_what_was_answered_counts_when_another_request_fails() -> None:
    count = 0
    lock = threading.Lock()

    def answer(asked: Asked) -> Reply:
        nonlocal count
        with lock:
            count += 1
            return Reply("busy", 503) if count == 2 else chat_reply("yes")

    with serve(answer) as url:
        model = load_llm(f"openai:tiny@{url}/v1?endpoint=chat")
        with pytest.raises(ModelError, match="HTTP 503: busy"):
            model.generate(["a", "b", "c"])
    assert (model.usage.calls, count) == (2, 3)


def test_the_doctor_finds_ollama() -> None:
    body = {"models": [{"name": "llama3.1:8b"}]}
    with serve(lambda asked: Reply(body)) as url:
        port = int(url.rpartition(":")[2])
        found = doctor._ollama(port)
    assert found.ok
    assert found.detail == f"port {port}: llama3.1:8b"
    assert doctor._ollama(port).remedy == "start it: ollama serve"
    with serve(lambda asked: Reply("hello")) as url:
        assert "something else" in doctor._ollama(int(url.rpartition(":")[2])).detail


def test_the_doctor_asks_a_model() -> None:
    with serve_ollama(Scripted(), ["tiny"]) as url:
        found = doctor._model(f"ollama:tiny?base_url={url}")
    assert found.ok
    assert "label scores of 4 tokens, held to labels, context 4096" in found.detail
    gone = doctor._model(f"ollama:tiny?base_url={url}")
    assert (gone.ok, gone.remedy) == (False, "start its server, or correct the address")
    assert not doctor._model("olama:tiny").ok
