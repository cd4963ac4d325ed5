"""What was seen of each decision in each context, summed up in means, counts and words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.experience import Example, Tally
from icl_optimizer.problem import Context
from icl_optimizer.selection import Keywords, restrict

LEVELS: dict[int, tuple[str, ...]] = {
    1: ("fair",),
    2: ("poor", "good"),
    3: ("poor", "fair", "good"),
    4: ("bad", "poor", "fair", "good"),
    5: ("bad", "poor", "fair", "good", "excellent"),
}
"""Words for that many levels, the lowest first."""


@dataclass(frozen=True)
class Cell:
    """What was seen of one decision in one context.

    Attributes:
        action: Index of the decision.
        count: How often it was tried.
        mean: Its mean reward.
        advantage: Its mean reward above the mean over the decisions tried in the context.
        level: The advantage in a word, see :func:`summaries`.
        bonus: Confidence bonus: how much better the decision may still turn out, in units of
            reward.
    """

    action: int
    count: float
    mean: float
    advantage: float
    level: str
    bonus: float


@dataclass(frozen=True)
class Summary(Example):
    """An example that knows all decisions tried in its context; the best one is its action."""

    cells: tuple[Cell, ...] = ()


def summaries(
    tallies: Mapping[Context, Mapping[int, Tally]], keywords: Keywords, levels: int = 2
) -> list[Summary]:
    """Return one summary per combination of words under ``keywords``.

    Only contexts in which at least two decisions were tried, where there are any: what nothing
    was held against would look good. The advantages of all cells are divided into ``levels``
    levels at their natural breaks, so that those of one level are as alike as can be (Fisher 1958,
    Jenks). The bonus is that of UCB1, ``sqrt(2 ln N / n)`` times the standard deviation of the
    cells' mean rewards, where the decision was tried ``n`` times of ``N`` in this context.

    Args:
        tallies: Count and mean reward per context and decision.
        keywords: The others leave the contexts, and tallies that then read the same are merged.
        levels: Number of levels, 2 to 5; fewer where there are fewer different advantages.
    """
    merged = _merge(tallies, keywords)
    merged = {c: cells for c, cells in merged.items() if len(cells) > 1} or merged
    means = np.array([t.mean for cells in merged.values() for t in cells.values()])
    edges = natural_breaks(
        np.array([a for cells in merged.values() for a in _advantages(cells).values()]), levels
    )
    spread = float(means.std()) if means.size else 0.0
    return [_summary(context, cells, edges, spread) for context, cells in merged.items()]


def cells_of(examples: Sequence[Example]) -> Iterator[tuple[Summary, Cell]]:
    """Yield every cell of the summaries among ``examples``."""
    for example in examples:
        if isinstance(example, Summary):
            yield from ((example, cell) for cell in example.cells)


def level_values(examples: Sequence[Example]) -> dict[str, float]:
    """Return what each level is worth: its mean advantage from 0 (worst) to 1 (best), in tenths.

    Tenths, so that one more outcome changes neither these nor the answers that follow from them.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for _, cell in cells_of(examples):
        groups[cell.level].append(cell.advantage)
    means = {level: float(np.mean(advantages)) for level, advantages in groups.items()}
    if not means:
        return {}
    low, high = min(means.values()), max(means.values())
    ordered = sorted(means, key=means.__getitem__)
    return {level: round((means[level] - low) / ((high - low) or 1.0), 1) for level in ordered}


def natural_breaks(values: NDArray[np.float64], groups: int) -> list[float]:
    """Return thresholds that divide ``values`` into ``groups`` groups of least squared spread.

    Args:
        values: Shape ``(n,)``.
        groups: Number of groups; fewer where there are fewer different values.

    Returns:
        Increasing thresholds, one fewer than groups; a value equal to one is above it.
    """
    points, counts = np.unique(np.round(values, 9), return_counts=True)
    n, groups = len(points), min(groups, len(points))
    if groups < 2:
        return []
    cost = _spreads(points, counts)
    # best[j]: least spread of the first j points in the groups so far
    best, starts = cost[0], []
    for _ in range(groups - 1):
        options = np.full((n + 1, n + 1), np.inf)
        for end in range(1, n + 1):
            options[:end, end] = best[:end] + cost[:end, end]
        starts.append(options.argmin(axis=0))
        best = options.min(axis=0)
    edges, end = [], n
    for start in reversed(starts):
        end = int(start[end])
        edges.append(float((points[end - 1] + points[end]) / 2))
    return edges[::-1]


def _spreads(points: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the squared spread of points i to j - 1 at ``[i, j]``, infinite where empty."""
    totals = [np.concatenate([[0.0], np.cumsum(counts * points**p)]) for p in range(3)]
    number, first, second = (t[None, :] - t[:, None] for t in totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = second - first**2 / number
    return np.where(number > 0, np.maximum(spread, 0.0), np.inf)


def _merge(
    tallies: Mapping[Context, Mapping[int, Tally]], keywords: Keywords
) -> dict[Context, dict[int, Tally]]:
    """Return the tallies of contexts that read the same under ``keywords``, taken together."""
    merged: dict[Context, dict[int, Tally]] = {}
    for context, actions in tallies.items():
        place = merged.setdefault(restrict(context, keywords), {})
        for action, tally in actions.items():
            old = place.get(action, Tally())
            count = old.count + tally.count
            mean = (old.count * old.mean + tally.count * tally.mean) / count
            place[action] = Tally(count, mean)
    return merged


def _advantages(tallies: Mapping[int, Tally]) -> dict[int, float]:
    """Return each decision's mean reward above that of those tried in the same context."""
    level = float(np.mean([t.mean for t in tallies.values()]))
    return {action: tally.mean - level for action, tally in sorted(tallies.items())}


def _summary(
    context: Context, tallies: Mapping[int, Tally], edges: Sequence[float], spread: float
) -> Summary:
    best = max(tallies, key=lambda a: tallies[a].mean)
    total = sum(t.count for t in tallies.values())
    words = LEVELS[len(edges) + 1]
    cells = tuple(
        Cell(
            action,
            tallies[action].count,
            tallies[action].mean,
            advantage,
            words[int(np.searchsorted(edges, advantage, side="right"))],
            spread * float(np.sqrt(2 * np.log(max(total, 1.0)) / tallies[action].count)),
        )
        for action, advantage in _advantages(tallies).items()
    )
    return Summary(context, best, tallies[best].mean, visits=round(total), cells=cells)
