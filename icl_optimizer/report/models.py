"""How the language models were asked, what they could do, and what was done when they failed."""

from __future__ import annotations

from icl_optimizer.report.loading import ModelRow, Run
from icl_optimizer.report.summary import Table

_DECIDERS = {
    "auto": "label scores; channel for new words",
    "score": "label scores",
    "channel": "noisy channel",
    "generate": "written answers",
    "predict": "predicted outcomes",
}
_ABILITIES = {
    "logprobs": "log-probabilities",
    "likelihoods": "likelihoods",
    "constrained": "answers held to a list",
    "embeddings": "embeddings",
}


def models_table(run: Run) -> Table | None:
    """Return a row for each policy and model that was asked; None where none was."""
    table = Table(
        ["policy", "model", "asked for", "the model gives", "answered", "invalid", "by experience"]
    )
    for policy, use in run.models.items():
        # those that failed before they could be asked for anything come first
        models = dict.fromkeys((*use.passed_on, *use.decider))
        for number, model in enumerate(models):
            decider = use.decider.get(model, "")
            # invalid answers and fallbacks are the policy's, told once
            whole = [f"{use.invalid:,}", f"{use.fallback:,}"] if number == 0 else ["", ""]
            table.rows.append(
                [
                    policy,
                    model,
                    _DECIDERS.get(decider, decider or "nothing: it failed at once"),
                    _abilities(use, model),
                    f"{use.answered_by.get(model, 0):,}",
                    *whole,
                ]
            )
    return table if table.rows else None


def failures(run: Run) -> list[str]:
    """Return a sentence for each policy whose models failed, and for each unit that was stopped."""
    told = [_told(policy, use) for policy, use in run.models.items() if use.failures]
    told += [
        f"{policy}: for {unnamed:,} of {use.asked:,} queries the answer named no label; experience "
        "decided in its place."
        for policy, use in run.models.items()
        if (unnamed := use.fallback - sum(use.failures.values())) > 0
    ]
    told += [
        _passed_on(policy, use, model)
        for policy, use in run.models.items()
        for model in use.passed_on
        if any(count and name != model for name, count in use.answered_by.items())
    ]
    return told + [
        f"{policy}, seed {seed}, was stopped after the evaluation at {step:,} interactions; the "
        "tables below leave it out, the curves hold what it had measured. Repeat the command with "
        "--resume to finish it."
        for policy, seed, step in run.stopped
    ]


def _told(policy: str, use: ModelRow) -> str:
    return (
        f"{policy}: for {sum(use.failures.values()):,} of {use.asked:,} queries no model answered "
        f"({_kinds(use.failures)}); experience decided in its place."
    )


def _passed_on(policy: str, use: ModelRow, model: str) -> str:
    kinds = use.passed_on[model]
    return (
        f"{policy}: {model} failed to answer {sum(kinds.values()):,} queries ({_kinds(kinds)}); "
        "the next model of the chain was asked."
    )


def _kinds(failures: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(failures.items()))


def _abilities(use: ModelRow, model: str) -> str:
    found = use.capabilities.get(model)
    if found is None:
        return "not known"
    texts = [text for key, text in _ABILITIES.items() if found.get(key)]
    if found.get("top_logprobs"):
        texts[0] += f" ({found['top_logprobs']} listed)"
    if found.get("context_size"):
        texts.append(f"context of {found['context_size']:,} tokens")
    return ", ".join(texts) or "text alone"
