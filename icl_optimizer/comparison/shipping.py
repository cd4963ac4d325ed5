"""Weights that come with the package: used by a comparison, and made by one command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.weights import (
    Case,
    Entry,
    find,
    learner_settings,
    misfit,
    probe,
    problem_identity,
    read_index,
    write_index,
)
from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy, unsuitable
from icl_optimizer.rollout import progress


def shipped_weights(
    config: ComparisonConfig, policy: str, seed: int, budget: int
) -> tuple[Entry, Path] | None:
    """Return the shipped weights that a unit of ``config`` uses instead of learning, if any."""
    if config.train or config.drift_at is not None or not get_policy_spec(policy).is_drl:
        return None
    return find(Case(config.environment, config.settings, policy, seed, budget))


def refuse_stale(entry: Entry, path: Path) -> None:
    """Raise where the environment or the policy is no longer what the weights were trained on.

    Raises:
        ConfigurationError: It is not; the message says what has changed.
    """
    changed = misfit(entry)
    if changed is not None:
        raise ConfigurationError(
            f"shipped weights '{path.name}' were trained on '{entry.environment}' with other "
            f"{changed}; allowed: --train, or new weights by: {entry.command}"
        )


def make_weights(
    environment: str,
    out: str | Path,
    *,
    policies: Iterable[str] | None = None,
    seeds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    interactions: int | None = None,
    progress_bar: bool = True,
) -> list[Path]:
    """Train deep-RL policies and write what deciding needs of them, in 32-bit floats.

    Files that are there already and still fit are kept, so that a killed run goes on.

    Args:
        environment: Name of the environment.
        out: Folder; the files and their index go into a folder of the environment's name in it.
        policies: Names; None for the deep-RL policies that a comparison runs by default.
        seeds: Repetitions, seeds 0 to ``seeds`` - 1; None for as many as a comparison has.
        settings: Parameters of the environment that differ from the defaults.
        interactions: Decisions to learn from; None for each policy's own budget.
        progress_bar: Whether to draw one.

    Returns:
        The files.

    Raises:
        ConfigurationError: A policy that is not deep RL, or another wrong name or value.
    """
    spec = get_spec(environment)
    given = dict(settings or {})
    spec.config(given)
    drl = [name for name in spec.policies if get_policy_spec(name).is_drl]
    usual = {n: _budget(n, environment, given) for n in (drl if policies is None else policies)}
    budgets = {name: interactions or own for name, own in usual.items()}
    if not budgets:
        raise ConfigurationError(
            f"no policies are given, and '{environment}' compares no deep RL by default; allowed: "
            "at least one deep-RL policy."
        )
    cases = [
        Case(environment, given, name, seed, budget)
        for seed in range(seeds or spec.seeds)
        for name, budget in budgets.items()
    ]
    command = _command(cases, interactions, Path(out))
    place = Path(out) / environment
    place.mkdir(parents=True, exist_ok=True)
    total = sum(case.interactions for case in cases)
    with progress(f"weights of {environment}", total, shown=progress_bar) as advance:
        return [place / _provide(case, place, command, advance).file for case in cases]


def _budget(policy: str, environment: str, settings: Mapping[str, Any]) -> int:
    spec = get_policy_spec(policy)
    if not spec.is_drl:
        raise ConfigurationError(f"policy '{policy}' has no weights; allowed: deep-RL policies.")
    if not spec.suits(environment):
        raise unsuitable(spec, environment)
    return spec.budget_in(environment, settings)


def _provide(case: Case, place: Path, command: str, advance: Callable[[int], None]) -> Entry:
    """Return the entry of a file that is there and fits, or train and write it."""
    found = find(case, place.parent)
    if found is not None and found[1].exists() and misfit(found[0]) is None:
        advance(case.interactions)
        return found[0]
    policy = _trained(case, advance)
    entry = Entry(
        file=case.file,
        environment=case.environment,
        settings=dict(case.settings),
        parameters=case.parameters,
        policy=case.policy,
        policy_settings=learner_settings(case.policy, case.environment),
        seed=case.seed,
        interactions=case.interactions,
        problem=problem_identity(policy.problem),
        probe=probe(case.environment, case.settings),
        version=version("icl-optimizer"),
        command=command,
    )
    policy.save(place / entry.file, actor_only=True)
    _enter(place, entry)
    return entry


def _trained(case: Case, advance: Callable[[int], None]) -> DrlPolicy:
    spec = get_policy_spec(case.policy)
    env = spec.training_env(case.environment, case.settings)
    policy = make_policy(case.policy, env.problem, env=env, seed=case.seed)
    assert isinstance(policy, DrlPolicy), "deep-RL policies are"
    done = 0

    def after_step(*_: dict[str, Any]) -> None:
        nonlocal done
        advance(policy.num_timesteps - done)
        done = policy.num_timesteps

    return policy.learn(case.interactions, callback=after_step)


def _enter(place: Path, entry: Entry) -> None:
    """Put ``entry`` into the index, in the place of what the same command made before."""
    entries = read_index(place)
    old = [e for e in entries if entry.replaces(e)]
    write_index(place, [*(e for e in entries if e not in old), entry])
    for other in old:
        if other.file != entry.file:
            (place / other.file).unlink(missing_ok=True)


def _command(cases: list[Case], interactions: int | None, out: Path) -> str:
    """Return the shell command that makes the weights of ``cases``."""
    parts = ["icl-optimizer", "weights", cases[0].environment, "--policies"]
    parts += dict.fromkeys(case.policy for case in cases)
    parts += ["--seeds", str(1 + max(case.seed for case in cases))]
    parts += [] if interactions is None else ["--drl-interactions", str(interactions)]
    for key, value in cases[0].settings.items():
        parts += ["--set", f"{key}={value}"]
    # where the folder lies on the machine that made it says nothing to others
    return shlex.join([*parts, "--out", out.name if out.is_absolute() else str(out)])
