"""A llama.cpp server over HTTP: all that the embedded model can do, by the same requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from icl_optimizer.llm.base import Capabilities
from icl_optimizer.llm.completion import CompletionModel, token_grammar
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.parameters import TIMEOUT_S
from icl_optimizer.llm.provider_errors import read_answer
from icl_optimizer.llm.remote_engine import RemoteEngine
from icl_optimizer.llm.requests import announce, estimate, require_permission


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
        logprobs = self._wanted[2]
        limit = self._limit
        return Capabilities(
            logprobs,
            embeddings=_offered(self._embeds),
            constrained=True,
            context_size=limit,
            likelihoods=logprobs and _offered(self._follows_tokens),
            chat_template=True,
        )

    def _embeds(self) -> bool:
        engine = self._running
        announce(estimate("a"))
        return bool(engine.embed(["a"]))

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
