"""What figures 7 and 8 of layer splitting show, as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.studies.reproduction_data import ShownTable
from icl_optimizer.studies.reproduction_sources import UnfinishedError, plain
from icl_optimizer.studies.splitting_learning import SWEPT
from icl_optimizer.studies.splitting_pictures import straight_line

LINKS = {"sigma": "noise σ", "loss": "loss probability"}


def splitting_tables(folder: Path) -> list[ShownTable]:
    """Return the least-squares lines of figure 7, and the last values of figure 8.

    Args:
        folder: Of the study.

    Raises:
        UnfinishedError: It has not come so far.
    """
    return [_choices(folder / "chosen"), _sweeps(folder / "sweeps")]


def _pieces(folder: Path, pattern: str) -> list[pd.DataFrame]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UnfinishedError(f"{folder} holds no {pattern}")
    return [pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _choices(folder: Path) -> ShownTable:
    rows = pd.concat(_pieces(folder, "ppo-split-[0-9]*.json"))
    lines = []
    for column, name in LINKS.items():
        slope, r2 = straight_line(rows[column].to_numpy(), rows["split"].to_numpy())
        lines.append((name, f"{slope:.2f}", f"{r2:.2f}"))
    header = ("link", "slope, layers per unit", "R²")
    return ShownTable("choices", "Figure 7: the cut of ppo-split", header, tuple(lines))


def _sweeps(folder: Path) -> ShownTable:
    lines = []
    for setting, values in SWEPT.items():
        for value in values:
            pieces = _pieces(folder, f"ppo-surrogate-shipped-{setting}={value:g}-[0-9]*.json")
            cells = []
            for metric in ("reward", "optimality"):
                last = [float(rows[metric].iloc[-1]) for rows in pieces]
                cells.append(plain(with_interval(metric, estimate(last))))
            lines.append((setting, f"{value:g}", *cells))
    header = ("setting", "value", "reward", "optimality")
    title = "Figure 8: PPO on rewards of the surrogate, one setting varied"
    return ShownTable("sweeps", title, header, tuple(lines), keys=2)
