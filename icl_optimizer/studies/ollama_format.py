"""Ollama's wire format: requests and answers as its published schema describes them.

After ``docs/openapi.yaml`` of ``ollama/ollama``: each request is read with the ``ollama`` client's
own type, and each answer is one before it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.errors import ModelError

if TYPE_CHECKING:
    from ollama._types import ChatRequest, GenerateRequest
    from pydantic import BaseModel

MOST_ALTERNATIVES = 20
_DETAILS = {"format": "gguf", "family": "llama", "parameter_size": "", "quantization_level": ""}


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        text: Its text.
        logprob: Its natural log-probability.
        top: The likeliest tokens at its place, with their log-probabilities, likeliest first.
    """

    text: str
    logprob: float = 0.0
    top: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Answer:
    """What a backend says.

    Attributes:
        text: The answer.
        tokens: Its tokens; empty where log-probabilities are not known.
        prompt_tokens: How many the prompt has.
        reason: Why it ended: ``stop`` or ``length``.
    """

    text: str
    tokens: Sequence[Token] = ()
    prompt_tokens: int = 0
    reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True)
class Question:
    """What a backend is asked.

    Attributes:
        messages: Of ``/api/chat``; empty for ``/api/generate``.
        prompt: Of ``/api/generate``; empty for ``/api/chat``.
        options: Ollama's runtime options that were set, such as ``num_predict``.
        schema: The JSON schema that the answer must follow, or None.
        top: How many alternatives to list with each token.
        raw: Whether ``prompt`` is taken as it is, without the model's template.
    """

    messages: Sequence[Mapping[str, str]]
    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    top: int = 0
    raw: bool = False


Backend = Callable[[Question], Answer]


class Refused(Exception):
    """A request that Ollama would refuse."""

    def __init__(self, status: int, message: str) -> None:
        """Keep the HTTP status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Ollama:
    """What the endpoints answer, apart from HTTP.

    Attributes:
        backend: Answers the questions.
        models: The names it answers to.
        context_length: What ``/api/ps`` tells of a loaded model, in tokens.
        logprobs: Whether log-probabilities are listed.
    """

    backend: Backend
    models: tuple[str, ...]
    context_length: int
    logprobs: bool

    def chat(self, body: Any) -> Iterator[BaseModel]:
        """Answer ``/api/chat`` in one part, or in several for a stream."""
        from ollama import ChatResponse
        from ollama._types import ChatRequest

        request = _read(ChatRequest, body)
        messages = [
            {"role": m["role"], "content": m["content"] or ""} for m in request.messages or ()
        ]
        parts = self._parts(request, Question(messages, "", **self._asked(request)), body)
        for text, values in parts:
            yield ChatResponse(message={"role": "assistant", "content": text}, **values)

    def generate(self, body: Any) -> Iterator[BaseModel]:
        """Answer ``/api/generate`` in one part, or in several for a stream."""
        from ollama import GenerateResponse
        from ollama._types import GenerateRequest

        request = _read(GenerateRequest, body)
        question = Question([], request.prompt or "", raw=bool(request.raw), **self._asked(request))
        for text, values in self._parts(request, question, body):
            yield GenerateResponse(response=text, **values)

    def tags(self) -> BaseModel:
        """Answer ``/api/tags``."""
        from ollama import ListResponse

        return ListResponse(models=[{"model": name, "details": _DETAILS} for name in self.models])

    def ps(self) -> BaseModel:
        """Answer ``/api/ps``."""
        from ollama import ProcessResponse

        loaded = {"details": _DETAILS, "context_length": self.context_length}
        return ProcessResponse(models=[{"model": n, "name": n, **loaded} for n in self.models])

    def show(self, body: Any) -> BaseModel:
        """Answer ``/api/show``."""
        from ollama import ShowResponse
        from ollama._types import ShowRequest

        self._known(_read(ShowRequest, body).model)
        information = {"general.architecture": "llama", "llama.context_length": 8192}
        return ShowResponse(
            details=_DETAILS, model_info=information, capabilities=["completion"], template=""
        )

    def _asked(self, request: ChatRequest | GenerateRequest) -> dict[str, Any]:
        self._known(request.model)
        top = request.top_logprobs or 0
        if not 0 <= top <= MOST_ALTERNATIVES:
            raise Refused(400, f"top_logprobs must be between 0 and {MOST_ALTERNATIVES}")
        options = request.options or {}
        if not isinstance(options, Mapping):
            options = options.model_dump(exclude_none=True)
        schema = request.format if isinstance(request.format, Mapping) else None
        return {"options": options, "schema": schema, "top": top}

    def _known(self, model: str) -> None:
        if model not in self.models and f"{model}:latest" not in self.models:
            raise Refused(404, f"model '{model}' not found")

    def _parts(
        self, request: ChatRequest | GenerateRequest, question: Question, body: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield text and fields of each part of the answer; a stream has one for each token."""
        started = time.perf_counter_ns()
        try:
            answer = self.backend(question)
        except (ModelError, ConfigurationError) as error:
            raise Refused(400, str(error)) from error
        tokens = [_logprob(token) for token in answer.tokens]
        wanted = self.logprobs and bool(request.logprobs)
        stamp = {"model": request.model, "created_at": datetime.now(UTC).isoformat()}
        took = time.perf_counter_ns() - started
        last = {
            **stamp,
            "done": True,
            "done_reason": answer.reason,
            "total_duration": took,
            "load_duration": 0,
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": 0,
            "eval_count": len(tokens),
            "eval_duration": took,
        }
        if body.get("stream") is False:
            yield answer.text, {**last, **({"logprobs": tokens} if wanted else {})}
            return
        whole = "".join(token.text for token in answer.tokens) == answer.text
        pieces = [(t["token"], [t]) for t in tokens] if whole else [(answer.text, tokens)]
        for text, logprobs in pieces:
            listed = {"logprobs": logprobs} if wanted else {}
            yield text, {**stamp, "done": False, **listed}
        yield "", last


def _read(kind: type[Any], body: Any) -> Any:
    try:
        return kind(**body)
    except (TypeError, ValidationError) as error:
        raise Refused(400, f"invalid request: {error}") from error


def _logprob(token: Token) -> dict[str, Any]:
    listed = [{"token": text, "logprob": logprob} for text, logprob in token.top]
    return {"token": token.text, "logprob": token.logprob, "top_logprobs": listed}
