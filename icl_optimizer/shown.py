"""Examples as prompt templates see them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from icl_optimizer.experience import Example
from icl_optimizer.summaries import Cell, Summary, level_values


@dataclass(frozen=True)
class ShownCell:
    """What was seen of one decision in one context; numbers with two significant digits."""

    label: str
    level: str
    count: int
    mean: str
    bonus: str


@dataclass(frozen=True)
class ShownExample:
    """An example; ``tried`` and ``worst`` (a label) where outcomes are summed up."""

    description: str
    words: str
    label: str
    reward: float
    evaluation: str
    tried: tuple[ShownCell, ...] = ()
    worst: str | None = None


def show(example: Example, description: str, words: str, labels: Sequence[str]) -> ShownExample:
    """Return an example as templates see it."""
    return ShownExample(
        description,
        words,
        labels[example.action],
        round(example.reward, 2),
        "good" if example.good else "bad",
        *_tried(example, labels),
    )


def signature(examples: Sequence[Example], source: str) -> Hashable:
    """Return what of ``examples`` a template shows: the part of a cache's key that they make.

    Args:
        examples: Any.
        source: The template's text; what it does not name is not shown.
    """
    rows = [
        (
            e.context,
            e.action,
            round(e.reward, 2) if "reward" in source else None,
            e.good if "evaluation" in source else None,
            _summary_signature(e, source) if isinstance(e, Summary) else None,
        )
        for e in examples
    ]
    return tuple(rows), tuple(level_values(examples).items())


def _summary_signature(summary: Summary, source: str) -> Hashable:
    names = [str(action) for action in range(1 + max(c.action for c in summary.cells))]
    cells, worst = _tried(summary, names)
    numbers = [f for f in ("count", "mean", "bonus") if f in source]
    rows = [(cell.label, cell.level, *(getattr(cell, f) for f in numbers)) for cell in cells]
    return tuple(rows), worst if "worst" in source else None


def _tried(example: Example, labels: Sequence[str]) -> tuple[tuple[ShownCell, ...], str | None]:
    """Return what was seen of each decision, and the label of the worst if several were tried."""
    if not isinstance(example, Summary):
        return (), None
    worst = min(example.cells, key=lambda cell: cell.mean).action
    cells = tuple(_cell(cell, labels[cell.action]) for cell in example.cells)
    return cells, labels[worst] if worst != example.action else None


def _cell(cell: Cell, label: str) -> ShownCell:
    return ShownCell(label, cell.level, round(cell.count), _digits(cell.mean), _digits(cell.bonus))


def _digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
