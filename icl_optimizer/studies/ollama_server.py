"""A server that speaks Ollama's documented wire format, with any model behind it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from icl_optimizer.llm.completion import CompletionModel
from icl_optimizer.studies.ollama_format import Answer, Backend, Ollama, Question, Refused, Token

if TYPE_CHECKING:
    from pydantic import BaseModel

DEFAULT_TOKENS = 128
"""Where a request does not limit its answer; Ollama itself would go on until the model stops."""


class LlamaBackend:
    """Answers with a model that llama.cpp runs; its requests count in the model's ``usage``.

    Args:
        model: For example ``LlamaCpp()``.
    """

    def __init__(self, model: CompletionModel) -> None:
        """Keep the model."""
        self._model = model

    def __call__(self, question: Question) -> Answer:
        """Return the model's answer, with log-probabilities over its whole vocabulary."""
        options = question.options
        fields: dict[str, Any] = {
            "n_probs": max(1, question.top),
            "stop": options.get("stop") or [],
            "temperature": options.get("temperature", 0.8),
        }
        for name in ("top_p", "top_k", "repeat_penalty", "seed"):
            if options.get(name) is not None:
                fields[name] = options[name]
        if question.schema is not None:
            fields["json_schema"] = question.schema
        limit = options.get("num_predict", DEFAULT_TOKENS)
        answer = self._model.complete(self._prompt(question), limit, **fields)
        choice = answer["choices"][0]
        return Answer(
            choice["text"],
            [_token(entry, question.top) for entry in choice["logprobs"]["content"]],
            answer["usage"]["prompt_tokens"],
            "length" if choice["finish_reason"] == "length" else "stop",
        )

    def _prompt(self, question: Question) -> str:
        if question.raw:
            return question.prompt
        asked = [{"role": "user", "content": question.prompt}]
        return self._model.apply_template(question.messages or asked)


def _token(entry: Mapping[str, Any], top: int) -> Token:
    listed = [(str(each["token"]), float(each["logprob"])) for each in entry["top_logprobs"]]
    return Token(str(entry["token"]), float(entry["logprob"]), listed[:top])


class _Handler(BaseHTTPRequestHandler):
    """HTTP around ``Ollama``; a stream is one JSON object a line."""

    protocol_version = "HTTP/1.1"
    ollama: Ollama

    def do_GET(self) -> None:
        if self.path == "/api/tags":
            self._whole(200, _dump(self.ollama.tags()))
        elif self.path == "/api/ps":
            self._whole(200, _dump(self.ollama.ps()))
        elif self.path == "/api/version":
            self._whole(200, {"version": "0.12.11" if self.ollama.logprobs else "0.12.10"})
        else:
            self._whole(404, {"error": "not found"})

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if self.path == "/api/show":
                self._whole(200, _dump(self.ollama.show(body)))
            elif self.path in ("/api/chat", "/api/generate"):
                chat = self.path == "/api/chat"
                parts = (self.ollama.chat if chat else self.ollama.generate)(body)
                # the first part tells whether the request is refused, before the status is sent
                self._stream(itertools.chain([next(parts)], parts), body)
            else:
                self._whole(404, {"error": "not found"})
        except ValueError as error:
            self._whole(400, {"error": f"invalid request: {error}"})
        except Refused as error:
            self._whole(error.status, {"error": str(error)})

    def _stream(self, parts: Iterator[BaseModel], body: Mapping[str, Any]) -> None:
        if body.get("stream") is False:
            self._whole(200, _dump(next(parts)))
            return
        self._head(200, "application/x-ndjson", {"Transfer-Encoding": "chunked"})
        for part in parts:
            line = json.dumps(_dump(part)).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _whole(self, status: int, answer: Mapping[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self._head(status, "application/json; charset=utf-8", {"Content-Length": str(len(text))})
        self.wfile.write(text)

    def _head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _dump(answer: BaseModel) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_none=True, by_alias=True)


@contextmanager
def serve_ollama(
    backend: CompletionModel | Backend,
    models: Sequence[str] = ("smollm2:latest",),
    context_length: int | None = None,
    logprobs: bool = True,
    port: int = 0,
) -> Iterator[str]:
    """Serve ``backend`` as Ollama would, on loopback, while the block runs.

    Offers ``/api/chat`` and ``/api/generate`` (whole or as a stream of JSON lines), ``/api/tags``,
    ``/api/show``, ``/api/ps`` and ``/api/version``.

    Args:
        backend: A model that llama.cpp runs, or a function from a question to an answer.
        models: The names it answers to; ``:latest`` may be left out in requests.
        context_length: What ``/api/ps`` tells of a loaded model, in tokens; None for what
            ``backend`` has, or 4,096 where it is a function.
        logprobs: False leaves log-probabilities out, as Ollama did before version 0.12.11.
        port: 0 takes any free one.

    Yields:
        The URL, for example ``http://127.0.0.1:11434``.
    """
    if isinstance(backend, CompletionModel):
        context_length = context_length or backend.capabilities.context_size
        backend = LlamaBackend(backend)
    ollama = Ollama(backend, tuple(models), context_length or 4096, logprobs)
    handler = type("Handler", (_Handler,), {"ollama": ollama})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


__all__ = ["Answer", "Backend", "LlamaBackend", "Question", "Token", "serve_ollama"]
