"""The table of the study of the levers."""

from __future__ import annotations

import pandas as pd

from icl_optimizer.comparison.statistics import estimate

METRIC = "balanced_accuracy"


def lever_table(rows: pd.DataFrame) -> str:
    """Return Markdown: for each split and setting balanced accuracy with its interval, and speed.

    Args:
        rows: Those of ``levers.csv``.
    """
    parts = []
    for split, part in rows.groupby("split", sort=False):
        parts.append(f"## {split}\n\n{_split_table(part)}")
    return "\n\n".join(parts) + "\n"


def _split_table(rows: pd.DataFrame) -> str:
    places = list(rows[["environment", "mix"]].drop_duplicates().itertuples(index=False, name=None))
    names = [_place(environment, mix) for environment, mix in places]
    lines = [
        f"| lever | setting | {' | '.join(names)} | decisions/s |",
        "|" + "---|" * (len(names) + 3),
    ]
    for (lever, setting), part in rows.groupby(["lever", "setting"], sort=False):
        cells = [_cell(part, *place) for place in places]
        rate = part.loc[part["metric"] == "decisions_per_s", "value"].median()
        lines.append(f"| {lever} | {setting} | {' | '.join(cells)} | {rate:.1f} |")
    return "\n".join(lines)


def _place(environment: str, mix: str) -> str:
    return environment if mix == "as learned" else f"{environment}, {mix}"


def _cell(rows: pd.DataFrame, environment: str, mix: str) -> str:
    here = (rows["environment"] == environment) & (rows["mix"] == mix) & (rows["metric"] == METRIC)
    if not here.any():
        return "–"
    found = estimate(rows.loc[here, "value"].to_numpy())
    if found.low == found.high:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
