"""A model around another model: the base of retries, caches and budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.conversation import as_prompt
from icl_optimizer.llm.usage import Usage


class ModelWrapper(LanguageModel):
    """Passes everything on to ``inner``; subclasses change what they are about.

    The counters are those of ``inner``, and it alone measures time and asks for permission.

    Args:
        inner: The model that answers.
    """

    def __init__(self, inner: LanguageModel) -> None:
        """Wrap ``inner``."""
        super().__init__(inner.name)
        self.inner = inner
        # the wrapped model asks for permission itself, and a cache may not need it
        self.remote = False
        self.announces = inner.announces

    @property
    def usage(self) -> Usage:
        """The counters of the wrapped model."""
        return self.inner.usage

    @property
    def identity(self) -> dict[str, Any]:
        """That of the wrapped model."""
        return self.inner.identity

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""
        return self.inner.count_tokens(text)

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages as a prompt that the wrapped model's next reply continues."""
        return as_prompt(self.inner, messages)

    def reset(self) -> None:
        """Reset the wrapped model."""
        self.inner.reset()

    def begin_recording(self, name: str) -> None:
        """Pass the name on to the wrapped model."""
        self.inner.begin_recording(name)

    def close(self) -> None:
        """Close the wrapped model."""
        self.inner.close()

    def _probe(self) -> Capabilities:
        return self.inner.capabilities

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return self.inner.score(prompts, labels)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        return [float(value) for value in self.inner.likelihood(prompts, texts)]

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        return self.inner.generate(prompts, max_tokens, choices, stop)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        return self.inner.chat(messages, max_tokens)

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        return self.inner.embed(texts)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return self.inner._first_tokens(prompt, labels)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        yield


def unwrapped(model: LanguageModel) -> LanguageModel:
    """Return the model at the core of ``model``."""
    while isinstance(model, ModelWrapper):
        model = model.inner
    return model


__all__ = ["ModelWrapper", "unwrapped"]
