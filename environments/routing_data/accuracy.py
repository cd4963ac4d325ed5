"""How good the predicted scores and answer lengths are, as numbers and as tables.

Everything is of the held-out parts unless it says otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.routing_data.lengths import TRACE, TRAIN_SHARE, look_up
from icl_optimizer.environments.routing_data.questions import DEFAULT_EXPERTS, MODELS, Questions
from icl_optimizer.environments.traces import Trace, read_trace, split

Floats = NDArray[np.float64]
BINS = 10
NONE = "–"


class AccuracyTable(NamedTuple):
    """A table of texts, its first column the names of the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Routing(NamedTuple):
    """What sending each question to the predicted best of some models is worth.

    Attributes:
        random: Mean true score of a model drawn at random.
        single: That of the one model that is best in the training part.
        by_task: That of the model that is best for the question's task in the training part.
        predicted: That of the predicted best of each question.
        best: That of the true best of each question.
        gain: Half-width of the 95 % interval of ``predicted - single``, over the questions.
        hits: Share of questions whose predicted best is among the true best, ties counting.
        decisive_hits: The same where the models do not all score the same.
        decisive: Share of questions where they do not.
    """

    random: float
    single: float
    by_task: float
    predicted: float
    best: float
    gain: float
    hits: float
    decisive_hits: float
    decisive: float


def r_squared(predicted: Floats, true: Floats) -> float:
    """Return the share of the variance that is explained; below 0: worse than the mean."""
    return float(1.0 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def routing(train: Questions, held: Questions, models: tuple[str, ...]) -> Routing:
    """Return what the predictions are worth for choosing among ``models``."""
    columns = held.columns(models)
    true, predicted, learned = (
        part[:, columns] for part in (held.scores, held.predicted, train.scores)
    )
    single = true[:, learned.mean(axis=0).argmax()]
    favourites = pd.DataFrame(learned).groupby(train.task).mean().to_numpy().argmax(axis=1)
    tasks = np.unique(train.task)
    by_task = _picked(true, favourites[np.searchsorted(tasks, held.task)])
    chosen = _picked(true, predicted.argmax(axis=1))
    best = true.max(axis=1)
    hit, decisive = chosen == best, true.min(axis=1) < best
    return Routing(
        float(true.mean()),
        float(single.mean()),
        float(by_task.mean()),
        float(chosen.mean()),
        float(best.mean()),
        float(1.96 * (chosen - single).std(ddof=1) / np.sqrt(len(true))),
        float(hit.mean()),
        float(hit[decisive].mean()),
        float(decisive.mean()),
    )


def _picked(scores: Floats, models: NDArray[np.int64]) -> Floats:
    picked: Floats = np.take_along_axis(scores, models[:, None], axis=1)[:, 0]
    return picked


def calibration(predicted: Floats, true: Floats) -> pd.DataFrame:
    """Return predictions, mean prediction and mean truth in ten bins of equal width, (10, 3)."""
    bins = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, values, minlength=BINS) for values in (predicted, true))
    shares = [total / np.maximum(count, 1) for total in sums]
    return pd.DataFrame({"count": count, "predicted": shares[0], "true": shares[1]})


def calibration_error(predicted: Floats, true: Floats) -> float:
    """Return the mean distance of prediction and truth over the bins, by predictions in them."""
    bins = calibration(predicted, true)
    distance = (bins["predicted"] - bins["true"]).abs()
    return float((distance * bins["count"]).sum() / bins["count"].sum())


def tables(train: Questions, held: Questions, lengths: pd.DataFrame) -> list[AccuracyTable]:
    """Return all tables of the predictions ``held`` and of the bins ``lengths``."""
    return [
        score_table(held),
        calibration_table(held),
        routing_table(train, held),
        bins_table(lengths),
        lengths_table(lengths),
    ]


def score_table(held: Questions) -> AccuracyTable:
    """Return how near the predicted scores come, per model and over all."""
    rows = [
        _score_row(name, held.scores[:, [i]], held.predicted[:, [i]], held)
        for i, name in enumerate(MODELS)
    ]
    rows.append(_score_row("all nine", held.scores, held.predicted, held))
    header = ["model", "true mean", "R²", "within tasks", "error", "ten-bin error"]
    return AccuracyTable("Predicted scores", header, rows)


def _score_row(name: str, true: Floats, predicted: Floats, held: Questions) -> list[str]:
    numbers = [
        true.mean(),
        r_squared(predicted, true),
        r_squared(*(_without_task(values, held.task) for values in (predicted, true))),
        np.abs(predicted - true).mean(),
        calibration_error(predicted.ravel(), true.ravel()),
    ]
    return [name, *(f"{number:.3f}" for number in numbers)]


