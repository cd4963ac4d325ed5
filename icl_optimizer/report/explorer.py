"""The decisions that a reader may look at one by one."""

from __future__ import annotations

from typing import Any

from icl_optimizer.report.loading import Run


def explorer(run: Run) -> list[dict[str, Any]]:
    """Return for each policy its sample decisions, with the prompt and the examples of each."""
    return [
        {
            "name": policy,
            "decisions": [
                {
                    "context": row.context,
                    "probabilities": row.probabilities,
                    "decision": row.decision,
                    "oracle": row.oracle_decision,
                    "made_by": row.made_by,
                    "prompt": row.prompt,
                    "examples": [example.model_dump() for example in row.examples],
                }
                for row in told.decisions
            ],
        }
        for policy, told in run.explanations.items()
        if told.decisions
    ]
