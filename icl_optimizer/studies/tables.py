"""Writing what a study measured: every value as CSV, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def write_study(out: Path, name: str, values: pd.DataFrame, table: Sequence[Sequence[str]]) -> Path:
    """Write ``NAME.csv`` and ``NAME.md`` into ``out``.

    Args:
        out: Folder; made when missing.
        name: Of the study.
        values: Everything that was measured.
        table: Rows of cells, the header first.

    Returns:
        The path of the Markdown file.
    """
    out.mkdir(parents=True, exist_ok=True)
    values.to_csv(out / f"{name}.csv", index=False)
    path = out / f"{name}.md"
    path.write_text(markdown(table) + "\n", encoding="utf-8")
    return path


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the header first, as a Markdown table."""
    header, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([header, f"|{'---|' * len(table[0])}", *rows])
