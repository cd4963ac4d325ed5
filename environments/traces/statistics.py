"""What a trace looks like, from one pass over its parts with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.traces.trace import Trace
from icl_optimizer.errors import ConfigurationError

EXACT_TOKENS = 1 << 20
"""Token numbers below it are counted one by one, greater ones in steps of ``COARSE``."""
COARSE = 1 << 12
GAP_EDGES_S: NDArray[np.float64] = np.logspace(-7, 9, 16 * 25 + 1)
"""Gaps whose survival is counted, seconds: 25 for each power of ten."""


@dataclass(frozen=True, eq=False)
class TokenDistribution:
    """Numbers of tokens of the requests of a trace.

    Attributes:
        mean: Tokens per request.
        std: Standard deviation (ddof 0).
        p50: Median; quantiles are the smallest number that at least this share does not exceed,
            exact below 2**20 and rounded down by at most 0.4 % above.
        p95: 95 % quantile.
        p99: 99 % quantile.
        max: Greatest number.
        values: The numbers that occur, rising, shape (k,).
        counts: How often each does, shape (k,).
    """

    mean: float
    std: float
    p50: int
    p95: int
    p99: int
    max: int
    values: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TraceStatistics:
    """Summary of a trace.

    Attributes:
        name: Of the trace.
        start: Time of the first request.
        requests: How many.
        duration_s: From the first request to the last, seconds.
        mean_rate: Requests per second of the duration; NaN if that is 0.
        peak_per_second: Most requests in a second counted from the start.
        peak_per_minute: Most requests in a minute counted from the start.
        gap_cv: Standard deviation (ddof 0) over mean of the gaps between requests; 1 if arrivals
            are Poisson; NaN without a positive gap.
        dispersion_1s: Variance (ddof 0) over mean of the number of requests in a second, over all
            whole seconds; 1 if arrivals are Poisson; NaN for fewer than two of them.
        dispersion_60s: The same for minutes.
        longest_gap_s: Longest gap, seconds; 0 for one request.
        context: Tokens of the prompts.
        generated: Tokens of the answers.
        total: Tokens of both.
        minutes: Minutes from the start that have requests, rising, shape (m,).
        minute_counts: Requests in each of them, shape (m,).
        gap_survival: Share of the gaps that are at least ``GAP_EDGES_S``, same shape.
    """

    name: str
    start: pd.Timestamp
    requests: int
    duration_s: float
    mean_rate: float
    peak_per_second: int
    peak_per_minute: int
    gap_cv: float
    dispersion_1s: float
    dispersion_60s: float
    longest_gap_s: float
    context: TokenDistribution
    generated: TokenDistribution
    total: TokenDistribution
    minutes: NDArray[np.int64]
    minute_counts: NDArray[np.int64]
    gap_survival: NDArray[np.float64]

    @property
    def per_minute(self) -> NDArray[np.int64]:
        """Requests in every minute from the start to the last request, none left out."""
        series = np.zeros(self.minutes[-1] + 1, dtype=np.int64)
        series[self.minutes] = self.minute_counts
        return series


def summarise(parts: Iterable[Trace]) -> TraceStatistics:
    """Return the statistics of consecutive parts of one trace.

    Args:
        parts: With a common ``start``, as :func:`iter_trace` yields them; ``[trace]`` for one that
            is in memory.

    Raises:
        ConfigurationError: There is no request, or a part begins before the one before it ended.
    """
    first: Trace | None = None
    arrivals, tokens = _Arrivals(), (_Tokens(), _Tokens(), _Tokens())
    for part in parts:
        if len(part) == 0:
            continue
        first = part if first is None else first
        if part.start != first.start:
            raise ConfigurationError(
                f"a part of trace '{part.name}' counts from {part.start}; allowed: {first.start}, "
                "as the first part."
            )
        arrivals.add(part.arrival_s)
        context, generated, total = tokens
        context.add(part.context_tokens.astype(np.int64))
        generated.add(part.generated_tokens.astype(np.int64))
        total.add(part.total_tokens)
    if first is None:
        raise ConfigurationError("the trace holds no request; allowed: one and more.")
    return arrivals.statistics(first, *(counter.distribution() for counter in tokens))


class _Arrivals:
    """Gaps and counts per window, added up part by part."""

    def __init__(self) -> None:
        self.first_s = self.last_s = 0.0
        self.requests = 0
        self.squares = self.longest = 0.0
        self.at_least = np.zeros(len(GAP_EDGES_S), dtype=np.int64)
        self.seconds, self.minutes = _Windows(1.0), _Minutes()

    def add(self, arrival_s: NDArray[np.float64]) -> None:
        if self.requests == 0:
            self.first_s = self.last_s = float(arrival_s[0])
            gaps = np.diff(arrival_s)
        else:
            gaps = np.diff(arrival_s, prepend=self.last_s)
        if gaps.size:
            if gaps.min() < 0:
                raise ConfigurationError(
                    "a part begins before the one before it ended; allowed: parts in order."
                )
            self.squares += float(gaps @ gaps)
            self.longest = max(self.longest, float(gaps.max()))
            reached = np.searchsorted(GAP_EDGES_S, gaps, side="right")
            found = np.bincount(reached, minlength=len(GAP_EDGES_S) + 1)
            self.at_least += found[::-1].cumsum()[::-1][1:]
        since = arrival_s - self.first_s
        self.seconds.add(since)
        self.minutes.add(since)
        self.requests += len(arrival_s)
        self.last_s = float(arrival_s[-1])

    def statistics(
        self,
        first: Trace,
        context: TokenDistribution,
        generated: TokenDistribution,
        total: TokenDistribution,
    ) -> TraceStatistics:
        gaps, duration = self.requests - 1, self.last_s - self.first_s
        mean = duration / gaps if gaps else 0.0
        variance = max(0.0, self.squares / gaps - mean**2) if gaps else 0.0
        minutes, minute_counts = self.minutes.series()
        start = first.start + pd.Timedelta(round(self.first_s * 1e9), unit="ns")
        return TraceStatistics(
            name=first.name,
            start=start,
            requests=self.requests,
            duration_s=duration,
            mean_rate=self.requests / duration if duration else np.nan,
            peak_per_second=self.seconds.peak(),
            peak_per_minute=int(minute_counts.max()),
            gap_cv=float(np.sqrt(variance)) / mean if mean else np.nan,
            dispersion_1s=self.seconds.dispersion(),
            dispersion_60s=self.minutes.windows.dispersion(),
            longest_gap_s=self.longest,
            context=context,
            generated=generated,
            total=total,
            minutes=minutes,
            minute_counts=minute_counts,
            gap_survival=self.at_least / max(gaps, 1),
        )


class _Windows:
    """Counts in consecutive windows; only the last one is open, as times rise."""

    def __init__(self, width_s: float) -> None:
        self.width_s = width_s
        self.open, self.open_count = 0, 0
        self.closed_sum = self.closed_squares = self.closed_peak = 0

    def add(self, since_s: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add arrivals; return the windows that are closed now, with their counts."""
        index = (since_s // self.width_s).astype(np.int64)
        windows, counts = np.unique(index, return_counts=True)
        if windows[0] == self.open:
            counts[0] += self.open_count
        else:
            windows = np.concatenate([[self.open], windows])
            counts = np.concatenate([[self.open_count], counts])
        self.open, self.open_count = int(windows[-1]), int(counts[-1])
        closed = counts[:-1]
        self.closed_sum += int(closed.sum())
        self.closed_squares += int((closed**2).sum())
        self.closed_peak = max(self.closed_peak, int(closed.max(initial=0)))
        return windows[:-1], closed

    def peak(self) -> int:
        return max(self.closed_peak, self.open_count)

    def dispersion(self) -> float:
        # windows before the open one are whole, empty ones included
        if self.open < 2 or self.closed_sum == 0:
            return float("nan")
        mean = self.closed_sum / self.open
        return (self.closed_squares / self.open - mean**2) / mean


class _Minutes:
    """Counts per minute, kept for those that have requests."""

    def __init__(self) -> None:
        self.windows = _Windows(60.0)
        self.closed: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, since_s: NDArray[np.float64]) -> None:
        self.closed.append(self.windows.add(since_s))

    def series(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ended = [(np.array([self.windows.open]), np.array([self.windows.open_count]))]
        index, counts = (np.concatenate(x) for x in zip(*self.closed, *ended, strict=True))
        return index, counts


class _Tokens:
    """How often each number of tokens occurs."""

    def __init__(self) -> None:
        self.requests, self.sum, self.squares, self.max = 0, 0, 0.0, 0
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, values: NDArray[np.int64]) -> None:
        self.requests += len(values)
        self.sum += int(values.sum())
        as_float = values.astype(np.float64)
        self.squares += float(as_float @ as_float)
        self.max = max(self.max, int(values.max()))
        coarse = EXACT_TOKENS + (values - EXACT_TOKENS) // COARSE
        found = np.bincount(np.where(values < EXACT_TOKENS, values, coarse))
        if len(found) > len(self.counts):
            self.counts = np.concatenate(
                [self.counts, np.zeros(len(found) - len(self.counts), dtype=np.int64)]
            )
        self.counts[: len(found)] += found

    def distribution(self) -> TokenDistribution:
        mean = self.sum / self.requests
        index = np.flatnonzero(self.counts)
        coarse = EXACT_TOKENS + (index - EXACT_TOKENS) * COARSE
        values, counts = np.where(index < EXACT_TOKENS, index, coarse), self.counts[index]
        reached = counts.cumsum()
        p50, p95, p99 = (
            int(values[np.searchsorted(reached, np.ceil(np.round(q * self.requests, 6)))])
            for q in (0.50, 0.95, 0.99)
        )
        std = float(np.sqrt(max(0.0, self.squares / self.requests - mean**2)))
        return TokenDistribution(mean, std, p50, p95, p99, self.max, values, counts)
