"""Errors of language models, and the checks that raise them before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icl_optimizer.errors import ConfigurationError, FailureKind, ModelError


class PromptTooLongError(ConfigurationError):
    """A prompt and its answer do not fit into the model's context."""

    def __init__(self, tokens: int, limit: int) -> None:
        """Keep both numbers.

        Args:
            tokens: What the prompt and the room for its answer need, in tokens.
            limit: The model's context size in tokens.
        """
        super().__init__(
            f"the prompt and its answer need {tokens} tokens, the model's context holds {limit}. "
            "Use fewer examples or a larger context_size."
        )
        self.tokens = tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type[PromptTooLongError], tuple[int, int]]:
        """Pickle by the two numbers, so that worker processes can pass it on."""
        return type(self), (self.tokens, self.limit)


class PartialError(ModelError):
    """A batch failed at one prompt, after those before it were answered.

    Attributes:
        answers: The answers to the first prompts, in order; the next one failed, and those after
            it were not asked.
    """

    def __init__(
        self,
        message: str,
        kind: FailureKind = "answer",
        retry_after: float | None = None,
        answers: Sequence[Any] = (),
    ) -> None:
        """Keep what went wrong, and what did not."""
        super().__init__(message, kind, retry_after)
        self.answers = tuple(answers)


def shared_token(first: str, second: str, token: str) -> ConfigurationError:
    """Return the error for two labels that start with the same token."""
    return ConfigurationError(
        f"the labels {first!r} and {second!r} both start with the token {token!r}, so their "
        "scores would be the same. Use labels that differ at once, such as A and B."
    )


def check_distinct(field: str, labels: Sequence[str]) -> None:
    """Raise ConfigurationError unless ``labels`` are different, non-empty texts."""
    if isinstance(labels, str) or not labels or any(not label.strip() for label in labels):
        raise ConfigurationError(f"{field} must be a list of non-empty texts, got {labels!r}.")
    if len(set(labels)) != len(labels):
        raise ConfigurationError(f"{field} must differ from each other, got {list(labels)!r}.")


def check_texts(field: str, texts: Sequence[str]) -> None:
    """Raise ConfigurationError unless ``texts`` is a list (or tuple) of non-empty texts."""
    if isinstance(texts, str) or any(not text.strip() for text in texts):
        raise ConfigurationError(f"{field} must be a list of non-empty texts.")


__all__ = [
    "ModelError",
    "PartialError",
    "PromptTooLongError",
    "check_distinct",
    "check_texts",
    "shared_token",
]
