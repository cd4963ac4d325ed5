"""The requests of a trace as arrays: arrivals, tokens, scaled features; read and scaled once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.load_balancing_config import TRAINING_HORIZON, LoadBalancingConfig
from icl_optimizer.environments.traces import FEATURES, RobustScaling, Trace, engineer, read_trace
from icl_optimizer.environments.traces.reading import stamp
from icl_optimizer.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Requests:
    """The requests that a configuration selects, in order of arrival; arrays are read-only.

    Attributes:
        arrival_s: Arrivals as simulated, ``(n,)``.
        tokens: Total tokens, ``(n,)``.
        features: Scaled features, ``(n, features)``.
        begin: First request of the part that episodes are taken from.
        end: The one after its last.
        horizon: Requests of an episode.
        scaling: How features were scaled.
        constant: Features that never changed where the scaling was fitted, ``(features,)``; they
            are shown as 0, as nothing could be learned of them.
    """

    arrival_s: Floats
    tokens: Floats
    features: NDArray[np.float32]
    begin: int
    end: int
    horizon: int
    scaling: RobustScaling
    constant: NDArray[np.bool_]

    def scaled(self, feature: str, value: float) -> float:
        """Return a value of ``feature`` (an edge between words) on the scale of the features."""
        place = FEATURES.index(feature)
        return float((value - self.scaling.median[place]) / self.scaling.spread[place])

    def unscaled(self, feature: str, values: Floats) -> Floats:
        """Return scaled values of ``feature`` in its own unit; long tails were clipped."""
        place = FEATURES.index(feature)
        return np.asarray(values * self.scaling.spread[place] + self.scaling.median[place])


def load_requests(config: LoadBalancingConfig) -> Requests:
    """Return the requests of ``config``; the same arrays for the same file and fields.

    Raises:
        ConfigurationError: The trace cannot be read, or its part is shorter than an episode.
    """
    fields = ("trace", "malformed", "scenario", "requests", "span_s", "load_factor", "every")
    chosen = config.model_dump(include={*fields, "train_share", "scaling_trace"})
    stamps = tuple(stamp(source) for source in (config.trace, config.scaling_trace))
    key = LoadBalancingConfig(**chosen)
    arrival_s, tokens, features, scaling, constant = _arrays(_Key(key.model_dump_json(), stamps))
    begin, end = _part(config, len(tokens))
    usual = min(TRAINING_HORIZON, end - begin) if config.part == "train" else end - begin
    horizon = config.horizon or usual
    if horizon > end - begin:
        raise ConfigurationError(
            f"load-balancing: horizon is {horizon}; allowed: 1 to {end - begin}, the requests of "
            f"part '{config.part}' of '{config.trace}'."
        )
    return Requests(arrival_s, tokens, features, begin, end, horizon, scaling, constant)


@dataclass(frozen=True)
class _Key:
    """What the arrays depend on: fields as JSON, and size and time of files."""

    fields: str
    stamps: tuple[tuple[int, int], ...]


@lru_cache(maxsize=8)
def _arrays(
    key: _Key,
) -> tuple[Floats, Floats, NDArray[np.float32], RobustScaling, NDArray[np.bool_]]:
    config = LoadBalancingConfig.model_validate_json(key.fields)
    trace, frame = _selected(config)
    fitted = frame
    if config.scaling_trace not in (None, config.trace):
        _, fitted = _selected(config.model_copy(update={"trace": config.scaling_trace}))
    training = fitted.iloc[: _cut(config, len(fitted))]
    scaling = RobustScaling.fit(training)
    constant = training.nunique().to_numpy() == 1
    scaled = scaling.transform(frame).to_numpy()
    features = np.where(constant, 0.0, scaled).astype(np.float32)
    arrival_s, tokens = trace.arrival_s, trace.total_tokens.astype(np.float64)
    for array in (tokens, features):
        array.setflags(write=False)
    return arrival_s, tokens, features, scaling, constant


def _selected(config: LoadBalancingConfig) -> tuple[Trace, pd.DataFrame]:
    """Return the requests as they arrive in the simulation, and their features unscaled.

    The calendar stays that of the recording.
    """
    setup = config.setup
    whole = read_trace(config.trace, malformed=config.malformed, max_rows=setup.requests)
    index = slice(None, None, config.every)
    arrival = whole.arrival_s[index]
    if len(arrival) < 2:
        raise ConfigurationError(
            f"load-balancing: every is {config.every}, which leaves {len(arrival)} request of "
            f"'{config.trace}'; allowed: what leaves at least 2."
        )
    tokens = whole.context_tokens[index], whole.generated_tokens[index]
    recorded = Trace(whole.name, whole.start, arrival, *tokens)
    pace = setup.load_factor * _squeeze(config, float(whole.arrival_s[-1]))
    frame = engineer(recorded)
    gaps = [name for name in FEATURES if name.startswith("mean_gap")]
    frame[gaps] /= pace
    return Trace(whole.name, whole.start, arrival / pace, *tokens), frame


def _squeeze(config: LoadBalancingConfig, recorded_s: float) -> float:
    """Return what arrivals are sped up by to fit into ``span_s``."""
    span_s = config.setup.span_s
    if span_s is None:
        return 1.0
    if recorded_s == 0:
        raise ConfigurationError(
            f"load-balancing: span_s is {span_s:g} for '{config.trace}', whose requests all come "
            "at once; allowed: None (scenario 'nominal'), as there is nothing to squeeze."
        )
    return recorded_s / span_s


def _cut(config: LoadBalancingConfig, count: int) -> int:
    """Return the first request that is held out."""
    return min(max(round(count * config.train_share), 1), count - 1)


def _part(config: LoadBalancingConfig, count: int) -> tuple[int, int]:
    cut = _cut(config, count)
    return {"train": (0, cut), "held-out": (cut, count), "all": (0, count)}[config.part]
