"""Training the reward surrogate on measured records, and how far to trust it (imports torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from icl_optimizer.baselines.sb3_models import isolated_random
from icl_optimizer.environments.splitting.surrogate import INPUTS, Bounds, Surrogate
from icl_optimizer.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HeldOut = Literal["record", "cell"]

HIDDEN = (128, 128)
"""Width of each hidden layer, the paper's."""
STEPS = 2000
BATCH = 256
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Errors:
    """How far predictions are from what they should be.

    Attributes:
        r2: Share of the variance that is foretold.
        mse: Mean squared error.
        mae: Mean absolute error.
        share: The latter as a share of the target's standard deviation.
    """

    r2: float
    mse: float
    mae: float
    share: float


@dataclass(frozen=True)
class Accuracy:
    """The same errors on both scales.

    Attributes:
        extra_nats: Of the target, ``ln(PPL / PPL_clean)``.
        quality: Of ``f = exp(-extra_nats)``, from which the reward of the public code is made.
    """

    extra_nats: Errors
    quality: Errors


@dataclass(frozen=True)
class Scores:
    """A cross-validation; every record was held out once.

    Attributes:
        by: What was held out together: single records, or all of a split and a loss.
        folds: Number of parts.
        records: Number of records.
        held_out: Predictions against held-out records.
        floor: Means of the other records of the same split, noise and loss in the surrogate's
            place: what a table that knows everything else would reach, since records scatter.
        of_means: Predictions against the means of the held-out records' points, in which that
            scatter has mostly averaged out: the surrogate's own error.
    """

    by: HeldOut
    folds: int
    records: int
    held_out: Accuracy
    floor: Accuracy
    of_means: Accuracy


def fit_surrogate(
    records: pd.DataFrame,
    *,
    bounds: Bounds | None = None,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
) -> Surrogate:
    """Return a surrogate with the least mean squared error on ``records`` (eq. 13 of Chen et al.).

    Records of the same split, noise and loss enter as their mean, weighted by their number: the
    gradient is the same, and there is less to compute. It takes seconds, and is the same for the
    same seed.

    Args:
        records: Columns ``split``, ``sigma``, ``loss`` and ``extra_nats``.
        bounds: Where it is to hold; the range of the records when None.
        steps: Gradient steps (Adam with decoupled weight decay, one cycle of the step size).
        batch: Distinct points per gradient step.
        seed: Seeds first weights and order.

    Raises:
        ConfigurationError: Too few records, values that are not finite, or a column is missing.
    """
    points = _points(records)
    inputs = points[list(INPUTS)].to_numpy(np.float64)
    bounds = bounds or _range_of(records)
    target = points["mean"].to_numpy(np.float64)
    weight = points["count"].to_numpy(np.float64)
    center, spread = float(target.mean()), float(target.std()) or 1.0
    with isolated_random(seed):
        network = _train(
            torch.as_tensor(bounds.scaled(inputs), dtype=torch.float32),
            torch.as_tensor((target - center) / spread, dtype=torch.float32),
            torch.as_tensor(weight / weight.mean(), dtype=torch.float32),
            steps,
            batch,
        )
    layers = [part for part in network if isinstance(part, nn.Linear)]
    weights = [layer.weight.detach().double().numpy().T for layer in layers]
    biases = [layer.bias.detach().double().numpy() for layer in layers]
    # the last layer gives the target in its own units
    weights[-1], biases[-1] = weights[-1] * spread, biases[-1] * spread + center
    about = {"records": len(records), "points": len(points), "steps": steps, "seed": seed}
    return Surrogate(bounds, weights, biases, about)


def _points(records: pd.DataFrame) -> pd.DataFrame:
    """Return the distinct inputs with mean and number of their records."""
    columns = [*INPUTS, "extra_nats"]
    missing = [name for name in columns if name not in records]
    if missing:
        raise ConfigurationError(
            f"records have no column '{missing[0]}'; allowed: {', '.join(columns)}."
        )
    if not np.isfinite(records[columns].to_numpy(np.float64)).all():
        raise ConfigurationError("records hold a value that is not finite; allowed: numbers.")
    points = records.groupby(list(INPUTS))["extra_nats"].agg(["mean", "count"]).reset_index()
    if len(points) < 2:
        raise ConfigurationError(
            f"records hold {len(points)} distinct points; allowed: at least 2 to learn from."
        )
    return points


