"""Runs a sweep: many comparisons whose units share one pool of workers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.description import versions
from icl_optimizer.comparison.runner import (
    EngineName,
    check_engine,
    keep_finished,
    make_engine,
    refuse_several,
    validate,
)
from icl_optimizer.comparison.store import RunStore, left, read_description, write_json, write_text
from icl_optimizer.comparison.summary import SUMMARY_COLUMNS
from icl_optimizer.comparison.sweep_file import Point, Sweep, points_of, read_sweep
from icl_optimizer.comparison.tables import COLUMNS, POINT
from icl_optimizer.comparison.unit import UnitResult
from icl_optimizer.comparison.work import Work
from icl_optimizer.comparison.writing import TableWriter
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.guard import GuardOptions
from icl_optimizer.rollout import progress

Key = tuple[str, str, int]


def run_sweep(
    source: str | Path | Mapping[str, Any],
    folder: str | Path,
    *,
    resume: bool = False,
    jobs: int | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    progress_bar: bool = True,
    access: GuardOptions | None = None,
) -> Path:
    """Run every comparison of a sweep, each into a folder of its own below ``folder``.

    Args:
        source: A YAML or JSON file, or what it holds.
        folder: Where to; new, or holding the same sweep when ``resume``.
        resume: Continue, repeating nothing that was finished.
        jobs: Units at a time; None for one, and with Ray for as many as it has cores.
        engine: ``local`` for this machine, ``ray`` for a Ray cluster.
        ray_address: Of an existing cluster; None starts one on this machine.
        progress_bar: Whether to draw one.
        access: Retries, cache and budget of the language models.

    Returns:
        The folder, with the tables of all points together.

    Raises:
        ConfigurationError: Anything is wrong anywhere; nothing has been run by then.
        BudgetError: As are the following, see :func:`.runner.compare`.
        ModelError: No model answered.
        ReplayError: A request was not recorded.
        WorkerError: A unit's worker process was lost several times.
    """
    plan = read_sweep(source)
    points, access = points_of(plan), access or GuardOptions()
    check_engine(engine, jobs, ray_address)
    refuse_several([point.config for point in points], engine, jobs, None, access)
    for point in points:
        _validate(point)
    place = Path(folder)
    _prepare(place, plan, points, resume)
    stores = [RunStore(place / p.name, p.config, resume=resume) for p in points]
    pool = _Pool(stores, access)
    total = sum(work.budget for work in pool.works)
    with progress(plan.name or "sweep", total, shown=progress_bar) as advance:
        try:
            runs = make_engine(engine, jobs, ray_address, advance)
            keep_finished(runs, pool.works, pool.receive, advance)
        finally:
            # whatever ended the run, what was computed is in the tables
            write_tables(place, stores)
    return place


def write_tables(folder: Path, stores: Sequence[RunStore]) -> None:
    """Write the tables of every comparison, and those of all together with a column ``point``."""
    lines: list[tuple[Any, ...]] = []
    with TableWriter(folder / "results.csv", (POINT, *COLUMNS), parquet=True) as results:
        for store in stores:
            lines += [(store.folder.name, *line) for line in store.write_tables(results)]
    summary = pd.DataFrame(lines, columns=[POINT, *SUMMARY_COLUMNS])
    write_text(folder / "summary.csv", summary.to_csv(index=False))


class _Pool:
    """The units that are missing, each once, whichever comparisons it belongs to."""

    def __init__(self, stores: Sequence[RunStore], access: GuardOptions) -> None:
        owners: dict[Key, list[RunStore]] = {}
        works: dict[Key, Work] = {}
        # units that ask the same model follow each other, so that it stays loaded
        for store in sorted(stores, key=lambda s: s.config.llm):
            for seed in range(store.config.seeds):
                for policy in store.config.policies:
                    work = Work(store.config, policy, seed, access)
                    key = _key(work)
                    works.setdefault(key, work)
                    owners.setdefault(key, []).append(store)
        self._owners = owners
        self.works = [work for key, work in works.items() if not self._is_done(key, work)]

    def _is_done(self, key: Key, work: Work) -> bool:
        """Return whether one comparison has the unit; then the others get it from there."""
        owners = self._owners[key]
        having = next((s for s in owners if s.has(work.policy, work.seed)), None)
        if having is None:
            return False
        for store in owners:
            if not store.has(work.policy, work.seed):
                store.copy(having, work.policy, work.seed)
        return True

    def receive(self, work: Work, result: UnitResult, whole: bool) -> None:
        for store in self._owners[_key(work)]:
            store.receive(work, result, whole)


def _key(work: Work) -> Key:
    """Return what determines a unit's result; the language model only where it is asked."""
    others = {"policies", "seeds"} | (set() if work.needs_llm else {"llm"})
    return work.config.model_dump_json(exclude=others), work.policy, work.seed


def _validate(point: Point) -> None:
    if get_spec(point.config.environment).live:
        raise ConfigurationError(
            f"systems: '{point.name}' is live; allowed in a sweep: environments that simulate."
        )
    try:
        validate(point.config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{point.name}: {error}") from error


def _prepare(folder: Path, plan: Sweep, points: Sequence[Point], resume: bool) -> None:
    """Check the folder before any work starts, and write what it is to hold."""
    told = json.loads(plan.model_dump_json(exclude_unset=True))
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"'{folder}' is a file; allowed: a folder.")
    if folder.exists() and any(left(folder)):
        _refuse_others(folder, told, resume)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "config.json",
        {
            "title": plan.name or "sweep",
            "sweep": told,
            "points": [_described(point.name, point.config) for point in points],
            "command": shlex.join(["icl-optimizer", "sweep", "sweep.yaml", "--out", folder.name]),
            "versions": versions(),
        },
    )
    (folder / "sweep.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")


def _refuse_others(folder: Path, told: dict[str, Any], resume: bool) -> None:
    path = folder / "config.json"
    if not path.exists():
        raise ConfigurationError(
            f"folder '{folder}' is not empty and holds no sweep; "
            "allowed: a new folder, or one written by the same sweep."
        )
    if read_description(path).get("sweep") != told:
        raise ConfigurationError(
            f"folder '{folder}' holds something else; allowed: the same sweep, or another --out."
        )
    if not resume:
        raise ConfigurationError(
            f"folder '{folder}' holds this sweep already; "
            "add --resume to continue it, or choose another --out."
        )


def _described(name: str, config: ComparisonConfig) -> dict[str, Any]:
    return {
        POINT: name,
        "environment": config.environment,
        "scenario": config.scenario,
        "llm": config.llm,
        "policies": list(config.policies),
        "seeds": config.seeds,
        "interactions": config.interactions,
    }
