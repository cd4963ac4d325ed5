"""Plain sentences about an evaluation: who would be better, how sure, or that nobody can tell."""

from __future__ import annotations

from icl_optimizer.off_policy.estimators import LEVEL, Value
from icl_optimizer.off_policy.evaluation import FEWEST_EFFECTIVE, Evaluation, PolicyValue

CARRIES_OVER = (
    "Here a decision changes what later ones meet (a queue), which no single-step estimate sees: "
    "these values are those of deciding otherwise once, in the situations that were logged. "
    "A policy that runs all the time makes other situations; run it beside the present one, or "
    "in a simulation, before you switch."
)


def verdicts(evaluation: Evaluation) -> list[str]:
    """Return the sentences, most important first."""
    support = evaluation.support
    told = [_against_log(one, evaluation.carries_over) for one in evaluation.policies]
    if evaluation.best_two is not None:
        told.append(_best(*evaluation.best_two))
    if support.used < support.records:
        told.append(
            f"{support.used} of {support.records} logged decisions count: "
            f"{support.without_support} gave some action no chance, of "
            f"{support.without_reward} it is not known what came of them."
        )
    return [*told, CARRIES_OVER] if evaluation.carries_over else told


def _against_log(one: PolicyValue, once: bool) -> str:
    if not one.known:
        return (
            f"The log cannot tell what {one.policy} would earn: the effective sample size is "
            f"{one.effective:.1f}, at least {FEWEST_EFFECTIVE:g} are needed."
        )
    gain = one.values["gain"]
    if gain.low > 0 or gain.high < 0:
        word = "more" if gain.low > 0 else "less"
        how_much = f"{abs(gain.mean):.3g} {word}"
        who = (
            f"A single decision by {one.policy} would earn {how_much}"
            if once
            else f"{one.policy} would earn {how_much} per decision"
        )
        return f"{who} than what decided here ({_interval(gain)}; {LEVEL:.0%} sure)."
    return (
        f"The log cannot tell {one.policy} from what decided here: the difference per decision is "
        f"{gain.mean:+.3g} ({_interval(gain)})."
    )


def _best(first: str, second: str, ahead: Value) -> str:
    if ahead.low > 0:
        return (
            f"Of the policies asked about, {first} is best, {ahead.mean:.3g} ahead of {second} "
            f"({_interval(ahead)}; {LEVEL:.0%} sure)."
        )
    return (
        f"{first} looks best, but the log cannot tell it from {second}: "
        f"{ahead.mean:+.3g} ({_interval(ahead)})."
    )


def _interval(value: Value) -> str:
    return f"{value.low:+.3g} to {value.high:+.3g}"
