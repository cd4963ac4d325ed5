"""The costs of an iteration against SplitwiseSim's measurements of batches of a larger model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.batching.costs import StepCosts

FITTING_PROMPTS = (128, 512, 2048, 8192)
FITTING_BATCHES = (1, 4, 16, 64)
"""A row is for fitting if both its prompt and its batch are of these, and answers have 128 tokens;
the prompts and batches between, and all longer answers, are not."""
FITTING_ANSWER = 128
KV_BYTES = {"llama2-70b": 2 * 80 * 8 * 128 * 2, "bloom-176b": 2 * 70 * 14336 * 2}
"""Bytes of the keys and values of a token: layers, heads of keys and values (8, the others share
them) or all, of 16 bits each."""
BANDWIDTH = {"a100-80gb": 2039e9, "h100-80gb": 3350e9}
"""Of a GPU's memory by its data sheet, bytes per second."""


@dataclass(frozen=True)
class Comparison:
    """Costs fitted to one model on some GPUs, and how far off they are elsewhere.

    Attributes:
        model: For example ``llama2-70b``.
        gpu: For example ``h100-80gb``.
        n_gpus: GPUs that share the model.
        costs: The fitted costs.
        physical_s: What a cached token should cost: its bytes over the memory bandwidth, seconds.
        prefill_error: Mean absolute error of the time of prefill over rows not fitted to, a share.
        token_error: That of the time per token.
        rows: How many these are.
    """

    model: str
    gpu: str
    n_gpus: int
    costs: StepCosts
    physical_s: float
    prefill_error: float
    token_error: float
    rows: int


def compare_splitwise() -> list[Comparison]:
    """Fit the five costs to part of the rows of every model and hardware, and try the others."""
    table = _plausible(splitwise_table())
    keys = ["model", "hardware", "tensor_parallel"]
    comparisons = []
    for model, gpu, n_gpus in table[keys].drop_duplicates().to_numpy():
        chosen = (table[keys] == [model, gpu, n_gpus]).all(axis=1)
        comparisons.append(_compare(model, gpu, int(n_gpus), table[chosen]))
    return comparisons


def splitwise_table() -> pd.DataFrame:
    """Return the shipped measurements: medians over repetitions, times in ms."""
    with files("icl_optimizer.environments.data").joinpath("splitwise_sim.csv").open() as file:
        return pd.read_csv(file)


def _plausible(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out batches of 64 on two GPUs: their prefill took less than a sixth of that of 32."""
    broken = (table["batch_size"] == 64) & (table["tensor_parallel"] == 2)
    return table[~broken]


def _compare(model: str, gpu: str, n_gpus: int, rows: pd.DataFrame) -> Comparison:
    fitting = (
        rows["prompt_size"].isin(FITTING_PROMPTS)
        & rows["batch_size"].isin(FITTING_BATCHES)
        & (rows["token_size"] == FITTING_ANSWER)
    )
    costs = _fit(rows[fitting])
    rest = rows[~fitting]
    values = np.array([getattr(costs, name) for name in _ORDER])
    prefill, token = (
        np.abs(work @ values / measured - 1) for work, measured in (_prefill(rest), _token(rest))
    )
    return Comparison(
        model=model,
        gpu=gpu,
        n_gpus=n_gpus,
        costs=costs,
        physical_s=KV_BYTES[model] / (BANDWIDTH[gpu] * n_gpus),
        prefill_error=float(prefill.mean()),
        token_error=float(token.mean()),
        rows=len(rest),
    )


_ORDER: Sequence[str] = (
    "base_s",
    "per_prompt_token_s",
    "per_cached_token_s",
    "per_sequence_s",
    "prefill_s",
)


def _fit(rows: pd.DataFrame) -> StepCosts:
    """Return the costs, none below 0, with the least squares of relative errors."""
    from scipy.optimize import nnls

    work, measured = (
        np.concatenate(both) for both in zip(_prefill(rows), _token(rows), strict=True)
    )
    values, _ = nnls(work / measured[:, None], np.ones(len(measured)))
    return StepCosts(**dict(zip(_ORDER, values.tolist(), strict=True)))


def _prefill(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return the work of the iteration that prefills the batch ``(n, 5)``, and its seconds."""
    prompt, batch = (rows[name].to_numpy(float) for name in ("prompt_size", "batch_size"))
    one, none = np.ones(len(rows)), np.zeros(len(rows))
    work = np.stack([one, prompt * batch, none, none, one], axis=1)
    return work, rows["prompt_time"].to_numpy(float) / 1e3


def _token(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return the work of a mean iteration that decodes the batch ``(n, 5)``, and its seconds."""
    prompt, batch, answer = (
        rows[name].to_numpy(float) for name in ("prompt_size", "batch_size", "token_size")
    )
    one, none = np.ones(len(rows)), np.zeros(len(rows))
    # with 1 to answer - 1 tokens generated at its start
    cached = batch * (prompt + answer / 2)
    work = np.stack([one, none, cached, batch, none], axis=1)
    return work, rows["token_time"].to_numpy(float) / 1e3
