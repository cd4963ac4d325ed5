"""The reward surrogate: a small network in place of the language model (numpy alone)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from icl_optimizer.environments.base import Floats
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.tensors import read_tensors, write_tensors

INPUTS = ("split", "sigma", "loss")
FORMAT, FORMAT_VERSION = "icl-optimizer split surrogate", 1
SHIPPED = "split_surrogate.safetensors"


@dataclass(frozen=True)
class Bounds:
    """Where a surrogate holds; the inputs are scaled to 0..1 between these.

    Attributes:
        low: Smallest split (layers), noise (standard deviation) and loss (probability).
        high: Largest of each.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        for name, low, high in zip(INPUTS, self.low, self.high, strict=True):
            if not low < high:
                raise ConfigurationError(
                    f"surrogate: {name} ranges from {low} to {high}; allowed: a lower start."
                )

    def scaled(self, values: Floats) -> Floats:
        """Return rows of inputs ``(n, 3)`` scaled to 0..1.

        Raises:
            ConfigurationError: A value lies outside, where nothing was measured.
        """
        low, high = np.array(self.low), np.array(self.high)
        # observations are 32-bit floats
        slack = 1e-6 * (high - low)
        outside = (values < low - slack) | (values > high + slack)
        if outside.any():
            column = int(np.flatnonzero(outside.any(axis=0))[0])
            worst = values[outside[:, column], column][0]
            raise ConfigurationError(
                f"surrogate: {INPUTS[column]} is {worst}; "
                f"allowed: {low[column]} to {high[column]}, where it was trained."
            )
        return np.asarray((values - low) / (high - low))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Foretells what a channel costs in perplexity, in place of the language model.

    The multi-layer perceptron of Chen et al., Section IV-C, with three inputs for the paper's two,
    since the noise is one, and tanh between the layers. Its target is
    ``extra_nats = ln(PPL / PPL_clean)`` per token, of which ``exp(-extra_nats)`` is the relative
    quality ``f``. Nothing keeps it from falling a little below 0 where the channel is clean.

    Attributes:
        bounds: Where it holds.
        weights: Weight matrices, each ``(inputs, outputs)``.
        biases: Their biases, each ``(outputs,)``.
        about: What it was trained on, as plain JSON values.
    """

    bounds: Bounds
    weights: Sequence[Floats]
    biases: Sequence[Floats]
    about: Mapping[str, Any] = field(default_factory=dict)

    def extra_nats(self, split: ArrayLike, sigma: ArrayLike, loss: ArrayLike) -> Floats:
        """Return the extra nats per token, in the shape that the arguments broadcast to.

        Args:
            split: Layers on the device.
            sigma: Standard deviation of the noise, in units of the hidden state.
            loss: Probability that an element is lost.

        Raises:
            ConfigurationError: A value lies outside of what it was trained on.
        """
        given = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (split, sigma, loss)))
        values = self.bounds.scaled(np.stack([v.ravel() for v in given], axis=1))
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            values = np.tanh(values @ weight + bias)
        return np.asarray((values @ last[0] + last[1]).reshape(given[0].shape))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: 32-bit weights, and as JSON metadata everything else."""
        arrays = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"weight.{i}"] = np.asarray(weight, dtype=np.float32)
            arrays[f"bias.{i}"] = np.asarray(bias, dtype=np.float32)
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "inputs": INPUTS,
            "target": "extra_nats",
            "low": self.bounds.low,
            "high": self.bounds.high,
            "about": dict(self.about),
        }
        write_tensors(path, arrays, data)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the surrogate that :meth:`save` wrote.

        Raises:
            ConfigurationError: The file cannot be read, or is something else.
            MissingDependencyError: The package ``safetensors`` is not installed.
        """
        arrays, data = read_tensors(path, "surrogate")
        found = data.get("format"), data.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise ConfigurationError(
                f"surrogate '{path}' has format {found}; allowed: {(FORMAT, FORMAT_VERSION)}."
            )
        bounds = Bounds(tuple(data["low"]), tuple(data["high"]))
        layers = range(len(arrays) // 2)
        weights = [arrays[f"weight.{i}"].astype(np.float64) for i in layers]
        biases = [arrays[f"bias.{i}"].astype(np.float64) for i in layers]
        return cls(bounds, weights, biases, data["about"])


@cache
def shipped_surrogate() -> Surrogate:
    """Return the surrogate that was fitted on all shipped records."""
    with as_file(files("icl_optimizer.environments.data") / SHIPPED) as path:
        return Surrogate.load(path)
