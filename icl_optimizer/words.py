"""Words as data: what a keyword's value may look like once it stands in a prompt."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MOST_CHARACTERS = 120
NOTHING = "(empty)"

_TAG = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]")  # <|im_end|>, </s>, [INST]: what models take for turns
_ARROW = re.compile(r"[-=~]+>|[\u2190-\u21ff\u27f0-\u27ff\u2900-\u297f\u2b00-\u2bff]")
_SEPARATOR = re.compile(r"[{}|;`]|,(?!\d)|(?<!\d),|:(?!\d)|(?<!\d):")


@lru_cache(maxsize=8192)
def clean_word(text: str) -> str:
    """Return ``text`` as one line that cannot change the structure of a prompt.

    Line breaks, control and invisible characters become spaces or vanish; so do braces (template
    syntax), the tags and brackets by which models mark turns, arrows and the separators between
    the words, keywords and examples of a prompt. What is longer than 120 characters is cut, and
    where nothing is left the word is ``(empty)``. Ordinary words in any language stay as they
    are, and cleaning twice changes nothing.
    """
    word = text
    while True:
        cleaned = _clean_once(word)
        if cleaned == word:
            return cleaned or NOTHING
        word = cleaned


def _clean_once(text: str) -> str:
    visible = "".join(map(_visible, unicodedata.normalize("NFKC", text)))
    for pattern in (_TAG, _ARROW, _SEPARATOR):
        visible = pattern.sub(" ", visible)
    return " ".join(visible.split())[:MOST_CHARACTERS].rstrip()


def _visible(character: str) -> str:
    """Return a character, a space for a separator, nothing for what nobody would see."""
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    return "" if category.startswith("C") else character
