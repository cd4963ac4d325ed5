"""What a report shows of a policy: its prompt, experience, and decisions beside the oracle's."""

from __future__ import annotations

from typing import Any

from icl_optimizer.agent import ICLAgent
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.policy import Policy

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
                }
            )
        observations, *_ = held.env.step([d.action for d in batch])
    return {"prompt": policy.prompt(first), "pool": _pool(policy), "decisions": decisions}


def _pool(policy: ICLAgent | ForecastAgent) -> list[dict[str, Any]]:
    if isinstance(policy, ForecastAgent):
        return _foreseen(policy)
    return [
        {
            "words": dict(e.context),
            "decision": policy.problem.labels[e.action],
            "reward": round(e.reward, 3),
            "evaluation": "good" if e.good else "bad",
            "count": policy.pool.tried(e.context, e.action),
        }
        for e in policy.pool.examples()
    ]


def _foreseen(policy: ForecastAgent) -> list[dict[str, Any]]:
    """Return what was seen of each decision in each situation of its own."""
    problem, rows = policy.problem, []
    for action, shared, own in sorted(policy.table.cells()):
        tally = policy.table.tally(action, shared, own)
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
