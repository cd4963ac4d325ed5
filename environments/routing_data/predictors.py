"""Learn the predictors of scores and answer lengths, write the shipped tables, print how good.

``python -m icl_optimizer.environments.routing_data.predictors`` makes the shipped tables anew from
the shipped scores; ``--scores FILE`` takes the scores from a table of LLMRouter's, ``--out FOLDER``
writes elsewhere. scikit-learn is needed here alone: what it learned is kept as numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.routing_data.accuracy import (
    AccuracyTable,
    print_tables,
    tables,
)
from icl_optimizer.environments.routing_data.lengths import LENGTHS_FILE, TRACE, TRAIN_SHARE
from icl_optimizer.environments.routing_data.questions import (
    MODELS,
    PREDICTIONS_FILE,
    SCORES_FILE,
    Part,
    assemble,
)
from icl_optimizer.environments.routing_data.splitting import (
    drop_repeats,
    families,
    read_scores,
    split_questions,
)
from icl_optimizer.environments.traces import Trace, read_trace, split

Floats = NDArray[np.float64]
FOLDS = 5
LEAVES = (2, 4, 8, 16, 32)
LEAST_PER_LEAF = 100


@dataclass(frozen=True)
class Candidate:
    """A way to predict scores: what it sees of a question, and a scikit-learn model."""

    inputs: Callable[[pd.DataFrame], Floats]
    model: Callable[[], Any]

    def predict(self, learned: pd.DataFrame, asked: pd.DataFrame) -> Floats:
        """Return the scores of ``asked``, held to 0 … 1, by a model fitted on ``learned``."""
        model = self.model().fit(self.inputs(learned), learned[list(MODELS)].to_numpy())
        predicted: Floats = np.clip(model.predict(self.inputs(asked)), 0.0, 1.0)
        return predicted


def _task(table: pd.DataFrame) -> Floats:
    return pd.get_dummies(table["task"]).to_numpy(dtype=np.float64)


def _sizes(table: pd.DataFrame) -> Floats:
    sizes: Floats = np.log(table[["question_chars", "question_words"]].to_numpy(dtype=np.float64))
    return sizes


def _task_and_sizes(table: pd.DataFrame) -> Floats:
    return np.concatenate([_task(table), _sizes(table)], axis=1)


def _sizes_by_task(table: pd.DataFrame) -> Floats:
    products = _task(table)[:, :, None] * _sizes(table)[:, None, :]
    return np.concatenate([_task_and_sizes(table), products.reshape(len(table), -1)], axis=1)


def _ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1.0)


def _forest() -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(100, min_samples_leaf=40, max_features=0.5, random_state=0)


def _boosting() -> Any:
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.multioutput import MultiOutputRegressor

    return MultiOutputRegressor(GradientBoostingRegressor(n_estimators=60, random_state=0))


CANDIDATES: dict[str, Candidate] = {
    "ridge, task": Candidate(_task, _ridge),
    "ridge, task and sizes": Candidate(_task_and_sizes, _ridge),
    "ridge, sizes by task": Candidate(_sizes_by_task, _ridge),
    "random forest": Candidate(_task_and_sizes, _forest),
    "gradient boosting": Candidate(_task_and_sizes, _boosting),
}
"""What was tried; the one with the least squared error in cross-validation is used."""


def out_of_fold(candidate: Candidate, table: pd.DataFrame) -> Floats:
    """Return the scores of each row by a model that saw no row of its family, shape (n, 9)."""
    from sklearn.model_selection import GroupKFold

    predicted = np.full((len(table), len(MODELS)), np.nan)
    for learned, left_out in GroupKFold(FOLDS).split(table, groups=families(table)):
        predicted[left_out] = candidate.predict(table.iloc[learned], table.iloc[left_out])
    return predicted


def choose(table: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """Return the best of :data:`CANDIDATES` on the training part, and the error of each."""
    true = table[list(MODELS)].to_numpy()
    errors = {
        name: float(((out_of_fold(candidate, table) - true) ** 2).mean())
        for name, candidate in CANDIDATES.items()
    }
    return min(errors, key=errors.__getitem__), errors


def predict_scores(candidate: Candidate, table: pd.DataFrame) -> pd.DataFrame:
    """Return row, part and predicted scores, out of fold in the training part.

    Args:
        candidate: What predicts.
        table: Scores as :func:`.read_scores` returns them, repeats and all.
    """
    kept = drop_repeats(table)
    held_out = split_questions(kept)
    train, rest = kept[~held_out], kept[held_out]
    scores = np.concatenate([out_of_fold(candidate, train), candidate.predict(train, rest)])
    predicted = pd.DataFrame(scores.round(4), columns=list(MODELS))
    predicted.insert(0, "part", np.repeat(["train", "held-out"], [len(train), len(rest)]))
    predicted.insert(0, "row", [*train.index, *rest.index])
    return predicted.sort_values("row", ignore_index=True)


def learn_lengths(trace: Trace) -> pd.DataFrame:
    """Return the bins of prompt tokens, the mean answer in each, how many requests it is from.

    A regression tree; the number of its leaves is chosen on later requests by models of earlier
    ones, within ``trace``.
    """
    from sklearn.model_selection import TimeSeriesSplit, cross_val_score
    from sklearn.tree import DecisionTreeRegressor

    prompts = trace.context_tokens.astype(np.float64)[:, None]
    answers = trace.generated_tokens.astype(np.float64)

    def tree(leaves: int) -> Any:
        return DecisionTreeRegressor(max_leaf_nodes=leaves, min_samples_leaf=LEAST_PER_LEAF)

    def skill(leaves: int) -> float:
        order = TimeSeriesSplit(FOLDS)
        scoring = "neg_mean_squared_error"
        found = cross_val_score(tree(leaves), prompts, answers, cv=order, scoring=scoring)
        return float(found.mean())

    fitted = tree(max(LEAVES, key=skill)).fit(prompts, answers).tree_
    ends = np.sort(fitted.threshold[fitted.children_left != -1])
    bins = np.searchsorted(ends, prompts[:, 0])
    count = np.bincount(bins)
    mean = np.bincount(bins, answers) / count
    ends = np.append(ends, np.inf)
    return pd.DataFrame(
        {"prompt_tokens_up_to": ends, "answer_tokens": mean.round(1), "requests": count}
    )


def write_tables(out: Path, scores: pd.DataFrame) -> list[AccuracyTable]:
    """Write the shipped tables to the folder ``out``; return how good they are.

    Args:
        out: Made where it is missing.
        scores: As :func:`.read_scores` returns them.
    """
    kept = drop_repeats(scores)
    chosen, errors = choose(kept[~split_questions(kept)])
    predicted = predict_scores(CANDIDATES[chosen], scores)
    lengths = learn_lengths(split(read_trace(TRACE), TRAIN_SHARE)[0])
    out.mkdir(parents=True, exist_ok=True)
    # without a time stamp, so that equal tables are equal files
    packed: Any = {"method": "gzip", "mtime": 0}
    scores.to_csv(out / SCORES_FILE, index=False, compression=packed)
    predicted.to_csv(out / PREDICTIONS_FILE, index=False, compression=packed)
    lengths.to_csv(out / LENGTHS_FILE, index=False)
    train, held = (assemble(scores, predicted, part) for part in get_args(Part))
    return [choice_table(chosen, errors), *tables(train, held, lengths)]


def choice_table(chosen: str, errors: dict[str, float]) -> AccuracyTable:
    """Return the errors of the candidates, marking the chosen one."""
    rows = [[name, f"{e:.4f}", "yes" if name == chosen else ""] for name, e in errors.items()]
    header = ["predictor", "mean squared error", "used"]
    return AccuracyTable("Cross-validation in the training part", header, rows)


def main(arguments: list[str] | None = None) -> None:
    """Make the tables and print the accuracy of what is in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    with as_file(files("icl_optimizer.environments.data")) as data:
        shipped = data / SCORES_FILE
        parser.add_argument("--scores", type=Path, default=shipped, help="CSV file of scores")
        parser.add_argument("--out", type=Path, default=data, help="folder to write to")
        given = parser.parse_args(arguments)
        print_tables(write_tables(given.out, read_scores(given.scores)))


if __name__ == "__main__":
    main()
