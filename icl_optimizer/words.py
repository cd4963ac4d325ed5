"""Words as data: what a keyword's value may look like once it stands in a prompt."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MOST_CHARACTERS = 120
NOTHING = "(empty)"

_READ = 8 * MOST_CHARACTERS
"""What is looked at; patterns must not take long on a text of any length."""

# <|im_end|>, </s>, [INST], [gMASK]: what models take for turns
_TAG = re.compile(r"<[^<>]*>|\[/?[A-Za-z_]+\]")
_ARROW = re.compile(
    r"[-=~]+>"
    r"|[\u2190-\u21ff\u2794-\u27bf\u27f0-\u27ff\u2900-\u297f\u2b00-\u2bff\U0001f800-\U0001f8ff]"
)
_SEPARATOR = re.compile(r"[{}|;`\u3001]|,(?!\d)|(?<!\d),|:(?!\d)|(?<!\d):")
_COLONS = str.maketrans(dict.fromkeys("\u2236\ua789\u02d0\ufe55\uff1a", ":"))


@lru_cache(maxsize=8192)
def clean_word(text: str) -> str:
    """Return ``text`` as one line that cannot change the structure of a prompt.

    Line breaks, control and invisible characters become spaces or vanish; so do braces (template
    syntax), the tags and brackets by which models mark turns, arrows and the separators between
    the words, keywords and examples of a prompt. What is longer than 120 characters is cut, and
    where nothing is left the word is ``(empty)``. Ordinary words in any language stay as they
    are, and cleaning twice changes nothing.
    """
    word = text[:_READ]
    while True:
        cleaned = _clean_once(word)
        if cleaned == word:
            return cleaned or NOTHING
        word = cleaned


def _clean_once(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).translate(_COLONS)[:_READ]
    visible = "".join(map(_visible, plain))
    for pattern in (_TAG, _ARROW, _SEPARATOR):
        visible = pattern.sub(" ", visible)
    return " ".join(visible.split())[:MOST_CHARACTERS].rstrip()


def _visible(character: str) -> str:
    """Return a character; a space for a separator, nothing for what nobody would see."""
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    if category == "Pd" or character == "\u2212":
        return "-"  # dashes of all lengths, which make arrows too
    return "" if category.startswith("C") else character
