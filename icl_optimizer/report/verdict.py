"""Which policy to trust, in a plain sentence that follows the numbers wherever they point."""

from __future__ import annotations

from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.report.formatting import metric_value, number
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import cost, headline
from icl_optimizer.report.summary import Standing, standings


def verdict(run: Run) -> str:
    """Return which policy is best at the shared budget, how surely, and what it costs.

    The oracle is the bound and takes no part. A baseline that wins is called that, and intervals
    that overlap are called a tie.
    """
    metric, n = headline(run), run.config.interactions
    field = [s for s in standings(run) if s.entry.policy != "oracle" and s.shared is not None]
    field.sort(key=lambda s: -_mean(s.shared))
    if not field:
        return f"No policy was evaluated within {n:,} interactions, so there is no verdict."
    best, rest = field[0], field[1:]
    tied = [s for s in rest if not _apart(best.shared, s.shared)]
    subject = _who(best, any(s.entry.is_icl for s in field))
    lead = (
        f"After {n:,} interactions {subject} {'is highest' if tied else 'is best'}, with {metric}"
    )
    parts = [f"{lead} {_level(metric, best.shared)}", _against(metric, best, rest, tied)]
    sentence = f"{', '.join(p for p in parts if p)}; {_price(run, best)}."
    return " ".join(filter(None, [sentence, _later(metric, best, field)]))


def _who(best: Standing, with_icl: bool) -> str:
    return f"{best.name}, a baseline," if with_icl and not best.entry.is_icl else best.name


def _against(metric: str, best: Standing, rest: list[Standing], tied: list[Standing]) -> str:
    if not rest:
        return ""
    if tied and best.shared is not None and best.shared.n < 2:
        return "but one seed gives no interval, so the order is not certain"
    if tied:
        names = _names(tied)
        text = f"but its interval overlaps with that of {names}: this run does not separate them"
    else:
        text = f"ahead of {rest[0].name} with {_level(metric, rest[0].shared)}"
    return f"{text}{_best_icl(metric, best, rest)}"


def _best_icl(metric: str, best: Standing, rest: list[Standing]) -> str:
    """Return where in-context learning stands when a baseline leads."""
    behind = next((s for s in rest if s.entry.is_icl), None)
    named = behind is rest[0] and _apart(best.shared, rest[0].shared)
    if best.entry.is_icl or behind is None or named:
        return ""
    return f" (the best in-context learner, {behind.name}, has {_level(metric, behind.shared)})"


def _later(metric: str, best: Standing, field: list[Standing]) -> str:
    """Return who ends higher with a budget of its own; the sentence above is silent on that."""
    top = max(field, key=lambda s: s.final.mean)
    if top is best or top.budget <= best.budget or not _apart(top.final, best.final):
        return ""
    return (
        f"With its own budget of {top.budget:,} interactions, {top.name} ends higher, at "
        f"{_level(metric, top.final)}."
    )


def _price(run: Run, best: Standing) -> str:
    """Return what the winner costs, as far as it was measured."""
    parts = []
    calls, tokens = (cost(run, best.entry, m) for m in ("llm_calls", "prompt_tokens"))
    if calls is not None:
        parts.append(f"{number(round(calls.mean))} LLM calls")
    if tokens is not None:
        parts.append(f"{number(round(tokens.mean))} prompt tokens")
    train = cost(run, best.entry, "train_s")
    if train is not None and best.learns:
        parts.append(f"{number(train.mean)} s of learning")
    latency = cost(run, best.entry, "decision_ms_p50")
    if latency is not None:
        parts.append(f"{number(latency.mean)} ms per decision (median)")
    return f"it costs {_listed(parts)}" if parts else "its costs were not measured"


def _level(metric: str, value: Estimate | None) -> str:
    assert value is not None, "the field holds measured policies"
    mean = metric_value(metric, value.mean)
    if value.n < 2:
        return f"{mean} (one seed, no interval)"
    low, high = metric_value(metric, value.low), metric_value(metric, value.high)
    return f"{mean} (95 % interval {low} to {high})"


def _apart(a: Estimate | None, b: Estimate | None) -> bool:
    """Return whether two intervals do not touch; a single seed has none and proves nothing."""
    if a is None or b is None or min(a.n, b.n) < 2:
        return False
    return a.low > b.high or b.low > a.high


def _mean(value: Estimate | None) -> float:
    return float("-inf") if value is None else value.mean


def _names(found: list[Standing]) -> str:
    return _listed([s.name for s in found])


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
