"""Labels as tokens: which token each one starts with after a given prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.errors import shared_token

Token = tuple[int, str]
"""Id and text."""


class LabelTokens:
    """Finds and remembers the first token of each label in its context.

    Tokens are compared by id in context: the same word has different tokens at the start of a
    text, after a space and inside a word, and several tokens can have the same text.
    """

    def __init__(self, tokenize: Callable[[str], list[Token]]) -> None:
        """Keep the model's tokenizer."""
        self._tokenize = tokenize
        self._known: dict[tuple[str, tuple[str, ...]], list[Token]] = {}

    def first_tokens(self, prompt: str, labels: Sequence[str]) -> list[Token]:
        """Return the first token of each label as the continuation of ``prompt``.

        Raises:
            ConfigurationError: The end of the prompt and the start of a label form one token.
        """
        key = (last_word(prompt), tuple(labels))
        if key not in self._known:
            before = self._tokenize(key[0])
            self._known[key] = [self._first_token(key[0], before, label) for label in labels]
        return self._known[key]

    def distinct_ids(self, prompt: str, labels: Sequence[str]) -> list[int]:
        """Return the id of each label's first token.

        Raises:
            ConfigurationError: Two labels share it, or one forms a token with the prompt's end.
        """
        tokens = self.first_tokens(prompt, labels)
        for i, token in enumerate(tokens):
            if token in tokens[:i]:
                raise shared_token(labels[tokens.index(token)], labels[i], token[1])
        return [identifier for identifier, _ in tokens]

    def all_ids(self, prompt: str, text: str) -> list[int]:
        """Return the ids of all tokens of ``text`` as the continuation of ``prompt``."""
        end = last_word(prompt)
        return [identifier for identifier, _ in self._continuation(end, self._tokenize(end), text)]

    def _first_token(self, end: str, before: list[Token], label: str) -> Token:
        return self._continuation(end, before, label)[0]

    def _continuation(self, end: str, before: list[Token], label: str) -> list[Token]:
        after = self._tokenize(end + label)
        if after[: len(before)] != before:
            raise ConfigurationError(
                f"the label {label!r} and the end of the prompt {end!r} form one token, so the "
                "label has no probability of its own. Move spaces from the end of the prompt to "
                "the start of each label."
            )
        return after[len(before) :]


def last_word(prompt: str) -> str:
    """Return the last word with the white space around it; tokens do not reach beyond."""
    word = prompt.rstrip()
    start = max((match.start() for match in re.finditer(r"\s+", word)), default=0)
    return prompt[start:]


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the GBNF grammar of exactly one of ``choices``, perhaps after a space."""
    quoted = []
    for choice in choices:
        if not choice.isprintable():
            raise ConfigurationError(f"a choice must be one printable line, got {choice!r}.")
        quoted.append('"' + choice.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return f'root ::= " "? ({" | ".join(quoted)})'
