"""Servers and task types never seen, described in words: what a language model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.environments.slo_scheduling import LEVELS
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.rollout import progress
from icl_optimizer.studies.cold_start_foresight import ModelLikeness, foreseers
from icl_optimizer.studies.cold_start_questions import Floats, Question, Split, gather, questions
from icl_optimizer.studies.tables import write_study

BASE = "base rate"
"""Always the verdict that is the more frequent one of those asked for, as hindsight has it."""
MEASURES = ("right", "balanced_accuracy", "auc")
HALF = 0.5
"""Share of requests in time from which the verdict is that they are."""
FIRST_SEED: dict[Split, int] = {"report": 0, "development": 100}


def run_cold_start(
    out: str | Path,
    seeds: int = 5,
    split: Split = "report",
    model: LanguageModel | None = None,
    *,
    progress_bar: bool = True,
) -> Path:
    """Measure verdicts without experience; write ``cold-start.csv`` and ``cold-start.md``.

    Each seed has four known servers and 500 outcomes of random decisions at them. Then it is asked
    of servers and task types that are not among them, queue word by queue word, whether a request
    will be answered in time. The truth is what happened to most such requests in random play.

    Args:
        out: Folder for the results.
        seeds: Repetitions.
        split: ``report``, or ``development`` for what prompts were chosen by.
        model: The language model; None for the embedded one on one thread.
        progress_bar: Whether to show progress.

    Returns:
        The path of ``cold-start.md``.
    """
    language_model = model or LlamaCpp(threads=1)
    likeness = ModelLikeness(language_model, PromptBuilder(gather(0).problem()))
    rows: list[dict[str, object]] = []
    with progress("cold start", seeds, shown=progress_bar) as advance:
        for seed in range(FIRST_SEED[split], FIRST_SEED[split] + seeds):
            experience = gather(seed)
            asked = list(questions(experience.models, split))
            foresight = foreseers(experience, language_model, likeness)
            for name, foresee in foresight.items():
                for question in asked:
                    rows += _verdicts(seed, name, question, foresee(question))
            advance(1)
    verdicts = pd.DataFrame(rows)
    return write_study(Path(out), "cold-start", verdicts, cold_start_table(verdicts))


def _verdicts(
    seed: int, method: str, question: Question, foreseen: Floats
) -> Iterator[dict[str, object]]:
    """Yield a row for each queue word whose truth is known."""
    for queue, chance, share in zip(LEVELS, foreseen, question.in_time, strict=True):
        if np.isfinite(share):
            yield {
                "seed": seed,
                "new": question.kind,
                "method": method,
                "server": question.server,
                "task": question.task,
                "queue": queue,
                "chance": chance,
                "in_time": share,
            }


def cold_start_table(verdicts: pd.DataFrame) -> list[list[str]]:
    """Return mean and interval over seeds of each measure, by what is new and method.

    Args:
        verdicts: The rows of ``cold-start.csv``.
    """
    table = [["never seen", "verdicts by", "share right", "balanced accuracy", "AUC"]]
    for kind, asked in verdicts.groupby("new", sort=False):
        measured = {
            str(method): [_measures(one) for _, one in rows.groupby("seed")]
            for method, rows in asked.groupby("method", sort=False)
        }
        first = next(iter(measured.values()))
        measured[BASE] = [{"right": m["base"], "balanced_accuracy": 0.5, "auc": 0.5} for m in first]
        for method, seeds in measured.items():
            cells = [with_interval("accuracy", estimate([m[k] for m in seeds])) for k in MEASURES]
            table.append([str(kind), method, *cells])
    return table


def _measures(rows: pd.DataFrame) -> dict[str, float]:
    """Return what one method reaches with one seed on one kind of question, and the base rate."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    truth = (rows["in_time"] > HALF).to_numpy()
    verdict = (rows["chance"] > HALF).to_numpy()
    return {
        "right": float((truth == verdict).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, verdict)),
        "auc": float(roc_auc_score(truth, rows["chance"])),
        "base": float(max(truth.mean(), 1 - truth.mean())),
    }
