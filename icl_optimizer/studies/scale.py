"""How much sooner two workers finish a sweep than one, and that its results stay the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

from icl_optimizer.errors import WorkerError
from icl_optimizer.studies.tables import write_study

SWEEP = {
    "name": "scale",
    "systems": [{"environment": "offloading", "grid": {"users": [2, 5]}}, "slo-scheduling"],
    "policies": ["bandit", "knn", "dqn"],
    "interactions": 500,
    "drl_interactions": 4000,
    "eval_tasks": 400,
    "seeds": 12,
    "sweeps": False,
    "train": True,
}
"""Bound by the processor: learners, and no language model."""

WAYS = (("local", 1), ("local", 2), ("ray", 2))
_CALL = "from icl_optimizer.cli import main; main()"


def run_scale(out: Path, seeds: int = 2, *, size: dict[str, object] | None = None) -> Path:
    """Run the same sweep with one worker, with two, and with two on Ray, and hold them together.

    Whole commands are timed, the start of Python and of the workers included.

    Args:
        out: Folder for the table; the sweeps go into ``scale`` in it, and are made anew.
        seeds: Repetitions; the fastest counts.
        size: Fields of the sweep file that are different.

    Returns:
        The path of the table.

    Raises:
        WorkerError: A sweep ended with an error.
    """
    place = out / "scale"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, **(size or {})}), encoding="utf-8")
    rows = []
    for repetition in range(seeds):
        for engine, jobs in WAYS:
            folder = place / f"{engine}-{jobs}-{repetition}"
            seconds = _timed(file, folder, engine, jobs)
            rows.append((engine, jobs, repetition, seconds, _units(folder)))
    values = pd.DataFrame(rows, columns=["engine", "jobs", "repetition", "seconds", "units"])
    first = (place / "local-1-0" / "results.csv").read_bytes()
    values["same"] = [
        (place / f"{engine}-{jobs}-{repetition}" / "results.csv").read_bytes() == first
        for engine, jobs, repetition, *_ in rows
    ]
    return write_study(out, "scale", values, table(values))


def table(values: pd.DataFrame) -> list[list[str]]:
    """Return seconds and how much sooner than one worker, one row per engine."""
    best = values.groupby(["engine", "jobs"], sort=False)
    alone = float(best["seconds"].min().iloc[0])
    rows = [
        [
            str(engine),
            str(jobs),
            str(group["units"].iloc[0]),
            f"{group['seconds'].min():.0f}",
            f"{alone / group['seconds'].min():.2f}",
            "yes" if group["same"].all() else "no",
        ]
        for (engine, jobs), group in best
    ]
    header = ["engine", "workers", "units", "seconds", "times as fast", "same `results.csv`"]
    return [header, *rows]


def _timed(file: Path, folder: Path, engine: str, jobs: int) -> float:
    arguments = ["sweep", str(file), "--out", str(folder), "--quiet"]
    arguments += ["--engine", engine, "--jobs", str(jobs)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CALL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        raise WorkerError(f"the sweep with {engine} and {jobs} ended early: {done.stderr}")
    return time.perf_counter() - started


def _units(folder: Path) -> int:
    return len(list(folder.glob("*/units/*.json")))
