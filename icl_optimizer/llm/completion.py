"""Scores, likelihoods and choices through llama.cpp's completion requests."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.batches import Item, Result, ask_each
from icl_optimizer.llm.errors import ModelError, PromptTooLongError
from icl_optimizer.llm.labels import LabelTokens, Token, choice_grammar
from icl_optimizer.llm.provider_errors import read_answer
from icl_optimizer.llm.redaction import redact
from icl_optimizer.llm.requests import Settle, announce, estimate
from icl_optimizer.llm.usage import Usage

_TOP = 128  # tokens listed with each score; more than about 1,000 would cost time
_LIFT = 100.0  # far above the spread of a model's logits, so that lifted tokens come first


class CompletionEngine(Protocol):
    """What answers llama.cpp's requests: in this process or over HTTP."""

    @property
    def context_size(self) -> int:
        """Tokens of prompt and answer together."""

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a completion request (``/v1/completions``)."""

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a chat request (``/v1/chat/completions``)."""

    def embed(self, texts: list[str]) -> dict[str, Any]:
        """Run an embedding request (``/v1/embeddings``)."""

    def tokenize(self, text: str) -> list[Token]:
        """Return id and text of each token."""

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages in the model's chat format, up to the start of the reply."""


class CompletionModel(LanguageModel):
    """A model that a llama.cpp engine runs; the requests are the same wherever it runs.

    Args:
        name: The spec that loads this model.
        request: Fields of every request: sampling and the use of the prefix cache.
        capabilities: What it can do; None to find out at the first look.
    """

    announces = True

    def __init__(
        self,
        name: str,
        request: Mapping[str, Any],
        capabilities: Capabilities | None = None,
    ) -> None:
        """Keep the settings; nothing is asked."""
        super().__init__(name, capabilities)
        self._request = {key: value for key, value in request.items() if value is not None}
        self._labels = LabelTokens(lambda text: self._running.tokenize(text))

    @property
    @abstractmethod
    def _running(self) -> CompletionEngine:
        """The engine, ready to be asked."""

    @property
    def _limit(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._running.context_size

    @property
    def _workers(self) -> int:
        """The most requests of one batch under way at once."""
        return 1

    def _embedding_engine(self) -> CompletionEngine:
        return self._running

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""
        return len(self._running.tokenize(text))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages in the model's own chat format, as a prompt for its next reply.

        The prompt ends where the assistant's reply starts, so ``score`` and ``generate`` continue
        the conversation as ``chat`` would.

        Args:
            messages: Each with ``role`` (system, user, assistant) and ``content``.
        """
        if not messages:
            raise ConfigurationError("messages must hold at least one message.")
        return self._running.apply_template(messages)

    def complete(self, prompt: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
        """Return llama.cpp's whole answer to one completion request, counted in ``usage``.

        Args:
            prompt: The text to continue, without a chat template.
            max_tokens: The most tokens to produce.
            **fields: Further fields of llama.cpp's request, such as ``n_probs`` or ``json_schema``;
                they come before the model's own settings.

        Raises:
            PromptTooLongError: The prompt and its answer do not fit.
            ModelError: llama.cpp refused the request.
        """
        self._check_room(prompt, max_tokens, self._limit)
        running = self._running
        (settle,) = announce(estimate(prompt, max_tokens))
        answer = running.complete(
            {**self._request, **fields, "prompt": prompt, "max_tokens": max_tokens}
        )
        read_answer(self.name, lambda: self._record(answer, settle))
        return answer

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return np.array(self._each(lambda prompt: self._score_one(prompt, labels), prompts))

    def _score_one(self, prompt: str, labels: list[str]) -> list[float]:
        ids = self._labels.distinct_ids(prompt, labels)
        top = self._listed(prompt, {"n_probs": _TOP}, "logprob")
        known = dict(top)
        missing = [token for token in ids if token not in known]
        if missing:
            known |= self._score_rare(prompt, missing, *top[0])
        return [known[token] for token in ids]

    def _score_rare(
        self, prompt: str, tokens: list[int], reference: int, logprob: float
    ) -> dict[int, float]:
        """Return the log-probabilities of tokens outside the top list.

        Lifting them and the reference token by the same amount leaves the log-odds between them
        as they are, and listing the lifted ones is far cheaper than the whole vocabulary.
        """
        lifted = [reference, *tokens]
        fields = {
            "temperature": 1.0,
            "samplers": ["temperature"],
            "logit_bias": [[token, _LIFT] for token in lifted],
            "n_probs": len(lifted),
            "post_sampling_probs": True,
        }
        found = dict(self._listed(prompt, fields, "prob"))
        if any(found.get(token, 0.0) <= 0.0 for token in lifted):
            raise ModelError(f"'{self.name}' gave no probability for some of the labels.")
        return {t: logprob + math.log(found[t]) - math.log(found[reference]) for t in tokens}

    def _listed(self, prompt: str, fields: dict[str, Any], value: str) -> list[tuple[int, float]]:
        """Return id and ``value`` (logprob or prob) of the first token's alternatives."""
        answer = self.complete(prompt, 1, **fields)

        def read() -> list[tuple[int, float]]:
            top = answer["choices"][0]["logprobs"]["content"][0][f"top_{value}s"]
            if not top:
                raise LookupError("no alternatives are listed")
            return [(int(entry["id"]), float(entry[value])) for entry in top]

        return read_answer(self.name, read)

    def _check_room(self, prompt: str, max_tokens: int, limit: int) -> None:
        # A token is at least one byte, so short prompts need not be counted.
        if len(prompt.encode()) + max_tokens < limit:
            return
        tokens = self.count_tokens(prompt) + max_tokens
        if tokens > limit:
            raise PromptTooLongError(tokens, limit)

    def _record(self, answer: dict[str, Any], settle: Settle) -> None:
        usage = answer["usage"]
        used = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        self.usage.add(calls=1, reused_tokens=answer.get("timings", {}).get("cache_n", 0), **used)
        settle(Usage(**used))

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        return self._each(
            lambda pair: self._likelihood_one(*pair), list(zip(prompts, texts, strict=True))
        )

    def _likelihood_one(self, prompt: str, text: str) -> float:
        """Force the text token by token and add up what the model would have given each.

        The listed log-probabilities are those before the grammar restricts the choice.
        """
        ids = self._labels.all_ids(prompt, text)
        answer = self.complete(prompt, len(ids), grammar=token_grammar(ids), n_probs=1)
        content = read_answer(
            self.name,
            lambda: [
                (int(entry["id"]), float(entry["logprob"]))
                for entry in answer["choices"][0]["logprobs"]["content"]
            ],
        )
        if [identifier for identifier, _ in content] != ids:
            raise ModelError(f"'{self.name}' did not follow the tokens of {text!r}.")
        return float(sum(logprob for _, logprob in content))

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        fields: dict[str, Any] = {"stop": stop}
        if choices is not None:
            fields["grammar"] = choice_grammar(choices)
            max_tokens = 1 + max(len(choice.encode()) for choice in choices)
        texts = self._each(lambda prompt: self._text(prompt, max_tokens, fields), prompts)
        return texts if choices is None else [self._choice(text, choices) for text in texts]

    def _text(self, prompt: str, max_tokens: int, fields: dict[str, Any]) -> str:
        answer = self.complete(prompt, max_tokens, **fields)
        return read_answer(self.name, lambda: str(answer["choices"][0]["text"]))

    def _choice(self, text: str, choices: list[str]) -> str:
        if text.strip() not in choices:
            raise ModelError(f"'{self.name}' answered {redact(text)!r}, allowed: {choices!r}.")
        return text.strip()

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        body = {"messages": [dict(message) for message in messages], "max_tokens": max_tokens}
        running = self._running
        (settle,) = announce(estimate("".join(m["content"] for m in messages), max_tokens))
        answer = running.chat({**self._request, **body})
        read_answer(self.name, lambda: self._record(answer, settle))
        return read_answer(self.name, lambda: str(answer["choices"][0]["message"]["content"] or ""))

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        engine = self._embedding_engine()
        for text in texts:
            self._check_room(text, 0, engine.context_size)
        (settle,) = announce(estimate("".join(texts)))
        answer = engine.embed(texts)

        def read() -> NDArray[np.float64]:
            tokens = answer["usage"]["prompt_tokens"]
            self.usage.add(calls=len(texts), prompt_tokens=tokens)
            settle(Usage(prompt_tokens=tokens))
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            return np.array([row["embedding"] for row in rows], dtype=np.float64)

        return read_answer(self.name, read)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return [text for _, text in self._labels.first_tokens(prompt, labels)]

    def _each(self, ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``ask`` of every item in order, up to ``_workers`` at once."""
        return ask_each(ask, items, self._workers)


def token_grammar(ids: Sequence[int]) -> str:
    """Return the grammar of exactly these tokens."""
    return "root ::= " + " ".join(f"<[{token}]>" for token in ids)
