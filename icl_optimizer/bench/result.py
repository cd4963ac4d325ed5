"""What a benchmark returns, and how its two sides are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from icl_optimizer.rollout import progress

Side = Callable[[], float]


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


@dataclass(frozen=True)
class Measurement:
    """The figures of both sides, round by round.

    Attributes:
        ours: Ours, one per round.
        peer: The peer's, one per round, each taken right after ours.
    """

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    def result(
        self,
        name: str,
        unit: str,
        note: str,
        *,
        less_is_better: bool = False,
        details: Mapping[str, float] | None = None,
    ) -> BenchmarkResult:
        """Return the medians and their ratio."""
        ours, peer = median(self.ours), median(self.peer)
        ratios = [_ratio(a, b, less_is_better) for a, b in zip(self.ours, self.peer, strict=True)]
        return BenchmarkResult(
            name,
            ours,
            peer,
            unit,
            _ratio(ours, peer, less_is_better),
            f"icl-optimizer bench {name}",
            note,
            min(ratios),
            max(ratios),
            {**(details or {}), "rounds": float(len(ratios))},
        )


def alternate(name: str, ours: Side, peer: Side, rounds: int) -> Measurement:
    """Measure ours, peer, ours, peer, ... ``rounds`` times each.

    So what slows the machine down for a while slows both sides down.

    Args:
        name: Text of the progress bar.
        ours: Measures our side once and returns the figure.
        peer: The same for the peer.
        rounds: How often.
    """
    pairs: list[tuple[float, float]] = []
    with progress(name, rounds, shown=True) as advance:
        for _ in range(rounds):
            pairs.append((ours(), peer()))
            advance(1)
    return Measurement(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def _ratio(ours: float, peer: float, less_is_better: bool) -> float:
    return peer / ours if less_is_better else ours / peer


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
