"""Texts on which perplexity is measured: windows of WikiText-2, or of a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_optimizer.errors import ConfigurationError

EXCERPT = "wikitext2_excerpt.txt"


def excerpt_paragraphs() -> list[str]:
    """Return the 48 paragraphs of WikiText-2 (test part) that ship; CC BY-SA 3.0."""
    text = files("icl_optimizer.environments.data").joinpath(EXCERPT).read_text(encoding="utf-8")
    return text.splitlines()


def file_paragraphs(path: str | Path) -> list[str]:
    """Return the paragraphs of a text file: its lines that are not empty or headings."""
    place = Path(path)
    if not place.is_file():
        raise ConfigurationError(f"text is '{place}'; allowed: a file with a paragraph per line.")
    lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("=")]


def windows(paragraphs: Sequence[str], tokenizer: Any, *, tokens: int, texts: int) -> list[Tensor]:
    """Return groups of the first tokens of paragraphs, each after the start token.

    A group is what one record is measured on. Paragraphs are dealt out like cards, so that the
    groups cover the whole text alike; those with fewer tokens are left out.

    Args:
        paragraphs: Texts.
        tokenizer: Of the model; its beginning-of-sequence token, or the end-of-sequence token
            where it has none, is the start token.
        tokens: Tokens of a window, without the start token.
        texts: Windows in a group.

    Returns:
        Groups of tokens ``(texts, 1 + tokens)``.
    """
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    rows = []
    for paragraph in paragraphs:
        ids = tokenizer(paragraph, add_special_tokens=False).input_ids
        if len(ids) >= tokens:
            rows.append(torch.tensor([start, *ids[:tokens]]))
    groups = len(rows) // texts
    if not groups:
        raise ConfigurationError(
            f"text has {len(rows)} paragraphs of at least {tokens} tokens; allowed: at least "
            f"{texts}."
        )
    return [torch.stack(rows[first::groups][:texts]) for first in range(groups)]
