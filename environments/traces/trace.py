"""A trace in memory: when each request arrived, and how many tokens it had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival; the arrays cannot be written to.

    Attributes:
        name: Shipped name, or the file's name without its endings.
        start: Time from which ``arrival_s`` counts, without a zone (UTC where the file has zones).
        arrival_s: Arrival of each request in seconds since ``start``, shape (n,), never falling.
        context_tokens: Tokens of each prompt, shape (n,).
        generated_tokens: Tokens of each answer, shape (n,).

    Raises:
        ConfigurationError: The arrays differ in length, an arrival is earlier than the one before
            it or not a number, or a number of tokens is negative.
    """

    name: str
    start: pd.Timestamp
    arrival_s: NDArray[np.float64]
    context_tokens: NDArray[np.int32]
    generated_tokens: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check the arrays and lock them."""
        lengths = [len(self.arrival_s), len(self.context_tokens), len(self.generated_tokens)]
        if len(set(lengths)) > 1:
            raise ConfigurationError(
                f"trace '{self.name}' has arrays of {lengths} requests; allowed: equal lengths."
            )
        if not np.isfinite(self.arrival_s).all() or (np.diff(self.arrival_s) < 0).any():
            raise ConfigurationError(
                f"trace '{self.name}': arrival_s falls or is not finite; allowed: times in order."
            )
        for field in ("context_tokens", "generated_tokens"):
            if (getattr(self, field) < 0).any():
                raise ConfigurationError(
                    f"trace '{self.name}': {field} has negative numbers; allowed: 0 and more."
                )
        for field in ("arrival_s", "context_tokens", "generated_tokens"):
            locked = getattr(self, field).view()
            locked.setflags(write=False)
            object.__setattr__(self, field, locked)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)

    @property
    def total_tokens(self) -> NDArray[np.int64]:
        """Tokens of prompt and answer together, shape (n,)."""
        return self.context_tokens.astype(np.int64) + self.generated_tokens

    @property
    def times(self) -> pd.DatetimeIndex:
        """Date and time of each arrival, to the nanosecond."""
        offsets = np.rint(self.arrival_s * 1e9).astype("timedelta64[ns]")
        return pd.DatetimeIndex(self.start.to_datetime64().astype("datetime64[ns]") + offsets)

    def slice(self, begin: int, end: int | None = None) -> Trace:
        """Return the requests ``begin`` to ``end`` as a trace that starts with the first of them.

        Args:
            begin: Index of the first request, from 0.
            end: Index after the last one; None for all.

        Raises:
            ConfigurationError: No request lies between the two.
        """
        arrival = self.arrival_s[begin:end]
        if len(arrival) == 0:
            raise ConfigurationError(
                f"slice of trace '{self.name}' from {begin} to {end} holds no request; allowed: "
                f"parts of 0 to {len(self)}."
            )
        return Trace(
            self.name,
            pd.Timestamp(self.times[begin:end][0]),
            arrival - arrival[0],
            self.context_tokens[begin:end],
            self.generated_tokens[begin:end],
        )
