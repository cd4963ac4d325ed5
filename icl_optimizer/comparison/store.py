"""The folder of a comparison: units as they finish, then the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.description import command, versions
from icl_optimizer.comparison.model_use import ModelUse, together
from icl_optimizer.comparison.summary import SUMMARY_COLUMNS, Summary
from icl_optimizer.comparison.tables import COLUMNS
from icl_optimizer.comparison.unit import UnitResult, unit_budget
from icl_optimizer.comparison.work import Work
from icl_optimizer.comparison.writing import TableWriter
from icl_optimizer.errors import ConfigurationError

_in_order = itemgetter(*COLUMNS)
Measured = dict[str, Any]
"""A unit as its file has it, see :meth:`.UnitResult.to_json`."""


PARTIAL = ".partial"
"""Suffix of a file that is being written."""


class RunStore:
    """Keeps finished units on disk, so that a killed run resumes.

    Args:
        folder: The run's folder.
        config: The comparison.
        resume: Whether a folder of the same comparison may be continued.
    """

    def __init__(self, folder: Path, config: ComparisonConfig, *, resume: bool) -> None:
        """Check the folder before any work starts, and write ``config.json``."""
        self.folder = folder
        self.config = config
        self._check(resume)
        folder.mkdir(parents=True, exist_ok=True)
        # first what a resumed run looks for, whenever this one may be killed
        write_json(self.folder / "config.json", self._description())
        (folder / "units").mkdir(exist_ok=True)

    def has(self, policy: str, seed: int) -> bool:
        """Return whether the unit is on disk."""
        return self._unit_path(policy, seed).exists()

    def keep(self, policy: str, seed: int, result: UnitResult) -> None:
        """Write a finished unit; a kill in mid-write leaves no half file."""
        write_json(self._unit_path(policy, seed), result.to_json())
        self._partial_path(policy, seed).unlink(missing_ok=True)

    def keep_partial(self, policy: str, seed: int, result: UnitResult) -> None:
        """Write what a unit measured before it was stopped; it counts until it is run again."""
        if result.rows:
            write_json(self._partial_path(policy, seed), result.to_json())

    def copy(self, other: RunStore, policy: str, seed: int) -> None:
        """Take a finished unit over from another comparison."""
        write_json(
            self._unit_path(policy, seed), json.loads(other._unit_path(policy, seed).read_text())
        )
        self._partial_path(policy, seed).unlink(missing_ok=True)

    def receive(self, work: Work, result: UnitResult, whole: bool) -> None:
        """Write a unit as it ended."""
        keep = self.keep if whole else self.keep_partial
        keep(work.policy, work.seed, result)

    def write_tables(self, further: TableWriter | None = None) -> list[tuple[Any, ...]]:
        """Write the tables and ``explain.json``; memory holds one unit at a time.

        Args:
            further: Gets all rows of ``results.csv``, too, with the folder's name before each.

        Returns:
            The rows of ``summary.csv``.
        """
        summary, clocks, told = Summary(), Summary(), _Told()
        with ExitStack() as stack:
            results, timings = (
                stack.enter_context(TableWriter(self.folder / f"{name}.csv", parquet=parquet))
                for name, parquet in (("results", True), ("timings", False))
            )
            for policy, unit in self._measured(self._unit_path):
                rows, times = _rows(unit, "rows"), _rows(unit, "timings")
                results.write(rows)
                timings.write(times)
                summary.add(rows)
                clocks.add(times)
                told.add(policy, unit)
                self._pass_on(rows, further)
            for _, unit in self._measured(self._unfinished_path):
                rows = _rows(unit, "rows")
                results.write(rows)
                told.stopped.append([*_who(unit), max(row["step"] for row in unit["rows"])])
                self._pass_on(rows, further)
        # seconds come after what the decisions alone determine
        lines = [*summary.rows(), *clocks.rows()]
        frame = pd.DataFrame(lines, columns=list(SUMMARY_COLUMNS))
        write_text(self.folder / "summary.csv", frame.to_csv(index=False))
        write_json(self.folder / "explain.json", told.to_json())
        return lines

    def _pass_on(self, rows: Sequence[Sequence[Any]], further: TableWriter | None) -> None:
        if further is not None:
            further.write([(self.folder.name, *row) for row in rows])

    def _measured(self, path: Callable[[str, int], Path]) -> Iterator[tuple[str, Measured]]:
        """Yield the units that are on disk, in the order of policies and seeds."""
        for policy in self.config.policies:
            for seed in range(self.config.seeds):
                file = path(policy, seed)
                if file.exists():
                    yield policy, _read_unit(file)

    def _partial_path(self, policy: str, seed: int) -> Path:
        return self.folder / "units" / f"{policy}-{seed}.stopped.json"

    def _unfinished_path(self, policy: str, seed: int) -> Path:
        """Return where a stopped unit is; nowhere, once it has been finished."""
        path = self._partial_path(policy, seed)
        if self.has(policy, seed):
            # a kill between the two writes left both
            path.unlink(missing_ok=True)
        return path

    def _unit_path(self, policy: str, seed: int) -> Path:
        return self.folder / "units" / f"{policy}-{seed}.json"

    def _check(self, resume: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"'{self.folder}' is a file; allowed: a folder.")
        if not self.folder.exists() or not any(left(self.folder)):
            return
        path = self.folder / "config.json"
        if not path.exists():
            raise ConfigurationError(
                f"folder '{self.folder}' is not empty and holds no comparison; "
                "allowed: a new folder, or one written by a comparison."
            )
        known = read_description(path).get("config")
        if known != json.loads(self.config.model_dump_json()):
            raise ConfigurationError(
                f"folder '{self.folder}' holds a different comparison; "
                "allowed: the same options, or another --out."
            )
        if not resume:
            raise ConfigurationError(
                f"folder '{self.folder}' holds this comparison already; "
                "add --resume to continue it, or choose another --out."
            )

    def _description(self) -> dict[str, Any]:
        config = json.loads(self.config.model_dump_json())
        budgets = {p: unit_budget(self.config, p) for p in self.config.policies}
        largest = max(budgets.values())
        return {
            "title": f"{self.config.environment}: {self.config.scenario}",
            "config": config,
            "environment": self.config.environment,
            "scenario": self.config.scenario,
            "settings": config["settings"],
            "drift_at": self.config.drift_at,
            "policies": list(self.config.policies),
            "llm": self.config.llm,
            "seeds": self.config.seeds,
            "interactions": self.config.interactions,
            "budgets": budgets,
            "checkpoints": self.config.checkpoints(largest),
            "command": command(self.config),
            "versions": versions(),
        }


class _Told:
    """What goes into ``explain.json``, from units that come one after the other."""

    def __init__(self) -> None:
        self.explained: dict[str, Any] = {}
        self.uses: dict[str, ModelUse] = {}
        self.stopped: list[list[Any]] = []

    def add(self, policy: str, unit: Measured) -> None:
        if unit["explanation"] is not None:
            self.explained[policy] = unit["explanation"]
        if unit.get("model_use") is not None:
            use = ModelUse.from_json(unit["model_use"])
            self.uses[policy] = together([self.uses.get(policy, ModelUse()), use])

    def to_json(self) -> dict[str, Any]:
        return {
            "policies": self.explained,
            "models": {policy: use.to_json() for policy, use in self.uses.items() if use.asked},
            "stopped": self.stopped,
        }


def read_description(path: Path) -> dict[str, Any]:
    """Return what a run's ``config.json`` holds.

    Raises:
        ConfigurationError: It is damaged.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        text = f"'{path}' is damaged: {error}; allowed: another --out."
        raise ConfigurationError(text) from error
    if not isinstance(told, dict):
        raise ConfigurationError(f"'{path}' is damaged: no mapping; allowed: another --out.")
    return told


def write_json(path: Path, data: Any) -> None:
    """Write ``data``; a kill in mid-write leaves no half file."""
    write_text(path, json.dumps(data, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write ``text``; a kill in mid-write leaves no half file."""
    partial = path.with_suffix(PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _read_unit(file: Path) -> Measured:
    try:
        unit = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        unit = None
    if not isinstance(unit, dict) or not unit.keys() >= {"rows", "timings", "explanation"}:
        raise ConfigurationError(
            f"'{file}' is damaged; delete it, and --resume runs that unit again."
        )
    return unit


def left(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, without what a kill in mid-write has left."""
    return (path for path in folder.iterdir() if path.suffix != PARTIAL)


def _rows(unit: Measured, kind: str) -> list[tuple[Any, ...]]:
    return [_in_order(row) for row in unit[kind]]


def _who(unit: Measured) -> tuple[str, int]:
    first = unit["rows"][0]
    return first["policy"], first["seed"]
