"""Means and intervals over seeds, from units that come one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.comparison.tables import KEYS
from icl_optimizer.comparison.writing import DECIMALS

SUMMARY_COLUMNS = (*KEYS, "metric", "mean", "ci_low", "ci_high", "n")
Key = tuple[str, ...]


class Summary:
    """Keeps, of each metric of a policy, the value at every seed's last step, and nothing else."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._last: dict[Key, dict[int, tuple[int, list[float]]]] = {}

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take in rows of ``results.csv`` or ``timings.csv``; all that a seed has of a metric."""
        for environment, scenario, policy, llm, seed, split, step, metric, value in rows:
            if split != "eval" and metric == "reward":
                continue
            seeds = self._last.setdefault((environment, scenario, policy, llm, metric), {})
            known = seeds.get(seed)
            if known is None or step > known[0]:
                seeds[seed] = (step, [value])
            elif step == known[0]:
                known[1].append(value)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return mean, interval and number of seeds of every metric at the last step."""
        table = []
        for key, seeds in self._last.items():
            values = np.array([v for _, values in seeds.values() for v in values], dtype=float)
            found = estimate(np.round(values, DECIMALS))
            table.append((*key, found.mean, found.low, found.high, found.n))
        return table


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and interval over seeds of every metric at each policy's last step."""
    summary = Summary()
    summary.add(rows.itertuples(index=False))
    return pd.DataFrame(summary.rows(), columns=list(SUMMARY_COLUMNS))
