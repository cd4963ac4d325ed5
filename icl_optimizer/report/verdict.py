"""Which policy to trust, in a plain sentence that follows the numbers wherever they point."""

from __future__ import annotations

from collections.abc import Callable

from icl_optimizer.comparison.statistics import Estimate, chance_of_order, improvement
from icl_optimizer.report.formatting import metric_value, number, share
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import cost, headline
from icl_optimizer.report.palette import Entry
from icl_optimizer.report.reliability import Scores, shared_scores
from icl_optimizer.report.summary import Standing, standings

SURE, RARE = 40, 1_000_000
"""Once in how many: below the first, luck may be all there is; beyond the second, who counts."""


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
    sure = ""
    if rest:
        mine, next_one = (best.name, best.entry), (rest[0].name, rest[0].entry)
        sure = how_sure(mine, next_one, shared_scores(run), tied=rest[0] in tied)
    return " ".join(filter(None, [sentence, sure, _later(metric, best, field)]))


def how_sure(
    leader: tuple[str, Entry], next_one: tuple[str, Entry], scores: Scores, *, tied: bool = False
) -> str:
    """Return how often a run of the best policy beats one of the next; empty for single runs.

    Args:
        leader: Name and entry of the best.
        next_one: Those of the next.
        scores: Of both, by stratum.
        tied: Whether their intervals were said to overlap.
    """
    (name, best), (other, rival) = leader, next_one
    sizes = [sum(s.size for s in scores[e]) for e in (best, rival)]
    odds = improvement(scores[best], scores[rival])
    if min(sizes) < 2 or odds.n < 2:
        return ""
    if odds.mean == 1 and len(scores[best]) == 1:
        luck = round(1 / chance_of_order(sizes[0], sizes[1]))
        more = ", so more seeds are needed to be sure" if luck < SURE else ""
        often = f"once in {luck:,}" if luck < RARE else f"less than once in {RARE:,}"
        return (
            f"Every run of {name} beat every run of {other}, which luck alone does {often} with "
            f"{_seeds(sizes)}{more}."
        )
    level = f"{share(odds.mean)} (95 % interval {share(odds.low)} to {share(odds.high)})"
    told = f"a run of {name} beats one of {other} with probability {level}"
    if odds.low == odds.high == 0.5:
        return f"Their runs score the same, {name} and {other}."
    if odds.low > 0.5 and tied:
        return f"Still, {told}: {name} is the safer choice."
    if odds.low > 0.5:
        return f"Trust {name} over {other}: {told}."
    if odds.high < 0.5:
        return (
            f"But {told}: {name} is higher on the whole, {other} more often. Which to trust "
            "depends on which of these counts."
        )
    return f"Do not trust their order yet: {told}; more seeds would tell."


def _seeds(sizes: list[int]) -> str:
    return f"{sizes[0]} seeds each" if sizes[0] == sizes[1] else f"{sizes[0]} and {sizes[1]} seeds"


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
    return price(lambda metric: cost(run, best.entry, metric), learns=best.learns)


def price(cost_of: Callable[[str], Estimate | None], *, learns: bool) -> str:
    """Return what a policy costs, as far as it was measured.

    Args:
        cost_of: The mean cost by metric.
        learns: Whether its time of learning counts.
    """
    parts = []
    calls, tokens, dollars = map(cost_of, ("llm_calls", "prompt_tokens", "cost_usd"))
    if calls is not None:
        parts.append(f"{number(round(calls.mean))} LLM calls")
    if tokens is not None:
        parts.append(f"{number(round(tokens.mean))} prompt tokens")
    if dollars is not None and dollars.mean > 0:
        parts.append(f"{number(dollars.mean)} USD")
    train = cost_of("train_s")
    if train is not None and learns:
        parts.append(f"{number(train.mean)} s of learning")
    latency = cost_of("decision_ms_p50")
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
