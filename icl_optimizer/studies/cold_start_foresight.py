"""Who foresees what in the study of cold starts: the language model, and rivals without words."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Protocol

import numpy as np

from icl_optimizer.environments.slo_scheduling import LEVELS
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES, served_llms
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.row_reader import Cell, RowReader
from icl_optimizer.studies.cold_start_questions import (
    LENGTHS,
    Experience,
    Floats,
    Question,
    known_lengths,
)
from icl_optimizer.word_reader import WordReader

WAITING = (0.0, 1.0, 2.0, 3.0, 4.5, 8.0)
"""Queue words as numbers: the middle of what each stands for."""
Likeness = Callable[[str, str, str], float]
"""How well a description of something new fits a known one: kind of thing, known, new."""


class Foreseer(Protocol):
    """Foresees the share of requests in time by queue word, ``(levels,)``."""

    def __call__(self, question: Question) -> Floats:
        """Answer one question."""


def table(experience: Experience) -> Foreseer:
    """Return what the table of outcomes falls back to: the mean at the same queue word.

    Over the server's own outcomes if it has any (its task is new), else over all servers'.
    """

    def foresee(question: Question) -> Floats:
        known = experience.table_with(question.server)
        return _row(known, known.problem.action(question.server), question.task)

    return foresee


class Regression:
    """Logistic regression on numbers that a person took out of the words.

    On the logarithms of parameters and of requests ahead, and on the length of answers where it
    is said (short -1, long 1), fitted to the same outcomes. In time means that the requests ahead,
    and this one, times tokens, by speed, are below the deadline: a sum of logarithms, if speed
    goes by size.
    """

    def __init__(self, experience: Experience) -> None:
        """Fit."""
        from sklearn.linear_model import LogisticRegression

        features, in_time = [], []
        for outcome in experience.outcomes:
            (task,), own = experience.table.words(outcome.context)
            queue = LEVELS.index(own[outcome.action][0])
            server = experience.models[outcome.action]
            features.append(self._features(server, queue, known_lengths()[task]))
            in_time.append(outcome.feasible)
        self._model = LogisticRegression(C=10.0).fit(features, in_time)

    def __call__(self, question: Question) -> Floats:
        """Answer one question."""
        rows = [
            self._features(question.server, queue, question.length) for queue in range(len(LEVELS))
        ]
        return np.asarray(self._model.predict_proba(rows)[:, 1])

    @staticmethod
    def _features(server: str, queue: int, length: str) -> list[float]:
        words = [word for word, _ in LENGTHS]
        size = np.log(served_llms()[server].billions)
        return [size, np.log1p(WAITING[queue]), words.index(length) - 1.0 if length else 0.0]


def alike(experience: Experience, likeness: Likeness) -> Foreseer:
    """Return the row of outcomes of the known server and task that are most alike.

    Alike by what ``likeness`` makes of their descriptions alone; neither names nor numbers are
    compared otherwise.
    """
    sizes = [profile["Size"] for profile in experience.problem().profiles]

    def foresee(question: Question) -> Floats:
        if question.server in experience.models:
            action = experience.models.index(question.server)
        else:
            new = experience.problem(question.server).profiles[-1]["Size"]
            action = int(np.argmax([likeness("server", size, new) for size in sizes]))
        task = question.task
        if task not in TASK_TYPES:
            new = describe_task(task, question.length)
            known = [
                describe_task(word, length if question.length else "")
                for word, length in known_lengths().items()
            ]
            fits = [likeness("task", words, new) for words in known]
            task = list(known_lengths())[int(np.argmax(fits))]
        return _row(experience.table, action, task)

    return foresee


def describe_task(task: str, length: str) -> str:
    """Return a task type in words."""
    return f"{length} answers to {task}" if length else task


def spelling(what: str, known: str, new: str) -> float:
    """Return the share of equal letters: likeness without knowledge of what words mean."""
    return SequenceMatcher(None, known, new).ratio()


class ModelLikeness:
    """The log-likelihood of the new description after the known one, by a language model.

    Args:
        model: Gives likelihoods of texts.
        builder: Renders ``<problem>/alike_server.j2`` and ``alike_task.j2``.
    """

    def __init__(self, model: LanguageModel, builder: PromptBuilder) -> None:
        """Start with nothing asked."""
        self._model, self._builder = model, builder
        self._kept: dict[tuple[str, str], float] = {}

    def __call__(self, what: str, known: str, new: str) -> float:
        """Return the likelihood, asking once for each pair."""
        pair = self._builder.render_alike(what, known), f" {new}"
        if pair not in self._kept:
            self._kept[pair] = float(self._model.likelihood([pair[0]], [pair[1]])[0])
        return self._kept[pair]


class RowReading:
    """The row prompt of the in-context agent, as it stands, about what was never seen.

    Cells without outcomes show what the table falls back to, so the model has the name of the
    server and the word of the task beside the mean of the others.
    """

    def __init__(self, experience: Experience, model: LanguageModel) -> None:
        """Start with nothing asked."""
        self._experience, self._model = experience, model
        self._kept: dict[tuple[str, str], Floats] = {}

    def __call__(self, question: Question) -> Floats:
        """Answer one question; the row has no place for the length of answers."""
        asked = question.server, question.task
        if asked not in self._kept:
            self._kept[asked] = self._read(*asked)
        return self._kept[asked]

    def _read(self, server: str, task: str) -> Floats:
        known = self._experience.table_with(server)
        rows = RowReader(PromptBuilder(known.problem))
        action = known.problem.action(server)
        prompts = [rows.prompt(known, Cell(action, (task,), (level,))) for level in LEVELS]
        return np.asarray(WordReader(self._model, rows.words).ask(prompts) @ rows.worth(known))


def foreseers(
    experience: Experience, model: LanguageModel, likeness: ModelLikeness
) -> dict[str, Foreseer]:
    """Return everybody who is compared, by name, with the same experience.

    Args:
        experience: Outcomes at known servers.
        model: The language model.
        likeness: What it makes of descriptions; the same for all seeds, since it knows no outcomes.
    """
    return {
        "language model, most alike": alike(experience, likeness),
        "language model, row prompt": RowReading(experience, model),
        "mean at the same queue": table(experience),
        "most alike by spelling": alike(experience, spelling),
        "regression on numbers": Regression(experience),
    }


def _row(known: OutcomeTable, action: int, task: str) -> Floats:
    return np.array([known.chance(action, (task,), (level,)) for level in LEVELS])
