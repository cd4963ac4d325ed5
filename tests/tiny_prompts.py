"""Templates of the tiny problem, and scripted models that read its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icl_optimizer.llm.scripted import FunctionLLM

GOAL = "Sort things left or right."


def write_templates(folder: Path, **parts: str) -> Path:
    """Write the tiny problem's templates below ``folder``; ``parts`` replace some."""
    texts = {"goal": GOAL, "definition": "A thing has a weight.", "rules": "Be brief."} | parts
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    for part, text in texts.items():
        (folder / "tiny" / f"{part}.j2").write_text(text)
    return folder


def query_of(prompt: str) -> tuple[str, ...]:
    """Return the words of the query, which is the last line of the prompt."""
    return tuple(prompt.splitlines()[-1].removesuffix(" ->").split(", "))


def examples_of(prompt: str) -> list[tuple[tuple[str, ...], str]]:
    """Return words and label of every example in the prompt."""
    lines = [line.split(" -> ") for line in prompt.splitlines() if " -> " in line]
    return [(tuple(words.split(", ")), label) for words, label in lines]


class CopyNearest(FunctionLLM):
    """Gives 0.9 to the label of the example that shares most words with the query."""

    def __init__(self, labels: Sequence[str] = ("left", "right")) -> None:
        super().__init__(self._copy)
        self._names = labels

    def _copy(self, prompt: str) -> dict[str, float]:
        query, examples = query_of(prompt), examples_of(prompt)
        if not examples:
            return dict.fromkeys(self._names, 0.5)
        _, nearest = max(examples, key=lambda example: len(set(example[0]) & set(query)))
        return {label: 0.9 if label == nearest else 0.1 for label in self._names}
