"""Reading the folder of a sweep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report.loading import read_json, read_results
from icl_optimizer.report.palette import Entry
from icl_optimizer.report.summary import COSTS

METRIC = "optimality"
"""What points have in common: a reward of one says nothing beside that of another."""
NOTHING: NDArray[np.float64] = np.empty(0)


class PointConfig(BaseModel):
    """One comparison of the sweep."""

    point: str
    environment: str
    scenario: str
    llm: str = ""
    policies: list[str]
    seeds: int
    interactions: int


class SweepConfig(BaseModel):
    """``config.json`` of a sweep."""

    title: str
    sweep: dict[str, Any]
    points: list[PointConfig] = Field(min_length=1)
    command: str
    versions: dict[str, str]


@dataclass(frozen=True)
class SweepRun:
    """A sweep in memory.

    Attributes:
        folder: Where it lies.
        config: What was compared.
        strata: Names of the points, one for those that differ by the language model alone.
        scores: Optimality of the seeds after the shared interactions, by entry and stratum.
        costs: Of each entry, the mean over points of what a run costs.
        unfinished: Names of the points that have no result yet.
    """

    folder: Path
    config: SweepConfig
    strata: list[str]
    scores: dict[Entry, list[NDArray[np.float64]]]
    costs: dict[Entry, dict[str, Estimate]]
    unfinished: list[str]


def is_sweep(folder: str | Path) -> bool:
    """Return whether ``folder`` holds a sweep rather than one comparison."""
    path = Path(folder) / "config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "sweep" in told


def load_sweep(folder: str | Path) -> SweepRun:
    """Return the sweep in ``folder``.

    Raises:
        ConfigurationError: It is not whole, or nothing has been measured yet.
    """
    path = Path(folder)
    config = read_json(path / "config.json", SweepConfig)
    rows = read_results(
        path,
        columns=["point", "policy", "llm", "seed", "step", "value"],
        split="eval",
        metric=METRIC,
    )
    if rows.empty:
        raise ConfigurationError(
            f"'{path}' has no {METRIC} yet; allowed: a sweep of which one unit has finished."
        )
    rows = rows[rows["value"].notna()]
    if rows.empty:
        raise ConfigurationError(
            f"'{path}' has no {METRIC}: at every point the oracle earns what random choice does; "
            "allowed: settings with which decisions matter at one point or more."
        )
    names = _strata(config.points)
    done = set(map(str, rows["point"].unique()))
    strata = list(dict.fromkeys(names[p.point] for p in config.points if p.point in done))
    return SweepRun(
        path,
        config,
        strata,
        _scores(rows, config, names, strata),
        _costs(path),
        [p.point for p in config.points if p.point not in done],
    )


def _strata(points: Sequence[PointConfig]) -> dict[str, str]:
    """Return the stratum of each point: points that differ by the model alone are one."""
    where = {p.point: (p.environment, p.scenario, p.interactions) for p in points}
    asked = Counter((where[p.point], p.llm) for p in points)
    if max(asked.values()) > 1:
        return {p.point: p.point for p in points}
    several = len({p.environment for p in points}) > 1
    budgets = len({p.interactions for p in points}) > 1
    names = {}
    for p in points:
        parts = [p.environment] if several else []
        parts += [] if p.scenario == "default" and parts else [p.scenario]
        names[p.point] = ", ".join([*parts, *([f"{p.interactions:,}"] if budgets else [])])
    return names


def _scores(
    rows: pd.DataFrame, config: SweepConfig, names: Mapping[str, str], strata: Sequence[str]
) -> dict[Entry, list[NDArray[np.float64]]]:
    """Return the last value of every seed within the shared interactions of its point."""
    budget = rows["point"].map({p.point: p.interactions for p in config.points}).astype("int64")
    rows = rows[rows["step"] <= budget]
    keys = ["point", "policy", "llm", "seed"]
    last = rows.groupby(keys, sort=False, observed=True)["step"].transform("max") == rows["step"]
    # a seed that was stopped before the others' last step has no value there
    whole = rows.groupby(keys[:-1], sort=False, observed=True)["step"].transform("max")
    last &= whole == rows["step"]
    found: dict[Entry, dict[str, NDArray[np.float64]]] = {}
    groups = rows[last].groupby(["policy", "llm", "point"], sort=False, observed=True)
    for (policy, llm, point), mine in groups:
        # a policy that asks no model is in the points of all models, with the same runs
        entry = Entry(str(policy), str(llm))
        found.setdefault(entry, {}).setdefault(names[str(point)], mine["value"].to_numpy())
    return {e: [values.get(name, NOTHING) for name in strata] for e, values in found.items()}


def _costs(folder: Path) -> dict[Entry, dict[str, Estimate]]:
    path = folder / "summary.csv"
    if not path.is_file():
        raise ConfigurationError(
            f"'{folder}' is not the folder of a sweep: {path.name} is missing."
        )
    data = pd.read_csv(path, keep_default_na=False, na_values={"mean": [""]})
    missing = [c for c in ("point", "policy", "llm", "metric", "mean") if c not in data.columns]
    if missing:
        raise ConfigurationError(f"{path} has no column {', '.join(map(repr, missing))}.")
    costs: dict[Entry, dict[str, Estimate]] = {}
    wanted = data[data["metric"].isin(COSTS) & data["mean"].notna()]
    for (policy, llm, metric), rows in wanted.groupby(["policy", "llm", "metric"], sort=False):
        found = costs.setdefault(Entry(str(policy), str(llm)), {})
        found[str(metric)] = estimate(rows["mean"].to_numpy(dtype=np.float64))
    return costs
