"""A model whose answers are kept on disk: reused, or replayed without the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError, ModelError, ReplayError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.conversation import Conversation, as_prompt
from icl_optimizer.llm.errors import PartialError, PromptTooLongError
from icl_optimizer.llm.recording import Recording
from icl_optimizer.llm.response_store import (
    FORMAT_VERSION,
    Entry,
    ResponseCacheWarning,
    ResponseStore,
)
from icl_optimizer.llm.usage import Usage
from icl_optimizer.llm.wrapper import ModelWrapper

CacheMode = Literal["reuse", "replay"]

_SHOWN = 80  # characters of a prompt in an error


class CachedModel(ModelWrapper):
    """Answers from a folder what was asked before, by anybody, with the same model.

    An answer is kept under the SHA-256 of the sorted request and of the model's ``identity``.
    ``usage`` counts a cached answer like the first one, its tokens included, and in ``cached``.
    Who asks first decides: where two processes ask the same at once, both get what was written
    first, so a replay gives every one of them the numbers it had.

    ``reuse`` asks the model for what is missing, the missing part of a batch at once. ``replay``
    never asks it: a request that was not recorded is an error, and one that failed before it was
    answered fails again, in the same order. What is replayed is the last recording; see
    :class:`~.recording.Recording` for its limits, and ``begin_recording`` for several in one
    folder.

    Args:
        inner: The model that answers; only its name and identity are used in a replay.
        folder: Where the answers are; several models and processes may share it.
        mode: ``reuse`` or ``replay``.
    """

    def __init__(self, inner: LanguageModel, folder: str | Path, mode: CacheMode = "reuse") -> None:
        """Open the folder; the model is not asked.

        Raises:
            ConfigurationError: ``mode`` is unknown, or there is nothing to replay.
        """
        if mode not in ("reuse", "replay"):
            raise ConfigurationError(f"mode is {mode!r}; allowed: 'reuse', 'replay'.")
        super().__init__(inner)
        self.mode: CacheMode = mode
        self._store = ResponseStore(Path(folder).expanduser(), replay=mode == "replay")
        self._identity = inner.identity
        self._recording = Recording(self._store, "", self._identity)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""
        return int(self._one("count_tokens", {"text": text}, self.inner.count_tokens, text))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages as a prompt that the model's next reply continues."""

        def ask() -> str | None:
            prompt = as_prompt(self.inner, messages)
            return None if isinstance(prompt, Conversation) else prompt

        prompt: str | None = self._one("apply_template", {"messages": _plain(messages)}, ask)
        return Conversation(messages) if prompt is None else prompt

    def reset(self) -> None:
        """Reset the model; a replay has none."""
        if self.mode == "reuse":
            self.inner.reset()

    def begin_recording(self, name: str) -> None:
        """Record what follows under ``name``, or replay what has it.

        A recording under the same name, by the same model in the same folder, is begun anew.
        """
        self._recording = Recording(self._store, name, self._identity)

    def close(self) -> None:
        """Close the file and the model."""
        self._store.close()
        self.inner.close()

    def _probe(self) -> Capabilities:
        found = self._one("capabilities", {}, lambda: asdict(self.inner.capabilities))
        known = {f.name for f in fields(Capabilities)}
        return Capabilities(**{name: value for name, value in found.items() if name in known})

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        requests = [{"prompt": _sent(prompt), "labels": labels} for prompt in prompts]
        rows = self._answers(
            "score",
            requests,
            lambda at: self.inner.score([prompts[i] for i in at], labels).tolist(),
        )
        return np.array(rows, dtype=np.float64)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        requests = [{"prompt": _sent(p), "text": t} for p, t in zip(prompts, texts, strict=True)]

        def ask(at: list[int]) -> Any:
            return self.inner.likelihood([prompts[i] for i in at], [texts[i] for i in at]).tolist()

        return self._answers("likelihood", requests, ask)

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        options = {"max_tokens": max_tokens, "choices": choices, "stop": stop}
        requests = [{"prompt": _sent(prompt), **options} for prompt in prompts]

        def ask(at: list[int]) -> list[str]:
            return self.inner.generate([prompts[i] for i in at], max_tokens, choices, stop)

        return self._answers("generate", requests, ask)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        request = {"messages": _plain(messages), "max_tokens": max_tokens}
        return str(self._one("chat", request, self.inner.chat, messages, max_tokens))

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        requests = [{"text": text} for text in texts]

        def ask(at: list[int]) -> Any:
            return self.inner.embed([texts[i] for i in at]).tolist()

        return np.array(self._answers("embed", requests, ask), dtype=np.float64)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        request = {"prompt": _sent(prompt), "labels": labels}
        tokens: list[str] = self._one(
            "first_tokens", request, self.inner._first_tokens, prompt, labels
        )
        return tokens

    def _one(
        self, method: str, request: Mapping[str, Any], ask: Callable[..., Any], *values: Any
    ) -> Any:
        return self._answers(method, [request], lambda at: [ask(*values)])[0]

    def _answers(
        self,
        method: str,
        requests: Sequence[Mapping[str, Any]],
        ask: Callable[[list[int]], Sequence[Any]],
    ) -> list[Any]:
        """Return the answer to each request; ``ask`` gets the positions of those to ask for."""
        keys = [self._key(method, request) for request in requests]
        if self.mode == "replay":
            entries = self._repeat(method, requests, keys)
            asked: dict[str, int] = {}
        else:
            self._recording.begin()
            entries = self._store.find(set(keys))
            asked = {key: i for i, key in reversed(list(enumerate(keys))) if key not in entries}
        positions = sorted(asked.values())
        if positions:
            entries |= self._asked([keys[i] for i in positions], lambda: ask(positions))
        for i, key in enumerate(keys):
            if asked.get(key) != i:
                self._count(entries[key])
        return [json.loads(entries[key].answer) for key in keys]

    def _asked(self, keys: list[str], ask: Callable[[], Sequence[Any]]) -> dict[str, Entry]:
        with self.usage.watch() as used:
            try:
                answers = ask()
            except PartialError as error:
                plain = [np.asarray(answer).tolist() for answer in error.answers]
                answered = len(plain)
                self._store.keep(_entries(keys[:answered], plain, used))
                self._recording.keep(keys[answered:], 0, error, used)
                raise
            except (ModelError, PromptTooLongError) as error:
                self._recording.keep(keys, None if len(keys) > 1 else 0, error, used)
                raise
        return self._store.keep(_entries(keys, answers, used))

    def _repeat(
        self, method: str, requests: Sequence[Mapping[str, Any]], keys: list[str]
    ) -> dict[str, Entry]:
        """Return the recorded answers, or raise what was met in their place."""
        entries = self._store.find(set(keys))
        unknown = self._recording.unknown(keys, entries)
        if unknown is not None:
            raise self._not_recorded(method, requests[keys.index(unknown)])
        met = self._recording.next_failure(keys, entries)
        if met is not None:
            failure, used = met
            self.usage.add(**_counts(used), cached=used.calls, failures=used.failures)
            raise failure
        for key, request in zip(keys, requests, strict=True):
            if key not in entries:
                raise self._not_recorded(method, request)
        return entries

    def _not_recorded(self, method: str, request: Mapping[str, Any]) -> ReplayError:
        text = next((request[k] for k in ("prompt", "text", "messages") if k in request), "")
        return ReplayError(
            f"the recording in '{self._store.folder}' has no answer of '{self.name}' to {method}"
            f"{f' {str(text)[:_SHOWN]!r}' if text else ''}. A replay needs the settings, seeds and "
            "version of the recorded run; to record what is missing, run without the replay."
        )

    def _count(self, entry: Entry) -> None:
        self.usage.add(**_counts(entry), cached=entry.calls)

    def _key(self, method: str, request: Mapping[str, Any]) -> str:
        whole = {
            "format": FORMAT_VERSION,
            "model": self._identity,
            "method": method,
            "request": request,
        }
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def _sent(prompt: str) -> str | list[dict[str, str]]:
    """Return what the model is sent: a conversation is more than its text."""
    return _plain(prompt.messages) if isinstance(prompt, Conversation) else prompt


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [dict(message) for message in messages]


def _shares(used: Usage, parts: int) -> list[tuple[int, int, int, int]]:
    """Divide what a batch used; the parts sum to it exactly."""
    totals = (used.calls, used.prompt_tokens, used.reused_tokens, used.completion_tokens)
    split = [[total // parts + (i < total % parts) for i in range(parts)] for total in totals]
    return list(zip(*split, strict=True))


def _entries(keys: list[str], answers: Sequence[Any], used: Usage) -> dict[str, Entry]:
    texts = [json.dumps(answer) for answer in answers]
    shares = _shares(used, len(keys)) if keys else []
    return {k: Entry(t, *numbers) for k, t, numbers in zip(keys, texts, shares, strict=True)}


def _counts(used: Entry | Usage) -> dict[str, int]:
    return {
        "calls": used.calls,
        "prompt_tokens": used.prompt_tokens,
        "reused_tokens": used.reused_tokens,
        "completion_tokens": used.completion_tokens,
    }


__all__ = ["CacheMode", "CachedModel", "ResponseCacheWarning"]
