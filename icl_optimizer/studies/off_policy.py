"""Off-policy estimates beside the truth: many logs, and what policies really earn in simulation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from icl_optimizer.environments.registry import make
from icl_optimizer.off_policy import EpsilonGreedy, Value, evaluate, record
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem
from icl_optimizer.studies.pieces import finish_pieces
from icl_optimizer.studies.tables import write_study

ESTIMATORS = ("ips", "snips", "dr")
LEARNED = 200
"""Decisions that a target that learns has learned from, elsewhere."""
ASIDE = 1_000_003
TRUTH = -1
"""In place of a log's seed: what the simulation says."""
TRUTH_SEED = 5_000_000
"""Seeds of evaluated policies, and of the episodes that tell the truth: no log has these."""


@dataclass(frozen=True)
class System:
    """Where logs come from, and who is judged by them.

    Attributes:
        environment: Its name.
        logger: Policy whose decisions are logged.
        epsilon: Chance of a random decision instead.
        targets: Policies that are judged.
    """

    environment: str
    logger: str
    epsilon: float
    targets: tuple[str, ...]


SYSTEMS = (
    System(
        "offloading", "always-local", 0.4, ("always-local", "always-offload", "random", "bandit")
    ),
    System(
        *("slo-scheduling", "shortest-queue", 0.4),
        (
            "random",
            "round-robin",
            "shortest-queue",
            "shortest-expected-completion",
            "score-in-time",
            "score-greedy",
        ),
    ),
)


def run_off_policy(
    out: Path,
    seeds: int = 60,
    *,
    decisions: int = 1000,
    episodes: int = 4000,
    progress_bar: bool = True,
) -> Path:
    """Judge policies by many logs, and hold the estimates against what the policies really earn.

    Args:
        out: Folder; what is finished is kept in ``off-policy`` in it.
        seeds: Logs of each system.
        decisions: Decisions of a log.
        episodes: Episodes that tell the truth about a policy.
        progress_bar: Whether to draw one.

    Returns:
        The path of the table.
    """
    pieces = {}
    for system in SYSTEMS:
        folder = out / "off-policy" / f"{system.environment}-{decisions}-{episodes}"
        pieces[folder / "truth.json"] = partial(_truth, system, episodes)
        for seed in range(seeds):
            pieces[folder / f"log-{seed}.json"] = partial(_judged, system, decisions, seed)
    finish_pieces("off-policy", pieces, progress_bar=progress_bar)
    values = pd.DataFrame(
        row for path in pieces for row in json.loads(path.read_text(encoding="utf-8"))
    )
    return write_study(out, "off-policy", values, table(values))


def true_value(policy: Policy, environment: str, episodes: int) -> tuple[float, float]:
    """Return the mean reward of a decision where ``policy`` makes all, and its standard error."""
    env = make(environment, episodes)
    rows, _ = env.reset(seed=TRUTH_SEED)
    total = np.zeros(episodes)
    for _ in range(env.problem.horizon):
        actions, _ = policy.predict(rows, deterministic=True)
        rows, rewards, *_ = env.step(actions)
        total += rewards
    means = total / env.problem.horizon
    return float(means.mean()), float(means.std() / np.sqrt(episodes))


def _targets(system: System, problem: Problem) -> dict[str, Policy]:
    """Return the policies to judge; those that learn have learned in episodes of their own."""
    made = {}
    for name in system.targets:
        spec = get_policy_spec(name)
        env = spec.training_env(system.environment, {}) if spec.learns else None
        made[name] = make_policy(name, problem, env=env, seed=ASIDE)
        if spec.learns:
            made[name].learn(LEARNED)
    return made


