"""Logs: learning curves as CSV and TensorBoard, and outcomes as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem


def log_to(policy: Policy, folder: str | Path) -> None:
    """Log reward, epsilon, pool size and model calls of ``policy.learn`` into ``folder``.

    The writers are Stable-Baselines3's: ``progress.csv`` and TensorBoard events.

    Raises:
        MissingDependencyError: Stable-Baselines3 or TensorBoard is not installed.
    """
    try:
        from stable_baselines3.common.logger import configure
    except ImportError as error:
        raise MissingDependencyError(
            "logging to CSV and TensorBoard needs: pip install 'icl-optimizer[rl]'"
        ) from error
    policy.set_logger(configure(str(folder), ["csv", "tensorboard"]))


def write_outcomes(path: str | Path, problem: Problem, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes as JSON lines: ``context``, ``decision``, ``reward``, ``feasible``."""
    lines = [
        json.dumps(
            {
                "context": dict(o.context),
                "decision": problem.labels[o.action],
                "reward": o.reward,
                "feasible": o.feasible,
            }
        )
        for o in outcomes
    ]
    Path(path).write_text("\n".join(lines) + "\n")


def read_outcomes(path: str | Path, problem: Problem) -> list[Outcome]:
    """Return the outcomes of a log written by :func:`write_outcomes`.

    Raises:
        ConfigurationError: A line is malformed; the message holds its number.
    """
    outcomes = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            context = problem.context([row["context"][name] for name in problem.keywords])
            action = problem.action(row["decision"])
            outcomes.append(
                Outcome(number, context, action, float(row["reward"]), bool(row["feasible"]))
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{path}, line {number}: {error!r}.") from error
    return outcomes
