"""From a prompt to its task type, for requests that do not name theirs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES

MOST_CHARACTERS = 4000
"""Characters of a prompt that count, from its start."""
OTHER = "language"
"""Type of a request without any text."""
PROMPTS_FILE = "task_prompts.csv"
WORD_OR_SIGN = r"(?u)\w+|[^\w\s]"
STRENGTH = 30.0
"""Inverse of the regularisation, chosen by cross-validation of the training prompts."""


@dataclass(frozen=True)
class TaskPrompt:
    """A prompt whose type is known.

    Attributes:
        task: One of :data:`TASK_TYPES`.
        prompt: Its text.
        split: ``train``, or ``test`` for those that only measure.
    """

    task: str
    prompt: str
    split: str


def task_prompts(split: str) -> list[TaskPrompt]:
    """Return the shipped prompts of a split, ``train`` or ``test``."""
    source = files("icl_optimizer.environments.data").joinpath(PROMPTS_FILE)
    rows = csv.DictReader(io.StringIO(source.read_text(encoding="utf-8"), newline=""))
    return [TaskPrompt(**row) for row in rows if row["split"] == split]


class TaskClassifier:
    """Logistic regression, one type against the rest, on words, word pairs and parts of words."""

    def __init__(self) -> None:
        """Train on the shipped prompts of the split ``train``; the same each time."""
        shipped = task_prompts("train")
        model = new_model().fit([p.prompt for p in shipped], [p.task for p in shipped])
        self._features, regressions = model[0], model[-1]
        self._types = [str(name) for name in regressions.classes_]
        # one product instead of five checked calls saves a third of the time
        self._weights = np.vstack([e.coef_[0] for e in regressions.estimators_]).T
        self._offsets = np.array([e.intercept_[0] for e in regressions.estimators_])

    def classify(self, prompt: str) -> tuple[str, float]:
        """Return the most probable type and its probability, 0 to 1.

        Args:
            prompt: Text of the request; :data:`MOST_CHARACTERS` of it count. Without any text
                the answer is :data:`OTHER` with the probability of a guess.
        """
        text = prompt[:MOST_CHARACTERS]
        if not text.strip():
            return OTHER, 1 / len(TASK_TYPES)
        scores = (self._features.transform([text]) @ self._weights)[0] + self._offsets
        apart = 1 / (1 + np.exp(-scores))
        best = int(apart.argmax())
        return self._types[best], float(apart[best] / apart.sum())


def new_model() -> Any:
    """Return the untrained scikit-learn pipeline, which takes texts."""
    # scikit-learn takes a second to import, which a router that is told the types need not wait for
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline, make_union

    shared = {"preprocessor": _normalised, "sublinear_tf": True, "min_df": 2}
    words = TfidfVectorizer(token_pattern=WORD_OR_SIGN, ngram_range=(1, 2), **shared)
    parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), **shared)
    regression = LogisticRegression(C=STRENGTH, solver="liblinear", dual=True, random_state=0)
    return make_pipeline(make_union(words, parts), OneVsRestClassifier(regression))


def _normalised(text: str) -> str:
    # which number it is says nothing of the type, that there are lines does
    return re.sub(r"\n", " ¶ ", re.sub(r"\d+", "0", text.lower()))


def prompt_text(body: Mapping[str, Any]) -> str:
    """Return the text that a request asks about, ``""`` if it has none.

    Args:
        body: Of a chat completion (its last message of the user; parts of type ``text`` if the
            content is a list) or of a completion (``prompt``, one text or a list of them).
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _joined(body.get("prompt"))
    asked = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return _joined(asked[-1].get("content")) if asked else ""


def _joined(content: object) -> str:
    """Return the text of a content: one text, or a list of texts and parts with texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [
        p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else p for p in content
    ]
    return "\n".join(part for part in parts if isinstance(part, str))
