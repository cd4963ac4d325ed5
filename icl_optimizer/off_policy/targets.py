"""What a policy would do in logged situations: its chance of each action."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, Situations
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.judging import JudgingPolicy
from icl_optimizer.off_policy.records import DecisionRecord
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Context, Problem

AGREES = 1e-6


def situations_of(records: Sequence[DecisionRecord], problem: Problem) -> Situations:
    """Return the situations: observations ``(n, columns)``, or contexts where one has none."""
    rows = [one.observation for one in records]
    if all(row is not None for row in rows):
        return problem.check(np.array(rows, dtype=np.float64).reshape(len(rows), -1))
    return [
        problem.check_context(Context(one.context))
        if one.context is not None
        else problem.describe(np.array(one.observation, dtype=np.float64))
        for one in records
    ]


def chances_of(
    policy: Policy, records: Sequence[DecisionRecord], problem: Problem
) -> NDArray[np.float64]:
    """Return the chance of each action in every logged situation, ``(n, actions)``.

    The policy does not explore. One that judges each situation on its own is asked about all at
    once; others one by one in the order of the log, since some (round robin) count.

    Raises:
        ConfigurationError: The policy does not tell its chances, or needs observations that the
            log does not hold.
    """
    situations = situations_of(records, problem)
    if isinstance(policy, JudgingPolicy):
        decisions = policy.decide(situations)
    else:
        decisions = [policy.decide(situations[i : i + 1])[0] for i in range(len(records))]
    return np.array([chances_of_decision(one, policy.name) for one in decisions])


def chances_of_decision(decision: Decision, policy: str) -> NDArray[np.float64]:
    """Return the chance of each action where a decision was made without exploring.

    Raises:
        ConfigurationError: The decision was random, and its probabilities are not its chances.
    """
    chances = np.array(decision.probabilities)
    if decision.propensity > 1 - AGREES:
        return np.asarray(np.eye(len(chances))[decision.action])
    if abs(chances[decision.action] - decision.propensity) > AGREES:
        raise ConfigurationError(
            f"policy '{policy}' took '{decision.label}' with chance {decision.propensity:g} and "
            f"calls its probability {chances[decision.action]:g}; allowed: a policy that is "
            "certain when it does not explore, or whose probabilities are its chances."
        )
    return np.asarray(chances / chances.sum())
