"""The tables of the study of the levers."""

from __future__ import annotations

import pandas as pd

from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.report.formatting import MISSING, number, with_interval
from icl_optimizer.studies.lever_settings import SETTINGS
from icl_optimizer.studies.tables import markdown

METRIC, RATE = "balanced_accuracy", "decisions_per_s"
TIMED_IN = ("closed", "new words")
"""Where speeds are shown: a pool of short prompts and one of long prompts."""
TITLES = {"choose": "Chosen by", "report": "Reported"}


def lever_tables(rows: pd.DataFrame) -> str:
    """Return Markdown: for each split a table of balanced accuracy with its interval, and speed.

    Args:
        rows: Those of ``levers.csv``.
    """
    parts = [
        f"## {TITLES[str(split)]}\n\n{markdown(_table(part))}\n"
        for split, part in rows.groupby("split", sort=False)
    ]
    return "\n".join(parts)


def _table(rows: pd.DataFrame) -> list[list[str]]:
    found = rows[["environment", "mix"]].drop_duplicates().itertuples(index=False, name=None)
    places = [(str(environment), str(mix)) for environment, mix in found]
    timed = [place for place in TIMED_IN if (rows["environment"] == place).any()]
    names = [_place(*place) for place in places] + [f"decisions/s, {place}" for place in timed]
    table = [["lever", "setting", *names]]
    ranks = {(s.lever, s.name): rank for rank, s in enumerate(SETTINGS)}
    groups = [
        ((str(lever), str(setting)), part)
        for (lever, setting), part in rows.groupby(["lever", "setting"], sort=False)
    ]
    for (lever, setting), part in sorted(groups, key=lambda g: ranks.get(g[0], len(ranks))):
        cells = [_quality(part, *place) for place in places]
        speeds = [_speed(part, place) for place in timed]
        table.append([lever, setting, *cells, *speeds])
    return table


def _place(environment: str, mix: str) -> str:
    return environment if mix == "as learned" else f"{environment}, {mix}"


def _quality(rows: pd.DataFrame, environment: str, mix: str) -> str:
    here = (rows["environment"] == environment) & (rows["mix"] == mix) & (rows["metric"] == METRIC)
    return with_interval(METRIC, estimate(rows.loc[here, "value"])) if here.any() else MISSING


def _speed(rows: pd.DataFrame, environment: str) -> str:
    here = (rows["environment"] == environment) & (rows["metric"] == RATE)
    return number(float(rows.loc[here, "value"].median())) if here.any() else MISSING
