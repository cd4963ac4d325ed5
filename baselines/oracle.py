"""The exhaustive oracle: tries every decision on the environment's own dynamics."""

from __future__ import annotations

from typing import Self

import numpy as np

from icl_optimizer.decision import Decision, Situations
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policy import Policy, observations_of, one_hot
from icl_optimizer.problem import Problem


class OraclePolicy(Policy):
    """Takes the decision with the highest value, by exhaustive search.

    It asks :meth:`BatchedEnv.action_values`, which knows what no policy can: the random numbers
    of what is to come. Where these values are immediate rewards it is myopic: if a decision
    changes what later ones earn (a queue), it is no bound, and a policy that looks ahead may beat
    it. Where they look ahead to the end (layer-splitting) nothing beats it. It needs the very
    environment that its decisions are carried out in; :meth:`bind` changes it.

    Args:
        problem: Labels and columns.
        env: The environment its decisions are for.
        seed: Not used; ties go to the first label.
    """

    name = "oracle"

    def __init__(self, problem: Problem, *, env: BatchedEnv | None = None, seed: int = 0) -> None:
        """Bind to ``env``, if given."""
        super().__init__(problem, env=env, seed=seed)

    def bind(self, env: BatchedEnv) -> Self:
        """Decide for ``env`` from now on."""
        self.env = env
        return self

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        """Decide for the present observations of the bound environment, in their order.

        Raises:
            ConfigurationError: No environment, or these are not its present observations.
        """
        env, rows = self.require_env(), observations_of(self.problem, situations)
        # a mix-up of environments would otherwise only show as a bad oracle
        if not np.array_equal(rows, env._observations()):
            raise ConfigurationError(
                f"the oracle was asked about {len(rows)} observations that are not the present "
                "ones of its environment; allowed: those, after bind(env)."
            )
        actions = env.action_values().argmax(axis=1)
        count = len(self.problem.labels)
        return [
            self.rule_decision(context, int(action), one_hot(int(action), count), row)
            for context, action, row in zip(self.contexts(rows), actions, rows, strict=True)
        ]
