"""Answers in OpenAI's wire format that no model wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
LARGEST = 4096
"""Tokens of the longest answer."""


class StubAnswer:
    """The answer to one request: the words ``w0 w1 ...``.

    Args:
        body: The request.
        chat: Whether it came to ``chat/completions``.
        name: What the answer says its model is.
        tokens: Length; ``max_tokens`` of the request may make it shorter.
        padding: Characters that make each word longer.
    """

    def __init__(
        self, body: Mapping[str, Any], *, chat: bool, name: str, tokens: int, padding: int = 0
    ) -> None:
        """Read what the request asks for."""
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        most = tokens if not isinstance(asked, int) else min(tokens, max(1, asked))
        self.words = [f"w{i}{'.' * padding} " for i in range(min(most, LARGEST))]
        self.streams = body.get("stream") is True
        self._chat = chat
        options = body.get("stream_options")
        self._with_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        prompt = len(json.dumps(body.get("messages" if chat else "prompt", ""))) // 4
        self._usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(self.words),
            "total_tokens": prompt + len(self.words),
        }
        kind = "chat.completion" if chat else "text_completion"
        self._base = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-stub",
            "object": f"{kind}.chunk" if self.streams and chat else kind,
            "created": int(time.time()),
            "model": name,
        }

    def whole(self) -> bytes:
        """Return the answer as one JSON object."""
        text = "".join(self.words)
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": "stop", "logprobs": None}
        return json.dumps({**self._base, "choices": [choice], "usage": self._usage}).encode()

    def events(self) -> list[bytes]:
        """Return one server-sent event per word."""
        return [self._event(self._word(i, word)) for i, word in enumerate(self.words)]

    def ending(self) -> bytes:
        """Return the events that end a stream."""
        last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        events = [self._event([{"index": 0, **last, "finish_reason": "stop"}])]
        if self._with_usage:
            events.append(self._event([], usage=self._usage))
        return b"".join([*events, DONE])

    def _word(self, number: int, word: str) -> list[dict[str, Any]]:
        if not self._chat:
            return [{"index": 0, "text": word, "finish_reason": None}]
        role = {"role": "assistant"} if number == 0 else {}
        return [{"index": 0, "delta": {**role, "content": word}, "finish_reason": None}]

    def _event(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        return (
            b"data: " + json.dumps({**self._base, "choices": choices, **fields}).encode() + b"\n\n"
        )
