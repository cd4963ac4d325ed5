"""What a policy returns and what comes back: decisions and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.problem import Context

MadeBy = Literal["llm", "cache", "explore", "fallback", "rule"]
Situations = NDArray[Any] | Sequence[Context]


@dataclass(frozen=True)
class Decision:
    """One decision and how it was made.

    Attributes:
        id: Number that the outcome refers to, unique within the policy.
        action: Index of the chosen label.
        label: The chosen label.
        probabilities: Probability that the model (or rule) gives each label.
        made_by: Language model, its decision cache, exploration, a fallback, or a rule.
        context: The situation in words.
        propensity: Chance with which the policy, exploration included, takes this action here;
            what off-policy evaluation needs.
        observation: The observation, when the situation came as one.
        latency_s: Seconds spent on it (an equal share of the batch).
        prompt_tokens: Tokens of the prompt, 0 without a call.
        support: Least chance with which the policy takes any of the actions here, 0 where one is
            never taken; what a log must have for all actions to be judged by it.
    """

    id: int
    action: int
    label: str
    probabilities: tuple[float, ...]
    made_by: MadeBy
    context: Context
    propensity: float = 1.0
    observation: tuple[float, ...] | None = None
    latency_s: float = 0.0
    prompt_tokens: int = 0
    support: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one decision; it may arrive long after it.

    Attributes:
        decision_id: The decision's ``id``.
        context: The situation in words.
        action: Index of the label that was carried out.
        reward: The reward of the decision.
        feasible: Whether every constraint held.
        censored: Whether the episode ended before the outcome was known.
        observation: The observation, where there was one.
        metrics: Further measurements, named as in the metrics page.
    """

    decision_id: int
    context: Context
    action: int
    reward: float
    feasible: bool = True
    censored: bool = False
    observation: tuple[float, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a reward that cannot be compared."""
        if not np.isfinite(self.reward):
            raise ValueError(
                f"outcome of decision {self.decision_id} has reward {self.reward}; "
                "allowed: a finite number."
            )
