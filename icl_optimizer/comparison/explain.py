"""What a report shows of a policy: its prompt, experience, and decisions beside the oracle's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from icl_optimizer.agent import ICLAgent
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.experience import Example
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.outcomes import Words
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Context

SAMPLES = 30


def explain(policy: Policy, held: Held) -> dict[str, Any] | None:
    """Return the prompt, the pool and sample decisions of ``policy``; None without a pool."""
    if not isinstance(policy, ICLAgent | ForecastAgent):
        return None
    observations, _ = held.env.reset(seed=held.seed)
    decisions: list[dict[str, Any]] = []
    seen = set()
    first = observations[0]
    for _ in range(held.env.problem.horizon):
        best = held.env.action_values().argmax(axis=1)
        batch = policy.decide(observations)
        for decision, right in zip(batch, best, strict=True):
            if decision.context in seen or len(decisions) >= SAMPLES:
                continue
            seen.add(decision.context)
            labels = policy.problem.labels
            decisions.append(
                {
                    "context": dict(decision.context),
                    "probabilities": dict(zip(labels, decision.probabilities, strict=True)),
                    "decision": decision.label,
                    "made_by": decision.made_by,
                    "oracle_decision": labels[int(right)],
                    "prompt": policy.prompt(decision.context),
                    "examples": _shown(policy, decision.context),
                }
            )
        observations, *_ = held.env.step([d.action for d in batch])
    return {"prompt": policy.prompt(first), "pool": _pool(policy), "decisions": decisions}


def _pool(policy: ICLAgent | ForecastAgent) -> list[dict[str, Any]]:
    if isinstance(policy, ForecastAgent):
        return _foreseen(policy, sorted(policy.table.cells()))
    return [
        _example(policy, e, policy.pool.tried(e.context, e.action)) for e in policy.pool.examples()
    ]


def _shown(policy: ICLAgent | ForecastAgent, context: Context) -> list[dict[str, Any]]:
    """Return what the prompt for this situation shows of the experience."""
    if isinstance(policy, ForecastAgent):
        shared, own = policy.table.words(context)
        return _foreseen(policy, [(action, shared, words) for action, words in enumerate(own)])
    return [_example(policy, e, e.visits) for e in policy.shown(context)]


def _example(policy: ICLAgent, example: Example, count: float) -> dict[str, Any]:
    return {
        "words": dict(example.context),
        "decision": policy.problem.labels[example.action],
        "reward": round(example.reward, 3),
        "evaluation": "good" if example.good else "bad",
        "count": count,
    }


def _foreseen(
    policy: ForecastAgent, cells: Iterable[tuple[int, Words, Words]]
) -> list[dict[str, Any]]:
    """Return what was seen of each decision in each situation of its own."""
    problem, rows = policy.problem, []
    for action, shared, own in cells:
        tally = policy.table.tally(action, shared, own)
        if not tally.count:
            continue
        rows.append(
            {
                "words": {"Situation": ", ".join((*shared, *own))},
                "decision": problem.labels[action],
                "reward": round((tally.reward + tally.otherwise) / tally.count, 3),
                "evaluation": "good" if 2 * tally.succeeded >= tally.count else "bad",
                "count": tally.count,
            }
        )
    return rows
