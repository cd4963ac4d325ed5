"""Label log-probabilities from the first token's alternatives, as chat APIs list them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from icl_optimizer.llm.errors import ModelError, shared_token
from icl_optimizer.llm.redaction import redact

Alternative = tuple[str, float]
"""A token's text and its log-probability."""

_LEAST = 1e-12
"""The floor where the listed tokens already take all of the probability, but for rounding."""


def alternatives(logprobs: Any) -> list[Alternative]:
    """Read the alternatives of the first generated token.

    Args:
        logprobs: ``response_metadata["logprobs"]``: ``{"content": [token, ...]}`` from OpenAI,
            the list of tokens itself, as objects, from Ollama, or None.

    Returns:
        Most likely first; empty when the model sent none.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    if not tokens:
        return []
    listed = _get(tokens[0], "top_logprobs") or []
    return [(str(_get(entry, "token")), float(_get(entry, "logprob"))) for entry in listed]


def label_logprobs(listed: Sequence[Alternative], labels: Sequence[str]) -> list[float]:
    """Return the log-probability of each label.

    A token counts for a label that starts with it, whatever its case and leading spaces: the text
    alone does not say which of the vocabulary's variants of a word a model will use. A label that
    no listed token begins gets an upper bound: it is not more likely than the last of the list,
    nor than all that is not listed.

    Args:
        listed: The first token's alternatives.
        labels: L different labels.

    Raises:
        ConfigurationError: The token most in favour of the labels begins two of them.
        ModelError: No listed token begins any label.
    """
    shares = [0.0] * len(labels)
    for token, logprob in listed:
        matching = [i for i, label in enumerate(labels) if _begins(token, label)]
        if len(matching) == 1:
            shares[matching[0]] += math.exp(logprob)
        elif matching and math.exp(logprob) > sum(shares):
            # A rare shared token, such as a single letter, does not matter.
            raise shared_token(labels[matching[0]], labels[matching[1]], token)
    if not any(shares):
        tokens = ", ".join(repr(redact(token)) for token, _ in listed)
        raise ModelError(
            f"none of the labels {list(labels)!r} is among the {len(listed)} most likely first "
            f"tokens ({tokens}). Say in the prompt to reply with a label only, use labels such as "
            "A and B, or the 'generate' decider."
        )
    floor = _floor([logprob for _, logprob in listed])
    return [math.log(share) if share else floor for share in shares]


def _floor(logprobs: Sequence[float]) -> float:
    """Return the most that a token outside the list can have."""
    rest = max(_LEAST, 1.0 - sum(map(math.exp, logprobs)))
    return min(min(logprobs), math.log(rest))


def _begins(token: str, label: str) -> bool:
    start = token.strip().casefold()
    return bool(start) and label.strip().casefold().startswith(start)


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else getattr(entry, key)