def _without_task(values: Floats, task: NDArray[np.str_]) -> Floats:
    """Return ``values`` less their means over the questions of the same task."""
    frame = pd.DataFrame(values)
    centred: Floats = (frame - frame.groupby(task).transform("mean")).to_numpy()
    return centred


def calibration_table(held: Questions) -> AccuracyTable:
    """Return the ten bins of the predictions of all nine models."""
    bins = calibration(held.predicted.ravel(), held.scores.ravel())
    rows = [
        [f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}", f"{count:,.0f}"]
        + ([f"{predicted:.3f}", f"{true:.3f}"] if count else [NONE, NONE])
        for i, (count, predicted, true) in enumerate(bins.to_numpy())
    ]
    header = ["predicted score", "predictions", "their mean", "mean true score"]
    return AccuracyTable("Calibration, all nine models", header, rows)


def routing_table(train: Questions, held: Questions) -> AccuracyTable:
    """Return what the predictions are worth, for the default three experts and for all nine."""
    found = [routing(train, held, models) for models in (DEFAULT_EXPERTS, MODELS)]
    rows = [
        ["mean true score: drawn at random", *(f"{r.random:.3f}" for r in found)],
        ["best single model (of the training part)", *(f"{r.single:.3f}" for r in found)],
        ["best model of the task (of the training part)", *(f"{r.by_task:.3f}" for r in found)],
        ["predicted best", *(f"{r.predicted:.3f}" for r in found)],
        ["true best", *(f"{r.best:.3f}" for r in found)],
        [
            "gain of predicted over single, 95 %",
            *(f"{r.predicted - r.single:+.3f} ± {r.gain:.3f}" for r in found),
        ],
        ["predicted best is among the true best", *(f"{r.hits:.1%}" for r in found)],
        ["the same where the models differ", *(f"{r.decisive_hits:.1%}" for r in found)],
        ["questions where they differ", *(f"{r.decisive:.1%}" for r in found)],
    ]
    return AccuracyTable("Choosing a model", ["", "default three", "all nine"], rows)


def bins_table(lengths: pd.DataFrame) -> AccuracyTable:
    """Return what is predicted for which prompts."""
    columns = ("prompt_tokens_up_to", "answer_tokens", "requests")
    ends, tokens, requests = (lengths[name] for name in columns)
    rows, first = [], 0
    for end, answer, count in zip(ends, tokens, requests, strict=True):
        last = f"to {np.floor(end):,.0f}" if np.isfinite(end) else "and more"
        rows.append([f"{first:,} {last}", f"{answer:.1f}", f"{count:,}"])
        first = int(np.floor(end)) + 1 if np.isfinite(end) else first
    header = ["prompt tokens", "predicted", "requests learned from"]
    return AccuracyTable("Answer tokens that are predicted", header, rows)


def lengths_table(lengths: pd.DataFrame) -> AccuracyTable:
    """Return how near the predicted lengths come, where they were learned and elsewhere."""
    learned, later = split(read_trace(TRACE), TRAIN_SHARE)
    mean = np.full(len(later), learned.generated_tokens.mean())
    other = read_trace("azure-code")
    rows = [
        _length_row("last 30 %", later, _at(lengths, later)),
        _length_row("same, by one mean", later, mean),
        _length_row("first 70 % (learned)", learned, _at(lengths, learned)),
        _length_row("azure-code", other, _at(lengths, other)),
    ]
    header = ["requests", "true mean", "predicted", "error", "R²", "in factor 2", "ranks"]
    return AccuracyTable("Predicted answer tokens", header, rows)


def _at(lengths: pd.DataFrame, trace: Trace) -> Floats:
    return look_up(lengths, trace.context_tokens)


def _length_row(name: str, trace: Trace, predicted: Floats) -> list[str]:
    from scipy.stats import spearmanr

    true = trace.generated_tokens.astype(np.float64)
    near = (predicted <= 2 * true) & (true <= 2 * predicted)
    # plus 0, since -0.00 is 0
    ranked = spearmanr(predicted, true).statistic.round(2) + 0.0 if np.ptp(predicted) else None
    return [
        name,
        f"{true.mean():.0f}",
        f"{predicted.mean():.0f}",
        f"{np.abs(predicted - true).mean():.1f}",
        f"{r_squared(predicted, true):.2f}",
        f"{near.mean():.1%}",
        NONE if ranked is None else f"{ranked:.2f}",
    ]


def print_tables(shown: list[AccuracyTable]) -> None:
    """Print tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for table in shown:
        drawn = Table(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        drawn.add_column(table.header[0], no_wrap=True)
        for name in table.header[1:]:
            drawn.add_column(name, justify="right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
