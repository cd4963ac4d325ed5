"""The request features of Abbaraju (Section III): calendar, tokens, rolling, lagged; scaling.

The paper names calendar features, tokens, rolling mean and deviation of total tokens over the last
5, 10 and 20 requests, and lag-1 tokens. The mean gaps between arrivals are an addition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.traces.trace import Trace
from icl_optimizer.errors import ConfigurationError

WINDOWS = (5, 10, 20)
CALENDAR = ("hour", "weekday", "day_of_month", "iso_week")
TOKENS = ("total_tokens", "context_tokens", "generated_tokens")
FEATURES: tuple[str, ...] = (
    *CALENDAR,
    *TOKENS,
    *(f"total_mean_{w}" for w in WINDOWS),
    *(f"total_std_{w}" for w in WINDOWS),
    *(f"{name}_lag_1" for name in TOKENS),
    *(f"mean_gap_{w}" for w in WINDOWS),
)
"""Names of the 19 features, in the order of the columns of :func:`engineer`."""


def engineer(trace: Trace) -> pd.DataFrame:
    """Return the features of each request, float64, shape (n, 19), never NaN.

    Rolling figures are over the last 5, 10 and 20 requests, the present one included, as in the
    paper; so a policy that is shown them knows the present request's number of generated tokens.
    At the beginning they are over as many as there are. The deviation is the sample's (ddof 1), and
    0 for one request. Lagged tokens are 0 for the first request. Gaps are in seconds: the last gap
    is that before the present request; 0 for the first. Weekdays count from Monday, 0.

    Args:
        trace: Features of a request depend on it and those before it alone.
    """
    times, total = trace.times, pd.Series(trace.total_tokens)
    columns: dict[str, object] = {
        "hour": times.hour,
        "weekday": times.day_of_week,
        "day_of_month": times.day,
        "iso_week": times.isocalendar().week.to_numpy(),
        "total_tokens": total,
        "context_tokens": trace.context_tokens,
        "generated_tokens": trace.generated_tokens,
    }
    for window in WINDOWS:
        rolling = total.rolling(window, min_periods=1)
        columns[f"total_mean_{window}"] = rolling.mean()
        columns[f"total_std_{window}"] = rolling.std().fillna(0.0)
    for name in TOKENS:
        columns[f"{name}_lag_1"] = pd.Series(columns[name]).shift(1, fill_value=0)
    for window in WINDOWS:
        columns[f"mean_gap_{window}"] = _mean_gap(trace.arrival_s, window)
    return pd.DataFrame(columns, columns=list(FEATURES)).astype(np.float64)


def _mean_gap(arrival_s: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the last ``window`` gaps, of fewer at the beginning, seconds."""
    index = np.arange(len(arrival_s))
    first = np.maximum(index - window, 0)
    return (arrival_s - arrival_s[first]) / np.maximum(index - first, 1)


def split(trace: Trace, share: float = 0.7) -> tuple[Trace, Trace]:
    """Return the earlier and the later part of a trace, to learn from and to be held out.

    Args:
        trace: At least two requests.
        share: Share of the requests in the first part, rounded to whole requests.

    Raises:
        ConfigurationError: A part would be empty.
    """
    cut = round(len(trace) * share)
    if not 0 < cut < len(trace):
        raise ConfigurationError(
            f"share is {share} of {len(trace)} requests; allowed: a share between 0 and 1 that "
            "leaves requests in both parts."
        )
    return trace.slice(0, cut), trace.slice(cut)


@dataclass(frozen=True, eq=False)
class RobustScaling:
    """Features minus their median over their interquartile range, as scikit-learn's RobustScaler.

    Fit it on the part that is learned from alone. A feature without interquartile range is divided
    by its standard deviation, and by 1 where that is 0, too (as calendar features in a short trace;
    scikit-learn takes 1 in both cases).

    Attributes:
        features: Names, in order.
        median: Median of each, shape (features,).
        spread: What each is divided by, shape (features,), positive.
        clip: Scaled values are held to -clip … clip, so that the long tails of token numbers do not
            saturate a network.
    """

    features: tuple[str, ...]
    median: NDArray[np.float64]
    spread: NDArray[np.float64]
    clip: float = 5.0

    @classmethod
    def fit(cls, frame: pd.DataFrame, clip: float = 5.0) -> RobustScaling:
        """Return the scaling of the columns of ``frame``.

        Raises:
            ConfigurationError: The frame has no rows, or ``clip`` is not positive.
        """
        if frame.empty or not clip > 0:
            raise ConfigurationError(
                f"scaling of {len(frame)} rows with clip {clip}; allowed: 1 row and more, clip > 0."
            )
        values = frame.to_numpy(dtype=np.float64)
        low, median, high = np.percentile(values, [25.0, 50.0, 75.0], axis=0)
        deviation = values.std(axis=0)
        fallback = np.where(deviation > 0, deviation, 1.0)
        spread = np.where(high > low, high - low, fallback)
        return cls(tuple(map(str, frame.columns)), median, spread, clip)

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the scaled features, same shape, in -clip … clip.

        Raises:
            ConfigurationError: The columns are not those it was fitted on.
        """
        if tuple(frame.columns) != self.features:
            raise ConfigurationError(
                f"features are {list(frame.columns)}; allowed: {list(self.features)}."
            )
        scaled = (frame.to_numpy(dtype=np.float64) - self.median) / self.spread
        clipped = np.clip(scaled, -self.clip, self.clip)
        return pd.DataFrame(clipped, columns=frame.columns, index=frame.index)
