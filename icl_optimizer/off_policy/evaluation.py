"""From a log and policies to values, or to why the log cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.off_policy.estimators import (
    Logged,
    Target,
    Value,
    doubly_robust,
    estimate,
    ratio,
)
from icl_optimizer.off_policy.records import DecisionRecord
from icl_optimizer.off_policy.reward_model import expected_rewards, features_of
from icl_optimizer.off_policy.targets import chances_of
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem

BLOCK = 20
"""Decisions in a row that make a cluster where a log names no episodes."""
FEWEST_CLUSTERS = 5
FEWEST_EFFECTIVE = 30.0
"""Effective sample size below which an interval means nothing."""


@dataclass(frozen=True)
class Support:
    """How much of a log can be used.

    Attributes:
        records: Decisions in it.
        without_support: Of these, where some action had no chance.
        without_reward: Of the others, where it is not known what came of it.
        clusters: Clusters of those that can be used.
    """

    records: int
    without_support: int
    without_reward: int
    clusters: int

    @property
    def used(self) -> int:
        """Records that every policy can be judged by."""
        return self.records - self.without_support - self.without_reward


@dataclass(frozen=True)
class PolicyValue:
    """What a log tells about one policy, per decision.

    Attributes:
        policy: Its name.
        values: Estimates ``ips``, ``snips``, ``dr`` and ``gain`` (``dr`` less the log's own mean);
            empty where the log cannot tell.
        effective: Effective sample size.
        agreement: Share of the used records in which the policy might have done what was done.
        largest_weight: Largest weight of a record; 1 over its propensity at most.
    """

    policy: str
    values: Mapping[str, Value]
    effective: float
    agreement: float
    largest_weight: float

    @property
    def known(self) -> bool:
        """Whether the log can tell."""
        return bool(self.values)


@dataclass(frozen=True)
class Evaluation:
    """What a log tells about policies.

    Attributes:
        support: How much of it can be used.
        logged: What its own decisions earned, on the records that are used.
        policies: What it tells about the others, in the order in which they were given.
        best_two: Names of the two policies of most value, and how much the first is better.
        carries_over: Whether decisions change what later ones meet, so that these are values of
            single decisions in the situations that were logged.
    """

    support: Support
    logged: Value
    policies: tuple[PolicyValue, ...]
    best_two: tuple[str, str, Value] | None
    carries_over: bool


def evaluate(
    records: Sequence[DecisionRecord],
    problem: Problem,
    policies: Mapping[str, Policy],
    *,
    carries_over: bool = True,
    seed: int = 0,
) -> Evaluation:
    """Return what ``policies`` would have earned per decision, by what a log tells.

    Args:
        records: The log.
        problem: What was decided about.
        policies: By the name to show; they must not have learned from this very log.
        carries_over: Whether decisions change what later ones meet.
        seed: Of the bootstrap.

    Raises:
        ConfigurationError: The log can tell about none of them.
    """
    used, support = usable(records)
    logged = _logged(used, problem)
    draws = logged.resamples(seed)
    targets = {
        name: Target.of(logged, chances_of(policy, used, problem))
        for name, policy in policies.items()
    }
    found = tuple(_value(name, logged, target, draws) for name, target in targets.items())
    if not any(one.known for one in found):
        sizes = ", ".join(f"{one.policy} {one.effective:.1f}" for one in found)
        raise ConfigurationError(
            f"the log tells about none of these policies (effective sample sizes: {sizes}); "
            f"allowed: at least {FEWEST_EFFECTIVE:g}. Log more decisions, or explore more."
        )
    own = ratio(logged, logged.rewards, np.ones(len(logged)), draws)
    return Evaluation(support, own, found, _best_two(logged, targets, found, draws), carries_over)


def usable(records: Sequence[DecisionRecord]) -> tuple[list[DecisionRecord], Support]:
    """Return the records that every policy can be judged by, and how many others there are.

    Raises:
        ConfigurationError: There are none, or too few clusters of them.
    """
    supported = [one for one in records if one.support > 0]
    if not supported:
        raise ConfigurationError(
            f"in none of the {len(records)} logged decisions did every action have a chance, so "
            "they say nothing about other policies; allowed: a log of a policy that explores "
            "(record with --epsilon 0.1 or --explore, or a router that may explore)."
        )
    used = [one for one in supported if one.reward is not None]
    clusters = len(set(_clusters(used).tolist()))
    if clusters < FEWEST_CLUSTERS:
        raise ConfigurationError(
            f"the log has {len(used)} usable decisions in {clusters} episodes (or blocks of "
            f"{BLOCK} decisions where it names none); allowed: at least {FEWEST_CLUSTERS}, since "
            "intervals come from how these differ."
        )
    missing = len(records) - len(supported)
    return used, Support(len(records), missing, len(supported) - len(used), clusters)


def _clusters(records: Sequence[DecisionRecord]) -> NDArray[np.int64]:
    """Return the number of each record's cluster ``(n,)``, from 0 and without gaps."""
    names = [
        ("block", i // BLOCK) if one.episode is None else ("episode", one.episode)
        for i, one in enumerate(records)
    ]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _logged(records: Sequence[DecisionRecord], problem: Problem) -> Logged:
    actions = np.array([one.action_index(problem) for one in records], dtype=np.int64)
    rewards = np.array([one.reward for one in records], dtype=np.float64)
    clusters = _clusters(records)
    expected = expected_rewards(
        features_of(records, problem), actions, rewards, clusters, problem.count
    )
    propensities = np.array([one.propensity for one in records])
    return Logged(actions, rewards, propensities, clusters, expected)


def _value(name: str, logged: Logged, target: Target, draws: NDArray[np.float64]) -> PolicyValue:
    effective = target.effective
    values = estimate(logged, target, draws) if effective >= FEWEST_EFFECTIVE else {}
    agreement = float((target.weights > 0).mean())
    return PolicyValue(name, values, effective, agreement, float(target.weights.max()))


def _best_two(
    logged: Logged,
    targets: Mapping[str, Target],
    found: Sequence[PolicyValue],
    draws: NDArray[np.float64],
) -> tuple[str, str, Value] | None:
    known = sorted((one for one in found if one.known), key=lambda one: -one.values["dr"].mean)
    if len(known) < 2:
        return None
    first, second = known[0].policy, known[1].policy
    ahead = doubly_robust(logged, targets[first]) - doubly_robust(logged, targets[second])
    return first, second, ratio(logged, ahead, np.ones(len(logged)), draws)
