"""Writing down what a policy decides in an environment, with the chance of every decision."""

from __future__ import annotations

from collections.abc import Callable

from icl_optimizer.decision import Decision, Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.off_policy.records import DecisionRecord
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout


def record(
    policy: Policy,
    env: BatchedEnv,
    interactions: int,
    *,
    explore: bool = True,
    learn: bool = False,
    seed: int = 0,
    on_decision: Callable[[int], None] | None = None,
) -> list[DecisionRecord]:
    """Return what ``policy`` decides in ``env``: whole episodes, at least so many decisions.

    Args:
        policy: Who decides.
        env: One environment, not several, so that the log is in the order of the decisions.
        interactions: Least number of decisions.
        explore: Whether the policy may explore; without, most logs tell nothing about others.
        learn: Whether it learns from what comes of its decisions, as it goes.
        seed: Of the environment.
        on_decision: Called with 1 after every decision.

    Raises:
        ConfigurationError: There are several sub-environments.
    """
    if env.num_envs != 1:
        raise ConfigurationError(f"num_envs is {env.num_envs}; allowed: 1, to record a log.")
    bound = getattr(policy, "bind", None)
    if bound is not None:
        bound(env)
    rollout = Rollout(policy, env, explore=explore)
    rollout.reset(seed=seed)
    decided: list[tuple[int, Decision]] = []
    came: dict[int, Outcome] = {}
    episode = 0
    while len(decided) < interactions or not rollout.dones[0]:
        decisions, outcomes, _ = rollout.step()
        decided.append((episode, decisions[0]))
        came |= {outcome.decision_id: outcome for outcome in outcomes}
        if learn:
            policy.update(outcomes)
        episode += int(rollout.dones[0])
        if on_decision is not None:
            on_decision(1)
    return [_record(number, decision, came.get(decision.id)) for number, decision in decided]


def _record(episode: int, decision: Decision, outcome: Outcome | None) -> DecisionRecord:
    known = outcome is not None and not outcome.censored
    return DecisionRecord(
        observation=decision.observation,
        context=dict(decision.context),
        action=decision.label,
        propensity=decision.propensity,
        support=min(decision.support, decision.propensity),
        reward=outcome.reward if outcome is not None and known else None,
        feasible=outcome.feasible if outcome is not None and known else None,
        episode=episode,
        made_by=decision.made_by,
    )
