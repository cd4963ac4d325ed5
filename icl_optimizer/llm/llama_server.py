"""A llama.cpp server over HTTP: all that the embedded model can do, by the same requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, Message
from icl_optimizer.llm.completion import CompletionModel, token_grammar
from icl_optimizer.llm.engine import pieces
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.labels import Token
from icl_optimizer.llm.parameters import TIMEOUT_S
from icl_optimizer.llm.provider_errors import call_provider, read_answer, status_error
from icl_optimizer.llm.requests import require_permission

if TYPE_CHECKING:
    import httpx


class RemoteEngine:
    """Asks a llama.cpp server over HTTP; safe from several threads.

    The key, if the server wants one, is that of ``OPENAI_API_KEY``.

    Args:
        url: The base URL of its OpenAI interface, for example ``http://127.0.0.1:8080/v1``.
        model: The name sent with each request; gateways choose by it.
        name: The spec, for messages.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str, model: str, name: str, timeout: float = TIMEOUT_S) -> None:
        """Keep the address; nothing is sent."""
        self._root = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._name = name
        self._timeout = timeout
        self._known: dict[str, Any] | None = None
        self._client: httpx.Client | None = None
        self._closed = False
        self._opening = threading.Lock()

    @property
    def context_size(self) -> int:
        """Tokens of prompt and answer together, in one slot."""
        return int(self.properties["default_generation_settings"]["n_ctx"])

    @property
    def slots(self) -> int:
        """How many requests the server works on at once."""
        return int(self.properties["total_slots"])

    @property
    def properties(self) -> dict[str, Any]:
        """What the server says of itself, asked once.

        Raises:
            ModelError: It does not answer, or not as llama.cpp does.
        """
        if self._known is None:
            answer = self._ask("GET", "/props")
            if "json" not in answer.headers.get("content-type", ""):
                raise self._not_llamacpp()
            found = self._content(answer)
            if not _has_probabilities(found):
                raise self._not_llamacpp()
            self._known = found
        return self._known

    def is_llamacpp(self) -> bool:
        """Whether a llama.cpp server answers, of a version that lists probabilities.

        Raises:
            ModelError: Nobody answers, or the server is not ready.
        """
        try:
            return bool(self.properties)
        except ModelError as error:
            # other servers, and gateways before them, refuse what they do not know in many ways
            if error.kind in ("request", "key"):
                return False
            raise

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a completion request."""
        return self._http("POST", "/v1/completions", {"model": self._model, **body})

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a chat request with the model's own chat template."""
        return self._http("POST", "/v1/chat/completions", {"model": self._model, **body})

    def embed(self, texts: list[str]) -> dict[str, Any]:
        """Run an embedding request."""
        return self._http("POST", "/v1/embeddings", {"model": self._model, "input": texts})

    def tokenize(self, text: str) -> list[Token]:
        """Return id and text of each token, special ones recognised as in a completion."""
        answer = self._http("POST", "/tokenize", {"content": text, "with_pieces": True})
        return read_answer(self._name, lambda: pieces(answer))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages in the model's chat format, up to the start of the reply."""
        body = {"messages": [dict(message) for message in messages]}
        answer = self._http("POST", "/apply-template", body)
        return read_answer(self._name, lambda: str(answer["prompt"]))

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    def _http(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._content(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        client = self._connected()
        answer = call_provider(
            self._name, lambda: client.request(method, self._root + path, json=body)
        )
        if answer.status_code >= 400:
            raise status_error(self._name, answer.status_code, answer.text, answer.headers)
        return answer

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        content = read_answer(self._name, answer.json)
        if not isinstance(content, dict):
            raise ModelError(f"'{self._name}' sent something else than an object.", "malformed")
        return content

    def _not_llamacpp(self) -> ModelError:
        return ModelError(
            f"'{self._name}' does not answer like llama.cpp: GET {self._root}/props tells no "
            "settings of a version that lists probabilities.",
            "request",
        )

    def _connected(self) -> httpx.Client:
        import httpx

        if self._closed:
            raise ConfigurationError(f"the model '{self._name}' was closed.")
        with self._opening:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY")
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                self._client = httpx.Client(headers=headers, timeout=self._timeout)
            return self._client


class LlamaServer(CompletionModel):
    """A model that a llama.cpp server runs, on this machine or another.

    Label scores, likelihoods, choices and tokens are those of the embedded model, through the same
    requests; embeddings where the server offers them. Nothing is sent before the first request.

    Args:
        url: The base URL of its OpenAI interface, for example ``http://127.0.0.1:8080/v1``.
        model: The name sent with each request.
        name: The spec; by default ``openai:MODEL@URL``.
        timeout: Seconds to wait for an answer.
        concurrency: The most requests of a batch under way at once; None for as many as the server
            has slots. One slot after the other reads a shared prefix by itself, and which one
            answers may shift numbers by up to about 0.1; 1 keeps to one.
        context_size: A smaller limit for prompts than the server's own.
        logprobs: False treats the model as one that only writes.
        request: Fields of every request, such as ``temperature`` (0 unless given).

    Example:
        >>> server = LlamaServer("http://127.0.0.1:8080/v1")
        >>> server
        LlamaServer('openai:default@http://127.0.0.1:8080/v1')
    """

    def __init__(
        self,
        url: str,
        model: str = "default",
        name: str | None = None,
        timeout: float = TIMEOUT_S,
        concurrency: int | None = None,
        context_size: int | None = None,
        logprobs: bool = True,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the settings; nothing is sent."""
        name = name or f"openai:{model}@{url}"
        defaults = {"temperature": 0.0, "seed": 0, "cache_prompt": True}
        super().__init__(name, {**defaults, **(request or {})})
        self._remote = RemoteEngine(url, model, name, timeout)
        self._wanted = (concurrency, context_size, logprobs)

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the model and the settings of the requests."""
        _, context_size, logprobs = self._wanted
        own = {"context_size": context_size, "logprobs": logprobs}
        return {"name": self.name.partition("?")[0], "parameters": {**self._request, **own}}

    def answers_like_llamacpp(self) -> bool:
        """Whether a llama.cpp server answers, of a version that lists probabilities.

        Raises:
            ModelError: Nobody answers, or the server is not ready.
        """
        return self._running.is_llamacpp()

    def close(self) -> None:
        """Close the connections."""
        self._remote.close()

    @property
    def _running(self) -> RemoteEngine:
        require_permission(self)
        return self._remote

    @property
    def _limit(self) -> int:
        size = self._running.context_size
        return min(self._wanted[1] or size, size)

    @property
    def _workers(self) -> int:
        return self._wanted[0] or self._running.slots

    def _probe(self) -> Capabilities:
        engine = self._running
        logprobs = self._wanted[2]
        limit = self._limit
        return Capabilities(
            logprobs,
            embeddings=_offered(lambda: bool(engine.embed(["a"]))),
            constrained=True,
            context_size=limit,
            likelihoods=logprobs and _offered(self._follows_tokens),
            chat_template=True,
        )

    def _follows_tokens(self) -> bool:
        """Whether a grammar of tokens is understood; older versions only know characters."""
        token, _ = self._running.tokenize("a")[-1]
        answer = self.complete("One letter:", 1, grammar=token_grammar([token]), n_probs=1)
        content = read_answer(self.name, lambda: answer["choices"][0]["logprobs"]["content"])
        return [int(entry["id"]) for entry in content] == [token]


def _offered(ask: Callable[[], bool]) -> bool:
    """Return ``ask()``; a request that the server refuses is one that it does not offer."""
    try:
        return ask()
    except ModelError as error:
        if error.kind == "request":
            return False
        raise


def _has_probabilities(properties: Mapping[str, Any]) -> bool:
    """Whether ``/props`` is that of a llama.cpp with all that is asked of it here."""
    settings = properties.get("default_generation_settings")
    if not isinstance(settings, Mapping) or "total_slots" not in properties:
        return False
    fields = settings.get("params")
    return isinstance(fields, Mapping) and "post_sampling_probs" in fields and "n_ctx" in settings
