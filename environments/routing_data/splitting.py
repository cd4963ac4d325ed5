"""The table of scores, and its division into a training and a held-out part without leakage.

The table has no text, so questions are told apart by task, characters and words: questions that
are equal in all three are a *family*. Every repeat of a question is in the family of its first
occurrence, since it has the same text; most members of a family are different questions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.routing_data.questions import MODELS
from icl_optimizer.errors import ConfigurationError

KEY = ["task", "question_chars", "question_words"]
COLUMNS = ["split", *KEY, *MODELS]
TRAIN_SHARE = 0.7
SEED = 20_251_122


def read_scores(path: Path) -> pd.DataFrame:
    """Return a table of scores, reduced to what is used: split, task, sizes, nine scores.

    Args:
        path: CSV file with the columns ``split`` (``train`` or ``test`` of LLMRouter), ``task``,
            ``question_chars``, ``question_words`` and one per model of :data:`.MODELS`.

    Raises:
        ConfigurationError: The file is missing, lacks a column, or a score is not in 0 to 1.
    """
    if not path.is_file():
        raise ConfigurationError(f"scores '{path}' is not there; allowed: a CSV file.")
    table = pd.read_csv(path)
    if missing := [name for name in COLUMNS if name not in table]:
        raise ConfigurationError(
            f"scores '{path}' lacks the columns {', '.join(missing)}; "
            f"allowed: a CSV file with {', '.join(COLUMNS)}."
        )
    for model in MODELS:
        if not (valid := table[model].between(0, 1)).all():
            wrong = table.loc[~valid, model].iloc[0]
            raise ConfigurationError(f"score of '{model}' is {wrong}; allowed: 0 to 1.")
    return table[COLUMNS].round(dict.fromkeys(MODELS, 4))


def drop_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without upstream's test questions that may be train questions, too.

    Scores do not tell repeats: about 50 of the 119 known ones have other scores the second time,
    and many a short question agrees with another in all nine. So all that share a family with a
    train question go: 248 rows, and by their texts all 119 are among them.
    """
    family = table.groupby(KEY, sort=False).ngroup()
    test = table["split"] == "test"
    return table[~(test & family.isin(family[~test]))]


def split_questions(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows are held out: 30 % of each task, whole families, shape (rows,).

    Families are taken in random order, by a fixed seed, until the training part has its share.
    """
    rng = np.random.default_rng(SEED)
    held_out = np.zeros(len(table), dtype=np.bool_)
    family = families(table)
    for task in sorted(table["task"].unique()):
        rows = np.flatnonzero((table["task"] == task).to_numpy())
        members = np.bincount(family[rows], minlength=family.max() + 1)
        order = rng.permutation(np.flatnonzero(members))
        before = np.cumsum(members[order]) - members[order]
        later = order[before >= TRAIN_SHARE * len(rows)]
        held_out[rows] = np.isin(family[rows], later)
    return held_out


def families(table: pd.DataFrame) -> NDArray[np.int64]:
    """Return the number of each row's family, shape (rows,)."""
    return np.asarray(table.groupby(KEY, sort=False).ngroup(), dtype=np.int64)
