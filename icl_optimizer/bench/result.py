"""What a benchmark returns, and how its sides are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from icl_optimizer.rollout import progress

Side = Callable[[int], float]


@dataclass(frozen=True)
class BenchmarkResult:
    """One ratio against a peer, both sides measured in the same run.

    Attributes:
        name: Name of the benchmark.
        ours: Our figure, in ``unit``.
        peer: The peer's.
        unit: What both are; it may be one where less is better.
        ratio: How many times better ours is: above 1 is better, whatever the unit.
        command: What repeats the measurement.
        note: What was compared and where the two sides differ.
        lowest_ratio: The lowest ratio of a single round.
        highest_ratio: The highest one.
        details: Further figures of the same run, by name.
    """

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    command: str
    note: str
    lowest_ratio: float
    highest_ratio: float
    details: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the name, figures with four significant digits."""
        data = asdict(self)
        del data["name"]
        for key in ("ours", "peer", "ratio", "lowest_ratio", "highest_ratio"):
            data[key] = _rounded(data[key])
        return data | {"details": {k: _rounded(v) for k, v in self.details.items()}}


def summarise(
    name: str,
    unit: str,
    note: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    less_is_better: bool = False,
    details: Mapping[str, float] | None = None,
) -> BenchmarkResult:
    """Return the medians of both sides and their ratio.

    Args:
        name: Name of the benchmark.
        unit: What the figures are.
        note: What was compared.
        ours: Our figures, one per round.
        peer: The peer's, each measured next to ours.
        less_is_better: Whether the figures are costs, such as seconds.
        details: Further figures.
    """
    ratios = [_ratio(a, b, less_is_better) for a, b in zip(ours, peer, strict=True)]
    return BenchmarkResult(
        name,
        median(ours),
        median(peer),
        unit,
        _ratio(median(ours), median(peer), less_is_better),
        f"icl-optimizer bench {name}",
        note,
        min(ratios),
        max(ratios),
        {**(details or {}), "rounds": float(len(ratios))},
    )


def alternate(name: str, rounds: int, *sides: Side) -> list[tuple[float, ...]]:
    """Measure every side once, then again, ``rounds`` times: A B A B ...

    So what slows the machine down for a while slows all sides down.

    Args:
        name: Text of the progress bar.
        rounds: How often.
        sides: Each measures its side once, given the number of the round.

    Returns:
        The figures of each side, one per round.
    """
    figures: list[list[float]] = [[] for _ in sides]
    with progress(name, rounds * len(sides), shown=True) as advance:
        for number in range(rounds):
            for side, values in zip(sides, figures, strict=True):
                values.append(side(number))
                advance(1)
    return [tuple(values) for values in figures]


def _ratio(ours: float, peer: float, less_is_better: bool) -> float:
    return peer / ours if less_is_better else ours / peer


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
