"""The contract of every language model: score labels, generate text, embed texts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.errors import check_distinct, check_texts, shared_token
from icl_optimizer.llm.requests import require_permission
from icl_optimizer.llm.usage import Usage

Message = Mapping[str, str]
"""One chat message: ``role`` (system, user or assistant) and ``content``."""


@dataclass(frozen=True)
class Capabilities:
    """What a model can do.

    Attributes:
        logprobs: ``score`` works.
        embeddings: ``embed`` works.
        constrained: ``generate`` accepts ``choices``.
        context_size: Tokens of prompt and answer together; None when unknown.
        likelihoods: ``likelihood`` works.
        top_logprobs: Alternatives listed with each token, where the list is limited; a label
            outside it gets an upper bound. None when every label has its own probability.
        chat_template: ``apply_template(messages)`` works.
    """

    logprobs: bool
    embeddings: bool
    constrained: bool = False
    context_size: int | None = None
    likelihoods: bool = False
    top_logprobs: int | None = None
    chat_template: bool = False


class LanguageModel(Closing, ABC):
    """A model that scores labels, completes prompts and embeds texts.

    Subclasses implement the underscored methods and report tokens to ``usage``; the public ones
    check the request, ask for permission and measure the time.

    Attributes:
        name: The spec that loads this model.
    """

    remote: bool = True
    """Whether calls leave the process; ``allow_model_requests(False)`` refuses those."""

    announces: bool = False
    """Whether ``announce`` hears of every request before it is sent; else a budget takes it that
    each prompt is one."""

    def __init__(self, name: str, capabilities: Capabilities | None = None) -> None:
        """Set the name; without ``capabilities`` they are found at the first look at them."""
        self.name = name
        self._capabilities = capabilities
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """What the model was asked to do so far."""
        return self._usage

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do; the first look may ask the model.

        Raises:
            ModelError: The model did not answer.
        """
        if self._capabilities is None:
            require_permission(self)
            self._capabilities = self._probe()
        return self._capabilities

    @property
    def known_capabilities(self) -> Capabilities | None:
        """What is known of the capabilities so far; the model is not asked."""
        return self._capabilities

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on beside the request: plain JSON values without secrets."""
        return {"name": self.name}

    def score(self, prompts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
        """Return the log-probability of each label as the continuation of each prompt.

        A label stands for its first token, so labels must differ there. The values are the
        model's own, over its whole vocabulary and before any sampling: they are at most 0 and do
        not sum to one over the labels.

        Args:
            prompts: n prompts, without trailing spaces.
            labels: L labels as they would continue a prompt, the leading space included.

        Returns:
            Natural log-probabilities, shape (n, L).

        Raises:
            ConfigurationError: Labels share a first token, or the model gives no log-probabilities.
            PromptTooLongError: A prompt does not fit.
        """
        require_permission(self)
        self._require("logprobs", "give log-probabilities; use the 'generate' decider")
        check_distinct("labels", labels)
        check_texts("prompts", prompts)
        if not prompts:
            return np.empty((0, len(labels)))
        with self._timed():
            return self._score(list(prompts), list(labels))

    def likelihood(self, prompts: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the log-probability of each whole text as the continuation of its prompt.

        Args:
            prompts: n prompts, without trailing spaces.
            texts: n texts as they would continue their prompt, the leading space included.

        Returns:
            Natural log-probabilities, shape (n,).

        Raises:
            ConfigurationError: The model gives no likelihoods.
            PromptTooLongError: A prompt and its text do not fit.
        """
        require_permission(self)
        self._require("likelihoods", "give the likelihood of a text; use another decider")
        check_texts("prompts", prompts)
        if len(prompts) != len(texts) or not all(texts):
            raise ConfigurationError(
                f"texts are {len(texts)} for {len(prompts)} prompts; "
                "allowed: one text for each prompt, none empty."
            )
        with self._timed():
            values = self._likelihood(list(prompts), list(texts)) if prompts else []
        return np.asarray(values, dtype=np.float64)

    def reset(self) -> None:  # most models keep nothing between calls
        """Forget prefixes of earlier prompts, so that the same calls give the same numbers."""

    def begin_recording(self, name: str) -> None:  # most models record nothing
        """Record what follows under a name of its own, or replay what has this name.

        Around units of work that run in any order, in several processes, or again after an
        interruption, so that each one repeats its own failures.

        Args:
            name: The same in the recording and its replay.
        """

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int = 8,
        choices: Sequence[str] | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Return the most likely continuation of each prompt.

        Args:
            prompts: n completion prompts, used as they are (no chat template in local models).
            max_tokens: The most tokens to produce; not used with ``choices``.
            choices: When given, the answer is exactly one of these, surrounding spaces removed.
            stop: Texts that end the answer; they are not part of it.

        Raises:
            ConfigurationError: ``choices`` were given and the model cannot be constrained.
            PromptTooLongError: A prompt and its answer do not fit.
        """
        require_permission(self)
        if max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be at least 1, got {max_tokens}.")
        check_texts("prompts", prompts)
        if choices is not None:
            self._require("constrained", "be held to a list of choices")
            choices = [choice.strip() for choice in choices]
            check_distinct("choices", choices)
        with self._timed():
            return self._generate(list(prompts), max_tokens, choices, list(stop))

    def chat(self, messages: Sequence[Message], max_tokens: int = 64) -> str:
        """Return the reply to a conversation, in the model's own chat format.

        Args:
            messages: Each with ``role`` (system, user, assistant) and ``content``.
            max_tokens: The most tokens to produce.
        """
        require_permission(self)
        if not messages:
            raise ConfigurationError("messages must hold at least one message.")
        with self._timed():
            return self._chat(list(messages), max_tokens)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one vector of length 1 for each text, shape (n, d).

        Raises:
            ConfigurationError: The model gives no embeddings, or a text is empty.
        """
        require_permission(self)
        self._require("embeddings", "embed texts")
        check_texts("texts", texts)
        if not texts:
            raise ConfigurationError("texts must hold at least one text.")
        with self._timed():
            vectors = self._embed(list(texts))
        norms: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / norms

    def check_labels(self, labels: Sequence[str], prompt: str = "") -> None:
        """Raise ConfigurationError when labels cannot be told apart by their first token.

        Args:
            labels: As given to ``score``.
            prompt: The end of the prompt they continue, since tokens depend on what precedes.
        """
        check_distinct("labels", labels)
        tokens = self._first_tokens(prompt, list(labels))
        first: dict[str, str] = {}
        for label, token in zip(labels, tokens, strict=True):
            if token in first:
                raise shared_token(first[token], label, token)
            first[token] = label

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""

    def close(self) -> None:
        """Free what the model holds; it cannot be used afterwards. Most hold nothing."""

    def __repr__(self) -> str:
        """Name the model; parameters stay out, they may hold secrets."""
        return f"{type(self).__name__}({self.name!r})"

    def _probe(self) -> Capabilities:
        """Ask the model what it can do; for those whose constructor did not say."""
        raise NotImplementedError

    @abstractmethod
    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]: ...

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        raise ConfigurationError(f"the model '{self.name}' gives no likelihoods.")

    @abstractmethod
    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]: ...

    @abstractmethod
    def _chat(self, messages: list[Message], max_tokens: int) -> str: ...

    @abstractmethod
    def _embed(self, texts: list[str]) -> NDArray[np.float64]: ...

    @abstractmethod
    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        """Return the text of each label's first token after ``prompt``."""

    def _require(self, capability: str, action: str) -> None:
        if not getattr(self.capabilities, capability):
            raise ConfigurationError(f"the model '{self.name}' cannot {action}.")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        with self.usage.watch() as used:
            try:
                yield
            finally:
                self.usage.time(time.perf_counter() - start, used.calls)
