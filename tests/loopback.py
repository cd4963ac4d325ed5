"""Servers on loopback that answer by a function, for tests of the clients."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Asked:
    """A request: its path, its JSON body (None for GET) and its headers."""

    path: str
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """An answer; ``cut`` ends the connection before its body is whole."""

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    @property
    def text(self) -> str:
        return self.body if isinstance(self.body, str) else json.dumps(self.body)


@contextmanager
def serve(answer: Callable[[Asked], Reply]) -> Iterator[str]:
    """Run a server while the block runs; yields its address, such as http://127.0.0.1:8080."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = answer(Asked(self.path, json.loads(body) if body else None, self.headers))
            with suppress(ConnectionError):  # the client did not wait
                self.send(reply)

        def send(self, reply: Reply) -> None:
            content = reply.text.encode()
            self.send_response(reply.status)
            sent = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            for name, value in {**sent, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.cut:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            else:
                self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


def closed_port() -> str:
    """Return an address where nothing listens."""
    with serve(lambda asked: Reply()) as url:
        return url


def chat_reply(content: str | None = "A", top: Mapping[str, float] | None = None) -> Reply:
    """Return an answer in OpenAI's chat format, with the alternatives of its first token."""
    listed = [{"token": t, "logprob": p, "bytes": None} for t, p in (top or {}).items()]
    token = {"token": content, "logprob": -0.1, "bytes": None, "top_logprobs": listed}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content},
        "logprobs": {"content": [token]} if top else None,
    }
    return Reply(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [choice],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
        }
    )


LLAMA_PROPS = {
    "default_generation_settings": {"n_ctx": 256, "params": {"post_sampling_probs": False}},
    "total_slots": 3,
}
"""What a llama.cpp server with three slots says of itself."""


def llama_reply(asked: Asked) -> Reply:
    """Answer as a llama.cpp server whose tokens are the characters of a text."""
    if asked.path == "/props":
        return Reply(LLAMA_PROPS)
    if asked.path == "/tokenize":
        pieces = [{"id": ord(c), "piece": c} for c in asked.body["content"]]
        return Reply({"tokens": pieces})
    if asked.path == "/v1/completions":
        grammar = asked.body.get("grammar", "")
        token = int(grammar.partition("<[")[2].partition("]")[0] or ord("o"))
        top = [{"id": ord("o"), "logprob": -0.1}, {"id": ord("l"), "logprob": -2.0}]
        content = [{"id": token, "token": chr(token), "logprob": -0.1, "top_logprobs": top}]
        choice = {"text": chr(token), "logprobs": {"content": content}, "finish_reason": "length"}
        usage = {"prompt_tokens": len(asked.body["prompt"]), "completion_tokens": 1}
        return Reply({"choices": [choice], "usage": usage, "timings": {"cache_n": 0}})
    return Reply({"error": {"code": 501, "message": "no", "type": "not_supported_error"}}, 501)
