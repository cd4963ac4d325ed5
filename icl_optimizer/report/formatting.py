"""Numbers as a reader meets them: the same form in every table, figure and sentence."""

from __future__ import annotations

import math

from icl_optimizer.comparison.statistics import Estimate

MISSING = "–"
FIXED = "\u00a0"
"""A space that no line breaks at."""


def number(value: float) -> str:
    """Return ``value`` with three significant digits, thousands separated."""
    if not math.isfinite(value):
        return MISSING
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"


def share(value: float) -> str:
    """Return a value near 0 to 1 with two digits; three where two would hide that it is not 1."""
    text = f"{value:.2f}"
    return f"{value:.3f}" if text == "1.00" and value < 0.9995 else text


def metric_value(metric: str, value: float) -> str:
    """Return ``value`` in the form of its metric."""
    return share(value) if metric in SHARES else number(value)


def with_interval(metric: str, value: Estimate | None) -> str:
    """Return ``mean [low, high]``; the mean alone for a single seed or where all seeds agree."""
    if value is None or not math.isfinite(value.mean):
        return MISSING
    mean = metric_value(metric, value.mean)
    if value.n < 2 or value.low == value.high:
        return mean
    return f"{mean} [{metric_value(metric, value.low)},{FIXED}{metric_value(metric, value.high)}]"


SHARES = frozenset(
    {
        "optimality",
        "success_rate",
        "accuracy",
        "balanced_accuracy",
        "invalid_rate",
        "fallback_rate",
    }
)
