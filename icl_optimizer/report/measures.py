"""What the figures and tables show: estimates over seeds, per entry and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.report.loading import Run
from icl_optimizer.report.palette import Entry

WINDOW = 10
MOST_POINTS = 60


@dataclass(frozen=True)
class Curve:
    """Estimates of one entry over interactions.

    Attributes:
        entry: Whose they are.
        steps: Interactions so far, increasing.
        values: One estimate per step.
    """

    entry: Entry
    steps: tuple[int, ...]
    values: tuple[Estimate, ...]

    def since(self, start: int) -> Curve:
        """Return what comes after ``start``, with steps counted from there."""
        later = [(s - start, v) for s, v in zip(self.steps, self.values, strict=True) if s > start]
        return Curve(self.entry, tuple(s for s, _ in later), tuple(v for _, v in later))

    def at(self, step: int) -> Estimate | None:
        """Return the estimate at the last checkpoint that is not beyond ``step``."""
        inside = [v for s, v in zip(self.steps, self.values, strict=True) if s <= step]
        return inside[-1] if inside else None


def per_entry(data: pd.DataFrame) -> Iterator[tuple[Entry, pd.DataFrame]]:
    """Yield the rows of each entry."""
    for (policy, llm), rows in data.groupby(["policy", "llm"], sort=False, observed=True):
        yield Entry(str(policy), str(llm)), rows


def curve(entry: Entry, rows: pd.DataFrame) -> Curve:
    """Return the estimates over seeds at every step of ``rows``."""
    groups = [(int(str(step)), g["value"].to_numpy()) for step, g in rows.groupby("step")]
    steps = tuple(step for step, _ in groups)
    return Curve(entry, steps, tuple(estimate(values) for _, values in groups))


def eval_curves(run: Run, metric: str) -> dict[Entry, Curve]:
    """Return the greedy evaluation of ``metric`` at the training scenario, per entry."""
    return {entry: curve(entry, rows) for entry, rows in per_entry(run.rows(metric))}


def train_curves(run: Run) -> dict[Entry, Curve]:
    """Return the reward met while learning, a moving average of ten per seed, per entry.

    Entries that learned from fewer decisions have none.
    """
    data = run.rows("reward", split="train")
    smooth = ((entry, _smooth(rows)) for entry, rows in per_entry(data))
    return {entry: curve(entry, rows) for entry, rows in smooth if len(rows)}


def learners(run: Run) -> set[Entry]:
    """Return the entries that learned, in this run or before; the rest are fixed rules."""
    here = {entry for entry, _ in per_entry(run.rows("reward", split="train"))}
    return here | set(shipped(run))


def shipped(run: Run) -> dict[Entry, list[int]]:
    """Return the entries that took weights shipped with the package, with the seeds they did in."""
    rows = run.rows("shipped_weights", split="train")
    return {entry: sorted(map(int, mine["seed"])) for entry, mine in per_entry(rows)}


def shipped_note(run: Run) -> str:
    """Return a sentence on whose weights are shipped with the package; empty where nobody's."""
    seeds = run.config.seed_count
    names = []
    for entry, mine in shipped(run).items():
        some = f" (seeds {', '.join(map(str, mine))})" if len(mine) < seeds else ""
        names.append(f"{entry.policy}{some}")
    if not names:
        return ""
    return (
        f"Weights shipped with the package: {', '.join(names)}. They were trained before this run, "
        "so there is no learning curve and no training time; --train trains them anew."
    )


def last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last step of each seed."""
    return rows[rows["step"] == rows.groupby("seed")["step"].transform("max")]


def headline(run: Run) -> str:
    """Return the metric that policies are ranked by: optimality, or reward without an oracle."""
    return "reward" if run.rows("optimality").empty else "optimality"


def cost(run: Run, entry: Entry, metric: str) -> Estimate | None:
    """Return what ``summary.csv`` says of ``metric``; None if it was not measured or is NaN."""
    data = run.summary
    mine = (data["policy"] == entry.policy) & (data["llm"] == entry.llm)
    rows = data[mine & (data["metric"] == metric) & data["mean"].notna()]
    if rows.empty:
        return None
    mean, low, high, n = rows.iloc[0][["mean", "ci_low", "ci_high", "n"]]
    return Estimate(float(mean), float(low), float(high), int(n))


def paper_note(run: Run, figure: str) -> str:
    """Return which figure of the paper to compare with, where the system is the paper's."""
    known = run.config.environment == "offloading"
    return f" Compare Fig. {figure} of Zhou et al." if known else ""


def _smooth(rows: pd.DataFrame) -> pd.DataFrame:
    ordered = rows.sort_values(["seed", "step"])
    means = ordered.groupby("seed")["value"].rolling(WINDOW).mean()
    smooth = ordered.assign(value=means.to_numpy())
    return _thin(smooth[smooth["value"].notna()])


def _thin(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep at most ``MOST_POINTS`` steps, evenly spread, the last one always."""
    steps = np.sort(rows["step"].unique())
    if len(steps) <= MOST_POINTS:
        return rows
    kept = steps[np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int)]
    return rows[rows["step"].isin(kept)]
