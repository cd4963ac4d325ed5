"""Questions, the true score of each of nine language models on them, and the predicted ones.

Read from the shipped tables; :mod:`.splitting` and :mod:`.predictors` made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.errors import unknown_name

Part = Literal["train", "held-out"]

MODELS: tuple[str, ...] = (
    "llama3-chatqa-1.5-8b",
    "qwen2.5-7b-instruct",
    "llama3-chatqa-1.5-70b",
    "llama-3.1-nemotron-51b-instruct",
    "mistral-7b-instruct-v0.3",
    "gemma-2-9b-it",
    "llama-3.1-8b-instruct",
    "codegemma-7b",
    "llama-3.3-nemotron-super-49b-v1",
)
"""The nine models, in the order of the columns of scores."""
DEFAULT_EXPERTS = ("qwen2.5-7b-instruct", "gemma-2-9b-it", "llama-3.1-8b-instruct")
SCORES_FILE = "routing_scores.csv.gz"
PREDICTIONS_FILE = "routing_predictions.csv.gz"


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions of one part (``n`` of them); the arrays cannot be written to.

    Attributes:
        names: The nine models, in the order of the columns.
        task: Benchmark that a question is of, 14 different ones, shape (n,), text.
        chars: Characters of a question, shape (n,).
        words: Words of a question, shape (n,).
        scores: True score of each model, 0 to 1, shape (n, 9).
        predicted: Predicted score, 0 to 1, shape (n, 9). In the training part from models that had
            not seen the question, so that its errors are as large there as in the other part.
    """

    names: tuple[str, ...]
    task: NDArray[np.str_]
    chars: NDArray[np.int64]
    words: NDArray[np.int64]
    scores: NDArray[np.float64]
    predicted: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Lock the arrays, since all callers share them."""
        for field in ("task", "chars", "words", "scores", "predicted"):
            getattr(self, field).setflags(write=False)

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.task)

    def columns(self, models: Iterable[str]) -> NDArray[np.int64]:
        """Return the columns of ``models`` in the scores, in their order.

        Raises:
            ConfigurationError: A model has no scores.
        """
        for model in (models := tuple(models)):
            if model not in self.names:
                raise unknown_name("model", model, self.names)
        return np.array([self.names.index(model) for model in models], dtype=np.int64)


@cache
def questions(part: Part) -> Questions:
    """Return the questions of a part; no question is in both.

    Args:
        part: ``train``, about 70 % of each task, or ``held-out``.

    Raises:
        ConfigurationError: There is no such part.
    """
    if part not in get_args(Part):
        raise unknown_name("part", part, get_args(Part))
    return assemble(read_shipped(SCORES_FILE), read_shipped(PREDICTIONS_FILE), part)


def assemble(scores: pd.DataFrame, predictions: pd.DataFrame, part: Part) -> Questions:
    """Return the questions of ``part`` from the two tables, in the order of the first."""
    predicted = predictions[predictions["part"] == part]
    table = scores.iloc[predicted["row"].to_numpy()]
    return Questions(
        MODELS,
        table["task"].to_numpy(dtype=np.str_),
        table["question_chars"].to_numpy(dtype=np.int64),
        table["question_words"].to_numpy(dtype=np.int64),
        table[list(MODELS)].to_numpy(dtype=np.float64),
        predicted[list(MODELS)].to_numpy(dtype=np.float64),
    )


def read_shipped(name: str) -> pd.DataFrame:
    """Return a table that ships with the package."""
    with as_file(files("icl_optimizer.environments.data") / name) as path:
        return pd.read_csv(path)
