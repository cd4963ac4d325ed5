"""``openai:MODEL@URL``: what kind of server answers there is found out at the first request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.conversation import Conversation
from icl_optimizer.llm.langchain import LangChainModel
from icl_optimizer.llm.llama_server import LlamaServer
from icl_optimizer.llm.parameters import TIMEOUT_S, Settings
from icl_optimizer.llm.requests import require_permission
from icl_optimizer.llm.spec import Spec

Endpoint = Literal["chat", "completions"]

_COMPLETIONS_ONLY = ("repeat_penalty", "reuse_prefix")
_FOR_BOTH = ("extra_body", "presence_penalty", "frequency_penalty", "endpoint", "reuse_prefix")


def check_endpoint(name: str, settings: Settings, endpoint: Endpoint | None) -> None:
    """Raise ConfigurationError for a parameter that only the other endpoint takes.

    Args:
        name: The model, for the message.
        settings: Its parameters.
        endpoint: The one in use: completions for llama.cpp, chat for others; None if not known.
    """
    taken = {
        "completions": settings.own.keys() - set(_FOR_BOTH),
        "chat": settings.given & set(_COMPLETIONS_ONLY),
    }
    for parameter in sorted(taken.get(endpoint or "", ())):
        place = "llama.cpp's completions have" if endpoint == "completions" else "chats have"
        raise ConfigurationError(
            f"the LLM '{name}' cannot honour the parameter '{parameter}': {place} no such "
            "setting. A name of the server's own goes into extra_body."
        )


class OpenAIServer(LanguageModel):
    """An OpenAI-compatible server: llama.cpp's by its completion requests, others by chat.

    Nothing is sent before the first request. ``inner`` is then a ``LlamaServer`` if llama.cpp
    answers, else a ``LangChainModel`` with OpenAI's client.

    Args:
        spec: ``openai:MODEL@URL``.
        settings: Checked parameters.
        chat: Makes the model for the chat endpoint; sends nothing.
    """

    announces = True

    def __init__(self, spec: Spec, settings: Settings, chat: Callable[[], LangChainModel]) -> None:
        """Keep the settings; nothing is sent."""
        super().__init__(spec.text)
        self._spec = spec
        self._settings = settings
        self._make_chat = chat
        self._inner: LanguageModel | None = None
        self._detecting = threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the model and its parameters."""
        return {"name": self._spec.base, "parameters": self._settings.identity()}

    @property
    def inner(self) -> LanguageModel:
        """The model that answers; the first look asks the server what it is.

        Raises:
            ConfigurationError: It is not of the kind that a parameter needs.
            ModelError: It does not answer.
        """
        require_permission(self)
        with self._detecting:  # threads that look at the same time ask once
            if self._inner is None:
                self._inner = self._detected()
                self._inner._usage = self._usage
            return self._inner

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads, estimated where the server does not tell."""
        return self.inner.count_tokens(text)

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages as a prompt that the model's next reply continues.

        A llama.cpp server renders them with the model's chat template; others are sent the
        messages themselves.
        """
        inner = self.inner
        if isinstance(inner, LlamaServer):
            return inner.apply_template(messages)
        return Conversation(messages)

    def close(self) -> None:
        """Close the connections."""
        if self._inner is not None:
            self._inner.close()

    def _detected(self) -> LanguageModel:
        endpoint: Endpoint | None = self._settings.own.get("endpoint")
        if endpoint == "chat":
            return self._make_chat()
        server = self._llama_server()
        if server.answers_like_llamacpp():
            check_endpoint(self.name, self._settings, "completions")
            return server
        if endpoint == "completions":
            raise ConfigurationError(
                f"the LLM '{self.name}' has endpoint=completions, but '{self._spec.url}' does not "
                "answer like a llama.cpp server. Leave the endpoint out, or start one."
            )
        check_endpoint(self.name, self._settings, "chat")
        return self._make_chat()

    def _llama_server(self) -> LlamaServer:
        common, own = self._settings.common, self._settings.own
        request = {
            "temperature": common.temperature,
            "top_p": common.top_p,
            "repeat_penalty": common.repeat_penalty,
            "seed": common.seed or 0,
            "presence_penalty": own.get("presence_penalty"),
            "frequency_penalty": own.get("frequency_penalty"),
            "cache_prompt": own.get("reuse_prefix", True),
            **(own.get("extra_body") or {}),
        }
        return LlamaServer(
            self._spec.url,
            self._spec.model,
            self.name,
            common.timeout or TIMEOUT_S,
            common.concurrency,
            common.context_size,
            common.logprobs,
            request,
        )

    def _probe(self) -> Capabilities:
        return self.inner.capabilities

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return self.inner._score(prompts, labels)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        return self.inner._likelihood(prompts, texts)

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        return self.inner._generate(prompts, max_tokens, choices, stop)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        return self.inner._chat(messages, max_tokens)

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        return self.inner._embed(texts)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return self.inner._first_tokens(prompt, labels)
