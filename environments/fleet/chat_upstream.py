"""Servers that are reached through LangChain: its chunks become events in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icl_optimizer.environments.fleet.config import ServerConfig
from icl_optimizer.environments.fleet.upstream import DONE, Answer, Path, Upstream, UpstreamError
from icl_optimizer.errors import ModelError
from icl_optimizer.llm.errors import PromptTooLongError
from icl_optimizer.llm.provider_errors import call_provider

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from icl_optimizer.llm.base import LanguageModel

_BOUND = ("temperature", "top_p", "max_tokens", "stop", "seed")
_KNOWN = (*_BOUND, "messages", "prompt", "model", "stream", "stream_options", "user", "metadata")
_SAME = {"max_completion_tokens": "max_tokens"}


class ChatUpstream(Upstream):
    """Any chat model of LangChain's.

    Args:
        config: The server.
        model: Asked instead of the one that ``config.llm`` names.
    """

    def __init__(self, config: ServerConfig, model: BaseChatModel | None = None) -> None:
        """Make the model; nothing is sent."""
        self._name, self._timeout_s = config.name, config.timeout_s
        self._model: Any = model if model is not None else _load(config.llm)

    async def send(self, path: Path, body: Mapping[str, Any]) -> Answer:
        """Ask the model.

        Raises:
            UpstreamError: The request has a field that not every model of LangChain's takes.
        """
        body = {_SAME.get(name, name): value for name, value in body.items()}
        if unknown := [name for name in body if name not in _KNOWN and body[name] is not None]:
            text = f"server '{self._name}' takes no {', '.join(unknown)}"
            # another server may
            raise UpstreamError(text, "request", None, 413)
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
        pairs = [(m["role"], m.get("content") or "") for m in messages]
        fields = {name: body[name] for name in _BOUND if body.get(name) is not None}
        parts = self._parts(pairs, fields)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self._name,
        }
        kind = _Form(path, head)
        if body.get("stream"):
            return Answer("text/event-stream", kind.events(parts))
        return Answer("application/json", kind.whole(parts))

    async def healthy(self) -> bool:
        """Return True: providers are not asked for nothing; requests show how they are."""
        return True

    async def close(self) -> None:
        """Do nothing: LangChain's clients close themselves."""

    async def _parts(self, pairs: Any, fields: Mapping[str, Any]) -> AsyncIterator[Any]:
        """Yield the model's chunks; its client's errors become :class:`UpstreamError`."""
        chunks = self._model.astream(pairs, **fields)
        while True:
            try:
                yield await asyncio.wait_for(anext(chunks), self._timeout_s)
            except StopAsyncIteration:
                return
            except TimeoutError:
                text = f"server '{self._name}' was silent for too long"
                raise UpstreamError(text, "timeout") from None
            except Exception as error:
                failure = error
                break
        raise self._failed(failure)

    def _failed(self, error: Exception) -> UpstreamError:
        def again() -> None:
            raise error

        try:
            call_provider(self._name, again)
        except ModelError as known:
            return UpstreamError(str(known), known.kind, known.retry_after)
        except PromptTooLongError as known:
            return UpstreamError(str(known), "request", None, 413)
        except Exception as other:
            # its text may hold anything
            return UpstreamError(f"server '{self._name}' failed: {type(other).__name__}", "server")
        raise AssertionError("unreachable")


class _Form:
    """Chunks of a model in the form of one of OpenAI's two endpoints."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._chat = path == "chat/completions"
        self._head = dict(head)

    async def events(self, parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Yield one event for each chunk."""
        usage = None
        async for part in parts:
            usage = part.usage_metadata or usage
            if part.text:
                yield self._event(part.text, None)
        yield self._event("", "stop", _usage(usage))
        yield DONE

    async def whole(self, parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Yield all chunks in one answer."""
        text, usage = "", None
        async for part in parts:
            text += part.text
            usage = part.usage_metadata or usage
        content = {"message": {"role": "assistant", "content": text}}
        choice = {
            "index": 0,
            "finish_reason": "stop",
            **(content if self._chat else {"text": text}),
        }
        kind = "chat.completion" if self._chat else "text_completion"
        yield json.dumps(
            {**self._head, "object": kind, "choices": [choice], **_usage(usage)}
        ).encode()

    def _event(self, text: str, reason: str | None, more: Mapping[str, Any] | None = None) -> bytes:
        delta = {"content": text} if text else {}
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": text}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        choice = {"index": 0, "finish_reason": reason, **content}
        data = {**self._head, "object": kind, "choices": [choice], **(more or {})}
        return b"data: " + json.dumps(data).encode() + b"\n\n"


def _usage(told: Mapping[str, Any] | None) -> dict[str, Any]:
    if not told:
        return {}
    asked, answered = told["input_tokens"], told["output_tokens"]
    return {
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }
    }


def _load(spec: str) -> Any:
    """Return the LangChain model that ``spec`` names, or another package's in its place."""
    from icl_optimizer.llm.langchain import LangChainModel
    from icl_optimizer.llm.loading import load_llm

    model = load_llm(spec)
    return model.model if isinstance(model, LangChainModel) else _InOnePiece(model)


class _InOnePiece:
    """A model that answers in one piece, where a stream is expected."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    async def astream(
        self, pairs: Sequence[tuple[str, str]], max_tokens: int = 256, **_: Any
    ) -> AsyncIterator[Any]:
        from langchain_core.messages import AIMessageChunk

        messages = [{"role": role, "content": content} for role, content in pairs]
        text = await asyncio.to_thread(self._model.chat, messages, max_tokens)
        yield AIMessageChunk(content=text)
