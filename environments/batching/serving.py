"""Fitted costs and KV memory of the LLaMA models on GPUs, by size."""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.errors import ConfigurationError, unknown_name

SIZES = (7.0, 13.0)
"""Billions of parameters of the models that were measured."""
ALLOWED_SIZES = (5.0, 15.0)
"""Billions of parameters that the costs are asked for; the line through both sizes is followed."""
BYTES_PER_NUMBER = 2
"""Of weights and KV cache: fp16."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory for weights and KV cache."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU's data sheet says.

    Attributes:
        memory_bytes: Its memory.
        bandwidth: Of that memory, bytes per second.
    """

    memory_bytes: float
    bandwidth: float


GPUS = {"a100": Gpu(40e9, 1555e9), "h100": Gpu(80e9, 3350e9)}
"""Those of LLM-Pilot, from its table of GPU features: A100 with 40 GB, H100 SXM."""
_LAYERS_AND_WIDTHS = {7.0: (32, 4096), 13.0: (40, 5120)}


def serving_costs(billions: float, gpu: str, n_gpus: int = 1) -> StepCosts:
    """Return what an iteration costs for a LLaMA model of that size.

    Each of the five costs lies on the line through those fitted at 7 and 13 billions, and never
    below 0. The fit is described in ``docs/inference-simulator.md``.

    Args:
        billions: Parameters, 5 to 15 billions.
        gpu: ``a100`` or ``h100``.
        n_gpus: GPUs that share the model: 1, 2 or 4.

    Raises:
        ConfigurationError: Another size, GPU or number of them.
    """
    _check_size(billions)
    table = _fitted()
    if gpu not in GPUS:
        raise unknown_name("gpu", gpu, GPUS)
    if (SIZES[0], gpu, n_gpus) not in table:
        allowed = ", ".join(str(n) for b, g, n in table if (b, g) == (SIZES[0], gpu))
        raise ConfigurationError(f"n_gpus is {n_gpus}; allowed: {allowed}.")
    small, large = (np.array(astuple(table[size, gpu, n_gpus])) for size in SIZES)
    share = (billions - SIZES[0]) / (SIZES[1] - SIZES[0])
    return StepCosts(*np.maximum(small + share * (large - small), 0.0).tolist())


def kv_bytes_per_token(billions: float) -> float:
    """Return the bytes that a token takes in the KV cache.

    ``2 · layers · width · 2 bytes`` of LLaMA 7B and 13B (keys and values of every layer), and the
    line through both.

    Raises:
        ConfigurationError: A size that is not from 5 to 15 billions.
    """
    _check_size(billions)
    small, large = (
        2 * layers * width * BYTES_PER_NUMBER for layers, width in _LAYERS_AND_WIDTHS.values()
    )
    return small + (billions - SIZES[0]) / (SIZES[1] - SIZES[0]) * (large - small)


def kv_capacity_tokens(billions: float, gpu: str, n_gpus: int = 1) -> int:
    """Return how many tokens the KV cache holds beside fp16 weights, in 90 % of the memory.

    Raises:
        ConfigurationError: Another size, another GPU, or weights that leave no memory.
    """
    if gpu not in GPUS:
        raise unknown_name("gpu", gpu, GPUS)
    usable = USABLE_MEMORY * GPUS[gpu].memory_bytes * n_gpus
    left = usable - BYTES_PER_NUMBER * billions * 1e9
    tokens = int(left / kv_bytes_per_token(billions))
    if tokens < 1:
        raise ConfigurationError(
            f"n_gpus is {n_gpus}; allowed: enough {gpu} for {billions:g} billions in fp16."
        )
    return tokens


def _check_size(billions: float) -> None:
    low, high = ALLOWED_SIZES
    if not low <= billions <= high:
        raise ConfigurationError(f"billions is {billions}; allowed: {low:g} to {high:g}.")


@cache
def _fitted() -> dict[tuple[float, str, int], StepCosts]:
    """Return the shipped costs by size, GPU and number of GPUs."""
    text = files("icl_optimizer.environments.data").joinpath("serving_costs.csv").read_text()
    return {
        (float(row["billions"]), row["gpu"], int(row["n_gpus"])): StepCosts(
            base_s=float(row["base_s"]),
            per_prompt_token_s=float(row["per_prompt_token_s"]),
            per_cached_token_s=float(row["per_cached_token_s"]),
            per_sequence_s=float(row["per_sequence_s"]),
            prefill_s=float(row["prefill_s"]),
        )
        for row in csv.DictReader(text.splitlines())
    }
