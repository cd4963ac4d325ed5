"""The failures of a run in the order in which they were met, so that a replay meets them again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Container, Mapping, Sequence
from typing import Any

from icl_optimizer.errors import ModelError
from icl_optimizer.llm.errors import PromptTooLongError
from icl_optimizer.llm.redaction import redact
from icl_optimizer.llm.response_store import ResponseStore
from icl_optimizer.llm.usage import Usage

_LONGEST = 200  # characters of a message


class Recording:
    """What one model failed to answer in one run, under a name that a replay uses again.

    Requests that were asked together and failed share a number; the numbers grow. An answer needs
    none: once a request is answered it stays so, hence its outcomes are failures first and then
    one answer. A replay meets the failures of a request in their order, then its answer; where it
    never had one, its last failure stays. That is exact for requests that follow each other;
    threads that ask the same at the same time may meet its outcomes in another order.

    Args:
        store: Where the failures are.
        name: Of the run within the folder; empty for whatever has none.
        identity: That of the model.
    """

    def __init__(self, store: ResponseStore, name: str, identity: Mapping[str, Any]) -> None:
        """Begin before the first request; nothing is written."""
        text = json.dumps([name, identity], sort_keys=True)
        self._digest = hashlib.sha256(text.encode("ascii")).hexdigest()
        self._store = store
        self._begun = False
        self._passed: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """At the first request, forget what an earlier run recorded under the same name."""
        with self._lock:
            first, self._begun = not self._begun, True
        if first:
            self._store.forget_failures(self._digest)

    def keep(self, keys: Sequence[str], failed: int | None, error: Exception, used: Usage) -> None:
        """Write down that requests asked together failed.

        Args:
            keys: Those without an answer.
            failed: Position of the one that failed, after which the others were not asked; None
                when that is not known.
            error: What it met.
            used: What all of them took.
        """
        text = _to_json(error, used)
        self._store.keep_failures(
            self._digest,
            {key: text if failed in (None, i) else None for i, key in enumerate(keys)},
        )

    def unknown(self, keys: Sequence[str], answered: Container[str]) -> str | None:
        """Return the first key that has neither an answer nor a failure."""
        rows = self._store.failures(self._digest, keys)
        known = {key for key, found in rows.items() if any(row.text for row in found)}
        told = {row.number for key in known for row in rows[key] if row.text}
        for key in keys:
            # not asked at the time, since another one of the batch had failed
            passed_over = told & {row.number for row in rows.get(key, ())}
            if key not in answered and key not in known and not passed_over:
                return key
        return None

    def next_failure(
        self, keys: Sequence[str], answered: Container[str]
    ) -> tuple[ModelError | PromptTooLongError, Usage] | None:
        """Return what requests asked together meet next, None for their answers.

        Returns:
            The failure and what it took.
        """
        rows = self._store.failures(self._digest, keys)
        with self._lock:
            ahead = {
                row.number: row.text
                for key in keys
                for row in rows.get(key, ())
                if row.text and row.number > self._passed.get(key, 0)
            }
            if ahead:
                number = min(ahead)
                self._passed |= dict.fromkeys(keys, number)
                return _from_json(ahead[number])
        for key in keys:
            last = [row.text for row in rows.get(key, ()) if row.text]
            if last and key not in answered:
                return _from_json(last[-1])
        return None


def _to_json(error: Exception, used: Usage) -> str:
    taken = {
        "calls": used.calls,
        "prompt_tokens": used.prompt_tokens,
        "reused_tokens": used.reused_tokens,
        "completion_tokens": used.completion_tokens,
        "failures": used.failures,
    }
    if isinstance(error, PromptTooLongError):
        return json.dumps({"tokens": error.tokens, "limit": error.limit, "used": taken})
    assert isinstance(error, ModelError)
    text = redact(str(error))
    return json.dumps(
        {
            "kind": error.kind,
            "retry_after": error.retry_after,
            "message": text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…",
            "used": taken,
        }
    )


def _from_json(text: str) -> tuple[ModelError | PromptTooLongError, Usage]:
    told = json.loads(text)
    used = Usage(**told["used"])
    if "limit" in told:
        return PromptTooLongError(told["tokens"], told["limit"]), used
    return ModelError(told["message"], told["kind"], told["retry_after"]), used