def _range_of(records: pd.DataFrame) -> Bounds:
    inputs = records[list(INPUTS)].to_numpy(np.float64)
    low, high = inputs.min(axis=0).tolist(), inputs.max(axis=0).tolist()
    return Bounds((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _train(
    inputs: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, steps: int, batch: int
) -> nn.Sequential:
    """Return a network trained on rows ``(n, 3)``, targets and weights ``(n,)``."""
    network = nn.Sequential(
        nn.Linear(len(INPUTS), HIDDEN[0]),
        nn.Tanh(),
        nn.Linear(HIDDEN[0], HIDDEN[1]),
        nn.Tanh(),
        nn.Linear(HIDDEN[1], 1),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=LEARNING_RATE, total_steps=steps
    )
    order = torch.randperm(len(inputs))
    start = 0
    for _ in range(steps):
        if start >= len(order):
            order, start = torch.randperm(len(inputs)), 0
        rows = order[start : start + batch]
        start += batch
        error = network(inputs[rows])[:, 0] - target[rows]
        loss = (weight[rows] * error**2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def cross_validate(
    records: pd.DataFrame,
    folds: int = 5,
    by: HeldOut = "record",
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Scores:
    """Return how well a surrogate foretells records that it has not seen.

    Args:
        records: Columns ``split``, ``sigma``, ``loss`` and ``extra_nats``, at least two records of
            each point, as the scatter cannot be told from the error otherwise.
        folds: Parts, each of which is held out once.
        by: Hold out ``record``s at random, or whole ``cell``s: all records of a split and a loss.
        steps: Gradient steps of each training.
        seed: Seeds the parts and the training.

    Raises:
        ConfigurationError: Fewer cells or records than folds, or a point with a single record.
    """
    part = _parts(records, folds, by, seed)
    truth = records["extra_nats"].to_numpy(np.float64)
    groups = records.groupby(list(INPUTS))["extra_nats"]
    mean = groups.transform("mean").to_numpy(np.float64)
    count = groups.transform("count").to_numpy(np.float64)
    if (count < 2).any():
        raise ConfigurationError(
            "records hold a split, noise and loss once; allowed: at least twice each."
        )
    predicted = np.zeros(len(records))
    for fold in range(folds):
        held = records[part == fold]
        surrogate = fit_surrogate(
            records[part != fold], bounds=_range_of(records), steps=steps, seed=seed + fold
        )
        predicted[part == fold] = surrogate.extra_nats(held["split"], held["sigma"], held["loss"])
    others = (mean * count - truth) / (count - 1)
    return Scores(
        by,
        folds,
        len(records),
        held_out=_accuracy(truth, predicted),
        floor=_accuracy(truth, others),
        of_means=_accuracy(mean, predicted),
    )


def _parts(records: pd.DataFrame, folds: int, by: HeldOut, seed: int) -> Ints:
    """Return the fold in which each record is held out, ``(n,)``."""
    if by == "record":
        unit = np.arange(len(records))
    elif by == "cell":
        unit = np.asarray(records.groupby(["split", "loss"]).ngroup())
    else:
        raise ConfigurationError(f"by is {by!r}; allowed: 'record' or 'cell'.")
    count = int(unit.max(initial=-1)) + 1
    if not 2 <= folds <= count:
        raise ConfigurationError(f"folds is {folds}; allowed: 2 to {count}, one {by} each.")
    fold_of_unit = np.random.default_rng(seed).permutation(np.arange(count) % folds)
    return np.asarray(fold_of_unit[unit])


def _accuracy(truth: Floats, predicted: Floats) -> Accuracy:
    return Accuracy(_errors(truth, predicted), _errors(np.exp(-truth), np.exp(-predicted)))


def _errors(truth: Floats, predicted: Floats) -> Errors:
    error = predicted - truth
    mse, mae, deviation = float((error**2).mean()), float(np.abs(error).mean()), float(truth.std())
    return Errors(1 - mse / deviation**2, mse, mae, mae / deviation)