def _truth(system: System, episodes: int) -> str:
    """Return as JSON rows what the targets and the logger really earn."""
    problem = make(system.environment, 1).problem
    policies: dict[str, Policy] = {"(log)": _logger(system, problem, ASIDE)}
    policies |= _targets(system, problem)
    rows = []
    for name, policy in policies.items():
        value, error = true_value(policy, system.environment, episodes)
        about = {"environment": system.environment, "policy": name, "seed": TRUTH}
        rows += [
            {**about, "metric": "true", "value": value},
            {**about, "metric": "true_error", "value": error},
        ]
    return json.dumps(rows)


def _logger(system: System, problem: Problem, seed: int) -> Policy:
    return EpsilonGreedy(make_policy(system.logger, problem, seed=seed), system.epsilon, seed=seed)


def _judged(system: System, decisions: int, seed: int) -> str:
    """Return as JSON rows what one log tells about the targets."""
    env = make(system.environment, 1)
    log = record(_logger(system, env.problem, seed), env, decisions, seed=seed)
    found = evaluate(log, env.problem, _targets(system, env.problem))
    rows = []
    for one in found.policies:
        measured = {"effective": one.effective}
        for name, value in one.values.items():
            ends = {f"{name}_low": value.low, f"{name}_high": value.high}
            measured |= {name: value.mean, **ends}
        about = {"environment": system.environment, "policy": one.policy, "seed": seed}
        rows += [{**about, "metric": metric, "value": value} for metric, value in measured.items()]
    return json.dumps(rows)


def table(values: pd.DataFrame) -> list[list[str]]:
    """Return truth, estimates and how many intervals hold the truth, one row per policy."""
    header = ["system", "policy", "true value"]
    header += [name.upper() for name in ESTIMATORS]
    header += ["true value held by IPS", "SNIPS", "DR", "wrong verdicts", "ESS"]
    rows = []
    for system in SYSTEMS:
        mine = values[values["environment"] == system.environment]
        wide = mine.pivot(index=["policy", "seed"], columns="metric", values="value")
        for policy in ("(log)", *system.targets):
            rows.append([system.environment, policy, *_cells(wide, policy)])
    return [header, *rows]


def _cells(wide: pd.DataFrame, policy: str) -> list[str]:
    """Return the cells of one policy; the log's own has only a true value."""
    truth, error = _told(wide, policy, "true"), _told(wide, policy, "true_error")
    digits = 2 if wide["true"].abs().max() > 1 else 3
    shown = [f"{truth:.{digits}f} ± {2 * error:.{digits}f}"]
    if policy == "(log)":
        return [*shown, *[""] * 8]
    logs = _of(wide, policy).drop(index=TRUTH).dropna(subset=list(ESTIMATORS))
    for name in ESTIMATORS:
        shown.append(f"{logs[name].mean():.{digits}f}, sd {logs[name].std():.{digits}f}")
    shown += [f"{held(logs, name, truth):.0%}" for name in ESTIMATORS]
    ahead = truth - _told(wide, "(log)", "true")
    return [*shown, f"{wrong(logs, ahead):.0%}", f"{logs['effective'].mean():.0f}"]


def _told(wide: pd.DataFrame, policy: str, metric: str) -> float:
    return float(_of(wide, policy).loc[[TRUTH], metric].to_numpy(dtype=float)[0])


def _of(wide: pd.DataFrame, policy: str) -> pd.DataFrame:
    return wide[wide.index.get_level_values("policy") == policy].droplevel("policy")


def held(logs: pd.DataFrame, name: str, truth: float) -> float:
    """Return the share of logs whose interval holds the true value."""
    found = [
        Value(*values).holds(truth)
        for values in logs[[name, f"{name}_low", f"{name}_high"]].to_numpy()
    ]
    return float(np.mean(found))


def wrong(logs: pd.DataFrame, ahead: float) -> float:
    """Return the share of logs that are sure of the wrong one of policy and logger.

    Args:
        logs: Estimates of the ``gain``, one row per log.
        ahead: How much more than the logger the policy truly earns.
    """
    says = np.where(logs["gain_low"] > 0, 1, np.where(logs["gain_high"] < 0, -1, 0))
    return float((says * np.sign(ahead) < 0).mean())
