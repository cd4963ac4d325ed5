"""Made-up studies of many runs, to measure what their report takes."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.comparison.description import versions
from icl_optimizer.comparison.summary import SUMMARY_COLUMNS, Summary
from icl_optimizer.comparison.tables import COLUMNS, POINT
from icl_optimizer.comparison.writing import TableWriter

INTERACTIONS = 100
CHECKPOINTS = (10, 20, 30, 40, 60, 80, 100)
KNOWN = ("icl", "icl-latest", "icl-greedy", "dqn", "ppo", "bandit", "knn")
REFERENCES = ("random", "oracle")
METRICS = ("optimality", "reward", "success_rate", "accuracy", "balanced_accuracy", "delay_s")
Rows = list[tuple[Any, ...]]


def policy_names(count: int) -> list[str]:
    """Return ``count`` names, the known ones first, oracle and random choice last."""
    made_up = [f"policy-{i}" for i in range(max(0, count - len(KNOWN) - len(REFERENCES)))]
    return [*[*KNOWN, *made_up][: count - len(REFERENCES)], *REFERENCES]


def write_comparison(folder: Path, policies: int, seeds: int, *, parquet: bool = False) -> Path:
    """Write the folder of one comparison of ``policies`` with ``seeds`` each."""
    folder.mkdir(parents=True, exist_ok=True)
    names, summary = policy_names(policies), Summary()
    with TableWriter(folder / "results.csv", COLUMNS, parquet=parquet) as results:
        for rows in _runs(names, seeds, "default"):
            results.write(rows)
            summary.add(rows)
    _write_summary(folder, SUMMARY_COLUMNS, summary.rows())
    told = _described("offloading", "default", names, seeds)
    more = {"settings": {}, "budgets": dict.fromkeys(names, INTERACTIONS)}
    _write_config(folder, told | more)
    return folder


def write_sweep(
    folder: Path, points: int, policies: int, seeds: int, *, parquet: bool = False
) -> Path:
    """Write the folder of a sweep over so many points."""
    folder.mkdir(parents=True, exist_ok=True)
    names, lines = policy_names(policies), []
    scenarios = [f"users={5 + i}" for i in range(points)]
    with TableWriter(folder / "results.csv", (POINT, *COLUMNS), parquet=parquet) as results:
        for scenario in scenarios:
            summary = Summary()
            for rows in _runs(names, seeds, scenario):
                results.write([(f"offloading-{scenario}", *row) for row in rows])
                summary.add(rows)
            lines += [(f"offloading-{scenario}", *line) for line in summary.rows()]
    _write_summary(folder, (POINT, *SUMMARY_COLUMNS), lines)
    told = [
        {POINT: f"offloading-{s}", **_described("offloading", s, names, seeds)} for s in scenarios
    ]
    _write_config(folder, {"sweep": {"systems": ["offloading"]}, "points": told})
    return folder


def _runs(names: list[str], seeds: int, scenario: str) -> Iterator[Rows]:
    """Yield the rows of each run; a policy's level follows from its place in the list."""
    rng = np.random.default_rng(sum(map(ord, scenario)))
    for place, name in enumerate(names):
        end = {"oracle": 1.0, "random": 0.0}.get(name, 0.98 - 0.07 * place)
        for seed in range(seeds):
            yield list(_run(rng, ("offloading", scenario, name, ""), seed, end, name))


def _run(
    rng: np.random.Generator, keys: tuple[str, ...], seed: int, end: float, name: str
) -> Iterator[tuple[Any, ...]]:
    learns = name not in REFERENCES
    shift = rng.normal(0.0, 0.05) * learns
    for step in CHECKPOINTS:
        level = end - learns * end * math.exp(-step / 25) + shift
        for metric in METRICS:
            yield (*keys, seed, "eval", step, metric, level)
    if learns:
        rewards: NDArray[np.float64] = rng.normal(end, 1.0, INTERACTIONS)
        for step, reward in enumerate(rewards.tolist(), start=1):
            yield (*keys, seed, "train", step, "reward", reward)
    yield (*keys, seed, "train", INTERACTIONS, "interactions", float(INTERACTIONS * learns))


def _described(environment: str, scenario: str, names: list[str], seeds: int) -> dict[str, Any]:
    return {
        "environment": environment,
        "scenario": scenario,
        "llm": "",
        "policies": names,
        "seeds": seeds,
        "interactions": INTERACTIONS,
    }


def _write_summary(folder: Path, columns: tuple[str, ...], lines: Rows) -> None:
    with TableWriter(folder / "summary.csv", columns) as table:
        table.write(lines)


def _write_config(folder: Path, told: dict[str, Any]) -> None:
    shared = {"title": "made-up runs", "command": "none: made up", "versions": versions()}
    (folder / "config.json").write_text(json.dumps(shared | told, indent=1), encoding="utf-8")


def main() -> None:
    """Write a study of as many runs as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policies", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--points", type=int, default=1, help="more than one: a sweep")
    parser.add_argument("--parquet", action="store_true")
    given = parser.parse_args()
    if given.points > 1:
        write_sweep(given.folder, given.points, given.policies, given.seeds, parquet=given.parquet)
    else:
        write_comparison(given.folder, given.policies, given.seeds, parquet=given.parquet)


if __name__ == "__main__":
    main()
