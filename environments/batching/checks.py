"""What a bank of experts refuses, since the compiled loops check nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.errors import ConfigurationError


def check_experts(
    experts: int, kv_tokens: Sequence[int] | Ints, chunk_tokens: int | None, **sizes: int
) -> None:
    """Raise for experts that cannot be: none, without memory, with a batch of nobody.

    Args:
        experts: How many there are.
        kv_tokens: Tokens that the KV memory of each holds.
        chunk_tokens: Most prompt tokens in an iteration, None for no limit.
        **sizes: What must be at least 1, by name.
    """
    kv = np.asarray(kv_tokens)
    if experts < 1:
        raise ConfigurationError("costs is empty; allowed: one StepCosts per expert, at least 1.")
    if kv.shape != (experts,) or kv.dtype.kind not in "iu" or (kv < 1).any():
        raise ConfigurationError(
            f"kv_tokens is {kv.tolist()}; allowed: a whole number of tokens, at least 1, for each "
            f"of the {experts} experts."
        )
    if chunk_tokens is not None:
        sizes = {**sizes, "chunk_tokens": chunk_tokens}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; allowed: at least 1.")


def arrays(
    shape: tuple[int, ...], kind: type[np.generic], **values: NDArray[Any]
) -> list[NDArray[Any]]:
    """Return ``values`` in the one layout that the loops are compiled for.

    Args:
        shape: Shape that each must have.
        kind: Type of the entries of each.
        **values: The arrays by name.

    Raises:
        ConfigurationError: One has another shape or type.
    """
    for name, value in values.items():
        if value.shape != shape or value.dtype != kind:
            raise ConfigurationError(
                f"{name} is an array of {value.dtype} with shape {value.shape}; allowed: "
                f"{np.dtype(kind)}, {shape}."
            )
    return [np.ascontiguousarray(value) for value in values.values()]


def check_times(until: Floats) -> None:
    """Raise for a time that is not a number."""
    if np.isnan(until).any():
        e = int(np.isnan(until).argmax())
        raise _error("until", "nan", e, "seconds, inf to the end")


def check_bound(bound_s: float) -> None:
    """Raise for a bound that no latency could be compared with."""
    if not bound_s > 0:
        raise ConfigurationError(f"bound_s is {bound_s}; allowed: seconds, above 0.")


def refusal(e: int, request: Mapping[str, Any], expert: Any, sent: Any, clock: float) -> Exception:
    """Return the error for a request that a loop stopped at.

    Args:
        e: Its sub-environment.
        request: What was said of it, by name.
        expert: The experts there, ``(N,)``.
        sent: The requests there, one more than can be sent.
        clock: Time to which the sub-environment has advanced, seconds.
    """
    experts, items, now = len(expert), len(sent) - 1, request["now"]
    allowed = {
        "expert": (range(-1, experts), f"-1 (none) to {experts - 1}"),
        "item": (range(items), f"0 to {items - 1}"),
        "prompt": (range(1, 2**62), "at least 1 token"),
        "answer": (range(1, 2**62), "at least 1 token"),
    }
    for name, (values, words) in allowed.items():
        if name in request and int(request[name]) not in values:
            return _error(name, request[name], e, words)
    if not (clock <= now and math.isfinite(now)):
        return _error("now", now, e, f"finite seconds, not before {clock:g}, the time there")
    item = request.get("item")
    if item is not None and sent["sent"][item]:
        return _error("item", item, e, "a request that was not accepted before")
    return _error("now", now, e, "a time to which advance() has been called")


def _error(name: str, value: Any, e: int, words: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {value} in sub-environment {e}; allowed: {words}.")
